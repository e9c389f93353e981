"""What is remembered of an evaluation of G, so that its value stays and it can be made again?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.checks import shares_memory
from ..transforms import is_wrapped


class Record(NamedTuple):
    """What an evaluation of G found: its random state, if it drew from it, and its buffers."""

    states: tuple[Tensor, ...] | None
    buffers: dict[str, Tensor] | None

    @contextmanager
    def random_state(self, device: torch.device) -> Iterator[None]:
        """The random state of the evaluation, for its repetition; the present one after it."""
        if self.states is None:
            yield
            return
        present = random_states(device)
        _set_random_states(device, self.states)
        try:
            yield
        finally:
            _set_random_states(device, present)


class Modes:
    """Whether modules are in training or evaluation, as it was at a call.

    Args:
        *functions (callable): Functions and modules; only modules have modes.
    """

    def __init__(self, *functions: object) -> None:
        self.modes = [(m, m.training) for each in functions
                      if isinstance(each, torch.nn.Module) for m in each.modules()]

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """A region in which the modules are in those modes again."""
        changed = [(m, mode, m.training) for m, mode in self.modes if m.training != mode]
        for module, mode, _ in changed:
            module.training = mode
        try:
            yield
        finally:
            for module, _, present in changed:
                module.training = present


class ValueMemory:
    """Copies values of G that lie in memory of its own, which the next evaluation may overwrite.

    The first values are copied, and compared by where they lie; if none lies where another did, the
    later ones are taken as they are.

    Args:
        live (int): How many values are used at one time, at most.
    """

    def __init__(self, live: int) -> None:
        self.left, self.copies = live + 1, False
        self.seen: list[Tensor] = []

    @property
    def watched(self) -> bool:
        """Whether the next value is one of the first."""
        return self.left > 0

    def own(self, value: Tensor) -> Tensor:
        """The value, or a copy of it."""
        if is_wrapped(value):
            return value.clone()
        if self.left > 0 and not self.copies:
            self.copies = any(shares_memory(value, each) for each in self.seen)
            self.seen.append(value.detach())
            self.left -= 1
            if self.left == 0:
                self.seen = []
            return value.clone()
        return value.clone() if self.copies else value

    def release(self) -> None:
        """Lets go of the first values, at the end of a forward pass."""
        self.seen = []


def random_states(device: torch.device) -> tuple[Tensor, ...]:
    """The states of the generators of the host and of a device."""
    host = torch.get_rng_state()
    if device.type == host.device.type:
        return (host,)
    return host, torch.get_device_module(device).get_rng_state(device)


def _set_random_states(device: torch.device, states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1], device)
