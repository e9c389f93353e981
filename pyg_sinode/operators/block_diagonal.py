"""How does a matrix of its own act on each part of the state, such as the species at each node?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..precision import without_autocast
from .base import LinearOperator
from .checks import along, check_dims, check_real, check_tensors
from .dense import check_condition
from .flat import flattened, identity_minus, unflattened
from .results import Entries

LOOPED = 8  # rows of a derivative taken one by one, before they are taken together


class BlockDiagonal(LinearOperator):
    r"""One small dense matrix for every index of the other dimensions,
    :math:`(J u)_{si} = \sum_j B_{sij} u_{sj}`.

    Its inverse is a batched LU factorisation, made once for all blocks.

    Args:
        blocks (Tensor): The matrices B.
        dim (int or tuple of int): The dimension of the state that they multiply, counted from the
            end; several are taken as one, in the order of the state. (default: :obj:`-1`)

    Shapes:
        - **blocks:** :math:`(*, n, n)`, per unit of time, where :math:`*` broadcasts against the
          dimensions of the state other than :obj:`dim`
        - **u:** with a length (or a product of lengths) of n at :obj:`dim`

    Raises:
        ValueError: if the blocks are not square.
        TypeError: if they are not real floating.
    """

    def __init__(self, blocks: Tensor, dim: int | Sequence[int] = -1) -> None:
        check_real(blocks, "blocks")
        if blocks.dim() < 2 or blocks.size(-2) != blocks.size(-1):
            raise ValueError(f"Expected square blocks of shape (*, n, n) in BlockDiagonal (got "
                             f"shape {tuple(blocks.shape)}).")
        self.dims, self.tensors = check_dims("BlockDiagonal", dim), (blocks,)
        if not self.dims:
            raise ValueError("Expected a dimension for BlockDiagonal (got none); use Diagonal.")

    @classmethod
    def jacobian(cls, fn: Callable[[Tensor], Tensor], u: Tensor, dim: int | Sequence[int] = -1
                 ) -> BlockDiagonal:
        """The derivative at a state of a function that mixes no other dimensions, by autograd.

        Args:
            fn (callable): From a state to one of the same shape.
            u (Tensor): The state.
            dim (int or tuple of int): The dimensions that it mixes. (default: :obj:`-1`)
        """
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            value = fn(u)
        return cls(derivative_blocks(value, u, check_dims("BlockDiagonal", dim)), dim)

    @without_autocast
    def mv(self, u: Tensor) -> Tensor:
        product = self.tensors[0] @ flattened(u, self.dims).unsqueeze(-1)
        return unflattened(product.squeeze(-1), u, self.dims)

    def transpose(self) -> BlockDiagonal:
        return BlockDiagonal(self.tensors[0].mT, self.dims)

    def check(self, u: Tensor) -> None:
        check_tensors(type(self).__name__, self.tensors, u)
        blocks, n = self.tensors[0], self.tensors[0].size(-1)
        least = max(-d for d in self.dims)
        if u.dim() < least or math.prod(u.size(d) for d in self.dims) != n:
            raise ValueError(f"Expected a state of size {n} along dimension {self.dims} for "
                             f"BlockDiagonal (got shape {tuple(u.shape)}).")
        others = flattened(u, self.dims).shape[:-1]
        batch = blocks.shape[:-2]
        if len(batch) > len(others) or any(
                a not in (1, b) for a, b in zip(reversed(batch), reversed(others), strict=False)):
            raise ValueError(f"Expected blocks that broadcast against the dimensions "
                             f"{tuple(others)} of the state in BlockDiagonal (got {tuple(batch)}).")

    def symmetric(self) -> bool:
        blocks = self.tensors[0].detach()
        return torch.equal(blocks, blocks.mT)

    def gershgorin(self) -> tuple[Tensor, Tensor] | None:
        blocks = self.tensors[0].detach()
        d = blocks.diagonal(dim1=-2, dim2=-1)
        others = blocks.abs().sum(dim=-1) - d.abs()
        if blocks.dim() == 2 and len(self.dims) == 1:
            return along(d, self.dims[0]), along(others, self.dims[0])
        return (d, others) if self.dims == (-1,) else None  # the state's shape would be needed

    def size_along(self, dim: int) -> int | None:
        return self.tensors[0].size(-1) if self.dims == (dim,) else None

    def diagonal(self, u: Tensor) -> Tensor:
        d = self.tensors[0].detach().diagonal(dim1=-2, dim2=-1)
        return unflattened(d.expand(*flattened(u, self.dims).shape), u, self.dims)

    def blocks(self, u: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        return self.tensors[0].detach() if dims == self.dims else None

    def to_coo(self, dim: int, size: int) -> Entries | None:
        blocks = self.tensors[0].detach()
        if self.dims != (dim,) or blocks.dim() > 2:
            return None
        at = torch.arange(size, device=blocks.device)
        return Entries(at.repeat_interleave(size), at.repeat(size), blocks.reshape(-1))

    def has_closed_inverse(self) -> bool:
        return True

    def resolvent(self, c: float) -> LinearOperator:
        return BlockInverse.of(identity_minus(self.tensors[0].detach(), c), self.dims)


class BlockInverse(LinearOperator):
    """The inverse of a matrix for every index of the other dimensions, from their LU factors."""

    def __init__(self, lu: Tensor, pivots: Tensor, dims: tuple[int, ...],
                 transposed: bool = False) -> None:
        self.lu, self.pivots, self.dims, self.transposed = lu, pivots, dims, transposed

    @classmethod
    def of(cls, matrices: Tensor, dims: tuple[int, ...], *, checked: bool = True) -> BlockInverse:
        """Factorises; one that is singular to rounding is a LinearSolveError.

        Args:
            matrices (Tensor): The matrices, of shape :obj:`(*, n, n)`.
            dims (tuple of int): The dimensions of the state that they act along.
            checked (bool): Whether to look for singular ones. (default: :obj:`True`)
        """
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrices)
        if checked:
            check_condition(lambda b: torch.linalg.lu_solve(lu, pivots, b),
                            matrices.abs().sum(dim=-1))
        return cls(lu, pivots, dims)

    def mv(self, u: Tensor) -> Tensor:
        """The solution x of A x = u."""
        flat = flattened(u, self.dims)
        if self.lu.dim() == 2:  # one matrix, whose columns all others are
            columns = flat.reshape(-1, flat.size(-1)).t()
            x = torch.linalg.lu_solve(self.lu, self.pivots, columns, adjoint=self.transposed)
            return unflattened(x.t().reshape(flat.shape), u, self.dims)
        x = torch.linalg.lu_solve(self.lu, self.pivots, flat.unsqueeze(-1), adjoint=self.transposed)
        return unflattened(x.squeeze(-1), u, self.dims)

    def transpose(self) -> BlockInverse:
        return BlockInverse(self.lu, self.pivots, self.dims, not self.transposed)


def derivative_blocks(value: Tensor, u: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The blocks of the derivative of a value at the state u, in which its graph ends.

    Returns:
        Tensor: One for every index outside of dims, of shape :obj:`(*, n, n)`; the graph is kept.
    """
    shape = flattened(value, dims).shape
    n = shape[-1]
    if not value.requires_grad or value.numel() == 0:
        return u.detach().new_zeros(*shape, n)
    units = value.detach().new_zeros(n, n).fill_diagonal_(1.0)
    chosen = [unflattened(e.expand(shape), value, dims) for e in units]
    if n > LOOPED:
        try:
            rows = list(_row(value, u, torch.stack(chosen), batched=True))
        except RuntimeError:  # a function without a rule for batches
            rows = [_row(value, u, e) for e in chosen]
    else:
        rows = [_row(value, u, e) for e in chosen]
    return torch.stack([flattened(row, dims) for row in rows], dim=-2)


def _row(value: Tensor, u: Tensor, chosen: Tensor, *, batched: bool = False) -> Tensor:
    """The derivatives of the chosen entries of a value, or of several choices."""
    (found,) = torch.autograd.grad(value, u, chosen, retain_graph=True, allow_unused=True,
                                   is_grads_batched=batched)
    return torch.zeros_like(chosen) if found is None else found
