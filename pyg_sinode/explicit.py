"""How is the explicit term G evaluated, so that it can be evaluated again for its gradient?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .operators.checks import foreign_leaf
from .report import ExplicitTermError
from .setups import same


class ExplicitTerm:
    """The explicit term G with the arguments, parameters and buffers in force at the call.

    Args:
        fn (callable): G(t, u, *args), a function or a module.
        args (tuple): Further arguments; the tensors among them receive gradients.
    """

    def __init__(self, fn: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
        self.fn, self.args = fn, args
        self.places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        self.names: list[str] = []
        self.parameters: list[Tensor] = []
        if isinstance(fn, torch.nn.Module):
            named = list(fn.named_parameters())
            self.names, self.parameters = [n for n, _ in named], [p for _, p in named]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that G depends on: those among the arguments, then the parameters."""
        return [self.args[i] for i in self.places] + self.parameters

    def buffers(self) -> dict[str, Tensor]:
        """The buffers of the module, by name."""
        return dict(self.fn.named_buffers()) if isinstance(self.fn, torch.nn.Module) else {}

    def __call__(self, t: float, u: Tensor) -> Tensor:
        """G as it is, for a forward pass."""
        return self._checked(self.fn(u.new_full((), t), u, *self.args), t, u)

    def detached(self, t: float, u: Tensor, tensors: Sequence[Tensor],
                 buffers: dict[str, Tensor] | None, *, graph: bool = True
                 ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """G on detached copies, so that the graph of this evaluation, if any, ends in them.

        Parameters that are leaves and still the module's own are used as they are; others, and the
        given buffers, take the module's place by ``functional_call``.

        Returns:
            The value, the copy of u, and for each of ``tensors`` what stood for it.
        """
        count = len(self.places)
        u = u.detach().requires_grad_()
        stand = [x.detach().requires_grad_(x.requires_grad) for x in tensors[:count]]
        parameters = list(tensors[count:])
        args = list(self.args)
        for place, x in zip(self.places, stand, strict=True):
            args[place] = x
        own = buffers is None and self._owns(parameters)
        if not own:
            parameters = [p.detach().requires_grad_(p.requires_grad) for p in parameters]
        with torch.set_grad_enabled(graph):
            time = u.new_full((), t)
            if own or not isinstance(self.fn, torch.nn.Module):
                value = self.fn(time, u, *args)
            else:
                named = dict(zip(self.names, parameters, strict=True))
                named |= {name: b.clone() for name, b in (buffers or {}).items()}
                value = torch.func.functional_call(self.fn, named, (time, u, *args))
        return self._checked(value, t, u), u, stand + parameters

    def _owns(self, parameters: Sequence[Tensor]) -> bool:
        if not isinstance(self.fn, torch.nn.Module):
            return True
        present = [p for _, p in self.fn.named_parameters()]
        return len(present) == len(parameters) and all(
            a is b and a.is_leaf for a, b in zip(present, parameters, strict=True))

    def _checked(self, value: Any, t: float, u: Tensor) -> Tensor:
        if not isinstance(value, Tensor):
            raise ExplicitTermError(f"Expected the explicit term to return a tensor (got "
                                    f"{type(value).__name__} at time {t:.6g}).")
        if value.shape != u.shape or value.dtype != u.dtype or value.device != u.device:
            raise ExplicitTermError(
                f"Expected the explicit term to return a tensor like the state, {tuple(u.shape)} "
                f"{u.dtype} on {u.device} (got {tuple(value.shape)} {value.dtype} on "
                f"{value.device} at time {t:.6g}).")
        return value


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
        present = _random_states(device)
        _set_random_states(device, self.states)
        try:
            yield
        finally:
            _set_random_states(device, present)


class First:
    """Evaluates G, and on the first evaluation looks where its graph ends."""

    def __init__(self, term: ExplicitTerm, tensors: Sequence[Tensor]) -> None:
        self.term, self.tensors, self.first = term, tensors, True

    def __call__(self, t: float, u: Tensor) -> Tensor:
        """G(t, u)."""
        if not self.first:
            return self.term(t, u)
        self.first = False
        value, copy, stand = self.term.detached(t, u, self.tensors, None)
        check_ends(value, [copy, *stand], t)
        return value.detach()


class Recorder:
    """Evaluates G in the forward pass, and notes what its repetition will need."""

    def __init__(self, term: ExplicitTerm, tensors: Sequence[Tensor]) -> None:
        self.evaluate = First(term, tensors[:len(term.tensors)])
        self.term = term
        self.records: list[Record] = []
        self.buffers: dict[str, Tensor] | None = None

    def __call__(self, t: float, u: Tensor) -> Tensor:
        """G(t, u)."""
        before = _random_states(u.device)
        self._note_buffers()
        value = self.evaluate(t, u)
        drawn = not all(map(torch.equal, before, _random_states(u.device)))
        record = Record(before if drawn else None, self.buffers)
        # Most records equal the one before: one object serves them all.
        same_as_last = self.records and not drawn and (
            self.records[-1].states is None and self.records[-1].buffers is self.buffers)
        self.records.append(self.records[-1] if same_as_last else record)
        return value

    def keep(self, count: int) -> None:
        """Forgets the evaluations after the first ``count``."""
        del self.records[count:]

    def _note_buffers(self) -> None:
        """A copy of the buffers in force; evaluations that find them unchanged share one."""
        present, known = self.term.buffers(), self.buffers or {}
        if present.keys() != known.keys() or not all(map(same, known.values(), present.values())):
            self.buffers = {name: b.detach().clone() for name, b in present.items()}


class Repeater:
    """Repeats the evaluations of a forward pass as they were, from its records.

    Attributes:
        number (int): The number of the next evaluation, in the order of the forward pass.
    """

    def __init__(self, term: ExplicitTerm, tensors: Sequence[Tensor], records: list[Record]
                 ) -> None:
        self.term, self.tensors, self.records, self.number = term, tensors, records, 0

    def __call__(self, t: float, u: Tensor) -> Tensor:
        """The next evaluation."""
        value = self.detached(self.number, t, u, graph=False)[0]
        self.number += 1
        return value

    def detached(self, number: int, t: float, u: Tensor, *, graph: bool
                 ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The evaluation of that number, see :meth:`ExplicitTerm.detached`."""
        record = self.records[number]
        with record.random_state(u.device):
            return self.term.detached(t, u, self.tensors, record.buffers, graph=graph)


def check_ends(value: Tensor, named: Sequence[Tensor], t: float) -> None:
    """Refuses a graph that ends in a tensor nobody named: its gradient would be lost.

    Raises:
        ValueError: naming the remedy, to pass it in ``args=``.
    """
    lost = foreign_leaf(value, named)
    if lost is not None:
        raise ValueError(
            f"Expected the explicit term to use only the state, its args and its own parameters "
            f"(got, at time {t:.6g}, another tensor of shape {tuple(lost.shape)} that requires a "
            "gradient, which would be lost); pass it, or the tensor made from it, in args=, or "
            "make the explicit term a torch.nn.Module that holds it.")


def _random_states(device: torch.device) -> tuple[Tensor, ...]:
    host = torch.get_rng_state()
    if device.type == host.device.type:
        return (host,)
    return host, torch.get_device_module(device).get_rng_state(device)


def _set_random_states(device: torch.device, states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1], device)
