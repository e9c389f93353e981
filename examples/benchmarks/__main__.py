"""Which benchmark shall be run? `python examples/benchmarks`."""

import sys
from pathlib import Path

# The folder above has what all examples share. No other file changes the path.
sys.path.append(str(Path(__file__).parents[1]))

from benchmark_commands import FOLDER

if __name__ == "__main__":
    FOLDER.main()
