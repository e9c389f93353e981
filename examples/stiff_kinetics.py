"""Can the rates of a stiff reaction be learned from its trajectories? Robertson's three, from data.

    A -> B  (0.04)      B + B -> C + B  (3e7)      B + C -> A + C  (1e4)

The time scales are ten powers of ten apart, so that nothing can be treated explicitly: the whole
right-hand side is a pyg_sinode.terms.Nonlinear, each stage is solved by Newton's method with one
dense 3 x 3 block for every trajectory, and the gradient is the exact discrete adjoint of the
adaptive steps. The rates start tenfold wrong; the data have one percent of noise.

    python examples/stiff_kinetics.py
    python examples/stiff_kinetics.py --noise 0 --wrong 100

Writes a checkpoint, from which an interrupted run goes on, and a figure to --out. Source of the
equation: Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.10.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyg_sinode import imex_odeint
from pyg_sinode.terms import Nonlinear

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RATES = (0.04, 3e7, 1e4)


class Kinetics(nn.Module):
    """The rates of change of the three species along the last dimension, by logarithmic rates."""

    def __init__(self, rates: tuple[float, ...]) -> None:
        super().__init__()
        self.log_rates = nn.Parameter(torch.tensor(rates, dtype=torch.float64).log())

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        a, b, c = u.unbind(dim=-1)
        k = self.log_rates.exp()
        decay, to_c, back = k[0] * a, k[1] * b * b, k[2] * b * c
        return torch.stack([back - decay, decay - back - to_c, to_c], dim=-1)


def integrate(kinetics: Kinetics, u0: Tensor, t: Tensor, rtol: float) -> Tensor:
    """The states of all trajectories at the times t, (T, trajectories, 3)."""
    return imex_odeint(None, Nonlinear(kinetics, dims=-1), u0, t, rtol=rtol, atol=1e-5 * rtol)


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    t = torch.cat([torch.zeros(1, dtype=torch.float64),
                   torch.logspace(-4, 4, args.times, dtype=torch.float64)])
    u0 = initial_states(args.trajectories)
    with torch.no_grad():
        exact = integrate(Kinetics(RATES), u0, t, 1e-9)
    data = exact * (1 + args.noise * torch.randn_like(exact))
    kinetics = Kinetics(tuple(k * args.wrong**sign for k, sign in
                              zip(RATES, (1, -1, 1), strict=True)))
    with torch.no_grad():
        before = integrate(kinetics, u0, t, args.rtol)
    curve, seconds = fit(args, kinetics, u0, t, data)
    with torch.no_grad():
        after = integrate(kinetics, u0, t, args.rtol)
    plot(args.out / "stiff-kinetics.png", t, data, before, after, curve)
    print("| rate | true | at the start | learned | error |\n|---|---|---|---|---|")
    for name, true, first, last in zip("123", RATES, curve[0][1], curve[-1][1], strict=True):
        print(f"| k{name} | {true:.4g} | {first:.4g} | {last:.4g} | {abs(last / true - 1):.2%} |")
    print(f"{len(curve) - 1} iterations in {seconds:.0f} s; figure: "
          f"{args.out / 'stiff-kinetics.png'}")


def initial_states(count: int) -> Tensor:
    """All of A, then mixtures of A and C."""
    c = torch.linspace(0.0, 0.6, count, dtype=torch.float64)
    return torch.stack([1.0 - c, torch.zeros_like(c), c], dim=-1)


def loss_of(states: Tensor, data: Tensor) -> Tensor:
    """The mean square of the errors relative to the data, after the initial state."""
    found, truth = states[1:], data[1:]
    floor = 1e-12  # of a species that is not there yet
    return ((found.clamp_min(floor) / truth.clamp_min(floor)).log().square()).mean()


def fit(args: argparse.Namespace, kinetics: Kinetics, u0: Tensor, t: Tensor, data: Tensor
        ) -> tuple[list[tuple[float, list[float]]], float]:
    """Fits the rates by L-BFGS; gives the loss and the rates after each iteration."""
    optimizer = torch.optim.LBFGS(kinetics.parameters(), lr=1.0, max_iter=1, history_size=10,
                                  line_search_fn="strong_wolfe")
    path = args.out / "stiff-kinetics.pt"
    curve, seconds = read_checkpoint(args, path, kinetics, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(integrate(kinetics, u0, t, args.rtol), data)
        loss.backward()
        return loss

    if not curve:
        curve.append((float(closure().detach()), kinetics.log_rates.detach().exp().tolist()))
    progress = tqdm(range(len(curve) - 1, args.iterations), desc="fit", disable=None)
    for _ in progress:
        start = time.perf_counter()
        optimizer.step(closure)
        loss = float(closure().detach())
        curve.append((loss, kinetics.log_rates.detach().exp().tolist()))
        seconds += time.perf_counter() - start
        progress.set_postfix(loss=f"{loss:.3e}", rates=" ".join(f"{k:.3g}" for k in curve[-1][1]))
        write_checkpoint(args, path, kinetics, optimizer, curve, seconds)
        if curve[-2][0] - loss <= 1e-6 * loss:
            break
    return curve, seconds


def settings_of(args: argparse.Namespace) -> str:
    """What must agree between a checkpoint and the run that goes on from it."""
    free = {"out", "restart", "iterations"}
    return json.dumps({k: v for k, v in vars(args).items() if k not in free}, sort_keys=True)


def write_checkpoint(args: argparse.Namespace, path: Path, kinetics: Kinetics,
                     optimizer: torch.optim.Optimizer, curve: list, seconds: float) -> None:
    """Writes beside the checkpoint, then renames: a killed run leaves the last one whole."""
    temporary = path.with_suffix(".tmp")
    torch.save({"settings": settings_of(args), "kinetics": kinetics.state_dict(), "curve": curve,
                "optimizer": optimizer.state_dict(), "seconds": seconds}, temporary)
    os.replace(temporary, path)


def read_checkpoint(args: argparse.Namespace, path: Path, kinetics: Kinetics,
                    optimizer: torch.optim.Optimizer) -> tuple[list, float]:
    """The curve and the seconds so far; none where there is no checkpoint of these settings."""
    if args.restart or not path.exists():
        return [], 0.0
    state = torch.load(path, weights_only=True)
    if state["settings"] != settings_of(args):
        print(f"{path} belongs to other settings and will be overwritten")
        return [], 0.0
    kinetics.load_state_dict(state["kinetics"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"goes on from {path}, after {len(state['curve']) - 1} iterations")
    return state["curve"], state["seconds"]


def plot(path: Path, t: Tensor, data: Tensor, before: Tensor, after: Tensor, curve: list) -> None:
    """The first trajectory before and after, and the errors of the rates."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for at, (name, factor) in enumerate((("A", 1.0), ("B", 1e4), ("C", 1.0))):
        label = name if factor == 1 else rf"$10^{{{round(math.log10(factor))}}}$ {name}"
        (line,) = left.semilogx(t[1:], factor * after[1:, 0, at], label=label)
        left.semilogx(t[1:], factor * before[1:, 0, at], ":", color=line.get_color())
        left.semilogx(t[1:], factor * data[1:, 0, at], "o", ms=3, color=line.get_color())
    left.set(xlabel="time", ylabel="concentration", ylim=(-0.05, 1.3),
             title="points: data; dotted: at first; lines: learned")
    left.legend()
    for at, true in enumerate(RATES):
        errors = [abs(rates[at] / true - 1) for _, rates in curve]
        right.semilogy(errors, "o-", ms=3, label=f"$k_{at + 1}$ = {true:g}")
    right.axhline(0.01, color="grey", lw=0.8, ls="--")
    right.set(xlabel="iteration of L-BFGS", ylabel="relative error", title="the rates")
    right.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Learns the three rates of Robertson's stiff reaction from trajectories.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--trajectories", type=int, default=4, help="how many, from different mixtures")
    add("--times", type=int, default=40, help="observations of each, from 1e-4 to 1e4")
    add("--noise", type=float, default=0.01, help="relative noise of the observations")
    add("--wrong", type=float, default=10.0, help="factor by which the rates are wrong at first")
    add("--rtol", type=float, default=1e-5, help="relative tolerance of the adaptive steps")
    add("--iterations", type=int, default=60, help="largest number of iterations of L-BFGS")
    add("--seed", type=int, default=0, help="seed of the noise")
    add("--out", type=Path, default=Path("runs"), help="where the figure and the checkpoint go")
    add("--restart", action="store_true", help="start anew where a checkpoint exists")
    return parser.parse_args()


if __name__ == "__main__":
    main()
