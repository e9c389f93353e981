"""Which operators, graphs and equations does a periodic grid have?"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from .operators import Circulant, LinearOperator
from .operators.checks import check_real

DISCRETIZATIONS = ("spectral", "finite_difference")
# Central differences of second order, Fornberg (1988), Math. Comp. 51, table 1.
DIFFERENCES = {1: (-0.5, 0.0, 0.5), 2: (1.0, -2.0, 1.0), 3: (-0.5, 1.0, 0.0, -1.0, 0.5),
               4: (1.0, -4.0, 6.0, -4.0, 1.0)}


@dataclass(frozen=True)
class PeriodicGrid:
    r"""A periodic grid of equally spaced points :math:`x_i = i L / n`, i = 0 to n - 1.

    The right end x = L is excluded, since it is the left end. The last dimensions of a state are
    the axes of the grid; as nodes of a graph, the points are numbered with the last axis fastest.

    Fourier transforms are fast if the numbers of points have small prime factors: a solve on 511 =
    7 x 73 points takes six times as long as on 512.

    Args:
        shape (int or tuple of int): Number of points n along each of one to three axes.
        length (float or tuple of float): Length L of the period along each axis.

    Raises:
        ValueError: if a number or a length is not positive, or shape and length do not match.
        TypeError: if a number of points is not an integer.
    """

    shape: tuple[int, ...]
    length: tuple[float, ...]

    def __init__(self, shape: int | Sequence[int], length: float | Sequence[float]) -> None:
        one = np.ndim(shape) == 0
        shape = tuple(map(operator.index, (shape,) if one else shape))  # type: ignore[arg-type]
        one = np.ndim(length) == 0
        lengths = tuple(map(float, (length,) * len(shape) if one else length))  # type: ignore[arg-type]
        if not 1 <= len(shape) <= 3 or len(lengths) != len(shape):
            raise ValueError(f"Expected one to three axes, each with a number of points and a "
                             f"length (got shape {shape} and length {lengths}).")
        if any(n < 1 for n in shape):
            raise ValueError(f"Expected at least one point along each axis (got shape {shape}).")
        if any(not (math.isfinite(x) and x > 0) for x in lengths):
            raise ValueError(f"Expected positive, finite lengths (got {lengths}).")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "length", lengths)

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions of a state that are the axes of the grid, negative."""
        return tuple(range(-len(self.shape), 0))

    @property
    def num_nodes(self) -> int:
        """The total number of points."""
        return math.prod(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """The distance between neighbouring points along each axis, in units of length."""
        return tuple(x / n for x, n in zip(self.length, self.shape, strict=True))

    @property
    def points(self) -> Tensor:
        """The coordinates in float64, of shape (n,) or, on several axes, (\\*shape, axes)."""
        axes = [torch.arange(n, dtype=torch.float64) * h
                for n, h in zip(self.shape, self.spacing, strict=True)]
        if len(axes) == 1:
            return axes[0]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)

    def wavenumbers(self, axis: int = 0) -> Any:
        """The wavenumbers along ``axis``, in the order of numpy's fftfreq; per unit of length."""
        n = self.shape[axis]
        return 2 * np.pi / self.length[axis] * np.fft.fftfreq(n, 1 / n)

    def derivative(self, order: int, axis: int = 0, *,
                   discretization: str = "spectral") -> Circulant:
        r"""The derivative :math:`\partial^p / \partial x^p` along an axis, as an operator.

        Args:
            order (int): The order p, at least 1.
            axis (int): The axis of the grid. (default: :obj:`0`)
            discretization (str): :obj:`"spectral"`, exact for all Fourier modes of the grid, but
                zero for the Nyquist mode if p is odd. Or :obj:`"finite_difference"`, central
                differences of second order, up to p = 4. (default: :obj:`"spectral"`)

        Raises:
            ValueError: if the order or the discretization is not one of these, or the grid has
                fewer points than the stencil.
        """
        _check_discretization(discretization)
        self._check_axis(axis)
        dim, n = axis % len(self.shape) - len(self.shape), self.shape[axis]
        if discretization == "spectral":
            if order < 1:
                raise ValueError(f"Expected a derivative of order 1 or more (got {order}).")
            symbol = (1j * self.wavenumbers(axis)) ** order
            if order % 2 == 0:
                symbol = symbol.real
            elif n % 2 == 0:
                symbol[n // 2] = 0.0
            return Circulant.from_symbol(symbol, dim=dim)
        if order not in DIFFERENCES:
            raise ValueError(f"Expected a derivative of order 1 to {max(DIFFERENCES)} for finite "
                             f'differences (got {order}); discretization="spectral" has any.')
        stencil = np.array(DIFFERENCES[order]) / self.spacing[axis] ** order
        return Circulant(stencil, dim=dim, size=n)

    def laplacian(self, *, discretization: str = "spectral") -> Circulant:
        r"""The Laplacian :math:`\sum_a \partial^2 / \partial x_a^2` over all axes, as an operator.

        Args:
            discretization (str): As for :meth:`derivative`; :obj:`"finite_difference"` is the
                five-point stencil in two dimensions. (default: :obj:`"spectral"`)
        """
        _check_discretization(discretization)
        count = len(self.shape)
        if discretization == "spectral":
            squares = np.meshgrid(*(self.wavenumbers(axis) ** 2 for axis in range(count)),
                                  indexing="ij")
            symbol = -sum(squares[1:], squares[0])
            return Circulant.from_symbol(symbol, dim=self.dims)
        stencil = np.zeros([3] * count)
        for axis, spacing in enumerate(self.spacing):
            line: list[int | slice] = [1] * count
            line[axis] = slice(None)
            stencil[tuple(line)] += np.array(DIFFERENCES[2]) / spacing**2
        return Circulant(stencil, dim=self.dims, size=self.shape)

    def edge_index(self, radius: int = 1) -> Tensor:
        """Edges to each node from all others at most ``radius`` points away along every axis.

        Shapes:
            - **output:** (2, nodes * ((2 radius + 1)^axes - 1)): source and target, by target
        """
        return self._edges(radius)[0]

    def edge_offset(self, radius: int = 1) -> Tensor:
        """The offset, in points, from the target of each edge to its source along each axis.

        Shapes:
            - **output:** (edges, axes), integers, for the edges of :meth:`edge_index` (``radius``)
        """
        return self._edges(radius)[1]

    def to_data(self, u: Tensor, radius: int = 1) -> Data:
        """A state as a PyG graph: node features are the channels, edges those of ``radius``.

        Shapes:
            - **u:** (\\*shape) or (channels, \\*shape)
            - **output:** x (nodes, channels), pos (nodes, axes), edge_index, and edge_attr (edges,
              axes): the vectors from target to source; lengths
        """
        check_real(u, "u")
        self.check(u)
        if u.dim() > len(self.shape) + 1:
            raise ValueError(f"Expected one state, (*shape) or (channels, *shape), for one graph "
                             f"(got {tuple(u.shape)}); make a Batch of several.")
        edge_index, offset = self._edges(radius)
        step = torch.tensor(self.spacing, dtype=u.dtype)
        points = self.points.reshape(self.num_nodes, -1).to(u.dtype)
        data = Data(x=u.reshape(-1, self.num_nodes).t(), edge_index=edge_index,
                    edge_attr=offset * step, pos=points)
        return data.to(u.device)

    def to_state(self, data: Data) -> Tensor:
        """The state of ``data``, a graph as :meth:`to_data` makes it, or the states of a Batch.

        Shapes:
            - **output:** (channels, \\*shape), for a Batch (graphs, channels, \\*shape)
        """
        x = data.x
        if x is None or x.dim() != 2 or x.size(0) % self.num_nodes or x.size(0) == 0:
            got = None if x is None else tuple(x.shape)
            raise ValueError(f"Expected node features x of shape (graphs * {self.num_nodes}, "
                             f"channels) (got {got}); the graph belongs to another grid.")
        states: Tensor = x.view(-1, self.num_nodes, x.size(1)).transpose(1, 2)
        states = states.reshape(*states.shape[:2], *self.shape)
        return states if isinstance(data, Batch) else states[0]

    def check(self, u: Tensor) -> None:
        """Raises a ValueError if the last dimensions of a state u are not those of the grid."""
        if tuple(u.shape[-len(self.shape):]) != self.shape:
            raise ValueError(f"Expected a state whose last dimensions are those of the grid, "
                             f"{self.shape} (got {tuple(u.shape)}).")

    def _check_axis(self, axis: int) -> None:
        if not -len(self.shape) <= axis < len(self.shape):
            raise ValueError(f"Expected an axis from 0 to {len(self.shape) - 1} (got {axis}).")

    def _edges(self, radius: int) -> tuple[Tensor, Tensor]:
        if radius < 1 or any(n < 2 * radius + 1 for n in self.shape):
            raise ValueError(f"Expected a radius of at least 1 and a grid of at least 2 radius + 1 "
                             f"points along each axis (got radius {radius} and {self.shape}).")
        reach = range(-radius, radius + 1)
        offsets = torch.tensor([o for o in itertools.product(reach, repeat=len(self.shape))
                                if any(o)])
        nodes = torch.arange(self.num_nodes)
        at = torch.stack(torch.unravel_index(nodes, self.shape), dim=-1)
        source = (at.unsqueeze(1) + offsets).remainder(torch.tensor(self.shape))
        stride = torch.tensor([math.prod(self.shape[a + 1:]) for a in range(len(self.shape))])
        index = torch.stack([(source * stride).sum(dim=-1).view(-1),
                             nodes.repeat_interleave(len(offsets))])
        return index, offsets.repeat(self.num_nodes, 1)


class Advection(torch.nn.Module):
    r"""The advection term :math:`G(u) = -u\, u_x = -(u^2 / 2)_x` on a one-dimensional grid.

    Args:
        grid (PeriodicGrid): The grid, of one dimension.
        discretization (str): :obj:`"spectral"`, dealiased by the 3/2 rule (Orszag 1971): the square
            is evaluated on a grid of 3/2 as many points; or :obj:`"finite_difference"`, the central
            difference of :math:`u^2 / 2`. (default: :obj:`"spectral"`)
    """

    def __init__(self, grid: PeriodicGrid, *, discretization: str = "spectral") -> None:
        super().__init__()
        _check_one_axis(grid)
        self.grid, self.discretization = grid, discretization
        self.derivative = grid.derivative(1, discretization=discretization)
        # The Nyquist mode of an even grid is left out: its derivative is not defined.
        self.modes = (grid.shape[0] - 1) // 2 + 1
        self.more = scipy.fft.next_fast_len(3 * self.modes - 2, real=True)

    def forward(self, t: Tensor | float, u: Tensor) -> Tensor:
        """The term G(u); the time t has no influence.

        Shapes:
            - **u, output:** :math:`(*, n)`
        """
        self.grid.check(u)
        if self.discretization == "finite_difference":
            return self.derivative.mv(-0.5 * u * u)
        n, modes, more = u.size(-1), self.modes, self.more
        fine = torch.fft.irfft(torch.fft.rfft(u)[..., :modes], more)
        coefficients = torch.fft.rfft(fine * fine)[..., :modes]
        slope = coefficients * self.derivative.symbol(u)[..., :modes]
        result: Tensor = torch.fft.irfft(slope, n) * (-0.5 * more / n)
        return result


class Equation(NamedTuple):
    """An equation du/dt = G(t, u) + J u on a grid, for :func:`pyg_sinode.imex_odeint`.

    Attributes:
        explicit (torch.nn.Module): The explicit, nonlinear term G.
        implicit (LinearOperator): The operator J of the stiff, linear term.
        initial (callable): ``initial(count, generator=None)`` returns random initial states of
            shape (count, n), in float64.
    """

    explicit: torch.nn.Module
    implicit: LinearOperator
    initial: Callable[..., Tensor]


def kuramoto_sivashinsky(grid: PeriodicGrid, *, discretization: str = "spectral") -> Equation:
    r"""The Kuramoto-Sivashinsky equation :math:`u_t = -u u_x - u_{xx} - u_{xxxx}`, periodic.

    It is chaotic for L = 22 (the largest Lyapunov exponent is about 0.05 per unit of time, the
    Lyapunov time about 22). The mean of u is conserved. Good values: n = 64 and step sizes up to
    0.2 (0.1 with imex_euler, 0.05 with ark232, 0.02 with ars122); an explicit scheme would need
    :math:`2.8 / k_{max}^4`.

    Args:
        grid (PeriodicGrid): The grid, of one dimension.
        discretization (str): :obj:`"spectral"`, or :obj:`"finite_difference"`: the stencils (1, -2,
            1) and (1, -4, 6, -4, 1) of the `"Semi-Implicit Neural Ordinary Differential Equations"
            <https://arxiv.org/abs/2412.11301>`_ paper. (default: :obj:`"spectral"`)

    Raises:
        ValueError: if the grid has more than one dimension or fewer points than the stencil.
        TypeError: if grid is not a PeriodicGrid.
    """
    _check_one_axis(grid)
    return Equation(Advection(grid, discretization=discretization),
                    _combined(grid, {2: -1.0, 4: -1.0}, discretization),
                    partial(_few_waves, grid))


def viscous_burgers(grid: PeriodicGrid, viscosity: float, *,
                    discretization: str = "spectral") -> Equation:
    r"""The viscous Burgers equation :math:`u_t = -u u_x + \nu u_{xx}`, periodic.

    The mean of u is conserved, and the mean of its square never grows. Shocks have a width of
    :math:`4 \nu / \Delta u`, which the grid must resolve. Good values: L = 1, :math:`\nu = 8 \cdot
    10^{-4}`, n = 1024. The initial states have Fourier coefficients of random phase and of
    magnitude :math:`|\hat u_k| = \sqrt{2 E(k)}`, with the energy spectrum :math:`E(k) = \frac{2
    k^4}{3 \sqrt{\pi} k_0^5} e^{-(k / k_0)^2}` at the wavenumbers :math:`k = 2 \pi m / L` and
    :math:`k_0 = 10` per unit of length, as in San and Maulik (2018), `"Neural network closures for
    nonlinear model order reduction" <https://arxiv.org/abs/1705.08532>`_. For L = 1 their root mean
    square is 0.40, and shocks form at a time of about 0.15.

    Args:
        grid (PeriodicGrid): The grid, of one dimension.
        viscosity (float): The viscosity :math:`\nu`, an area per unit of time.
        discretization (str): :obj:`"spectral"` or :obj:`"finite_difference"`.
            (default: :obj:`"spectral"`)

    Raises:
        ValueError: if the viscosity is not positive, or the grid has more than one dimension.
        TypeError: if grid is not a PeriodicGrid.
    """
    _check_one_axis(grid)
    if not (math.isfinite(viscosity) and viscosity > 0):
        raise ValueError(f"Expected a positive, finite viscosity (got {viscosity}).")
    return Equation(Advection(grid, discretization=discretization),
                    _combined(grid, {2: viscosity}, discretization),
                    partial(_turbulent, grid))


def resample(u: Tensor, num_points: int) -> Tensor:
    """Fourier interpolation of states u on a periodic grid to ``num_points`` points.

    Modes that one of the grids cannot represent, and Nyquist modes, are left out.

    Shapes:
        - **u, output:** (\\*, n) and (\\*, num_points)
    """
    n = u.size(-1)
    if num_points == n:
        return u
    modes = (min(n, num_points) - 1) // 2 + 1
    result: Tensor = torch.fft.irfft(torch.fft.rfft(u)[..., :modes], num_points)
    return result * (num_points / n)


def _combined(grid: PeriodicGrid, factors: dict[int, float], discretization: str) -> Circulant:
    """The linear combination of derivatives, ``factors[p]`` times that of order p."""
    _check_discretization(discretization)
    if discretization == "spectral":
        k = grid.wavenumbers()
        return Circulant.from_symbol(sum(a * ((1j * k) ** p).real for p, a in factors.items()))
    width = max(len(DIFFERENCES[p]) for p in factors)
    stencil = np.zeros(width)
    for p, a in factors.items():
        inner = (width - len(DIFFERENCES[p])) // 2
        stencil[inner : width - inner] += a * np.array(DIFFERENCES[p]) / grid.spacing[0] ** p
    return Circulant(stencil, size=grid.shape[0])


def _few_waves(grid: PeriodicGrid, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Random sums of the first ceil(L / 5) modes; the fastest-growing one is 2 pi sqrt(2) long."""
    modes = max(1, math.ceil(grid.length[0] / 5.0))
    amplitude = torch.full((modes,), 1.0, dtype=torch.float64)
    return _random_phases(grid, amplitude, count, generator)


def _turbulent(grid: PeriodicGrid, count: int, generator: torch.Generator | None = None,
               k0: float = 10.0) -> Tensor:
    spacing = 2 * math.pi / grid.length[0]
    k = spacing * torch.arange(1, (grid.shape[0] - 1) // 2 + 1, dtype=torch.float64)
    energy = 2 * k**4 / (3 * math.sqrt(math.pi) * k0**5) * torch.exp(-((k / k0) ** 2))
    return _random_phases(grid, 2 * (2 * energy).sqrt(), count, generator)


def _random_phases(grid: PeriodicGrid, amplitude: Tensor, count: int,
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


def _check_discretization(discretization: str) -> None:
    if discretization not in DISCRETIZATIONS:
        raise ValueError(f"Expected discretization to be one of {', '.join(DISCRETIZATIONS)} (got "
                         f"{discretization!r}).")


def _check_one_axis(grid: Any) -> None:
    if not isinstance(grid, PeriodicGrid):
        raise TypeError(f"Expected a PeriodicGrid (got {type(grid).__name__}): the equations here "
                        "are periodic; operators.Banded holds stencils with ends.")
    if len(grid.shape) != 1:
        raise ValueError(f"Expected a grid of one dimension (got shape {grid.shape}).")
