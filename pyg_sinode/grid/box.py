"""Which operators does a grid with fixed values or insulated ends have?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..operators import SineCosine
from .axes import Grid, check_discretization, product_of_axes, sum_over_axes

KINDS = {"dirichlet": "sine", "neumann": "cosine"}


@dataclass(frozen=True, init=False)
class BoxGrid(Grid):
    r"""A grid of a line, a rectangle or a box, with fixed values or zero slopes at its ends.

    Along an axis of length L with n points, where i = 0 to n - 1,

    - :obj:`"dirichlet"`: u = 0 at both ends. The points are the interior ones,
      :math:`x_i = (i + 1) L / (n + 1)`; the ends, where u is known, are no unknowns.
    - :obj:`"neumann"`: :math:`u_x = 0` at both ends. The points are the centres of n equal cells,
      :math:`x_i = (i + 1/2) L / n`; the sum over the points is what diffusion conserves.

    The last dimensions of a state are the axes of the grid. Transforms of more than 128 points are
    fast if n + 1 (Dirichlet) or n (Neumann) has small prime factors. For other values at the ends,
    subtract a function that has them.

    Args:
        shape (int or tuple of int): Number of points n along each of one to three axes.
        length (float or tuple of float): Length L of each axis.
        boundary (str or tuple of str): :obj:`"dirichlet"` or :obj:`"neumann"`, for all axes or for
            each. (default: :obj:`"dirichlet"`)

    Raises:
        ValueError: if a number or a length is not positive, a boundary is not one of these, or
            the arguments do not match.
        TypeError: if a number of points is not an integer.
    """

    boundary: tuple[str, ...]

    def __init__(self, shape: int | Sequence[int], length: float | Sequence[float],
                 boundary: str | Sequence[str] = "dirichlet") -> None:
        super().__init__(shape, length)
        count = len(self.shape)
        named = (boundary,) * count if isinstance(boundary, str) else tuple(boundary)
        if len(named) != count or any(name not in KINDS for name in named):
            raise ValueError(f"Expected boundary to be one of {', '.join(KINDS)}, for all axes or "
                             f"for each of {count} (got {boundary!r}); PeriodicGrid has none.")
        object.__setattr__(self, "boundary", named)

    @property
    def spacing(self) -> tuple[float, ...]:
        """The distance between neighbouring points along each axis, in units of length."""
        return tuple(x / (n + 1 if name == "dirichlet" else n)
                     for x, n, name in zip(self.length, self.shape, self.boundary, strict=True))

    @property
    def points(self) -> Tensor:
        """The coordinates in float64, of shape (n,) or, on several axes, (\\*shape, axes)."""
        axes = [(torch.arange(n, dtype=torch.float64) + (1.0 if name == "dirichlet" else 0.5)) * h
                for n, h, name in zip(self.shape, self.spacing, self.boundary, strict=True)]
        return product_of_axes(axes)

    def wavenumbers(self, axis: int = 0) -> Any:
        r"""The wavenumbers :math:`\pi m / L` of the sine or cosine waves along an axis.

        m is from 1 to n for sines, from 0 to n - 1 for cosines; per unit of length.
        """
        first = 1 if self.boundary[axis] == "dirichlet" else 0
        return np.pi / self.length[axis] * np.arange(first, self.shape[axis] + first)

    def laplacian(self, *, discretization: str = "spectral") -> SineCosine:
        r"""The Laplacian :math:`\sum_a \partial^2 / \partial x_a^2` over all axes, as an operator.

        It has a closed inverse, by sine and cosine transforms.

        Args:
            discretization (str): :obj:`"spectral"`, exact for the waves of the grid, or
                :obj:`"finite_difference"`, the stencil (1, -2, 1) along each axis, with zeros
                beyond Dirichlet ends and the outermost value repeated beyond Neumann ends.
                (default: :obj:`"spectral"`)

        Raises:
            ValueError: if the discretization is not one of these.
        """
        return self.function_of_laplacian(lambda s: s, discretization=discretization)

    def function_of_laplacian(self, f: Callable[[Any], Any], *,
                              discretization: str = "spectral") -> SineCosine:
        r"""The operator :math:`f(\Delta)`, such as :math:`f(s) = -s - s^2`.

        Args:
            f (callable): Maps the array of eigenvalues of the Laplacian to those of the operator;
                with :obj:`torch` functions and tensors it may be differentiable.
            discretization (str): As for :meth:`laplacian`. (default: :obj:`"spectral"`)
        """
        check_discretization(discretization)
        count = len(self.shape)
        waves = [self.wavenumbers(axis) for axis in range(count)]
        if discretization == "finite_difference":
            waves = [2 / h * np.sin(k * h / 2) for k, h in zip(waves, self.spacing, strict=True)]
        eigenvalues = -sum_over_axes([k**2 for k in waves])
        return SineCosine(f(eigenvalues), [KINDS[name] for name in self.boundary], dim=self.dims)
