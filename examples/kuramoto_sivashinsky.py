"""Kuramoto-Sivashinsky: can the nonlinear term of a chaotic, stiff equation be learned from data?

du/dt = G(u) + J u with J u = -u_xx - u_xxxx known and G a network, trained through semi-implicit
steps of 0.2, where RK4 would need 4e-4 (64 points) or 1e-7 (512 points):

    python examples/kuramoto_sivashinsky.py
    python examples/kuramoto_sivashinsky.py --explicit gnn --resolutions 128 256
    python examples/kuramoto_sivashinsky.py --num-points 512

The trajectories are made at the first run and kept under data/. Writes two figures under runs/.
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

from pyg_sinode.datasets import KuramotoSivashinsky
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky, resample

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# For L = 22: Edson, Bunder, Mattner, Roberts (2019), https://doi.org/10.1017/S1446181119000105
LYAPUNOV_TIME = 22.0


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    data = {split: KuramotoSivashinsky(args.root, split, num_points=args.num_points,
                                       trajectories=args.trajectories, duration=args.duration)
            for split in ("train", "test")}
    grid = data["train"].grid
    linear = kuramoto_sivashinsky(grid, discretization=args.discretization).implicit
    if args.step_size is None:
        args.step_size = default_step(args.method, args.interval, linear, args.num_points)
    model = make_model(args, grid).to(args.device)
    name = f"ks-{args.num_points}-{args.explicit}-{args.method}"
    args.out.mkdir(parents=True, exist_ok=True)
    states = data["train"].states.float()
    test = data["test"].states.to(args.device)
    print(f"{name}: {states.size(0) * (states.size(1) - 1)} steps to train on, "
          f"{sum(p.numel() for p in model.parameters())} parameters")

    def draw(count: int, window: int, generator: torch.Generator) -> Tensor:
        found = windows(states, count, window, generator)
        return turned(found, generator) if args.explicit == "mlp" else found

    held_out = windows(test.float(), 2000, 1, torch.Generator().manual_seed(0))

    def test_loss(model: nn.Module) -> float:
        found = rollout(args, model, linear, held_out[:, 0], 1)
        return float(mean_square(found[:, 1], held_out[:, 1]))

    run = train(args, name, model, linear, draw, mean_square, test_loss)
    print(f"one-step mean squared error on later times {run.curve[-1][2]:.2e} after "
          f"{run.seconds:.0f} s and {run.epoch} epochs; in the last epoch "
          f"{run.work['evaluations']} evaluations of G, {run.work['vjps']} vector-Jacobian "
          f"products, {run.work['solves']} linear solves; "
          f"factorizations: {run.factorizations} in all")
    result = examine(args, model, linear, test)
    print_result(result)
    for n in args.resolutions:
        elsewhere(args, model, test, n)
    print(f"figures: {plot_forecast(args, name, result, run)}, "
          f"{plot_attractor(args, name, result)}")


def make_model(args, grid: PeriodicGrid) -> nn.Module:
    if args.explicit == "gnn":
        return GridFlux(grid, args.radius, args.hidden)
    return GridMLP(args.num_points, 200 if args.num_points < 512 else 576)


def examine(args, model: nn.Module, linear, test: Tensor) -> dict:
    """Rolls out from test states, for the horizon; and for 50 Lyapunov times, for statistics."""
    count = min(round(args.horizon * LYAPUNOV_TIME / args.interval), test.size(1) - 1)
    truth = test[:, : count + 1]
    found = rollout(args, model, linear, truth[:, 0].float(), count)
    error = relative_error(found, truth)
    wrong = error > 0.2
    time = torch.where(wrong.any(dim=1), wrong.int().argmax(dim=1), count) * args.interval
    long = rollout(args, model, linear, test[:16, 0].float(),
                   round(args.lyapunov_times * LYAPUNOV_TIME / args.interval))
    return {"truth": truth, "found": found, "error": error, "time": time, "test": test,
            "long": long, "interval": args.interval, "limit": count * args.interval}


def print_result(result: dict) -> None:
    time, long, test = result["time"], result["long"], result["test"]
    middle, low = float(time.double().median()), float(time.double().quantile(0.1))
    print(f"20 % relative error after {middle:.1f} units of time, {middle / LYAPUNOV_TIME:.2f} "
          f"Lyapunov times, from the median of {len(time)} starts ({low:.1f} from the worst tenth; "
          f"watched for {result['limit']:.0f})")
    bounded, interval = bool(long.isfinite().all()), result["interval"]
    late = long[:, long.size(1) // 10 :]
    size, true_size = (float(u.square().mean().sqrt()) for u in (late, test))
    largest, true_largest = (float(u.abs().max()) for u in (late, test))
    print(f"after {(long.size(1) - 1) * interval / LYAPUNOV_TIME:.0f} Lyapunov times "
          f"{'bounded' if bounded else 'NOT bounded'}: root mean square {size:.3f} (truth "
          f"{true_size:.3f}), largest {largest:.2f} (truth {true_largest:.2f})")


def elsewhere(args, model: nn.Module, test: Tensor, num_points: int) -> None:
    """The errors of the same weights on a grid of another number of points."""
    grid = PeriodicGrid(num_points, 22.0)
    linear = kuramoto_sivashinsky(grid, discretization=args.discretization).implicit
    fine = resample(test, num_points)
    result = examine(args, model.on(grid), linear, fine)
    one = relative_error(result["found"][:, 1], result["truth"][:, 1])
    mse = mean_square(result["found"][:, 1], result["truth"][:, 1])
    print(f"on {num_points} points without training: one-step mean squared error {float(mse):.2e}, "
          f"relative {float(one.mean()):.1e}")
    print_result(result)


def plot_forecast(args, name: str, result: dict, run) -> str:
    """Truth, prediction and their difference over time; errors; losses against wall time."""
    figure = plt.figure(figsize=(11, 6.5), constrained_layout=True)
    axes = figure.subplot_mosaic("AB;CD;EF")
    steps = min(result["found"].size(1), round(100 / args.interval) + 1)
    middle = int((result["time"] - result["time"].median()).abs().argmin())
    truth, found = (result[key][middle, :steps].cpu().numpy() for key in ("truth", "found"))
    extent = (0, (steps - 1) * args.interval, 0, 22)
    for key, field, title in (("A", truth, "truth"), ("B", found, "prediction"),
                              ("C", found - truth, "difference")):
        image = axes[key].imshow(field.T, origin="lower", aspect="auto", extent=extent,
                                 cmap="RdBu_r", vmin=-3, vmax=3)
        axes[key].axvline(float(result["time"][middle]), color="k", linestyle=":")
        axes[key].set(title=title, ylabel="x", xlabel="t")
    figure.colorbar(image, ax=[axes[k] for k in "ABC"], label="u", shrink=0.5)
    t = np.arange(result["error"].size(1)) * args.interval / LYAPUNOV_TIME
    error = result["error"].cpu().clamp(max=10.0)
    low, middle, high = np.quantile(error.numpy(), [0.1, 0.5, 0.9], axis=0)
    axes["D"].semilogy(t, middle, label="median start")
    axes["D"].fill_between(t, low, high, alpha=0.3, label="10 % to 90 %")
    axes["D"].axhline(0.2, color="k", linestyle=":")
    axes["D"].set(xlabel="Lyapunov times", ylabel="relative error", ylim=(1e-5, 3))
    axes["D"].legend()
    seconds, loss, test = np.array(run.curve).T
    axes["E"].loglog(seconds, loss, label="training")
    axes["E"].loglog(seconds, test, label="later times, one step")
    axes["E"].set(xlabel="training time in s", ylabel="mean squared error")
    axes["E"].legend()
    axes["F"].hist(result["time"].cpu().numpy() / LYAPUNOV_TIME, bins=20)
    axes["F"].set(xlabel="Lyapunov times to 20 % error", ylabel="starts")
    path = args.out / f"{name}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return str(path)


def plot_attractor(args, name: str, result: dict) -> str:
    """Spectra and joint densities of (u_x, u_xx), truth beside a long rollout."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    long = result["long"]
    long = long[long.isfinite().all(dim=-1).all(dim=-1)][:, long.size(1) // 10 :]
    pairs = (("truth", result["test"].cpu()), ("rollout", long.double().cpu()))
    n = result["test"].size(-1)
    grid = PeriodicGrid(n, 22.0)
    for label, states in pairs:
        if states.numel():
            k = grid.wavenumbers()[: n // 2]
            axes[0].semilogy(k[1:], energy_spectrum(states)[1 : n // 2].numpy(), label=label)
    axes[0].set(xlabel="wavenumber", ylabel="mean square of the mode", xlim=(0, 6), ylim=(1e-14, 1))
    axes[0].legend()
    for ax, (label, states) in zip(axes[1:], pairs, strict=True):
        if states.numel():
            slope = grid.derivative(1).mv(states).flatten().numpy()
            bend = grid.derivative(2).mv(states).flatten().numpy()
            ax.hist2d(slope, bend, bins=120, range=[[-3, 3], [-4, 4]], density=True,
                      norm=matplotlib.colors.LogNorm(1e-5, 1))
        ax.set(xlabel="u_x", ylabel="u_xx", title=f"density, {label}")
    path = args.out / f"{name}-attractor.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return str(path)


def mean_square(found: Tensor, truth: Tensor) -> Tensor:
    return (found - truth).square().mean()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Learn the nonlinear term of the Kuramoto-Sivashinsky equation.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = add_arguments(parser)
    add("--num-points", type=int, default=64, help="points of the grid")
    add("--discretization", choices=["spectral", "finite_difference"], default="spectral",
        help="of the linear part; finite_difference is the paper's")
    add("--radius", type=int, default=3, help="nodes that a flux of the gnn sees on each side")
    add("--hidden", type=int, default=0, help="width of the gnn's perceptron; 0 for none")
    add("--trajectories", type=int, default=32, help="trajectories of the data set")
    add("--duration", type=float, default=500.0, help="their length in time")
    add("--horizon", type=float, default=6.0, help="Lyapunov times to compare with the truth")
    add("--lyapunov-times", type=float, default=50.0, help="length of the long rollout")
    args = parse(
        parser,
        mlp={"method": "imex_rk2", "optimizer": "adam", "epochs": 300, "batch_size": 512,
             "window": 4, "lr": 2e-3},
        gnn={"method": "imex_rk4", "optimizer": "lbfgs", "epochs": 12, "batch_size": 2048,
             "window": 4, "lr": 2e-3})
    args.interval = KuramotoSivashinsky.step
    return args


if __name__ == "__main__":
    main()
