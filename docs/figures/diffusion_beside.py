"""What do explicit solvers cost on a diffusion with a learned reaction, beside this package?

The tables of docs/torchdiffeq.md and docs/comparison.md: evaluations, the largest error at five
times, the gradient at the rate, and the best seconds of interleaved rounds.

    pip install torchdiffeq torchode
    python docs/figures/diffusion_beside.py
    python docs/figures/diffusion_beside.py --points 256 --rounds 1

torchode is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Callable

import torch
import torchdiffeq
from torch import Tensor

from pyg_sinode import imex_odeint, norms
from pyg_sinode.grid import PeriodicGrid

TOLERANCES = {"rtol": 1e-6, "atol": 1e-8}


class Reaction(torch.nn.Module):
    """G, which counts its evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.evaluations = 0

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        """The reaction r (u - u^3)."""
        self.evaluations += 1
        return self.rate * (u - u**3)


class Problem(torch.nn.Module):
    """The whole right-hand side, and what belongs to it."""

    def __init__(self, points: int) -> None:
        super().__init__()
        grid = PeriodicGrid(points, 2 * math.pi)
        self.G, self.J = Reaction(), grid.laplacian(discretization="finite_difference")
        self.u0 = grid.points.sin() + 0.5 * (3 * grid.points).cos()
        self.t = torch.linspace(0, 2, 5, dtype=torch.float64)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        """G + J u."""
        value: Tensor = self.G(t, u) + self.J.mv(u)
        return value


def main() -> None:
    """Runs all solvers and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=128, help="points of the grid")
    parser.add_argument("--rounds", type=int, default=4, help="interleaved rounds")
    args = parser.parse_args()
    f = Problem(args.points)
    exact = imex_odeint(f.G, f.J, f.u0, f.t, rtol=1e-11, atol=1e-13, method="ark548l2sa").detach()
    best: dict[str, tuple[str, float, float]] = {}
    for _ in range(args.rounds):
        for name, solve in solvers(f).items():
            found = measured(f, solve, exact)
            before = best.get(name, found)
            best[name] = (found[0], min(found[1], before[1]), min(found[2], before[2]))
    print("| solver | evaluations, error, gradient | forward, s | backward, s |\n|---|---|---|---|")
    for name, (what, forward, backward) in best.items():
        print(f"| {name} | {what} | {forward:.2f} | {backward:.2f} |")


def solvers(f: Problem) -> dict[str, Callable[[], Tensor]]:
    """What is compared, by name."""
    def ours(**options: object) -> Tensor:
        return imex_odeint(f.G, f.J, f.u0, f.t, **options)

    found: dict[str, Callable[[], Tensor]] = {
        "imex_odeint": lambda: ours(**TOLERANCES),
        "imex_odeint, rms": lambda: ours(**TOLERANCES, norm=norms.rms),
        "imex_odeint, ark436l2sa, step 0.05": lambda: ours(method="ark436l2sa", step_size=0.05),
        "torchdiffeq dopri5": lambda: torchdiffeq.odeint(f, f.u0, f.t, **TOLERANCES),
        "torchdiffeq dopri5, adjoint": lambda: torchdiffeq.odeint_adjoint(
            f, f.u0, f.t, **TOLERANCES),
    }
    if importlib.util.find_spec("torchode") is not None:
        found |= {f"torchode {m}": lambda m=m: with_torchode(f, m) for m in ("Dopri5", "Tsit5")}
    return found


def with_torchode(f: Problem, method: str) -> Tensor:
    """The states by torchode, whose state is a batch of one sample."""
    import torchode

    term = torchode.ODETerm(f)
    step = getattr(torchode, method)(term=term)
    controller = torchode.IntegralController(**TOLERANCES, term=term)
    problem = torchode.InitialValueProblem(y0=f.u0[None], t_eval=f.t[None])
    states: Tensor = torchode.AutoDiffAdjoint(step, controller).solve(problem).ys[0]
    return states


def measured(f: Problem, solve: Callable[[], Tensor], exact: Tensor) -> tuple[str, float, float]:
    """What a run found, and the seconds of its two passes; nan where the backward pass failed."""
    f.G.rate.grad, f.G.evaluations = None, 0
    start = time.perf_counter()
    u = solve()
    forward, count = time.perf_counter() - start, f.G.evaluations
    error = float((u.detach() - exact).abs().max())
    try:
        u[-1].square().sum().backward()
        what = f"{f.G.rate.grad:.7f}"
    except AssertionError as failure:
        return f"{count}, {error:.0e}, {failure}", forward, math.nan
    return f"{count}, {error:.0e}, {what}", forward, time.perf_counter() - start - forward


if __name__ == "__main__":
    main()
