"""How does a multiplier of sine and cosine coefficients act, and how is I - cJ inverted?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..precision import without_autocast
from . import trigonometric
from .base import LinearOperator
from .checks import check_dims, check_real, check_tensors, fixed_array
from .circulant import along_dims
from .results import Entries, LinearSolveError


class SineCosine(LinearOperator):
    r"""The operator that multiplies the sine or cosine coefficients of u by :math:`\sigma_m`.

    .. math::
        J = S^T \operatorname{diag}(\sigma)\, S, \qquad
        S^{\sin}_{m i} = \sqrt{\tfrac{2}{n + 1}} \sin \frac{\pi (m + 1)(i + 1)}{n + 1}, \quad
        S^{\cos}_{m i} = \sqrt{\tfrac{2 - \delta_{m 0}}{n}} \cos \frac{\pi m (2 i + 1)}{2 n}

    along each dimension, i and m from 0 to n - 1: the transforms DST-I and DCT-II, whose matrices
    are orthogonal. So J is symmetric and :math:`\sigma_m` are its eigenvalues. Functions of the
    Laplacian on a box with fixed values or insulated ends are of this kind:
    :class:`pyg_sinode.grid.BoxGrid` makes them.

    An array of eigenvalues is constant: it is kept in float64 on the host and applies to states of
    any dtype and device. A tensor must have the dtype and device of the state and receives
    gradients.

    Args:
        symbol (Tensor or array): The eigenvalues :math:`\sigma_m`, real, one axis per dimension.
        kind (str or tuple of str): :obj:`"sine"` or :obj:`"cosine"`, for all dimensions or each.
        dim (int or tuple of int): The dimensions of the grid in the state, negative and in
            increasing order. (default: :obj:`-1`)

    Shapes:
        - **symbol:** :math:`(n)`, :math:`(n_1, n_2)`, ..., per unit of time
        - **u:** :math:`(*, n, *)` with n at :obj:`dim`

    Raises:
        ValueError: if a kind is not one of these, or the axes do not fit the dimensions.
        TypeError: if the eigenvalues are not real.
    """

    def __init__(self, symbol: Any, kind: str | Sequence[str], *,
                 dim: int | Sequence[int] = -1) -> None:
        self.dims, self.tensors, self._fixed = check_dims("SineCosine", dim), (), None
        if not isinstance(dim, int) and tuple(dim) != self.dims:
            raise ValueError(f"Expected the dimensions of SineCosine in increasing order, such as "
                             f"(-2, -1) (got {tuple(dim)}): the axes of the symbol are in that "
                             "order.")
        self.kinds = (kind,) * len(self.dims) if isinstance(kind, str) else tuple(kind)
        if isinstance(symbol, Tensor):
            check_real(symbol, "symbol")
            self.tensors, self.sizes = (symbol,), tuple(symbol.shape)
        else:
            self._fixed = fixed_array(symbol, "symbol")
            if np.iscomplexobj(self._fixed):
                raise TypeError("Expected real numbers as the symbol of SineCosine (got complex "
                                "ones): they are the eigenvalues of a symmetric matrix.")
            self.sizes = self._fixed.shape
        if len(self.kinds) != len(self.dims) or set(self.kinds) - set(trigonometric.KINDS):
            raise ValueError(f"Expected the kind of SineCosine as sine or cosine, for all or for "
                             f"each of the dimensions {self.dims} (got {kind!r}).")
        if len(self.sizes) != len(self.dims) or 0 in self.sizes:
            raise ValueError(f"Expected a symbol of SineCosine with one axis for each of the "
                             f"dimensions {self.dims} (got {self.sizes}).")
        self._kept: dict[Any, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def mv(self, u: Tensor) -> Tensor:
        return self.multiplied(u, self._symbol(u))

    @without_autocast
    def multiplied(self, u: Tensor, symbol: Tensor) -> Tensor:
        """The state whose coefficients are those of u times the symbol."""
        transform = SineCosineTransform(self.dims, self.kinds)
        return transform.backward(transform.forward(u) * along_dims(symbol, self.dims))

    def transpose(self) -> SineCosine:
        return self

    def check(self, u: Tensor) -> None:
        check_tensors(type(self).__name__, self.tensors, u)
        sizes = tuple(u.shape[d] for d in self.dims) if u.dim() >= -self.dims[0] else None
        if sizes != self.sizes:
            raise ValueError(f"Expected a state of size {self.sizes} along dimensions {self.dims} "
                             f"for this SineCosine (got shape {tuple(u.shape)}).")

    def symmetric(self) -> bool:
        return True

    def largest_eigenvalue(self) -> float:
        return float(self.eigenvalues().max())

    def disc(self) -> tuple[float, float]:
        low, high = (float(x) for x in self.eigenvalues().aminmax())
        return (low + high) / 2, (high - low) / 2

    def size_along(self, dim: int) -> int | None:
        return self.sizes[self.dims.index(dim)] if dim in self.dims else None

    def diagonal(self, u: Tensor) -> Tensor:
        d = self.eigenvalues()
        for kind in self.kinds:  # each turn contracts the first axis and appends its points
            d = trigonometric.diagonal(d, kind)
        return along_dims(d.to(u), self.dims)

    def to_coo(self, dim: int, size: int) -> Entries | None:
        if self.dims != (dim,):
            return None
        values = trigonometric.conjugated(self.eigenvalues(), self.kinds[0])
        at = torch.arange(size, device=values.device)
        return Entries(at.repeat_interleave(size), at.repeat(size), values.reshape(-1))

    @property
    def is_uniform(self) -> bool:
        return True

    def has_closed_inverse(self) -> bool:
        return True

    def resolvent(self, c: float) -> SineCosineResolvent:
        return SineCosineResolvent(self, c)

    def diagonalized(self, like: Tensor) -> tuple[Tensor, SineCosineTransform]:
        symbol = torch.tensor(self._fixed) if self._fixed is not None else self.tensors[0].double()
        return along_dims(symbol, self.dims), SineCosineTransform(self.dims, self.kinds)

    def eigenvalues(self) -> Tensor:
        """The symbol with no gradient; of constant numbers, in float64 on the host."""
        return torch.tensor(self._fixed) if self._fixed is not None else self.tensors[0].detach()

    def _symbol(self, u: Tensor) -> Tensor:
        if self._fixed is None:
            return self.tensors[0]
        key = (u.dtype, u.device)
        if key not in self._kept:
            # A cached tensor must also serve training, even if made under inference_mode.
            with torch.inference_mode(False):
                self._kept[key] = self.eigenvalues().to(u.device, u.dtype)
        return self._kept[key]


class SineCosineTransform:
    """The sine and cosine transforms along some dimensions, which are orthogonal.

    Args:
        dims (tuple of int): The dimensions.
        kinds (tuple of str): The kind for each.
    """

    def __init__(self, dims: tuple[int, ...], kinds: tuple[str, ...]) -> None:
        self.dims, self.kinds = dims, kinds

    def forward(self, x: Tensor) -> Tensor:
        """The coefficients of a state."""
        for d, kind in zip(self.dims, self.kinds, strict=True):
            x = trigonometric.forward(x, d, kind)
        return x

    def backward(self, y: Tensor) -> Tensor:
        """The state of coefficients."""
        for d, kind in zip(self.dims, self.kinds, strict=True):
            y = trigonometric.backward(y, d, kind)
        return y

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the coefficients, that of the state."""
        return dtype

    def weight(self, like: Tensor) -> None:
        """None: all coefficients count alike in a scalar product."""
        return

    @property
    def is_redundant(self) -> bool:
        """False: there are as many coefficients as points."""
        return False


