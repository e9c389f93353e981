"""How is the nonlinear term of an equation on a grid learned? Training and rollouts.

Shared by kuramoto_sivashinsky.py and burgers.py, which have the data, the settings and the figures;
the networks are in grid_networks.py, the options in grid_options.py.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from grid_networks import (  # noqa: F401  (named here for those who import all)
    Averaged,
    FluxMLP,
    GridFlux,
    GridMLP,
)
from least_squares import LevenbergMarquardt
from measuring import FAILURES, Work
from torch import Tensor, nn
from torchdiffeq import odeint
from tqdm import tqdm
from training import Checkpoint

from pyg_sinode import imex_odeint, schemes
from pyg_sinode.operators import Circulant, LinearOperator
from pyg_sinode.solvers import GMRES, Newton
from pyg_sinode.terms import Nonlinear

IMEX = ("imex_euler", "ars222", "ars443", "imex_rk2", "imex_rk3", "imex_rk4", "imex_rk5",
        *schemes.EXPONENTIAL)
METHODS = (*IMEX, "crank_nicolson", "rk4", "dopri5")


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
          residual: Callable[[Tensor, Tensor], Tensor],
          test_loss: Callable[[nn.Module], float]) -> Run:
    """Trains on windows of states: epochs of one step, then of ``args.window`` steps.

    Args:
        args: The settings of the example.
        name: The kind of run, with which the checkpoint's name begins.
        model: The network for G.
        linear: J.
        draw: Makes (batch, window + 1, n) states from a batch size, a window and a generator.
        residual: From predicted and true states, (batch, window, n), to the errors whose mean
            square is the loss.
        test_loss: The error of a step on held-out states.
    """
    checkpoint = make_checkpoint(args, name)
    run, state = Run(), checkpoint.load(args.device)
    if state is not None:
        checkpoint.restore(state, model=model)
        run = Run(**state["run"])
        checkpoint.tell(run.epoch)
    single = args.epochs - (args.epochs // 3 if args.window > 1 else 0)
    try:
        draw(1, args.window, torch.Generator())  # that none is too long, said before the training
    except ValueError as error:
        raise SystemExit(str(error)) from error
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
                checkpoint.restore(state, optimizer=optimizer, schedule=schedule)
            state = None
        start, work = time.perf_counter(), Work()
        value = _epoch(args, model, linear, draw, residual, optimizer, schedule, epoch, window,
                       work)
        run.seconds += time.perf_counter() - start
        run.curve.append([run.seconds, value, test_loss(model)])
        run.epoch, run.work = epoch + 1, work.totals()
        run.factorizations += run.work["factorizations"]
        bar.set_postfix(loss=f"{value:.2e}", test=f"{run.curve[-1][2]:.2e}")
        checkpoint.save(model=model.state_dict(), optimizer=optimizer.state_dict(), window=window,
                        schedule=schedule.state_dict(), run=vars(run))
    return run


def _epoch(args, model, linear, draw, residual, optimizer, schedule, epoch: int, window: int,
           work: Work) -> float:
    """Trains for one epoch; the mean loss."""
    total, batches = 0.0, args.batches if args.optimizer == "adam" else 1
    t = args.interval * torch.arange(window + 1, dtype=torch.float64)
    for batch in range(batches):
        # Each epoch has random numbers of its own, so that a resumed run repeats none. The other
        # optimizers need the same states in all of them.
        number = 1000 * epoch + batch if args.optimizer == "adam" else window
        generator = torch.Generator().manual_seed(1_000_000 * args.seed + number)
        states = draw(max(1, args.batch_size // window), window, generator).to(args.device)

        def closure(states=states) -> Tensor:
            optimizer.zero_grad()
            found = integrate(args.method, model, linear, states[:, 0], t, args.step_size, work)
            errors = residual(found[1:].movedim(0, 1), states[:, 1:])
            value = errors.square().mean()
            if not bool(value.isfinite()):
                raise FloatingPointError(f"a loss of {float(value)}")
            if args.optimizer == "gauss_newton":
                return errors.flatten()
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
        schedule.step()
    return total / batches


def _make_optimizer(args, model: nn.Module, span: tuple[int, int], lower: bool):
    """The optimizer of the epochs of a span, and the schedule of its learning rate."""
    if args.optimizer == "lbfgs":
        optimizer = torch.optim.LBFGS(model.parameters(), history_size=50, tolerance_grad=0.0,
                                      tolerance_change=0.0, line_search_fn="strong_wolfe")
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if args.optimizer == "gauss_newton":
        optimizer = LevenbergMarquardt(model.parameters(), (*FAILURES, FloatingPointError))
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    rate = args.lr / 4 if lower else args.lr
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    total = (span[1] - span[0]) * args.batches + 1  # the schedule counts the rate before them too
    # The rate grows during the first tenth and then falls. OneCycleLR ends the growth at the step
    # pct_start * total - 1 and divides by it: at least 1, where a tenth of 10 would give 0.
    growth = max(0.1, 2 / total)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=total, pct_start=growth, cycle_momentum=False)


def make_checkpoint(args: argparse.Namespace, name: str) -> Checkpoint:
    """The file of these settings; what only concerns the rollouts afterwards is not among them."""
    free = {"out", "root", "restart", "resolutions", "horizon", "lyapunov_times", "turns"}
    settings = {key: value for key, value in vars(args).items() if key not in free}
    return Checkpoint(args.out, name, settings, args.restart)


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
    if window >= states.size(1):
        raise ValueError(f"Expected trajectories of more than --window states (got {window} and "
                         f"{states.size(1)} states). Take a smaller --window or a longer time.")
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


def difference(found: Tensor, truth: Tensor) -> Tensor:
    """The errors whose mean square is the plain loss."""
    return found - truth
