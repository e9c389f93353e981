"""What does a step cost where the set-up serves many of them, and where it serves only one?"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial

import torch
from measuring import interleaved, markdown, number
from torch import Tensor

from claims.finding import Finding, SmallMLP, Verdict
from pyg_sinode import Stats, imex_odeint
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky, viscous_burgers
from pyg_sinode.operators import Dense, LinearOperator
from pyg_sinode.solvers import CG, GMRES, Direct, Solver

FACTORED = ("dense LU", "sparse LU")
KRYLOV = ("GMRES", "CG")
STEPS = (1, 2, 5, 20)
RTOL = 1e-5  # of Krylov solvers: PETSc's own choice


@dataclass(frozen=True)
class Case:
    """An implicit part with the solver for it; step is the paper's, in the equation's time."""

    solver: Solver | None
    operator: LinearOperator
    step: float
    u0: Tensor


def growth(args: argparse.Namespace) -> Finding:
    """Does a step cost less, the more of them share one set-up?"""
    records, rows, found = [], [], {}
    for columns in (1, args.columns):
        jobs = {f"{name} {steps}": partial(train_step, case, equal_times(case, steps))
                for name, case in make_cases(args, columns).items() for steps in STEPS
                if columns > 1 or name not in KRYLOV}
        timings = interleaved(jobs, args.repeats)
        for name in dict.fromkeys(key.rsplit(" ", 1)[0] for key in jobs):
            ms = {steps: 1e3 * timings.median(f"{name} {steps}") / steps for steps in STEPS}
            found[name, columns] = ms
            rows.append([name, columns, *(number(x) for x in ms.values()),
                         number(ms[STEPS[0]] / ms[STEPS[-1]], 2)])
            records += [{"solver": name, "columns": columns, "steps": steps, "ms_per_step": x}
                        for steps, x in ms.items()]
    header = ["solver", "states", *(f"{n} step{'s' * (n > 1)}" for n in STEPS), "first / last"]
    table = f"{describe(args)} ms a step:\n\n{markdown(header, rows)}"
    return Finding("the gain of an LU grows with the number of steps, for its set-up is reused",
                   judge_growth({c: found["dense LU", c] for c in (1, args.columns)}), [table],
                   records)


def judge_growth(ms: dict[int, dict[int, float]], least: float = 1.25) -> Verdict:
    """From the ms a step, by the number of states and the number of steps."""
    gains = {columns: x[min(x)] / x[max(x)] for columns, x in ms.items()}
    words = " and ".join(f"{gain:.2f} times ({columns} state{'s' * (columns > 1)})"
                         for columns, gain in gains.items())
    steps = max(max(x) for x in ms.values())
    return Verdict(all(gain >= least for gain in gains.values()),
                   f"with a dense LU a step alone costs what {words} a step of {steps} does; "
                   f"at least {least} was asked for")


def varied(args: argparse.Namespace) -> Finding:
    """What do steps of different sizes cost beside equal ones?"""
    records, rows, ratios, cases = [], [], {}, make_cases(args, args.columns)
    kinds = {"equal": equal_times, "varied": varied_times}
    jobs = {f"{name} {kind}": partial(train_step, case, times(case, STEPS[-1]))
            for name, case in cases.items() for kind, times in kinds.items()}
    timings = interleaved(jobs, args.repeats)
    for name in cases:
        stats = {kind: timings.results[f"{name} {kind}"] for kind in kinds}
        ms = {kind: 1e3 * timings.median(f"{name} {kind}") for kind in kinds}
        ratios[name] = ms["varied"] / ms["equal"]
        rows.append([name, *(cell for kind in kinds for cell in (
            number(ms[kind]), stats[kind].factorizations, stats[kind].linear_iterations)),
            f"{ratios[name]:.2f}"])
        records += [{"solver": name, "steps": kind, "ms": ms[kind],
                     "factorizations": stats[kind].factorizations,
                     "iterations": stats[kind].linear_iterations} for kind in kinds]
    header = ["solver", *(f"{kind}: {what}" for kind in kinds
                          for what in ("ms", "set-ups", "iterations")), "varied / equal"]
    table = f"{describe(args)} {STEPS[-1]} steps, {args.columns} states:\n\n"
    return Finding("steps that vary cost an LU its gain, and hardly affect a Krylov solver",
                   judge_varied(ratios), [table + markdown(header, rows)], records)


def judge_varied(ratios: dict[str, float], least: float = 1.25, most: float = 1.15) -> Verdict:
    """From the time of varied steps over that of equal ones, by solver."""
    holds = (all(ratios[name] >= least for name in FACTORED)
             and all(ratios[name] <= most for name in KRYLOV))
    words = ", ".join(f"{name} {ratios[name]:.2f}" for name in (*FACTORED, *KRYLOV))
    return Verdict(holds, f"varied steps take this multiple of the time of equal ones: {words}; "
                          f"asked for: LU at least {least}, Krylov at most {most}")


def make_cases(args: argparse.Namespace, columns: int) -> dict[str, Case]:
    """The solvers, each with states and an operator of its own."""
    grid = PeriodicGrid(args.points, 22.0)
    _, stencil, initial = kuramoto_sivashinsky(grid, discretization="finite_difference")
    u0 = initial(columns, torch.Generator().manual_seed(args.seed))
    grid = PeriodicGrid(args.points, 1.0)
    _, diffusion, initial = viscous_burgers(grid, 8e-4, discretization="finite_difference")
    v0 = initial(columns, torch.Generator().manual_seed(args.seed))
    return {"dense LU": Case(None, Dense(as_matrix(stencil, args.points)), 0.2, u0),
            "sparse LU": Case(Direct(dense=False), stencil, 0.2, u0),
            "FFT": Case(None, stencil, 0.2, u0),
            "GMRES": Case(GMRES(RTOL), diffusion, 0.05, v0),
            "CG": Case(CG(RTOL), diffusion, 0.05, v0)}


def as_matrix(operator: LinearOperator, size: int) -> Tensor:
    return operator.mv(torch.eye(size, dtype=torch.float64)).t().contiguous()


def train_step(case: Case, t: Tensor) -> Stats:
    """Forward and backward pass, with the set-ups made anew."""
    case.operator.reset()
    torch.manual_seed(0)
    term = SmallMLP(case.u0.size(-1)).to(case.u0)
    states, stats = imex_odeint(term, case.operator, case.u0, t, method="imex_rk2",
                                step_size=float(t.diff().max()), solver=case.solver,
                                return_stats=True)
    states[-1].square().mean().backward()
    return stats


def equal_times(case: Case, steps: int) -> Tensor:
    return case.step * torch.arange(steps + 1, dtype=torch.float64)


def varied_times(case: Case, steps: int) -> Tensor:
    """The ends of as many steps over the same time, all of different sizes in no order."""
    sizes = torch.linspace(0.5, 1.5, steps, dtype=torch.float64) * case.step
    order = torch.randperm(steps, generator=torch.Generator().manual_seed(0))
    return torch.cat([sizes.new_zeros(1), sizes[order].cumsum(0)])


def describe(args: argparse.Namespace) -> str:
    return (f"Training steps of imex_rk2 by finite differences on {args.points} points in float64 "
            "(direct solvers: Kuramoto-Sivashinsky, step 0.2; Krylov: Burgers, step 0.05, where it "
            f"converges, to {RTOL:g}; all set-ups anew each time).")
