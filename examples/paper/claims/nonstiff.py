"""Does a semi-implicit scheme gain anything where the equation is not stiff?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from measuring import Work, interleaved, markdown, number
from systems import SYSTEMS, Equation, System, dopri5
from torch import Tensor

from claims.finding import Finding, SmallMLP, Verdict
from pyg_sinode.operators import Dense

EXPLICIT = ("rk4", "dopri5")
IMEX = ("imex_rk3", "imex_rk4", "imex_rk5")
TIME = 6.0


@dataclass(frozen=True)
class Setting:
    """A solver at one accuracy: the step size of equal steps, else a tolerance."""

    system: System
    step_size: float
    rtol: float | None = None

    def __str__(self) -> str:
        return f"step {self.step_size:.3g}" if self.rtol is None else f"rtol {self.rtol:.1g}"


def nonstiff(args: argparse.Namespace) -> Finding:
    """What do solvers take to one and the same error on neural spirals?"""
    equation, u0 = make_spirals(args)
    exact = solution(equation, u0)
    records: list[dict[str, Any]] = []
    for target in args.targets:
        found = {name: first_within(name, target, equation, u0, exact)
                 for name in (*EXPLICIT, *IMEX)}
        timings = interleaved({name: partial(train, equation, u0, setting)
                               for name, (setting, _) in found.items()}, args.repeats)
        for name, (setting, error) in found.items():
            work = train(equation, u0, setting).totals()
            records.append({"target": target, "system": name, "setting": str(setting),
                            "error": error, "evaluations": work["evaluations"],
                            "vjps": work["vjps"], "ms": 1e3 * timings.median(name)})
    rows = [[f"{r['target']:.0e}", r["system"], r["setting"], f"{r['error']:.1e}",
             r["evaluations"], r["vjps"], number(r["ms"])] for r in records]
    header = ["error at most", "solver", "setting", "error", "evaluations", "VJPs", "ms"]
    table = (f"{len(u0)} spirals du/dt = J u + MLP(u), the eigenvalues of J -0.1 +- 2i, up to time "
             f"{TIME:g}, float64; the coarsest setting within each error, forward and backward "
             f"pass. IMEX evaluations are those of G.\n\n{markdown(header, rows)}")
    return Finding("there is nothing to gain on problems that are not stiff",
                   judge_nonstiff(records), [table], records)


def judge_nonstiff(records: list[dict[str, Any]], most: float = 1.25) -> Verdict:
    """Explicit solvers must need no more evaluations and no more time at any error.

    As the steps tried lie apart by factors of 1.19, up to ``most`` times as many are no more.
    """
    words, holds = [], True
    for target in dict.fromkeys(r["target"] for r in records):
        best = {key: {kind: min(r[key] for r in records
                                if r["target"] == target and r["system"] in names)
                      for kind, names in (("explicit", EXPLICIT), ("IMEX", IMEX))}
                for key in ("evaluations", "ms")}
        holds &= all(x["explicit"] <= most * x["IMEX"] for x in best.values())
        words.append("at {:.0e} the best explicit solver takes {} evaluations and {} ms, the best "
                     "IMEX scheme {} and {}".format(target, *(
                         number(best[key][kind]) for kind in ("explicit", "IMEX")
                         for key in ("evaluations", "ms"))))
    return Verdict(holds, "; ".join([*words, f"up to {most} times as much counts as no more"]))


def make_spirals(args: argparse.Namespace) -> tuple[Equation, Tensor]:
    torch.manual_seed(args.seed)
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    return Equation(SmallMLP(2, 50).double(), Dense(matrix), dim=-1), torch.randn(
        args.columns, 2, dtype=torch.float64)


@torch.no_grad()
def solution(equation: Equation, u0: Tensor) -> Tensor:
    return run(equation, u0, Setting(SYSTEMS["rk4"], TIME / 1024), Work())


def first_within(name: str, target: float, equation: Equation, u0: Tensor, exact: Tensor
                 ) -> tuple[Setting, float]:
    """The coarsest of the settings whose error is small enough, and that error."""
    for setting in settings(name):
        with torch.no_grad():
            found = run(equation, u0, setting, Work())
        error = float((found - exact).norm() / exact.norm())
        if error <= target:
            return setting, error
    raise RuntimeError(f"{name} does not reach an error of {target:g}")


def settings(name: str) -> Iterator[Setting]:
    """From coarse to fine, the steps by factors of about 2^(1/4), the tolerances of 10^(1/2)."""
    for k in range(40):
        if name == "dopri5":
            rtol = 10 ** (-1 - k / 2)
            if rtol < 1e-12:
                return
            yield Setting(System(name, "adaptive", partial(dopri5, False, rtol)), TIME, rtol)
        else:
            yield Setting(SYSTEMS[name], TIME / round(4 * 2 ** (k / 4)))


def run(equation: Equation, u0: Tensor, setting: Setting, work: Work) -> Tensor:
    t = torch.tensor([0.0, TIME], dtype=torch.float64)
    return setting.system.integrate(equation, u0, t, setting.step_size, work)[-1]


def train(equation: Equation, u0: Tensor, setting: Setting) -> Work:
    work = Work()
    run(equation, u0, setting, work).square().mean().backward()
    return work
