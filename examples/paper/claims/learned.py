"""Can the implicit part be a network that learns its J, with exact gradients, beside G?"""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

import torch
from drawing import COLORS, marked, style
from measuring import FAILURES, markdown
from torch import Tensor, nn
from tqdm import tqdm

from claims.finding import Finding, Verdict
from pyg_sinode import IMEXTableau, Stats, imex_odeint
from pyg_sinode.grid import PeriodicGrid, viscous_burgers
from pyg_sinode.operators import MatrixFree
from pyg_sinode.schemes import get_scheme
from pyg_sinode.solvers import GMRES

METHOD, STEP, VISCOSITY = "imex_rk3", 0.02, 0.05
EXACT, LEARNED = 1e-8, 0.05  # relative errors up to which a gradient, and a symbol, count as such


class LearnedStencil(nn.Module):
    """J u: a circular convolution without a bias, its weights in units of 1 / spacing^2."""

    def __init__(self, grid: PeriodicGrid, width: int = 5) -> None:
        super().__init__()
        self.scale = grid.spacing[0] ** -2
        self.conv = nn.Conv1d(1, 1, width, padding=width // 2, padding_mode="circular", bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, u: Tensor) -> Tensor:
        return self.conv(u.unsqueeze(-2)).squeeze(-2) * self.scale


class SquareNet(nn.Module):
    """G(u): two convolutions with a square between; G'(0) = 0, so that all linear terms are J's."""

    def __init__(self, grid: PeriodicGrid, channels: int = 4, width: int = 3) -> None:
        super().__init__()
        self.scale = 1 / grid.spacing[0]
        conv = partial(nn.Conv1d, padding=width // 2, padding_mode="circular", bias=False)
        self.net1, self.net2 = conv(1, channels, 1, padding=0), conv(channels, 1, width)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.net2(self.net1(u.unsqueeze(-2)).square()).squeeze(-2) * self.scale


def learned(args: argparse.Namespace) -> Finding:
    """Trains G and J on states of Burgers' equation, from J = 0."""
    torch.manual_seed(args.seed)
    grid = PeriodicGrid(args.learned_points, 1.0)
    states = make_states(args, grid)
    term, stencil = SquareNet(grid).double(), LearnedStencil(grid).double()
    losses, stats = train(args, term, stencil, states)
    # On the data the trained weights have a gradient of rounding alone; of the squares of the
    # states they have not.
    held = torch.cat([states[:4, :1], torch.zeros_like(states[:4, 1:])], dim=1)
    gradient = gradient_error(term, stencil, held)
    true, found = true_symbol(grid), symbol(stencil, grid)
    error = float((found - true).norm() / true.norm())
    per_solve = stats.linear_iterations / stats.linear_solves
    record = {"losses": losses, "symbol_error": error, "gradient_error": gradient,
              "iterations_per_solve": per_solve, "true": true.tolist(), "found": found.tolist(),
              "kernel": stencil.conv.weight.flatten().tolist()}
    rows = [["loss, first epoch", f"{losses[0]:.1e}"], ["loss, last epoch", f"{losses[-1]:.1e}"],
            ["relative error of the symbol of J", f"{error:.1e}"],
            ["relative error of the gradient of J's weights", f"{gradient:.1e}"],
            ["GMRES iterations a solve, last epoch", f"{per_solve:.1f}"],
            ["step times the largest eigenvalue of the true J", f"{STEP * true.abs().max():.1f}"]]
    table = (f"Burgers, viscosity {VISCOSITY}, {args.learned_points} points, step {STEP} of "
             f"{METHOD}, {len(losses)} epochs, half of Adam, half of L-BFGS; J a circular "
             "convolution of 5 weights, G two convolutions with a square between. The gradient is "
             "held against autograd through dense solves.\n\n"
             + markdown(["quantity", "value"], rows))
    return Finding("J may be a network of its own, solved without a matrix (equations 9 and 12)",
                   judge_learned(error, gradient), [table], [record],
                   {"learned": partial(draw, grid, record)})


def judge_learned(error: float, gradient: float) -> Verdict:
    """From the relative errors of the learned symbol and of the gradient of J."""
    return Verdict(error <= LEARNED and gradient <= EXACT,
                   f"the symbol of the learned J is off by {error:.1e} (asked for {LEARNED:g}), "
                   f"the gradient of J by {gradient:.1e} (asked for {EXACT:g})")


def make_states(args: argparse.Namespace, grid: PeriodicGrid) -> Tensor:
    """Two states of each of the true trajectories, (count, 2, n), from waves of all lengths.

    By the same steps as in training: from exact states J would learn to make up for the error that
    a step makes in the shortest waves, and not be the true one.
    """
    G, J, _ = viscous_burgers(grid, VISCOSITY, discretization="finite_difference")
    waves = torch.fft.rfft(torch.randn(args.trajectories, grid.num_nodes, dtype=torch.float64))
    waves *= 1 / (1 + torch.arange(waves.size(-1)) / 4)
    u0 = torch.fft.irfft(waves, grid.num_nodes)
    t = STEP * torch.arange(2, dtype=torch.float64)
    return imex_odeint(G, J, u0, t, method=METHOD, step_size=STEP).movedim(0, 1)


def train(args: argparse.Namespace, term: nn.Module, stencil: nn.Module, states: Tensor
          ) -> tuple[list[float], Stats]:
    """The loss of each epoch on all states, half by Adam, half by L-BFGS; the last statistics."""
    # J at a low rate: a step of its weights must not bring an eigenvalue to 1 / c.
    adam = torch.optim.Adam([{"params": term.parameters(), "lr": 2e-2},
                             {"params": stencil.parameters(), "lr": 4e-3}])
    lbfgs = torch.optim.LBFGS([*term.parameters(), *stencil.parameters()], max_iter=2,
                              history_size=40, tolerance_change=0.0, tolerance_grad=0.0,
                              line_search_fn="strong_wolfe")
    losses, stats = [], Stats()

    def closure() -> Tensor:
        nonlocal stats
        adam.zero_grad()
        try:
            loss, stats = loss_of(term, stencil, states)
            loss.backward()
        except FAILURES:
            # The line search went where I - cJ is singular or the state overflows: it turns back.
            for p in (*term.parameters(), *stencil.parameters()):
                p.grad = torch.zeros_like(p)
            return states.new_tensor(1e3)
        return loss

    bar = tqdm(range(args.epochs), desc="learned J", leave=False, disable=None)
    for epoch in bar:
        loss = (adam if epoch < args.epochs // 2 else lbfgs).step(closure)
        losses.append(float(loss.detach()))
        bar.set_postfix(loss=f"{losses[-1]:.1e}")
    return losses, stats


def loss_of(term: nn.Module, stencil: nn.Module, states: Tensor, rtol: float = 1e-9
            ) -> tuple[Tensor, Stats]:
    t = STEP * torch.arange(states.size(1), dtype=torch.float64)
    found, stats = imex_odeint(term, MatrixFree(stencil), states[:, 0], t, method=METHOD,
                               step_size=STEP, solver=GMRES(rtol), return_stats=True)
    return (found[1:].movedim(0, 1) - states[:, 1:]).square().mean(), stats


def gradient_error(term: nn.Module, stencil: LearnedStencil, states: Tensor) -> float:
    """The relative error of the gradient of J's weights, against autograd through dense solves."""
    tableau, weight = get_scheme(METHOD), stencil.conv.weight
    assert isinstance(tableau, IMEXTableau)
    (found,) = torch.autograd.grad(loss_of(term, stencil, states, 1e-13)[0], weight)
    u, loss = states[:, 0], states.new_zeros(())
    matrix = stencil(torch.eye(u.size(-1), dtype=u.dtype)).t()
    for k in range(1, states.size(1)):
        u = dense_step(tableau, term, matrix, u)
        loss = loss + (u - states[:, k]).square().sum()
    (expected,) = torch.autograd.grad(loss / states[:, 1:].numel(), weight)
    return float((found - expected).norm() / expected.norm())


def dense_step(tableau: IMEXTableau, term: nn.Module, matrix: Tensor, u: Tensor) -> Tensor:
    """One step of a scheme with plain matrices, as the scheme is on paper."""
    a, b = tableau.a_explicit.tolist(), tableau.b_explicit.tolist()
    a_implicit, b_implicit = tableau.a_implicit.tolist(), tableau.b_implicit.tolist()
    identity, time, G, J = torch.eye(u.size(-1), dtype=u.dtype), u.new_zeros(()), [], []
    for i in range(len(b)):
        right = u + sum(STEP * (a[i][j] * G[j] + a_implicit[i][j] * J[j]) for j in range(i))
        U = torch.linalg.solve(identity - STEP * a_implicit[i][i] * matrix, right.t()).t()
        G.append(term(time, U))
        J.append(U @ matrix.t())
    return u + sum(STEP * (b[i] * G[i] + b_implicit[i] * J[i]) for i in range(len(b)))


def symbol(stencil: nn.Module, grid: PeriodicGrid) -> Tensor:
    """The eigenvalue of each Fourier mode, up to the shortest wave."""
    impulse = torch.zeros(grid.num_nodes, dtype=torch.float64)
    impulse[0] = 1.0
    with torch.no_grad():
        return torch.view_as_real(torch.fft.rfft(stencil(impulse.unsqueeze(0))[0]))


def true_symbol(grid: PeriodicGrid) -> Tensor:
    J = viscous_burgers(grid, VISCOSITY, discretization="finite_difference").implicit
    impulse = torch.zeros(grid.num_nodes, dtype=torch.float64)
    impulse[0] = 1.0
    return torch.view_as_real(torch.fft.rfft(J.mv(impulse)))


def draw(grid: PeriodicGrid, record: dict[str, Any], figure: Any) -> None:
    """The symbols side by side, and the loss against the epoch."""
    left, right = figure.subplots(1, 2)
    waves = [2 * math.pi * k / grid.length[0] for k in range(len(record["true"]))]
    for j, (key, label) in enumerate((("true", "true J"), ("found", "learned J"))):
        left.plot(waves, [-x[0] for x in record[key]], label=label,
                  **style(6 - 2 * j, j, j), markevery=marked(len(waves), 12))
    left.set(xlabel="wavenumber, dimensionless", ylabel="decay rate, dimensionless",
             title="How fast J damps each Fourier mode")
    left.legend(loc="upper left")
    right.semilogy(range(1, len(record["losses"]) + 1), record["losses"], color=COLORS[0])
    right.set(xlabel="epoch", ylabel="mean squared error, dimensionless",
              title="Training loss: half of Adam, half of L-BFGS")
