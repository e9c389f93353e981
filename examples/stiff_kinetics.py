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
import math
import time
from pathlib import Path

import figures
import matplotlib.pyplot as plt
import torch
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
from training import Checkpoint, fingerprint

from pyg_sinode import imex_odeint
from pyg_sinode.terms import Nonlinear

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
    output_folder(args.out)
    torch.manual_seed(args.seed)
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
    curve, path = fit(args, kinetics, u0, t, data)
    with torch.no_grad():
        kinetics.log_rates.copy_(torch.tensor(curve[-1]["log_rates"], dtype=u0.dtype))
        after = integrate(kinetics, u0, t, args.rtol)
    print("| rate | true | at the start | learned | error |\n|---|---|---|---|---|")
    for at, true in enumerate(RATES):
        first, last = (math.exp(row["log_rates"][at]) for row in (curve[0], curve[-1]))
        print(f"| k{at + 1} | {true:.4g} | {first:.4g} | {last:.4g} | {abs(last / true - 1):.2%} |")
    picture = f"{path.stem}-{len(curve) - 1}iterations.png"
    print(f"{figures.plural(len(curve) - 1, 'iteration')} in {curve[-1]['seconds']:.0f} s; figure: "
          f"{plot(path.with_name(picture), t, data, before, after, curve)}")


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
        ) -> tuple[list[dict], Path]:
    """Fits the rates by L-BFGS; the state after each iteration, and the checkpoint."""
    # max_eval: its default, 5/4 of max_iter, allows no line search.
    optimizer = torch.optim.LBFGS(kinetics.parameters(), lr=1.0, max_iter=1, max_eval=26,
                                  history_size=10, line_search_fn="strong_wolfe")
    settings = {name: value for name, value in vars(args).items()
                if name not in ("out", "restart", "iterations")}  # when it ends is in the curve
    checkpoint = Checkpoint(args.out, "stiff-kinetics", settings | {"data": fingerprint(t, data)},
                            args.restart)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(integrate(kinetics, u0, t, args.rtol), data)
        loss.backward()
        return loss

    def row(seconds: float) -> dict:
        return {"loss": float(closure().detach()), "seconds": seconds,
                "log_rates": kinetics.log_rates.tolist()}

    state = checkpoint.load()
    curve = [row(0.0)] if state is None else state["curve"]
    if state is not None:
        checkpoint.restore(state, kinetics=kinetics, optimizer=optimizer)
        checkpoint.tell(len(curve) - 1, "iteration")
    progress = tqdm(range(len(curve) - 1, args.iterations), desc="fit", disable=None)
    for _ in progress:
        if converged(curve):
            break
        start = time.perf_counter()
        optimizer.step(closure)
        curve.append(row(0.0))
        curve[-1]["seconds"] = curve[-2]["seconds"] + time.perf_counter() - start
        progress.set_postfix(loss=f"{curve[-1]['loss']:.3e}")
        checkpoint.save(kinetics=kinetics.state_dict(), optimizer=optimizer.state_dict(),
                        curve=curve)
    return curve[: args.iterations + 1], checkpoint.path


def converged(curve: list[dict]) -> bool:
    """Whether the last iteration made the loss smaller by less than one part in a million."""
    return len(curve) > 1 and curve[-2]["loss"] - curve[-1]["loss"] <= 1e-6 * curve[-1]["loss"]


def plot(path: Path, t: Tensor, data: Tensor, before: Tensor, after: Tensor, curve: list[dict]
         ) -> Path:
    """The first trajectory before and after, and the errors of the rates."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8))
    colors = (figures.BLUE, figures.ORANGE, figures.GREEN)
    styles = dict(zip(colors, ("-", "--", "-."), strict=True))
    for at, (name, color) in enumerate(zip("ABC", colors, strict=True)):
        factor = 1e4 if name == "B" else 1.0
        label = f"{name}, learned" if factor == 1 else rf"$10^4$ {name}, learned"
        left.semilogx(t[1:], factor * after[1:, 0, at], color=color, ls=styles[color], label=label)
        left.semilogx(t[1:], factor * before[1:, 0, at], color=color, ls=":", lw=1.2)
        left.semilogx(t[1:], factor * data[1:, 0, at], "os^"[at], ms=4, color=color)
    left.plot([], [], "k:", lw=1.2, label="with the rates at the start")
    left.plot([], [], "ko", ms=4, label="data, a marker for each species")
    left.set(xlabel="time in s", ylabel="concentration (share of the whole)", ylim=(-0.05, 1.3),
             title="the first trajectory, before and after the fit")
    figures.legend_below(left)
    for at, (true, color) in enumerate(zip(RATES, colors, strict=True)):
        errors = [abs(math.exp(row["log_rates"][at]) / true - 1) for row in curve]
        right.semilogy(errors, color=color, ls=styles[color], marker="os^"[at], ms=4,
                       label=f"$k_{at + 1}$ = {true:g}")
    right.axhline(0.01, color="k", lw=1.0, ls=":", label="1 %")
    right.set(xlabel="iteration of L-BFGS", ylabel="relative error of the rate",
              title="the three rates")
    figures.whole_numbers(right)
    figures.legend_below(right)
    return figures.save(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Learn the three rates of Robertson's stiff reaction from trajectories.",
        "stiff_kinetics.py", "stiff_kinetics.py --noise 0 --wrong 100",
        "stiff_kinetics.py --trajectories 16 --times 20 --rtol 1e-6")
    add = parser.add_argument_group("data").add_argument
    add("--trajectories", type=positive_int, default=4, metavar="N",
        help="how many, from different mixtures")
    add("--times", type=positive_int, default=40, metavar="N",
        help="observations of each, at times from 1e-4 to 1e4 s")
    add("--noise", type=non_negative_float, default=0.01,
        help="standard deviation of the observations' noise, relative to the value")
    add("--seed", type=int, default=0, help="seed of the noise")
    add = parser.add_argument_group("fit").add_argument
    add("--wrong", type=positive_float, default=10.0, metavar="FACTOR",
        help="factor by which the rates are wrong at the start")
    add("--rtol", type=positive_float, default=1e-5,
        help="relative tolerance of the adaptive steps")
    add("--iterations", type=positive_int, default=60,
        help="largest number of iterations of L-BFGS")
    add_files(parser, checkpoint_every=False)
    return parser.parse_args()


if __name__ == "__main__":
    main()
