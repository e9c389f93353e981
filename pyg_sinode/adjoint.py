"""How do gradients flow through an integration by the discrete adjoint?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .checkpoints import backwards, first_sweep
from .explicit import ExplicitTerm, Recorder, Repeater, Unneeded, check_ends
from .march import Marched
from .precision import full_precision
from .problem import Problem
from .stepper import State, total

Tape = list[Tensor | None]


def integrate(problem: Problem, u0: Tensor) -> Tensor:
    """The states at all output times without a gradient; looks for one that would be lost."""
    term: ExplicitTerm | Unneeded | None = problem.term
    part = problem.implicit
    if torch.is_grad_enabled():
        term = None if problem.term is None else Unneeded(problem.term)
        part = None if part is None else part.guarded()
    with torch.no_grad():
        return problem.run(problem.method(term, part), u0)


def discrete_adjoint(problem: Problem, u0: Tensor) -> Tensor:
    """The states at all output times; the gradient is that of the scheme, step by step back."""
    tensors = [] if problem.term is None else problem.term.tensors
    linear = () if problem.implicit is None else problem.implicit.tensors
    result: Tensor = _Discrete.apply(problem, u0, *tensors, *linear)
    return result


class _Discrete(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, u0: Tensor, *tensors: Tensor) -> Tensor:
        before = [x._version for x in (u0, *tensors) if not x.is_inference()]
        recorder = None if problem.term is None else Recorder(problem.term, tensors)
        kept = _Kept(problem)
        result = problem.run(problem.method(recorder, problem.implicit), u0, kept.note,
                             None if recorder is None else recorder.keep)
        _check_unchanged((u0, *tensors), before)
        ctx.problem, ctx.records = problem, [] if recorder is None else recorder.records
        ctx.kept, ctx.there, ctx.count = kept, [x is not None for x in kept.tape], len(tensors)
        ctx.save_for_backward(u0, *tensors, *(x for x in kept.tape if x is not None))
        kept.tape = []
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u0, *saved = ctx.saved_tensors
        tensors, rest = saved[:ctx.count], iter(saved[ctx.count:])
        tape = [next(rest) if there else None for there in ctx.there]
        reverse = _Reverse(ctx.problem, ctx.records, tensors, ctx.needs_input_grad[2:])
        modes = nullcontext() if ctx.problem.term is None else ctx.problem.term.in_its_modes()
        with torch.no_grad(), full_precision(u0.device), modes:
            lam = reverse.run(grads[0], reverse.tapes(ctx.kept, tape, u0))
        found = [lam if ctx.needs_input_grad[1] else None, *reverse.gradients]
        if torch.is_grad_enabled():
            once: Callable[..., Tensor] = _Once.apply
            found = [g if g is None else once(g, grads[0], u0, *tensors) for g in found]
        return (None, *found)


def _check_unchanged(tensors: Sequence[Tensor], before: list[int]) -> None:
    """Refuses tensors that changed in place on the way: their gradient would be of the new values.
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
    """Lets a first derivative through, and refuses a second instead of giving a wrong one."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *anchors: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError('Expected one derivative of an integration with gradient="discrete" '
                           '(got a second); use gradient="backprop" for second derivatives.')


class _Kept:
    """What a forward pass keeps: all tapes, or some states and the tape of the last step.

    The number of steps of an adaptive integration is known only at its end: with checkpoints it
    keeps no state but the initial one, and the backward pass makes one sweep more.

    Attributes:
        tape: One tape after another.
        states: The number of a step and the state before it, without the initial one.
    """

    def __init__(self, problem: Problem) -> None:
        self.tape: Tape = []
        self.lengths: list[int] = []
        self.states: list[tuple[int, State]] = []
        self.problem, self.all = problem, problem.checkpoints is None
        self.numbers: set[int] = set()
        if not self.all and problem.control is None:
            self.numbers = set(first_sweep(len(problem.steps), self.slots())[1:])

    def note(self, marched: Marched) -> None:
        """Keeps what is wanted of an accepted step."""
        if not self.all:
            self.tape, self.lengths = [], []
        self.tape += marched.made.tape
        self.lengths.append(len(marched.made.tape))
        if marched.number in self.numbers:
            self.states.append((marched.number, self.pack(marched.before)))

    def slots(self) -> int:
        """How many states may be kept at any time."""
        chosen = self.problem.checkpoints
        return math.isqrt(max(len(self.problem.steps) - 1, 0)) + 1 if chosen == "auto" else (
            0 if chosen is None else chosen)

    def pack(self, state: State) -> State:
        """A state as it is kept."""
        device = self.problem.checkpoint_device
        return state if device is None else tuple(x.to(device) for x in state)


class _Reverse:
    """The march backwards: gradients of a loss on every output."""

    def __init__(self, problem: Problem, records: list[Any], tensors: list[Tensor],
                 wanted: Sequence[bool]) -> None:
        self.problem, self.wanted = problem, wanted
        self.gradients: list[Tensor | None] = [None] * len(tensors)
        self.split = 0 if problem.term is None else len(problem.term.tensors)
        self.repeat = None if problem.term is None else Repeater(
            problem.term, tensors[:self.split], records)
        # The tensors of the forward pass, whatever the modules hold by now.
        linear = tensors[self.split:]
        self.part = problem.implicit
        if self.part is not None and linear:
            self.part = self.part.with_tensors(linear)
        self.method = problem.method(self.repeat, self.part)
        self.first = 0  # the number of the first evaluation in the present step

    def tapes(self, kept: _Kept, tape: Tape, u0: Tensor) -> Iterator[Tape]:
        """The tapes of all steps, the last one first."""
        end = len(tape)
        for length in reversed(kept.lengths):
            yield tape[end - length:end]
            end -= length
        if not kept.all:
            # A second backward pass over one graph finds the states gone, and starts from u0.
            states: list[tuple[int, State]] = [(0, (u0,)), *kept.states]
            kept.states = []
            left = len(self.problem.steps) - len(kept.lengths)
            yield from backwards(left, kept.slots(), states, self._advance, self._record,
                                 kept.pack, lambda state: tuple(x.to(u0.device) for x in state))

    def run(self, grad: Tensor, tapes: Iterator[Tape]) -> Tensor:
        """The gradient at the initial state from those at all outputs."""
        steps = self.problem.steps
        lam: list[Tensor | None] = [None]
        output = grad.size(0)
        for number, tape in zip(reversed(range(len(steps))), tapes, strict=True):
            t, h, thetas = steps[number]
            output -= len(thetas)
            inside = [(theta, grad[output + i]) for i, theta in enumerate(thetas) if theta != 1.0]
            at_end = [grad[output + i] for i, theta in enumerate(thetas) if theta == 1.0]
            lam = [total([lam[0], *at_end]), *lam[1:]]
            self.first = self.method.evaluations_before(number)
            lam = self.method.transposed(number, t, h, tape, lam, inside, self)
        result = total([lam[0], grad[0]])
        assert result is not None
        return result

    def _step(self, number: int, state: State) -> Any:
        t, h, _ = self.problem.steps[number]
        if self.repeat is not None:
            self.repeat.number = self.method.evaluations_before(number)
        self.problem.stats.steps_recomputed += 1
        return self.method.step(number, t, h, state)

    def _advance(self, number: int, state: State) -> State:
        following: State = self._step(number, state).state
        return following

    def _record(self, number: int, state: State) -> Tape:
        tape: Tape = self._step(number, state).tape
        return tape

    def explicit(self, place: int, t: float, u: Tensor, v: Tensor) -> Tensor | None:
        """See :class:`pyg_sinode.stepper.Reverse`."""
        assert self.repeat is not None
        value, copy, stand = self.repeat.detached(self.first + place, t, u)
        self.problem.stats.explicit_vjps += 1
        if not value.requires_grad:
            return None
        check_ends(value, [copy, *stand], t)
        chosen = [i for i in range(self.split) if self.wanted[i]]
        to_u, *found = torch.autograd.grad(value, [copy] + [stand[i] for i in chosen], v,
                                           allow_unused=True)
        for i, gradient in zip(chosen, found, strict=True):
            self._accumulate(i, gradient)
        return to_u

    def implicit(self, t: float, u: Tensor, w: Tensor) -> None:
        """See :class:`pyg_sinode.stepper.Reverse`."""
        assert self.part is not None
        self.part.check_ends(t, u)
        wanted = self.wanted[self.split:]
        if not any(wanted):
            return
        self.problem.stats.operator_products += 1
        for i, gradient in enumerate(self.part.vjp(t, u, w, wanted)):
            self._accumulate(self.split + i, gradient)

    def _accumulate(self, place: int, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        present = self.gradients[place]
        if present is None:
            # Autograd may hand out one tensor as several gradients: only a copy is ours to add to.
            self.gradients[place] = gradient.clone()
        else:
            present += gradient
