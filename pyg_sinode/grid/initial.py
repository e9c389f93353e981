"""From which random states do the equations start?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .periodic import PeriodicGrid


def few_waves(grid: PeriodicGrid, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Random sums of the first ceil(L / 5) modes; the fastest-growing one is 2 pi sqrt(2) long."""
    modes = max(1, math.ceil(grid.length[0] / 5.0))
    amplitude = torch.full((modes,), 1.0, dtype=torch.float64)
    return random_phases(grid, amplitude, count, generator)


def turbulent(grid: PeriodicGrid, count: int, generator: torch.Generator | None = None,
              k0: float = 10.0) -> Tensor:
    """Waves of random phase with the energy spectrum of San and Maulik (2018)."""
    spacing = 2 * math.pi / grid.length[0]
    k = spacing * torch.arange(1, (grid.shape[0] - 1) // 2 + 1, dtype=torch.float64)
    energy = 2 * k**4 / (3 * math.sqrt(math.pi) * k0**5) * torch.exp(-((k / k0) ** 2))
    return random_phases(grid, 2 * (2 * energy).sqrt(), count, generator)


def random_phases(grid: PeriodicGrid, amplitude: Tensor, count: int,
                  generator: torch.Generator | None) -> Tensor:
    """Sums of modes cos(2 pi m x / L + phase) with given amplitudes and random phases, m >= 1."""
    n = grid.shape[0]
    amplitude = amplitude[: (n - 1) // 2]
    phase = 2 * math.pi * torch.rand(count, len(amplitude), dtype=torch.float64,
                                     generator=generator)
    modes = torch.zeros(count, n // 2 + 1, dtype=torch.complex128)
    modes[:, 1 : len(amplitude) + 1] = torch.polar(amplitude.expand_as(phase), phase) * (n / 2)
    u: Tensor = torch.fft.irfft(modes, n)
    return u


def smooth_noise(grid: PeriodicGrid, count: int, generator: torch.Generator | None = None, *,
                 wavelength: float, rms: float, mean: float = 0.0,
                 fields: Sequence[int] = ()) -> Tensor:
    r"""Gaussian white noise, filtered by :math:`e^{-(k / k_c)^2}` with k_c = 2 pi / wavelength.

    Each field is shifted and scaled to the mean and the root mean square deviation from it.

    Shapes:
        - **output:** (count, \*fields, \*shape)
    """
    noise = torch.randn(count, *fields, *grid.shape, dtype=torch.float64, generator=generator)
    k = torch.tensor(grid.squared_wavenumbers()).sqrt() * (wavelength / (2 * math.pi))
    weight = torch.exp(-k.square())
    weight[(0,) * weight.dim()] = 0.0
    modes = torch.fft.fftn(noise, dim=grid.dims) * weight
    smooth: Tensor = torch.fft.ifftn(modes, dim=grid.dims).real
    scale = smooth.square().mean(dim=grid.dims, keepdim=True).sqrt().clamp_min(1e-300)
    return mean + rms * smooth / scale


def seeded_square(grid: PeriodicGrid, count: int, generator: torch.Generator | None = None
                  ) -> Tensor:
    """Two species at (1, 0) outside and (1/2, 1/4) within a central cube, with 1 % of noise.

    The cube has an eighth of the period as its side; the noise is uniform.
    """
    state = torch.zeros(count, 2, *grid.shape, dtype=torch.float64)
    state[:, 0] = 1.0
    inside = state
    for d, n in zip(grid.dims, grid.shape, strict=True):
        half = min(n // 2, max(1, n // 16))
        inside = inside.narrow(d, n // 2 - half, 2 * half)
    inside[:, 0], inside[:, 1] = 0.5, 0.25
    noise = torch.rand(state.shape, dtype=torch.float64, generator=generator)
    return state * (0.99 + 0.02 * noise)
