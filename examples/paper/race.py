"""How do several trainings take turns, so that all of them meet the same machine?"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from measuring import FAILURES, reason
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
