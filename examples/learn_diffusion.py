"""Can a diffusion coefficient and a reaction be learned from a few noisy snapshots of a field?

    --on grid:   u_t = (kappa(x) u_x)_x + r(u) on a periodic grid, log kappa a Fourier series, r a
                 network
    --on graph:  u_i' = sum_j w_ij (u_j - u_i) + r(u_i) on an irregular graph, w a network of the
                 edges' attributes, r(u) = rate u (1 - u)

The diffusion is linear and stiff: it is the operator J, whose tensors receive exact gradients; the
reaction is the explicit term G. Both are fitted by L-BFGS through the solver, with a weak Gaussian
prior; error bars are those of the linearised problem. The data of the grid come from one four times
as fine, and all data from adaptive steps at a tolerance of 1e-8.

    python examples/learn_diffusion.py
    python examples/learn_diffusion.py --on graph --noise 0.02
    python examples/learn_diffusion.py --rtol 1e-4        (adaptive steps in the fit)

Writes a checkpoint after every iteration, from which an interrupted run goes on to the same result,
and a figure to --out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyg_sinode import imex_odeint
from pyg_sinode.operators import Diagonal, Graph, LinearOperator
from pyg_sinode.solvers import Direct

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RK4_BOUND = 2.785  # of a step times a negative real eigenvalue: Hairer and Wanner II, section IV.2
FINER = 4  # the grid of the data beside that of the fit
PRIOR = 10.0  # standard deviation of the weights of a network and of the logarithm of a rate
BLACK, ORANGE, BLUE, GREEN = "#000000", "#D55E00", "#0072B2", "#009E73"  # Okabe and Ito


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


@dataclass
class Run:
    """What a fit has done so far: for each iteration the misfit and the coefficient's error."""

    curve: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0


def main() -> None:
    args = parse_arguments()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(args.seed)
    problem = (grid_problem if args.on == "grid" else graph_problem)(args)
    path = args.out / f"learn-diffusion-{args.on}-{key_of(args)}"
    limit = stable_step(problem)
    print(f"{problem.exact[1:problem.seen].numel()} observations with noise of {args.noise:g}; an "
          f"explicit RK4 is stable up to steps of {limit:.2g}: the interval between snapshots, "
          f"{args.interval:g}, is {args.interval / limit:.0f} times that")
    run = fit(args, problem, path.with_suffix(".pt"))
    spread, reaction_spread = error_bars(args, problem)
    with torch.no_grad():
        found = integrate(args, problem.medium, problem.exact[0], problem.t)
    report(args, problem, run, spread, found)
    plot(path.with_suffix(".png"), args, problem, run, spread, reaction_spread, found)
    print(f"figure: {path.with_suffix('.png')}")


def integrate(args: argparse.Namespace, medium: nn.Module, u0: Tensor, t: Tensor) -> Tensor:
    """The states at the times, (T, trajectories, nodes), by equal steps or, with rtol, adaptive."""
    steps = ({"step_size": args.step_size} if args.rtol is None else
             {"rtol": args.rtol, "atol": 1e-2 * args.rtol})
    return imex_odeint(medium.reaction, medium.operator(), u0, t, method="ark324l2sa",
                       solver=Direct(), **steps)


def residuals(args: argparse.Namespace, problem: Problem) -> Tensor:
    """The misfits in units of the noise, then those of the prior: half their squares is the loss.
    """
    seen = slice(1, problem.seen)
    found = integrate(args, problem.medium, problem.exact[0], problem.t[:problem.seen])
    misfit = (found[1:] - problem.data[seen]) / max(args.noise, 1e-3)
    return torch.cat([misfit.flatten(), problem.medium.prior()])


def grid_problem(args: argparse.Namespace) -> Problem:
    """A bistable reaction, u = 0 and u = 1 being stable, in a medium of varying kappa."""
    n = args.nodes or 128
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
    n = args.nodes or 200
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


def stable_step(problem: Problem) -> float:
    """The largest stable step of RK4 for the true operator, by its spectral radius."""
    matrix = problem.medium.operator_of(problem.log_true).mv(torch.eye(problem.exact.size(-1)))
    return RK4_BOUND / float(-torch.linalg.eigvalsh(matrix).min())


