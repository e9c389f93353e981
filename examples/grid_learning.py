"""How is the nonlinear term of an equation on a grid learned? Networks, training and rollouts.

Shared by kuramoto_sivashinsky.py and burgers.py, which have the data, the settings and the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measuring import FAILURES, Work
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torchdiffeq import odeint
from tqdm import tqdm

from pyg_sinode import imex_odeint
from pyg_sinode.grid import PeriodicGrid
from pyg_sinode.operators import Circulant, LinearOperator
from pyg_sinode.solvers import GMRES, Newton
from pyg_sinode.terms import Nonlinear

IMEX = ("imex_euler", "ars222", "ars443", "imex_rk2", "imex_rk3", "imex_rk4", "imex_rk5")
METHODS = (*IMEX, "crank_nicolson", "rk4", "dopri5")


class GridMLP(nn.Module):
    """G(u) by a multilayer perceptron of the whole state, four hidden layers as in the paper."""

    def __init__(self, num_points: int, width: int) -> None:
        super().__init__()
        widths = [num_points, width, width, width, width]
        layers = [layer for a, b in itertools.pairwise(widths)
                  for layer in (nn.Linear(a, b), nn.ReLU())]
        last = nn.Linear(width, num_points)
        with torch.no_grad():  # starts near G = 0, the linear equation
            last.weight.mul_(0.1)
            last.bias.zero_()
        self.net = nn.Sequential(*layers, last)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.net(u)


class GridFlux(MessagePassing):
    r"""G(u) by a learned flux between neighbouring nodes, :math:`v_i \mathrel{+}= F_{i - 1/2} -
    F_{i + 1/2}`, once or in several rounds from v = u, and :math:`G = (v - u) / s`.

    The flux between nodes i and i + 1 is made of the values z at the nodes i - r + 1 to i + r, by
    learned coefficients: a linear part and a bilinear one of products of neighbours; and, where
    :obj:`hidden` is not 0, a perceptron with a second output that gates diffusion between the two
    nodes. It conserves the mean, commutes with translations, and with the same weights runs on any
    grid. Several rounds carry values further than the stencil reaches.

    Args:
        grid (PeriodicGrid): The grid, of one dimension.
        radius (int): The r: how many nodes the flux sees on each side.
        hidden (int): Width of the perceptron; 0 for none.
        rounds (int): How often the message passing is repeated.
        scale (float, optional): The s, of the dimension of a time step; None: the distance of the
            nodes, for a flux that does not depend on the grid.
        stride (int): How many nodes of the grid there are from one neighbour to the next.
    """

    def __init__(self, grid: PeriodicGrid, radius: int = 3, hidden: int = 0, *, rounds: int = 1,
                 scale: float | None = None, stride: int = 1) -> None:
        super().__init__(node_dim=0)
        self.radius, self.hidden, self.rounds, self.given = radius, hidden, rounds, scale
        self.scale = grid.spacing[0] * stride if scale is None else scale
        edge_index, offset = grid.edge_index(radius * stride), grid.edge_offset(radius * stride)
        loops = torch.arange(grid.num_nodes).repeat(2, 1)
        # Sorted by their offset, so that the messages of one are a row for all nodes.
        rows = [loops if o == 0 else edge_index[:, offset[:, 0] == o * stride]
                for o in range(1 - radius, radius + 1)]
        self.register_buffer("edges", torch.cat(rows, dim=1), persistent=False)
        self.register_buffer("left", edge_index[0, offset[:, 0] == -stride], persistent=False)
        size = 2 * radius
        self.linear = nn.Parameter(torch.randn(size) * 0.05 / size)
        self.bilinear = nn.Parameter(torch.randn(size, size) * 0.05 / size)
        if hidden:
            self.lin1, self.lin2 = nn.Linear(size, hidden), nn.Linear(hidden, 2)
            with torch.no_grad():
                self.lin2.weight.mul_(0.1)
                self.lin2.bias.copy_(torch.tensor([0.0, -1.0]))

    def on(self, grid: PeriodicGrid, stride: int = 1) -> GridFlux:
        """The same term on another grid."""
        other = GridFlux(grid, self.radius, self.hidden, rounds=self.rounds, scale=self.given,
                         stride=stride).to(self.linear)
        other.load_state_dict(self.state_dict())
        return other

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        start = v = u.reshape(-1, u.size(-1)).t().contiguous()
        for _ in range(self.rounds):
            flux = self.propagate(self.edges, v=v)
            v = v + flux.index_select(0, self.left) - flux
        return ((v - start) / self.scale).t().reshape(u.shape)

    def message(self, v_j: Tensor) -> Tensor:
        return v_j

    def aggregate(self, inputs: Tensor) -> Tensor:
        """The flux at each node from the neighbours' values side by side, not from their sum."""
        r = self.radius
        z = inputs.view(2 * r, -1)
        flux = ((self.bilinear.t() @ z + self.linear.unsqueeze(1)) * z).sum(dim=0)
        if self.hidden:
            inner = torch.addmm(self.lin1.bias.unsqueeze(1), self.lin1.weight, z).tanh()
            more, gate = torch.addmm(self.lin2.bias.unsqueeze(1), self.lin2.weight, inner)
            flux = flux + more - 0.5 * gate.sigmoid() * (z[r] - z[r - 1])
        return flux.view(-1, inputs.size(-1))


