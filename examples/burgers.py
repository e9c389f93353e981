"""Viscous Burgers: can a network step across moving shocks, on initial fields it has not seen?

du/dt = G(u) + J u with J u = nu u_xx known and G a network. In a step of 0.05 a state moves by up
to 27 of 512 points, which no scheme of this package with the true G = -u u_x survives; a G that is
trained through the steps need not be the true one:

    python examples/burgers.py --explicit gnn
    python examples/burgers.py --explicit mlp
    python examples/burgers.py --explicit gnn --num-points 1024

The trajectories are made at the first run and kept under data/. Writes a figure under runs/.
"""

from __future__ import annotations

import argparse

import matplotlib
import numpy as np
import torch
from grid_learning import (
    GridFlux,
    GridMLP,
    add_arguments,
    default_step,
    energy_spectrum,
    parse,
    relative_error,
    rollout,
    train,
    turned,
    windows,
)
from torch import Tensor, nn

from pyg_sinode.datasets import BurgersTurbulence
from pyg_sinode.grid import PeriodicGrid, resample, viscous_burgers

matplotlib.use("Agg")
import matplotlib.pyplot as plt

REFERENCE = 512  # points of the grid on which the nodes of a flux are neighbours


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    data = {split: BurgersTurbulence(args.root, split, num_points=args.num_points,
                                     trajectories=args.trajectories)
            for split in ("train", "test")}
    grid = data["train"].grid
    linear = viscous_burgers(grid, BurgersTurbulence.viscosity).implicit
    if args.step_size is None:
        args.step_size = default_step(args.method, 1e-3 if args.method == "rk4" else 0.05, linear,
                                      args.num_points)
    model = make_model(args, grid).to(args.device)
    name = f"burgers-{args.num_points}-{args.explicit}-{args.method}"
    args.out.mkdir(parents=True, exist_ok=True)
    early = round(args.until / args.interval) + 1
    states = data["train"].states[:, :early].float()
    test = data["test"].states.to(args.device)
    print(f"{name}: {states.size(0)} trajectories to train on, up to a time of {args.until}; "
          f"{sum(p.numel() for p in model.parameters())} parameters")

    def draw(count: int, window: int, generator: torch.Generator) -> Tensor:
        # Predictions are asked for from t = 0 on, where the states are like no later ones.
        return turned(windows(states, count, window, generator, args.from_start), generator)

    def test_loss(model: nn.Module) -> float:
        found = rollout(args, model, linear, test[:, 0].float(), 1)
        return float(relative_square(found[:, 1:], test[:, 1:2]))

    run = train(args, name, model, linear, draw, relative_square, test_loss)
    print(f"{run.seconds:.0f} s, {run.epoch} epochs; in the last epoch {run.work['evaluations']} "
          f"evaluations of G, {run.work['vjps']} vector-Jacobian products, "
          f"{run.work['solves']} linear solves; factorizations: {run.factorizations} in all")
    found = rollout(args, model, linear, test[:, 0].float(), test.size(1) - 1)
    error = print_errors("test trajectories", found, test, args.interval)
    for n in args.resolutions:
        fine = PeriodicGrid(n, 1.0)
        other = model.on(fine, stride=max(1, n // REFERENCE))
        truth = resample(test, n)
        there = rollout(args, other, viscous_burgers(fine, BurgersTurbulence.viscosity).implicit,
                        truth[:, 0].float(), test.size(1) - 1)
        print_errors(f"on {n} points without training", there, truth, args.interval)
    print(f"figure: {plot(args, name, found, test, error, run)}")


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


def relative_square(found: Tensor, truth: Tensor) -> Tensor:
    """The mean over all states of the squared error relative to the state."""
    return ((found - truth).square().mean(dim=-1) / truth.square().mean(dim=-1)).mean()


def plot(args, name: str, found: Tensor, test: Tensor, error: Tensor, run) -> str:
    """Truth beside prediction in space and time and as profiles; errors, spectra and losses."""
    figure = plt.figure(figsize=(12, 8), constrained_layout=True)
    axes = figure.subplot_mosaic("ABC;DEF;GHI")
    found, test, error = (x.cpu().numpy() for x in (found, test, error))
    last = test.shape[1] - 1
    at_one = min(round(1.0 / args.interval), last)
    middle = int(np.abs(error[:, at_one] - np.median(error[:, at_one])).argmin())
    extent = (0, last * args.interval, 0, 1)
    for key, field, title in (("A", test[middle], "truth"), ("B", found[middle], "prediction"),
                              ("C", found[middle] - test[middle], "difference")):
        image = axes[key].imshow(field.T, origin="lower", aspect="auto", extent=extent,
                                 cmap="RdBu_r", vmin=-0.8, vmax=0.8)
        axes[key].set(title=f"{title}, test trajectory {middle}", xlabel="t", ylabel="x")
    figure.colorbar(image, ax=axes["C"], label="u")
    n = test.shape[-1]
    x = np.arange(n) / n
    for key, time in (("D", 0.1), ("E", 0.5), ("F", 1.0)):
        i = min(round(time / args.interval), last)
        axes[key].plot(x, test[middle, i], label="truth")
        axes[key].plot(x, found[middle, i], "--", label="prediction")
        axes[key].set(title=f"t = {i * args.interval:g}", xlabel="x", ylabel="u")
    axes["D"].legend()
    t = args.interval * np.arange(last + 1)
    axes["G"].plot(t, 100 * error.mean(axis=0), label="mean")
    axes["G"].fill_between(t, 100 * error.min(axis=0), 100 * error.max(axis=0), alpha=0.3,
                           label="least to largest")
    axes["G"].set(xlabel="t", ylabel="relative error in %", ylim=(0, None))
    axes["G"].legend()
    for label, states in (("truth", test), ("prediction", found)):
        spectrum = energy_spectrum(torch.from_numpy(states[:, at_one])).numpy()
        axes["H"].loglog(np.arange(1, n // 2), spectrum[1 : n // 2], label=label)
    axes["H"].set(xlabel="mode", ylabel=f"mean square at t = {at_one * args.interval:g}")
    axes["H"].legend()
    seconds, loss, later = np.array(run.curve).T
    axes["I"].loglog(seconds, loss, label="training")
    axes["I"].loglog(seconds, later, label="test, from t = 0")
    axes["I"].set(xlabel="training time in s", ylabel="relative squared error")
    axes["I"].legend()
    path = args.out / f"{name}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return str(path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Learn the nonlinear term of the viscous Burgers equation.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = add_arguments(parser)
    add("--num-points", type=int, default=512, help="points of the grid")
    add("--trajectories", type=int, default=100, help="of which a fifth is for testing")
    add("--until", type=float, default=1.2, help="the latest time that is trained on")
    add("--from-start", type=float, help="share of windows from t = 0; None: the network's own")
    add("--radius", type=int, default=3, help="nodes that a flux of the gnn sees on each side")
    add("--hidden", type=int, default=16, help="width of the gnn's perceptron; 0 for none")
    add("--rounds", type=int, default=24, help="rounds of message passing in each evaluation")
    args = parse(
        parser,
        mlp={"method": "imex_euler", "optimizer": "adam", "epochs": 450, "batch_size": 128,
             "window": 3, "lr": 1.5e-3, "from_start": 0.3},
        gnn={"method": "imex_euler", "optimizer": "adam", "epochs": 60, "batch_size": 16,
             "window": 2, "lr": 5e-3, "from_start": 0.0})
    args.interval = BurgersTurbulence.step
    return args


if __name__ == "__main__":
    main()
