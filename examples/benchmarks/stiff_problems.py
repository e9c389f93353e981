"""Which stiff problems are solved, in PyTorch and in NumPy alike?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from pyg_sinode import imex_odeint
from pyg_sinode.grid import Advection, Dealiased, PeriodicGrid, kuramoto_sivashinsky
from pyg_sinode.operators import Circulant

Array = Any  # a NumPy array, or a sparse matrix of SciPy


@dataclass(frozen=True)
class Problem:
    """du/dt = G(u) + J u twice, for PyTorch and for NumPy, and what there is to know of it.

    Attributes:
        name: Its name in files and tables.
        title: Its name in plots.
        explicit: G(t, u) for PyTorch.
        implicit: J.
        array_explicit: G(u) for NumPy; with a second argument for a module that stands for it,
            such as jax.numpy.
        jacobian: Of G + J u: a matrix, or a function of (t, u).
        u0: The initial state.
        time: The final time; the first is 0.
        counts: Numbers of equal steps.
        exact: The solution at a time, where it is known.
    """

    name: str
    title: str
    explicit: Callable[[Any, Tensor], Tensor]
    implicit: Circulant
    array_explicit: Callable[..., Array]
    jacobian: Any
    u0: Tensor
    time: float
    counts: tuple[int, ...]
    exact: Callable[[float], Tensor] | None = None

    def rhs(self, t: Any, u: Tensor) -> Tensor:
        """G + J u for PyTorch."""
        return self.explicit(t, u) + self.implicit.mv(u)

    def array_rhs(self) -> Callable[[float, Array], Array]:
        """G + J u for NumPy, as a function of (t, u)."""
        n, explicit = len(self.u0), self.array_explicit
        symbol = self.implicit.symbol(self.u0).numpy()

        def rhs(t: float, u: Array) -> Array:
            return explicit(u) + np.fft.irfft(symbol * np.fft.rfft(u), n)

        return rhs

    def stiffness(self) -> float:
        """The largest magnitude of an eigenvalue of J, per unit of time."""
        return float(self.implicit.symbol(self.u0).abs().max())


def make_problem(name: str, *, quick: bool = False, seed: int = 0) -> Problem:
    """One of advection, allen-cahn and ks; quick ones are small, and not stiff."""
    if name == "advection":
        return advection_diffusion(32) if quick else advection_diffusion(512)
    if name == "allen-cahn":
        return allen_cahn(32) if quick else allen_cahn(512)
    return small_ks(32, 0.4, seed, before=5.0) if quick else small_ks(64, 10.0, seed)


def advection_diffusion(n: int, speed: float = 1.0, viscosity: float = 0.01) -> Problem:
    """A wave that goes round once while it flattens, on a period of 1."""
    grid = PeriodicGrid(n, 1.0)
    (dx,) = grid.spacing
    implicit = second_difference(grid, viscosity)
    u0 = torch.exp(2.0 * torch.sin(2 * math.pi * grid.points))

    def explicit(t: Any, u: Tensor) -> Tensor:
        return (u.roll(1, -1) - u.roll(-1, -1)) * (speed / (2 * dx))

    def array_explicit(u: Array, xp: Any = np) -> Array:
        return (xp.roll(u, 1) - xp.roll(u, -1)) * (speed / (2 * dx))

    angle = 2 * math.pi * np.arange(n // 2 + 1) / n
    symbol = (-1j * speed / dx * np.sin(angle) + 2 * viscosity / dx**2 * (np.cos(angle) - 1))

    def exact(t: float) -> Tensor:
        return torch.from_numpy(np.fft.irfft(np.exp(t * symbol) * np.fft.rfft(u0.numpy()), n))

    ones = np.ones(n - 1)
    ring = sparse.diags([ones, -ones, [1.0], [-1.0]], offsets=[-1, 1, n - 1, 1 - n])
    jacobian = sparse.csc_matrix(ring * (speed / (2 * dx)) + matrix(implicit, n))
    return Problem("advection", f"advection-diffusion, {n} points", explicit, implicit,
                   array_explicit, jacobian, u0, 1.0, (16, 32, 64, 128, 256, 512, 1024), exact)


def allen_cahn(n: int, eps: float = 0.06) -> Problem:
    """Waves that grow and sharpen to fronts between -1 and 1, on a period of 1."""
    grid = PeriodicGrid(n, 1.0)
    implicit = second_difference(grid, eps**2)
    linear = matrix(implicit, n)
    x = 2 * math.pi * grid.points
    u0 = 0.4 * torch.sin(x) + 0.3 * torch.cos(2 * x) + 0.2 * torch.sin(3 * x + 1.0)

    def jacobian(t: float, u: Array) -> Array:
        return sparse.csc_matrix(linear + sparse.diags(1 - 3 * u * u))

    return Problem("allen-cahn", f"Allen-Cahn, {n} points", lambda t, u: u - u * u * u, implicit,
                   lambda u, xp=np: u - u * u * u, jacobian, u0, 3.0,
                   (16, 32, 64, 128, 256, 512, 1024))


def small_ks(n: int, duration: float, seed: int, before: float = 50.0) -> Problem:
    """Kuramoto-Sivashinsky, after a time before in which random waves come to the attractor.

    The square in G is taken on more points, as in :class:`pyg_sinode.grid.Advection`, of which
    the NumPy version here follows the formula.
    """
    grid = PeriodicGrid(n, 22.0)
    equation = kuramoto_sivashinsky(grid)
    start = equation.initial(1, torch.Generator().manual_seed(seed))[0]
    times = torch.tensor([0.0, before], dtype=torch.float64)
    u0 = imex_odeint(equation.explicit, equation.implicit, start, times, method="ark436l2sa",
                     step_size=0.05)[-1]
    assert isinstance(equation.implicit, Circulant)
    array_explicit, slope = array_advection(grid)
    linear = matrix(equation.implicit, n).toarray()
    counts = tuple(round(duration * c) for c in (5, 10, 20, 40, 80, 160))
    return Problem("ks", f"Kuramoto-Sivashinsky, {n} points", equation.explicit, equation.implicit,
                   array_explicit, lambda t, u: slope(u) + linear, u0, duration, counts)


def korteweg_de_vries(n: int, speed: float = 4.0) -> Problem:
    """A soliton of u_t = -6 u u_x - u_xxx that travels a tenth of its period of 40."""
    grid = PeriodicGrid(n, 40.0)
    advection = Advection(grid)
    implicit = Circulant.from_symbol(1j * _without_nyquist(grid.wavenumbers()) ** 3)
    array_explicit, slope = array_advection(grid)
    linear = matrix(implicit, n).toarray()

    def exact(t: float) -> Tensor:
        x = (grid.points - 10.0 - speed * t + 20.0).remainder(40.0) - 20.0
        return 0.5 * speed / torch.cosh(0.5 * math.sqrt(speed) * x) ** 2

    return Problem("kdv", f"Korteweg-de Vries, {n} points",
                   lambda t, u: 6.0 * advection(t, u), implicit,
                   lambda u, xp=np: 6.0 * array_explicit(u, xp),
                   lambda t, u: 6.0 * slope(u) + linear, exact(0.0), 1.0,
                   (25, 50, 100, 200, 400, 800, 1600), exact)


def _without_nyquist(k: Array) -> Array:
    """The wavenumbers, with zero for the Nyquist mode of an even grid."""
    return np.where(np.arange(len(k)) == len(k) / 2, 0.0, k)


def array_advection(grid: PeriodicGrid
                    ) -> tuple[Callable[..., Array], Callable[[Array], Array]]:
    """The term -u u_x of :class:`pyg_sinode.grid.Advection` for NumPy, and its Jacobian."""
    n, transforms = grid.shape[0], Dealiased(grid, 2)
    (modes,), (more,) = transforms.modes, transforms.fine
    slope = -0.5 * more / n * 1j * grid.wavenumbers()[:modes]

    def term(u: Array, xp: Any = np) -> Array:
        fine = xp.fft.irfft(xp.fft.rfft(u)[:modes], more)
        return xp.fft.irfft(xp.fft.rfft(fine * fine)[:modes] * slope, n)

    # G(u) = R (E u)^2 with the interpolation E to more points and the slope R there.
    E = np.fft.irfft(np.fft.rfft(np.eye(n), axis=0)[:modes], more, axis=0)
    R = np.fft.irfft(np.fft.rfft(np.eye(more), axis=0)[:modes] * slope[:, None], n, axis=0)
    E *= more / n  # irfft divides by the number of points that it gives
    R *= (n / more) ** 2
    return term, lambda u: 2 * (R * (E @ u)) @ E


def second_difference(grid: PeriodicGrid, factor: float) -> Circulant:
    """A multiple of the second derivative, by central differences."""
    return Circulant(factor * np.array([1.0, -2.0, 1.0]) / grid.spacing[0] ** 2,
                     size=grid.shape[0])


def matrix(operator: Circulant, n: int) -> Array:
    """An operator as a sparse matrix."""
    row, col, value = operator.to_coo(-1, n)
    return sparse.csc_matrix((value.numpy(), (row.numpy(), col.numpy())), shape=(n, n))
