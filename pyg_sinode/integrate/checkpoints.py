"""Which states are kept and which steps recomputed in a backward pass with checkpoints?

The schedule is the binomial one of Griewank and Walther, "Algorithm 799: Revolve" (2000),
doi:10.1145/347837.347846: with k stored states it reverses l steps with the fewest recomputations.
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
        slots (int): The number of states that may be kept, including the one at the start, at
            least two.
    """
    r = _repetitions(steps, slots)
    return min(math.comb(slots + r - 1, r - 1), steps - math.comb(slots + r - 2, r - 1))


def advances(steps: int, slots: int) -> int:
    r"""The least number of forward steps needed to reverse l steps with k stored states.

    .. math::
        r l - \binom{k + r}{r - 1}, \qquad r = \min \{ r : \binom{k + r}{r} \ge l \}

    It includes the first forward sweep, but not the repetition of each step that gives its stages.

    Args:
        steps (int): The number of steps l.
        slots (int): The number of states k.
    """
    r = _repetitions(steps, slots)
    return r * steps - math.comb(slots + r, r - 1) if r else 0


def first_sweep(steps: int, slots: int) -> list[int]:
    """The numbers of the steps before which the first forward sweep keeps the state."""
    kept = [0]
    while len(kept) < slots and steps - kept[-1] > 1:
        kept.append(kept[-1] + split(steps - kept[-1], slots - len(kept) + 1))
    return kept


def backwards(steps: int, slots: int, kept: list[tuple[int, S]],
              advance: Callable[[int, S], S], record: Callable[[int, S], T],
              pack: Callable[[S], S], unpack: Callable[[S], S]) -> Iterator[T]:
    """Yields the result of ``record`` for each step, the last one first.

    Args:
        steps (int): The number of steps to reverse.
        slots (int): The number of states that may be kept at any time.
        kept (list): Pairs of the number of a step and the state before it, for the states kept so
            far, the initial one first. States that are no longer needed are removed from the list.
        advance (callable): Maps a step's number and the state before it to the state after it.
        record (callable): Maps the same to the data that the reversal of the step needs.
        pack, unpack (callable): Convert a state to the form in which it is kept, and back.
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
    """The least r with C(slots + r, r) >= steps: the largest number of repetitions of a step."""
    r = 0
    while math.comb(slots + r, r) < steps:
        r += 1
    return r
