"""Which solvers of three packages are given the stiff problems, with which settings?

All measure the error of a step by its root mean square, as torchdiffeq and SciPy do. torchdiffeq's
implicit_adams solves its equations by functional iteration, here to 1e-10 in at most 20 iterations;
it runs with its default order, 12, and with order 4, whose stability region is larger.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torchdiffeq
from measuring import Work
from scipy.integrate import solve_ivp
from stiff_problems import Array, Problem

from pyg_sinode import imex_odeint, norms


class Outcome(NamedTuple):
    """The final state of a run, and counts of what else it did."""

    state: Array
    counts: dict[str, int]


class Solver(NamedTuple):
    """A way to integrate a problem.

    Attributes:
        name: Its name in tables and plots.
        family: The package that it is of.
        setting: What is varied, "tolerance" or "step".
        run: Called as run(problem, value, work), gives a job for an Outcome; its evaluations of
            the right-hand side are counted and limited by the work.
        values: The values of the setting for a problem, from coarse to fine.
    """

    name: str
    family: str
    setting: str
    run: Callable[[Problem, float, Work], Callable[[], Outcome]]
    values: Callable[[Problem], Sequence[float]]


def make_solvers(quick: bool = False) -> list[Solver]:
    """All solvers, each with the values of its setting."""
    decades = (1e-3, 1e-5) if quick else tuple(10.0**-k for k in range(3, 10))
    few = (1e-3,) if quick else (1e-3, 1e-6, 1e-9)

    def steps(problem: Problem) -> list[float]:
        return [problem.time / c for c in problem.counts[: 2 if quick else None]]

    def fractions(problem: Problem, of: Sequence[float]) -> list[float]:
        """Steps that are about so many times the time of the fastest decay, and divide T."""
        return [problem.time / math.ceil(problem.time * problem.stiffness() / a) for a in of]

    solvers = [Solver(name, "pyg_sinode", "tolerance", partial(adaptive_imex, name),
                      lambda _: decades) for name in ("ark324l2sa", "ark436l2sa", "ark548l2sa")]
    solvers += [Solver(f"{name}, equal steps", "pyg_sinode", "step", partial(equal_imex, name),
                       steps) for name in ("ssp222", "sbdf2", "ark436l2sa")]
    solvers.append(Solver("dopri5", "torchdiffeq", "tolerance", dopri5, lambda _: few))
    solvers += [Solver(f"implicit_adams, order {order}", "torchdiffeq", "step",
                       partial(adams, order),
                       partial(fractions, of=(2.0,) if quick else (4.0, 2.0, 1.0) if order == 4
                               else (1.0, 0.25))) for order in (4, 12)]
    return solvers + [Solver(name, "scipy", "tolerance", partial(stiff_scipy, name),
                             lambda _: decades) for name in ("BDF", "Radau")]


def imex(problem: Problem, work: Work, options: dict[str, Any]) -> Callable[[], Outcome]:
    """A run of this package, on an operator that keeps no inverses of earlier runs."""
    term, operator = work.counted(problem.explicit), copy.deepcopy(problem.implicit)
    times = torch.tensor([0.0, problem.time], dtype=torch.float64)

    def job() -> Outcome:
        states, stats = imex_odeint(term, operator, problem.u0, times, return_stats=True, **options)
        counts = {name: getattr(stats, name) for name in (
            "explicit_evaluations", "linear_solves", "factorizations", "operator_products",
            "steps_accepted", "steps_rejected")}
        return Outcome(states[-1].numpy(), counts)

    return job


def adaptive_imex(method: str, problem: Problem, tolerance: float, work: Work
                  ) -> Callable[[], Outcome]:
    return imex(problem, work, {"method": method, "rtol": tolerance, "atol": tolerance,
                                "norm": norms.rms})


def equal_imex(method: str, problem: Problem, step: float, work: Work) -> Callable[[], Outcome]:
    return imex(problem, work, {"method": method, "step_size": step})


def diffeq(problem: Problem, work: Work, options: dict[str, Any]) -> Callable[[], Outcome]:
    rhs = work.counted(problem.rhs)
    times = torch.tensor([0.0, problem.time], dtype=torch.float64)
    return lambda: Outcome(
        torchdiffeq.odeint(rhs, problem.u0, times, **options)[-1].numpy(), {})


def dopri5(problem: Problem, tolerance: float, work: Work) -> Callable[[], Outcome]:
    return diffeq(problem, work, {"method": "dopri5", "rtol": tolerance, "atol": tolerance})


def adams(order: int, problem: Problem, step: float, work: Work) -> Callable[[], Outcome]:
    return diffeq(problem, work, {
        "method": "implicit_adams", "rtol": 1e-10, "atol": 1e-10,
        "options": {"step_size": step, "max_order": order, "max_iters": 20}})


def stiff_scipy(method: str, problem: Problem, tolerance: float, work: Work
                ) -> Callable[[], Outcome]:
    rhs, u0 = work.counted(problem.array_rhs()), problem.u0.numpy()

    def job() -> Outcome:
        found = solve_ivp(rhs, (0.0, problem.time), u0, method=method, rtol=tolerance,
                          atol=tolerance, jac=problem.jacobian)
        if not found.success:
            raise RuntimeError(found.message)
        return Outcome(found.y[:, -1], {"nfev": found.nfev, "njev": found.njev, "nlu": found.nlu,
                                        "steps_accepted": len(found.t) - 1})

    return job
