"""Which problems on grids does the paper train?

Kuramoto-Sivashinsky and viscous Burgers with a known linear part J and a perceptron for G, as in
section 5 of "Semi-Implicit Neural Ordinary Differential Equations", arXiv:2412.11301.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from grid_learning import GridMLP, stiffness, windows
from systems import Equation, System
from torch import Tensor

from pyg_sinode.datasets import BurgersTurbulence, KuramotoSivashinsky
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky, viscous_burgers
from pyg_sinode.operators import LinearOperator

# For u' = -a u a step is stable up to this over a, of Adams and Bashforth's method of order 3 with
# 6 / 11 (Hairer, Wanner, Solving Ordinary Differential Equations II, section V.1); a tenth is left
# for G.
REACH = MappingProxyType({"rk4": 2.785, "explicit_adams": 6 / 11})
MARGIN = 0.9


@dataclass(frozen=True)
class GridProblem:
    """A problem of the paper's table 2.

    Attributes:
        name: In tables and options.
        equation: "ks" or "burgers".
        num_points: Points of the grid.
        width: Of the four hidden layers of G.
        batch_size: Windows in a batch, each one interval between saved states long.
        batches: In an epoch.
        step_sizes: The paper's, by kind of system.
        trajectories: Of the data set.
        duration: Their length in time.
    """

    name: str
    equation: str
    num_points: int
    width: int
    batch_size: int
    batches: int
    step_sizes: Mapping[str, float]
    trajectories: int
    duration: float

    @property
    def dataset(self) -> type[KuramotoSivashinsky] | type[BurgersTurbulence]:
        return KuramotoSivashinsky if self.equation == "ks" else BurgersTurbulence

    @property
    def interval(self) -> float:
        """Time from a saved state to the next, the length of a window."""
        return self.dataset.step

    @property
    def t(self) -> Tensor:
        """The times of a window."""
        return torch.tensor([0.0, self.interval], dtype=torch.float64)

    @property
    def length(self) -> float:
        """Of the periodic box."""
        return 22.0 if self.equation == "ks" else 1.0

    @cached_property
    def linear(self) -> LinearOperator:
        """J by the paper's finite differences."""
        grid = PeriodicGrid(self.num_points, self.length)
        if self.equation == "ks":
            return kuramoto_sivashinsky(grid, discretization="finite_difference").implicit
        return viscous_burgers(grid, BurgersTurbulence.viscosity,
                               discretization="finite_difference").implicit

    def stable_step(self, system: System) -> float:
        """Nearly the largest step of an explicit system at which u' = J u is stable."""
        return MARGIN * REACH[system.name] / stiffness(self.linear, self.num_points)

    def model(self, seed: int) -> GridMLP:
        """G with the weights of a seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return GridMLP(self.num_points, self.width)

    def split(self, model: GridMLP) -> Equation:
        """The equation as a system integrates it; the states of a batch do not mix."""
        return Equation(model, self.linear, dim=-1)

    def step_size(self, system: System) -> float:
        """The paper's; adaptive systems choose their own, whatever this is."""
        return self.step_sizes.get(system.kind, math.nan)

    def states(self, root: Path, split: str) -> Tensor:
        """(trajectories, times, n), made and kept under root at the first use."""
        data = self.dataset(str(root), split, num_points=self.num_points,
                            trajectories=self.trajectories, duration=self.duration)
        return data.states.float()

    def batch(self, states: Tensor, seed: int, number: int) -> Tensor:
        """The batch of a number in the order of a seed: (batch, 2, n)."""
        generator = torch.Generator().manual_seed(1_000_000 * seed + number)
        return windows(states, self.batch_size, 1, generator)


def resized(problem: GridProblem, num_points: int | None = None, batch_size: int | None = None,
            trajectories: int | None = None, duration: float | None = None) -> GridProblem:
    """The problem with other sizes; None: its own."""
    sizes = {"num_points": num_points, "batch_size": batch_size, "trajectories": trajectories,
             "duration": duration}
    if num_points is not None:
        sizes["width"] = round(problem.width * num_points / problem.num_points)
    return replace(problem, **{key: value for key, value in sizes.items() if value is not None})


def mean_square(found: Tensor, truth: Tensor) -> Tensor:
    """The loss: the mean squared error."""
    return (found - truth).square().mean()


def steps_of(explicit: float, others: float) -> Mapping[str, float]:
    return MappingProxyType({"explicit": explicit, "implicit": others, "imex": others})


PROBLEMS = {problem.name: problem for problem in (
    GridProblem("ks-64", "ks", 64, 200, 256, 15, steps_of(0.001, 0.2), 16, 100.0),
    GridProblem("ks-512", "ks", 512, 576, 256, 15, steps_of(0.001, 0.2), 16, 100.0),
    GridProblem("burgers-512", "burgers", 512, 576, 200, 19, steps_of(0.001, 0.05), 40, 2.0),
    GridProblem("burgers-1024", "burgers", 1024, 1152, 200, 19, steps_of(0.0005, 0.05), 40, 2.0),
)}
