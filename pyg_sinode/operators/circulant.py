"""How does a stencil or a Fourier multiplier act on a periodic grid, and how is I - cJ inverted?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import LinearOperator
from .checks import check_dims, check_real, check_tensors, fixed_array
from .results import Entries, LinearSolveError


class Circulant(LinearOperator):
    r"""A stencil on a periodic grid of one to three dimensions, or a Fourier multiplier.

    .. math::
        (J u)_i = \sum_o s_o\, u_{i + o}, \qquad
        \widehat{(J u)}_k = \sigma_k\, \hat u_k, \quad
        \sigma_k = \sum_o s_o\, e^{2 \pi \mathrm{i}\, k o / n}

    The product and the inverse of :math:`I - cJ` are computed by real fast Fourier transforms. An
    array or a list of coefficients is constant: it is kept in float64 on the host and applies to
    states of any dtype and device, so that the derivative of a constant is exactly zero in float32
    too. A tensor of coefficients must have the dtype and device of the state and receives
    gradients.

    Args:
        stencil (Tensor or array): The coefficients :math:`s_o` for the offsets o = -r to r, one
            axis per dimension, each of odd width; the middle one multiplies the point itself.
        dim (int or tuple of int): The dimensions of the grid in the state, negative and in
            increasing order. (default: :obj:`-1`)
        size (int or tuple of int, optional): The number of grid points along each dimension, to
            which states are then restricted; any if None. (default: :obj:`None`)

    Shapes:
        - **stencil:** :math:`(2r + 1)`, :math:`(2r_1 + 1, 2r_2 + 1)`, ..., per unit of time
        - **u:** :math:`(*, n, *)` with n at :obj:`dim`, at least as many points as the stencil

    Raises:
        ValueError: if a width is even, a coefficient is not finite, or the number of axes is not
            the number of dimensions.
        TypeError: if the coefficients are not real.
    """

    def __init__(self, stencil: Any, *, dim: int | Sequence[int] = -1,
                 size: int | Sequence[int] | None = None) -> None:
        self.dims, self.tensors, self._fixed = check_axes(dim), (), None
        if isinstance(stencil, Tensor):
            check_real(stencil, "stencil")
            self.tensors = (stencil,)
        else:
            self._fixed = fixed_array(stencil, "stencil")
            if np.iscomplexobj(self._fixed):
                raise TypeError("Expected a real stencil (got complex numbers); a multiplier in "
                                "Fourier space goes to Circulant.from_symbol.")
        shape = tuple(np.shape(self._fixed) if self._fixed is not None else stencil.shape)
        self._check_rank(shape, "stencil")
        if any(width % 2 == 0 for width in shape):
            raise ValueError(f"Expected a stencil of odd width, with the point itself in its middle"
                             f" (got shape {shape}); pad it with a zero.")
        self.width: tuple[int, ...] | None = shape
        self.sizes: tuple[int, ...] | None = None
        if size is not None:
            self.sizes = (size,) if isinstance(size, int) else tuple(size)
            self._check_rank(self.sizes, "size")
            _check_width(self.sizes, shape)
        self._start()

    @classmethod
    def from_symbol(cls, symbol: Any, *, dim: int | Sequence[int] = -1) -> Circulant:
        r"""The operator that multiplies the Fourier coefficients of u by :math:`\sigma_k`.

        Args:
            symbol (Tensor or array): The multipliers :math:`\sigma_k`, real or complex, in the
                order of :func:`numpy.fft.fftfreq`, one axis per dimension.
            dim (int or tuple of int): As for a stencil. (default: :obj:`-1`)

        Raises:
            ValueError: if :math:`\sigma_{-k}` is not the conjugate of :math:`\sigma_k`: the product
                with a real state would not be real.
        """
        self = cls.__new__(cls)
        self.dims, self.tensors, self._fixed = check_axes(dim), (), None
        self.width = None
        if isinstance(symbol, Tensor):
            check_real(symbol.real, "symbol")
            self.sizes = tuple(symbol.shape)
            self._check_rank(self.sizes, "symbol")
            _check_hermitian(symbol.detach().cpu().numpy(), torch.finfo(symbol.dtype).eps)
            # The average over both halves stays conjugate-symmetric in training.
            mean = ((symbol + mirrored(symbol).conj()) / 2)[..., : self.sizes[-1] // 2 + 1]
            self.tensors = (mean.real, mean.imag) if symbol.is_complex() else (mean,)
        else:
            self._fixed = fixed_array(symbol, "symbol")
            self.sizes = self._fixed.shape
            self._check_rank(self.sizes, "symbol")
            _check_hermitian(self._fixed, float(np.finfo(float).eps))
        self._start()
        return self

    def _check_rank(self, shape: tuple[int, ...], name: str) -> None:
        if len(shape) != len(self.dims) or 0 in shape:
            raise ValueError(f"Expected a {name} with one axis for each of the dimensions "
                             f"{self.dims} (got {shape}).")

    def _start(self) -> None:
        self.transposed = False
        self._kept: dict[Any, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def mv(self, u: Tensor) -> Tensor:
        return multiply(u, self.symbol(u), self.dims)

    def transpose(self) -> Circulant:
        other = self.with_tensors(self.tensors)
        other.transposed = not self.transposed
        other._kept = self._kept  # symbols of J itself, for both
        return other

    def check(self, u: Tensor) -> None:
        check_tensors(type(self).__name__, self.tensors, u)
        sizes = tuple(u.shape[d] for d in self.dims) if u.dim() >= -self.dims[0] else None
        if self.sizes is not None and sizes != self.sizes:
            raise ValueError(f"Expected a state of size {self.sizes} along dimensions {self.dims} "
                             f"for this Circulant (got shape {tuple(u.shape)}).")
        if sizes is None:
            raise ValueError(f"Expected a state with the dimensions {self.dims} of this Circulant "
                             f"(got shape {tuple(u.shape)}).")
        if self.width is not None:
            _check_width(sizes, self.width)

    def symmetric(self) -> bool:
        values = self._values()
        if self.width is None:
            return not np.iscomplexobj(values) or not values.imag.any()
        return bool((values == np.flip(values)).all())

    def largest_eigenvalue(self) -> float:
        if self.width is None:
            return float(self._values().real.max())
        return super().largest_eigenvalue()

    def gershgorin(self) -> tuple[float, float] | None:
        if self.width is None:  # the kernel of a symbol is as large as the grid
            return None
        values = self._values()
        middle = float(values[tuple(w // 2 for w in self.width)])
        return middle, float(np.abs(values).sum()) - abs(middle)

    def size_along(self, dim: int) -> int | None:
        return dict(zip(self.dims, self.sizes or (), strict=False)).get(dim)

    def diagonal(self, u: Tensor) -> Tensor:
        return self._kernel(u)[(0,) * len(self.dims)]

    def to_coo(self, dim: int, size: int) -> Entries | None:
        if self.dims != (dim,):
            return None
        like = self.tensors[0] if self.tensors else torch.zeros((), dtype=torch.float64)
        at = torch.arange(size, device=like.device)
        if self.width is not None:
            values = like.new_tensor(self._values()) if not self.tensors else self.tensors[0]
            values = values.detach().flip(0) if self.transposed else values.detach()
            offsets = torch.arange(len(values), device=like.device) - len(values) // 2
        else:
            offsets, values = at, self._kernel(like.new_zeros([size] + [1] * (-dim - 1)))
        row, offset = at.repeat_interleave(len(offsets)), offsets.repeat(size)
        return Entries(row, (row + offset) % size, values.repeat(size))

    @property
    def is_uniform(self) -> bool:
        return True

    def has_closed_inverse(self) -> bool:
        return True

    def resolvent(self, c: float) -> Resolvent:
        return Resolvent(self, c)

    def is_convolution(self) -> bool:
        return True

    def spectrum(self, sizes: dict[int, int]) -> Tensor:
        own = tuple(sizes[d] for d in self.dims)
        full = _unfolded(self.half(own), own)
        return along_dims(full.conj() if self.transposed else full, self.dims)

    def resolvent_of(self, whole: LinearOperator, c: float) -> Resolvent:
        return Resolvent(_Whole(whole), c)

    def _values(self) -> Any:
        """The stencil, or the stored half of the symbol, as an array on the host."""
        if self._fixed is not None:
            return self._fixed
        parts = [t.detach().cpu().double().numpy() for t in self.tensors]
        return parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1]

    def half(self, sizes: tuple[int, ...]) -> Tensor:
        """The symbol of J (not transposed) at the frequencies that a real transform stores.

        Args:
            sizes (tuple of int): The number of grid points along each dimension.

        Returns:
            The symbol; of constant coefficients, in float64 on the host.
        """
        if self._fixed is None:
            return self._tensor_symbol(sizes)
        full = self._fixed if self.width is None else self._stencil_symbol(sizes)
        return torch.tensor(full[..., : sizes[-1] // 2 + 1])

    def symbol(self, u: Tensor) -> Tensor:
        """The symbol, shaped to multiply the real Fourier transform of u."""
        sizes = tuple(u.shape[d] for d in self.dims)
        if self._fixed is None:
            symbol = self.half(sizes)
        else:
            key = (sizes, u.dtype, u.device)
            if key not in self._kept:
                # A cached tensor must also serve training, even if made under inference_mode.
                with torch.inference_mode(False):
                    self._kept[key] = _like(self.half(sizes), u)
            symbol = self._kept[key]
        return along_dims(symbol.conj() if self.transposed else symbol, self.dims)

    def _stencil_symbol(self, sizes: tuple[int, ...]) -> Any:
        """The symbol of a fixed stencil, in float64."""
        assert self._fixed is not None
        assert self.width is not None
        kernel = np.zeros(sizes)
        kernel[tuple(slice(w) for w in self.width)] = self._fixed
        kernel = np.roll(kernel, [-(w // 2) for w in self.width], range(len(sizes)))
        full = np.fft.fftn(kernel).conj()
        # The coefficients of a derivative sum to zero up to rounding: make that exact.
        if abs(self._fixed.sum()) <= 4 * np.finfo(float).eps * np.abs(self._fixed).sum():
            full[(0,) * len(sizes)] = 0.0
        return full.real if self.symmetric() else full

    def _tensor_symbol(self, sizes: tuple[int, ...]) -> Tensor:
        if self.width is None:
            half = self.tensors
            return half[0] if len(half) == 1 else torch.complex(half[0], half[1])
        (stencil,) = self.tensors
        padding = [p for n, w in zip(reversed(sizes), reversed(self.width), strict=True)
                   for p in (0, n - w)]
        kernel = torch.nn.functional.pad(stencil, padding)
        kernel = kernel.roll([-(w // 2) for w in self.width], tuple(range(len(sizes))))
        symbol: Tensor = torch.fft.rfftn(kernel).conj()
        return symbol

    def _kernel(self, u: Tensor) -> Tensor:
        """The coefficients of the offsets 0, 1, ..., -1 on the whole grid."""
        sizes = [u.shape[d] for d in self.dims]
        with torch.no_grad():
            symbol = self.symbol(u).squeeze().reshape([*sizes[:-1], sizes[-1] // 2 + 1])
            kernel: Tensor = torch.fft.irfftn(symbol.conj(), s=sizes)
        return kernel


class Resolvent(LinearOperator):
    """The inverse of I - cJ for a circulant J: a division in Fourier space.

    Args:
        operator (Circulant): The operator J, or the symbol of an operator made of convolutions.
        c (float): The number c.
        transposed (bool): Whether this is the inverse of the transpose. (default: :obj:`False`)
    """

    def __init__(self, operator: Circulant | _Whole, c: float, transposed: bool = False) -> None:
        self.operator, self.c, self.transposed = operator, c, transposed
        self.dims = operator.dims
        self._kept: dict[Any, Tensor] = {}
        self._shaped: tuple[Any, Tensor] | None = None  # the last one, shaped to multiply

    def mv(self, u: Tensor) -> Tensor:
        sizes = tuple(u.shape[d] for d in self.dims)
        key = (sizes, u.dtype, u.device)
        if self._shaped is None or self._shaped[0] != key:
            if key not in self._kept:
                with torch.inference_mode(False), torch.no_grad():
                    self._kept[key] = self._reciprocal(u, sizes)
            symbol = self._kept[key]
            turned = self.transposed != self.operator.transposed
            symbol = along_dims(symbol.conj() if turned else symbol, self.dims)
            self._shaped = key, symbol
        return multiply(u, self._shaped[1], self.dims)

    def _reciprocal(self, u: Tensor, sizes: tuple[int, ...]) -> Tensor:
        divisor = 1.0 - self.c * self.operator.half(sizes).detach()
        smallest = float(divisor.abs().min())
        if not smallest > 4 * torch.finfo(u.dtype).eps:
            raise LinearSolveError(
                f"I - cJ is singular to rounding: an eigenvalue is {smallest:.1e} in magnitude. "
                "Keep the eigenvalues of J away from 1/c, or change the step size.",
                residual=math.inf)
        return _like(divisor.reciprocal(), u)

    def transpose(self) -> Resolvent:
        other = Resolvent(self.operator, self.c, not self.transposed)
        other._kept = self._kept
        return other


class _Whole:
    """The symbol of an operator composed of convolutions, as :class:`Resolvent` needs it."""

    transposed = False

    def __init__(self, operator: LinearOperator) -> None:
        # In float64, so that sums of large and small eigenvalues stay accurate.
        self.operator = operator.with_tensors([t.detach().double() for t in operator.tensors])
        self.dims = operator.dims

    def half(self, sizes: tuple[int, ...]) -> Tensor:
        """The symbol at the frequencies that a real transform stores."""
        known = dict(zip(self.dims, sizes, strict=True))
        full = self.operator.spectrum(known)
        assert full is not None
        full = full.detach().expand([known.get(d, 1) for d in range(self.dims[0], 0)])
        return full.narrow(self.dims[-1], 0, sizes[-1] // 2 + 1).reshape(
            *sizes[:-1], sizes[-1] // 2 + 1)


def _unfolded(half: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The symbol at all frequencies, from the first half of the last axis."""
    axes = tuple(range(half.dim() - 1))
    turned = half.flip(axes).roll([1] * len(axes), axes) if axes else half
    rest = turned[..., 1:sizes[-1] - half.size(-1) + 1].flip(-1)
    return torch.cat([half, rest.conj()], dim=-1)


