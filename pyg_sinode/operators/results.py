"""What does a linear solve return, how are matrix entries stored, and how does a solve fail?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class SolveError(RuntimeError):
    """Base class of the errors of systems that were not solved to their tolerance.

    Args:
        message (str): The message.
        iterations, residual, state: As the attributes.

    Attributes:
        iterations (int): Number of iterations made. (default: :obj:`0`)
        residual (float): Largest residual of :attr:`state`. (default: NaN)
        state (Tensor or None): The best approximate solution. (default: :obj:`None`)
        time (float or None): Time at the start of the step, set by the integrator.
        step (int or None): Number of the step, from 0, set by the integrator.
    """

    def __init__(self, message: str, *, iterations: int = 0, residual: float = math.nan,
                 state: Tensor | None = None) -> None:
        super().__init__(message)
        self.iterations, self.residual, self.state = iterations, residual, state
        self.time: float | None = None
        self.step: int | None = None


class LinearSolveError(SolveError):
    r"""A linear system was not solved to its tolerance.

    :attr:`residual` is the largest norm :math:`\Vert b - Ax \Vert_2` of a column. The other
    attributes are :attr:`iterations`, :attr:`state` (the best solution), :attr:`time` (at the start
    of the step) and :attr:`step` (its number, from 0).
    """


class Entries(NamedTuple):
    """A sparse matrix in coordinate format; duplicate entries add up.

    Args:
        row, col (Tensor): The row and the column of each entry, integers.
        value (Tensor): The value of each entry.
    """

    row: Tensor
    col: Tensor
    value: Tensor


def dense_matrix(entries: Entries, size: int, like: Tensor) -> Tensor:
    """The entries as a dense matrix, in the dtype and on the device of ``like``."""
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
    # Weights such as 1/sqrt(d_i d_j) are rounded differently on the two sides.
    return torch.equal(a.indices(), b.indices()) and torch.allclose(
        a.values(), b.values(), rtol=eps, atol=0.0)


class Solution(NamedTuple):
    """The result of a linear solve A x = b.

    Args:
        x (Tensor): The solution.
        iterations (Tensor or None): The number of iterations of each column; None if the inverse is
            closed.
        residual (Tensor or None): The norm of each column's true residual b - A x; None likewise.
    """

    x: Tensor
    iterations: Tensor | None = None
    residual: Tensor | None = None
