"""How do gradients flow through an integration: the discrete adjoint, and plain backpropagation?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .operators import LinearOperator, Shifted, Solution
from .stepper import ExplicitTermError, Interval, Setups, Stats, Stepper, march, same
from .tableau import IMEXTableau


class Problem(NamedTuple):
    """Everything that an integration needs besides the tensors it is differentiated by."""

    scheme: IMEXTableau
    term: ExplicitTerm | None
    implicit: LinearOperator | None
    setups: Setups | None
    intervals: list[Interval]
    stats: Stats

    def stepper(self, explicit: Callable[[float, Tensor], Tensor] | None,
                inverse: Callable[[float], LinearOperator] | None = None) -> Stepper:
        """The stepper of this problem with another way to evaluate G or to solve."""
        if inverse is None:
            inverse = _no_setups if self.setups is None else self.setups.inverse
        return Stepper(self.scheme, explicit, self.implicit, inverse, self.stats)


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
                 buffers: dict[str, Tensor] | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """G on detached copies, so that the graph of this evaluation ends in them.

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
        with torch.enable_grad():
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


def integrate(problem: Problem, u0: Tensor) -> Tensor:
    """The states at all output times without a gradient; looks for one that would be lost."""
    term = problem.term
    check = term is not None and torch.is_grad_enabled()
    with torch.no_grad():
        if term is None or not check:
            return _outputs(problem.stepper(term), problem.intervals, u0)
        first = _First(term, term.tensors)
        return _outputs(problem.stepper(first), problem.intervals, u0)


def backpropagate(problem: Problem, u0: Tensor) -> Tensor:
    """The states at all output times, differentiable by autograd through every step."""
    stepper = problem.stepper(problem.term)
    if problem.setups is not None and problem.implicit is not None:
        setups, implicit = problem.setups, problem.implicit

        def inverse(c: float) -> LinearOperator:
            return _DifferentiableInverse(setups.inverse(c), Shifted(implicit, c))

        stepper = problem.stepper(problem.term, inverse)
    return _outputs(stepper, problem.intervals, u0)


def discrete_adjoint(problem: Problem, u0: Tensor) -> Tensor:
    """The states at all output times; the gradient is that of the scheme, step by step back."""
    tensors = [] if problem.term is None else problem.term.tensors
    linear = () if problem.implicit is None else problem.implicit.tensors
    result: Tensor = _Discrete.apply(problem, u0, *tensors, *linear)
    return result


def solve(inverse: LinearOperator, operator: LinearOperator, b: Tensor,
          guess: Tensor | None = None) -> Solution:
    r"""The solution of :math:`A x = b`, differentiable to any order in b and in A's tensors.

    With :math:`A^T \lambda = g` for the gradient g at x, the gradients are :math:`\lambda` at b and
    :math:`-\partial \langle \lambda, A(p) x \rangle / \partial p` at p.
    """
    info: list[Any] = [None, None]
    x: Tensor = _Solve.apply(inverse, operator, guess, info, b, *operator.tensors)
    return Solution(x, info[0], info[1])


class _DifferentiableInverse(LinearOperator):
    """An inverse whose solutions carry gradients."""

    def __init__(self, inverse: LinearOperator, operator: LinearOperator) -> None:
        self.inner, self.operator, self.iterative = inverse, operator, inverse.iterative

    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        return solve(self.inner, self.operator, b, guess)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inverse: LinearOperator, operator: LinearOperator, guess: Tensor | None,
                info: list[Any], b: Tensor, *tensors: Tensor) -> Tensor:
        solution = inverse.solve(b, guess)
        info[:] = solution.iterations, solution.residual
        ctx.inverse, ctx.operator = inverse, operator
        ctx.save_for_backward(solution.x, *tensors)
        return solution.x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        graph = torch.is_grad_enabled()
        # Aliases: the path from x to the tensors through this very node is not to be followed.
        own = [p.view_as(p) if graph else p.detach().requires_grad_(p.requires_grad)
               for p in tensors]
        operator: LinearOperator = ctx.operator.with_tensors(tensors)
        lam = solve(ctx.inverse.T, operator.T, grads[0]).x
        wanted = [p for p in own if p.requires_grad]
        found: Iterator[Tensor | None] = iter(())
        if wanted:
            with torch.enable_grad():
                product = ctx.operator.with_tensors(own).mv(x if graph else x.detach())
            found = iter(torch.autograd.grad(product, wanted, -lam, create_graph=graph,
                                             allow_unused=True))
        to_tensors = [next(found) if p.requires_grad else None for p in own]
        return (None, None, None, None, lam, *to_tensors)


