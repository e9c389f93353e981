"""How is an operator inverted by a closed form or a factorization?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..operators import LinearOperator, LinearSolveError, Solution
from ..operators.dense import DenseInverse, check_condition
from ..operators.pointwise import Reciprocal
from ..operators.results import Entries, dense_matrix
from .base import ClosedInverse, Inverse


@dataclass(frozen=True)
class Direct:
    r"""A direct solver: a closed form or a factorization, shared with the transpose.

    If the operator has a closed-form inverse (a division, an FFT, a dense or banded LU), that is
    used. Otherwise the matrix is factorized at the first solve: by a dense LU if it has at most 64
    rows or if at least a tenth of its entries are stored, else by SciPy's sparse LU (SuperLU), on
    the CPU only. A sparse LU of a graph can have large fill-in: compare with :class:`CG` and
    :class:`GMRES`.

    Args:
        dense (bool, optional): True for a dense LU of the matrix and False for a sparse LU, even if
            the operator has a closed form; None to choose as above. (default: :obj:`None`)
    """

    dense: bool | None = None

    def invert(self, operator: LinearOperator) -> Inverse:
        """The inverse of an operator.

        Args:
            operator (LinearOperator): The operator to invert.

        Raises:
            ValueError: if the operator has no closed inverse and is not one matrix along one
                dimension. (If only its entries show that: at the first solve.)
            LinearSolveError: if the operator is singular. (With a factorization of the entries: at
                the first solve.)
        """
        with torch.no_grad():
            closed = operator.inverse() if self.dense is None else None
            d = operator.as_diagonal() if self.dense is None and closed is None else None
        if d is not None:
            closed = Reciprocal(d)
        if closed is not None:
            return ClosedInverse(operator, closed)
        if len(operator.dims) != 1:
            raise ValueError(
                f"Expected a closed inverse or an operator along one dimension for Direct (got "
                f"{operator!r} along {operator.dims}); use CG, GMRES or BiCGStab.")
        return FactoredInverse(operator, Factors(operator, self.dense))


class Factors:
    """The LU factors of an operator's matrix, computed at the first solve, when its size is known.

    Args:
        operator (LinearOperator): The operator.
        dense (bool, optional): As in :class:`Direct`. (default: :obj:`None`)
    """

    def __init__(self, operator: LinearOperator, dense: bool | None = None) -> None:
        self.operator, self.dense = operator, dense
        self._inverse: LinearOperator | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_inverse": None}  # SuperLU's factors cannot be pickled or copied

    def inverse(self, b: Tensor) -> LinearOperator:
        """The inverse operator, for a right-hand side like b."""
        if self._inverse is None:
            self._inverse = self._factorise(b)
        return self._inverse

    def _factorise(self, b: Tensor) -> LinearOperator:
        (dim,) = self.operator.dims
        size = b.size(dim)
        entries = self.operator.to_coo(dim, size)
        if entries is None:
            raise ValueError(
                f"Expected an operator that knows its entries for Direct (got {self.operator!r}: a "
                "function has none, nor has a diagonal that varies along the right-hand sides one "
                "matrix for all of them); use CG or GMRES.")
        dense = self.dense
        if dense is None:
            dense = size <= 64 or entries.value.numel() >= 0.1 * size**2
        if dense:
            return DenseInverse.of(dense_matrix(entries, size, b), dim)
        if b.device.type != "cpu":
            raise ValueError(f"Expected a state on the CPU for a sparse LU (got {b.device}); use "
                             "CG or GMRES there.")
        return SparseInverse.of(entries, size, b.dtype, dim)


class FactoredInverse(Inverse):
    """An inverse by LU factors, which it shares with its transpose.

    Args:
        operator (LinearOperator): The operator A to invert.
        factors (Factors): The factors of A, or of its transpose.
        transposed (bool): Whether they are those of the transpose. (default: :obj:`False`)
    """

    def __init__(self, operator: LinearOperator, factors: Factors,
                 transposed: bool = False) -> None:
        super().__init__(operator)
        self.factors, self.transposed = factors, transposed

    @torch.no_grad()
    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        """The solution of A x = b; the guess is ignored."""
        if b.numel() == 0:
            return Solution(torch.zeros_like(b))
        inverse = self.factors.inverse(b)
        return Solution((inverse.T if self.transposed else inverse).mv(b))

    def transpose(self) -> FactoredInverse:
        """The inverse of the transposed operator, from the same factors."""
        return FactoredInverse(self.operator.T, self.factors, not self.transposed)


class SparseInverse(LinearOperator):
    """The inverse of a sparse matrix along a dimension, by SuperLU on the host.

    Args:
        solve (callable): SciPy's solve with the factors.
        dim (int): The dimension of the state, negative.
        transposed (bool): Whether this is the inverse of the transposed matrix.
            (default: :obj:`False`)
    """

    def __init__(self, solve: Callable[..., Any], dim: int, transposed: bool = False) -> None:
        self.solve_host, self.transposed, self.dims = solve, transposed, (dim,)

    @classmethod
    def of(cls, entries: Entries, size: int, dtype: torch.dtype, dim: int) -> SparseInverse:
        """Factorizes a matrix; raises a LinearSolveError if it is singular to rounding."""
        import scipy.sparse.linalg  # only here: a slow import

        row, col, value = (part.cpu().numpy() for part in entries)
        matrix = scipy.sparse.csc_matrix(
            (value.astype(np.float64 if dtype == torch.float64 else np.float32), (row, col)),
            shape=(size, size))
        try:
            solve = scipy.sparse.linalg.splu(matrix).solve
        except RuntimeError as error:
            raise LinearSolveError(
                "I - cJ is singular to rounding: a pivot of its LU is zero. Change the step size, "
                "or keep the eigenvalues of J away from 1/c.") from error
        sums = torch.from_numpy(np.asarray(abs(matrix).sum(axis=1)).ravel().astype(matrix.dtype))
        check_condition(lambda b: torch.from_numpy(solve(b.numpy())), sums)
        return cls(solve, dim)

    def mv(self, u: Tensor) -> Tensor:
        """The solution x of A x = u."""
        moved = u.movedim(self.dims[0], 0)
        flat = moved.reshape(moved.size(0), -1).numpy()
        x = torch.from_numpy(self.solve_host(flat, trans="T" if self.transposed else "N"))
        return x.reshape(moved.shape).movedim(0, self.dims[0])

    def transpose(self) -> SparseInverse:
        """The inverse of the transposed matrix, from the same factors."""
        return SparseInverse(self.solve_host, self.dims[0], not self.transposed)