class SineCosineResolvent(LinearOperator):
    """The inverse of I - cJ for a multiplier J of sine and cosine coefficients: a division.

    Args:
        operator (SineCosine): The operator J.
        c (float): The number c.
    """

    def __init__(self, operator: SineCosine, c: float) -> None:
        self.operator, self.c, self.dims = operator, c, operator.dims
        self._kept: dict[Any, Tensor] = {}

    def mv(self, u: Tensor) -> Tensor:
        key = (u.dtype, u.device)
        if key not in self._kept:
            with torch.inference_mode(False), torch.no_grad():
                self._kept[key] = self._reciprocal(u)
        return self.operator.multiplied(u, self._kept[key])

    def _reciprocal(self, u: Tensor) -> Tensor:
        divisor = 1.0 - self.c * self.operator.eigenvalues()
        smallest = float(divisor.abs().min())
        if not smallest > 4 * torch.finfo(u.dtype).eps:
            raise LinearSolveError(
                f"I - cJ is singular to rounding: an eigenvalue is {smallest:.1e} in magnitude. "
                "Keep the eigenvalues of J away from 1/c, or change the step size.",
                residual=math.inf)
        return divisor.reciprocal().to(u.device, u.dtype)

    def transpose(self) -> SineCosineResolvent:
        return self
