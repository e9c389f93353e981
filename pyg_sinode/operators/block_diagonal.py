"""How does a block-diagonal matrix act on the state, such as on the species at each node?"""

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

LOOPED = 8  # up to so many rows of a Jacobian are computed one by one, more in one batch


class BlockDiagonal(LinearOperator):
    r"""A block-diagonal matrix: a small dense matrix for each index of the other dimensions.

    .. math::
        (J u)_{si} = \sum_j B_{sij} u_{sj}

    :math:`I - cJ` is inverted by a batched LU factorization, computed once.

    Args:
        blocks (Tensor): The matrices B.
        dim (int or tuple of int): The dimensions of the state that they multiply, negative; several
            are flattened into one, in the order of the state. (default: :obj:`-1`)

    Shapes:
        - **blocks:** :math:`(*, n, n)`, per unit of time, where :math:`*` broadcasts against the
          dimensions of the state other than :obj:`dim`
        - **u:** any shape whose length at :obj:`dim` (or product of lengths) is n

    Raises:
        ValueError: if the blocks are not square.
        TypeError: if they are not of a real floating dtype.
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
        """The Jacobian of a function at a state, by autograd.

        Args:
            fn (callable): Maps a state to a tensor of the same shape. It must not mix dimensions
                other than :obj:`dim`.
            u (Tensor): The state.
            dim (int or tuple of int): The dimensions that fn mixes, negative. (default: :obj:`-1`)
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
        return (d, others) if self.dims == (-1,) else None  # else it depends on the state's shape

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
    """The inverse of a block-diagonal matrix, from the LU factors of its blocks.

    Args:
        lu, pivots (Tensor): The factors, as of :func:`torch.linalg.lu_factor`.
        dims (tuple of int): The dimensions of the state that the blocks mix, negative.
        transposed (bool): Whether this is the inverse of the transposed matrix.
            (default: :obj:`False`)
    """

    def __init__(self, lu: Tensor, pivots: Tensor, dims: tuple[int, ...],
                 transposed: bool = False) -> None:
        self.lu, self.pivots, self.dims, self.transposed = lu, pivots, dims, transposed

    @classmethod
    def of(cls, matrices: Tensor, dims: tuple[int, ...], *, checked: bool = True) -> BlockInverse:
        """Factorizes the blocks.

        Args:
            matrices (Tensor): The blocks, of shape :obj:`(*, n, n)`.
            dims (tuple of int): The dimensions of the state that they act along, negative.
            checked (bool): Whether to check for singular blocks. (default: :obj:`True`)

        Raises:
            LinearSolveError: if a block is singular to rounding.
        """
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrices)
        if checked:
            check_condition(lambda b: torch.linalg.lu_solve(lu, pivots, b),
                            matrices.abs().sum(dim=-1))
        return cls(lu, pivots, dims)

    def mv(self, u: Tensor) -> Tensor:
        """The solution x of A x = u."""
        flat = flattened(u, self.dims)
        if self.lu.dim() == 2:  # one block for all: the right-hand sides are its columns
            columns = flat.reshape(-1, flat.size(-1)).t()
            x = torch.linalg.lu_solve(self.lu, self.pivots, columns, adjoint=self.transposed)
            return unflattened(x.t().reshape(flat.shape), u, self.dims)
        x = torch.linalg.lu_solve(self.lu, self.pivots, flat.unsqueeze(-1), adjoint=self.transposed)
        return unflattened(x.squeeze(-1), u, self.dims)

    def transpose(self) -> BlockInverse:
        return BlockInverse(self.lu, self.pivots, self.dims, not self.transposed)


def derivative_blocks(value: Tensor, u: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The diagonal blocks of the Jacobian of a value with respect to the state.

    Args:
        value (Tensor): The value, with its autograd graph, which is retained.
        u (Tensor): The state, a leaf of that graph.
        dims (tuple of int): The dimensions that a block mixes, negative.

    Returns:
        Tensor: The blocks for each index outside dims, of shape :obj:`(*, n, n)`.
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
        except RuntimeError:  # a function without a batching rule
            rows = [_row(value, u, e) for e in chosen]
    else:
        rows = [_row(value, u, e) for e in chosen]
    return torch.stack([flattened(row, dims) for row in rows], dim=-2)


def _row(value: Tensor, u: Tensor, chosen: Tensor, *, batched: bool = False) -> Tensor:
    """The vector-Jacobian product with ``chosen``, or with a batch of such vectors."""
    (found,) = torch.autograd.grad(value, u, chosen, retain_graph=True, allow_unused=True,
                                   is_grads_batched=batched)
    return torch.zeros_like(chosen) if found is None else found
