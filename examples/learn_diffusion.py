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
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusion_problems import Problem, graph_problem, grid_problem
from figures import BLACK, BLUE, GREEN, legend_below, plt, save
from figures import VERMILION as ORANGE
from options import (
    add_files,
    make_parser,
    non_negative_float,
    output_folder,
    positive_float,
    positive_int,
)
from torch import Tensor, nn
from tqdm import tqdm
from training import Checkpoint

from pyg_sinode import imex_odeint
from pyg_sinode.solvers import Direct

RK4_BOUND = 2.785  # of a step times a negative real eigenvalue: Hairer and Wanner II, section IV.2


@dataclass
class Run:
    """What a fit has done so far: for each iteration the misfit and the coefficient's error."""

    curve: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    media: list[dict[str, Tensor]] = field(default_factory=list)  # after each iteration


def main() -> None:
    args = parse_arguments()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(args.seed)
    problem = (grid_problem if args.on == "grid" else graph_problem)(args)
    checkpoint = checkpoint_of(args)
    picture = checkpoint.picture(iterations=args.iterations)
    limit = stable_step(problem)
    print(f"{problem.exact[1:problem.seen].numel()} observations with noise of {args.noise:g}; an "
          f"explicit RK4 is stable up to steps of {limit:.2g}: the interval between snapshots, "
          f"{args.interval:g}, is {args.interval / limit:.0f} times that")
    run = fit(args, problem, checkpoint)
    spread, reaction_spread = error_bars(args, problem)
    with torch.no_grad():
        found = integrate(args, problem.medium, problem.exact[0], problem.t)
    report(args, problem, run, spread, found)
    plot(picture, args, problem, run, spread, reaction_spread, found)
    print(f"figure: {picture}")


def checkpoint_of(args: argparse.Namespace) -> Checkpoint:
    """The file of these settings; more iterations go on from fewer."""
    free = {"out", "restart", "iterations"}
    settings = {k: v for k, v in vars(args).items() if k not in free}
    return Checkpoint(args.out, f"learn-diffusion-{args.on}", settings, args.restart)


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


def stable_step(problem: Problem) -> float:
    """The largest stable step of RK4 for the true operator, by its spectral radius."""
    matrix = problem.medium.operator_of(problem.log_true).mv(torch.eye(problem.exact.size(-1)))
    return RK4_BOUND / float(-torch.linalg.eigvalsh(matrix).min())


def fit(args: argparse.Namespace, problem: Problem, checkpoint: Checkpoint) -> Run:
    """Fits by L-BFGS, one iteration at a time, until the loss stops falling."""
    # One iteration a call, for the checkpoints; max_eval, since its default allows no line search.
    optimizer = torch.optim.LBFGS(problem.medium.parameters(), max_iter=1, max_eval=26,
                                  history_size=50, line_search_fn="strong_wolfe")
    run, state = Run(), checkpoint.load()
    if state is not None:
        checkpoint.restore(state, medium=problem.medium, optimizer=optimizer)
        run = Run(state["curve"], state["seconds"], state["media"])
        checkpoint.tell(len(run.curve), "iteration")
    if len(run.curve) > args.iterations:  # the file is of a longer run
        problem.medium.load_state_dict(run.media[args.iterations - 1])
        return Run(run.curve[:args.iterations], run.seconds, run.media[:args.iterations])
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
        run.media.append({key: value.clone() for key, value in problem.medium.state_dict().items()})
        progress.set_postfix(loss=f"{loss:.4f}", error=f"{run.curve[-1][1]:.2%}")
        checkpoint.save(medium=problem.medium.state_dict(), optimizer=optimizer.state_dict(),
                        **vars(run))
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
    figure, axes = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
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
        legend_below(axis, ncols=3 if axis in axes[0] else 2, fontsize=8)
    save(figure, path)


