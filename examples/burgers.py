"""Viscous Burgers: can a network step across moving shocks, on initial fields it has not seen?

du/dt = G(u) + J u with J u = nu u_xx known and G a network. In a step of 0.05 a state moves by up
to 27 of 512 points, which no scheme of this package with the true G = -u u_x survives; a G that is
trained through the steps need not be the true one:

    python examples/burgers.py --explicit gnn
    python examples/burgers.py --explicit mlp
    python examples/burgers.py --explicit gnn --num-points 1024

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
    GridFlux,
    GridMLP,
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

REFERENCE = 512  # points of the grid on which the nodes of a flux are neighbours


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
        args.step_size = default_step(args.method, 1e-3 if args.method == "rk4" else 0.05, linear,
                                      args.num_points)
    model = make_model(args, grid).to(args.device, precision(args))
    name = f"burgers-{args.num_points}-{args.explicit}-{args.method}"
    early = round(args.until / args.interval) + 1
    states = data["train"].states[:, :early].to(precision(args))
    test = data["test"].states.to(args.device)
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
    found = rollout(args, model, linear, test[:, 0].to(precision(args)), test.size(1) - 1)
    error = print_errors("test trajectories", found, test, args.interval)
    for n in args.resolutions:
        fine = PeriodicGrid(n, 1.0)
        other = model.on(fine, stride=max(1, n // REFERENCE))
        truth = resample(test, n)
        there = rollout(args, other, viscous_burgers(fine, BurgersTurbulence.viscosity).implicit,
                        truth[:, 0].to(precision(args)), test.size(1) - 1)
        print_errors(f"on {n} points without training", there, truth, args.interval)
    path = make_checkpoint(args, name).path.with_suffix(".png")
    print(f"figure: {plot(args, path, found, test, error, run)}")


def make_model(args, grid: PeriodicGrid) -> nn.Module:
    """The perceptron of the paper's widths, 576 and 1152, or the flux of neighbours."""
    if args.explicit == "mlp":
        return GridMLP(args.num_points, args.num_points * 9 // 8)
    return GridFlux(grid, args.radius, args.hidden, rounds=args.rounds, scale=args.step_size,
                    stride=max(1, args.num_points // REFERENCE))


def print_errors(label: str, found: Tensor, truth: Tensor, interval: float) -> Tensor:
    """Prints the mean relative error at some times; gives it at all of them."""
    error = relative_error(found, truth)
    times = [t for t in (0.1, 0.5, 1.0, 2.0, 5.0) if round(t / interval) < truth.size(1)]
    print(f"{label}, mean relative L2 error: " + ", ".join(
        f"{100 * float(error[:, round(t / interval)].mean()):.2f} % at t = {t:g}" for t in times))
    return error


def relative_difference(found: Tensor, truth: Tensor) -> Tensor:
    """The errors relative to the root mean square of the state."""
    return (found - truth) / truth.square().mean(dim=-1, keepdim=True).sqrt()


def plot(args, path: Path, found: Tensor, test: Tensor, error: Tensor, run) -> Path:
    """Truth beside prediction in space and time and as profiles; errors, spectra and losses."""
    figure, axes = plt.subplots(3, 3, figsize=(12.5, 10.5))
    figure.suptitle(f"Viscous Burgers, {args.num_points} points: G by the {args.explicit}, "
                    f"{args.method}, steps of {args.step_size:g} (all quantities dimensionless)")
    found, test, error = (x.cpu().double().numpy() for x in (found, test, error))
    at_one = min(round(1.0 / args.interval), test.shape[1] - 1)
    middle = int(np.abs(error[:, at_one] - np.median(error[:, at_one])).argmin())
    plot_fields(axes[0], found[middle], test[middle], args.interval)
    plot_profiles(axes[1], found[middle], test[middle], args.interval)
    plot_error(axes[2, 0], error, args.interval)
    plot_spectra(axes[2, 1], {"truth": test[:, at_one], "prediction": found[:, at_one]},
                 at_one * args.interval)
    seconds, loss, later = np.array(run.curve).T
    figures.plot_losses(axes[2, 2], {"training": loss, "test, first step": later}, x=seconds)
    axes[2, 2].set(xlabel="training time in s", ylabel="squared error / squared truth",
                   title=f"loss in {figures.plural(run.epoch, 'epoch')}")
    figures.legend_below(axes[2, 2])
    return figures.save(figure, path)


def plot_fields(axes, found: np.ndarray, truth: np.ndarray, interval: float) -> None:
    """Truth and prediction on one scale, their difference on its own."""
    extent = (0, (len(truth) - 1) * interval, 0, 1)
    size = float(np.abs(truth).max())
    images = [figures.show_field(axes[0], truth, extent, size),
              figures.show_field(axes[1], found, extent, size),
              figures.show_field(axes[2], found - truth, extent)]
    titles = ("truth, the median test trajectory", "prediction", "difference (a scale of its own)")
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
        "burgers.py --explicit gnn --resolutions 256 1024")
    add = add_arguments(parser, interval="0.05, of rk4 0.001")
    add("--num-points", type=positive_int, default=512, metavar="N", help="points of the grid")
    add("--trajectories", type=positive_int, default=100, metavar="N",
        help="trajectories of the data set, of which a fifth is for testing")
    add("--until", type=positive_float, default=1.2, metavar="TIME",
        help="the latest time that is trained on")
    add("--from-start", type=share, metavar="SHARE",
        help="share of windows that begin at t = 0; default: the network's own")
    add("--radius", type=positive_int, default=3, metavar="NODES",
        help="nodes that a flux of the gnn sees on each side")
    add("--hidden", type=non_negative_int, default=16, metavar="WIDTH",
        help="width of the gnn's perceptron; 0 for none")
    add("--rounds", type=positive_int, default=24,
        help="rounds of message passing in each evaluation of the gnn")
    args = parse(
        parser,
        mlp={"method": "imex_euler", "optimizer": "adam", "epochs": 450, "batch_size": 128,
             "window": 3, "lr": 1.5e-3, "from_start": 0.3, "dtype": "float32"},
        gnn={"method": "imex_euler", "optimizer": "adam", "epochs": 60, "batch_size": 16,
             "window": 2, "lr": 5e-3, "from_start": 0.0, "dtype": "float32"})
    args.interval = BurgersTurbulence.step
    return args


if __name__ == "__main__":
    main()
