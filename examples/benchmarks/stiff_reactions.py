"""What do stiff reactions cost in the implicit term: steps and time beside SciPy, and many at once?

- equations: van der Pol (mu = 1000, to t = 2000), Robertson (to t = 1e5) and the Oregonator (to
  t = 360) at rtol 1e-7, atol 1e-12, by the implicit halves of ark436l2sa and ark548l2sa and by
  SciPy's Radau and BDF, which all get H alone and find its Jacobian themselves. The errors are
  against Radau at rtol 1e-13. Most of the time is the overhead of PyTorch, or of NumPy.
- systems: one Robertson system, and thousands whose rates spread tenfold, in one call.
- allen-cahn: u_t = eps^2 (u_xx + u_yy) + u - u^3 on a periodic 128 x 128 grid to t = 5, all of it
  implicit, with the derivative by autograd (GMRES), as a sum of operators (CG), and in a form with
  a closed inverse, eps^2 Laplacian - 1 (the fast Fourier transform), beside the cubic term in G.
  The errors are against ark548l2sa in equal steps of 1 / 200 with the cubic term in G.

Source of the equations: Hairer and Wanner, Solving Ordinary Differential Equations II, sections
IV.1 and IV.10.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from measuring import interleaved, print_table
from scipy.integrate import solve_ivp
from torch import Tensor

from pyg_sinode import Stats, imex_odeint
from pyg_sinode.operators import Circulant, Diagonal, ScaledIdentity
from pyg_sinode.terms import Nonlinear

F64 = torch.float64
RTOL, ATOL = 1e-7, 1e-12
RATES = (0.04, 3e7, 1e4)


def van_der_pol(t: Tensor, u: Tensor) -> Tensor:
    x, y = u.unbind(-1)
    return torch.stack([y, 1e3 * (1 - x * x) * y - x], dim=-1)


def robertson(t: Tensor, u: Tensor, k: Tensor) -> Tensor:
    a, b, c = u.unbind(-1)
    decay, to_c, back = k[..., 0] * a, k[..., 1] * b * b, k[..., 2] * b * c
    return torch.stack([back - decay, decay - back - to_c, to_c], dim=-1)


def oregonator(t: Tensor, u: Tensor) -> Tensor:
    x, y, z = u.unbind(-1)
    return torch.stack([77.27 * (y + x * (1 - 8.375e-6 * x - y)), (z - (1 + x) * y) / 77.27,
                        0.161 * (x - z)], dim=-1)


EQUATIONS = {
    "van der Pol": (van_der_pol, (2.0, 0.0), 2000.0),
    "Robertson": (partial(robertson, k=torch.tensor(RATES, dtype=F64)), (1.0, 0.0, 0.0), 1e5),
    "Oregonator": (oregonator, (1.0, 2.0, 3.0), 360.0),
}


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    for name in args.parts:
        print(f"\n## {name}\n")
        PARTS[name](args)


def equations(args: argparse.Namespace) -> None:
    """The three equations by four solvers, interleaved."""
    rows = []
    for name, (f, u0, end) in EQUATIONS.items():
        exact = scipy_run(f, u0, end, "Radau", 1e-13, 1e-18)[0]
        jobs: dict[str, Callable[[], tuple[Any, ...]]] = {
            method: partial(own_run, f, u0, end, method) for method in ("ark436l2sa", "ark548l2sa")}
        jobs |= {method: partial(scipy_run, f, u0, end, method, RTOL, ATOL)
                 for method in ("Radau", "BDF")}
        timings = interleaved(jobs, args.repeats, name, uncounted=0)
        for method, (u, steps, evaluations, factorizations) in timings.results.items():
            error = np.abs(u / exact - 1).max()
            rows.append([name, method, steps, evaluations, factorizations,
                         f"{timings.best(method):.2f}", f"{1e3 * timings.best(method) / steps:.2f}",
                         f"{error:.1e}"])
    print_table(["equation", "solver", "steps", "evaluations", "factorizations", "s", "ms a step",
           "largest relative error"], rows)


def own_run(f: Callable[..., Tensor], u0: tuple[float, ...], end: float, method: str
            ) -> tuple[Any, ...]:
    """The final state, and what it took."""
    u, stats = imex_odeint(None, Nonlinear(f), torch.tensor(u0, dtype=F64),
                           torch.tensor([0.0, end], dtype=F64), method=method, rtol=RTOL, atol=ATOL,
                           return_stats=True)
    return u[-1].numpy(), steps_of(stats), stats.implicit_evaluations, stats.factorizations


def scipy_run(f: Callable[..., Tensor], u0: tuple[float, ...], end: float, method: str,
              rtol: float, atol: float) -> tuple[Any, ...]:
    """The same by SciPy; a call of H costs both the overhead of PyTorch."""
    def rate(t: float, u: np.ndarray) -> np.ndarray:
        return f(None, torch.from_numpy(u)).numpy()

    found = solve_ivp(rate, (0.0, end), u0, method=method, rtol=rtol, atol=atol)
    return found.y[:, -1], len(found.t) - 1, found.nfev, found.nlu


def systems(args: argparse.Namespace) -> None:
    """One system and many in one call."""
    generator = torch.Generator().manual_seed(0)
    spread = 10 ** (torch.rand(args.systems, 3, dtype=F64, generator=generator) - 0.5)
    rates = torch.tensor(RATES, dtype=F64)
    jobs = {"1": partial(many, rates.unsqueeze(0)),
            str(args.systems): partial(many, rates * spread)}
    timings = interleaved(jobs, args.repeats, "systems", uncounted=0)
    each = {n: timings.best(n) / steps_of(timings.results[n]) for n in jobs}
    print_table(["systems", "steps", "Newton iterations", "s", "ms a step", "over one system"],
                ([n, steps_of(stats), stats.newton_iterations, f"{timings.best(n):.2f}",
                  f"{1e3 * each[n]:.2f}", f"{each[n] / each['1']:.2f}"]
                 for n, stats in timings.results.items()))


def many(rates: Tensor) -> Stats:
    u0 = torch.tensor([1.0, 0.0, 0.0], dtype=F64).repeat(len(rates), 1)
    return imex_odeint(None, Nonlinear(robertson, rates, dims=-1), u0,
                       torch.tensor([0.0, 1e5], dtype=F64), method="ark436l2sa", rtol=RTOL,
                       atol=ATOL, return_stats=True)[1]


def allen_cahn(args: argparse.Namespace) -> None:
    """The cubic term in H, in three ways, and in G."""
    n, eps = args.points, 0.02
    stencil = (eps * n) ** 2 * torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=F64)
    laplacian = Circulant(stencil, dim=(-2, -1))
    u0 = 0.1 * torch.randn(n, n, dtype=F64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 5.0], dtype=F64)

    def reaction(t: Tensor, u: Tensor) -> Tensor:
        return u - u**3

    def rate(t: Tensor, u: Tensor) -> Tensor:
        return laplacian.mv(u) + reaction(t, u)

    def run(explicit: Any, implicit: Any, **options: Any) -> tuple[Tensor, Stats]:
        u, stats = imex_odeint(explicit, implicit, u0, t, return_stats=True, **options)
        return u[-1], stats

    ways = {
        "H, autograd": Nonlinear(rate),
        "H, a sum": Nonlinear(rate, jacobian=lambda t, u: laplacian + Diagonal(1 - 3 * u**2)),
        "H, closed": Nonlinear(rate, jacobian=lambda t, u: laplacian - ScaledIdentity(1.0)),
    }
    exact, _ = run(reaction, laplacian, method="ark548l2sa", step_size=1 / 200)
    jobs: dict[str, Callable[[], Any]] = {
        name: partial(run, None, part, rtol=1e-5, atol=1e-7) for name, part in ways.items()}
    jobs["G"] = partial(run, reaction, laplacian, rtol=1e-5, atol=1e-7)
    timings = interleaved(jobs, args.repeats, "allen-cahn", uncounted=0)
    print_table(["cubic term in", "steps", "Newton iterations", "linear iterations", "s",
                 "largest error"],
                ([name, steps_of(stats), stats.newton_iterations, stats.linear_iterations,
                  f"{timings.best(name):.2f}", f"{float((u - exact).abs().max()):.1e}"]
                 for name, (u, stats) in timings.results.items()))


def steps_of(stats: Stats) -> int:
    """All steps, those that were rejected among them."""
    return stats.steps_accepted + stats.steps_rejected


PARTS = {"equations": equations, "systems": systems, "allen-cahn": allen_cahn}
