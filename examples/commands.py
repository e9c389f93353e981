"""How does a folder of scripts answer `python FOLDER COMMAND --help` before anything is loaded?

PyTorch and PyTorch Geometric take seconds to import. So a folder keeps the arguments of all its
scripts in one light module, and a script is imported when its arguments have been read.
"""

from __future__ import annotations

import argparse
import importlib
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Command(NamedTuple):
    """What a function that adds the arguments of a command is given.

    Attributes:
        parser: Of the command alone.
        quick: Of each argument that --quick changes, the usual default and the quick one.
    """

    parser: argparse.ArgumentParser
    quick: dict[str, tuple[Any, Any]]

    def add(self, *names: str, **options: Any) -> None:
        """An argument, as of argparse."""
        self.parser.add_argument(*names, **options)

    def add_with_quick(self, name: str, usual: Any, quick: Any, *, help: str, said: str = "",
                       **options: Any) -> None:
        """An argument with another default under --quick; ``said``: the usual one in words."""
        self.quick[name.lstrip("-").replace("-", "_")] = usual, quick
        text = f"{help} (default: {said or in_words(usual)}; with --quick: {in_words(quick)})"
        self.parser.add_argument(name, help=text, **options)


class Folder:
    """The commands of a folder.

    Args:
        name: Of the folder, from the project's root.
        description: What its commands are for.
        commands: Functions named as the scripts; each adds the arguments of its script to a
            :class:`Command`. The first line of their docstrings is the line of a command in the
            list, all of it the command's help.
    """

    def __init__(self, name: str, description: str,
                 commands: Sequence[Callable[[Command], None]]) -> None:
        self.names = [command.__name__ for command in commands]
        self.parser = argparse.ArgumentParser(
            prog=f"python {name}", description=description, formatter_class=Formatter,
            epilog=f"python {name} COMMAND --help says what a command measures, how long it takes "
                   "and what it writes.")
        subparsers = self.parser.add_subparsers(metavar="COMMAND", dest="command")
        self.quick: dict[str, dict[str, tuple[Any, Any]]] = {}
        for command in commands:
            text = dedented(command.__doc__ or "")
            first = text.split("\n")[0].replace("%", "%%")
            own = subparsers.add_parser(command.__name__, help=first, description=text,
                                        formatter_class=Formatter)
            self.quick[command.__name__] = {}
            command(Command(own, self.quick[command.__name__]))

    def parse(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments of a command; its name is in ``command``, None where there is none."""
        args = self.parser.parse_args(words)
        if getattr(args, "out", None) is not None:
            check_folder(self.parser, args.out)
        for key, (usual, quick) in self.quick.get(args.command, {}).items():
            if getattr(args, key) is None:
                setattr(args, key, quick if args.quick else usual)
        return args

    def main(self, words: Sequence[str] | None = None) -> None:
        """Runs a command; without one, lists them."""
        args = self.parse(words)
        if args.command is None:
            self.parser.print_help()
        else:
            importlib.import_module(args.command).run(args)


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions, and says defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        if not isinstance(action.default, list):
            return super()._get_help_string(action)
        said = "all" if action.default == list(action.choices or ()) else in_words(action.default)
        return f"{action.help} (default: {said})"


def at_least_one(text: str) -> int:
    """A number of repetitions, epochs or threads."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def above_zero(text: str) -> float:
    """A step, a tolerance or a rate."""
    if not 0 < number_in(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text}")
    return float(text)


def from_zero(text: str) -> float:
    """A limit in seconds; 0 lets nothing pass."""
    if not 0 <= number_in(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number of at least 0, got {text}")
    return float(text)


def number_in(text: str) -> float:
    """Not a number where the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_folder(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Refuses, before any work, a folder in which nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        parser.error(f"argument --out: expected a folder to write to, got {folder} "
                     f"({error.strerror})")


def in_words(value: Any) -> str:
    """A default in a help text."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def dedented(text: str) -> str:
    """A docstring without the indentation of its lines."""
    return "\n".join(line.removeprefix("    ") for line in text.strip().split("\n"))
