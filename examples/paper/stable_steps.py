"""What is the largest stable step of every system on every problem, and what does accuracy cost?

A step is stable where the state stays bounded over many steps from an initial state with a little
noise in it, and these take no longer than the limit.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from drawing import legend, save, style
from figures import plt
from graphs import PROBLEMS, GraphODE, load, make_network, nc, with_split
from measuring import FAILURES, Record, TimeLimitError, Work, markdown, number, reason, write
from systems import SYSTEMS, Equation, System
from torch import Tensor
from tqdm import tqdm

from pyg_sinode import imex_odeint
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky, viscous_burgers


@dataclass(frozen=True)
class Case:
    """A problem to be stable on.

    Attributes:
        name: In tables and options.
        equation: The right-hand side.
        u0: The state at time 0.
        time: The final time at which the error counts.
        bound: The size that no entry of a stable solution exceeds at a time.
        paper: The paper's step of explicit systems, and of the others.
    """

    name: str
    equation: Equation
    u0: Tensor
    time: float
    bound: Callable[[float], float]
    paper: tuple[float, float]


@dataclass
class Found:
    """What was found of a system on a problem; nan where nothing was.

    Attributes:
        stable: The largest stable step; infinite: stable at the largest tried.
        limit: What ended the step beyond, or the search.
        tried: The largest step that was looked at.
        steps: The fewest with an error below 1 %.
        step: Of what size.
        evaluations: Of such an integration.
        error: Its relative error.
    """

    stable: float = math.nan
    limit: str = ""
    tried: float = math.nan
    steps: float = math.nan
    step: float = math.nan
    evaluations: float = math.nan
    error: float = math.nan


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    record, parts, everything = Record(args.out / "stable_steps.jsonl", args), [], {}
    for name in args.problems:
        case = CASES[name](args)
        with torch.no_grad():
            truth = reference(case, args)
            found = {}
            for system in tqdm([SYSTEMS[s] for s in args.systems], desc=name, leave=False,
                               disable=None):
                found[system.name] = examine(case, system, truth, args)
                record.add(problem=name, system=system.name, **vars(found[system.name]))
        everything[name] = found
        parts.append(f"**{name}**, final time {case.time:g}\n\n{table(case, found)}")
        write(args.out / "stable_steps.md", "\n\n".join(parts))
    plot(args.out / "stable_steps.png", everything)


def examine(case: Case, system: System, truth: Tensor, args: argparse.Namespace) -> Found:
    """The largest stable step, and the fewest steps that are accurate."""
    found = Found()
    if system.kind == "adaptive":
        work = Work(args.limit)
        try:
            error = error_of(case, system, case.time, truth, work)
            found.evaluations, found.error = work.totals()["evaluations"], error
        except FAILURES as failure:
            found.limit = reason(failure)
        return found
    found.tried = 64 * case.paper[1]
    found.stable, found.limit = largest_stable_step(
        partial(is_stable, case, system, args), 1e-8, found.tried, args.tolerance)
    fewest_steps(case, system, truth, args, found)
    return found


def largest_stable_step(failure_at: Callable[[float], str | None], low: float, high: float,
                        rtol: float = 0.02) -> tuple[float, str]:
    """The largest step without a failure, to rtol, by bisection of its logarithm.

    Args:
        failure_at: What is wrong with a step size; None if nothing is.
        low: The smallest step size that is looked at.
        high: The largest; infinity is returned where it does not fail.
        rtol: How far apart a step that fails and one that does not may be.

    Returns:
        The step size (nan where even the smallest fails), and the failure beyond.
    """
    failure = failure_at(high)
    if failure is None:
        return math.inf, ""
    # From above, so that no time is lost with steps far too small.
    step = high
    while failure is not None:
        high, last = step, failure
        step = high / 4
        if step < low:
            return math.nan, last
        failure = failure_at(step)
    low = step
    while high > low * (1 + rtol):
        middle = math.sqrt(low * high)
        failure = failure_at(middle)
        if failure is None:
            low = middle
        else:
            high, last = middle, failure
    return low, last


def is_stable(case: Case, system: System, args: argparse.Namespace, step: float) -> str | None:
    """What is wrong with a step size; None if the state stays bounded."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(case.u0.shape, generator=generator, dtype=case.u0.dtype)
    u = case.u0 + 1e-2 * case.u0.std() * noise
    t = torch.tensor([0.0, args.steps * step], dtype=torch.float64)
    try:
        u = system.integrate(case.equation, u, t, step, Work(args.limit))[-1]
    except FAILURES as error:
        return reason(error)
    size = float(u.abs().max())
    return None if size <= case.bound(float(t[-1])) else f"the state grows to {size:.1e}"


