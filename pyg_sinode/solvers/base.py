"""What is a linear solver, and what does it return?"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..operators import LinearOperator, Solution
from ..operators.by_transpose import product
from ..precision import full_precision, is_autocast


class Inverse(LinearOperator):
    """Base class of inverses: operators whose product is the solution of A x = b.

    A product :meth:`mv` is differentiable in its argument, by a solve with the transpose, but not
    in the tensors of A. A subclass implements :meth:`solve`, which is not differentiable, and
    :meth:`transpose`.

    Args:
        operator (LinearOperator): The operator A to invert.

    Attributes:
        iterative (bool): Whether the solve iterates and uses an initial guess.
    """

    iterative: bool = False

    def __init__(self, operator: LinearOperator) -> None:
        self.operator, self.dims = operator, operator.dims

    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        """The solution of A x = b.

        Args:
            b (Tensor): The right-hand side, in the shape of a state.
            guess (Tensor, optional): An initial guess of x, which may be ignored.
                (default: :obj:`None`)

        Returns:
            Solution: The solution, and for an iterative solver the iterations and residuals.
        """
        raise NotImplementedError

    def mv(self, u: Tensor) -> Tensor:
        """The solution x of A x = u, differentiable in u.

        Raises:
            ValueError: with gradients enabled, if the tensors of A require some.
        """
        if torch.is_grad_enabled():
            self.check_named(u)
        return product(self, u, lambda b: self.solve(b).x)

    def check_named(self, u: Tensor) -> None:
        """Refuses this inverse as an operator J if its tensors require gradients.

        Raises:
            ValueError: if they do, since no gradient flows through an inverse to them.
        """
        if any(x.requires_grad for x in self.operator.tensors):
            raise ValueError(f"Expected an operator through which gradients flow (got {self!r}, an "
                             "inverse of tensors that require one, which would be lost); detach "
                             "them, or write the product with torch.linalg.solve in MatrixFree.")

    def transpose(self) -> Inverse:
        """The inverse of the transposed operator, from the same factors."""
        raise NotImplementedError

    @property
    def T(self) -> Inverse:
        """The inverse of the transposed operator, from the same factors."""
        return self.transpose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.operator!r})"


class Solver(Protocol):
    """A linear solver or a preconditioner: maps an operator A to its (approximate) inverse."""

    def invert(self, operator: LinearOperator) -> Inverse:
        """The inverse of an operator A, or an approximation of it."""
        ...


class ClosedInverse(Inverse):
    """An inverse in closed form.

    Args:
        operator (LinearOperator): The operator A to invert.
        closed (LinearOperator): The operator of the inverse.
    """

    def __init__(self, operator: LinearOperator, closed: LinearOperator) -> None:
        super().__init__(operator)
        self.closed = closed

    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        """The solution of A x = b; the guess is ignored."""
        if torch.is_grad_enabled() or is_autocast(b.device):
            with torch.no_grad(), full_precision(b.device):
                return self._solve(b)
        return self._solve(b)

    def _solve(self, b: Tensor) -> Solution:
        return Solution(self.closed.mv(b) if b.numel() else torch.zeros_like(b))

    def transpose(self) -> ClosedInverse:
        """The inverse of the transposed operator, from the same factors."""
        return ClosedInverse(self.operator.T, self.closed.T)
