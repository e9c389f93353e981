"""Which times are a grid, and how many equal steps lie between them?

A time is the number it is: every interval between two outputs is integrated exactly. Times that
equal t0 + k D to the rounding of their own dtype are that grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from .steps import EPS, EXCESS, Step, Steps, take_outputs

ROUNDINGS = (1, 2, 4)  # how often a time of a grid may be rounded; torch.linspace rounds thrice


class Clock(NamedTuple):
    """To what a clock's times are rounded.

    Attributes:
        grid: The rounding unit to which the times may be multiples of one step.
        counts: The rounding unit of the times for the number of steps between two of them, if that
            is a larger one.
        converted: Whether the first is the unit of a dtype that they were converted from: then what
            is no small part of a step is no rounding.
    """

    grid: float
    counts: float = 0.0
    converted: bool = False


class Interval(NamedTuple):
    """Equal steps between two times."""

    start: float
    h: float
    steps: int


def on_grid(times: Sequence[float], clock: Clock) -> list[float]:
    """The times t0 + k D, if that is what all of them are to rounding; else the times.

    Args:
        times (sequence of float): The output times.
        clock (Clock): To what they are rounded.
    """
    numbers = range(len(times))
    spacing = _spacing(times, numbers, clock)
    return list(times) if spacing is None else [times[0] + k * spacing for k in numbers]


def plan(times: Sequence[float], step_size: float, clock: Clock) -> list[Interval]:
    """Equal steps that land on every time, with as few different step sizes as there can be.

    Times that are multiples of one step to rounding have steps of one size. A step size used before
    serves another interval where no output is moved by more than four roundings.

    Args:
        times (sequence of float): The output times.
        step_size (float): The largest step, in magnitude; steps may exceed it by what the rounding
            of the times amounts to.
        clock (Clock): To what they are rounded.

    Returns:
        The intervals; on a grid they start where it lies, not where rounding put the times.
    """
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
    """The steps of :func:`plan`, which end at every output."""
    steps = Steps(times[-1])
    for end, (start, h, count) in zip(times[1:], plan(times, step_size, clock), strict=True):
        for k in range(count):
            steps.append(Step(start + k * h, h, (1.0,) if k == count - 1 else ()))
        steps.ends[len(steps) - 1] = end
    return steps


def steps_across_outputs(times: Sequence[float], step_size: float, clock: Clock) -> Steps:
    """Equal steps from the first to the last output, which the others fall into."""
    exact = on_grid(times, clock)
    steps, rest = Steps(times[-1]), exact[1:]
    for start, h, count in plan([exact[0], exact[-1]] if rest else exact, step_size, clock):
        for k in range(count):
            t = start + k * h
            steps.append(Step(t, h, take_outputs(rest, t, h, last=k == count - 1)))
    return steps


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


def _spacing(times: Sequence[float], numbers: Sequence[int], clock: Clock) -> float | None:
    """A D for which the times are t0 + k D for these k, to as few roundings as there can be."""
    return next((D for D in (_fitting(times, numbers, n, clock) for n in ROUNDINGS)
                 if D is not None), None) if len(times) > 1 else None


def _fitting(times: Sequence[float], numbers: Sequence[int], roundings: int, clock: Clock
             ) -> float | None:
    """The D nearest to the mean with which each t0 + k D is its time to that many roundings.

    The products and sums of which a clock is made are rounded too, so that where more than one
    rounding is needed, or the dtype is not the times' own, they have to be small beside D.
    """
    first, D = times[0], (times[-1] - times[0]) / numbers[-1]
    low, high = -math.inf, math.inf
    for time, k in zip(times[1:], numbers[1:], strict=True):
        largest = time if roundings == 1 else max(abs(first), abs(time), abs(k * D))
        slack = roundings * _rounding(largest, clock.grid)
        if (roundings > 1 or clock.converted) and slack > EXCESS * abs(D):
            return None
        slack += 2 * _rounding(largest, EPS)  # of this arithmetic
        low, high = max(low, (time - first - slack) / k), min(high, (time - first + slack) / k)
    return min(max(D, low), high) if low <= high else None


def _rounding(x: float, eps: float) -> float:
    """The largest error of a number that is rounded to x: half the distance to the next one."""
    return math.ldexp(eps, math.frexp(x)[1] - 2)
