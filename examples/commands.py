"""How does a folder of scripts answer `python FOLDER COMMAND --help` before anything is loaded?

PyTorch and PyTorch Geometric take seconds to import. So a folder keeps the arguments of all its
scripts in one light module, and a script is imported when its arguments have been read.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from options import HelpFormatter, in_words, output_folder


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
            prog=f"python {name}", description=description, formatter_class=HelpFormatter,
            epilog=f"python {name} COMMAND --help says what a command measures, how long it takes "
                   "and what it writes.")
        subparsers = self.parser.add_subparsers(metavar="COMMAND", dest="command")
        self.quick: dict[str, dict[str, tuple[Any, Any]]] = {}
        for command in commands:
            text = dedented(command.__doc__ or "")
            first = text.split("\n")[0].replace("%", "%%")
            own = subparsers.add_parser(command.__name__, help=first, description=text,
                                        formatter_class=HelpFormatter)
            self.quick[command.__name__] = {}
            command(Command(own, self.quick[command.__name__]))

    def parse(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments of a command; its name is in ``command``, None where there is none."""
        args = self.parser.parse_args(words)
        if getattr(args, "out", None) is not None:
            output_folder(args.out)
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


def dedented(text: str) -> str:
    """A docstring without the indentation of its lines."""
    return "\n".join(line.removeprefix("    ") for line in text.strip().split("\n"))
