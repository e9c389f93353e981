"""How are the steps stored, with the outputs within each?"""

from __future__ import annotations

from array import array
from typing import NamedTuple

EPS = 2.0**-52  # the machine epsilon of Python floats; a rounding error is half of it
EXCESS = 0.01  # the relative amount by which rounding of times may enlarge a step


class Step(NamedTuple):
    """A step from t to t + h; its outputs are fractions theta in (0, 1], where 1 is its end."""

    t: float
    h: float
    outputs: tuple[float, ...]


class Steps:
    """A list of steps that takes 16 bytes per step.

    Args:
        end (float): The time at the end of the last step.

    Attributes:
        outputs: The outputs of each step that has some, by its number.
        ends: The output time at the end of each step that ends at one, by its number.
    """

    def __init__(self, end: float) -> None:
        self.t, self.h, self.last = array("d"), array("d"), end
        self.outputs: dict[int, tuple[float, ...]] = {}
        self.ends: dict[int, float] = {}

    def append(self, step: Step) -> None:
        """Appends a step."""
        if step.outputs:
            self.outputs[len(self.t)] = step.outputs
        self.t.append(step.t)
        self.h.append(step.h)

    def end_with(self, number: int, outputs: tuple[float, ...]) -> None:
        """Makes the step with that number the last one, with the given outputs."""
        del self.t[number + 1:], self.h[number + 1:]
        self.outputs = {n: o for n, o in self.outputs.items() if n < number}
        self.outputs[number] = outputs

    def end(self, number: int) -> float:
        """The time at the end of the step with that number."""
        if number in self.ends:
            return self.ends[number]
        return self.t[number + 1] if number + 1 < len(self.t) else self.last

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, number: int) -> Step:
        return Step(self.t[number], self.h[number], self.outputs.get(number, ()))


def take_outputs(rest: list[float], t: float, h: float, *, last: bool) -> tuple[float, ...]:
    """Removes the output times up to t + h from ``rest`` and returns them as fractions of the step.

    An output within four rounding errors of the end of the step is at its end.

    Args:
        rest (list of float): The remaining output times.
        t, h (float): Start and size of the step.
        last (bool): Whether this is the last step.
    """
    rounding = min(2 * EPS * (abs(t) + abs(h)) / abs(h), EXCESS)
    found = []
    while rest and (last or (rest[0] - t) / h <= 1.0 + rounding):
        theta = (rest.pop(0) - t) / h
        found.append(1.0 if abs(theta - 1.0) <= rounding or (last and not rest) else theta)
    return tuple(found)