def fewest_steps(case: Case, system: System, truth: Tensor, args: argparse.Namespace,
                 found: Found) -> None:
    """By doubling, then bisection: errors fall with the number of steps from some number on."""
    def error(count: int) -> float:
        work = Work(args.limit)
        try:
            value = error_of(case, system, case.time / count, truth, work)
        except TimeLimitError:
            raise
        except FAILURES:
            return math.inf
        if value <= args.error:
            found.steps, found.step, found.error = count, case.time / count, value
            found.evaluations = sum(work.totals()[k] for k in ("evaluations", "jvps", "vjps"))
        return value

    low, high = 0, 1
    try:
        while error(high) > args.error:
            low, high = high, 2 * high
            if high > args.most_steps:
                return
        while high - low > max(1, high // 50):
            middle = (low + high) // 2
            low, high = (low, middle) if error(middle) <= args.error else (middle, high)
    except TimeLimitError:
        return


def error_of(case: Case, system: System, step: float, truth: Tensor, work: Work) -> float:
    """The relative error of the final state."""
    t = torch.tensor([0.0, case.time], dtype=torch.float64)
    u = system.integrate(case.equation, case.u0, t, step, work)[-1]
    return float((u - truth).norm() / truth.norm())


def reference(case: Case, args: argparse.Namespace) -> Tensor:
    """The final state at a tight tolerance."""
    t = torch.tensor([0.0, case.time], dtype=torch.float64)
    rtol = 1e-5 if args.quick or case.u0.dtype == torch.float32 else 1e-7
    return imex_odeint(case.equation.explicit, case.equation.implicit, case.u0, t, rtol=rtol,
                       atol=rtol * float(case.u0.abs().max()), args=case.equation.args)[-1]


# The problems


def graph_case(name: str, args: argparse.Namespace) -> Case:
    """A network trained for some epochs with imex_rk2 at step 1, in evaluation."""
    problem = PROBLEMS[name]
    data, _ = load(problem, args.root, args.out / "data")
    data = with_split(problem, data, args.seed)
    model = GraphODE(make_network(problem, data, args.seed), SYSTEMS["imex_rk2"], 1.0)
    settings = problem.settings
    optimizer = getattr(torch.optim, settings.optimizer)(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    for _ in tqdm(range(args.epochs), desc=f"{name}: training", leave=False, disable=None):
        nc.train_epoch(model, optimizer, data)
    model.eval()
    with torch.no_grad():
        u0 = model.net.encode(data.x)
        beta = model.net.conv.term.beta
        growth, size = 0.0 if beta is None else abs(float(beta)), float(u0.abs().max())
        # A column-stochastic A may gather all that the columns have in a few nodes.
        return Case(name, model.equation(u0, data.edge_index), u0, settings.time,
                    lambda t: 100 * (1 + growth * t) * size, (0.005, 1.0))


def ks_case(points: int, args: argparse.Namespace) -> Case:
    """Four states on the attractor; the true G."""
    grid = PeriodicGrid(points, 22.0)
    explicit, implicit, initial = kuramoto_sivashinsky(grid, discretization="finite_difference")
    u0 = initial(4, torch.Generator().manual_seed(args.seed))
    u0 = imex_odeint(explicit, implicit, u0, torch.tensor([0.0, 50.0]), method="ark436l2sa",
                     step_size=0.05)[-1]
    return Case(f"ks-{points}", Equation(explicit, implicit, (), -1), u0, 2.0,
                lambda t: 10.0, (0.001, 0.2))


def burgers_case(points: int, args: argparse.Namespace) -> Case:
    """Four random initial states; the true G."""
    grid = PeriodicGrid(points, 1.0)
    explicit, implicit, initial = viscous_burgers(grid, 8e-4, discretization="finite_difference")
    u0 = initial(4, torch.Generator().manual_seed(args.seed))
    size = float(u0.abs().max())
    return Case(f"burgers-{points}", Equation(explicit, implicit, (), -1), u0, 0.5,
                lambda t: 3 * size, (0.001 if points < 1024 else 0.0005, 0.05))


CASES: dict[str, Callable[[argparse.Namespace], Case]] = {
    **{name: partial(graph_case, name) for name in PROBLEMS},
    **{f"ks-{n}": partial(ks_case, n) for n in (64, 512)},
    **{f"burgers-{n}": partial(burgers_case, n) for n in (512, 1024)},
}


# The report


def table(case: Case, found: dict[str, Found]) -> str:
    """The table of a problem in Markdown."""
    rows = []
    for name, f in found.items():
        kind = SYSTEMS[name].kind
        paper = "own" if kind == "adaptive" else f"{case.paper[kind != 'explicit']:g}"
        stable = f"{f.tried:g} or more" if math.isinf(f.stable) else number(f.stable)
        rows.append([name, paper, stable, f.limit.split(",")[0], number(f.steps, 6), number(f.step),
                     number(f.evaluations, 6), "-" if math.isnan(f.error) else f"{f.error:.1e}"])
    return markdown(["system", "paper's step", "largest stable step", "beyond it",
                     "steps with an error below 1 %", "of size", "evaluations", "error"], rows)


def plot(path: Path, everything: dict[str, dict[str, Found]]) -> None:
    """The largest stable and the largest accurate step of each system, a panel for each problem."""
    figure, axes = plt.subplots(1, len(everything), figsize=(2.5 * len(everything) + 1.5, 3.8),
                                sharey=True, squeeze=False)
    stable = dict(style(0, 8, 0), linestyle="none", markersize=7)
    accurate = dict(style(1, 0, 0), linestyle="none", markersize=6)
    for axis, (name, found) in zip(axes[0], everything.items(), strict=True):
        rows = [n for n in found if SYSTEMS[n].kind != "adaptive"]
        y = np.arange(len(rows))
        axis.plot([min(found[n].stable, found[n].tried) for n in rows], y - 0.12, **stable,
                  label="largest stable step, of those up to 64 times the paper's")
        axis.plot([found[n].step for n in rows], y + 0.12, **accurate,
                  label="largest step with an error below 1 % at the final time")
        axis.set(xscale="log", title=name, xlabel="step size,\ndimensionless", yticks=y,
                 ylim=(len(rows) - 0.5, -0.5))
        axis.set_yticklabels(rows)
    legend(figure, axes[0, 0], "lower center")
    figure.suptitle("How large may equal steps be?")
    save(figure, path)