def integrate(method: str, term: nn.Module, linear: Circulant, u0: Tensor, t: Tensor,
              step_size: float, work: Work | None = None) -> Tensor:
    """The states at the times t, by whichever method; (T, batch, n)."""
    work = Work() if work is None else work
    if method in IMEX:
        states, stats = imex_odeint(term, linear, u0, t, method=method, step_size=step_size,
                                    return_stats=True)
        work.parts.append(stats)
        return states
    if method == "crank_nicolson":
        # Newton's method cannot see a residual below the rounding of h/2 J u.
        rtol = 16 * torch.finfo(u0.dtype).eps * (1 + step_size / 2 * stiffness(linear, u0.size(-1)))
        newton = Newton(rtol=rtol, solver=GMRES(restart=u0.size(-1)))
        whole = Nonlinear(RightHandSide(term), linear, dims=-1, newton=newton)
        states, stats = imex_odeint(None, whole, u0, t, method=method, step_size=step_size,
                                    return_stats=True)
        work.parts.append(stats)
        return states

    right_hand_side = work.counted(lambda t, u: term(t, u) + linear.mv(u))
    if method == "rk4":
        return odeint(right_hand_side, u0, t, method="rk4", options={"step_size": step_size})
    return odeint(right_hand_side, u0, t, method="dopri5", rtol=1e-4, atol=1e-6)


class RightHandSide(nn.Module):
    """G + J u, for a fully implicit integration."""

    def __init__(self, term: nn.Module) -> None:
        super().__init__()
        self.term = term

    def forward(self, t: Tensor, u: Tensor, linear: LinearOperator, *args: Any) -> Tensor:
        """The rate of change."""
        return self.term(t, u, *args) + linear.mv(u)


def stiffness(linear: Circulant, num_points: int) -> float:
    """The largest magnitude of an eigenvalue of the linear part, per unit of time."""
    return float(linear.half((num_points,)).abs().max())


def default_step(method: str, interval: float, linear: Circulant, num_points: int) -> float:
    """The whole interval; for RK4 nearly the largest at which the linear part is stable."""
    return interval if method != "rk4" else min(interval, 2.5 / stiffness(linear, num_points))


@dataclass
class Run:
    """What a training has come to; kept in its checkpoint."""

    epoch: int = 0
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)  # seconds, training loss, test loss
    work: dict[str, int] = field(default_factory=dict)  # of the last epoch
    factorizations: int = 0  # of all epochs


class DivergedError(RuntimeError):
    """A training loss that is not finite."""


