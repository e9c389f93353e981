"""What is a linear solver, and what does it give back?"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..operators import LinearOperator, Solution
from ..precision import full_precision, is_autocast


class Inverse(LinearOperator):
    """The inverse of an operator: again an operator, whose product is a solve.

    No gradient flows through it: the gradient of a solve is another solve, with its transpose.

    Args:
        operator (LinearOperator): The operator A that is inverted.

    Attributes:
        iterative (bool): Whether it iterates, and can use a guess.
    """

    iterative: bool = False

    def __init__(self, operator: LinearOperator) -> None:
        self.operator, self.dims = operator, operator.dims

    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        """The solution of A x = b, and what it took."""
        raise NotImplementedError

    def mv(self, u: Tensor) -> Tensor:
        """The solution x of A x = u."""
        return self.solve(u).x

    def check_named(self, u: Tensor) -> None:
        """Refuses an inverse of what is trained as an operator J.

        Raises:
            ValueError: naming the remedy.
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
    """Turns an operator into the operator of its inverse, or of what approximates it."""

    def invert(self, operator: LinearOperator) -> Inverse:
        """The inverse of an operator."""
        ...


class ClosedInverse(Inverse):
    """An inverse that is an operator known in closed form, with no gradient.

    Args:
        operator (LinearOperator): The operator A that is inverted.
        closed (LinearOperator): The operator of its inverse.
    """

    def __init__(self, operator: LinearOperator, closed: LinearOperator) -> None:
        super().__init__(operator)
        self.closed = closed

    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        """The solution of A x = b; a guess is of no use."""
        if torch.is_grad_enabled() or is_autocast(b.device):
            with torch.no_grad(), full_precision(b.device):
                return self._solve(b)
        return self._solve(b)

    def _solve(self, b: Tensor) -> Solution:
        return Solution(self.closed.mv(b) if b.numel() else torch.zeros_like(b))

    def transpose(self) -> ClosedInverse:
        """The inverse of the transposed operator, from the same factors."""
        return ClosedInverse(self.operator.T, self.closed.T)
