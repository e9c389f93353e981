"""Does what the README shows run as it stands there?"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def command(name):
    """The sh block after the comment that names it."""
    found = re.findall(rf"^<!-- command: {name} -->\n```sh\n(.*?)^```", README,
                       re.DOTALL | re.MULTILINE)
    assert len(found) == 1
    return found[0]


def test_the_readme_has_a_program_for_a_layer_a_solver_and_a_grid():
    assert len(PROGRAMS) == 3


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_of_the_readme_runs(number, tmp_path, monkeypatch, request):
    program = PROGRAMS[number]
    if "Planetoid" in program:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "planetoid").symlink_to(request.getfixturevalue("planetoid"))
        program = program.replace("range(50)", "range(3)")
        assert "range(3)" in program
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {"__name__": "__main__"})


def test_the_marked_commands_install_and_run():
    assert "examples/node_classification.py" in command("main")
    assert "python -m pytest" in command("tests")
    for name in ("main", "tests"):
        assert "-c constraints.txt" in command(name)


def test_the_readme_is_short_and_its_links_hold_where_there_is_no_repository():
    assert len(README.splitlines()) <= 150
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]*)\)", README)
    assert links
    assert all(link.startswith("https://") for link in links)


def test_the_files_that_the_readme_names_exist():
    named = re.findall(r"`((?:docs|examples)/[\w./]+)`", README)
    named += re.findall(r"!\[[^\]]*\]\(([^)]*)\)", README)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert named
    assert not missing
