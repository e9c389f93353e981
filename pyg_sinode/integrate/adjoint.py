"""How is an integration differentiated by the discrete adjoint?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..precision import full_precision
from ..terms import Nonlinear
from .checkpoints import backwards, first_sweep
from .explicit import Capture, Evaluation, FirstCallCheck, Replay
from .function_part import FunctionPart
from .graph_memory import GraphMemory
from .integration import Integration
from .loop import AcceptedStep
from .records import Modes, Record
from .runge_kutta import StepResult
from .sums import Scaled


def integrate(run: Integration, u0: Tensor) -> Tensor:
    """The states at all output times, without a gradient; refuses one that would be lost."""
    explicit, term = None if run.term is None else run.term.plain, run.implicit
    if torch.is_grad_enabled():
        explicit = None if run.term is None else FirstCallCheck(run.term)
        term = None if term is None else term.guarded()
    with torch.no_grad():
        return run.run(run.method(explicit, run.part(term, u0)), u0)


def discrete_adjoint(run: Integration, u0: Tensor) -> Tensor:
    """The states at all output times, differentiable by the transposes of the steps."""
    tensors = [] if run.term is None else run.term.tensors
    linear = () if run.implicit is None else run.implicit.tensors
    result: Tensor = _Discrete.apply(run, u0, *tensors, *linear)
    return result


class _Discrete(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Integration, u0: Tensor, *tensors: Tensor) -> Tensor:
        before = [x._version for x in (u0, *tensors) if not x.is_inference()]
        explicit, kept = None, _Kept(run)
        if run.term is not None:
            explicit = Capture(run.term, tensors[:len(run.term.tensors)], kept.memory)
        modes, buffers = _modes(run), _buffers(run)
        part = run.part(run.implicit, u0, differentiates=True)
        result = run.run(run.method(explicit, part), u0, kept.note)
        _check_unchanged((u0, *tensors), before)
        ctx.run, ctx.kept, ctx.count, ctx.modes = run, kept, len(tensors), modes
        ctx.buffers = buffers
        ctx.save_for_backward(u0, *tensors, *kept.take_tensors())
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u0, *saved = ctx.saved_tensors
        tensors, run = saved[:ctx.count], ctx.run
        back = _Backward(run, u0, tensors, ctx.needs_input_grad[2:], ctx.buffers)
        with torch.no_grad(), full_precision(u0.device), ctx.modes.in_force():
            lam = back.through(grads[0], back.tapes(ctx.kept, saved[ctx.count:], u0))
        found = [lam if ctx.needs_input_grad[1] else None, *back.gradients]
        if torch.is_grad_enabled():
            once: Callable[..., Tensor] = _Once.apply
            found = [g if g is None else once(g, grads[0], u0, *tensors) for g in found]
        return (None, *found)


def _modes(run: Integration) -> Modes:
    """The training or evaluation modes of the modules, to be restored in the backward pass."""
    terms = (run.term, run.implicit if isinstance(run.implicit, Nonlinear) else None)
    return Modes(*(term.function.fn for term in terms if term is not None))


def _buffers(run: Integration) -> dict[str, Tensor]:
    """The buffers of a nonlinear implicit term; those of G are in the records of evaluations."""
    return run.implicit.buffers() if isinstance(run.implicit, Nonlinear) else {}


def _check_unchanged(tensors: Sequence[Tensor], before: list[int]) -> None:
    """Refuses tensors that were changed in place during the integration.

    The gradient would be computed with the new values.
    """
    counting = [x for x in tensors if not x.is_inference()]
    for x, version in zip(counting, before, strict=True):
        if x._version != version:
            raise RuntimeError(
                "Expected u0, args, parameters and the tensors of the implicit part to stay as "
                f"they are during an integration (got one of shape {tuple(x.shape)} that was "
                "changed in place, by the explicit term or the callback); change a clone, or keep "
                "what changes in a buffer of the module.")


class _Once(torch.autograd.Function):
    """Passes first derivatives through and raises an error for second ones, which would be wrong.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *anchors: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError('Expected one derivative of an integration with gradient="discrete" '
                           '(got a second); use gradient="backprop" for second derivatives.')


