"""How does a dense matrix act along a dimension of the state, and how is I - cJ factorized?"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .base import LinearOperator
from .checks import along, check_dim, check_real, check_size, check_tensors
from .flat import multiply
from .results import Entries, LinearSolveError


class Dense(LinearOperator):
    r"""A dense matrix along one dimension, :math:`(J u)_i = \sum_j M_{ij} u_j`.

    :math:`I - cJ` is inverted by an LU factorization, computed once for all right-hand sides.

    Args:
        matrix (Tensor): The square matrix M; receives gradients.
        dim (int): The dimension of the state that it multiplies, negative. (default: :obj:`-1`)

    Shapes:
        - **matrix:** :math:`(n, n)`, per unit of time
        - **u:** :math:`(*, n, *)` with n at :obj:`dim`

    Raises:
        ValueError: if the matrix is not square.
        TypeError: if it is not of a real floating dtype.
    """

    def __init__(self, matrix: Tensor, *, dim: int = -1) -> None:
        check_real(matrix, "matrix")
        if matrix.dim() != 2 or matrix.size(0) != matrix.size(1):
            raise ValueError(f"Expected a square matrix (got shape {tuple(matrix.shape)}).")
        self.dims, self.tensors = check_dim("Dense", dim), (matrix,)

    def mv(self, u: Tensor) -> Tensor:
        return multiply(self.tensors[0], u, self.dims[0])

    def transpose(self) -> Dense:
        return Dense(self.tensors[0].t(), dim=self.dims[0])

    def check(self, u: Tensor) -> None:
        check_tensors(type(self).__name__, self.tensors, u)
        check_size("Dense", u, self.dims[0], self.tensors[0].size(0))

    def symmetric(self) -> bool:
        matrix = self.tensors[0].detach()
        return torch.equal(matrix, matrix.t())

    def gershgorin(self) -> tuple[Tensor, Tensor]:
        matrix = self.tensors[0].detach()
        d = matrix.diagonal()
        others = matrix.abs().fill_diagonal_(0.0).sum(dim=1)
        return along(d, self.dims[0]), along(others, self.dims[0])

    def size_along(self, dim: int) -> int | None:
        return self.tensors[0].size(0) if dim == self.dims[0] else None

    def diagonal(self, u: Tensor) -> Tensor:
        return along(self.tensors[0].detach().diagonal(), self.dims[0])

    def to_coo(self, dim: int, size: int) -> Entries | None:
        matrix = self.tensors[0].detach()
        if dim != self.dims[0]:
            return None
        at = torch.arange(size, device=matrix.device)
        return Entries(at.repeat_interleave(size), at.repeat(size), matrix.reshape(-1))

    def matrix(self) -> Tensor:
        return self.tensors[0]

    @property
    def is_uniform(self) -> bool:
        return True

    def has_closed_inverse(self) -> bool:
        return True

    def resolvent(self, c: float) -> LinearOperator:
        matrix = self.tensors[0].detach()
        identity = torch.eye(matrix.size(0), dtype=matrix.dtype, device=matrix.device)
        return DenseInverse.of(identity - c * matrix, self.dims[0])


class DenseInverse(LinearOperator):
    """The inverse of a dense matrix along a dimension, from its LU factors.

    Args:
        lu, pivots (Tensor): The factors, as of :func:`torch.linalg.lu_factor`.
        dim (int): The dimension of the state, negative.
        transposed (bool): Whether this is the inverse of the transposed matrix.
            (default: :obj:`False`)
    """

    def __init__(self, lu: Tensor, pivots: Tensor, dim: int, transposed: bool = False) -> None:
        self.lu, self.pivots, self.transposed, self.dims = lu, pivots, transposed, (dim,)

    @classmethod
    def of(cls, matrix: Tensor, dim: int) -> DenseInverse:
        """Factorizes a matrix; raises a LinearSolveError if it is singular to rounding."""
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        check_condition(lambda b: torch.linalg.lu_solve(lu, pivots, b), matrix.abs().sum(dim=1))
        return cls(lu, pivots, dim)

    def mv(self, u: Tensor) -> Tensor:
        moved = u.movedim(self.dims[0], 0)
        flat = moved.reshape(moved.size(0), math.prod(moved.shape[1:]))
        x: Tensor = torch.linalg.lu_solve(self.lu, self.pivots, flat, adjoint=self.transposed)
        return x.view(moved.shape).movedim(0, self.dims[0])

    def transpose(self) -> DenseInverse:
        return DenseInverse(self.lu, self.pivots, self.dims[0], not self.transposed)


def check_condition(solve: Callable[[Tensor], Tensor], row_sums: Tensor) -> None:
    """Raises a LinearSolveError if a matrix is singular to rounding.

    Solves with random right-hand sides estimate the condition number of the row-equilibrated
    matrix. The pivots of the LU are no measure: those of a stiff matrix differ by any factor, and
    rounding keeps those of a singular one away from zero.

    Args:
        solve (callable): Maps right-hand sides, as columns, to the solutions.
        row_sums (Tensor): The sum of magnitudes in each row of the matrix, or of each matrix.
    """
    if row_sums.numel() == 0:
        return
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(row_sums.size(-1), 4, dtype=row_sums.dtype, generator=generator,
                         device="cpu")
    scaled = row_sums.unsqueeze(-1) * probes.to(row_sums.device)
    # A pivot of zero gives NaN.
    condition = float(solve(scaled).abs().nan_to_num(math.inf, math.inf).max())
    if not condition * torch.finfo(row_sums.dtype).eps < 0.03:
        raise LinearSolveError(
            f"I - cJ is singular to rounding: its condition is {condition:.1e} or more. Change "
            "the step size, keep the eigenvalues of J away from 1/c, or use float64.",
            residual=math.inf)
