"""What is stored of an evaluation of G, so that it can be repeated exactly?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.checks import shares_memory
from ..transforms import is_wrapped


class Record(NamedTuple):
    """The random state (if random numbers were drawn) and the buffers of an evaluation of G."""

    states: tuple[Tensor, ...] | None
    buffers: dict[str, Tensor] | None

    @contextmanager
    def random_state(self, device: torch.device) -> Iterator[None]:
        """A context with the random state of the evaluation; the current one is restored."""
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
    """The training or evaluation modes of modules at the time of construction.

    Args:
        *functions (callable): Functions and modules; functions are ignored.
    """

    def __init__(self, *functions: object) -> None:
        self.modes = [(m, m.training) for each in functions
                      if isinstance(each, torch.nn.Module) for m in each.modules()]

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """A context in which the modules have those modes."""
        changed = [(m, mode, m.training) for m, mode in self.modes if m.training != mode]
        for module, mode, _ in changed:
            module.training = mode
        try:
            yield
        finally:
            for module, _, present in changed:
                module.training = present


class ValueMemory:
    """Copies values of G if G reuses their memory, so that a later evaluation would overwrite them.

    The first values are always copied, and their storages compared. If no two share one, later
    values are not copied.

    Args:
        live (int): The largest number of values that are in use at the same time.
    """

    def __init__(self, live: int) -> None:
        self.left, self.copies = live + 1, False
        self.seen: list[Tensor] = []

    @property
    def watched(self) -> bool:
        """Whether the next value is one of the first, whose storages are compared."""
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
        """Deletes the first values, at the end of a forward pass."""
        self.seen = []


def random_states(device: torch.device) -> tuple[Tensor, ...]:
    """The states of PyTorch's default generators of the host and of a device."""
    host = torch.get_rng_state()
    if device.type == host.device.type:
        return (host,)
    return host, torch.get_device_module(device).get_rng_state(device)


def _set_random_states(device: torch.device, states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1], device)
