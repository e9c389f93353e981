"""How are the orthonormal sine and cosine transforms computed?

The sine transform is the DST-I, the basis of a grid of interior points with zeros at both ends; the
cosine transform is the DCT-II, that of a grid of cell centres with zero slopes at both ends. Both
matrices are orthogonal, so that the inverse is the transpose. A short axis is multiplied by its
matrix, a long one goes through a real fast Fourier transform of its odd or even extension: 2 (n +
1) or 2 n points, so that for sines n + 1 should have small prime factors.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..precision import without_autocast

KINDS = ("sine", "cosine")
LONGEST_PRODUCT = 128  # points; beyond it n^2 operations outweigh the passes of a transform


def forward(u: Tensor, dim: int, kind: str) -> Tensor:
    """The coefficients of u along a dimension, for the basis vectors of the kind."""
    if u.size(dim) <= LONGEST_PRODUCT or u.numel() == 0:
        return _product(u, dim, matrix(kind, u.size(dim), u.dtype, u.device))
    transform = _sines if kind == "sine" else _cosines
    return transform(u.movedim(dim, -1)).movedim(-1, dim)


def backward(c: Tensor, dim: int, kind: str) -> Tensor:
    """The state with the coefficients c along a dimension: the inverse of :func:`forward`."""
    if c.size(dim) <= LONGEST_PRODUCT or c.numel() == 0:
        return _product(c, dim, matrix(kind, c.size(dim), c.dtype, c.device).t())
    transform = _sines if kind == "sine" else _from_cosines
    return transform(c.movedim(dim, -1)).movedim(-1, dim)


@lru_cache(maxsize=64)
def matrix(kind: str, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix of the transform: one row for each basis vector."""
    # A cached tensor must also serve training, even if made under inference_mode.
    with torch.inference_mode(False), torch.no_grad():
        i = torch.arange(n, dtype=torch.float64)
        if kind == "sine":
            rows = math.sqrt(2 / (n + 1)) * torch.sin(
                math.pi / (n + 1) * torch.outer(i + 1, i + 1).remainder(2 * n + 2))
        else:
            angle = math.pi / (2 * n) * torch.outer(i, 2 * i + 1).remainder(4 * n)
            rows = _norms(n)[:, None] * torch.cos(angle)
        return rows.to(device, dtype)


@without_autocast
def conjugated(d: Tensor, kind: str) -> Tensor:
    """The matrix S^T diag(d) S, of shape (n, n)."""
    rows = matrix(kind, d.size(0), d.dtype, d.device)
    return rows.t() @ (d[:, None] * rows)


@without_autocast
def diagonal(d: Tensor, kind: str) -> Tensor:
    """The diagonals of S^T diag(d) S for vectors d along the first axis, along the last."""
    squares = matrix(kind, d.size(0), d.dtype, d.device).square()
    found: Tensor = torch.tensordot(d, squares, dims=([0], [0]))
    return found


def _product(u: Tensor, dim: int, rows: Tensor) -> Tensor:
    if dim == -1:
        return u @ rows.t()
    return (u.movedim(dim, -1) @ rows.t()).movedim(-1, dim)


def _sines(u: Tensor) -> Tensor:
    """The DST-I along the last dimension; it is its own inverse."""
    n = u.size(-1)
    zero = u.new_zeros(*u.shape[:-1], 1)
    odd = torch.cat([zero, u, zero, -u.flip(-1)], dim=-1)
    found: Tensor = torch.fft.rfft(odd).imag[..., 1:n + 1] * (-math.sqrt(0.5 / (n + 1)))
    return found


def _cosines(u: Tensor) -> Tensor:
    """The DCT-II along the last dimension."""
    n = u.size(-1)
    doubled = torch.fft.rfft(torch.cat([u, u.flip(-1)], dim=-1))[..., :n]
    found: Tensor = (doubled * _half_shift(n, u.dtype, u.device)).real
    return found


def _from_cosines(c: Tensor) -> Tensor:
    """The inverse of the DCT-II along the last dimension."""
    n = c.size(-1)
    found: Tensor = torch.fft.irfft(c / _half_shift(n, c.dtype, c.device), 2 * n)[..., :n]
    return found


@lru_cache(maxsize=64)
def _half_shift(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The factors that move the origin of the waves by half a point and make them orthonormal."""
    with torch.inference_mode(False), torch.no_grad():
        angle = -math.pi / (2 * n) * torch.arange(n, dtype=torch.float64)
        return torch.polar(0.5 * _norms(n), angle).to(device, dtype.to_complex())


def _norms(n: int) -> Tensor:
    """The factors that make the cosines orthonormal."""
    norms = torch.full((n,), math.sqrt(2 / n), dtype=torch.float64)
    norms[0] = math.sqrt(1 / n)
    return norms
