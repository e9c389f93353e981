"""Which diffusion is to be learned, from which data? On a grid and on an irregular graph.

For learn_diffusion.py, which fits it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyg_sinode import imex_odeint
from pyg_sinode.operators import Diagonal, Graph, LinearOperator
from pyg_sinode.solvers import Direct

FINER = 4  # the grid of the data beside that of the fit
PRIOR = 10.0  # standard deviation of the weights of a network and of the logarithm of a rate


@dataclass
class Problem:
    """What is observed, what is to be found, and the truth to compare with."""

    name: str                     # of the coefficient
    medium: nn.Module             # of the fit, with operator(), reaction, prior()
    t: Tensor                     # of the snapshots, and later ones, (T,)
    seen: int                     # how many of them are for the fit, the first included
    exact: Tensor                 # (T, trajectories, nodes)
    data: Tensor                  # the same with noise; the first is known exactly
    log_true: Tensor              # the logarithm of the true coefficient
    true_reaction: Callable


def grid_problem(args: argparse.Namespace) -> Problem:
    """A bistable reaction, u = 0 and u = 1 being stable, in a medium of varying kappa."""
    n = args.nodes
    medium = Ring(n, 0.05, Reaction(), roughness=args.roughness)
    fine = Ring(FINER * n, 1.0, nn.Identity())
    x = fine.middle - 0.5 * fine.spacing
    waves = 2 * math.pi * torch.arange(1, 5).unsqueeze(1) * x
    a, b = torch.randn(2, args.trajectories, 4)
    start = torch.sigmoid(2.0 * (a @ waves.cos() + b @ waves.sin()))
    t, exact = observe(args, fine.operator_of(log_kappa(fine.middle)), bistable, start, FINER)
    return Problem("kappa", medium, t, args.times + 1, exact, with_noise(args, exact),
                   log_kappa(medium.middle), bistable)


def log_kappa(x: Tensor) -> Tensor:
    """Of the truth: a wave and a bump."""
    return (math.log(0.02) + 0.8 * (2 * math.pi * x).sin()
            + (-(((x - 0.7) / 0.08) ** 2)).exp())


def bistable(t: Tensor | float, u: Tensor) -> Tensor:
    return 10.0 * u * (1.0 - u) * (u - 0.3)


def graph_problem(args: argparse.Namespace) -> Problem:
    """An invasion of a network of sites: the conductance depends on length and on porosity."""
    n = args.nodes
    position = torch.rand(n, 2)
    near = torch.cdist(position, position).topk(7, largest=False).indices[:, 1:]
    edges = torch.stack([near.flatten(), torch.arange(n).repeat_interleave(6)])
    edges = torch.unique(torch.cat([edges, edges.flip(0)], dim=1), dim=1)
    porosity = 0.5 + 0.4 * (5.0 * position[:, 0]).sin() * (4.0 * position[:, 1]).cos()
    length = (position[edges[0]] - position[edges[1]]).norm(dim=1)
    middle = 0.5 * (porosity[edges[0]] + porosity[edges[1]])
    log_true = (0.2 * middle**2 / (length**2 + 0.03**2)).log()
    medium = Conductances(edges, torch.stack([length.log(), middle], dim=1), n)
    fisher = Fisher(2.0).requires_grad_(False)
    centre = torch.rand(args.trajectories, 1, 2)
    start = 0.8 * (-((position - centre) ** 2).sum(dim=-1) / (2 * 0.1**2)).exp()
    t, exact = observe(args, medium.operator_of(log_true), fisher, start, 1)
    return Problem("conductances", medium, t, args.times + 1, exact, with_noise(args, exact),
                   log_true, fisher)


@torch.no_grad()
def observe(args: argparse.Namespace, J: LinearOperator, G: Callable, u0: Tensor, every: int
            ) -> tuple[Tensor, Tensor]:
    """Times, three times as many as are for the fit, and accurate states at every so many nodes."""
    t = args.interval * torch.arange(3 * args.times + 1)
    exact = imex_odeint(G, J, u0, t, method="ark436l2sa", rtol=1e-8, atol=1e-10, solver=Direct())
    return t, exact[..., ::every].contiguous()


def with_noise(args: argparse.Namespace, exact: Tensor) -> Tensor:
    return exact + args.noise * torch.randn_like(exact)


def diffusion(edge_index: Tensor, weight: Tensor, num_nodes: int) -> LinearOperator:
    """The operator sum_j w_ij (u_j - u_i) on states whose last dimension is the nodes."""
    degree = weight.new_zeros(num_nodes).index_add(0, edge_index[1], weight)
    return Graph(edge_index, weight, num_nodes, dim=-1) + Diagonal(-degree)


class Reaction(nn.Module):
    """r(u) by a small network, the same everywhere; zero at first."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))
        first, _, last = self.net
        nn.init.constant_(first.weight, 10.0)  # steps in u, a tenth wide, all over [0, 1]
        first.bias.data = -10.0 * torch.linspace(0.0, 1.0, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, t: Tensor | float, u: Tensor) -> Tensor:
        return 0.1 * self.net(u.unsqueeze(-1)).squeeze(-1)