class _Discrete(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, u0: Tensor, *tensors: Tensor) -> Tensor:
        recorder = None if problem.term is None else _Recorder(problem.term, tensors)
        stepper = problem.stepper(recorder)
        u, outputs, stages = u0, [u0], []
        for step in march(stepper, problem.intervals, u):
            stages.extend(step.stages)
            if step.lands:
                outputs.append(step.state)
        ctx.problem, ctx.records = problem, [] if recorder is None else recorder.records
        ctx.kept = [s is not None for s in stages]
        ctx.count = len(tensors)
        ctx.save_for_backward(u0, *tensors, *(s for s in stages if s is not None))
        return torch.stack(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u0, *saved = ctx.saved_tensors
        tensors, stages = saved[:ctx.count], iter(saved[ctx.count:])
        reverse = _Reverse(ctx.problem, ctx.records, tensors, ctx.needs_input_grad[2:])
        with torch.no_grad():
            lam = reverse.run(grads[0], [next(stages) if k else None for k in ctx.kept])
        found = [lam if ctx.needs_input_grad[1] else None, *reverse.gradients]
        if torch.is_grad_enabled():
            once: Callable[..., Tensor] = _Once.apply
            found = [g if g is None else once(g, grads[0], u0, *tensors) for g in found]
        return (None, *found)


class _Once(torch.autograd.Function):
    """Lets a first derivative through, and refuses a second instead of giving a wrong one."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *anchors: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError('Expected one derivative of an integration with gradient="discrete" '
                           '(got a second); use gradient="backprop" for second derivatives.')


class _Reverse:
    """The march backwards: gradients of a loss on every output."""

    def __init__(self, problem: Problem, records: list[_Record], tensors: list[Tensor],
                 wanted: Sequence[bool]) -> None:
        self.problem, self.records, self.tensors = problem, records, tensors
        self.split = 0 if problem.term is None else len(problem.term.tensors)
        self.wanted = wanted
        self.gradients: list[Tensor | None] = [None] * len(tensors)
        uses = problem.stepper(problem.term).uses_g
        self.place = [sum(uses[:i]) for i in range(len(uses))]
        self.per_step, self.step = sum(uses), 0

    def run(self, grad: Tensor, stages: list[Tensor | None]) -> Tensor:
        stepper = self.problem.stepper(self.problem.term)
        per_step = stepper.scheme.stages
        linear = self._implicit_vjp if any(self.wanted[self.split:]) else None
        lam = grad[-1]
        self.step = sum(interval.steps for interval in self.problem.intervals)
        for output in reversed(range(len(self.problem.intervals))):
            start, h, count = self.problem.intervals[output]
            for k in reversed(range(count)):
                self.step -= 1
                own, stages = stages[-per_step:], stages[:-per_step]
                lam = stepper.transposed(start + k * h, h, own, lam, self._explicit_vjp, linear)
            lam = lam + grad[output]
        return lam

    def _explicit_vjp(self, i: int, t: float, stage: Tensor, v: Tensor) -> Tensor | None:
        term = self.problem.term
        assert term is not None
        record = self.records[self.step * self.per_step + self.place[i]]
        with record.random_state(stage.device):
            value, u, stand = term.detached(t, stage, self.tensors[:self.split], record.buffers)
        self.problem.stats.explicit_vjps += 1
        if not value.requires_grad:
            return None
        check_ends(value, [u, *stand], t)
        chosen = [i for i in range(self.split) if self.wanted[i]]
        to_u, *found = torch.autograd.grad(value, [u] + [stand[i] for i in chosen], v,
                                           allow_unused=True)
        for place, gradient in zip(chosen, found, strict=True):
            self._accumulate(place, gradient)
        return to_u

    def _implicit_vjp(self, stage: Tensor, w: Tensor) -> None:
        assert self.problem.implicit is not None
        implicit = self.problem.implicit.with_tensors(self.tensors[self.split:])
        self.problem.stats.operator_products += 1
        for place, gradient in enumerate(implicit.vjp(stage, w, self.wanted[self.split:])):
            self._accumulate(self.split + place, gradient)

    def _accumulate(self, place: int, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        total = self.gradients[place]
        if total is None:
            # Autograd may hand out one tensor as several gradients: only a copy is ours to add to.
            self.gradients[place] = gradient.clone()
        else:
            total += gradient


class _Record(NamedTuple):
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


class _First:
    """Evaluates G, and on the first evaluation looks where its graph ends."""

    def __init__(self, term: ExplicitTerm, tensors: Sequence[Tensor]) -> None:
        self.term, self.tensors, self.first = term, tensors, True

    def __call__(self, t: float, u: Tensor) -> Tensor:
        if not self.first:
            return self.term(t, u)
        self.first = False
        value, copy, stand = self.term.detached(t, u, self.tensors, None)
        check_ends(value, [copy, *stand], t)
        return value.detach()


class _Recorder:
    """Evaluates G in the forward pass, and notes what its repetition will need."""

    def __init__(self, term: ExplicitTerm, tensors: Sequence[Tensor]) -> None:
        self.evaluate = _First(term, tensors[:len(term.tensors)])
        self.term = term
        self.records: list[_Record] = []
        self.buffers: dict[str, Tensor] | None = None

    def __call__(self, t: float, u: Tensor) -> Tensor:
        before = _random_states(u.device)
        self._note_buffers()
        value = self.evaluate(t, u)
        drawn = not all(map(torch.equal, before, _random_states(u.device)))
        self.records.append(_Record(before if drawn else None, self.buffers))
        return value

    def _note_buffers(self) -> None:
        """A copy of the buffers in force; evaluations that find them unchanged share one."""
        present, known = self.term.buffers(), self.buffers or {}
        if present.keys() != known.keys() or not all(map(same, known.values(), present.values())):
            self.buffers = {name: b.detach().clone() for name, b in present.items()}


def check_ends(value: Tensor, named: Sequence[Tensor], t: float) -> None:
    """Refuses a graph that ends in a tensor nobody named: its gradient would be lost.

    Raises:
        ValueError: naming the remedy, to pass it in ``args=``.
    """
    allowed = {id(x) for x in named}
    seen, stack = set(), [value.grad_fn]
    if value.grad_fn is None and value.requires_grad and id(value) not in allowed:
        raise _unnamed(value, t)
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad" and id(node.variable) not in allowed:
            raise _unnamed(node.variable, t)
        stack.extend(following for following, _ in node.next_functions)


def _unnamed(tensor: Tensor, t: float) -> ValueError:
    return ValueError(
        f"Expected the explicit term to use only the state, its args and its own parameters (got, "
        f"at time {t:.6g}, another tensor of shape {tuple(tensor.shape)} that requires a gradient, "
        "which would be lost); pass it, or the tensor made from it, in args=, or make the explicit "
        "term a torch.nn.Module that holds it.")


def _outputs(stepper: Stepper, intervals: list[Interval], u0: Tensor) -> Tensor:
    outputs = [u0]
    outputs.extend(step.state for step in march(stepper, intervals, u0) if step.lands)
    return torch.stack(outputs)


def _random_states(device: torch.device) -> tuple[Tensor, ...]:
    host = torch.get_rng_state()
    if device.type == host.device.type:
        return (host,)
    return host, torch.get_device_module(device).get_rng_state(device)


def _set_random_states(device: torch.device, states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1], device)


def _no_setups(c: float) -> LinearOperator:
    raise RuntimeError("There is no implicit operator to invert.")
