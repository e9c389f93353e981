"""What does a solve give back, what are a matrix's entries, and how does a solve fail?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class SolveError(RuntimeError):
    """A system that could not be solved to its tolerance.

    Attributes:
        iterations (int): Iterations made, dimensionless.
        residual (float): Largest residual of the best state.
        state (Tensor or None): Best state found.
        time (float or None): Time at the start of the step, set by the integrator.
        step (int or None): Number of the step, set by the integrator.
    """

    def __init__(self, message: str, *, iterations: int = 0, residual: float = math.nan,
                 state: Tensor | None = None) -> None:
        super().__init__(message)
        self.iterations, self.residual, self.state = iterations, residual, state
        self.time: float | None = None
        self.step: int | None = None


class LinearSolveError(SolveError):
    r"""A linear system that could not be solved: its residual is that of the worst column,
    :math:`\Vert b - Ax \Vert`.
    """


class Entries(NamedTuple):
    """A matrix as coordinates; duplicates add up."""

    row: Tensor
    col: Tensor
    value: Tensor


def dense_matrix(entries: Entries, size: int, like: Tensor) -> Tensor:
    """The entries as a dense matrix, in the dtype and on the device of a tensor."""
    matrix = like.new_zeros(size, size)
    place = (entries.row.to(like.device), entries.col.to(like.device))
    return matrix.index_put_(place, entries.value.to(like), accumulate=True)


def equals_transpose(entries: Entries, size: int) -> bool:
    """Whether a square matrix equals its transpose to rounding, duplicate entries added up."""
    row, col, value = entries
    eps = 8 * torch.finfo(value.dtype).eps
    a, b = (torch.sparse_coo_tensor(torch.stack(at), value, (size, size),
                                    check_invariants=True).coalesce()
            for at in ((row, col), (col, row)))
    # Weights such as 1/sqrt(d_i d_j) are multiplied in another order on the two sides.
    return torch.equal(a.indices(), b.indices()) and torch.allclose(
        a.values(), b.values(), rtol=eps, atol=0.0)


class Solution(NamedTuple):
    """What a solve gives: x, and per column the iterations and the true residual's norm.

    A closed inverse leaves both None.
    """

    x: Tensor
    iterations: Tensor | None = None
    residual: Tensor | None = None
