"""How is a Krylov solver preconditioned by the diagonal of its operator?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..operators import LinearOperator, Solution
from .base import Inverse


@dataclass(frozen=True)
class Jacobi:
    """The Jacobi preconditioner: divides by the diagonal of the operator.

    It pays where the diagonal varies widely, such as weighted degrees do; the diagonal of I - cJ
    for a normalised adjacency is nearly constant, and nothing is gained there.
    """

    def invert(self, operator: LinearOperator) -> Inverse:
        """The operator that divides by the diagonal of another."""
        return JacobiInverse(operator)


class JacobiInverse(Inverse):
    """Division by the diagonal of an operator; its own transpose.

    Args:
        operator (LinearOperator): The operator whose diagonal it is.
    """

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator)
        self._divisors: dict[object, Tensor] = {}

    @torch.no_grad()
    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        """The quotient b / diag(A); a guess is of no use.

        Raises:
            ValueError: if the operator does not know its diagonal, or it has a zero.
        """
        key = b.shape, b.dtype, b.device
        if key not in self._divisors:
            self._divisors = {key: self._divisor(b)}
        return Solution(b / self._divisors[key])

    def transpose(self) -> JacobiInverse:
        """The same division: a matrix and its transpose have one diagonal."""
        return self

    def _divisor(self, b: Tensor) -> Tensor:
        d = self.operator.diagonal(b)
        if d is None:
            raise ValueError(f"Expected an operator that knows its diagonal for Jacobi (got "
                             f"{self.operator!r}); use no preconditioner.")
        zeros = int((d == 0).sum())
        if zeros:
            raise ValueError(f"Expected a diagonal without zeros for Jacobi (got {zeros} of "
                             f"{d.numel()} that are zero); use no preconditioner.")
        return d