def train(args: argparse.Namespace, name: str, model: nn.Module, linear: Circulant,
          draw: Callable[[int, int, torch.Generator], Tensor],
          loss: Callable[[Tensor, Tensor], Tensor],
          test_loss: Callable[[nn.Module], float]) -> Run:
    """Trains on windows of states: epochs of one step, then of ``args.window`` steps.

    Args:
        draw: Makes (batch, window + 1, n) states from a batch size, a window and a generator.
        loss: From predicted and true states, (batch, window, n).
        test_loss: The error of a step on held-out states.
    """
    run, path = Run(), args.out / f"{name}.pt"
    state = _read_checkpoint(path, args)
    if state is not None:
        model.load_state_dict(state["model"])
        run = Run(**state["run"])
    single = args.epochs - (args.epochs // 3 if args.window > 1 else 0)
    optimizer = None
    bar = tqdm(range(run.epoch, args.epochs), initial=run.epoch, total=args.epochs, desc=name,
               disable=None, leave=False)
    for epoch in bar:
        window = 1 if epoch < single else args.window
        if optimizer is None or epoch == single:
            # The longer windows begin with an optimiser of their own, and at a lower rate.
            span = (0, single) if epoch < single else (single, args.epochs)
            optimizer, schedule = _make_optimizer(args, model, span, lower=epoch >= single)
            if state is not None and state["window"] == window:
                optimizer.load_state_dict(state["optimizer"])
                if schedule is not None:
                    schedule.load_state_dict(state["schedule"])
            state = None
        start, work = time.perf_counter(), Work()
        value = _epoch(args, model, linear, draw, loss, optimizer, schedule, epoch, window, work)
        run.seconds += time.perf_counter() - start
        run.curve.append([run.seconds, value, test_loss(model)])
        run.epoch, run.work = epoch + 1, work.totals()
        run.factorizations += run.work["factorizations"]
        bar.set_postfix(loss=f"{value:.2e}", test=f"{run.curve[-1][2]:.2e}")
        _write_checkpoint(path, args, model, optimizer, schedule, run, window)
    return run


def _epoch(args, model, linear, draw, loss, optimizer, schedule, epoch: int, window: int,
           work: Work) -> float:
    """Trains for one epoch; the mean loss."""
    total, batches = 0.0, 1 if args.optimizer == "lbfgs" else args.batches
    t = args.interval * torch.arange(window + 1, dtype=torch.float64)
    for batch in range(batches):
        # Each epoch has random numbers of its own, so that a resumed run repeats none. The line
        # searches of L-BFGS need the same states in all of them.
        number = window if args.optimizer == "lbfgs" else 1000 * epoch + batch
        generator = torch.Generator().manual_seed(1_000_000 * args.seed + number)
        states = draw(max(1, args.batch_size // window), window, generator).to(args.device)

        def closure(states=states) -> Tensor:
            optimizer.zero_grad()
            found = integrate(args.method, model, linear, states[:, 0], t, args.step_size, work)
            value = loss(found[1:].movedim(0, 1), states[:, 1:])
            if not bool(value.isfinite()):
                raise FloatingPointError(f"a loss of {float(value)}")
            value.backward()
            if args.optimizer == "adam":
                norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                if not bool(norm.isfinite()):
                    raise FloatingPointError(f"a gradient of norm {float(norm)}")
            return value

        try:
            total += float(optimizer.step(closure).detach())
        except (*FAILURES, FloatingPointError) as error:
            raise DivergedError(
                f"Expected a finite loss and gradient (got {error} in epoch {epoch + 1}, batch "
                f"{batch + 1}); the last checkpoint in {args.out} is of epoch {epoch}. Take a "
                "smaller --lr or --step-size.") from error
        if schedule is not None:
            schedule.step()
    return total / batches


def _make_optimizer(args, model: nn.Module, span: tuple[int, int], lower: bool):
    if args.optimizer == "lbfgs":
        return torch.optim.LBFGS(model.parameters(), history_size=50, tolerance_grad=0.0,
                                 tolerance_change=0.0, line_search_fn="strong_wolfe"), None
    rate = args.lr / 4 if lower else args.lr
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = (span[1] - span[0]) * args.batches
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False)


def _write_checkpoint(path: Path, args, model, optimizer, schedule, run: Run, window: int) -> None:
    """Writes beside the checkpoint, then renames: a killed run leaves the last one whole."""
    state = {"key": checkpoint_key(args), "model": model.state_dict(), "window": window,
             "optimizer": optimizer.state_dict(), "run": vars(run),
             "schedule": None if schedule is None else schedule.state_dict()}
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _read_checkpoint(path: Path, args) -> dict | None:
    if args.restart or not path.exists():
        return None
    state = torch.load(path, weights_only=True, map_location=args.device)
    if state["key"] == checkpoint_key(args):
        return state
    print(f"{path} belongs to other settings and will be overwritten")
    return None


def checkpoint_key(args: argparse.Namespace) -> str:
    """What must agree between a checkpoint and the run that goes on from it."""
    free = {"out", "root", "restart", "device", "resolutions", "horizon", "lyapunov_times"}
    return json.dumps({k: v for k, v in vars(args).items() if k not in free}, sort_keys=True)


@torch.no_grad()
def rollout(args, term: nn.Module, linear: Circulant, u0: Tensor, count: int) -> Tensor:
    """The states after 0, 1, ..., count intervals; infinite from where they stop being finite.

    Shapes:
        - **u0:** (batch, n) - **output:** (batch, count + 1, n)
    """
    states = u0.new_full((u0.size(0), count + 1, u0.size(1)), math.inf)
    states[:, 0] = u0
    t = torch.tensor([0.0, args.interval], dtype=torch.float64)
    for i in tqdm(range(count), desc="rollout", leave=False, disable=None):
        u = states[:, i]
        alive = u.isfinite().all(dim=-1) & (u.abs().amax(dim=-1) < 1e3)
        if not bool(alive.any()):
            break
        try:
            states[alive, i + 1] = integrate(
                args.method, term, linear, u[alive], t, args.step_size)[-1]
        except FAILURES:  # one of them overflows within the step: all end here
            break
    return states


def relative_error(found: Tensor, truth: Tensor) -> Tensor:
    """The error of each state in the Euclidean norm over the norm of the truth."""
    norm = torch.linalg.vector_norm
    error = norm(found.double() - truth, dim=-1) / norm(truth, dim=-1)
    return error.nan_to_num(nan=math.inf, posinf=math.inf)


def energy_spectrum(u: Tensor) -> Tensor:
    """The mean square of each Fourier mode over all states."""
    return (torch.fft.rfft(u.double()).abs() / u.size(-1)).square().flatten(0, -2).mean(dim=0)


def windows(states: Tensor, count: int, window: int, generator: torch.Generator,
            from_start: float = 0.0) -> Tensor:
    """Stretches drawn at random, (count, window + 1, n) from (trajectories, times, n).

    A share of them, from_start, begins at the first time.
    """
    trajectory = torch.randint(states.size(0), (count, 1), generator=generator)
    start = torch.randint(states.size(1) - window, (count, 1), generator=generator)
    if from_start:
        start = start * (torch.rand(count, 1, generator=generator) > from_start)
    return states[trajectory, start + torch.arange(window + 1)]


def turned(states: Tensor, generator: torch.Generator) -> Tensor:
    """Each window shifted along the grid at random, and half of them reflected, u(x) -> -u(-x).

    Both carry solutions of these equations to solutions: a perceptron has to be told so.
    """
    count, n = states.size(0), states.size(-1)
    shift = torch.randint(n, (count, 1), generator=generator)
    sign = 1 - 2 * torch.randint(2, (count, 1), generator=generator)
    at = ((torch.arange(n) + shift) * sign) % n
    moved = states.gather(-1, at.unsqueeze(1).expand_as(states))
    return moved * sign.unsqueeze(-1)


def add_arguments(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """The arguments that both examples share; gives the function that adds more."""
    add = parser.add_argument
    add("--explicit", choices=["mlp", "gnn"], default="mlp", help="the network for G")
    add("--method", choices=METHODS, help="the integration scheme; None: the network's own")
    add("--step-size", type=float, help="step of the scheme; None: the equation's, or what rk4 "
        "needs to be stable; dopri5 chooses its own")
    add("--optimizer", choices=["adam", "lbfgs"], help="None: the network's own")
    add("--lr", type=float, help="learning rate of Adam at its highest; None: the network's own")
    add("--epochs", type=int, help="training epochs; None: the network's own")
    add("--batches", type=int, default=15, help="batches of an epoch of Adam")
    add("--batch-size", type=int, help="steps in a batch; None: the network's own")
    add("--window", type=int, help="steps that the last third of the epochs trains on at once")
    add("--resolutions", type=int, nargs="*", default=[], metavar="N",
        help="other numbers of points to run the trained gnn on")
    add("--seed", type=int, default=0, help="seed of the weights and the batches")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device")
    add("--root", default="data", help="where the data set is made and kept")
    add("--out", type=Path, default=Path("runs"), help="where figures and checkpoints go")
    add("--restart", action="store_true", help="start anew where a checkpoint exists")
    return add


def parse(parser: argparse.ArgumentParser, mlp: dict, gnn: dict) -> argparse.Namespace:
    """The arguments, with the settings of the chosen network where none were given."""
    args = parser.parse_args()
    if args.resolutions and args.explicit != "gnn":
        parser.error("--resolutions needs --explicit gnn: a perceptron knows one grid only")
    for key, value in (gnn if args.explicit == "gnn" else mlp).items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    return args
