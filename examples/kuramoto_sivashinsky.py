"""Kuramoto-Sivashinsky: can the nonlinear term of a chaotic, stiff equation be learned from data?

du/dt = G(u) + J u with J u = -u_xx - u_xxxx known and G a network, trained through steps of 0.05
or 0.2 that take J implicitly or exactly; RK4 would need 4e-4 (64 points) or 1e-7 (512 points):

    python examples/kuramoto_sivashinsky.py
    python examples/kuramoto_sivashinsky.py --explicit gnn --resolutions 128 256
    python examples/kuramoto_sivashinsky.py --num-points 512

The trajectories are made at the first run and kept under data/. Writes a checkpoint, from which an
interrupted run goes on, and two figures to --out.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import figures
import matplotlib.pyplot as plt
import numpy as np
import torch
from grid_learning import (
    GridFlux,
    GridMLP,
    Run,
    default_step,
    difference,
    energy_spectrum,
    make_checkpoint,
    relative_error,
    rollout,
    train,
    turned,
    windows,
)
from grid_options import add_arguments, parse, precision
from matplotlib.colors import LogNorm
from options import make_parser, non_negative_int, output_folder, positive_float, positive_int
from torch import Tensor, nn

from pyg_sinode.datasets import KuramotoSivashinsky
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky, resample

# For L = 22: Edson, Bunder, Mattner, Roberts (2019), https://doi.org/10.1017/S1446181119000105
LYAPUNOV_TIME = 22.0
# The training of each explicit term, where no option says otherwise.
SETTINGS = {
    "mlp": {"method": "imex_rk2", "optimizer": "adam", "epochs": 300, "batch_size": 512,
            "window": 4, "lr": 2e-3, "dtype": "float32"},
    "gnn": {"method": "etdrk4", "optimizer": "gauss_newton", "epochs": 6, "batch_size": 512,
            "window": 4, "lr": 2e-3, "dtype": "float64"}}
STEPS = {"mlp": 1, "gnn": 4}  # in an interval between saved states, where no option says otherwise
TRUE = "true"  # the name of the equation's own G


def main() -> None:
    args = parse_arguments()
    output_folder(args.out)
    torch.manual_seed(args.seed)
    data = {split: KuramotoSivashinsky(args.root, split, num_points=args.num_points,
                                       trajectories=args.trajectories, duration=args.duration)
            for split in ("train", "test")}
    grid = data["train"].grid
    linear = kuramoto_sivashinsky(grid, discretization=args.discretization).implicit
    if args.step_size is None:
        args.step_size = default_step(args.method, args.interval / STEPS[args.explicit], linear,
                                      args.num_points)
    name = f"ks-{args.num_points}-{args.explicit}-{args.method}"
    states = data["train"].states.to(precision(args))
    test = data["test"].states.to(args.device)
    if args.true_term:
        model, run, name = data["train"].equation.explicit, Run(), name.replace(args.explicit, TRUE)
        print(f"{name}: {describe_one_step(one_step_error(args, model, linear, test))}")
    else:
        model = make_model(args, grid).to(args.device, precision(args))
        run = learn(args, name, model, linear, states, test)
    result = examine(args, model, linear, test)
    print_result(result)
    for n in args.resolutions:
        elsewhere(args, model, test, n)
    path = make_checkpoint(args, name).picture(
        horizon=args.horizon, rollout=args.lyapunov_times)
    print(f"figures: {plot_forecast(args, path, result, run)}, "
          f"{plot_attractor(path.with_name(f'{path.stem}-attractor.png'), result)}")


def learn(args, name: str, model: nn.Module, linear, states: Tensor, test: Tensor) -> Run:
    """Trains on the states, and prints what it took."""
    print(f"{name}: {states.size(0) * (states.size(1) - 1)} steps to train on, "
          f"{sum(p.numel() for p in model.parameters())} parameters")

    def draw(count: int, window: int, generator: torch.Generator) -> Tensor:
        found = windows(states, count, window, generator)
        return turned(found, generator) if args.explicit == "mlp" else found

    def test_loss(model: nn.Module) -> float:
        return one_step_error(args, model, linear, test)

    run = train(args, name, model, linear, draw, difference, test_loss)
    print(f"{describe_one_step(run.curve[-1][2])} after {run.seconds:.0f} s and "
          f"{figures.plural(run.epoch, 'epoch')}; in the last epoch "
          f"{run.work['evaluations']} evaluations of G, {run.work['vjps']} vector-Jacobian "
          f"products, {run.work['solves']} linear solves; "
          f"factorizations: {run.factorizations} in all")
    return run


def one_step_error(args, model: nn.Module, linear, test: Tensor) -> float:
    """The mean squared error after one interval, from states drawn at random."""
    drawn = windows(test.to(precision(args)), 2000, 1, torch.Generator().manual_seed(0))
    found = rollout(args, model, linear, drawn[:, 0], 1)
    return float(mean_square(found[:, 1], drawn[:, 1]))


def describe_one_step(error: float) -> str:
    return f"one-step mean squared error on later times {error:.2e}"


def make_model(args, grid: PeriodicGrid) -> nn.Module:
    if args.explicit == "gnn":
        return GridFlux(grid, args.radius, args.hidden)
    return GridMLP(args.num_points, 200 if args.num_points < 512 else 576)


def examine(args, model: nn.Module, linear, test: Tensor) -> dict:
    """Rolls out from test states, for the horizon; and for 50 Lyapunov times, for statistics."""
    count = max(1, min(round(args.horizon * LYAPUNOV_TIME / args.interval), test.size(1) - 1))
    truth = test[:, : count + 1]
    found = rollout(args, model, linear, truth[:, 0].to(precision(args)), count)
    error = relative_error(found, truth)
    wrong = error > 0.2
    long = rollout(args, model, linear, test[:16, 0].to(precision(args)),
                   max(1, round(args.lyapunov_times * LYAPUNOV_TIME / args.interval)))
    # The times to an error of 20 %; infinite for a start that does not reach it in the horizon.
    time = torch.where(wrong.any(dim=1), wrong.int().argmax(dim=1) * args.interval, torch.inf)
    return {"truth": truth, "found": found, "error": error, "time": time.double().cpu(),
            "test": test, "long": long, "interval": args.interval, "horizon": count * args.interval}


def print_result(result: dict) -> None:
    print(describe_times(result["time"], result["horizon"]))
    long, test, interval = result["long"], result["test"], result["interval"]
    late = long[:, long.size(1) // 10 :]
    size, true_size = (float(u.square().mean().sqrt()) for u in (late, test))
    largest, true_largest = (float(u.abs().max()) for u in (late, test))
    print(f"after {(long.size(1) - 1) * interval / LYAPUNOV_TIME:.0f} Lyapunov times "
          f"{'bounded' if bool(long.isfinite().all()) else 'NOT bounded'}: root mean square "
          f"{size:.3f} (truth {true_size:.3f}), largest {largest:.2f} (truth {true_largest:.2f})")


def describe_times(time: Tensor, horizon: float) -> str:
    """The median and the worst tenth of the times to 20 % error, and how many are unknown."""
    ordered = time.sort().values
    found = []
    for part in (0.5, 0.1):
        value = float(ordered[int(part * (len(time) - 1))])
        sign, value = ("", value) if value < math.inf else (">= ", horizon)
        found.append(f"{sign}{value:.1f} units of time ({sign}{value / LYAPUNOV_TIME:.2f} Lyapunov "
                     "times)")
    return (f"20 % relative error after {found[0]}, the median of "
            f"{figures.plural(len(time), 'start')}, and {found[1]}, the worst tenth; "
            f"{int(time.isinf().sum())} never reached it within the horizon of {horizon:.0f} "
            f"({horizon / LYAPUNOV_TIME:.1f} Lyapunov times)")


def elsewhere(args, model: nn.Module, test: Tensor, num_points: int) -> None:
    """The errors of the same weights on a grid of another number of points."""
    grid = PeriodicGrid(num_points, 22.0)
    linear = kuramoto_sivashinsky(grid, discretization=args.discretization).implicit
    fine = resample(test, num_points)
    model = kuramoto_sivashinsky(grid).explicit if args.true_term else model.on(grid)
    result = examine(args, model, linear, fine)
    one = relative_error(result["found"][:, 1], result["truth"][:, 1])
    mse = mean_square(result["found"][:, 1], result["truth"][:, 1])
    print(f"on {num_points} points without training: one-step mean squared error {float(mse):.2e}, "
          f"relative {float(one.mean()):.1e}")
    print_result(result)


def plot_forecast(args, path: Path, result: dict, run) -> Path:
    """Truth, prediction and their difference over time; errors; losses against wall time."""
    figure, axes = plt.subplots(3, 2, figsize=(11, 10))
    figure.suptitle(f"Kuramoto-Sivashinsky, {args.num_points} points: G by the "
                    f"{TRUE + ' term' if args.true_term else args.explicit}, "
                    f"{args.method}, steps of {args.step_size:g} (all quantities dimensionless)")
    plot_fields(axes[:, 0], result)
    plot_errors(axes[0, 1], result)
    plot_times(axes[1, 1], result)
    if run.curve:
        plot_training(axes[2, 1], run)
    else:
        axes[2, 1].set_axis_off()
    return figures.save(figure, path)


def plot_training(ax, run: Run) -> None:
    seconds, loss, test = np.array(run.curve).T
    figures.plot_losses(ax, {"training": loss, "later times, one step": test}, x=seconds)
    ax.set(xlabel="training time in s", ylabel="mean squared error",
           title=f"loss in {figures.plural(run.epoch, 'epoch')}")
    figures.legend_below(ax)


def plot_fields(axes, result: dict) -> None:
    """Truth and prediction on one scale, their difference on its own, from a typical start."""
    time = result["time"].clamp(max=result["horizon"])
    start = int((time - time.median()).abs().argmin())
    shown = max(100.0, 1.25 * float(time[start]))
    steps = min(result["found"].size(1), round(shown / result["interval"]) + 1)
    truth, found = (result[key][start, :steps].cpu().double().numpy() for key in ("truth", "found"))
    extent = (0, (steps - 1) * result["interval"], 0, 22)
    fields = {"truth": (truth, 3.0), "prediction": (found, 3.0),
              "difference (its own logarithmic colour scale)": (found - truth, None, 3)}
    images = []
    for ax, (title, field) in zip(axes, fields.items(), strict=True):
        images.append(figures.show_field(ax, field[0], extent, *field[1:]))
        ax.set(title=title, xlabel="time t", ylabel="position x")
        if bool(result["time"][start].isfinite()):
            ax.axvline(float(result["time"][start]), color="k", ls=":",
                       label="20 % relative error")
    figures.color_bar(images[0], axes[:2], "u")
    figures.color_bar(images[2], axes[2], "prediction - truth")
    if axes[2].lines:
        figures.legend_below(axes[2])


def plot_errors(ax, result: dict) -> None:
    """The relative error over time, of the median start and of most."""
    t = np.arange(result["error"].size(1)) * result["interval"] / LYAPUNOV_TIME
    low, middle, high = np.quantile(result["error"].cpu().clamp(max=10.0).numpy(), [0.1, 0.5, 0.9],
                                    axis=0)
    ax.semilogy(t, middle, label="median start")
    ax.fill_between(t, low, high, alpha=0.3, lw=0, label="10 % to 90 % of the starts")
    ax.axhline(0.2, color="k", ls=":", label="20 %")
    ax.set(xlabel="time in Lyapunov times (22 units)", ylabel="relative error (L2)",
           ylim=(max(1e-7, 0.5 * float(low[1:].min())), 3), title="error of the prediction")
    figures.legend_below(ax, ncols=3)


def plot_times(ax, result: dict) -> None:
    """How long predictions last; those that outlast the horizon in a bar of their own."""
    horizon = result["horizon"] / LYAPUNOV_TIME
    time = result["time"].numpy() / LYAPUNOV_TIME
    known, width = time[np.isfinite(time)], horizon / 20
    ax.hist(known, bins=20, range=(0, horizon), edgecolor="w", label="reached at that time")
    ax.bar(horizon + 1.5 * width, len(time) - len(known), 2 * width, color="0.7", hatch="//",
           edgecolor="k", label=f"not within the horizon of {horizon:.1f}")
    ax.axvline(horizon, color="k", ls=":", label="horizon")
    ax.set(xlabel="Lyapunov times to 20 % error", ylabel="number of starts",
           title=f"{len(time) - len(known)} of {figures.plural(len(time), 'start')} never reached "
           "20 % error")
    figures.legend_below(ax, ncols=3)


def plot_attractor(path: Path, result: dict) -> Path:
    """Spectra and joint densities of (u_x, u_xx), truth beside a long rollout."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2))
    long = result["long"]
    long = long[long.isfinite().all(dim=-1).all(dim=-1)][:, long.size(1) // 10 :]
    duration = (result["long"].size(1) - 1) * result["interval"] / LYAPUNOV_TIME
    figure.suptitle(f"Statistics of the attractor: truth beside rollouts of {duration:.0f} Lyapunov"
                    " times (all quantities dimensionless)")
    pairs = (("truth", result["test"].cpu()), ("rollout", long.double().cpu()))
    n = result["test"].size(-1)
    grid = PeriodicGrid(n, 22.0)
    for label, states in pairs:
        if states.numel():
            k = grid.wavenumbers()[: n // 2]
            axes[0].semilogy(k[1:], energy_spectrum(states)[1 : n // 2].numpy(), label=label)
    axes[0].set(xlabel="wavenumber", ylabel="mean square of the mode", xlim=(0, 6), ylim=(1e-14, 1),
                title="spectrum")
    figures.legend_below(axes[0])
    for ax, (label, states) in zip(axes[1:], pairs, strict=True):
        ax.set(xlabel="$u_x$", ylabel="$u_{xx}$", title=f"joint density, {label}")
        if states.numel():
            slope = grid.derivative(1).mv(states).flatten().numpy()
            bend = grid.derivative(2).mv(states).flatten().numpy()
            *_, image = ax.hist2d(slope, bend, bins=120, range=[[-4, 2.5], [-4, 4]], density=True,
                                  norm=LogNorm(1e-5, 1), cmap="cividis")
        else:
            ax.text(0.5, 0.5, "no rollout stayed finite", transform=ax.transAxes, ha="center")
    figure.colorbar(image, ax=axes[1:], label="density", extend="both")
    return figures.save(figure, path)


def mean_square(found: Tensor, truth: Tensor) -> Tensor:
    return (found - truth).square().mean()


def add_problem(add, horizon: float, duration: float) -> None:
    """The options of the grid, the data, the network and the comparison."""
    add("--num-points", type=positive_int, default=64, metavar="N", help="points of the grid")
    add("--radius", type=positive_int, default=3, metavar="NODES",
        help="nodes that a flux of the gnn sees on each side")
    add("--hidden", type=non_negative_int, default=0, metavar="WIDTH",
        help="width of the gnn's perceptron; 0 for none")
    add("--trajectories", type=positive_int, default=32, metavar="N",
        help="trajectories of the data set")
    add("--duration", type=positive_float, default=duration, metavar="TIME",
        help="their length, of which the last quarter is for testing")
    add("--horizon", type=positive_float, default=horizon, metavar="LYAPUNOV_TIMES",
        help="how long to compare with the truth")
    add("--lyapunov-times", type=positive_float, default=50.0, metavar="LYAPUNOV_TIMES",
        help="length of the long rollout")


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Learn the nonlinear term of the Kuramoto-Sivashinsky equation on a domain of length 22. "
        "Times are in its units; a Lyapunov time is 22 of them.", "kuramoto_sivashinsky.py",
        "kuramoto_sivashinsky.py --explicit gnn --resolutions 128 256",
        "kuramoto_sivashinsky.py --explicit gnn --method imex_rk2 --horizon 5",
        "kuramoto_sivashinsky.py --num-points 512 --trajectories 8",
        "kuramoto_sivashinsky.py --true-term --method imex_rk4 --dtype float64")
    add = add_arguments(parser, interval="0.2, of the gnn 0.05")
    add("--true-term", action="store_true",
        help="no training: the equation's own G, to see how far the scheme and the rounding let "
        "predictions go")
    add("--discretization", choices=["spectral", "finite_difference"], default="spectral",
        help="of the linear part; finite_difference is the paper's")
    add_problem(add, horizon=13.0, duration=1200.0)
    args = parse(parser, **SETTINGS)
    args.interval = KuramotoSivashinsky.step
    return args


if __name__ == "__main__":
    main()
