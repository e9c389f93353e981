"""How do gradients of any order flow through an integration by plain backpropagation?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..operators import LinearOperator, Shifted, Solution
from ..precision import without_autocast
from ..solvers import Inverse
from .implicit import ImplicitPart, LinearPart, NoPart, solution
from .integration import Integration


def backpropagate(run: Integration, u0: Tensor) -> Tensor:
    """The states at all output times, differentiable by autograd through every step."""
    explicit = None if run.term is None else run.term.plain
    return run.run(run.method(explicit, _differentiable(run)), u0)


def _differentiable(run: Integration) -> ImplicitPart:
    """The implicit part, whose solves carry gradients."""
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
    """An inverse whose solutions carry gradients."""

    def __init__(self, inverse: LinearOperator, operator: LinearOperator) -> None:
        super().__init__(operator)
        self.inner, self.iterative = inverse, getattr(inverse, "iterative", False)

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
