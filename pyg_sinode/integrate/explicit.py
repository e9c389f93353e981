"""How is the explicit term G evaluated, and its vector-Jacobian product computed later?

An evaluation returns the value and an object from which the product is computed later: with the
autograd graph if it was kept, or by evaluating G again with the same random state and buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..operators.checks import graph_parts, lost_gradient, outside, same
from ..operators.function import Function
from ..operators.functions import Fourier
from ..precision import SHORT
from ..transforms import forward_mode_error, has_tangent, seeing_tangents
from .graph_memory import GraphMemory, KeptGraph
from .records import Record, ValueMemory, random_states
from .report import ExplicitTermError, Stats

# Errors after which G is evaluated again: a buffer was changed since, or a part of the graph was
# freed with another graph that shares it.
REPEATED = ("modified by an inplace operation", "backward through the graph a second time")
ENGINE: Any = getattr(torch.autograd.Variable, "_execution_engine", None)  # that of autograd


class Evaluation:
    """The data of one evaluation of G from which its vector-Jacobian product is computed.

    Args:
        record (Record): The data for repeating the evaluation.
        constant (bool): Whether the value requires no gradient.
        graph (KeptGraph, optional): The autograd graph, if it is kept. (default: :obj:`None`)
    """

    __slots__ = ("constant", "graph", "record")

    def __init__(self, record: Record, constant: bool, graph: KeptGraph | None = None) -> None:
        self.record, self.constant, self.graph = record, constant, graph

    def take_graph(self) -> KeptGraph | None:
        """Removes the graph from this object and returns it."""
        graph, self.graph = self.graph, None
        return graph


class Evaluated(NamedTuple):
    """A value of G and its evaluation, None if no vector-Jacobian product will be needed."""

    value: Tensor
    evaluation: Evaluation | None


class Explicit(Protocol):
    """A function that evaluates G at a time (a Python float) and a state."""

    def __call__(self, t: float, u: Tensor) -> Evaluated:
        """G(t, u)."""
        ...


class ExplicitTerm:
    """The explicit term G with its arguments and the current parameters and buffers.

    Args:
        fn (callable): The function or module, called as ``fn(t, u, *args)``.
        args (tuple): Further arguments; the tensors among them receive gradients.
            (default: :obj:`()`)
        live (int): The largest number of values of G that are in use at the same time.
            (default: :obj:`1`)
        tangents (bool): Whether forward-mode differentiation is supported. (default: :obj:`False`)
        fourier (Fourier, optional): The transform on whose coefficients ``fn`` acts; None if it
            acts on states. (default: :obj:`None`)
    """

    def __init__(self, fn: Callable[..., Tensor], args: tuple[Any, ...] = (), live: int = 1, *,
                 tangents: bool = False, fourier: Fourier | None = None) -> None:
        self.fourier = fourier
        self.function, self.memory, self.live = Function(fn, args), ValueMemory(live), live
        self.tangents = tangents
        self.tensors = list(self.function.tensors)
        self.derives = False  # whether G itself differentiates with respect to the state
        self.shares = False  # whether the graphs of its evaluations have common parts
        module = self.function.module
        named = [] if module is None else list(module.named_modules())
        # Names, not tensors: a module may assign another tensor to a buffer.
        self.buffer_places = [(f"{prefix}.{name}" if prefix else name, m, name)
                              for prefix, m in named for name in m._buffers]

    def buffers(self) -> dict[str, Tensor]:
        """The current buffers of the module, by name."""
        found = ((full, m._buffers.get(name)) for full, m, name in self.buffer_places)
        return {full: b for full, b in found if b is not None}

    def stand_ins(self, tensors: Sequence[Tensor], present: Sequence[Tensor]) -> list[Tensor]:
        """The leaves used in evaluations in place of the given tensors: detached copies.

        The parameters of the module are used themselves if they are all leaves, still belong to the
        module and have no hooks (which must see the whole gradient).

        Args:
            tensors (sequence of Tensor): The tensors of the integration.
            present (sequence of Tensor): The current tensors of the function.
        """
        count = len(self.function.given)
        present = present[count:]
        owned = len(present) == len(tensors) - count and all(
            a is b and a.is_leaf and not a._backward_hooks
            for a, b in zip(present, tensors[count:], strict=True))
        copied = tensors[:count] if owned else tensors
        return [x.detach().requires_grad_(x.requires_grad) for x in copied] + list(
            tensors[len(copied):])

    def plain(self, t: float, u: Tensor) -> Evaluated:
        """Evaluates G for a forward pass without a gradient, or for plain backpropagation."""
        followed = torch.is_grad_enabled()
        if not followed and u.requires_grad:
            u = u.detach()
        value = self.memory.own(self.with_state(t, u)[0])
        if not followed and u.requires_grad:  # G may have set it
            u.requires_grad_(False)
        return Evaluated(value, None)

    def with_state(self, t: float, u: Tensor) -> tuple[Tensor, Tensor]:
        """The value of G, and the state with which it was called.

        If G itself differentiates with respect to the state, that is a copy that requires a
        gradient.
        """
        if not self.derives:
            try:
                return self.evaluate(self.function, t, u), u
            except RuntimeError as error:
                if u.requires_grad or "not require grad" not in str(error):
                    raise
            self.derives = True
        copy = u if u.requires_grad else u.detach().requires_grad_()
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            value = self.evaluate(self.function, t, copy)
        return (value if wanted else value.detach()), copy

    def with_graph(self, function: Function, t: float, u: Tensor) -> tuple[Tensor, Tensor]:
        """The value of G with its autograd graph, and the copy of u that is a leaf of the graph.

        Gradients are enabled even if only the value is needed: kernels round differently without
        them, and G itself may use derivatives.
        """
        u = u.detach().requires_grad_()
        with torch.enable_grad(), seeing_tangents():
            return self.evaluate(function, t, u), u

    def evaluate(self, function: Function, t: float, u: Tensor) -> Tensor:
        """The value of G, computed by ``function`` and checked."""
        # Inference tensors have no version counter: the first evaluations compare contents.
        counts = not u.is_inference()
        version = u._version if counts else 0
        given = u.clone() if not counts and self.memory.watched else None
        time = (u if self.fourier is None else u.real).new_full((), t)
        value = self._checked(function(time, u), t, u)
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
        if value.dtype in SHORT:  # G may use autocast
            value = value.to(u.dtype)
        if value.shape != u.shape or value.dtype != u.dtype or value.device != u.device:
            what = ("state" if self.fourier is None
                    else "Fourier coefficients of the state in of_coefficients")
            raise ExplicitTermError(
                f"Expected the explicit term to return a tensor like the {what}, {tuple(u.shape)} "
                f"{u.dtype} on {u.device} (got {tuple(value.shape)} {value.dtype} on "
                f"{value.device} at time {t:.6g}).")
        result: Tensor = value
        return result


class FirstCallCheck:
    """Evaluates G without a gradient; refuses values that depend on an unlisted trainable tensor.

    Args:
        term (ExplicitTerm): The term.
    """

    def __init__(self, term: ExplicitTerm) -> None:
        self.term = term

    def __call__(self, t: float, u: Tensor) -> Evaluated:
        """G(t, u)."""
        with torch.enable_grad():
            value, state = self.term.with_state(t, u.detach())
        if value.requires_grad:
            check_ends(graph_parts(value).leaves, [state, *self.term.tensors], t)
        return Evaluated(self.term.memory.own(value.detach()), None)


class Capture:
    """Evaluates G in the forward pass and keeps the data for its vector-Jacobian product.

    Args:
        term (ExplicitTerm): The term.
        tensors (sequence of Tensor): The tensors of the integration, in the order of the term.
        memory (GraphMemory): The memory limit of kept graphs.
    """

    def __init__(self, term: ExplicitTerm, tensors: Sequence[Tensor], memory: GraphMemory) -> None:
        self.term, self.memory = term, memory
        self.stand = term.stand_ins(tensors, term.tensors)
        self.function = term.function.on(self.stand, present=term.tensors)
        self.last: Record | None = None
        self.buffers: dict[str, Tensor] | None = None
        self.nodes: set[Any] | None = None  # the first graph's, to compare with the second's
        self.first: list[Evaluation] = []  # until it is known whether G reuses its memory

    def __call__(self, t: float, u: Tensor) -> Evaluated:
        """G(t, u)."""
        before = random_states(u.device)
        self._note_buffers()
        value, copy = self.term.with_graph(self.function, t, u)
        first, parts = self.last is None, None
        if first or self.nodes is not None:
            parts = graph_parts(value)
        if first and parts is not None:  # later evaluations are checked in the backward pass
            check_ends(parts.leaves, [copy, *self.stand], t)
            self.nodes = set(parts.nodes)
        elif self.nodes is not None and parts is not None:
            self.term.shares = not self.nodes.isdisjoint(parts.nodes)
            self.nodes = None
        drawn = not all(map(torch.equal, before, random_states(u.device)))
        record = self._record(before if drawn else None)
        evaluation = Evaluation(record, not value.requires_grad)
        watched = self.term.memory.watched
        own = self.term.memory.own(value.detach())
        if not self.term.memory.copies:
            evaluation.graph = self.memory.keep(value, copy, self.stand, parts)
            if evaluation.graph is not None:
                evaluation.graph.checked = first
        elif self.first:
            for each in self.first:
                each.graph = None  # its saved tensors may have been overwritten
        self.first = [*self.first, evaluation] if watched else []
        return Evaluated(own, evaluation)

    def _record(self, states: tuple[Tensor, ...] | None) -> Record:
        """The record of an evaluation; equal successive records are one object."""
        last = self.last
        if states is not None or last is None or last.states is not None or (
                last.buffers is not self.buffers):
            self.last = Record(states, self.buffers)
        assert self.last is not None
        return self.last

    def _note_buffers(self) -> None:
        """Copies the current buffers if they changed since the last evaluation."""
        if not self.term.buffer_places:
            self.buffers = {} if self.buffers is None else self.buffers
            return
        present, known = self.term.buffers(), self.buffers
        if known is None or present.keys() != known.keys() or not all(
                map(same, known.values(), present.values())):
            self.buffers = {name: b.detach().clone() for name, b in present.items()}


class Replay:
    """Repeats evaluations of a forward pass in the backward pass, and computes their products.

    Args:
        term (ExplicitTerm): The term.
        tensors (sequence of Tensor): The tensors of the forward pass.
        memory (GraphMemory): The memory limit of graphs kept of evaluations by :meth:`__call__`.
        stats (Stats): The statistics, updated.
    """

    def __init__(self, term: ExplicitTerm, tensors: Sequence[Tensor], memory: GraphMemory,
                 stats: Stats) -> None:
        self.term, self.memory, self.stats, self.keeps = term, memory, stats, False
        self.tensors = tensors
        self.unhooked: Sequence[Tensor] | None = None  # leaves that are known to have no hooks
        self.records: Iterator[Record] = iter(())

    # Only for evaluations that are repeated: kept graphs have leaves of their own.
    @cached_property
    def stand(self) -> list[Tensor]:
        """The leaves of repeated evaluations."""
        return self.term.stand_ins(self.tensors, self.term.function.own)

    @cached_property
    def plain(self) -> Function:
        """G with these leaves, for evaluations without buffers."""
        return self.term.function.on(self.stand)

    def start(self, records: Iterable[Record], *, keeps: bool) -> None:
        """Sets the records of the next step, and whether to keep the graphs of its evaluations."""
        self.records, self.keeps = iter(records), keeps

    def __call__(self, t: float, u: Tensor) -> Evaluated:
        """Repeats the next evaluation of the step."""
        record = next(self.records)
        value, copy = self.again(record, t, u)
        kept = self.keeps and not self.term.memory.copies
        graph = self.memory.keep(value, copy, self.stand) if kept else None
        evaluation = Evaluation(record, not value.requires_grad, graph)
        return Evaluated(self.term.memory.own(value.detach()), evaluation)

    def again(self, record: Record, t: float, u: Tensor) -> tuple[Tensor, Tensor]:
        """Repeats an evaluation; returns the same as :meth:`ExplicitTerm.with_graph`."""
        function = self.plain
        if record.buffers:
            function = self.term.function.on(self.stand, record.buffers)
        with record.random_state(u.device):
            return self.term.with_graph(function, t, u)

    def vjp(self, evaluation: Evaluation, t: float, u: Tensor, v: Tensor, wanted: Sequence[int]
            ) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        """The gradients of <v, G(t, u)> with respect to u and to the tensors numbered ``wanted``.
        """
        self.stats.explicit_vjps += 1
        if evaluation.constant:
            return None, [None] * len(wanted)
        graph = evaluation.take_graph()
        # A hook must see the whole gradient of a parameter: then G is evaluated with copies.
        if graph is not None and not self._is_hooked(graph.stand):
            try:
                return self._pull(graph.value, graph.u, graph.stand, v, wanted, t, graph.checked)
            except RuntimeError as error:
                if not any(reason in str(error) for reason in REPEATED):
                    raise
            finally:
                graph.release()
        self.stats.explicit_repeated += 1
        value, copy = self.again(evaluation.record, t, u)
        return self._pull(value, copy, self.stand, v, wanted, t)

    def _is_hooked(self, stand: Sequence[Tensor]) -> bool:
        """Whether one of the leaves has hooks; graphs of one pass have the same leaves."""
        if self.unhooked is not stand:
            if any(x._backward_hooks for x in stand):
                return True
            self.unhooked = stand
        return False

    def _pull(self, value: Tensor, u: Tensor, stand: Sequence[Tensor], v: Tensor,
              wanted: Sequence[int], t: float, checked: bool = False
              ) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        if not value.requires_grad:
            return None, [None] * len(wanted)
        if not checked:
            check_ends(graph_parts(value).leaves, [u, *stand], t)
        trained = [i for i in wanted if stand[i].requires_grad]  # some may be frozen since
        # Graphs with common parts (a cached parametrization) are retained until deleted.
        to_u, *found = _gradients(value, [u, *(stand[i] for i in trained)], v, self.term.shares)
        if to_u is not None and self.term.memory.copies:
            to_u = to_u.clone()  # G reuses memory, and so may its products
        if len(trained) == len(wanted):
            return to_u, found
        by_place = dict(zip(trained, found, strict=True))
        return to_u, [by_place.get(i) for i in wanted]


def _gradients(value: Tensor, ends: Sequence[Tensor], v: Tensor, retain: bool
               ) -> Sequence[Tensor | None]:
    """As ``torch.autograd.grad``, but by a direct call of autograd's engine if it is accessible.

    The checks of ``torch.autograd.grad`` take a fifth of the time of a small network, and shapes
    and dtypes are known to agree here.
    """
    if ENGINE is None:
        return torch.autograd.grad(value, ends, v, retain_graph=retain, allow_unused=True)
    found: Sequence[Tensor | None] = ENGINE.run_backward(
        (value,), (v,), retain, False, tuple(ends), allow_unreachable=True, accumulate_grad=False)
    return found


def check_ends(leaves: Sequence[Tensor], named: Sequence[Tensor], t: float) -> None:
    """Refuses a leaf of a graph of G that is not in ``named``: its gradient would be lost.

    Raises:
        ValueError: if there is such a leaf; it has to be passed in ``args=``.
    """
    lost = outside(leaves, named)
    if lost is not None:
        raise lost_gradient(
            "the explicit term to use only the state, its args and its own parameters", lost,
            "pass it, or the tensor made from it, in args=, or make the explicit term a "
            "torch.nn.Module that holds it.", f", at time {t:.6g},")
