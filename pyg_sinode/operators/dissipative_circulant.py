"""Which Fourier multiplier is dissipative whatever its parameters are?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_real
from .circulant import Circulant, check_axes, mirrored
from .dissipative import normal


class DissipativeCirculant(Circulant):
    r"""A Fourier multiplier on a periodic grid that cannot make a state grow.

    .. math::
        \widehat{(J u)}_k = \sigma_k\, \hat u_k, \qquad
        \sigma_k = s_k \left( -\mathrm{softplus}(a_k) + \mathrm{i}\, b_k \right)

    with damping :math:`a` and dispersion :math:`b`, of which the even and the odd part in k count.
    The real part of every :math:`\sigma_k` is at most zero, so that solutions of
    :math:`\dot u = J u` contract in the 2-norm: :math:`\frac{d}{dt} |\hat u_k|^2 = 2\,
    \mathrm{Re}(\sigma_k)\, |\hat u_k|^2 \le 0`. :math:`I - cJ` is inverted by FFT, and for
    :math:`c \ge 0` it is never singular.

    The tensors are random :class:`torch.nn.Parameter` objects, from which the multipliers are
    computed in each product; ``[*model.parameters(), *J.tensors]`` goes to the optimizer, or
    :class:`pyg_sinode.LearnedOperator` makes them parameters of a module.

    Args:
        size (int or tuple of int): The number of grid points along each dimension.
        dim (int or tuple of int): The dimensions of the grid in the state, negative and in
            increasing order. (default: :obj:`-1`)
        scale (float or array): The fixed factors :math:`s_k \ge 0`, per unit of time, one or one
            for each mode in the order of :func:`numpy.fft.fftfreq`: rates that span decades, such
            as :math:`k^4`, are out of reach of parameters of order one. (default: :obj:`1.0`)
        dispersive (bool): Whether there is a dispersion; if not, J is symmetric.
            (default: :obj:`True`)
        conserve_mean (bool): Whether :math:`\sigma_0 = 0`, so that the mean of u stays.
            (default: :obj:`False`)
        dtype, device: Those of the parameters. (default: PyTorch's)
        generator (torch.Generator, optional): Makes the initial numbers, which are standard
            normal. (default: :obj:`None`)

    Shapes:
        - **a, b:** :obj:`size`, dimensionless
        - **u:** :math:`(*, n, *)` with n at :obj:`dim`

    Raises:
        ValueError: if a size is not positive, the number of axes is not that of the dimensions, or
            the scale does not fit, is negative, or not even in k.
        TypeError: if given tensors or the scale are not real.
    """

    def __init__(self, size: int | Sequence[int], *, dim: int | Sequence[int] = -1,
                 scale: Any = 1.0, dispersive: bool = True, conserve_mean: bool = False,
                 dtype: torch.dtype | None = None, device: Any = None,
                 generator: torch.Generator | None = None) -> None:
        shape = (size,) if isinstance(size, int) else tuple(size)
        if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
            raise ValueError(f"Expected sizes of at least 1 in DissipativeCirculant (got {size}).")
        numbers = [normal(shape, 1.0, dtype, device, generator) for _ in range(1 + dispersive)]
        self._set(numbers, dim, scale, conserve_mean)

    @classmethod
    def from_tensors(cls, damping: Tensor, dispersion: Tensor | None = None, *,
                     dim: int | Sequence[int] = -1, scale: Any = 1.0,
                     conserve_mean: bool = False) -> DissipativeCirculant:
        """The operator of given tensors a and b, such as the output of a network.

        Args:
            damping, dispersion (Tensor): The a and b, any real numbers, in the order of
                :func:`numpy.fft.fftfreq`; they receive gradients. Without b J is symmetric.
            dim, scale, conserve_mean: As in the class.
        """
        self = cls.__new__(cls)
        tensors = [damping] if dispersion is None else [damping, dispersion]
        for name, tensor in zip(("damping", "dispersion"), tensors, strict=False):
            check_real(tensor, name)
        if dispersion is not None and dispersion.shape != damping.shape:
            raise ValueError(f"Expected damping and dispersion of one shape in "
                             f"DissipativeCirculant (got {tuple(damping.shape)} and "
                             f"{tuple(dispersion.shape)}).")
        self._set(tensors, dim, scale, conserve_mean)
        return self

    def _set(self, tensors: Sequence[Tensor], dim: int | Sequence[int], scale: Any,
             conserve_mean: bool) -> None:
        self.dims, self.tensors, self._fixed = check_axes(dim), tuple(tensors), None
        self.width, self.sizes = None, tuple(tensors[0].shape)
        self._check_rank(self.sizes, "damping")
        self.factors = _factors(scale, self.sizes, conserve_mean)
        self._start()

    def _tensor_symbol(self, sizes: tuple[int, ...]) -> Tensor:
        a, *more = self.tensors
        half = sizes[-1] // 2 + 1
        factors = torch.tensor(self.factors[..., :half], dtype=a.dtype, device=a.device)
        real = -factors * F.softplus(0.5 * (a + mirrored(a))[..., :half])
        if not more:
            return real
        return torch.complex(real, factors * (0.5 * (more[0] - mirrored(more[0]))[..., :half]))

    def _values(self) -> Any:
        """The half of the symbol that a real transform stores, as an array on the host."""
        assert self.sizes is not None
        with torch.no_grad():
            return self._tensor_symbol(self.sizes).cpu().numpy()

    def disc(self) -> tuple[float, float]:
        symbol = self._values()
        center = 0.5 * float(symbol.real.min())
        return center, float(np.abs(symbol - center).max()) * (1.0 + 1e-6)


def _factors(scale: Any, shape: tuple[int, ...], conserve_mean: bool) -> Any:
    """The factors of all modes, a read-only array in float64."""
    factors = np.asarray(scale)
    if factors.dtype.kind not in "iuf":
        raise TypeError(f"Expected real numbers as the scale of DissipativeCirculant (got dtype "
                        f"{factors.dtype}).")
    if factors.shape not in ((), shape):
        raise ValueError(f"Expected one scale, or one for each of the modes {shape}, in "
                         f"DissipativeCirculant (got shape {factors.shape}).")
    factors = np.array(np.broadcast_to(factors, shape), dtype=np.float64)
    if not (np.isfinite(factors).all() and (factors >= 0.0).all()):
        raise ValueError("Expected finite scales of at least 0 in DissipativeCirculant (got a "
                         f"smallest of {factors.min():.1e}).")
    mirrored = np.roll(np.flip(factors), 1, tuple(range(factors.ndim)))
    if not np.allclose(factors, mirrored, rtol=1e-12, atol=0.0):
        raise ValueError("Expected the scale at -k to be that at k in DissipativeCirculant (got a "
                         f"difference of {np.abs(factors - mirrored).max():.1e}).")
    if conserve_mean:
        factors[(0,) * len(shape)] = 0.0
    factors.flags.writeable = False
    return factors
