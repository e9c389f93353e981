"""How is a Krylov solver preconditioned by the diagonal or by diagonal blocks?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..operators import LinearOperator, Solution
from ..operators.block_diagonal import BlockInverse
from ..operators.checks import check_dims
from .base import Inverse


@dataclass(frozen=True)
class Jacobi:
    """The Jacobi preconditioner, which divides by the diagonal of the operator.

    It reduces the number of iterations if the diagonal varies widely, as weighted degrees do. With
    a normalised adjacency, the diagonal of I - cJ is nearly constant and nothing is gained.
    """

    is_approximate: ClassVar[bool] = True  # a preconditioner, not a solver

    def invert(self, operator: LinearOperator) -> Inverse:
        """The operator that divides by the diagonal of the given operator."""
        return JacobiInverse(operator)


class JacobiInverse(Inverse):
    """Division by the diagonal of an operator.

    Args:
        operator (LinearOperator): The operator A.
    """

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator)
        self._divisors: dict[object, Tensor] = {}

    @torch.no_grad()
    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        """The quotient b / diag(A); the guess is ignored.

        Raises:
            ValueError: if the diagonal is unknown or has a zero.
        """
        key = b.shape, b.dtype, b.device
        if key not in self._divisors:
            self._divisors = {key: self._divisor(b)}
        return Solution(b / self._divisors[key])

    def transpose(self) -> JacobiInverse:
        """This inverse itself: a matrix and its transpose have the same diagonal."""
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


@dataclass(frozen=True)
class BlockJacobi:
    """The block Jacobi preconditioner, which solves with the diagonal blocks of the operator.

    It suits the sum of a diffusion and a stiff reaction, whose Jacobian is a block at each node.

    Args:
        dim (int or tuple of int): The dimensions of the state that a block mixes, negative.
            (default: :obj:`-1`)
        optional (bool): Whether an operator that does not know its blocks is left without a
            preconditioner; else it is an error. (default: :obj:`False`)
    """

    is_approximate: ClassVar[bool] = True  # a preconditioner, not a solver

    dim: int | tuple[int, ...] = -1
    optional: bool = False

    def __post_init__(self) -> None:
        """Raises a ValueError if a dimension is not negative."""
        check_dims("BlockJacobi", self.dim)

    def invert(self, operator: LinearOperator) -> Inverse:
        """The operator that solves with the diagonal blocks of the given operator."""
        return BlockJacobiInverse(operator, check_dims("BlockJacobi", self.dim), self.optional)


class BlockJacobiInverse(Inverse):
    """Solves with the diagonal blocks of an operator, from their LU factors.

    Args:
        operator (LinearOperator): The operator A.
        blocks (tuple of int): The dimensions of the state that a block mixes, negative.
        optional (bool): Whether it is the identity if the blocks are unknown.
    """

    def __init__(self, operator: LinearOperator, blocks: tuple[int, ...], optional: bool) -> None:
        super().__init__(operator)
        self.along, self.optional = blocks, optional
        self._factors: dict[object, BlockInverse | None] = {}

    @torch.no_grad()
    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        """The solution with the diagonal blocks; the guess is ignored.

        Raises:
            ValueError: if the blocks are unknown and not optional.
            LinearSolveError: if a block is singular to rounding.
        """
        key = b.shape, b.dtype, b.device
        if key not in self._factors:
            self._factors = {key: self._factorise(b)}
        factors = self._factors[key]
        return Solution(b.clone() if factors is None else factors.mv(b))

    def transpose(self) -> Inverse:
        """The inverse of the transposed blocks, from the same factors."""
        other = BlockJacobiInverse(self.operator.T, self.along, self.optional)
        other._factors = {key: None if found is None else found.transpose()
                          for key, found in self._factors.items()}
        return other

    def _factorise(self, b: Tensor) -> BlockInverse | None:
        blocks = self.operator.blocks(b, self.along)
        if blocks is None and self.optional:
            return None
        if blocks is None:
            raise ValueError(f"Expected an operator that knows its blocks along {self.along} for "
                             f"BlockJacobi (got {self.operator!r}); use no preconditioner.")
        return BlockInverse.of(blocks, self.along)
