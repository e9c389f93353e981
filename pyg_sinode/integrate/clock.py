"""Which output times are equally spaced, and how many equal steps lie between them?

Times are taken as exact numbers, and each interval between two outputs is integrated over its exact
length. But times that equal t0 + k D to the rounding of their dtype are treated as that grid, so
that all steps have the same size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from .steps import EPS, EXCESS, Step, Steps, take_outputs

MOST = 1e8  # equal steps, which are listed before the first one
ROUNDINGS = (1, 2, 4)  # rounding errors allowed per time of a grid; torch.linspace makes three


class Clock(NamedTuple):
    """The rounding units of the output times.

    Attributes:
        grid: The rounding unit within which the times may be a grid.
        counts: The rounding unit used for the number of steps between two times, if it is larger.
        converted: Whether ``grid`` is the unit of a dtype that the times were converted from. Then
            differences that are not small compared with a step do not count as rounding.
    """

    grid: float
    counts: float = 0.0
    converted: bool = False


class Interval(NamedTuple):
    """A start time, a step size and a number of equal steps."""

    start: float
    h: float
    steps: int


def on_grid(times: Sequence[float], clock: Clock) -> list[float]:
    """The times t0 + k D if all times equal them to rounding; else the times themselves.

    Args:
        times (sequence of float): The output times.
        clock (Clock): Their rounding units.
    """
    numbers = range(len(times))
    spacing = _spacing(times, numbers, clock)
    return list(times) if spacing is None else [times[0] + k * spacing for k in numbers]


def plan(times: Sequence[float], step_size: float, clock: Clock) -> list[Interval]:
    """Equal steps between successive output times, with as few different step sizes as possible.

    If the times are multiples of one step to rounding, all steps have that size. Otherwise a step
    size of an earlier interval is used again if it moves no output by more than four rounding
    errors.

    Args:
        times (sequence of float): The output times.
        step_size (float): The largest step size, in magnitude; steps may exceed it by the rounding
            of the times.
        clock (Clock): Their rounding units.

    Returns:
        The intervals. On a grid they start at the exact grid points, not at the rounded times.

    Raises:
        ValueError: if there are more steps than can be listed.
    """
    about = abs(times[-1] - times[0]) / step_size
    if about > MOST:
        raise ValueError(f"Expected at most {MOST:.0e} equal steps (got about {about:.0e}); take a "
                         "larger step_size.")
    if len(times) == 2:
        start, interval = times[0], times[1] - times[0]
        rounding = 2.0 * max(clock.counts, clock.grid) * max(map(abs, times))
        count = whole_steps(interval, step_size, rounding)
        return [Interval(start, interval / count, count)]
    exact = on_grid(times, clock)
    rounding = 2.0 * max(clock.counts, clock.grid) * max(map(abs, times))
    counts = [whole_steps(b - a, step_size, rounding) for a, b in itertools.pairwise(exact)]
    numbers = list(itertools.accumulate(counts, initial=0))
    h = _spacing(exact, numbers, clock)
    if h is not None:
        return [Interval(times[0] + k * h, h, count)
                for k, count in zip(numbers, counts, strict=False)]
    sizes, result = _Sizes(), []
    for (start, end), count in zip(itertools.pairwise(times), counts, strict=True):
        result.append(Interval(start, sizes.step(start, end, count), count))
    return result


def steps_to_outputs(times: Sequence[float], step_size: float, clock: Clock) -> Steps:
    """The steps of :func:`plan`: a step ends at each output time."""
    steps = Steps(times[-1])
    for end, (start, h, count) in zip(times[1:], plan(times, step_size, clock), strict=True):
        for k in range(count):
            steps.append(Step(start + k * h, h, (1.0,) if k == count - 1 else ()))
        steps.ends[len(steps) - 1] = end
    return steps


def steps_across_outputs(times: Sequence[float], step_size: float, clock: Clock) -> Steps:
    """Equal steps from the first to the last output time; the others lie within steps."""
    exact = on_grid(times, clock)
    steps, rest = Steps(times[-1]), exact[1:]
    for start, h, count in plan([exact[0], exact[-1]] if rest else exact, step_size, clock):
        for k in range(count):
            t = start + k * h
            steps.append(Step(t, h, take_outputs(rest, t, h, last=k == count - 1)))
    return steps


def whole_steps(interval: float, h: float, rounding: float = 0.0) -> int:
    """The least number of equal steps over an interval that are not larger than h.

    Args:
        interval (float): The length of the interval.
        h (float): The largest step size.
        rounding (float): The rounding error of the length; the steps together may exceed h by that,
            each by at most a hundredth of h. (default: :obj:`0.0`)
    """
    interval = abs(interval)
    exact = interval / h * (1.0 - 4 * EPS)
    return max(1, math.ceil(max(exact - rounding / h, exact / (1.0 + EXCESS))))


class _Sizes:
    """The step sizes used so far, and the accumulated difference to the output times."""

    def __init__(self) -> None:
        self.used: list[float] = []
        self.ahead = Fraction(0)

    def step(self, start: float, end: float, count: int) -> float:
        """The size of equal steps between two times: an earlier size if that is exact enough."""
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


def _spacing(times: Sequence[float], numbers: Sequence[int], clock: Clock) -> float | None:
    """The D for which the times are t0 + k D, to the fewest rounding errors; None if there is none.
    """
    return next((D for D in (_fitting(times, numbers, n, clock) for n in ROUNDINGS)
                 if D is not None), None) if len(times) > 1 else None


def _fitting(times: Sequence[float], numbers: Sequence[int], roundings: int, clock: Clock
             ) -> float | None:
    """The D nearest to the mean for which each t0 + k D is its time to that many rounding errors.

    If more than one rounding error is needed, or the rounding unit is that of another dtype, these
    errors must be small compared with D: otherwise the times are not a grid.
    """
    first, D = times[0], (times[-1] - times[0]) / numbers[-1]
    low, high = -math.inf, math.inf
    for time, k in zip(times[1:], numbers[1:], strict=True):
        largest = time if roundings == 1 else max(abs(first), abs(time), abs(k * D))
        slack = roundings * _rounding(largest, clock.grid)
        if (roundings > 1 or clock.converted) and slack > EXCESS * abs(D):
            return None
        slack += 2 * _rounding(largest, EPS)  # the rounding of this arithmetic
        low, high = max(low, (time - first - slack) / k), min(high, (time - first + slack) / k)
    return min(max(D, low), high) if low <= high else None


def _rounding(x: float, eps: float) -> float:
    """The largest error of a number rounded to x: half the distance to the next number."""
    return math.ldexp(eps, math.frexp(x)[1] - 2)
