"""Which operators and graphs does a periodic grid have?"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from ..operators import Circulant
from ..operators.checks import check_real
from .axes import Grid, check_discretization, product_of_axes, sum_over_axes

# Central differences of second order, Fornberg (1988), Math. Comp. 51, table 1.
DIFFERENCES = {1: (-0.5, 0.0, 0.5), 2: (1.0, -2.0, 1.0), 3: (-0.5, 1.0, 0.0, -1.0, 0.5),
               4: (1.0, -4.0, 6.0, -4.0, 1.0)}


@dataclass(frozen=True, init=False)
class PeriodicGrid(Grid):
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

    @property
    def spacing(self) -> tuple[float, ...]:
        """The distance between neighbouring points along each axis, in units of length."""
        return tuple(x / n for x, n in zip(self.length, self.shape, strict=True))

    @property
    def points(self) -> Tensor:
        """The coordinates in float64, of shape (n,) or, on several axes, (\\*shape, axes)."""
        axes = [torch.arange(n, dtype=torch.float64) * h
                for n, h in zip(self.shape, self.spacing, strict=True)]
        return product_of_axes(axes)

    def wavenumbers(self, axis: int = 0) -> Any:
        """The wavenumbers along ``axis``, in the order of numpy's fftfreq; per unit of length."""
        n = self.shape[axis]
        return 2 * np.pi / self.length[axis] * np.fft.fftfreq(n, 1 / n)

    def squared_wavenumbers(self) -> Any:
        r"""The squares :math:`k^2 = |k|^2` of all wave vectors, an array with the grid's shape.

        An operator that is a function of the Laplacian multiplies the Fourier mode k by that
        function of :math:`-k^2`: ``Circulant.from_symbol(f(-k2), dim=grid.dims)``.
        """
        return sum_over_axes([self.wavenumbers(axis) ** 2 for axis in range(len(self.shape))])

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
        check_discretization(discretization)
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
        check_discretization(discretization)
        count = len(self.shape)
        if discretization == "spectral":
            return Circulant.from_symbol(-self.squared_wavenumbers(), dim=self.dims)
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


def check_periodic(grid: Any, axes: int | None = None) -> None:
    """Raises a TypeError or ValueError unless a grid is periodic and has so many axes, if given."""
    if not isinstance(grid, PeriodicGrid):
        raise TypeError(f"Expected a PeriodicGrid (got {type(grid).__name__}): the equations here "
                        "are periodic; BoxGrid has the Laplacian of a box, operators.Banded holds "
                        "stencils with ends.")
    if axes == 1 and len(grid.shape) != 1:
        raise ValueError(f"Expected a grid of one dimension (got shape {grid.shape}); "
                         "vector_burgers and kuramoto_sivashinsky_height take several.")
    if axes == 2 and len(grid.shape) != 2:
        raise ValueError(f"Expected a grid of two dimensions (got shape {grid.shape}), as "
                         "PeriodicGrid((n, n), length).")