def multiply(u: Tensor, symbol: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Multiplies the Fourier coefficients of u along dims by the symbol."""
    if u.numel() == 0:
        return torch.zeros_like(u)
    sizes = [u.shape[d] for d in dims]
    product: Tensor = torch.fft.irfftn(torch.fft.rfftn(u, dim=dims) * symbol, s=sizes, dim=dims)
    return product


def along_dims(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """An array with one axis per dimension in dims, reshaped to broadcast along them."""
    shape = [1] * -dims[0]
    for axis, d in enumerate(dims):
        shape[d] = values.size(axis)
    return values.reshape(shape)


def _like(symbol: Tensor, u: Tensor) -> Tensor:
    """The symbol in the precision and on the device of u."""
    return symbol.to(u.device, u.dtype.to_complex() if symbol.is_complex() else u.dtype)


def check_axes(dim: int | Sequence[int]) -> tuple[int, ...]:
    """The dimensions of a grid; raises a ValueError unless one to three, in increasing order."""
    dims = check_dims("Circulant", dim)
    if not isinstance(dim, int) and (tuple(dim) != dims or not 1 <= len(dims) <= 3):
        raise ValueError(f"Expected one to three dimensions in increasing order for Circulant, such"
                         f" as (-2, -1) (got {dim}): the axes of the stencil are in that order.")
    return dims


def _check_width(sizes: tuple[int, ...], width: tuple[int, ...]) -> None:
    if any(n < w for n, w in zip(sizes, width, strict=True)):
        raise ValueError(f"Expected at least as many points as the stencil has, {width} (got a "
                         f"grid of {sizes}); take a finer grid or a narrower stencil.")


def _check_hermitian(symbol: Any, eps: float) -> None:
    off = np.abs(symbol - np.roll(np.flip(symbol), 1, tuple(range(symbol.ndim))).conj())
    if off.max() > 16 * eps * np.abs(symbol).max():
        at = tuple(int(i) for i in np.unravel_index(off.argmax(), off.shape))
        raise ValueError(
            f"Expected the symbol at -k to be the conjugate of that at k, or the product with a "
            f"real state is not real (got a difference of {off.max():.1e} at index {at}); the "
            "Nyquist entry of an odd derivative has no sign: set it to zero.")


def mirrored(symbol: Tensor) -> Tensor:
    """The numbers at -k."""
    axes = tuple(range(symbol.dim()))
    return symbol.flip(axes).roll([1] * len(axes), axes)