def plot_field(axis, problem: Problem, spread: Tensor) -> None:
    x, learned = problem.medium.middle, problem.medium.log_coefficient().detach()
    low, high = (learned - 2 * spread).exp(), (learned + 2 * spread).exp()
    axis.fill_between(x, low, high, color=ORANGE, alpha=0.3, lw=0, label="two error bars")
    axis.plot(x, learned.exp(), color=ORANGE, label="learned")
    axis.plot(x, problem.log_true.exp(), "--", color=BLACK, label="true")
    axis.set(xlabel="x (dimensionless)", ylabel=r"$\kappa$ (dimensionless)", ylim=(0.0, None),
             title="the diffusion coefficient, learned and true")


def plot_law(axis, problem: Problem, spread: Tensor) -> None:
    true, learned = problem.log_true.exp(), problem.medium.log_coefficient().detach()
    bars = torch.stack([1 - (-2 * spread).exp(), (2 * spread).exp() - 1]) * learned.exp()
    axis.errorbar(true, learned.exp(), yerr=bars, fmt=".", ms=3, lw=0.5, color=ORANGE,
                  label="an edge, with two error bars")
    ends = [float(true.min()), float(true.max())]
    axis.plot(ends, ends, "--", color=BLACK, label="learned = true")
    axis.set(xscale="log", yscale="log", xlabel="true conductance (dimensionless)",
             ylabel="learned conductance (dimensionless)",
             title="conductances of the edges, learned and true")


def plot_reaction(axis, problem: Problem, spread: Tensor) -> None:
    u = torch.linspace(0.0, 1.0, 101)
    learned = problem.medium.reaction(0.0, u).detach()
    axis.fill_between(u, learned - 2 * spread, learned + 2 * spread, color=ORANGE, alpha=0.3, lw=0,
                      label="two error bars")
    axis.plot(u, learned, color=ORANGE, label="learned")
    axis.plot(u, problem.true_reaction(0.0, u).detach(), "--", color=BLACK, label="true")
    axis.set(xlabel="u (dimensionless)", ylabel="r(u) (dimensionless)",
             title="the reaction, learned and true")


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
    axis.plot([], [], color=BLACK, ls="-", label="learned model")
    axis.plot([], [], "o", ms=4, color=BLACK, label="data of the fit")
    axis.plot([], [], "o", ms=4, color=BLACK, fillstyle="none", label="truth, not seen")
    axis.axvline(float(problem.t[seen - 1]), color="grey", ls=":", label="end of the data")
    axis.set(xlabel="time (dimensionless)", ylabel="u at three nodes (dimensionless)",
             title="prediction beyond the data")


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Learn a diffusion coefficient and a reaction from noisy snapshots.",
        "learn_diffusion.py                                       a grid",
        "learn_diffusion.py --on graph                            an irregular graph",
        "learn_diffusion.py --noise 0.05 --trajectories 32")
    add = parser.add_argument_group("the problem").add_argument
    add("--on", choices=["grid", "graph"], default="grid", help="where the field lives")
    add("--nodes", type=nodes,
        help="points or nodes, 16 at least (default: 128 on the grid, 200 on the graph)")
    add("--trajectories", type=positive_int, default=16, help="how many fields are watched")
    add("--times", type=positive_int, default=10, help="snapshots of each, after the initial one")
    add("--interval", type=positive_float, default=0.05, help="time between snapshots")
    add("--noise", type=non_negative_float, default=0.01,
        help="standard deviation of the noise; u is in [0, 1]")
    add("--seed", type=int, default=0, help="seed of data and networks")
    add = parser.add_argument_group("the fit").add_argument
    add("--step-size", type=positive_float, default=0.025, help="largest time step in the fit")
    add("--rtol", type=positive_float,
        help="relative tolerance: adaptive steps instead of equal ones")
    add("--roughness", type=positive_float, default=1.0,
        help="prior on the grid: how much log kappa changes over a unit of length")
    add("--iterations", type=positive_int, default=120,
        help="largest number of iterations of L-BFGS")
    add_files(parser, checkpoint_every=False)
    args = parser.parse_args()
    args.nodes = args.nodes or (128 if args.on == "grid" else 200)
    output_folder(args.out)
    return args


def nodes(text: str) -> int:
    """A number of nodes; each has six neighbours on the graph."""
    count = positive_int(text)
    if count < 16:
        raise argparse.ArgumentTypeError(f"expected at least 16 (got {count})")
    return count


if __name__ == "__main__":
    main()
