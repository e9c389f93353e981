"""Where do exponential schemes win: beside IMEX schemes, SciPy, and a step written out by hand?

Errors are relative, in the L2 norm at the final time, against the exact solution where it is known,
else against ark548l2sa at a tolerance of 1e-12, from which etdrk4s with short steps differs by the
number that is printed. Seconds are the best of interleaved runs.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import diffrax_kencarp
import torch
import torchfsm_etdrk
from drawing import legend, save, style
from figures import plt
from measuring import Record, Work, cpu_seconds, number, print_table
from stiff_methods import Solver, adaptive_imex, equal_imex, stiff_scipy
from stiff_problems import Problem, allen_cahn, korteweg_de_vries, small_ks
from stiff_solvers import Reference, Result, measure, relative_error
from torch import Tensor

from pyg_sinode import imex_odeint
from pyg_sinode.operators.phi import phi_functions

TARGETS = (1e-3, 1e-6)
STYLES = {
    "etdrk4, equal steps": (0, 1, 0, None), "etdrk4s, equal steps": (2, 0, 0, None),
    "etdrk4s": (2, 0, 3, "white"), "lawson4, equal steps": (6, 9, 0, None),
    "ark436l2sa, equal steps": (1, 2, 1, None), "ark548l2sa": (1, 3, 3, "white"),
    "sbdf4, equal steps": (3, 4, 1, None), "BDF": (4, 7, 2, None), "Radau": (5, 8, 2, None),
    "KenCarp4": (7, 5, 2, None),
}


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    record = Record(args.out / "exponential.jsonl", args)
    parts = {"curves": curves, "bare": beside_bare, "batch": batch, "torchfsm": beside_torchfsm}
    with torch.no_grad():
        for part in args.parts:
            parts[part](record, args)
    print(f"data: {record.path}")


def make_problem(name: str, args: argparse.Namespace) -> Problem:
    """A problem by its name; quick ones are small and short."""
    if name == "allen-cahn":
        return allen_cahn(32 if args.quick else 512)
    if name == "kdv":
        return korteweg_de_vries(64 if args.quick else 256)
    points = int(name.removeprefix("ks-"))
    if args.quick:
        return small_ks(32, 0.4, args.seed, before=2.0)
    return small_ks(points, 50.0, args.seed)


def make_solvers(quick: bool) -> list[Solver]:
    """The solvers, each with the values of its setting."""
    decades = (1e-3, 1e-5) if quick else tuple(10.0**-k for k in range(2, 10))

    def steps(problem: Problem) -> list[float]:
        return [problem.time / c for c in problem.counts[: 2 if quick else None]]

    equal = ("etdrk4", "etdrk4s", "lawson4", "ark436l2sa", "sbdf4")
    solvers = [Solver(f"{name}, equal steps", "pyg_sinode", "step", partial(equal_imex, name),
                      steps) for name in equal]
    solvers += [Solver(name, "pyg_sinode", "tolerance", partial(adaptive_imex, name),
                       lambda _: decades) for name in ("etdrk4s", "ark548l2sa")]
    solvers += [Solver(name, "scipy", "tolerance", partial(stiff_scipy, name),
                       lambda _: decades) for name in ("BDF", "Radau")]
    if diffrax_kencarp.is_installed():
        solvers.append(Solver("KenCarp4", "diffrax", "tolerance", diffrax_kencarp.kencarp4,
                              lambda _: decades))
    else:
        print("diffrax is not installed: its KenCarp4 is left out\n")
    return solvers


# Error against time


def curves(record: Record, args: argparse.Namespace) -> None:
    """Measures all solvers on all problems; prints the times to the targets, draws the rest."""
    found: list[tuple[Problem, float, list[Result]]] = []
    for name in args.problems:
        problem = make_problem(name, args)
        reference = make_reference(problem, args.quick)
        print(f"{problem.title}, to t = {problem.time:g}; reference: {reference.source}, from "
              f"which etdrk4s differs by {reference.difference:.1e}\n", flush=True)
        results = measure(problem, reference, make_solvers(args.quick), args)
        for result in results:
            record.add(kind="run", **asdict(result) | {"problem": name})
        print_table(("solver", *(f"seconds to {x:.0e}" for x in TARGETS)), rows(results))
        print(flush=True)
        found.append((problem, reference.difference, results))
    if found:
        print(f"\nfigure: {plot(args.out / 'exponential.png', found)}\n", flush=True)


def make_reference(problem: Problem, quick: bool) -> Reference:
    """The final state to measure errors against, and how far another scheme is from it."""
    step = problem.time / problem.counts[-1] / (1 if quick else 4)
    other = equal_imex("etdrk4s", problem, step, Work())().state
    if problem.exact is not None:
        state, source = problem.exact(problem.time), "the exact solution"
    else:
        state = torch.from_numpy(adaptive_imex("ark548l2sa", problem, 1e-12, Work())().state)
        source = "ark548l2sa at 1e-12"
    return Reference(state, source, relative_error(other, state))


def seconds_to(results: Sequence[Result], target: float) -> float | None:
    """The least time of a run with an error of at most the target; None if there is none."""
    good = [min(r.seconds) for r in results if r.error is not None and r.error <= target]
    return min(good, default=None)


def rows(results: Sequence[Result]) -> list[list[str]]:
    """For each solver its times, and how many times as fast as SciPy's best it is."""
    best = [seconds_to([r for r in results if r.family == "scipy"], x) for x in TARGETS]
    found = []
    for solver in dict.fromkeys(r.solver for r in results):
        own = [seconds_to([r for r in results if r.solver == solver], x) for x in TARGETS]
        found.append([solver, *("-" if a is None else f"{a:.3f}" if b is None
                                else f"{a:.3f} ({b / a:.2g})" for a, b in
                                zip(own, best, strict=True))])
    return found


