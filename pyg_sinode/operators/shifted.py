"""What is the matrix of an implicit stage, which a linear solver inverts?"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import LinearOperator
from .flat import identity_minus
from .results import Entries


class Shifted(LinearOperator):
    r"""The matrix :math:`I - cJ` of an implicit stage, which a linear solver inverts.

    Args:
        operator (LinearOperator): The operator J.
        c (float): The step size times the diagonal coefficient of the scheme, in units of time.
    """

    def __init__(self, operator: LinearOperator, c: float) -> None:
        self.operator, self.c, self.dims = operator, c, operator.dims

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.operator.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> Shifted:
        other = copy.copy(self)
        other.operator = self.operator.with_tensors(tensors)
        return other

    def mv(self, u: Tensor) -> Tensor:
        return torch.sub(u, self.operator.mv(u), alpha=self.c)

    def transpose(self) -> Shifted:
        return Shifted(self.operator.T, self.c)

    def check(self, u: Tensor) -> None:
        self.operator.check(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return (self.operator,)

    def symmetric(self) -> bool:
        return self.operator.symmetric()

    def disc(self) -> tuple[float, float] | None:
        own = self.operator.disc()
        return None if own is None else (1.0 - self.c * own[0], abs(self.c) * own[1])

    def positive_definite(self) -> bool:
        """Whether I - cJ is known to be symmetric and positive definite."""
        if not self.symmetric():
            return False
        # A margin, since a computed bound has rounding errors.
        operator = self.operator if self.c >= 0 else -self.operator
        return abs(self.c) * operator.largest_eigenvalue() < 1.0 - 1e-3

    def diagonal(self, u: Tensor) -> Tensor | None:
        d = self.operator.diagonal(u)
        return None if d is None else 1.0 - self.c * d

    def to_coo(self, dim: int, size: int) -> Entries | None:
        e = self.operator.to_coo(dim, size)
        if e is None:
            return None
        at = torch.arange(size, device=e.row.device)
        value = torch.cat([e.value.new_ones(size), -self.c * e.value])
        return Entries(torch.cat([at, e.row]), torch.cat([at, e.col]), value)

    def blocks(self, u: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        blocks = self.operator.blocks(u, dims)
        return None if blocks is None else identity_minus(blocks, self.c)

    def as_diagonal(self) -> Tensor | float | None:
        d = self.operator.as_diagonal()
        return None if d is None else 1.0 - self.c * d

    def has_closed_inverse(self) -> bool:
        return self.operator.has_closed_inverse()

    def resolvent(self, c: float) -> LinearOperator | None:
        # I - b (I - cJ) = (1 - b) (I + b c / (1 - b) J)
        if c == 1.0:
            return super().resolvent(c)
        found = self.operator.resolvent(-c * self.c / (1.0 - c))
        return None if found is None else found * (1.0 / (1.0 - c))

    def inverse(self) -> LinearOperator | None:
        return self.operator.resolvent(self.c)