class _Kept:
    """What a forward pass keeps: all tapes; with checkpoints the last tape, states and records.

    The number of steps of an adaptive integration is known only at its end. With checkpoints it
    therefore keeps no state but the initial one, and the backward pass makes one more sweep.

    Attributes:
        tapes: The tapes of the last step or of all steps, without their tensors.
        records: With checkpoints, the records of the evaluations of each step.
        states: Pairs of the number of a step and the state before it, without the initial one.
    """

    def __init__(self, run: Integration) -> None:
        self.run, self.all = run, run.checkpoints is None
        self.memory = GraphMemory(run.graph_memory)
        self.tapes: list[Any] = []
        self.records: list[tuple[Record, ...]] = []
        self.states: list[tuple[int, Any]] = []
        self.numbers: set[int] = set()
        self.present: list[bool] = []
        if not self.all and run.control is None:
            self.numbers = set(first_sweep(len(run.steps), self.slots())[1:])

    def note(self, accepted: AcceptedStep) -> None:
        """Stores the data of an accepted step."""
        tape = accepted.result.tape
        if self.all:
            self.tapes.append(tape)
            return
        self.tapes = [tape]
        records = tuple(e.record for e in tape.evaluations if e is not None)
        last = self.records[-1] if self.records else None
        shared = last is not None and len(last) == len(records) and all(
            a is b for a, b in zip(last, records, strict=True))
        self.records.append(last if shared and last is not None else records)
        if accepted.number in self.numbers:
            self.states.append((accepted.number, self.pack(accepted.before)))

    def take_tensors(self) -> list[Tensor]:
        """Removes the tensors from the tapes and returns them."""
        found = [x for tape in self.tapes for x in tape.stages]
        self.present = [x is not None for x in found]
        self.tapes = [tape.on([None] * len(tape.stages)) for tape in self.tapes]
        return [x for x in found if x is not None]

    def with_tensors(self, saved: Sequence[Tensor]) -> Iterator[Any]:
        """The tapes with their tensors put back, the last one first."""
        rest = iter(saved)
        tensors = [next(rest) if there else None for there in self.present]
        end = len(tensors)
        for tape in reversed(self.tapes):
            start = end - len(tape.stages)
            yield tape.on(tensors[start:end])
            end = start

    def slots(self) -> int:
        """The largest number of states that are kept at any time."""
        chosen = self.run.checkpoints
        return math.isqrt(max(len(self.run.steps) - 1, 0)) + 1 if chosen == "auto" else (
            0 if chosen is None else chosen)

    def pack(self, state: Any) -> Any:
        """A state in the form in which it is kept: on the device of the checkpoints."""
        device = self.run.checkpoint_device
        return state if device is None else moved(state, device)


