"""What does accuracy cost on stiff problems: this package beside torchdiffeq and SciPy?

The reference of the nonlinear problems is ark548l2sa at a tolerance of 1e-12, and SciPy's DOP853
at 1e-12 is held against it; errors near their difference say nothing. "Evaluations" are those of G
for this package, where each goes with about one linear solve, and those of G + J u for the others.
BDF solves one linear system for each, too, Radau one real and one complex system for three;
evaluations of the Jacobian and LU decompositions are listed apart. Seconds include the overhead of
PyTorch or NumPy, which is most of the time on such small states. A step of implicit_adams whose
iteration does not converge counts as a failure of the run.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from measuring import FOREIGN_FAILURES, Record, Work, print_table, reason
from scipy.integrate import solve_ivp
from stiff_figure import plot
from stiff_methods import Solver, adaptive_imex, make_solvers
from stiff_problems import Array, Problem, make_problem
from torch import Tensor
from tqdm import tqdm

TIGHT = 1e-12
HEADER = ("solver", "tolerance or step", "error", "evaluations", "linear solves",
          "Jacobians / LUs", "seconds")


@dataclass
class Result:
    """All that is known of a solver with one setting on one problem."""

    problem: str
    solver: str
    family: str
    setting: str
    value: float
    error: float | None = None
    evaluations: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    failure: str | None = None


class Reference(NamedTuple):
    """What errors are measured against.

    Attributes:
        state: The solution at the final time.
        source: Where it comes from.
        difference: The relative L2 difference of SciPy's DOP853 from it.
    """

    state: Tensor
    source: str
    difference: float


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    record = Record(args.out / "stiff-solvers.jsonl", args)
    with torch.no_grad():
        for name in args.problems:
            problem = make_problem(name, quick=args.quick, seed=args.seed)
            reference = make_reference(problem)
            print_problem(problem, reference)
            results = measure(problem, reference, make_solvers(args.quick), args)
            record.add(kind="reference", problem=name, source=reference.source,
                       difference=reference.difference)
            for result in results:
                record.add(kind="run", **asdict(result))
            print_table(HEADER, ([r.solver, f"{r.value:.1e}", *cells(r)] for r in results))
            path = args.out / f"stiff-{name}.png"
            plot(path, problem, reference.difference, results)
            print(f"\nfigure: {path}\n", flush=True)
    print(f"data: {record.path}")


def make_reference(problem: Problem) -> Reference:
    """The final state to measure errors against, and how far an independent solver is from it."""
    if problem.exact is not None:
        state, source = problem.exact(problem.time), "the exact solution"
    else:
        job = adaptive_imex("ark548l2sa", problem, TIGHT, Work())
        state, source = torch.from_numpy(job().state), f"ark548l2sa at {TIGHT:.0e}"
    other = solve_ivp(problem.array_rhs(), (0.0, problem.time), problem.u0.numpy(),
                      method="DOP853", rtol=TIGHT, atol=TIGHT)
    return Reference(state, source, relative_error(other.y[:, -1], state))


def relative_error(found: Array, expected: Tensor) -> float:
    truth = expected.numpy()
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def measure(problem: Problem, reference: Reference, solvers: Sequence[Solver],
            args: argparse.Namespace) -> list[Result]:
    """Runs every solver with every setting, all of them in each repeat."""
    table = [[(solver, Result(problem.name, solver.name, solver.family, solver.setting, value))
              for value in solver.values(problem)] for solver in solvers]
    with tqdm(total=args.repeats * sum(map(len, table)), desc=problem.name, leave=False,
              disable=None) as bar:
        for repeat in range(args.repeats):
            for row in table:
                for solver, result in pending(row, repeat, args):
                    bar.set_postfix_str(f"{result.solver} {result.value:.1e}")
                    run_once(problem, reference, solver, result, args.time_limit)
                bar.update(len(row))
    return [result for row in table for _, result in row]


def pending(row: Sequence[tuple[Solver, Result]], repeat: int, args: argparse.Namespace
            ) -> Iterator[tuple[Solver, Result]]:
    """The settings of a solver that are to be run in this repeat, from coarse to fine."""
    slow: Result | None = None
    for solver, result in row:
        if slow is not None:
            result.failure = (f"not run: longer than the limit of {args.time_limit:.3g} s already "
                              f"with {slow.value:.1e}")
        elif result.failure is None and (
                repeat == 0 or min(result.seconds) <= args.repeat_below):
            yield solver, result
        if repeat == 0 and result.seconds and result.seconds[-1] > args.time_limit:
            slow = result


def run_once(problem: Problem, reference: Reference, solver: Solver, result: Result,
             limit: float) -> None:
    """Runs a solver once and notes its time, and its error or why there is none."""
    work = Work(limit)
    job = solver.run(problem, result.value, work)
    with warnings.catch_warnings():
        # Overflows show in the result. What torchdiffeq itself doubts must not count as a result.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Functional iteration did not converge")
        start = time.perf_counter()
        try:
            outcome = job()
        except FOREIGN_FAILURES as error:
            outcome = None
            if result.error is None:  # else a repeat was slower than the first run
                result.failure = (f"{reason(error)} (at t = {float(work.t):.3g} of "
                                  f"{problem.time:.3g}, after {work.evaluations} evaluations)")
        result.seconds.append(time.perf_counter() - start)
    if outcome is None:
        return
    result.evaluations, result.counts = work.evaluations, outcome.counts
    if not np.isfinite(outcome.state).all():
        result.failure = "the result is not finite"
        return
    error = relative_error(outcome.state, reference.state)
    if error > 1.0:
        result.failure = f"the result is wrong: relative error {error:.1e}"
    else:
        result.error = error


def print_problem(problem: Problem, reference: Reference) -> None:
    print(f"{problem.title}: T = {problem.time:g}, the largest eigenvalue of J is "
          f"-{problem.stiffness():.0f}, so T |lambda| = {problem.time * problem.stiffness():.0f}; "
          f"reference: {reference.source}, from which DOP853 at {TIGHT:.0e} differs by "
          f"{reference.difference:.1e}\n", flush=True)


def cells(r: Result) -> list[str]:
    """Error, evaluations, linear solves, Jacobians and seconds; or a reason instead."""
    seconds = f"{min(r.seconds):.3f}" if r.seconds else "-"
    if r.failure is not None:
        return [f"failed: {r.failure}", "-", "-", "-", seconds]
    jacobians = f"{r.counts['njev']} / {r.counts['nlu']}" if "njev" in r.counts else "-"
    return [f"{r.error:.1e}", str(r.evaluations), str(r.counts.get("linear_solves", "-")),
            jacobians, seconds]