def plot(path: Any, found: Sequence[tuple[Problem, float, list[Result]]]) -> Any:
    """The error of each solver against its time, one panel for each problem."""
    columns = min(2, len(found))
    figure, axes = plt.subplots(-(-len(found) // columns), columns, squeeze=False,
                                figsize=(5.6 * columns + 2, 4.0 * -(-len(found) // columns)))
    for axis, (problem, difference, results) in zip(axes.flat, found, strict=False):
        for solver, options in STYLES.items():
            good = [r for r in results if r.solver == solver and r.error]
            if good:
                axis.loglog([min(r.seconds) for r in good], [r.error for r in good],
                            label=solver, **style(*options))
        axis.axhspan(axis.get_ylim()[0] / 10, difference, color="0.9", zorder=0,
                     label="below the difference of\ntwo reference solutions")
        axis.set_ylim(bottom=min((r.error for r in results if r.error), default=difference) / 3)
        axis.set(title=f"{problem.title}, to t = {problem.time:g}", xlabel="wall time in s",
                 ylabel="relative L2 error")
    for axis in axes.flat[len(found):]:
        axis.set_visible(False)
    figure.suptitle("Exponential schemes (solid), implicit-explicit ones (dashed), SciPy's and "
                    "diffrax's (dash-dotted);\nadaptive steps of this package are dotted",
                    fontsize="medium")
    legend(figure, axes.flat[0], "right center")
    return save(figure, path)


# Beside a step written out


def bare_etdrk4(problem: Problem, u: Tensor, steps: int, h: float, *, inside: bool) -> Tensor:
    """The scheme of Cox and Matthews (2002) for one Circulant J, with nothing around it.

    Args:
        problem (Problem): The problem.
        u (Tensor): The initial states.
        steps (int): The number of steps.
        h (float): Their size.
        inside (bool): Whether G is evaluated on Fourier coefficients, instead of on states.
    """
    n, G = u.size(-1), problem.explicit

    def N(t: Tensor, v: Tensor) -> Tensor:
        if inside:
            found: Tensor = G.of_coefficients(t, v)
            return found
        return torch.fft.rfft(G(t, torch.fft.irfft(v, n)))

    z = h * problem.implicit.symbol(u).to(torch.complex128)
    half, whole = phi_functions(z / 2, 2), phi_functions(z, 4)
    E, E2, Q = whole[0], half[0], h / 2 * half[1]
    f1 = h * (whole[1] - 3 * whole[2] + 4 * whole[3])
    f2, f3 = h * (2 * whole[2] - 4 * whole[3]), h * (4 * whole[3] - whole[2])
    t, v = torch.zeros((), dtype=u.dtype), torch.fft.rfft(u)
    for _ in range(steps):
        Nv = N(t, v) if inside else torch.fft.rfft(G(t, u))
        a = E2 * v + Q * Nv
        Na = N(t, a)
        b = E2 * v + Q * Na
        Nb = N(t, b)
        c = E2 * a + Q * (2 * Nb - Nv)
        Nc = N(t, c)
        v = E * v + f1 * Nv + f2 * (Na + Nb) + f3 * Nc
        u = torch.fft.irfft(v, n)
    return u


def beside_bare(record: Record, args: argparse.Namespace) -> None:
    """A step of the package over ones written out, in CPU seconds of alternating runs."""
    table = []
    for points, states, steps in ((64, 1, 400), (512, 1, 400), (64, 256, 40), (512, 256, 8)):
        problem = small_ks(points, 1.0, args.seed, before=2.0)
        u = problem.u0.expand(states, -1).contiguous() * torch.linspace(
            0.9, 1.1, states, dtype=torch.float64).unsqueeze(1)
        count = 3 if args.quick else steps
        times, ratios = torch.tensor([0.0, 0.1 * count], dtype=torch.float64), []
        for _ in range(3 if args.quick else 4 * args.repeats):
            bare, inside = (cpu_seconds(lambda u=u, p=problem, n=count, inside=inside: bare_etdrk4(
                p, u, n, 0.1, inside=inside)) for inside in (False, True))
            own = cpu_seconds(lambda u=u, p=problem, t=times: imex_odeint(
                p.explicit, p.implicit, u, t, method="etdrk4", step_size=0.1)[-1])
            ratios.append((own[0] / bare[0], own[0] / inside[0], bare[0] / count))
            assert float((own[1] - bare[1]).abs().max()) < 1e-9 * float(u.abs().max())
        over_bare, over_inside = (statistics.median(r[k] for r in ratios) for k in (0, 1))
        step = min(r[2] for r in ratios)
        record.add(kind="bare", points=points, states=states, ratio=over_bare, bare_step=step,
                   over_inside=over_inside)
        table.append([points, states, f"{1e3 * step:.2f}", f"{over_bare:.2f}",
                      f"{over_inside:.2f}"])
    print_table(("points", "states", "step by hand in ms", "package over by hand",
                 "over by hand on coefficients"), table)
    print(flush=True)


# Beside TorchFSM


def beside_torchfsm(record: Record, args: argparse.Namespace) -> None:
    """A step of TorchFSM's scheme of the same kind over one of the package."""
    if not torchfsm_etdrk.is_installed():
        print("TorchFSM is not installed: it is left out\n")
        return
    table = []
    for case in torchfsm_etdrk.CASES[:1 if args.quick else None]:
        found = torchfsm_etdrk.compare(case, args.seed, 2 if args.quick else 2 * args.repeats)
        record.add(kind="torchfsm", **found)
        table.append([case.name, " x ".join(map(str, case.shape)), case.states,
                      f"{found['theirs']:.2f}", f"{found['ours']:.2f}", f"{found['ratio']:.1f}"])
    print_table(("equation", "points", "states", "TorchFSM, ms a step", "package, ms",
                 "ratio"), table)
    print(flush=True)


# Many states at once


def batch(record: Record, args: argparse.Namespace) -> None:
    """The time of many states in one call, over that of SciPy's solvers one after another."""
    table = []
    for name in [n for n in args.problems if n.startswith("ks")]:
        problem = make_problem(name, args)
        few = 1 if args.quick else 3  # whose errors are measured, and which SciPy integrates
        states = several(problem, args)
        truth = states_at_end(problem, states[:few], "ark548l2sa", rtol=1e-10, atol=1e-10)
        for target in TARGETS:
            other = scipy_seconds(problem, states[:few], truth, target, args)
            total = None if other is None else other * len(states)
            for method in ("etdrk4", "sbdf4"):
                own, step = fastest(problem, states, truth, target, method)
                ratio = None if own is None or total is None else total / own
                record.add(kind="batch", problem=name, target=target, method=method, seconds=own,
                           step=step, scipy=total, ratio=ratio)
                table.append([name, f"{target:.0e}", method, number(own), number(step),
                              number(total), number(ratio)])
    print_table(("problem", "error", "scheme", "all states, s", "step",
                 "SciPy's best times the states, s", "ratio"), table)
    print(flush=True)


def several(problem: Problem, args: argparse.Namespace) -> Tensor:
    """States on the attractor: one trajectory at many times."""
    count = 4 if args.quick else args.states
    t = torch.arange(count, dtype=torch.float64) * 5.0
    return imex_odeint(problem.explicit, problem.implicit, problem.u0, t, method="etdrk4s",
                       step_size=0.1)


def states_at_end(problem: Problem, states: Tensor, method: str, **options: Any) -> Tensor:
    times = torch.tensor([0.0, problem.time], dtype=torch.float64)
    return imex_odeint(problem.explicit, copy.deepcopy(problem.implicit), states, times,
                       method=method, **options)[-1]


def fastest(problem: Problem, states: Tensor, truth: Tensor, target: float, method: str
            ) -> tuple[float | None, float | None]:
    """The time with the largest step whose median error is below the target, and that step."""
    factors = (0.7, 0.8, 0.9, 1.0)
    for count in sorted(round(c * factor) for c in problem.counts for factor in factors):
        step = problem.time / count
        start = time.perf_counter()
        found = states_at_end(problem, states, method, step_size=step)
        seconds = time.perf_counter() - start
        errors = (found[:len(truth)] - truth).norm(dim=1) / truth.norm(dim=1)
        if float(errors.median()) <= target:
            return seconds, step
    return None, None


def scipy_seconds(problem: Problem, states: Tensor, truth: Tensor, target: float,
                  args: argparse.Namespace) -> float | None:
    """The mean time of one state by the best of SciPy's solvers with the loosest tolerance."""
    best = math.inf
    for method in ("BDF", "Radau"):
        for tolerance in (10.0**-k for k in range(2, 10)):
            spent, errors = [], []
            for u0, end in zip(states, truth, strict=True):
                own = Problem(**{**vars(problem), "u0": u0})
                start = time.perf_counter()
                state = stiff_scipy(method, own, tolerance, Work(args.time_limit))().state
                spent.append(time.perf_counter() - start)
                errors.append(relative_error(state, end))
            if statistics.median(errors) <= target:
                best = min(best, statistics.mean(spent))
                break
    return None if best == math.inf else best
