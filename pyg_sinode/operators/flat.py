"""How are some dimensions of a state flattened into one, and one multiplied by a matrix?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import without_autocast


def flattened(u: Tensor, dims: tuple[int, ...]) -> Tensor:
    """A state with ``dims`` (negative, increasing) flattened into one dimension, the last."""
    if dims == (-1,):
        return u
    return u.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))


def unflattened(x: Tensor, like: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`flattened`: x in the shape of the state ``like``."""
    if dims == (-1,):
        return x
    last = tuple(range(-len(dims), 0))
    apart: Tensor = x.unflatten(-1, [like.size(d) for d in dims])
    return apart.movedim(last, dims)


def identity_minus(blocks: Tensor, c: float) -> Tensor:
    """I - cB for every block B."""
    identity = torch.eye(blocks.size(-1), dtype=blocks.dtype, device=blocks.device)
    return identity.sub(blocks, alpha=c)


def diagonal_blocks(d: Tensor, u: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Diagonal matrices along ``dims`` from a diagonal d that broadcasts against u."""
    d = d[(None,) * (u.dim() - d.dim())]
    wanted = [u.size(k) if k in dims else -1 for k in range(-u.dim(), 0)]
    return torch.diag_embed(flattened(d.expand(wanted), dims))


@without_autocast
def multiply(matrix: Tensor, u: Tensor, dim: int) -> Tensor:
    """The product of a matrix with a state along one dimension."""
    if dim == -1:
        return u @ matrix.t()
    if dim == -2:
        return matrix @ u
    return (u.movedim(dim, -1) @ matrix.t()).movedim(-1, dim)
