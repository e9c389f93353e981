"""Which steps does an integration make, and which outputs fall into each?"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """One step, from t to t + h, and the outputs in it as fractions of it; 1 is its end."""

    t: float
    h: float
    outputs: tuple[float, ...]


class Steps:
    """A list of steps that takes 16 bytes for each.

    Args:
        end (float): The time at the end of the last step.
    """

    def __init__(self, end: float) -> None:
        self.t, self.h, self.last = array("d"), array("d"), end
        self.outputs: dict[int, tuple[float, ...]] = {}

    def append(self, step: Step) -> None:
        """Adds a step at the end."""
        if step.outputs:
            self.outputs[len(self.t)] = step.outputs
        self.t.append(step.t)
        self.h.append(step.h)

    def end_with(self, number: int, outputs: tuple[float, ...]) -> None:
        """Makes the step of that number the last one, with these outputs."""
        del self.t[number + 1:], self.h[number + 1:]
        self.outputs = {n: o for n, o in self.outputs.items() if n < number}
        self.outputs[number] = outputs

    def end(self, number: int) -> float:
        """The time at the end of the step of that number."""
        return self.t[number + 1] if number + 1 < len(self.t) else self.last

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, number: int) -> Step:
        return Step(self.t[number], self.h[number], self.outputs.get(number, ()))


class Interval(NamedTuple):
    """Equal steps between two times."""

    start: float
    h: float
    steps: int


def plan(times: Sequence[float], step_size: float, eps: float) -> list[Interval]:
    """Equal steps that land on every time, with as few different step sizes as there can be.

    An interval that exceeds a whole number of steps by 1e-6 relative, or by the rounding of its
    own end points (``eps`` of their dtype), is that number of steps; a step size so close to one
    already used is that step size, so that it shares its set-up.
    """
    used: list[float] = []
    result = []
    for start, end in itertools.pairwise(times):
        interval = end - start
        rounding = rounding_of(start, end, min(step_size, abs(interval)), eps)
        count = whole_steps(abs(interval), step_size, rounding)
        h = interval / count
        same = [k for k in used if abs(k - h) <= rounding * abs(h)]
        if same:
            h = same[0]
        else:
            used.append(h)
        result.append(Interval(start, h, count))
    return result


def landing(times: Sequence[float], step_size: float, eps: float) -> Steps:
    """The steps of :func:`plan`, which land on every output."""
    steps = Steps(times[-1])
    for start, h, count in plan(times, step_size, eps):
        for k in range(count):
            steps.append(Step(start + k * h, h, (1.0,) if k == count - 1 else ()))
    return steps


def covering(times: Sequence[float], step_size: float, eps: float) -> Steps:
    """Equal steps from the first to the last output, which the others fall into."""
    steps, rest = Steps(times[-1]), list(times[1:])
    for start, h, count in plan([times[0], times[-1]] if rest else [], step_size, eps):
        for k in range(count):
            t = start + k * h
            steps.append(Step(t, h, take_outputs(rest, t, h, eps, last=k == count - 1)))
    return steps


def take_outputs(rest: list[float], t: float, h: float, eps: float, *, last: bool
                 ) -> tuple[float, ...]:
    """Takes the outputs up to t + h from those that are left, as fractions of the step."""
    rounding = rounding_of(t, t + h, abs(h), eps, 1e-12)
    found = []
    while rest and (last or (rest[0] - t) / h <= 1.0 + rounding):
        theta = (rest.pop(0) - t) / h
        found.append(1.0 if abs(theta - 1.0) <= rounding or (last and not rest) else theta)
    return tuple(found)


def whole_steps(interval: float, h: float, rounding: float) -> int:
    """The least number of equal steps, none larger than h, that make up an interval."""
    return max(1, math.ceil(interval / h - rounding))


def rounding_of(start: float, end: float, h: float, eps: float, slack: float = 1e-6) -> float:
    """What rounding of the end points amounts to, relative to a step, and some slack."""
    return slack + 2.0 * eps * max(abs(start), abs(end)) / h
