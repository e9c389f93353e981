"""Which data sets of trajectories on grids are there? They are computed at the first use."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, Dataset
from tqdm import tqdm

from .grid import Equation, PeriodicGrid, kuramoto_sivashinsky, resample, viscous_burgers
from .odeint import imex_odeint


class KuramotoSivashinsky(Dataset):
    r"""Trajectories on the attractor of the Kuramoto-Sivashinsky equation with L = 22.

    They start from random states and are integrated by a Fourier spectral method and the scheme
    ark436l2sa with step size 0.025. The first 100 units of time are discarded; then a state is
    saved every 0.2 units of time. The splits are time intervals of the same trajectories: the first
    60 % for training, 65 to 70 % for validation and the last 25 % for testing, with gaps of 5 %
    between them.

    An item is a pair of successive states as a :class:`~torch_geometric.data.Data` of the grid:
    node features :obj:`x` and, 0.2 units of time later, :obj:`y`. The attribute :attr:`states`
    holds all states of the split as one tensor.

    Args:
        root (str): Directory of the cache, which is computed at the first use.
        split (str): :obj:`"train"`, :obj:`"val"` or :obj:`"test"`. (default: :obj:`"train"`)
        num_points (int): Number of grid points n. (default: :obj:`64`)
        trajectories (int): Number of trajectories. (default: :obj:`32`)
        duration (float): Length of each trajectory, in units of time; the Lyapunov time is 22.
            (default: :obj:`500.0`)
        seed (int): Seed of the initial states. (default: :obj:`0`)
        transform (callable, optional): A function applied to each item at each access.
            (default: :obj:`None`)
        pre_transform (callable, optional): A function applied to each item before
            :obj:`transform`. (default: :obj:`None`)
        dtype (torch.dtype): The dtype of states and features; the cache is in float64.
            (default: :obj:`torch.float64`)
        force_reload (bool): Whether to compute the data again. (default: :obj:`False`)

    Shapes:
        - **states:** :math:`(trajectories, times, n)`
    """

    step = 0.2  # between saved states, in units of time

    def __init__(self, root: str, split: str = "train", *, num_points: int = 64,
                 trajectories: int = 32, duration: float = 500.0, seed: int = 0,
                 transform: Callable[[Data], Data] | None = None,
                 pre_transform: Callable[[Data], Data] | None = None,
                 dtype: torch.dtype = torch.float64, force_reload: bool = False) -> None:
        _check_choice(split, ("train", "val", "test"))
        _check_counts(num_points, trajectories)
        if not 40 * self.step <= duration < math.inf:
            raise ValueError(f"Expected a finite duration of at least {40 * self.step} for three "
                             f"splits and their gaps (got {duration}).")
        self.grid = PeriodicGrid(num_points, 22.0)
        self.equation = kuramoto_sivashinsky(self.grid)
        self.key = {"points": num_points, "trajectories": trajectories, "duration": float(duration),
                    "seed": seed, "version": 1}
        _check_dtype(dtype)
        super().__init__(root, transform, pre_transform, force_reload=force_reload)
        states = _load_or_make(Path(self.processed_paths[0]), self.key, self._make)
        bounds = {"train": (0.0, 0.6), "val": (0.65, 0.7), "test": (0.75, 1.0)}[split]
        first, last = (round(b * (states.size(1) - 1)) for b in bounds)
        self.states = _own(states[:, first : last + 1], dtype)
        self.times = self.step * torch.arange(first, last + 1, dtype=torch.float64)

    @property
    def processed_file_names(self) -> str:
        """The file of the cache."""
        return _file_name("kuramoto_sivashinsky", self.key)

    def process(self) -> None:
        """Computes the data if there is no cache."""
        if self.force_reload:
            Path(self.processed_paths[0]).unlink(missing_ok=True)
        _load_or_make(Path(self.processed_paths[0]), self.key, self._make)

    def _make(self) -> Tensor:
        generator = torch.Generator().manual_seed(int(self.key["seed"]))
        # The same initial states on every grid: those that the coarsest one can hold.
        u = kuramoto_sivashinsky(PeriodicGrid(32, 22.0)).initial(
            int(self.key["trajectories"]), generator)
        u = resample(u, self.grid.shape[0])
        transient, saved = 100.0, round(self.key["duration"] / self.step)
        count = round(transient / self.step) + saved
        states = integrate_states(self.equation, u, self.step, count, lambda u: 0.025,
                                  "Kuramoto-Sivashinsky")
        return states[:, -saved - 1 :].clone()

    def len(self) -> int:
        """The number of items."""
        return self.states.size(0) * (self.states.size(1) - 1)

    def get(self, idx: int) -> Data:
        """The item ``idx``, a pair of successive states."""
        data = _step_as_data(self.grid, self.states, idx)
        return data if self.pre_transform is None else self.pre_transform(data)


class BurgersTurbulence(Dataset):
    r"""Decaying turbulence of the viscous Burgers equation, L = 1, :math:`\nu = 8 \cdot 10^{-4}`.

    Random initial states (see :func:`~pyg_sinode.grid.viscous_burgers`) are integrated by a Fourier
    spectral method and the scheme ark436l2sa on at least 1024 points. The step size is at most
    0.01, and small enough that u moves by no more than 1.2 grid spacings per step. A state is saved
    every 0.1 units of time. The first 80 % of the trajectories are for training, the others for
    testing.

    An item is a pair of successive states as a :class:`~torch_geometric.data.Data` of the grid:
    node features :obj:`x` and, 0.1 units of time later, :obj:`y`. The attribute :attr:`states`
    holds all states of the split as one tensor.

    Args:
        root (str): Directory of the cache, which is computed at the first use.
        split (str): :obj:`"train"` or :obj:`"test"`. (default: :obj:`"train"`)
        num_points (int): Number of grid points n. (default: :obj:`512`)
        trajectories (int): Number of trajectories in both splits. (default: :obj:`100`)
        duration (float): Length of each trajectory, in units of time. (default: :obj:`5.0`)
        seed (int): Seed of the initial states. (default: :obj:`0`)
        transform (callable, optional): A function applied to each item at each access.
            (default: :obj:`None`)
        pre_transform (callable, optional): A function applied to each item before
            :obj:`transform`. (default: :obj:`None`)
        dtype (torch.dtype): The dtype of states and features; the cache is in float64.
            (default: :obj:`torch.float64`)
        force_reload (bool): Whether to compute the data again. (default: :obj:`False`)

    Shapes:
        - **states:** :math:`(trajectories, times, n)`
    """

    step = 0.1  # between saved states, in units of time
    viscosity = 8e-4

    def __init__(self, root: str, split: str = "train", *, num_points: int = 512,
                 trajectories: int = 100, duration: float = 5.0, seed: int = 0,
                 transform: Callable[[Data], Data] | None = None,
                 pre_transform: Callable[[Data], Data] | None = None,
                 dtype: torch.dtype = torch.float64, force_reload: bool = False) -> None:
        _check_choice(split, ("train", "test"))
        _check_counts(num_points, trajectories)
        if trajectories < 5 or not self.step <= duration < math.inf:
            raise ValueError(f"Expected at least 5 trajectories and a finite duration of at least "
                             f"{self.step} (got {trajectories} and {duration}).")
        self.grid = PeriodicGrid(num_points, 1.0)
        self.equation = viscous_burgers(self.grid, self.viscosity)
        self.key = {"points": num_points, "trajectories": trajectories, "duration": float(duration),
                    "seed": seed, "version": 1}
        _check_dtype(dtype)
        super().__init__(root, transform, pre_transform, force_reload=force_reload)
        states = _load_or_make(Path(self.processed_paths[0]), self.key, self._make)
        train = trajectories * 4 // 5
        self.states = _own(states[:train] if split == "train" else states[train:], dtype)
        self.times = self.step * torch.arange(states.size(1), dtype=torch.float64)

    @property
    def processed_file_names(self) -> str:
        """The file of the cache."""
        return _file_name("burgers_turbulence", self.key)

    def process(self) -> None:
        """Computes the data if there is no cache."""
        if self.force_reload:
            Path(self.processed_paths[0]).unlink(missing_ok=True)
        _load_or_make(Path(self.processed_paths[0]), self.key, self._make)

    def _make(self) -> Tensor:
        fine = PeriodicGrid(max(1024, self.grid.shape[0]), 1.0)
        equation = viscous_burgers(fine, self.viscosity)
        generator = torch.Generator().manual_seed(int(self.key["seed"]))
        # The same initial states on every grid: the spectrum is empty beyond the modes of this one.
        u = viscous_burgers(PeriodicGrid(64, 1.0), self.viscosity).initial(
            int(self.key["trajectories"]), generator)

        def moved(u: Tensor) -> float:
            return min(0.01, 1.2 * fine.spacing[0] / float(u.abs().max()))

        states = integrate_states(equation, resample(u, fine.shape[0]), self.step,
                                  round(self.key["duration"] / self.step), moved, "Burgers")
        return resample(states, self.grid.shape[0])

    def len(self) -> int:
        """The number of items."""
        return self.states.size(0) * (self.states.size(1) - 1)

    def get(self, idx: int) -> Data:
        """The item ``idx``, a pair of successive states."""
        data = _step_as_data(self.grid, self.states, idx)
        return data if self.pre_transform is None else self.pre_transform(data)


@torch.no_grad()
def integrate_states(equation: Equation, u: Tensor, interval: float, count: int,
                     step_size: Callable[[Tensor], float], name: str) -> Tensor:
    """The states at the times 0, interval, ..., count * interval.

    Args:
        equation (Equation): The equation.
        u (Tensor): The initial states.
        interval (float): The time between saved states.
        count (int): The number of intervals.
        step_size (callable): From the states at the start of an interval to its step size.
        name (str): The label of the progress bar.

    Shapes:
        - **u:** (trajectories, n)
        - **output:** (trajectories, count + 1, n)
    """
    states = u.new_empty(u.size(0), count + 1, u.size(1))
    states[:, 0] = u
    t = torch.tensor([0.0, interval], dtype=torch.float64)
    for i in tqdm(range(count), desc=name, leave=False, disable=None):
        u = imex_odeint(equation.explicit, equation.implicit, u, t, method="ark436l2sa",
                        step_size=step_size(u))[-1]
        states[:, i + 1] = u
    return states


def _load_or_make(path: Path, key: dict[str, Any], make: Callable[[], Tensor]) -> Tensor:
    """The states in the cache if it is intact and has this key, else computed and stored there."""
    if path.exists():
        try:
            return _load(path, key)
        except Exception as error:  # a damaged file raises errors of almost any type
            print(f"{path} is damaged and is made again: {error}", file=sys.stderr)
    states = make()
    # Written under another name, then renamed: an interrupted run leaves no incomplete file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"states": states, "key": key, "sha256": _checksum(states)}, temporary)
    os.replace(temporary, path)
    return states


def _load(path: Path, key: dict[str, Any]) -> Tensor:
    content = torch.load(path, weights_only=True)
    states: Tensor = content["states"] if isinstance(content, dict) else torch.empty(0)
    if content.get("key") != key or content.get("sha256") != _checksum(states):
        raise ValueError("its contents do not fit its checksum")
    return states


def _checksum(states: Tensor) -> str:
    return hashlib.sha256(states.contiguous().numpy().tobytes()).hexdigest()


def _file_name(name: str, key: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return f"{name}-{key['points']}-{digest[:12]}.pt"


def _step_as_data(grid: PeriodicGrid, states: Tensor, idx: int) -> Data:
    trajectory, time = divmod(idx, states.size(1) - 1)
    data = grid.to_data(states[trajectory, time])
    data.y = states[trajectory, time + 1].reshape(-1, 1)
    return data


def _own(states: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a slice of the states: pickling a view would pickle all of them."""
    return states.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _check_dtype(dtype: Any) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"Expected dtype as torch.float32 or torch.float64 (got {dtype}).")


def _check_choice(split: str, choices: tuple[str, ...]) -> None:
    if split not in choices:
        raise ValueError(f"Expected split to be one of {', '.join(choices)} (got {split!r}).")


def _check_counts(num_points: int, trajectories: int) -> None:
    for name, value, least in (("num_points", num_points, 32), ("trajectories", trajectories, 1)):
        if not isinstance(value, int):
            raise TypeError(f"Expected {name} as an int (got {type(value).__name__}).")
        if value < least:
            raise ValueError(f"Expected {name} of at least {least} (got {value}).")
