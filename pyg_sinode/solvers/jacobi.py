"""How is a Krylov solver preconditioned by the diagonal, or diagonal blocks, of its operator?"""

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
    """The Jacobi preconditioner: divides by the diagonal of the operator.

    It pays where the diagonal varies widely, such as weighted degrees do; the diagonal of I - cJ
    for a normalised adjacency is nearly constant, and nothing is gained there.
    """

    is_approximate: ClassVar[bool] = True  # a preconditioner, no solver

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


@dataclass(frozen=True)
class BlockJacobi:
    """The block Jacobi preconditioner: solves with the diagonal blocks of the operator.

    It suits the sum of a diffusion and of a stiff reaction, which is a block at every node.

    Args:
        dim (int or tuple of int): The dimensions of the state that the blocks mix, counted from the
            end. (default: :obj:`-1`)
    """

    is_approximate: ClassVar[bool] = True  # a preconditioner, no solver

    dim: int | tuple[int, ...] = -1

    def __post_init__(self) -> None:
        """Refuses dimensions that are not counted from the end."""
        check_dims("BlockJacobi", self.dim)

    def invert(self, operator: LinearOperator) -> Inverse:
        """The operator that solves with the diagonal blocks of another."""
        return BlockJacobiInverse(operator, check_dims("BlockJacobi", self.dim))


class BlockJacobiInverse(Inverse):
    """Solves with the diagonal blocks of an operator, from their LU factors.

    Args:
        operator (LinearOperator): The operator whose blocks they are.
        blocks (tuple of int): The dimensions that they mix.
    """

    def __init__(self, operator: LinearOperator, blocks: tuple[int, ...]) -> None:
        super().__init__(operator)
        self.along = blocks
        self._factors: dict[object, BlockInverse] = {}

    @torch.no_grad()
    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        """The solution with the blocks; a guess is of no use.

        Raises:
            ValueError: if the operator does not know its blocks.
            LinearSolveError: if one of them is singular.
        """
        key = b.shape, b.dtype, b.device
        if key not in self._factors:
            self._factors = {key: self._factorise(b)}
        return Solution(self._factors[key].mv(b))

    def transpose(self) -> Inverse:
        """The solves with the transposed blocks."""
        other = BlockJacobiInverse(self.operator.T, self.along)
        other._factors = {key: found.transpose() for key, found in self._factors.items()}
        return other

    def _factorise(self, b: Tensor) -> BlockInverse:
        blocks = self.operator.blocks(b, self.along)
        if blocks is None:
            raise ValueError(f"Expected an operator that knows its blocks along {self.along} for "
                             f"BlockJacobi (got {self.operator!r}); use no preconditioner.")
        return BlockInverse.of(blocks, self.along)
