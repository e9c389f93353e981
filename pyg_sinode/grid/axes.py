"""Which axes does a grid have?"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

DISCRETIZATIONS = ("spectral", "finite_difference")


@dataclass(frozen=True)
class Grid:
    """Base class of grids of equally spaced points along one to three axes.

    Args:
        shape (int or tuple of int): Number of points n along each axis.
        length (float or tuple of float): Length L of each axis.
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

    def check(self, u: Tensor) -> None:
        """Raises a ValueError if the last dimensions of a state u are not those of the grid."""
        if tuple(u.shape[-len(self.shape):]) != self.shape:
            raise ValueError(f"Expected a state whose last dimensions are those of the grid, "
                             f"{self.shape} (got {tuple(u.shape)}).")


def product_of_axes(axes: Sequence[Tensor]) -> Tensor:
    """The coordinates of all points, of shape (n,) or, on several axes, (*shape, axes)."""
    if len(axes) == 1:
        return axes[0]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def sum_over_axes(values: Sequence[Any]) -> Any:
    """The sums of one value for each axis, an array with the shape of the grid."""
    meshes = np.meshgrid(*values, indexing="ij")
    return sum(meshes[1:], meshes[0])


def check_discretization(discretization: str) -> None:
    """Raises a ValueError unless the name is that of a discretization."""
    if discretization not in DISCRETIZATIONS:
        raise ValueError(f"Expected discretization to be one of {', '.join(DISCRETIZATIONS)} (got "
                         f"{discretization!r}).")
