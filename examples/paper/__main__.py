"""Which of the paper's tables, figures and claims shall be measured? `python examples/paper`."""

import sys
from pathlib import Path

# The folder above has what all examples share. No other file changes the path.
sys.path.append(str(Path(__file__).parents[1]))

from paper_commands import FOLDER

if __name__ == "__main__":
    FOLDER.main()
