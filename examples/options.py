"""Which options do scripts share, and what do they refuse? Numbers, the output folder, help texts.

Imports no PyTorch, so that --help may be read before it is loaded.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Names the defaults that are set, and leaves the lines of descriptions as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        if not isinstance(action.default, list):
            return super()._get_help_string(action)
        said = "all" if action.default == list(action.choices or ()) else in_words(action.default)
        return f"{action.help} (default: {said})"


def make_parser(description: str, *examples: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples of calls."""
    lines = "".join(f"  python examples/{example}\n" for example in examples)
    return argparse.ArgumentParser(description=description, epilog=f"examples:\n{lines}",
                                   formatter_class=HelpFormatter)


def add_files(parser: argparse.ArgumentParser, checkpoint_every: bool = True) -> None:
    """The options that say what is written where."""
    add = parser.add_argument_group("files").add_argument
    add("--out", type=Path, default=Path("runs"), metavar="FOLDER",
        help="folder of figures and checkpoints; made where it is missing")
    if checkpoint_every:
        add("--checkpoint-every", type=positive_int, default=10, metavar="N",
            help="epochs from one checkpoint to the next")
    add("--restart", action="store_true",
        help="train anew and overwrite the checkpoint of these settings")


def output_folder(path: Path) -> Path:
    """The folder, made where it is missing; an error now where nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SystemExit(f"Expected --out to be a folder to write to (got {path}: "
                         f"{error.strerror}). Name another one.") from error
    return path


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    return _number(text, int, "a whole number of at least 1", lambda n: n >= 1)


def non_negative_int(text: str) -> int:
    """A whole number of at least 0."""
    return _number(text, int, "a whole number of at least 0", lambda n: n >= 0)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    return _number(text, float, "a finite number above 0", lambda x: 0 < x < math.inf)


def non_negative_float(text: str) -> float:
    """A finite number of at least 0."""
    return _number(text, float, "a finite number of at least 0", lambda x: 0 <= x < math.inf)


def share(text: str) -> float:
    """A number from 0 to below 1."""
    return _number(text, float, "a number from 0 to below 1", lambda x: 0 <= x < 1)


def in_words(value: Any) -> str:
    """A default in a help text."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _number(text: str, kind: type, expected: str, accepts: Callable[[Any], bool]) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not accepts(value):
        raise argparse.ArgumentTypeError(f"expected {expected} (got {text!r})")
    return value