class Fisher(nn.Module):
    """r(u) = rate u (1 - u) with an unknown rate."""

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor(math.log(rate)))

    def forward(self, t: Tensor | float, u: Tensor) -> Tensor:
        return self.log_rate.exp() * u * (1.0 - u)


class Ring(nn.Module):
    r"""A periodic grid of length 1 with kappa at the midpoints between neighbours, and a reaction.

    log kappa = a_0 + sum_m roughness / (pi m) (a_m cos(2 pi m x) + b_m sin(2 pi m x)), where all
    a_m and b_m have the prior N(0, 1): it is rough like a random walk.
    """

    def __init__(self, points: int, kappa: float, reaction: nn.Module, *, modes: int = 16,
                 roughness: float = 1.0) -> None:
        super().__init__()
        self.spacing, self.reaction = 1.0 / points, reaction
        left = torch.arange(points)
        right = (left + 1) % points
        self.edge_index = torch.stack([torch.cat([left, right]), torch.cat([right, left])])
        self.middle = (left + 0.5) * self.spacing
        m = torch.arange(1, min(modes, (points - 1) // 2) + 1).unsqueeze(1)
        waves = 2 * math.pi * m * self.middle
        self.basis = torch.cat([waves.cos() / m, waves.sin() / m]) * (roughness / math.pi)
        self.mean = nn.Parameter(torch.tensor(math.log(kappa)))
        self.series = nn.Parameter(torch.zeros(len(self.basis)))

    def log_coefficient(self) -> Tensor:
        return self.mean + self.series @ self.basis

    def operator(self) -> LinearOperator:
        return self.operator_of(self.log_coefficient())

    def operator_of(self, log_kappa: Tensor) -> LinearOperator:
        """The divergence of the fluxes kappa_{i + 1/2} (u_{i + 1} - u_i) / h."""
        weight = log_kappa.exp() / self.spacing**2
        return diffusion(self.edge_index, weight.repeat(2), len(weight))

    def prior(self) -> Tensor:
        """Residuals whose squares, halved and summed, are minus the logarithm of the prior."""
        return torch.cat([self.series, *(p.flatten() / PRIOR for p in self.reaction.parameters())])


class Conductances(nn.Module):
    """A graph whose edges' weights are a network of their attributes, and Fisher's reaction."""

    def __init__(self, edge_index: Tensor, edge_attr: Tensor, num_nodes: int,
                 width: int = 12) -> None:
        super().__init__()
        self.edge_index, self.num_nodes = edge_index, num_nodes
        self.edge_attr = (edge_attr - edge_attr.mean(dim=0)) / edge_attr.std(dim=0)
        self.net = nn.Sequential(nn.Linear(edge_attr.size(1), width), nn.Tanh(),
                                 nn.Linear(width, 1))
        self.reaction = Fisher()

    def log_coefficient(self) -> Tensor:
        return self.net(self.edge_attr).squeeze(-1)

    def operator(self) -> LinearOperator:
        return self.operator_of(self.log_coefficient())

    def operator_of(self, log_weight: Tensor) -> LinearOperator:
        return diffusion(self.edge_index, log_weight.exp(), self.num_nodes)

    def prior(self) -> Tensor:
        return torch.cat([p.flatten() / PRIOR for p in self.parameters()])
