"""Stabilised neural ODEs: does a linear part have to be known, or can it be learned with the rest?

du/dt = G(u) + J u on data of the Kuramoto-Sivashinsky equation, as of Linot, Burby, Tang,
Balaprakash, Graham, Maulik (2022), https://arxiv.org/abs/2203.15706. G is a network, J implicit:

    fixed       that of the equation, J u = -u_xx - u_xxxx
    circulant   a learned Fourier multiplier whose real part is at most zero
    low-rank    learned, P Q^T - Q P^T - B B^T - eps I with --rank columns
    full        learned, S - S^T - B B^T - eps I
    none        no J: a plain neural ODE

Trains one after the other for each seed, and compares how long predictions last and the statistics
of long trajectories:

    python examples/stabilized_ks.py
    python examples/stabilized_ks.py --linear fixed circulant --seeds 0

The trajectories are made at the first run and kept under data/. Writes checkpoints, from which an
interrupted run goes on, and a figure to --out.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import figures
import matplotlib.pyplot as plt
import numpy as np
import torch
from drawing import style
from grid_learning import (
    difference,
    energy_spectrum,
    rollout,
    train,
    turned,
    windows,
)
from grid_options import add_arguments, parse, precision
from kuramoto_sivashinsky import (
    LYAPUNOV_TIME,
    add_problem,
    examine,
    make_model,
    mean_square,
)
from options import make_parser, output_folder, positive_int
from torch import Tensor, nn

from pyg_sinode.datasets import KuramotoSivashinsky
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky
from pyg_sinode.operators import Circulant, Dissipative, DissipativeCirculant, LinearOperator

LINEAR = ("fixed", "circulant", "low-rank", "full", "none")
# The training of each explicit term, where no option says otherwise.
SETTINGS = {
    "mlp": {"method": "imex_rk2", "optimizer": "adam", "epochs": 300, "batch_size": 512,
            "window": 4, "lr": 2e-3, "dtype": "float32"},
    "gnn": {"method": "imex_rk4", "optimizer": "lbfgs", "epochs": 12, "batch_size": 2048,
            "window": 4, "lr": 2e-3, "dtype": "float32"}}
BINS = [np.linspace(-4.0, 3.0, 61), np.linspace(-5.0, 5.0, 61)]  # of u_x and u_xx


def main() -> None:
    args = parse_arguments()
    output_folder(args.out)
    data = {split: KuramotoSivashinsky(args.root, split, num_points=args.num_points,
                                       trajectories=args.trajectories, duration=args.duration)
            for split in ("train", "test")}
    test = data["test"].states.to(args.device)
    truth = statistics(test, data["train"].grid)
    other = statistics(data["train"].states, data["train"].grid)
    print(f"{'J':10} {'seed':4} {'one step':>9} {'Lyapunov times to 20 % error':>28} "
          f"{'bounded':>8} {'rms':>6} {'spectrum':>9} {'divergence':>10} {'training':>9}")
    print(f"{'(truth)':10} {'':4} {'':>9} {'':>28} {'':>8} {truth['rms']:6.3f} "
          f"{spectrum_error(other, truth):9.2f} {divergence(truth, other):10.4f}")
    results = {kind: [one_run(args, kind, seed, data, test, truth) for seed in args.seeds]
               for kind in args.linear}
    print(f"figure: {plot(args, results, truth)}")


def one_run(args, kind: str, seed: int, data: dict, test: Tensor, truth: dict) -> dict:
    """Trains with one J from one seed, and prints and returns what came of it."""
    own = argparse.Namespace(**{key: value for key, value in vars(args).items()
                                if key not in ("seeds", "rank" if kind != "low-rank" else "")})
    own.linear, own.seed = kind, seed
    torch.manual_seed(seed)
    grid = data["train"].grid
    linear = make_linear(kind, grid, args.rank)
    model = Stabilized(make_model(own, grid), linear).to(args.device, precision(args))
    states = data["train"].states.to(precision(args))

    def draw(count: int, window: int, generator: torch.Generator) -> Tensor:
        found = windows(states, count, window, generator)
        return turned(found, generator) if own.explicit == "mlp" else found

    held_out = windows(test.to(precision(args)), 2000, 1, torch.Generator().manual_seed(0))

    def test_loss(model: nn.Module) -> float:
        found = rollout(own, model, linear, held_out[:, 0], 1)
        return float(mean_square(found[:, 1], held_out[:, 1]))

    name = f"stabilized-{kind}-seed{seed}"
    run = train(own, name, model, linear, draw, difference, test_loss)
    result = examine(own, model, linear, test)
    long = result["long"]
    late = long[:, long.size(1) // 10:].double().cpu()
    finite = late.isfinite().all(dim=-1).all(dim=-1)
    found = statistics(late[finite], grid) if bool(finite.any()) else None
    ordered = result["time"].sort().values / LYAPUNOV_TIME
    row = {"one step": run.curve[-1][2], "time": float(ordered[(len(ordered) - 1) // 2]),
           "error": result["error"].cpu(), "bounded": float(finite.float().mean()),
           "statistics": found, "symbol": symbol_of(linear, args.num_points)}
    tail = (f"{found['rms']:6.3f} {spectrum_error(found, truth):9.2f} "
            f"{divergence(truth, found):10.4f}" if found else f"{'-':>6} {'-':>9} {'-':>10}")
    print(f"{kind:10} {seed:4} {row['one step']:9.1e} {row['time']:28.2f} {row['bounded']:8.0%} "
          f"{tail} {run.seconds:7.0f} s", flush=True)
    return row


class Stabilized(nn.Module):
    """The term G, and the parameters of J, so that one optimizer and one checkpoint have both."""

    def __init__(self, term: nn.Module, linear: LinearOperator) -> None:
        super().__init__()
        self.term = term
        self.linear = nn.ParameterList(linear.tensors)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.term(t, u)


def make_linear(kind: str, grid: PeriodicGrid, rank: int) -> LinearOperator:
    n = grid.num_nodes
    if kind == "circulant":
        # Rates of up to k^4, of which nothing but the order of the equation is told.
        return DissipativeCirculant(n, scale=np.maximum(1.0, grid.wavenumbers() ** 4))
    if kind == "low-rank":
        return Dissipative(n, rank)
    if kind == "full":
        return Dissipative(n)
    if kind == "none":
        return Circulant.from_symbol(np.zeros(n))
    return kuramoto_sivashinsky(grid).implicit


# What is compared


def statistics(states: Tensor, grid: PeriodicGrid) -> dict:
    """The root mean square of u, its spectrum, and the joint density of (u_x, u_xx)."""
    states = states.double().cpu()
    slope, bend = (grid.derivative(p).mv(states).flatten().numpy() for p in (1, 2))
    counts, *_ = np.histogram2d(slope, bend, bins=BINS)
    return {"rms": float(states.square().mean().sqrt()), "counts": counts,
            "spectrum": energy_spectrum(states).numpy(), "samples": slope.size}


def spectrum_error(found: dict, truth: dict, modes: int = 14) -> float:
    """The mean distance of the spectra in decades, over the modes 1 to 14, k < 4."""
    size = slice(1, min(modes + 1, len(truth["spectrum"])))
    return float(np.abs(np.log10(found["spectrum"][size] / truth["spectrum"][size])).mean())


def divergence(truth: dict, found: dict) -> float:
    """The Kullback-Leibler divergence of the joint densities, sum p log(p / q), on 60 x 60 bins.

    A bin that a density has no sample in counts as half a sample; what lies outside the bins is
    left out.
    """
    p, q = (np.maximum(each["counts"], 0.5) for each in (truth, found))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def symbol_of(linear: LinearOperator, n: int) -> np.ndarray:
    """The mean rate of each Fourier mode, Re e_k^H J e_k with unit vectors e_k, for k >= 0."""
    like = linear.tensors[0] if linear.tensors else torch.zeros((), dtype=torch.float64)
    eye = torch.eye(n, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        matrix = linear.mv(eye).T.cpu().double().numpy()
    modes = np.fft.fft(np.eye(n)) / math.sqrt(n)
    return np.einsum("ki,ij,kj->k", modes.conj(), matrix, modes).real[: n // 2 + 1]


# The figure


def plot(args, results: dict, truth: dict) -> Path:
    """Errors over time, spectra, and the rates of J; one line for each J and seed."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4))
    figure.suptitle(f"Stabilised neural ODEs of the Kuramoto-Sivashinsky equation, "
                    f"{args.num_points} points, {figures.plural(len(args.seeds), 'seed')} "
                    "(all quantities dimensionless)")
    k = 2 * np.pi / 22.0 * np.arange(args.num_points // 2 + 1)
    axes[1].semilogy(k[1:], truth["spectrum"][1:], color="k", lw=3, alpha=0.4, label="truth")
    exact = k**2 - k**4
    axes[2].plot(k, exact, color="k", lw=3, alpha=0.4, label="$k^2 - k^4$")
    for number, (kind, runs) in enumerate(results.items()):
        for which, run in enumerate(runs):
            plot_run(axes, style(number, number, number), kind if which == 0 else None, run, k)
    axes[0].axhline(0.2, color="k", ls=":")
    axes[0].set(xlabel="time in Lyapunov times (22 units)", ylabel="relative error (L2), median",
                title="prediction", ylim=(1e-3, 3))
    axes[1].set(xlabel="wavenumber k", ylabel="mean square of the mode", xlim=(0, 6),
                ylim=(1e-12, 1), title="spectrum of long trajectories")
    axes[2].set(xlabel="wavenumber k", ylabel="growth rate of the mode by J", xlim=(0, 4),
                title="J")
    axes[2].set_yscale("symlog", linthresh=1.0)
    for ax in axes:
        figures.legend_below(ax, ncols=3)
    name = "-".join(["stabilized-ks", str(args.num_points), args.explicit, *args.linear])
    return figures.save(figure, args.out / f"{name}-{args.epochs}epochs.png")


def plot_run(axes, look: dict, label: str | None, run: dict, k: np.ndarray) -> None:
    """One run in all three panels."""
    look = {**look, "marker": None, "lw": 1.2}
    error = np.median(run["error"].clamp(max=10.0).numpy(), axis=0)
    t = np.arange(len(error)) * KuramotoSivashinsky.step / LYAPUNOV_TIME
    axes[0].semilogy(t[1:], error[1:], label=label, **look)
    if run["statistics"] is not None:
        axes[1].semilogy(k[1:], run["statistics"]["spectrum"][1:], label=label, **look)
    axes[2].plot(k, run["symbol"], label=label, **look)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Learn the Kuramoto-Sivashinsky equation on a domain of length 22 as a stabilised neural "
        "ODE, with a linear part that is known or learned. Times are in its units; a Lyapunov time "
        "is 22 of them.", "stabilized_ks.py", "stabilized_ks.py --linear fixed circulant --seeds 0")
    add = add_arguments(parser, interval="0.2")
    add("--linear", choices=LINEAR, nargs="+", default=list(LINEAR), help="the linear parts J")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the weights and batches")
    add("--rank", type=positive_int, default=16, metavar="COLUMNS", help="of J low-rank")
    add_problem(add, horizon=3.0, duration=500.0)
    args = parse(parser, **SETTINGS)
    args.interval = KuramotoSivashinsky.step
    args.step_size = args.step_size or args.interval
    return args


if __name__ == "__main__":
    main()