def fit(args: argparse.Namespace, problem: Problem, path: Path) -> Run:
    """Fits by L-BFGS, one iteration at a time, until the loss stops falling."""
    # One iteration a call, for the checkpoints; max_eval, since its default allows no line search.
    optimizer = torch.optim.LBFGS(problem.medium.parameters(), max_iter=1, max_eval=26,
                                  history_size=50, line_search_fn="strong_wolfe")
    run = read_checkpoint(args, path, problem.medium, optimizer)
    count = problem.data[1:problem.seen].numel()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * residuals(args, problem).square().sum() / count
        loss.backward()
        return loss

    progress = tqdm(range(len(run.curve), args.iterations), initial=len(run.curve),
                    total=args.iterations, desc="fit", disable=None)
    for _ in progress:
        if stalled(run):
            break
        start = time.perf_counter()
        loss = float(optimizer.step(closure).detach())  # at the start of the iteration
        run.curve.append([loss, coefficient_error(problem)])
        run.seconds += time.perf_counter() - start
        progress.set_postfix(loss=f"{loss:.4f}", error=f"{run.curve[-1][1]:.2%}")
        write_checkpoint(path, problem.medium, optimizer, run)
    return run


def stalled(run: Run) -> bool:
    """Whether the last five iterations lowered the loss by less than a part in 100,000."""
    losses = [loss for loss, _ in run.curve]
    return len(losses) > 5 and losses[-6] - losses[-1] < 1e-5 * losses[-1]


def coefficient_error(problem: Problem) -> float:
    """The root mean square of the coefficient's relative error."""
    ratio = (problem.medium.log_coefficient().detach() - problem.log_true).exp()
    return float((ratio - 1.0).square().mean().sqrt())


@torch.no_grad()
def error_bars(args: argparse.Namespace, problem: Problem) -> tuple[Tensor, Tensor]:
    """One standard deviation of the logarithm of the coefficient, and of r(u) at 101 values of u.

    The posterior of the problem linearised at the fit: with A the derivative of the residuals and
    B that of the quantity, by central differences, the covariance is B (A^T A)^-1 B^T.
    """
    parameters = [(p.view(-1), i) for p in problem.medium.parameters() for i in range(p.numel())]
    u, eps, columns = torch.linspace(0.0, 1.0, 101), 1e-4, []

    def evaluate() -> tuple[Tensor, Tensor, Tensor]:
        return (residuals(args, problem), problem.medium.log_coefficient().clone(),
                problem.medium.reaction(0.0, u))

    for p, i in tqdm(parameters, desc="error bars", leave=False, disable=None):
        value, ends = float(p[i]), []
        for sign in (1, -1):
            p[i] = value + sign * eps
            ends.append(evaluate())
        p[i] = value
        columns.append([(a - b) / (2 * eps) for a, b in zip(*ends, strict=True)])
    A, coefficient, reaction = (torch.stack(parts, dim=1) for parts in zip(*columns, strict=True))
    factor = torch.linalg.cholesky(A.T @ A)
    spreads = (torch.linalg.solve_triangular(factor, B.T, upper=False).norm(dim=0)
               for B in (coefficient, reaction))
    return tuple(spreads)


def report(args: argparse.Namespace, problem: Problem, run: Run, spread: Tensor, found: Tensor
           ) -> None:
    off = problem.medium.log_coefficient().detach() - problem.log_true
    inside = float((off.abs() <= 2 * spread).double().mean())
    u = torch.linspace(0.0, 1.0, 101)
    true = problem.true_reaction(0.0, u).detach()
    wrong = float((problem.medium.reaction(0.0, u).detach() - true).abs().max() / true.abs().max())
    error = (found - problem.exact).square().mean(dim=(1, 2)).sqrt()
    end, last = float(problem.t[problem.seen - 1]), float(problem.t[-1])
    print(f"{problem.name}: relative error {coefficient_error(problem):.2%} (root mean "
          f"square), {float(off.abs().median().expm1()):.2%} in the median, "
          f"{float(off.abs().max().expm1()):.2%} at most; two error bars hold {inside:.0%} of the "
          f"true values")
    print(f"reaction: largest error {wrong:.2%} of its largest value")
    print(f"prediction: root mean square error {float(error[1:problem.seen].mean()):.2g} up to "
          f"t = {end:g}, {float(error[problem.seen:].mean()):.2g} from there to t = {last:g}; "
          f"noise {args.noise:g}")
    print(f"{len(run.curve)} iterations in {run.seconds:.0f} s")


