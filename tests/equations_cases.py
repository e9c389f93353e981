"""What do the tests of equations on grids share?"""

import torch
from grid_cases import F64

from pyg_sinode import imex_odeint
from pyg_sinode.grid import resample


def d(grid, u, axis=0, order=1):
    """A derivative of a state along an axis of the grid, by complex transforms."""
    dim = axis - len(grid.shape)
    k = torch.tensor(grid.wavenumbers(axis)).view([-1] + [1] * (-dim - 1))
    return torch.fft.ifft((1j * k) ** order * torch.fft.fft(u, dim=dim), dim=dim).real


def laplacian(grid, u):
    return sum(d(grid, u, axis, 2) for axis in range(len(grid.shape)))


def smooth(grid, waves, *leading):
    """Random states of the lowest waves along each axis, 7 points' worth of them if waves is 7."""
    axes = len(grid.shape)
    coarse = [min(waves, 3)] * axes if axes == 3 else [waves] * axes
    return resample(torch.randn(*leading, *coarse, dtype=F64), grid.shape)


def total_rate(equation, u):
    return equation.explicit(0.0, u) + equation.implicit.mv(u)


def integrate(equation, u, end, step, method="ark436l2sa", outputs=2):
    """The state at the end, or all outputs if there are more than two."""
    t = torch.linspace(0, end, outputs, dtype=F64)
    found = imex_odeint(equation.explicit, equation.implicit, u, t, method=method, step_size=step)
    return found[-1] if outputs == 2 else found
