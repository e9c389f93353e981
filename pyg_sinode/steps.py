"""Which steps does an integration make, and which outputs fall into each?

A time is the number it is: every interval between two outputs is integrated exactly. Times that
equal t0 + k D to one rounding of their own dtype are that grid.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Sequence
from fractions import Fraction
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


class Interval(NamedTuple):
    """Equal steps between two times."""

    start: float
    h: float
    steps: int


def on_grid(times: Sequence[float], eps: float) -> list[float]:
    """The times t0 + k D, if that is what all of them are to one rounding; else the times.

    Args:
        times (sequence of float): The output times.
        eps (float): The rounding unit of their dtype.
    """
    grid = _grid(times, range(len(times)), eps)
    return list(times) if grid is None else grid


def plan(times: Sequence[float], step_size: float, eps: float, grid_eps: float | None = None
         ) -> list[Interval]:
    """Equal steps that land on every time, with as few different step sizes as there can be.

    Times that are multiples of one step to rounding have steps of one size. A step size used before
    serves another interval where no output is moved by more than four roundings.

    Args:
        times (sequence of float): The output times.
        step_size (float): The largest step, in magnitude.
        eps (float): The rounding unit of the times: steps may exceed the step size by what that
            amounts to.
        grid_eps (float, optional): That to which multiples of one step have to be exact; ``eps`` if
            None. (default: :obj:`None`)

    Returns:
        The intervals; on a grid they start where it lies, not where rounding put the times.
    """
    grid_eps = eps if grid_eps is None else grid_eps
    exact = on_grid(times, grid_eps)
    rounding = 2.0 * eps * max(map(abs, times))
    counts = [whole_steps(b - a, step_size, rounding) for a, b in itertools.pairwise(exact)]
    numbers = list(itertools.accumulate(counts, initial=0))
    grid = _grid(exact, numbers, grid_eps)
    if grid is not None:
        h = (times[-1] - times[0]) / numbers[-1]
        return [Interval(start, h, count) for start, count in zip(grid, counts, strict=False)]
    sizes, result = _Sizes(), []
    for (start, end), count in zip(itertools.pairwise(times), counts, strict=True):
        result.append(Interval(start, sizes.step(start, end, count), count))
    return result


class _Sizes:
    """The step sizes used so far, and by how much the integration is ahead of its outputs."""

    def __init__(self) -> None:
        self.used: list[float] = []
        self.ahead = Fraction(0)

    def step(self, start: float, end: float, count: int) -> float:
        """A size for equal steps between two times: one used before, if that is exact enough."""
        interval = Fraction(end) - Fraction(start) - self.ahead
        h = float(interval / count)
        near = [k for k in self.used[-8:] if abs(k - h) <= 64 * EPS * max(abs(h), abs(end) / count)]
        for k in [*near, h]:
            ahead = count * Fraction(k) - interval
            if k == h or abs(ahead) <= 2 * EPS * abs(end):
                break
        if k not in near:
            self.used.append(k)
        self.ahead = ahead
        return k


def landing(times: Sequence[float], step_size: float, eps: float, grid_eps: float | None = None
            ) -> Steps:
    """The steps of :func:`plan`, which land on every output."""
    steps = Steps(times[-1])
    for end, (start, h, count) in zip(times[1:], plan(times, step_size, eps, grid_eps),
                                      strict=True):
        for k in range(count):
            steps.append(Step(start + k * h, h, (1.0,) if k == count - 1 else ()))
        steps.ends[len(steps) - 1] = end
    return steps


def covering(times: Sequence[float], step_size: float, eps: float, grid_eps: float | None = None
             ) -> Steps:
    """Equal steps from the first to the last output, which the others fall into."""
    times = on_grid(times, eps if grid_eps is None else grid_eps)
    steps, rest = Steps(times[-1]), list(times[1:])
    for start, h, count in plan([times[0], times[-1]] if rest else times, step_size, eps):
        for k in range(count):
            t = start + k * h
            steps.append(Step(t, h, take_outputs(rest, t, h, last=k == count - 1)))
    return steps


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


def whole_steps(interval: float, h: float, rounding: float = 0.0) -> int:
    """The least number of equal steps in an interval, of which none is larger than h.

    Args:
        interval (float): The interval.
        h (float): The largest step.
        rounding (float): What the rounding of its ends amounts to; steps may exceed h by as much as
            that in all, and by a hundredth of h each at most. (default: :obj:`0.0`)
    """
    interval = abs(interval)
    exact = interval / h * (1.0 - 4 * EPS)
    return max(1, math.ceil(max(exact - rounding / h, exact / (1.0 + EXCESS))))


def _grid(times: Sequence[float], numbers: Sequence[int], eps: float) -> list[float] | None:
    """The times t0 + k D for these k, if the given ones are those to one rounding, else None.

    A D has to exist with which each t0 + k D is rounded to its time; the product k D may be rounded
    twice before, as ``torch.linspace`` does. The one that is taken ends at the last time.
    """
    if len(times) < 2:
        return None
    first, last = times[0], times[-1]
    D = (last - first) / numbers[-1]
    low, high = -math.inf, math.inf
    for time, k in zip(times[1:], numbers[1:], strict=True):
        slack = _rounding(time, eps) + 2.0 * _rounding(k * D, eps)
        low, high = max(low, (time - first - slack) / k), min(high, (time - first + slack) / k)
        if low > high:
            return None
    return [*(first + k * D for k in numbers[:-1]), last]


def _rounding(x: float, eps: float) -> float:
    """The largest error of a number that is rounded to x: half the distance to the next one."""
    return math.ldexp(eps, math.frexp(x)[1] - 2)
