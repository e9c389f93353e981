"""Does what the README shows run as it stands there?"""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readme_has_programs():
    assert len(PROGRAMS) >= 2


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_the_readme_runs(program):
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})


def test_the_first_two_shell_blocks_install_and_run():
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert "examples/node_classification.py" in blocks[0]
    assert "python -m pytest" in blocks[1]
