"""What does accuracy cost on stiff problems: this package beside torchdiffeq and SciPy?

Measures the relative L2 error at the final time against the evaluations of the right-hand side and
against the wall time, in float64, on three periodic problems du/dt = G(u) + J u:

- advection: -c u_x explicit, nu u_xx implicit, central differences on 512 points; the exact
  solution of the semi-discretisation is known;
- allen-cahn: u - u^3 explicit, eps^2 u_xx implicit, central differences on 512 points;
- ks: Kuramoto-Sivashinsky, spectral, 64 points, from a state on the attractor.

All solvers get the same G + J u, written in PyTorch or NumPy, and the same initial state; rtol and
atol are equal, and the error of a step is measured by its root mean square, as torchdiffeq and
SciPy do. SciPy's BDF and Radau also get the Jacobian: a constant sparse matrix for advection,
a function that gives a sparse one for allen-cahn and a dense one for ks. The inverses of this
package are made anew in each run. torchdiffeq's implicit_adams solves its equations by functional
iteration, here to 1e-10 in at most 20 iterations; it runs with its default order, 12, and with
order 4, whose stability region is larger. A step in which the iteration does not converge counts as
a failure of the run.

The reference of the nonlinear problems is ark548l2sa at a tolerance of 1e-12, and SciPy's DOP853
at 1e-12 is held against it; the plots show the difference as a dotted line, and errors near it say
nothing. "Evaluations" are those of G for this package, where each goes with about one linear solve,
and those of G + J u for the others. BDF solves one linear system for each, too, Radau one real and
one complex system for three; evaluations of the Jacobian and LU decompositions are listed apart.
Seconds are the best of interleaved runs; a run that took longer than --repeat-below is not
repeated. They include the overhead of PyTorch or NumPy, which is most of the time on such small
states.

    python examples/benchmarks/stiff_solvers.py
    python examples/benchmarks/stiff_solvers.py --problems ks --repeats 5

Writes stiff-PROBLEM.png and stiff-solvers.jsonl to --out, and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import scipy
import torch
import torchdiffeq
from scipy import sparse
from scipy.integrate import solve_ivp
from torch import Tensor
from tqdm import tqdm

from pyg_sinode import imex_odeint, norms
from pyg_sinode.grid import Advection, PeriodicGrid, kuramoto_sivashinsky
from pyg_sinode.operators import Circulant

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Array = Any  # a NumPy array, or a sparse matrix of SciPy
NAMES = ("advection", "allen-cahn", "ks")
FAMILIES = {"pyg_sinode": "Blues", "torchdiffeq": "Reds", "scipy": "Greens"}  # colour maps
TIGHT = 1e-12
FAILURES = (RuntimeError, ValueError, ArithmeticError, AssertionError, UserWarning)


@dataclass(frozen=True)
class Problem:
    """du/dt = G(u) + J u twice, for PyTorch and for NumPy, and what there is to know of it.

    Attributes:
        name: Its name in files and tables.
        title: Its name in plots.
        explicit: G(t, u) for PyTorch.
        implicit: J.
        array_explicit: G(u) for NumPy.
        jacobian: Of G + J u: a matrix, or a function of (t, u).
        u0: The initial state.
        time: The final time; the first is 0.
        counts: Numbers of equal steps.
        exact: The solution at a time, where it is known.
    """

    name: str
    title: str
    explicit: Callable[[Any, Tensor], Tensor]
    implicit: Circulant
    array_explicit: Callable[[Array], Array]
    jacobian: Any
    u0: Tensor
    time: float
    counts: tuple[int, ...]
    exact: Callable[[float], Tensor] | None = None

    def rhs(self, t: Any, u: Tensor) -> Tensor:
        """G + J u for PyTorch."""
        return self.explicit(t, u) + self.implicit.mv(u)

    def array_rhs(self) -> Callable[[float, Array], Array]:
        """G + J u for NumPy, as a function of (t, u)."""
        n, explicit = len(self.u0), self.array_explicit
        symbol = self.implicit.symbol(self.u0).numpy()

        def rhs(t: float, u: Array) -> Array:
            return explicit(u) + np.fft.irfft(symbol * np.fft.rfft(u), n)

        return rhs

    def stiffness(self) -> float:
        """The largest magnitude of an eigenvalue of J, per unit of time."""
        return float(self.implicit.symbol(self.u0).abs().max())


class TimeLimitError(RuntimeError):
    """A run that was stopped because it took too long."""


class Counted:
    """A right-hand side that counts its calls, and stops a run that takes too long."""

    def __init__(self, fn: Callable[[Any, Any], Any], limit: float) -> None:
        self.fn, self.limit, self.calls, self.t = fn, limit, 0, 0.0
        self.end = time.perf_counter() + limit

    def __call__(self, t: Any, u: Any) -> Any:
        self.calls, self.t = self.calls + 1, t
        if time.perf_counter() > self.end:
            raise TimeLimitError(f"longer than {self.limit:.3g} s")
        return self.fn(t, u)


class Outcome(NamedTuple):
    """The final state of a run, and counts of what else it did."""

    state: Array
    counts: dict[str, int]


class Solver(NamedTuple):
    """A way to integrate a problem.

    Attributes:
        name: Its name in tables and plots.
        family: A key of FAMILIES.
        setting: What is varied, "tolerance" or "step".
        run: Called as run(problem, value, limit), gives the counted function and a job for an
            Outcome.
        values: The values of the setting for a problem, from coarse to fine.
        style: How it is drawn.
    """

    name: str
    family: str
    setting: str
    run: Callable[[Problem, float, float], tuple[Counted, Callable[[], Outcome]]]
    values: Callable[[Problem], Sequence[float]]
    style: dict[str, Any]


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


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "stiff-solvers.jsonl"
    with path.open("w") as file, torch.no_grad():
        write(file, {"kind": "settings", **settings(args)})
        for name in args.problems:
            problem = make_problem(name, quick=args.quick, seed=args.seed)
            reference = make_reference(problem)
            print_problem(problem, reference)
            results = measure(problem, reference, make_solvers(args.quick), args)
            write(file, {"kind": "reference", "problem": name, "source": reference.source,
                         "difference": reference.difference})
            for result in results:
                write(file, {"kind": "run", **asdict(result)})
            print_table(results)
            print(f"figure: {plot(args.out, problem, reference, results)}\n", flush=True)
    print(f"data: {path}")


# The problems


def make_problem(name: str, *, quick: bool = False, seed: int = 0) -> Problem:
    """One of NAMES; quick ones are small, and not stiff."""
    if name == "advection":
        return advection_diffusion(32) if quick else advection_diffusion(512)
    if name == "allen-cahn":
        return allen_cahn(32) if quick else allen_cahn(512)
    return small_ks(32, 0.4, seed, before=5.0) if quick else small_ks(64, 10.0, seed)


def advection_diffusion(n: int, speed: float = 1.0, viscosity: float = 0.01) -> Problem:
    """A wave that goes round once while it flattens, on a period of 1."""
    grid = PeriodicGrid(n, 1.0)
    (dx,) = grid.spacing
    implicit = second_difference(grid, viscosity)
    u0 = torch.exp(2.0 * torch.sin(2 * math.pi * grid.points))

    def explicit(t: Any, u: Tensor) -> Tensor:
        return (u.roll(1, -1) - u.roll(-1, -1)) * (speed / (2 * dx))

    def array_explicit(u: Array) -> Array:
        return (np.roll(u, 1) - np.roll(u, -1)) * (speed / (2 * dx))

    angle = 2 * math.pi * np.arange(n // 2 + 1) / n
    symbol = (-1j * speed / dx * np.sin(angle) + 2 * viscosity / dx**2 * (np.cos(angle) - 1))

    def exact(t: float) -> Tensor:
        return torch.from_numpy(np.fft.irfft(np.exp(t * symbol) * np.fft.rfft(u0.numpy()), n))

    ones = np.ones(n - 1)
    ring = sparse.diags_array([ones, -ones, [1.0], [-1.0]], offsets=[-1, 1, n - 1, 1 - n])
    jacobian = sparse.csc_matrix(ring * (speed / (2 * dx)) + matrix(implicit, n))
    return Problem("advection", f"advection-diffusion, {n} points", explicit, implicit,
                   array_explicit, jacobian, u0, 1.0, (16, 32, 64, 128, 256, 512, 1024), exact)


def allen_cahn(n: int, eps: float = 0.06) -> Problem:
    """Waves that grow and sharpen to fronts between -1 and 1, on a period of 1."""
    grid = PeriodicGrid(n, 1.0)
    implicit = second_difference(grid, eps**2)
    linear = matrix(implicit, n)
    x = 2 * math.pi * grid.points
    u0 = 0.4 * torch.sin(x) + 0.3 * torch.cos(2 * x) + 0.2 * torch.sin(3 * x + 1.0)

    def jacobian(t: float, u: Array) -> Array:
        return sparse.csc_matrix(linear + sparse.diags_array(1 - 3 * u * u))

    return Problem("allen-cahn", f"Allen-Cahn, {n} points", lambda t, u: u - u * u * u, implicit,
                   lambda u: u - u * u * u, jacobian, u0, 3.0, (16, 32, 64, 128, 256, 512, 1024))


def small_ks(n: int, duration: float, seed: int, before: float = 50.0) -> Problem:
    """Kuramoto-Sivashinsky, after a time before in which random waves come to the attractor.

    The square in G is taken on more points, as in :class:`pyg_sinode.grid.Advection`, of which
    the NumPy version here follows the formula.
    """
    grid = PeriodicGrid(n, 22.0)
    equation = kuramoto_sivashinsky(grid)
    start = equation.initial(1, torch.Generator().manual_seed(seed))[0]
    times = torch.tensor([0.0, before], dtype=torch.float64)
    u0 = imex_odeint(equation.explicit, equation.implicit, start, times, method="ark436l2sa",
                     step_size=0.05)[-1]
    assert isinstance(equation.explicit, Advection)
    assert isinstance(equation.implicit, Circulant)
    modes, more = equation.explicit.modes, equation.explicit.more
    slope = -0.5 * more / n * 1j * grid.wavenumbers()[:modes]

    def array_explicit(u: Array) -> Array:
        fine = np.fft.irfft(np.fft.rfft(u)[:modes], more)
        return np.fft.irfft(np.fft.rfft(fine * fine)[:modes] * slope, n)

    # G(u) = R (E u)^2 with the interpolation E to more points and the slope R there.
    E = np.fft.irfft(np.fft.rfft(np.eye(n), axis=0)[:modes], more, axis=0)
    R = np.fft.irfft(np.fft.rfft(np.eye(more), axis=0)[:modes] * slope[:, None], n, axis=0)
    E *= more / n  # irfft divides by the number of points that it gives
    R, linear = R * (n / more) ** 2, matrix(equation.implicit, n).toarray()

    def jacobian(t: float, u: Array) -> Array:
        return 2 * (R * (E @ u)) @ E + linear

    counts = tuple(round(duration * c) for c in (5, 10, 20, 40, 80, 160))
    return Problem("ks", f"Kuramoto-Sivashinsky, {n} points", equation.explicit, equation.implicit,
                   array_explicit, jacobian, u0, duration, counts)


def second_difference(grid: PeriodicGrid, factor: float) -> Circulant:
    """A multiple of the second derivative, by central differences."""
    return Circulant(factor * np.array([1.0, -2.0, 1.0]) / grid.spacing[0] ** 2,
                     size=grid.shape[0])


def matrix(operator: Circulant, n: int) -> Array:
    """An operator as a sparse matrix."""
    row, col, value = operator.to_coo(-1, n)
    return sparse.csc_matrix((value.numpy(), (row.numpy(), col.numpy())), shape=(n, n))


# The solvers


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
                      lambda _: decades, {"marker": marker})
               for name, marker in (("ark324l2sa", "o"), ("ark436l2sa", "s"), ("ark548l2sa", "D"))]
    solvers += [Solver(f"{name}, equal steps", "pyg_sinode", "step", partial(equal_imex, name),
                       steps, {"marker": marker, "linestyle": "--", "markerfacecolor": "white"})
                for name, marker in (("ssp222", "^"), ("sbdf2", "v"), ("ark436l2sa", "s"))]
    solvers.append(Solver("dopri5", "torchdiffeq", "tolerance", dopri5, lambda _: few,
                          {"marker": "o"}))
    for order, marker in ((4, "P"), (12, "X")):
        solvers.append(Solver(
            f"implicit_adams, order {order}", "torchdiffeq", "step", partial(adams, order),
            partial(fractions, of=(2.0,) if quick else (4.0, 2.0, 1.0) if order == 4
                    else (1.0, 0.25)),
            {"marker": marker, "markersize": 8, "linestyle": "--", "markerfacecolor": "white"}))
    solvers += [Solver(name, "scipy", "tolerance", partial(stiff_scipy, name), lambda _: decades,
                       {"marker": marker}) for name, marker in (("BDF", "o"), ("Radau", "s"))]
    return solvers


def imex(problem: Problem, limit: float, options: dict[str, Any]
         ) -> tuple[Counted, Callable[[], Outcome]]:
    """A run of this package, on an operator that keeps no inverses of earlier runs."""
    term, operator = Counted(problem.explicit, limit), copy.deepcopy(problem.implicit)
    times = torch.tensor([0.0, problem.time], dtype=torch.float64)

    def job() -> Outcome:
        states, stats = imex_odeint(term, operator, problem.u0, times, return_stats=True, **options)
        counts = {name: getattr(stats, name) for name in (
            "explicit_evaluations", "linear_solves", "factorizations", "operator_products",
            "steps_accepted", "steps_rejected")}
        return Outcome(states[-1].numpy(), counts)

    return term, job


def adaptive_imex(method: str, problem: Problem, tolerance: float, limit: float
                  ) -> tuple[Counted, Callable[[], Outcome]]:
    return imex(problem, limit, {"method": method, "rtol": tolerance, "atol": tolerance,
                                 "norm": norms.rms})


def equal_imex(method: str, problem: Problem, step: float, limit: float
               ) -> tuple[Counted, Callable[[], Outcome]]:
    return imex(problem, limit, {"method": method, "step_size": step})


def diffeq(problem: Problem, limit: float, options: dict[str, Any]
           ) -> tuple[Counted, Callable[[], Outcome]]:
    rhs = Counted(problem.rhs, limit)
    times = torch.tensor([0.0, problem.time], dtype=torch.float64)
    return rhs, lambda: Outcome(
        torchdiffeq.odeint(rhs, problem.u0, times, **options)[-1].numpy(), {})


def dopri5(problem: Problem, tolerance: float, limit: float
           ) -> tuple[Counted, Callable[[], Outcome]]:
    return diffeq(problem, limit, {"method": "dopri5", "rtol": tolerance, "atol": tolerance})


def adams(order: int, problem: Problem, step: float, limit: float
          ) -> tuple[Counted, Callable[[], Outcome]]:
    return diffeq(problem, limit, {
        "method": "implicit_adams", "rtol": 1e-10, "atol": 1e-10,
        "options": {"step_size": step, "max_order": order, "max_iters": 20}})


def stiff_scipy(method: str, problem: Problem, tolerance: float, limit: float
                ) -> tuple[Counted, Callable[[], Outcome]]:
    rhs, u0 = Counted(problem.array_rhs(), limit), problem.u0.numpy()

    def job() -> Outcome:
        found = solve_ivp(rhs, (0.0, problem.time), u0, method=method, rtol=tolerance,
                          atol=tolerance, jac=problem.jacobian)
        if not found.success:
            raise RuntimeError(found.message)
        return Outcome(found.y[:, -1], {"nfev": found.nfev, "njev": found.njev, "nlu": found.nlu,
                                        "steps_accepted": len(found.t) - 1})

    return rhs, job


# The measurement


def make_reference(problem: Problem) -> Reference:
    """The final state to measure errors against, and how far an independent solver is from it."""
    if problem.exact is not None:
        state, source = problem.exact(problem.time), "the exact solution"
    else:
        _, job = adaptive_imex("ark548l2sa", problem, TIGHT, math.inf)
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
    counted, job = solver.run(problem, result.value, limit)
    with warnings.catch_warnings():
        # Overflows show in the result. What torchdiffeq itself doubts must not count as a result.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Functional iteration did not converge")
        start = time.perf_counter()
        try:
            outcome = job()
        except FAILURES as error:
            outcome = None
            if result.error is None:  # else a repeat was slower than the first run
                result.failure = (f"{reason(error)} (at t = {float(counted.t):.3g} of "
                                  f"{problem.time:.3g}, after {counted.calls} evaluations)")
        result.seconds.append(time.perf_counter() - start)
    if outcome is None:
        return
    result.evaluations, result.counts = counted.calls, outcome.counts
    if not np.isfinite(outcome.state).all():
        result.failure = "the result is not finite"
        return
    error = relative_error(outcome.state, reference.state)
    if error > 1.0:
        result.failure = f"the result is wrong: relative error {error:.1e}"
    else:
        result.error = error


def reason(error: Exception) -> str:
    """The kind of an error and the first sentence of its message."""
    if isinstance(error, TimeLimitError):
        return str(error)
    words = " ".join(str(error).split()).split(". ")[0][:160].rstrip(".")
    return f"{type(error).__name__}: {words}"


# The report


def settings(args: argparse.Namespace) -> dict[str, Any]:
    given = {key: str(value) if isinstance(value, Path) else value
             for key, value in vars(args).items()}
    return {**given, "python": platform.python_version(), "torch": torch.__version__,
            "torchdiffeq": torchdiffeq.__version__, "scipy": scipy.__version__,
            "numpy": np.__version__, "machine": platform.machine()}


def write(file: Any, record: dict[str, Any]) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()


def print_problem(problem: Problem, reference: Reference) -> None:
    print(f"{problem.title}: T = {problem.time:g}, the largest eigenvalue of J is "
          f"-{problem.stiffness():.0f}, so T |lambda| = {problem.time * problem.stiffness():.0f}; "
          f"reference: {reference.source}, from which DOP853 at {TIGHT:.0e} differs by "
          f"{reference.difference:.1e}\n", flush=True)


def print_table(results: Sequence[Result]) -> None:
    print("| solver | tolerance or step | error | evaluations | linear solves | Jacobians / LUs "
          "| seconds |\n|---|---|---|---|---|---|---|")
    for r in results:
        print(f"| {r.solver} | {r.value:.1e} | {' | '.join(cells(r))} |")
    print(flush=True)


def cells(r: Result) -> list[str]:
    """Error, evaluations, linear solves, Jacobians and seconds; or a reason instead."""
    seconds = f"{min(r.seconds):.3f}" if r.seconds else "-"
    if r.failure is not None:
        return [f"failed: {r.failure}", "-", "-", "-", seconds]
    jacobians = f"{r.counts['njev']} / {r.counts['nlu']}" if "njev" in r.counts else "-"
    return [f"{r.error:.1e}", str(r.evaluations), str(r.counts.get("linear_solves", "-")),
            jacobians, seconds]


def plot(folder: Path, problem: Problem, reference: Reference, results: Sequence[Result]) -> str:
    """The error against evaluations, and against seconds."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.6), sharey=True)
    solvers = make_solvers()
    shades = {family: iter(plt.get_cmap(colors)(np.linspace(
        0.95, 0.5, sum(s.family == family for s in solvers)))) for family, colors in
        FAMILIES.items()}
    for solver in solvers:
        color = next(shades[solver.family])
        good = [r for r in results if r.solver == solver.name and r.error]
        if not good:
            continue
        error = [r.error for r in good]
        for axis, work in zip(axes, ([r.evaluations for r in good],
                                     [min(r.seconds) for r in good]), strict=True):
            axis.loglog(work, error, label=f"{solver.family}: {solver.name}",
                        **{"color": color, "markersize": 6, "linewidth": 1.6, **solver.style})
    for axis, label in zip(axes, ("evaluations of the right-hand side (of G for pyg_sinode)",
                                  "seconds"), strict=True):
        axis.axhline(reference.difference, color="0.4", linestyle=":",
                     label="DOP853 at 1e-12 beside the reference")
        axis.set_xlabel(label)
        axis.grid(which="major", alpha=0.3)
    axes[0].set_ylabel(f"relative L2 error at t = {problem.time:g}")
    failed = sorted({r.solver for r in results} - {r.solver for r in results if r.error})
    note = f"; no result: {', '.join(failed)}" if failed else ""
    figure.suptitle(f"{problem.title}, $T |\\lambda|_{{max}}$ = "
                    f"{problem.time * problem.stiffness():.0f}{note}")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9)
    figure.set_layout_engine("constrained")
    path = folder / f"stiff-{problem.name}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return str(path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Error against evaluations and seconds on stiff problems, for pyg_sinode, "
                    "torchdiffeq and SciPy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--problems", nargs="+", choices=NAMES, default=list(NAMES), help="which problems")
    add("--out", type=Path, default=Path("runs"), help="folder of the figures and the data")
    add("--repeats", type=int, default=3, help="runs of which the fastest counts")
    add("--repeat-below", type=float, default=10.0, metavar="S",
        help="runs that took longer than this are not repeated, in seconds")
    add("--time-limit", type=float, default=200.0, metavar="S",
        help="a run is stopped after this time, in seconds, and a solver's finer settings are "
             "then left out")
    add("--threads", type=int, default=1, help="threads of PyTorch")
    add("--seed", type=int, default=0, help="of the initial state of ks")
    add("--quick", action="store_true", help="tiny problems and few settings, to try the script")
    args = parser.parse_args()
    if args.repeats < 1 or args.time_limit <= 0:
        parser.error("--repeats and --time-limit must be positive")
    return args


if __name__ == "__main__":
    main()