def plot(path: Path, args: argparse.Namespace, problem: Problem, run: Run, spread: Tensor,
         reaction_spread: Tensor, found: Tensor) -> None:
    """The coefficient, the reaction, a prediction and the convergence."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    (plot_field if args.on == "grid" else plot_law)(axes[0, 0], problem, spread)
    plot_reaction(axes[0, 1], problem, reaction_spread)
    plot_prediction(axes[1, 0], problem, found)
    loss, error = torch.tensor(run.curve).reshape(-1, 2).T
    axes[1, 1].semilogy(range(1, len(loss) + 1), loss, "-", color=BLUE,
                        label="loss before the iteration")
    axes[1, 1].semilogy(range(1, len(loss) + 1), error, "--", color=ORANGE,
                        label=f"relative error of {problem.name} after it")
    axes[1, 1].axhline(0.5, color="grey", lw=0.8, ls=":", label="loss of the noise alone")
    axes[1, 1].set(xlabel="iteration of L-BFGS", ylabel="dimensionless",
                   title="convergence of the fit")
    for axis in axes.flat:
        axis.legend(fontsize=8, loc="best")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_field(axis, problem: Problem, spread: Tensor) -> None:
    x, learned = problem.medium.middle, problem.medium.log_coefficient().detach()
    low, high = (learned - 2 * spread).exp(), (learned + 2 * spread).exp()
    axis.fill_between(x, low, high, color=ORANGE, alpha=0.3, lw=0, label="two error bars")
    axis.plot(x, learned.exp(), color=ORANGE, label="learned")
    axis.plot(x, problem.log_true.exp(), "--", color=BLACK, label="true")
    axis.set(xlabel="x (dimensionless)", ylabel=r"$\kappa$ (dimensionless)", ylim=(0.0, None),
             title="the diffusion coefficient is recovered")


def plot_law(axis, problem: Problem, spread: Tensor) -> None:
    true, learned = problem.log_true.exp(), problem.medium.log_coefficient().detach()
    bars = torch.stack([1 - (-2 * spread).exp(), (2 * spread).exp() - 1]) * learned.exp()
    axis.errorbar(true, learned.exp(), yerr=bars, fmt=".", ms=3, lw=0.5, color=ORANGE,
                  label="an edge, with two error bars")
    ends = [float(true.min()), float(true.max())]
    axis.plot(ends, ends, "--", color=BLACK, label="learned = true")
    axis.set(xscale="log", yscale="log", xlabel="true conductance (dimensionless)",
             ylabel="learned conductance (dimensionless)",
             title="the conductances of the edges are recovered")


def plot_reaction(axis, problem: Problem, spread: Tensor) -> None:
    u = torch.linspace(0.0, 1.0, 101)
    learned = problem.medium.reaction(0.0, u).detach()
    axis.fill_between(u, learned - 2 * spread, learned + 2 * spread, color=ORANGE, alpha=0.3, lw=0,
                      label="two error bars")
    axis.plot(u, learned, color=ORANGE, label="learned")
    axis.plot(u, problem.true_reaction(0.0, u).detach(), "--", color=BLACK, label="true")
    axis.set(xlabel="u (dimensionless)", ylabel="r(u) (dimensionless)",
             title="the reaction is recovered where u has been")


def plot_prediction(axis, problem: Problem, found: Tensor) -> None:
    """One trajectory at the three nodes where it changes most after the training data."""
    seen = problem.seen
    late = problem.exact[seen:]
    trajectory = int(late.std(dim=0).mean(dim=1).argmax())
    change = late[:, trajectory].std(dim=0)
    nodes = [int(i) for i in change.argsort(descending=True)[:: max(1, len(change) // 4)][:3]]
    for i, color, marker in zip(nodes, (BLUE, GREEN, ORANGE), "os^", strict=False):
        axis.plot(problem.t, found[:, trajectory, i], color=color)
        axis.plot(problem.t[1:seen], problem.data[1:seen, trajectory, i], marker, ms=4, color=color)
        axis.plot(problem.t[seen::3], problem.exact[seen::3, trajectory, i], marker, ms=4,
                  color=color, fillstyle="none")
    axis.plot([], [], color=BLACK, label="learned model")
    axis.plot([], [], "o", ms=4, color=BLACK, label="data of the fit")
    axis.plot([], [], "o", ms=4, color=BLACK, fillstyle="none", label="truth, not seen")
    axis.axvline(float(problem.t[seen - 1]), color="grey", ls=":")
    axis.set(xlabel="time (dimensionless)", ylabel="u at three nodes (dimensionless)",
             title="prediction beyond the data")


def key_of(args: argparse.Namespace) -> str:
    """A short hash of the settings that a checkpoint depends on."""
    free = {"out", "restart", "iterations"}
    settings = {k: v for k, v in vars(args).items() if k not in free}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def write_checkpoint(path: Path, medium: nn.Module, optimizer: torch.optim.Optimizer, run: Run
                     ) -> None:
    """Writes beside the checkpoint, then renames: a killed run leaves the last one whole."""
    temporary = path.with_suffix(".tmp")
    try:
        torch.save({"medium": medium.state_dict(), "optimizer": optimizer.state_dict(),
                    "curve": run.curve, "seconds": run.seconds}, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_checkpoint(args: argparse.Namespace, path: Path, medium: nn.Module,
                    optimizer: torch.optim.Optimizer) -> Run:
    """What an earlier run of the same settings has done; nothing where there is none."""
    if args.restart or not path.exists():
        return Run()
    try:
        state = torch.load(path, weights_only=True)
        medium.load_state_dict(state["medium"])
        optimizer.load_state_dict(state["optimizer"])
        run = Run(state["curve"], state["seconds"])
    except Exception as error:  # of almost any type, depending on what the file holds
        raise SystemExit(f"{path} is damaged or no checkpoint of this script "
                         f"({type(error).__name__}: {error}); remove it, or pass --restart to "
                         "start anew and overwrite it.") from error
    print(f"resumed from iteration {len(run.curve)} ({path})")
    return run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Learn a diffusion coefficient and a reaction from noisy snapshots.",
        epilog="examples:\n"
               "  python examples/learn_diffusion.py                       a grid\n"
               "  python examples/learn_diffusion.py --on graph            an irregular graph\n"
               "  python examples/learn_diffusion.py --noise 0.05 --trajectories 32\n",
        formatter_class=type("Formatter", (argparse.ArgumentDefaultsHelpFormatter,
                                           argparse.RawDescriptionHelpFormatter), {}))
    add = parser.add_argument
    add("--on", choices=["grid", "graph"], default="grid", help="where the field lives")
    add("--nodes", type=int, help="points or nodes; None: 128 on the grid, 200 on the graph")
    add("--trajectories", type=int, default=16, help="how many fields are watched")
    add("--times", type=int, default=10, help="snapshots of each, after the initial one")
    add("--interval", type=float, default=0.05, help="time between snapshots")
    add("--noise", type=float, default=0.01, help="standard deviation of the noise; u is in [0, 1]")
    add("--step-size", type=float, default=0.025, help="largest time step in the fit")
    add("--rtol", type=float, help="relative tolerance: adaptive steps instead of equal ones")
    add("--roughness", type=float, default=1.0,
        help="prior on the grid: how much log kappa changes over a unit of length")
    add("--iterations", type=int, default=120, help="largest number of iterations of L-BFGS")
    add("--seed", type=int, default=0, help="seed of data and networks")
    add("--out", type=Path, default=Path("runs"), help="where the figure and the checkpoint go")
    add("--restart", action="store_true", help="start anew where a checkpoint exists")
    args = parser.parse_args()
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses arguments before any work."""
    positive: dict[str, Callable[[float], bool]] = {
        name: lambda x: 0 < x < math.inf for name in ("interval", "step_size", "rtol", "roughness")}
    whole = {"nodes": 16, "trajectories": 1, "times": 1, "iterations": 1}
    for name, value in vars(args).items():
        shown = "--" + name.replace("_", "-")
        if value is not None and name in positive and not positive[name](value):
            parser.error(f"{shown} expects a positive number (got {value})")
        if value is not None and name in whole and value < whole[name]:
            parser.error(f"{shown} expects at least {whole[name]} (got {value})")
    if not 0 <= args.noise < math.inf:
        parser.error(f"--noise expects a number from 0 up (got {args.noise})")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    except OSError as error:
        parser.error(f"--out {args.out} cannot be written to ({error.strerror}); name another "
                     "folder")


if __name__ == "__main__":
    main()
