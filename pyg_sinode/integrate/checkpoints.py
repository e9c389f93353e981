"""Which states are kept, and which steps made again, to go backwards in little memory?

The schedule is the binomial one of Griewank and Walther, "Algorithm 799: Revolve" (2000),
doi:10.1145/347837.347846: with k states it reverses l steps in the fewest advances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def split(steps: int, slots: int) -> int:
    """How many steps to advance before the next state is kept.

    Args:
        steps (int): The steps to reverse, at least two.
        slots (int): The states that may be kept, the one at the start included, at least two.
    """
    r = _repetitions(steps, slots)
    return min(math.comb(slots + r - 1, r - 1), steps - math.comb(slots + r - 2, r - 1))


def advances(steps: int, slots: int) -> int:
    r"""The least number of step advances that reverse some steps with that many states.

    .. math::
        r l - \binom{k + r}{r - 1}, \qquad r = \min \{ r : \binom{k + r}{r} \ge l \}

    counts the first sweep, but not the one repetition of each step that yields its own stages.
    """
    r = _repetitions(steps, slots)
    return r * steps - math.comb(slots + r, r - 1) if r else 0


def first_sweep(steps: int, slots: int) -> list[int]:
    """The numbers of the steps before which the first sweep keeps the state."""
    kept = [0]
    while len(kept) < slots and steps - kept[-1] > 1:
        kept.append(kept[-1] + split(steps - kept[-1], slots - len(kept) + 1))
    return kept


def backwards(steps: int, slots: int, kept: list[tuple[int, S]],
              advance: Callable[[int, S], S], record: Callable[[int, S], T],
              pack: Callable[[S], S], unpack: Callable[[S], S]) -> Iterator[T]:
    """Yields what ``record`` gives for each step, the last one first.

    Args:
        steps (int): The steps to reverse.
        slots (int): The states that may be kept at any time.
        kept (list): The number of a step and the state before it, for those kept so far, the
            initial one first; states are taken from the list when they are no longer needed.
        advance (callable): From a step's number and the state before it to the state after it.
        record (callable): From the same to what the reversal of the step needs.
        pack, unpack (callable): Turn a state into what is kept, and back.
    """
    end = steps
    while end > 0:
        while kept[-1][0] >= end:
            kept.pop()
        at, packed = kept[-1]
        state = unpack(packed)
        while end - at > 1:
            spare = slots - len(kept)
            target = at + split(end - at, spare + 1) if spare > 0 else end - 1
            for number in range(at, target):
                state = advance(number, state)
            at = target
            if spare > 0:
                kept.append((at, pack(state)))
        end = at
        if kept[-1][0] == end:
            kept.pop()
        yield record(end, state)


def _repetitions(steps: int, slots: int) -> int:
    """The least r with C(slots + r, r) >= steps: how often a step is advanced over, at most."""
    r = 0
    while math.comb(slots + r, r) < steps:
        r += 1
    return r