class _Backward:
    """The backward pass of an integration, from the gradients at the outputs."""

    def __init__(self, run: Integration, u0: Tensor, tensors: list[Tensor],
                 wanted: Sequence[bool], buffers: dict[str, Tensor]) -> None:
        self.run, self.stats = run, run.stats
        self.split = 0 if run.term is None else len(run.term.tensors)
        self.gradients: list[Tensor | None] = [None] * len(tensors)
        self.wanted = [i for i in range(self.split) if wanted[i]]
        self.wanted_implicit = wanted[self.split:]
        self.replay = None if run.term is None else Replay(
            run.term, tensors[:self.split], GraphMemory(run.graph_memory), run.stats)
        # The tensors of the forward pass, even if the modules have other ones by now.
        linear, term = tensors[self.split:], run.implicit
        if isinstance(term, Nonlinear):
            # Hooks on saved tensors may return other tensors, which are no leaves.
            linear = [x if x is own else x.detach().requires_grad_(want) for x, own, want in
                      zip(linear, term.tensors, self.wanted_implicit, strict=True)]
            term = term.as_it_was(linear, buffers)
        elif term is not None and linear:
            term = term.with_tensors(linear)
        self.part = run.part(term, u0, differentiates=True)
        self.method = run.method(self.replay, self.part)

    def tapes(self, kept: _Kept, saved: Sequence[Tensor], u0: Tensor) -> Iterator[Any]:
        """The tapes of all steps, the last one first."""
        yield from kept.with_tensors(saved)
        if kept.all:
            return
        # A second backward pass over the same graph has no states left and starts from u0.
        states = [(0, self.method.initial(u0)), *kept.states]
        kept.states = []

        def again(number: int, state: Any, *, keeps: bool) -> StepResult:
            if self.replay is not None:
                self.replay.start(kept.records[number], keeps=keeps)
            self.stats.steps_recomputed += 1
            t, h, _ = self.run.steps[number]
            return self.method.step(t, h, state)

        yield from backwards(
            len(self.run.steps) - len(kept.tapes), kept.slots(), states,
            lambda number, state: again(number, state, keeps=False).state,
            lambda number, state: again(number, state, keeps=True).tape,
            kept.pack, lambda state: moved(state, u0.device))

    def through(self, grad: Tensor, tapes: Iterator[Any]) -> Tensor:
        """The gradient at the initial state, from the gradients at all outputs."""
        steps = self.run.steps
        lam = self.method.initial_gradient()
        output = grad.size(0)
        for number in reversed(range(len(steps))):
            tape = next(tapes)
            t, h, thetas = steps[number]
            output -= len(thetas)
            inside = [(theta, grad[output + i]) for i, theta in enumerate(thetas) if theta != 1.0]
            lam = lam.plus(grad[output + i] for i, theta in enumerate(thetas) if theta == 1.0)
            lam = self.method.transposed(t, h, tape, lam, inside, self)
        found = self.part.accumulated()
        self._add(range(self.split, self.split + len(found)), found, 1.0)
        result: Tensor = lam.plus([grad[0]]).u
        return result

    def explicit(self, evaluation: Evaluation | None, t: float, u: Tensor, v: Scaled) -> Scaled:
        """See :class:`pyg_sinode.integrate.runge_kutta.Reverse`."""
        assert self.replay is not None
        assert evaluation is not None
        assert v.x is not None
        to_u, found = self.replay.vjp(evaluation, t, u, v.x, self.wanted)
        self._add(self.wanted, found, v.factor)
        return Scaled(to_u, v.factor)

    def implicit(self, t: float, u: Tensor, w: Scaled) -> None:
        """See :class:`pyg_sinode.integrate.runge_kutta.Reverse`."""
        assert w.x is not None
        assert not isinstance(self.part, FunctionPart)
        found = self.part.vjp(t, u, w.x, self.wanted_implicit)
        self._add(range(self.split, self.split + len(found)), found, w.factor)

    def _add(self, places: Sequence[int], found: Sequence[Tensor | None], factor: float) -> None:
        """Adds gradients times a factor to the accumulated ones, in one call."""
        sums, more, first = [], [], []
        for place, gradient in zip(places, found, strict=True):
            if gradient is None:
                continue
            present = self.gradients[place]
            if present is None:
                first.append((place, gradient))
            else:
                sums.append(present)
                more.append(gradient)
        if sums:
            torch._foreach_add_(sums, more, alpha=factor)
        if first:
            # Copies: several gradients, or those of the next product, may have the same memory.
            copies = torch._foreach_mul([gradient for _, gradient in first], factor)
            for (place, _), copy in zip(first, copies, strict=True):
                self.gradients[place] = copy


def moved(state: Any, device: torch.device) -> Any:
    """A state with all its tensors moved to a device."""
    if isinstance(state, Tensor):
        return state.to(device)
    if state is None or not isinstance(state, (tuple, list)):
        return state
    parts = [moved(x, device) for x in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
