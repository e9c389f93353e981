"""How are products of fields on a periodic grid computed without aliasing?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from .periodic import PeriodicGrid


class Dealiased:
    r"""The transforms between states, Fourier coefficients, and values on a finer grid.

    A product of p fields has modes up to p times the highest, M. On a grid of more than
    :math:`(p + 1) M` points along each axis none of them folds back on a mode that is kept: the
    3/2 rule for p = 2, the doubled grid for p = 3 (Orszag 1971, J. Atmos. Sci. 28,
    1074). The Nyquist mode of an even number of points is left out: its derivative is not defined.

    Args:
        grid (PeriodicGrid): The grid of the states.
        degree (int): The number p of fields that are multiplied.
    """

    def __init__(self, grid: PeriodicGrid, degree: int) -> None:
        self.grid, self.dims = grid, grid.dims
        self.modes = tuple((n - 1) // 2 + 1 for n in grid.shape)
        last = len(self.modes) - 1
        self.fine = tuple(scipy.fft.next_fast_len((degree + 1) * (m - 1) + 1, real=axis == last)
                          for axis, m in enumerate(self.modes))

    def coefficients(self, u: Tensor) -> Tensor:
        """The Fourier coefficients of a state that are kept."""
        self.grid.check(u)
        return self._kept(torch.fft.rfftn(u, dim=self.dims, norm="forward"))

    def values(self, c: Tensor) -> Tensor:
        """The field with given coefficients, on the finer grid."""
        return self._field(c, self.fine)

    def projection(self, values: Tensor) -> Tensor:
        """The coefficients of a field on the finer grid that are kept."""
        return self._kept(torch.fft.rfftn(values, dim=self.dims, norm="forward"))

    def state(self, c: Tensor) -> Tensor:
        """The state with given coefficients."""
        return self._field(c, self.grid.shape)

    def narrowed(self, c: Tensor) -> Tensor:
        """The coefficients that are kept, from ``torch.fft.rfftn`` of a state."""
        return self._kept(c) * (1.0 / self.grid.num_nodes)

    def widened(self, c: Tensor) -> Tensor:
        """``torch.fft.rfftn`` of the state with given coefficients; the modes left out are zero."""
        c = self._spread(c * self.grid.num_nodes, self.grid.shape)
        rest = self.grid.shape[-1] // 2 + 1 - self.modes[-1]
        return torch.nn.functional.pad(c, (0, rest)) if rest else c

    def one(self, c: Tensor) -> Tensor:
        """``torch.fft.rfftn`` of the state 1, to be added to such coefficients c."""
        found = c.new_zeros(c.shape[-len(self.modes):])
        found[(0,) * len(self.modes)] = self.grid.num_nodes
        return found

    def multiplier(self, symbol: Any) -> Constant:
        """Of a symbol in the order of numpy's fftfreq, the entries of the modes that are kept.

        ``multiplier(symbol).like(u)`` is the tensor for coefficients of a state u.
        """
        symbol = np.broadcast_to(symbol, self.grid.shape)
        for axis, m in enumerate(self.modes):
            ends = [np.arange(m)] if axis == len(self.modes) - 1 else [
                np.arange(m), np.arange(1 - m, 0)]
            symbol = np.take(symbol, np.concatenate(ends), axis=axis)
        return Constant(symbol)

    def gradient(self) -> Constant:
        """The multipliers of the first derivatives, stacked along a first axis."""
        waves = np.meshgrid(*(self.grid.wavenumbers(a) for a in range(len(self.modes))),
                            indexing="ij")
        return Constant(np.stack([self.multiplier(1j * k).array for k in waves]))

    def _kept(self, c: Tensor) -> Tensor:
        for d, m in zip(self.dims[:-1], self.modes[:-1], strict=True):
            c = torch.cat([c.narrow(d, 0, m), c.narrow(d, c.size(d) - m + 1, m - 1)], dim=d)
        return c.narrow(-1, 0, self.modes[-1])

    def _field(self, c: Tensor, shape: Sequence[int]) -> Tensor:
        field: Tensor = torch.fft.irfftn(self._spread(c, shape), s=tuple(shape), dim=self.dims,
                                         norm="forward")
        return field

    def _spread(self, c: Tensor, shape: Sequence[int]) -> Tensor:
        """The coefficients of a grid of another shape, along all axes but the last."""
        for d, m, n in zip(self.dims[:-1], self.modes[:-1], shape[:-1], strict=True):
            gap = list(c.shape)
            gap[d] = n - 2 * m + 1
            c = torch.cat([c.narrow(d, 0, m), c.new_zeros(gap), c.narrow(d, m, m - 1)], dim=d)
        return c


class Constant:
    """A constant array in float64, given out in the precision and on the device of a state.

    Args:
        array (array): The numbers, real or complex.
    """

    def __init__(self, array: Any) -> None:
        self.array = np.array(array)
        self._given: dict[Any, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"array": self.array, "_given": {}}

    def like(self, u: Tensor) -> Tensor:
        """The array as a tensor, complex if the numbers are."""
        key = (u.dtype, u.device)
        if key not in self._given:
            # A cached tensor must also serve training, even if made under inference_mode.
            with torch.inference_mode(False):
                own = torch.tensor(self.array)
                dtype = u.dtype.to_complex() if own.is_complex() else u.dtype.to_real()
                self._given[key] = own.to(u.device, dtype)
        return self._given[key]


def resample(u: Tensor, num_points: int | Sequence[int]) -> Tensor:
    """Fourier interpolation of states u on a periodic grid to ``num_points`` points.

    Modes that one of the grids cannot represent, and Nyquist modes, are left out.

    Args:
        u (Tensor): The states.
        num_points (int or tuple of int): The number of points along the last dimension, or along
            each of the last ones.

    Shapes:
        - **u, output:** (\\*, n) and (\\*, num_points); (\\*, n_1, n_2) and (\\*, \\*num_points)
    """
    sizes = (num_points,) if isinstance(num_points, int) else tuple(num_points)
    for d, size in zip(range(-len(sizes), 0), sizes, strict=True):
        u = _resampled(u.movedim(d, -1), size).movedim(-1, d)
    return u


def _resampled(u: Tensor, size: int) -> Tensor:
    n = u.size(-1)
    if size == n:
        return u
    modes = (min(n, size) - 1) // 2 + 1
    result: Tensor = torch.fft.irfft(torch.fft.rfft(u)[..., :modes], size)
    return result * (size / n)
