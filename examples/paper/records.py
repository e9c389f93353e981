"""How are measurements taken side by side, written down and shown as tables?"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch
import torch_geometric
import torchdiffeq
from systems import FAILURES, reason
from tqdm import tqdm


@dataclass
class Training:
    """One of several trainings that take turns, an epoch each.

    Attributes:
        name: The system's, in tables.
        epoch: Trains for one epoch; gives the loss.
        test: What the trained network is worth now, outside the training's time; None: not asked.
        epochs: After which it ends although others go on; None: as many as they.
        seconds: Of each epoch's training.
        curve: After each epoch: seconds of training so far, loss, test.
        failure: Why it ended early, with the epoch.
    """

    name: str
    epoch: Callable[[], float]
    test: Callable[[], float] | None = None
    epochs: int | None = None
    seconds: list[float] = field(default_factory=list)
    curve: list[tuple[float, float, float | None]] = field(default_factory=list)
    failure: str | None = None

    def plain(self) -> dict[str, Any]:
        """What was measured."""
        return {"name": self.name, "seconds": self.seconds, "curve": self.curve,
                "failure": self.failure}

    def median(self) -> float:
        """Seconds of an epoch; not a number where none was finished."""
        return statistics.median(self.seconds) if self.seconds else math.nan


def race(trainings: Sequence[Training], epochs: int, budget: float, description: str,
         least: int = 1, turn: str = "epoch") -> None:
    """Trains all of them, an epoch of each in every round, so that all meet the same machine.

    A training ends when it fails, and when its seconds are more than the budget and its epochs not
    fewer than ``least``. What takes a turn need not be an epoch: ``turn`` says what it is where a
    failure is noted.
    """
    bar = tqdm(range(epochs), desc=description, leave=False, disable=None)
    for number in bar:
        running = [run for run in trainings if run.failure is None
                   and (number < least or sum(run.seconds) <= budget)
                   and (run.epochs is None or number < run.epochs)]
        for run in running:
            bar.set_postfix_str(run.name)
            start = time.perf_counter()
            try:
                loss = run.epoch()
                run.seconds.append(time.perf_counter() - start)
                test = run.test() if run.test else None
                run.curve.append((sum(run.seconds), loss, test))
            except FAILURES as error:
                run.failure = f"{turn} {number + 1}: {reason(error)}"
        if not running:
            break


def interleaved(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median seconds of each job, one run of each in every round after a first."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


class Record:
    """A file of JSON lines, of which the first says on what they were measured."""

    def __init__(self, path: Path, args: argparse.Namespace) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        path.write_text(json.dumps({"environment": environment(args)}) + "\n")

    def add(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values, default=plain) + "\n")


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """The machine, the versions, the threads and the settings."""
    modules = (torch, torch_geometric, torchdiffeq, scipy, numpy)
    return {"machine": platform.machine(), "system": platform.system(), "processor": processor(),
            "python": platform.python_version(), "threads": torch.get_num_threads(),
            **{m.__name__: m.__version__ for m in modules},
            "settings": {k: plain(v) for k, v in vars(args).items()}}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    return value if isinstance(value, (int, float, str, list, tuple, type(None))) else str(value)


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """A number for people, a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    if abs(value) < 1e7 and (value == int(value) or abs(value) >= 10**digits - 0.5):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def add_arguments(parser: argparse.ArgumentParser) -> Callable[..., Any]:
    """The arguments of all these scripts; gives the function that adds more."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/paper"), help="folder of tables, figures and data")
    add("--seed", type=int, default=0, help="of the weights and the data's order")
    add("--threads", type=int, default=1, help="threads of PyTorch")
    add("--quick", action="store_true", help="fewer epochs and repetitions: minutes, not hours")
    return add


def fill(args: argparse.Namespace, **choices: tuple[Any, Any]) -> argparse.Namespace:
    """Sets what was not given to one of two choices, usual or quick."""
    for key, choice in choices.items():
        if getattr(args, key) is None:
            setattr(args, key, choice[args.quick])
    return args


def write(path: Path, text: str) -> None:
    """Prints a table and keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    print(f"{text}\n\n{path}", flush=True)
