"""Viscous Burgers: can a network step across moving shocks, on initial fields it has not seen?

du/dt = G(u) + J u with J u = nu u_xx known and G a network. Message passing takes steps of 0.002,
in which a state moves by a point of 512; an exponential scheme with the true G = -u u_x is exact to
1e-4 in them, and the flux comes as near. The perceptron takes steps of 0.05, in which a state moves
by up to 27 points: no scheme of this package survives that with the true G, but a G that is trained
through the steps need not be the true one. So can message passing, by --rounds 24 --hidden 16
--method imex_euler --optimizer adam --dtype float32 --epochs 60 --window 2:

    python examples/burgers.py --explicit gnn
    python examples/burgers.py --explicit gnn --resolutions 256 1024
    python examples/burgers.py --explicit mlp
    python examples/burgers.py --true-term --method etdrk4 --dtype float64

The trajectories are made at the first run and kept under data/. Writes a checkpoint, from which an
interrupted run goes on, and a figure to --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import figures
import matplotlib.pyplot as plt
import numpy as np
import torch
from grid_learning import (
    Averaged,
    FluxMLP,
    GridFlux,
    Run,
    default_step,
    energy_spectrum,
    make_checkpoint,
    relative_error,
    rollout,
    train,
    turned,
    windows,
)
from grid_options import add_arguments, parse, precision
from options import (
    make_parser,
    non_negative_int,
    output_folder,
    positive_float,
    positive_int,
    share,
)
from torch import Tensor, nn

from pyg_sinode.datasets import BurgersTurbulence
from pyg_sinode.grid import PeriodicGrid, resample, viscous_burgers

REFERENCE = 512  # points of the grid on which the nodes of a flux of many rounds are neighbours
# The training of each explicit term, where no option says otherwise.
SETTINGS = {
    "mlp": {"method": "imex_euler", "optimizer": "adam", "epochs": 450, "batch_size": 128,
            "window": 3, "lr": 1.5e-3, "from_start": 0.3, "dtype": "float32",
            "turns": 16},
    "gnn": {"method": "etdrk4", "optimizer": "gauss_newton", "epochs": 15, "batch_size": 16,
            "window": 1, "lr": 5e-3, "from_start": 0.0, "dtype": "float64",
            "turns": 1}}
STEP = 0.05  # of G that need not be the true one
TRUE = "true"  # the name of the equation's own G
STEPS = 25  # in such a step, on 512 points, for a G that is to be the true one


def main() -> None:
    args = parse_arguments()
    output_folder(args.out)
    torch.manual_seed(args.seed)
    data = {split: BurgersTurbulence(args.root, split, num_points=args.num_points,
                                     trajectories=args.trajectories)
            for split in ("train", "test")}
    grid = data["train"].grid
    linear = viscous_burgers(grid, BurgersTurbulence.viscosity).implicit
    if args.step_size is None:
        args.step_size = own_step(args, linear)
    name = f"burgers-{args.num_points}-{args.explicit}-{args.method}"
    test = data["test"].states.to(args.device)
    if args.true_term:
        model, run, name = data["train"].equation.explicit, Run(), name.replace(args.explicit, TRUE)
    else:
        model = make_model(args, grid).to(args.device, precision(args))
        early = round(args.until / args.interval) + 1
        run = learn(args, name, model, linear, data["train"].states[:, :early], test)
        if args.explicit == "mlp":
            model = Averaged(model, args.num_points, args.turns).to(args.device)
    found = rollout(args, model, linear, test[:, 0].to(precision(args)), test.size(1) - 1)
    error = print_errors("test trajectories", found, test, args.interval)
    for n in args.resolutions:
        elsewhere(args, model, test, n)
    path = make_checkpoint(args, name).picture(
        turns=None if args.true_term or args.turns == 1 else args.turns)
    print(f"figure: {plot(args, path, found, test, error, run)}")


def learn(args, name: str, model: nn.Module, linear, states: Tensor, test: Tensor) -> Run:
    """Trains on the states, and prints what it took."""
    states = states.to(precision(args))
    print(f"{name}: {states.size(0)} trajectories to train on, up to a time of {args.until}; "
          f"{sum(p.numel() for p in model.parameters())} parameters")

    def draw(count: int, window: int, generator: torch.Generator) -> Tensor:
        # Predictions are asked for from t = 0 on, where the states are like no later ones.
        return turned(windows(states, count, window, generator, args.from_start), generator)

    def test_loss(model: nn.Module) -> float:
        found = rollout(args, model, linear, test[:, 0].to(precision(args)), 1)
        return float(relative_difference(found[:, 1:], test[:, 1:2]).square().mean())

    run = train(args, name, model, linear, draw, relative_difference, test_loss)
    print(f"{run.seconds:.0f} s, {figures.plural(run.epoch, 'epoch')}; in the last epoch "
          f"{run.work['evaluations']} evaluations of G, {run.work['vjps']} vector-Jacobian "
          f"products, {run.work['solves']} linear solves; "
          f"factorizations: {run.factorizations} in all")
    return run


def elsewhere(args, model: nn.Module, test: Tensor, num_points: int) -> None:
    """Prints the errors of the same weights on a grid of another number of points."""
    fine, truth = PeriodicGrid(num_points, 1.0), resample(test, num_points)
    equation = viscous_burgers(fine, BurgersTurbulence.viscosity)
    model = equation.explicit if args.true_term else model.on(fine, stride(args, num_points))
    # States move past as many of the points of a finer grid in a step, where that matters.
    ratio = min(1.0, args.num_points / num_points) if steps_are_small(args) else 1.0
    smaller = argparse.Namespace(**{**vars(args), "step_size": args.step_size * ratio})
    found = rollout(smaller, model, equation.implicit, truth[:, 0].to(precision(args)),
                    truth.size(1) - 1)
    print_errors(f"on {num_points} points without training", found, truth, args.interval)


def own_step(args, linear) -> float:
    """The step of the method and the network: one in which states move by a point, if G is to be
    the true one."""
    step = 1e-3 if args.method == "rk4" else STEP
    if steps_are_small(args):
        step = min(step, STEP / STEPS * REFERENCE / args.num_points)
    return default_step(args.method, step, linear, args.num_points)


def steps_are_small(args) -> bool:
    """Whether G is the true one or is to be."""
    return args.true_term or (args.explicit, args.rounds) == ("gnn", 1)


def make_model(args, grid: PeriodicGrid) -> nn.Module:
    """The perceptron, of the paper's widths 576 and 1152, or the flux of neighbours."""
    if args.explicit == "mlp":
        return FluxMLP(grid, args.num_points * 9 // 8)
    return GridFlux(grid, args.radius, args.hidden, rounds=args.rounds,
                    scale=None if args.rounds == 1 else args.step_size,
                    stride=stride(args, args.num_points))


def stride(args, num_points: int) -> int:
    """From one neighbour to the next: as far as on 512 points, where a G that reaches far needs
    as many rounds on all grids."""
    return 1 if args.rounds == 1 else max(1, num_points // REFERENCE)


def print_errors(label: str, found: Tensor, truth: Tensor, interval: float) -> Tensor:
    """Prints the mean relative error at some times; gives it at all of them."""
    error = relative_error(found, truth)
    times = [t for t in (0.1, 0.5, 1.0, 2.0, 5.0) if round(t / interval) < truth.size(1)]
    print(f"{label}, mean relative L2 error: " + ", ".join(
        f"{100 * float(error[:, round(t / interval)].mean()):.3g} % at t = {t:g}" for t in times))
    return error


def relative_difference(found: Tensor, truth: Tensor) -> Tensor:
    """The errors relative to the root mean square of the state."""
    return (found - truth) / truth.square().mean(dim=-1, keepdim=True).sqrt()


def plot(args, path: Path, found: Tensor, test: Tensor, error: Tensor, run) -> Path:
    """Truth beside prediction in space and time and as profiles; errors, spectra and losses."""
    figure, axes = plt.subplots(3, 3, figsize=(12.5, 10.5))
    term = f"{TRUE} term" if args.true_term else args.explicit
    figure.suptitle(f"Viscous Burgers, {args.num_points} points: G by the {term}, {args.method}, "
                    f"steps of {args.step_size:g} (all quantities dimensionless)")
    found, test, error = (x.cpu().double().numpy() for x in (found, test, error))
    at_one = min(round(1.0 / args.interval), test.shape[1] - 1)
    middle = int(np.abs(error[:, at_one] - np.median(error[:, at_one])).argmin())
    plot_fields(axes[0], found[middle], test[middle], args.interval)
    plot_profiles(axes[1], found[middle], test[middle], args.interval)
    plot_error(axes[2, 0], error, args.interval)
    plot_spectra(axes[2, 1], {"truth": test[:, at_one], "prediction": found[:, at_one]},
                 at_one * args.interval)
    if run.curve:
        plot_training(axes[2, 2], run)
    else:
        axes[2, 2].set_axis_off()
    return figures.save(figure, path)


def plot_training(ax, run: Run) -> None:
    seconds, loss, test = np.array(run.curve).T
    figures.plot_losses(ax, {"training": loss, "test, first step": test}, x=seconds)
    ax.set(xlabel="training time in s", ylabel="squared error / squared truth",
           title=f"loss in {figures.plural(run.epoch, 'epoch')}")
    figures.legend_below(ax)


def plot_fields(axes, found: np.ndarray, truth: np.ndarray, interval: float) -> None:
    """Truth and prediction on one scale, their difference on its own."""
    extent = (0, (len(truth) - 1) * interval, 0, 1)
    size = float(np.abs(truth).max())
    images = [figures.show_field(axes[0], truth, extent, size),
              figures.show_field(axes[1], found, extent, size),
              figures.show_field(axes[2], found - truth, extent, decades=3)]
    titles = ("truth, the median test trajectory", "prediction",
              "difference (its own logarithmic\ncolour scale)")
    for ax, title in zip(axes, titles, strict=True):
        ax.set(title=title, xlabel="time t", ylabel="position x")
    figures.color_bar(images[1], list(axes[:2]), "u", side="bottom")
    figures.color_bar(images[2], axes[2], "prediction - truth", side="bottom")


def plot_profiles(axes, found: np.ndarray, truth: np.ndarray, interval: float) -> None:
    """The states at three times."""
    x = np.arange(truth.shape[-1]) / truth.shape[-1]
    for ax, time in zip(axes, (0.1, 0.5, 1.0), strict=True):
        at = min(round(time / interval), len(truth) - 1)
        ax.plot(x, truth[at], label="truth")
        ax.plot(x, found[at], label="prediction")
        ax.set(title=f"profiles at t = {at * interval:g}", xlabel="position x", ylabel="u")
        figures.legend_below(ax)


def plot_error(ax, error: np.ndarray, interval: float) -> None:
    t = interval * np.arange(error.shape[1])
    ax.plot(t, 100 * error.mean(axis=0), label="mean")
    ax.fill_between(t, 100 * error.min(axis=0), 100 * error.max(axis=0), alpha=0.3, lw=0,
                    label="smallest to largest")
    ax.set(xlabel="time t", ylabel="relative error (L2) in %", ylim=(0, None),
           title=f"error on {figures.plural(len(error), 'test trajectory', 'test trajectories')}")
    figures.legend_below(ax)


def plot_spectra(ax, states: dict[str, np.ndarray], time: float) -> None:
    for label, fields in states.items():
        spectrum = energy_spectrum(torch.from_numpy(fields)).numpy()
        modes = np.arange(1, fields.shape[-1] // 2)
        ax.loglog(modes, spectrum[modes], label=label)
    ax.set(xlabel="mode (waves in the domain)", ylabel="mean square of the mode",
           title=f"spectrum at t = {time:g}")
    figures.legend_below(ax)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Learn the nonlinear term of the viscous Burgers equation on a domain of length 1. Times "
        "are in its units, in which states move by up to 1.", "burgers.py --explicit gnn",
        "burgers.py --explicit mlp", "burgers.py --explicit gnn --num-points 1024",
        "burgers.py --explicit gnn --resolutions 256 1024",
        "burgers.py --true-term --method etdrk4 --dtype float64")
    add = add_arguments(parser, interval="0.05, of rk4 0.001, of the gnn 0.002 on "
                        "512 points")
    add("--true-term", action="store_true",
        help="no training: the equation's own G, to see how far the scheme lets predictions go")
    add("--num-points", type=positive_int, default=512, metavar="N", help="points of the grid")
    add("--trajectories", type=positive_int, default=100, metavar="N",
        help="trajectories of the data set, of which a fifth is for testing")
    add("--until", type=positive_float, default=1.2, metavar="TIME",
        help="the latest time that is trained on")
    add("--from-start", type=share, metavar="SHARE",
        help="share of windows that begin at t = 0; default: the network's own")
    add("--turns", type=positive_int, metavar="N",
        help="predictions of the perceptron take the mean of G over N shifts along the grid; "
        "default: 16")
    add("--radius", type=positive_int, default=3, metavar="NODES",
        help="nodes that a flux of the gnn sees on each side")
    add("--hidden", type=non_negative_int, default=0, metavar="WIDTH",
        help="width of the gnn's perceptron; 0 for none")
    add("--rounds", type=positive_int, default=1,
        help="rounds of message passing in each evaluation of the gnn")
    args = parse(parser, **SETTINGS)
    if args.turns > 1 and args.explicit == "gnn":
        parser.error("--turns needs a perceptron: the gnn commutes with shifts as it is")
    args.interval = BurgersTurbulence.step
    return args


if __name__ == "__main__":
    main()
