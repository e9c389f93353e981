"""Which steps were made, and which outputs fall into each?"""

from __future__ import annotations

from array import array
from typing import NamedTuple

EPS = 2.0**-52  # of a Python float; half of it is one rounding
EXCESS = 0.01  # by how much a step may exceed the step size for the rounding of times


class Step(NamedTuple):
    """One step, from t to t + h, and the outputs in it as fractions of it; 1 is its end."""

    t: float
    h: float
    outputs: tuple[float, ...]


class Steps:
    """A list of steps that takes 16 bytes for each.

    Args:
        end (float): The time at the end of the last step.

    Attributes:
        outputs: The outputs in each step that has some.
        ends: The given time at the end of each step that lands on one.
    """

    def __init__(self, end: float) -> None:
        self.t, self.h, self.last = array("d"), array("d"), end
        self.outputs: dict[int, tuple[float, ...]] = {}
        self.ends: dict[int, float] = {}

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
        if number in self.ends:
            return self.ends[number]
        return self.t[number + 1] if number + 1 < len(self.t) else self.last

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, number: int) -> Step:
        return Step(self.t[number], self.h[number], self.outputs.get(number, ()))


def take_outputs(rest: list[float], t: float, h: float, *, last: bool) -> tuple[float, ...]:
    """Takes the outputs up to t + h from those that are left, as fractions of the step.

    One that is the end of the step to four roundings of time is at the end.
    """
    rounding = min(2 * EPS * (abs(t) + abs(h)) / abs(h), EXCESS)
    found = []
    while rest and (last or (rest[0] - t) / h <= 1.0 + rounding):
        theta = (rest.pop(0) - t) / h
        found.append(1.0 if abs(theta - 1.0) <= rounding or (last and not rest) else theta)
    return tuple(found)
