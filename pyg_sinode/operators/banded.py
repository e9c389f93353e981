"""How does a banded matrix act along a dimension of the state, and how is I - cJ factorized?"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cache
from operator import index
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .base import LinearOperator
from .by_transpose import product
from .checks import along, check_dim, check_real, check_size, check_tensors
from .dense import DenseInverse, check_condition
from .results import Entries

LAPACK = {torch.float32: "float32", torch.float64: "float64"}  # its names of the precisions


@cache
def lapack(dtype: torch.dtype) -> tuple[Any, Any]:
    """LAPACK's banded LU factorization and the solve with its factors."""
    from scipy.linalg.lapack import get_lapack_funcs  # takes longer than the rest of the package

    factorise, solve = get_lapack_funcs(("gbtrf", "gbtrs"), dtype=np.dtype(LAPACK[dtype]))
    return factorise, solve


class Banded(LinearOperator):
    r"""A banded matrix along one dimension, such as a finite-difference operator on an interval.

    .. math::
        (J u)_i = \sum_{m:\, 0 \le i + o_m < n} d_{mi} \, u_{i + o_m}

    The diagonals are indexed by row: :math:`M_{i, i + o_m} = d_{mi}`, so that column i of
    :obj:`diagonals` holds the entries of matrix row i. (``scipy.sparse.dia_matrix`` indexes them by
    column instead.) Entries whose matrix column would lie outside the matrix are ignored and have
    a gradient of zero, but must be finite.

    :math:`I - cJ` is inverted by LAPACK's banded LU factorization with partial pivoting, computed
    once for all right-hand sides; on a device other than the CPU, by a dense LU factorization.

    The heat equation with u = 0 at both ends, on n points that exclude the ends, and with no flux
    through the ends, on the midpoints of n cells:

    .. code-block:: python

        stencil = torch.tensor([[1.0], [-2.0], [1.0]])
        dirichlet = Banded(stencil.repeat(1, n) * (n + 1) ** 2, (-1, 0, 1))
        diagonals = stencil.repeat(1, n)
        diagonals[1, 0] = diagonals[1, -1] = -1.0
        neumann = Banded(diagonals * n**2, (-1, 0, 1))

    Args:
        diagonals (Tensor): The diagonals d, one per row; receives gradients.
        offsets (sequence of int): The offset o of each diagonal, positive above the main one.
        dim (int): The dimension of the state that the matrix multiplies, negative.
            (default: :obj:`-1`)

    Shapes:
        - **diagonals:** :math:`(k, n)`, per unit of time
        - **offsets:** :math:`(k)`, distinct, each smaller than n in magnitude
        - **u:** :math:`(*, n, *)` with n at :obj:`dim`

    Raises:
        ValueError: if the diagonals do not have two dimensions, or the offsets do not fit them.
        TypeError: if the diagonals are not of a real floating dtype, or an offset is not an int.
    """

    def __init__(self, diagonals: Tensor, offsets: Sequence[int], *, dim: int = -1) -> None:
        check_real(diagonals, "diagonals")
        if diagonals.dim() != 2 or diagonals.size(0) == 0:
            raise ValueError(f"Expected diagonals of shape (k, n), one row for each offset, in "
                             f"Banded (got shape {tuple(diagonals.shape)}); stack them, each as "
                             "long as the matrix.")
        self.dims, self.tensors = check_dim("Banded", dim), (diagonals,)
        self.offsets = _check_offsets(offsets, *diagonals.shape)
        self.by_column = False  # True in the transpose, which shares the diagonals

    def mv(self, u: Tensor) -> Tensor:
        (dim,), diagonals = self.dims, self.tensors[0]
        check_size("Banded", u, dim, diagonals.size(1))  # a length of 1 would broadcast
        rows = list(diagonals.unbind())
        if self.by_column:
            rows = [d[m] for m, d in enumerate(_shifted(diagonals, self.offsets, -1))]
        terms = zip(rows, _shifted(u, self.offsets, dim), strict=True)
        d, v = next(terms)
        total = along(d, dim) * v
        for d, v in terms:
            total = torch.addcmul(total, along(d, dim), v)
        return total

    def vjp(self, u: Tensor, w: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        if not any(wanted):
            return [None]
        (dim,), n = self.dims, self.tensors[0].size(1)
        u, w, offsets = u.detach(), w.detach(), self.offsets
        if self.by_column:  # <w, J u> = <J^T w, u>, and J^T is indexed by row
            u, w, offsets = w, u, tuple(-o for o in offsets)
        column = (n, *[1] * (-dim - 1))
        return [torch.stack([(w * v).sum_to_size(column).view(n)
                             for v in _shifted(u, offsets, dim)])]

    def transpose(self) -> Banded:
        other = copy.copy(self)
        other.offsets, other.by_column = tuple(-o for o in self.offsets), not self.by_column
        return other

    def check(self, u: Tensor) -> None:
        check_tensors(type(self).__name__, self.tensors, u)
        check_size("Banded", u, self.dims[0], self.tensors[0].size(1))

    def _inside(self) -> list[tuple[int, Tensor]]:
        """Each offset with the entries of its diagonal that lie inside the matrix."""
        diagonals = self.tensors[0].detach()
        n = diagonals.size(1)
        return [(o, d.narrow(0, max(0, o if self.by_column else -o), n - abs(o)))
                for o, d in zip(self.offsets, diagonals.unbind(), strict=True)]

    def symmetric(self) -> bool:
        inside = dict(self._inside())
        return all(torch.equal(d, inside[-o]) if -o in inside else not bool(d.any())
                   for o, d in inside.items())

    def gershgorin(self) -> tuple[Tensor, Tensor]:
        n, others = self.tensors[0].size(1), {o: d.abs() for o, d in self._inside() if o}
        zero = self.tensors[0].new_zeros(n)
        sums = _row_sums(others, n) if others else zero
        return self.diagonal(zero), along(sums, self.dims[0])

    def size_along(self, dim: int) -> int | None:
        return self.tensors[0].size(1) if dim == self.dims[0] else None

    def diagonal(self, u: Tensor) -> Tensor:
        diagonals = self.tensors[0].detach()
        main = dict(self._inside()).get(0, diagonals.new_zeros(diagonals.size(1)))
        return along(main, self.dims[0])

    def to_coo(self, dim: int, size: int) -> Entries | None:
        if dim != self.dims[0]:
            return None
        inside, at = self._inside(), torch.arange(size, device=self.tensors[0].device)
        return Entries(torch.cat([at.narrow(0, max(0, -o), d.numel()) for o, d in inside]),
                       torch.cat([at.narrow(0, max(0, o), d.numel()) for o, d in inside]),
                       torch.cat([d for _, d in inside]))

    @property
    def is_uniform(self) -> bool:
        return True

    def has_closed_inverse(self) -> bool:
        return True

    def resolvent(self, c: float) -> LinearOperator:
        diagonals = self.tensors[0].detach()
        n = diagonals.size(1)
        parts = {o: -c * d for o, d in self._inside()}
        parts[0] = parts.get(0, diagonals.new_zeros(n)) + 1.0
        if n > 0 and diagonals.device.type == "cpu" and diagonals.dtype in LAPACK:
            return BandedInverse.of(parts, n, self.dims[0])
        matrix = diagonals.new_zeros(n, n)
        for o, d in parts.items():
            matrix.diagonal(o).copy_(d)
        return DenseInverse.of(matrix, self.dims[0])


class BandedInverse(LinearOperator):
    """The inverse of a banded matrix along a dimension, from LAPACK's LU factors.

    Args:
        lu (numpy.ndarray): The factors in LAPACK's band storage.
        pivots (numpy.ndarray): The pivot indices.
        bandwidth (tuple of int): The number of diagonals below and above the main one.
        dim (int): The dimension of the state, negative.
        transposed (bool): Whether this is the inverse of the transposed matrix.
            (default: :obj:`False`)
    """

    def __init__(self, lu: Any, pivots: Any, bandwidth: tuple[int, int], dim: int,
                 transposed: bool = False) -> None:
        self.lu, self.pivots, self.bandwidth = lu, pivots, bandwidth
        self.transposed, self.dims = transposed, (dim,)

    @classmethod
    def of(cls, parts: dict[int, Tensor], n: int, dim: int) -> BandedInverse:
        """Factorizes a matrix.

        Args:
            parts (dict): The entries of each diagonal inside the matrix, by its offset.
            n (int): The size of the matrix.
            dim (int): The dimension of the state, negative.

        Raises:
            LinearSolveError: if the matrix is singular to rounding.
        """
        # Entry (i, j) is in row below + above + i - j of column j; the first rows are for the
        # fill-in of pivoting.
        below, above = _bandwidth(parts)
        band = parts[0].new_zeros(n, 2 * below + above + 1).t()
        for o, d in parts.items():
            band[below + above - o].narrow(0, max(0, o), d.numel()).copy_(d)
        factorise, _ = lapack(band.dtype)
        lu, pivots, _ = factorise(band.numpy(), below, above, overwrite_ab=True)
        inverse = cls(lu, pivots, (below, above), dim)
        sums = _row_sums({o: d.abs() for o, d in parts.items()}, n)
        check_condition(lambda b: inverse._solve(b.t()).t(), sums)
        return inverse

    def mv(self, u: Tensor) -> Tensor:
        # LAPACK would silently use the first n entries of a longer right-hand side.
        check_size("the inverse of Banded", u, self.dims[0], self.lu.shape[1])
        return product(self, u, self._product)

    def _product(self, u: Tensor) -> Tensor:
        if u.numel() == 0:
            return torch.zeros_like(u)
        moved = u.detach().movedim(self.dims[0], -1)
        x = self._solve(moved.reshape(-1, moved.size(-1)))
        return x.view(moved.shape).movedim(-1, self.dims[0])

    def _solve(self, b: Tensor) -> Tensor:
        """The solutions for the rows of b."""
        _, solve = lapack(b.dtype)
        x, _ = solve(self.lu, *self.bandwidth, b.numpy().T, self.pivots, trans=int(self.transposed))
        return torch.from_numpy(x.T)

    def transpose(self) -> BandedInverse:
        return BandedInverse(self.lu, self.pivots, self.bandwidth, self.dims[0],
                             not self.transposed)


def _check_offsets(offsets: Sequence[int], k: int, n: int) -> tuple[int, ...]:
    try:
        result = tuple(index(o) for o in offsets)
    except TypeError as error:
        raise TypeError(f"Expected the offsets of Banded as a sequence of integers (got "
                        f"{offsets!r}); give one for each diagonal, 0 for the main one.") from error
    if len(result) != k:
        raise ValueError(f"Expected {k} offsets, one for each row of the diagonals (got "
                         f"{len(result)}: {result}); give as many of one as of the other.")
    if len(set(result)) != k:
        raise ValueError(f"Expected distinct offsets in Banded (got {result}); add up the "
                         "diagonals that share one.")
    if any(abs(o) > max(n - 1, 0) for o in result):
        raise ValueError(f"Expected offsets of Banded smaller in magnitude than the size {n} of "
                         f"the matrix (got {result}); leave out the diagonals outside it.")
    return result


def _bandwidth(offsets: Iterable[int]) -> tuple[int, int]:
    """The number of diagonals below and above the main one."""
    offsets = tuple(offsets)
    return max(0, -min(offsets)), max(0, *offsets)


def _shifted(x: Tensor, offsets: Sequence[int], dim: int) -> list[Tensor]:
    """For each offset o the entries x_{i + o} along a dimension, zero outside."""
    if x.numel() == 0:  # which F.pad refuses in torch 2.4
        return [x] * len(offsets)
    below, above = _bandwidth(offsets)
    wide = F.pad(x, [0, 0] * (-dim - 1) + [below, above])
    return [wide.narrow(dim, below + o, x.size(dim)) for o in offsets]


def _row_sums(parts: dict[int, Tensor], n: int) -> Tensor:
    """The row sums of the matrix with these diagonals, given by offset."""
    total = next(iter(parts.values())).new_zeros(n)
    for o, d in parts.items():
        total.narrow(0, max(0, -o), d.numel()).add_(d)
    return total
