"""How is a Krylov solver preconditioned so that its iterations do not grow with the graph?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..operators import LinearOperator, Solution
from ..sparse import csr_matrix
from .base import Inverse


@dataclass(frozen=True)
class Multigrid:
    r"""The algebraic multigrid preconditioner by smoothed aggregation: one V-cycle per product.

    Vaněk, Mandel and Brezina, `"Algebraic Multigrid by Smoothed Aggregation for Second and Fourth
    Order Elliptic Problems" <https://doi.org/10.1007/BF02238511>`_ (Computing 56, 1996). The
    package ``pyamg`` computes the coarse matrices on the host. The cycles run on the device of the
    state, for all right-hand sides together, with one sweep of damped Jacobi before and after each
    coarse correction, so that a cycle is symmetric and positive definite, as :class:`CG` requires.

    Use it for Poisson-like J and step sizes far above the explicit stability limit, where the
    iterations of :class:`CG` grow with the diameter of the graph. On graphs of small diameter it
    does not reduce the time.

    Args:
        max_coarse (int): The largest matrix that is inverted directly, in unknowns.
            (default: :obj:`100`)

    Raises:
        ValueError: if the operator is not symmetric along one dimension, or its entries are not
            known.
        ImportError: if ``pyamg`` is not installed.
    """

    is_approximate: ClassVar[bool] = True  # a preconditioner, not a solver

    max_coarse: int = 100

    def __post_init__(self) -> None:
        """Raises a ValueError if an argument is out of range."""
        if not isinstance(self.max_coarse, Integral) or self.max_coarse < 1:
            raise ValueError(f"Expected max_coarse from 1 up (got {self.max_coarse!r}).")

    def invert(self, operator: LinearOperator) -> MultigridInverse:
        """The operator of one V-cycle for the given operator."""
        if len(operator.dims) != 1 or not operator.symmetric():
            raise ValueError("Expected an operator that is symmetric along one dimension for "
                             f"Multigrid (got {operator!r} along {operator.dims}); use Jacobi.")
        return MultigridInverse(operator, self.max_coarse)


class MultigridInverse(Inverse):
    """One V-cycle with initial guess zero.

    Args:
        operator (LinearOperator): The symmetric operator A.
        max_coarse (int): The largest matrix that is inverted directly, in unknowns.
    """

    def __init__(self, operator: LinearOperator, max_coarse: int) -> None:
        super().__init__(operator)
        self.max_coarse = max_coarse
        self._levels: dict[object, list[_Level]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_levels": {}}

    @torch.no_grad()
    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        """One V-cycle for A x = b; the guess is ignored."""
        (dim,) = self.dims
        key = b.size(dim), b.dtype, b.device
        if b.numel() == 0:
            return Solution(torch.zeros_like(b))
        levels = self._levels.get(key)  # read once: another thread may replace it
        if levels is None:
            levels = _hierarchy(self.operator, b, dim, self.max_coarse)
            self._levels = {key: levels}
        moved = b.movedim(dim, 0)
        flat = moved.reshape(moved.size(0), math.prod(moved.shape[1:])).contiguous()
        x = _cycle(levels, 0, flat)
        return Solution(x.view(moved.shape).movedim(0, dim))

    def transpose(self) -> MultigridInverse:
        """This cycle itself, since it is symmetric."""
        return self


class _Level(NamedTuple):
    """A level: the matrix, its smoother, prolongation and restriction; or the coarsest's inverse.
    """

    A: Tensor
    damped: Tensor | None = None  # omega / diagonal
    P: Tensor | None = None
    R: Tensor | None = None


def _cycle(levels: list[_Level], at: int, b: Tensor) -> Tensor:
    A, damped, P, R = levels[at]
    if damped is None or P is None or R is None:
        return A @ b
    x = damped * b
    x += P @ _cycle(levels, at + 1, R @ (b - A @ x))
    return x.addcmul_(damped, b - A @ x)


def _hierarchy(operator: LinearOperator, b: Tensor, dim: int, max_coarse: int) -> list[_Level]:
    import scipy.sparse  # only here: a slow import

    try:
        import pyamg
    except ImportError as error:
        raise ImportError("Expected pyamg for Multigrid (it is not installed); "
                          "pip install 'pyg_sinode[amg]'.") from error
    size = b.size(dim)
    entries = operator.to_coo(dim, size)
    if entries is None:
        raise ValueError(f"Expected an operator that knows its entries for Multigrid (got "
                         f"{operator!r}); use Jacobi.")
    row, col, value = (part.cpu().numpy() for part in entries)
    matrix = scipy.sparse.csr_matrix((value.astype(np.float64), (row, col)), shape=(size, size))
    if not (matrix.diagonal() > 0).all():
        raise ValueError(f"Expected a positive diagonal for Multigrid (got one of at least "
                         f"{matrix.diagonal().min():.1e}): a positive definite matrix has one; use "
                         "GMRES without it.")
    matrix.eliminate_zeros()
    if matrix.nnz == size:  # a diagonal matrix, which has nothing to aggregate
        return [_Level(_tensor(scipy.sparse.diags(1.0 / matrix.diagonal()), b))]
    # pyamg draws random vectors to bound eigenvalues; a fixed seed makes the cycles reproducible.
    state = np.random.get_state()
    np.random.seed(0)
    try:
        found = pyamg.smoothed_aggregation_solver(matrix, symmetry="symmetric",
                                                  max_coarse=max_coarse).levels
    finally:
        np.random.set_state(state)
    levels = [_level(each, b) for each in found[:-1]]
    coarse = torch.from_numpy(found[-1].A.toarray()).to(b)
    return [*levels, _Level(torch.linalg.pinv(coarse, hermitian=True))]


def _level(level: Any, like: Tensor) -> _Level:
    A = level.A.tocsr()
    diagonal = A.diagonal()
    # The Gershgorin bound on the eigenvalues of D^-1 A; 4/3 of its inverse damps the oscillating
    # modes and keeps the eigenvalues below 2, so that the cycle is positive definite.
    bound = float((np.asarray(abs(A).sum(axis=1)).ravel() / np.abs(diagonal)).max())
    damped = torch.from_numpy(4.0 / (3.0 * bound) / diagonal).to(like).unsqueeze(1)
    return _Level(_tensor(A, like), damped, _tensor(level.P, like), _tensor(level.P.T, like))


def _tensor(matrix: Any, like: Tensor) -> Tensor:
    own = matrix.tocsr()
    pointer, col = (torch.from_numpy(x.astype(np.int32)).to(like.device)
                    for x in (own.indptr, own.indices))
    return csr_matrix(pointer, col, torch.from_numpy(own.data).to(like), own.shape)
