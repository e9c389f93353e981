"""Do the commands of the paper answer --help before anything is loaded, and say what they do?"""

import re
import subprocess
import sys
from pathlib import Path

import benchmark_commands
import commands
import pytest
from paper_commands import CLAIMS, FOLDER, GRAPHS, GRIDS, SYSTEMS

ROOT = Path(__file__).parents[1]


def help_of(folder, name, capsys):
    with pytest.raises(SystemExit, match="0"):
        folder.parse([name, "--help"])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", FOLDER.names)
def test_every_command_says_what_it_measures_how_long_it_takes_and_what_it_writes(name, capsys):
    text = help_of(FOLDER, name, capsys)
    assert f"usage: python examples/paper {name}" in text
    assert f"python examples/paper {name} " in text.split("Writes: ")[1]
    assert "Time: " in text.split("Writes: ")[0]
    assert f"{name}.jsonl" in text
    assert "default: None" not in text


def test_every_script_of_the_folder_is_a_command_or_serves_one():
    for name in FOLDER.names:
        path = ROOT / "examples" / "paper" / name
        source = path.with_suffix(".py") if not path.is_dir() else path / "__init__.py"
        assert "\ndef run(args: argparse.Namespace) -> None:" in source.read_text()


def test_the_list_of_commands_and_an_unknown_one_load_no_torch():
    program = ("import sys; sys.argv = ['examples/paper', {words}]\n"
               "import runpy\ntry:\n    runpy.run_path('examples/paper', run_name='__main__')\n"
               "finally:\n    print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", program.format(words="")], cwd=ROOT, text=True,
                          capture_output=True, check=True)
    for name in FOLDER.names:
        assert f"\n    {name}" in done.stdout
    assert done.stdout.endswith("False\n")
    done = subprocess.run([sys.executable, "-c", program.format(words="'table3'")], cwd=ROOT,
                          text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'table3'" in done.stderr
    assert done.stdout == "False\n"


def test_the_names_to_choose_from_are_those_of_the_scripts():
    for package in ("matplotlib", "torchdiffeq", "sklearn"):
        pytest.importorskip(package, reason=f"the scripts need {package}, which is not installed")
    import claims
    import graphs
    import grids
    import stable_steps
    import systems

    assert tuple(systems.SYSTEMS) == SYSTEMS
    assert tuple(graphs.PROBLEMS) == GRAPHS
    assert tuple(grids.PROBLEMS) == GRIDS
    assert tuple(claims.CLAIMS) == CLAIMS
    assert tuple(stable_steps.CASES) == (*GRAPHS, *GRIDS)


def test_quick_changes_the_defaults_and_not_what_was_given():
    usual, quick = FOLDER.parse(["claims"]), FOLDER.parse(["claims", "--quick"])
    assert (usual.repeats, quick.repeats) == (9, 5)
    assert (usual.memory_steps, quick.memory_steps) == ([10, 100, 1000], [10, 100, 400])
    assert FOLDER.parse(["claims", "--quick", "--repeats", "7"]).repeats == 7


@pytest.mark.parametrize("text", ["0", "-1", "x"])
def test_counts_below_one_are_refused_before_any_work(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        FOLDER.parse(["table1", "--epochs", text])
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["figure2", "--steps", "0"], "--steps: expected a finite number above 0 (got '0')"),
    (["table2", "--lr", "nan"], "--lr: expected a finite number above 0 (got 'nan')"),
    (["table2", "--limit", "inf"], "--limit: expected a finite number of at least 0 (got 'inf')"),
    (["table1", "--out", "/dev/null/x"], "Expected --out to be a folder to write to (got /dev"),
])
def test_what_cannot_be_right_is_refused_before_anything_is_loaded(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        FOLDER.parse(words)
    assert message in capsys.readouterr().err + str(stopped.value)


def test_defaults_are_said_in_words(capsys):
    def example(command):
        """One line.

        More.
        """
        command.add("--names", nargs="+", choices=("a", "b"), default=["a", "b"], help="which")
        command.add("--some", nargs="+", default=[1, 2], help="numbers")
        command.add("--none", help="nothing")
        command.add_with_quick("--n", None, 3, said="all of them", type=int, help="how many")
        command.add("--quick", action="store_true", help="less")

    text = help_of(commands.Folder("folder", "What for.", (example,)), "example", capsys)
    for words in ("which (default: all)", "numbers (default: 1 2)", "--none NONE nothing --n",
                  "how many (default: all of them; with --quick: 3)", "--quick less"):
        assert words in text


@pytest.mark.parametrize("page", [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"],
                         ids=lambda page: page.name)
def test_the_commands_that_the_pages_name_are_understood(page):
    folders = {"paper": FOLDER, "benchmarks": benchmark_commands.FOLDER}
    text = " ".join(page.read_text().split())
    found = re.findall(r"`(?:python )?examples/(paper|benchmarks) ([^`]+)`", text)
    assert len(found) > 5 or page.name not in ("paper.md", "measurements.md")
    for folder, words in found:
        if "NAME" not in words:
            assert folders[folder].parse(words.split()).command == words.split()[0]
