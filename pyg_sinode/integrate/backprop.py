"""How is an integration differentiated to any order by plain backpropagation?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..operators import LinearOperator, Shifted, Solution
from ..precision import without_autocast
from ..schemes import ExponentialTableau
from ..solvers import Inverse
from ..terms import Nonlinear
from .function_part import FunctionPart
from .implicit import Guess, ImplicitPart, LinearPart, NoPart, solution
from .integration import Integration
from .nonlinear import NewtonPart, Scale
from .records import Modes
from .report import Stats


def backpropagate(run: Integration, u0: Tensor) -> Tensor:
    """The states at all output times, differentiable by autograd through every step."""
    explicit = None if run.term is None else run.term.plain
    return run.run(run.method(explicit, _differentiable(run, u0)), u0)


def _differentiable(run: Integration, u0: Tensor) -> ImplicitPart | FunctionPart:
    """The implicit part with differentiable solves, or functions."""
    if isinstance(run.implicit, Nonlinear):
        tensors = [u0, *(() if run.term is None else run.term.tensors), *run.implicit.tensors]
        followed = any(x.requires_grad for x in tensors)
        whole = run.implicit if followed else run.implicit.guarded()
        return _DifferentiablePart(whole, run.allowed, u0, run.stats)
    if isinstance(run.scheme, ExponentialTableau):
        return run.part(run.implicit, u0)
    if run.factorizations is None or run.implicit is None:
        return NoPart()
    known, term = run.factorizations, run.implicit

    def inverse(c: float, scale: Tensor | float) -> LinearOperator:
        return _DifferentiableInverse(known.inverse(c, scale), Shifted(term.scaled(scale), c))

    return LinearPart(term, inverse, run.stats)


def solve(inverse: LinearOperator, operator: LinearOperator, b: Tensor,
          guess: Tensor | None = None) -> Solution:
    r"""The solution of :math:`A x = b`, differentiable to any order in b and in A's tensors.

    With :math:`A^T \lambda = g` for the gradient g at x, the gradients are :math:`\lambda` at b and
    :math:`-\partial \langle \lambda, A(p) x \rangle / \partial p` at p.
    """
    info: list[Any] = [None, None]
    x: Tensor = _Solve.apply(inverse, operator, guess, info, b, *operator.tensors)
    return Solution(x, info[0], info[1])


class _DifferentiableInverse(Inverse):
    """An inverse whose solves are differentiable."""

    def __init__(self, inverse: LinearOperator, operator: LinearOperator) -> None:
        super().__init__(operator)
        self.inner, self.iterative = inverse, getattr(inverse, "iterative", False)

    def mv(self, u: Tensor) -> Tensor:
        """The solution x of A x = u."""
        return self.solve(u).x

    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        return solve(self.inner, self.operator, b, guess)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inverse: LinearOperator, operator: LinearOperator, guess: Tensor | None,
                info: list[Any], b: Tensor, *tensors: Tensor) -> Tensor:
        x, *info[:] = solution(inverse, b, guess)
        ctx.inverse, ctx.operator = inverse, operator
        ctx.save_for_backward(x, *tensors)
        return x

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        graph = torch.is_grad_enabled()
        own = _aliases(tensors, graph=graph)
        operator: LinearOperator = ctx.operator.with_tensors(tensors)
        lam = solve(ctx.inverse.T, operator.T, grads[0]).x
        to_tensors = _gradients(
            lambda: ctx.operator.with_tensors(own).mv(x if graph else x.detach()), own, -lam)
        return (None, None, None, None, lam, *to_tensors)


def _aliases(tensors: Sequence[Tensor], *, graph: bool) -> list[Tensor]:
    """Aliases of the tensors, so that gradients at them exclude other paths of the graph."""
    return [p.view_as(p) if graph else p.detach().requires_grad_(p.requires_grad)
            for p in tensors]


def _gradients(make: Callable[[], Tensor], own: Sequence[Tensor], w: Tensor
               ) -> list[Tensor | None]:
    """The gradients of <w, value> with respect to tensors, differentiable under create_graph."""
    graph, wanted = torch.is_grad_enabled(), [p for p in own if p.requires_grad]
    found: Iterator[Tensor | None] = iter(())
    if wanted:
        with torch.enable_grad():
            value = make()
        if value.requires_grad:
            found = iter(torch.autograd.grad(value, wanted, w, create_graph=graph,
                                             allow_unused=True))
    return [next(found, None) if p.requires_grad else None for p in own]


class _DifferentiablePart(NewtonPart):
    """A nonlinear part with differentiable values and solves."""

    def __init__(self, term: Nonlinear, allowed: Scale | None, u0: Tensor, stats: Stats) -> None:
        super().__init__(term, allowed, u0, stats)
        self.modes, self.buffers = Modes(term.function.fn), term.buffers()

    def value(self, t: float, U: Tensor) -> Tensor:
        self.stats.implicit_evaluations += 1
        return self.term.value(t, U)

    def solve(self, t: float, c: float, r: Tensor, guess: Guess) -> Tensor:
        found: Tensor = _SolveStage.apply(self, t, c, guess, r, *self.term.tensors)
        return found

    def solve_plain(self, t: float, c: float, r: Tensor, guess: Guess) -> Tensor:
        """The solution without a gradient, for :meth:`solve`."""
        return super().solve(t, c, r, guess)

    def then(self, tensors: Sequence[Tensor]) -> Nonlinear:
        """The term with other tensors and with the buffers of the forward pass."""
        return self.term.as_it_was(tensors, self.buffers)

    def transposed(self, t: float, c: float, U: Tensor, tensors: Sequence[Tensor], b: Tensor
                   ) -> Tensor:
        """The solution with the transposed Jacobian, differentiable in all tensor arguments."""
        if b.numel() == 0:
            return b
        self.local = self.then([x.detach().requires_grad_(x.requires_grad) for x in tensors])
        inverse = self.exact_inverse(self.at(t, U.detach()), c)
        operator = Shifted(_StateDerivative(self, t, U, tensors), c)
        return solve(inverse.T, operator.T, b).x


class _SolveStage(torch.autograd.Function):
    r"""The solution U of :math:`U = r + c H(t, U)`, differentiable.

    With :math:`(I - c H_u)^T \lambda = g` for the gradient g at U, the gradients are
    :math:`\lambda` at r and :math:`c\, \partial \langle \lambda, H(t, U; p) \rangle / \partial p`.
    """

    @staticmethod
    def forward(ctx: Any, part: _DifferentiablePart, t: float, c: float, guess: Guess,
                r: Tensor, *tensors: Tensor) -> Tensor:
        U = part.solve_plain(t, c, r, guess)
        U = U.clone() if U is r else U
        ctx.part, ctx.t, ctx.c = part, t, c
        ctx.save_for_backward(U, *tensors)
        return U

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        U, *tensors = ctx.saved_tensors
        part, t, c, graph = ctx.part, ctx.t, ctx.c, torch.is_grad_enabled()
        with part.modes.in_force():
            own = _aliases(tensors, graph=graph)
            lam = part.transposed(t, c, U, tensors, grads[0])
            to_tensors = _gradients(
                lambda: part.then(own).value(t, U if graph else U.detach()), own, c * lam)
        return (None, None, None, None, lam, *to_tensors)


class _StateDerivative(LinearOperator):
    """The Jacobian of H with respect to the state, differentiable in the state and in H's tensors.
    """

    def __init__(self, part: _DifferentiablePart, t: float, U: Tensor, tensors: Sequence[Tensor],
                 transposed: bool = False) -> None:
        self.part, self.t, self.dims, self.transposed = part, t, part.term.dims(U), transposed
        self.tensors = (U, *tensors)

    def mv(self, u: Tensor) -> Tensor:
        graph = torch.is_grad_enabled()
        U, *tensors = self.tensors
        with torch.enable_grad(), self.part.modes.in_force():
            U = U.view_as(U) if U.requires_grad else U.detach().requires_grad_()
            value = self.part.then(tensors).value(self.t, U)
            if not value.requires_grad:
                return torch.zeros_like(u)
            w = u if self.transposed else torch.zeros_like(value, requires_grad=True)
            (back,) = torch.autograd.grad(value, U, w, create_graph=graph or not self.transposed,
                                          allow_unused=True, materialize_grads=True)
            if self.transposed or not back.requires_grad:
                return back if self.transposed else torch.zeros_like(u)
            (found,) = torch.autograd.grad(back, w, u, create_graph=graph, allow_unused=True,
                                           materialize_grads=True)
        return found

    def transpose(self) -> LinearOperator:
        return _StateDerivative(self.part, self.t, self.tensors[0], self.tensors[1:],
                                not self.transposed)
