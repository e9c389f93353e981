"""How is the explicit term G evaluated, so that it can be evaluated again for its gradient?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .operators.checks import foreign_leaf, shares_memory
from .precision import SHORT
from .report import ExplicitTermError
from .setups import same
from .transforms import forward_mode_error, has_tangent, is_wrapped, seeing_tangents


class ExplicitTerm:
    """The explicit term G with the arguments, parameters and buffers in force at the call.

    Args:
        fn (callable): G(t, u, *args), a function or a module.
        args (tuple): Further arguments; the tensors among them receive gradients.
        live (int): How many of its values an integration uses at one time, at most.
            (default: :obj:`1`)
        tangents (bool): Whether forward-mode differentiation goes through. (default: :obj:`False`)
    """

    def __init__(self, fn: Callable[..., Tensor], args: tuple[Any, ...], live: int = 1, *,
                 tangents: bool = False) -> None:
        self.fn, self.args, self.memory, self.tangents = fn, args, ValueMemory(live), tangents
        self.derives = False  # whether G takes derivatives by the state itself
        self.places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        self.names: list[str] = []
        self.parameters: list[Tensor] = []
        self.modes: list[tuple[torch.nn.Module, bool]] = []
        if isinstance(fn, torch.nn.Module):
            self.modes = [(module, module.training) for module in fn.modules()]
            named = list(fn.named_parameters())
            self.names, self.parameters = [n for n, _ in named], [p for _, p in named]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that G depends on: those among the arguments, then the parameters."""
        return [self.args[i] for i in self.places] + self.parameters

    @contextmanager
    def in_its_modes(self) -> Iterator[None]:
        """Training or evaluation as it was at the call, for the backward pass."""
        changed = [(m, mode, m.training) for m, mode in self.modes if m.training != mode]
        for module, mode, _ in changed:
            module.training = mode
        try:
            yield
        finally:
            for module, _, present in changed:
                module.training = present

    def buffers(self) -> dict[str, Tensor]:
        """The buffers of the module, by name."""
        return dict(self.fn.named_buffers()) if isinstance(self.fn, torch.nn.Module) else {}

    def __call__(self, t: float, u: Tensor) -> Tensor:
        """G as it is, for a forward pass."""
        u = u if torch.is_grad_enabled() else u.detach()  # whose flags G may set
        return self.memory.own(self.with_state(t, u)[0])

    def with_state(self, t: float, u: Tensor) -> tuple[Tensor, Tensor]:
        """The value of G, and the state that it was given: one that requires a gradient if need be.

        A G that takes derivatives by the state needs one, whether or not anybody else does.
        """
        if not self.derives:
            try:
                return self._evaluate(self.fn, t, u, self.args), u
            except RuntimeError as error:
                if u.requires_grad or "not require grad" not in str(error):
                    raise
            self.derives = True
        copy = u if u.requires_grad else u.detach().requires_grad_()
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            value = self._evaluate(self.fn, t, copy, self.args)
        return (value if wanted else value.detach()), copy

    def value(self, t: float, u: Tensor) -> Tensor:
        """The value of G by the same kernels as in :meth:`detached`, without its graph."""
        with torch.enable_grad(), seeing_tangents():
            value = self._evaluate(self.fn, t, u.detach().requires_grad_(), self.args)
        return value.detach()

    def detached(self, t: float, u: Tensor, tensors: Sequence[Tensor],
                 buffers: dict[str, Tensor] | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """G with its graph, on detached copies in which the graph ends.

        Gradients are enabled though the value alone is wanted: kernels round differently without,
        and G may take derivatives itself. Parameters that are leaves, still the module's own and
        without hooks (which are for the whole gradient) are used as they are; others, and the given
        buffers, are put in their places by ``functional_call``.

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
        named = {name: b.clone() for name, b in (buffers or {}).items()}
        if not self._owns(parameters):
            parameters = [p.detach().requires_grad_(p.requires_grad) for p in parameters]
            named |= dict(zip(self.names, parameters, strict=True))
        with torch.enable_grad(), seeing_tangents():
            if not (named and isinstance(self.fn, torch.nn.Module)):
                value = self._evaluate(self.fn, t, u, args)
            else:
                value = self._evaluate(partial(_call_with, self.fn, named), t, u, args)
        return value, u, stand + parameters

    def _owns(self, parameters: Sequence[Tensor]) -> bool:
        if not isinstance(self.fn, torch.nn.Module):
            return True
        present = [p for _, p in self.fn.named_parameters()]
        return len(present) == len(parameters) and all(
            a is b and a.is_leaf and not a._backward_hooks
            for a, b in zip(present, parameters, strict=True))

    def _evaluate(self, fn: Callable[..., Any], t: float, u: Tensor, args: Sequence[Any]) -> Tensor:
        # Inference tensors count no changes: the first evaluations are compared instead.
        counts = not u.is_inference()
        version = u._version if counts else 0
        given = u.clone() if self.memory.watched and not counts else None
        value = self._checked(fn(u.new_full((), t), u, *args), t, u)
        if (counts and u._version != version) or (given is not None and not torch.equal(given, u)):
            raise ExplicitTermError("Expected the explicit term to leave the state as it is (it "
                                    f"changed it in place at time {t:.6g}); work on u.clone().")
        if not self.tangents and has_tangent(value):
            raise forward_mode_error("the explicit term")
        return value

    def _checked(self, value: Any, t: float, u: Tensor) -> Tensor:
        if not isinstance(value, Tensor):
            raise ExplicitTermError(f"Expected the explicit term to return a tensor (got "
                                    f"{type(value).__name__} at time {t:.6g}).")
        if value.dtype in SHORT:  # G may have autocast inside
            value = value.to(u.dtype)
        if value.shape != u.shape or value.dtype != u.dtype or value.device != u.device:
            raise ExplicitTermError(
                f"Expected the explicit term to return a tensor like the state, {tuple(u.shape)} "
                f"{u.dtype} on {u.device} (got {tuple(value.shape)} {value.dtype} on "
                f"{value.device} at time {t:.6g}).")
        result: Tensor = value
        return result


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


class Unneeded:
    """Evaluates G where no named tensor needs a gradient; refuses one that another needs."""

    def __init__(self, term: ExplicitTerm) -> None:
        self.term = term

    def __call__(self, t: float, u: Tensor) -> Tensor:
        """G(t, u)."""
        with torch.enable_grad():
            value, state = self.term.with_state(t, u.detach())
        if value.requires_grad:
            check_ends(value, [state, *self.term.tensors], t)
        return self.term.memory.own(value.detach())


class Recorder:
    """Evaluates G in the forward pass, and notes what its repetition will need."""

    def __init__(self, term: ExplicitTerm, tensors: Sequence[Tensor]) -> None:
        self.term, self.tensors = term, tensors[:len(term.tensors)]
        self.records: list[Record] = []
        self.buffers: dict[str, Tensor] | None = None

    def __call__(self, t: float, u: Tensor) -> Tensor:
        """G(t, u)."""
        before = _random_states(u.device)
        self._note_buffers()
        if self.records:
            value = self.term.value(t, u)
        else:  # later evaluations are checked where they are reversed
            value, copy, stand = self.term.detached(t, u, self.tensors, None)
            check_ends(value, [copy, *stand], t)
        value = self.term.memory.own(value.detach())
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
        value = self.detached(self.number, t, u)[0].detach()
        self.number += 1
        return self.term.memory.own(value)

    def detached(self, number: int, t: float, u: Tensor
                 ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The evaluation of that number, see :meth:`ExplicitTerm.detached`."""
        record = self.records[number]
        with record.random_state(u.device):
            return self.term.detached(t, u, self.tensors, record.buffers)


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


def _call_with(module: torch.nn.Module, named: dict[str, Tensor], *args: Any) -> Any:
    return torch.func.functional_call(module, named, args)


def _random_states(device: torch.device) -> tuple[Tensor, ...]:
    host = torch.get_rng_state()
    if device.type == host.device.type:
        return (host,)
    return host, torch.get_device_module(device).get_rng_state(device)


def _set_random_states(device: torch.device, states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1], device)
