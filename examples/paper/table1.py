"""What do the paper's systems cost on graphs? Its Table 1 and Figure 1, measured.

"Evaluations" are those of G in the forward passes, and products with its derivatives in both.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from drawing import legend, note, save
from figures import plt
from graphs import PROBLEMS, GraphODE, GraphProblem, load, make_network, nc, with_split
from measuring import DivergedError, Record, Work, markdown, number, write
from race import Training, race
from solver_styles import LEGEND, marked_line
from systems import SYSTEMS, System, count_evaluations
from torch_geometric.data import Data

EXPLICIT_STEP, STEP = 0.005, 1.0  # the paper's
LONG = 500  # evaluations of an integration that is not run in full
SHORT = (4, 12)  # steps of the integrations that stand for it
KEPT = 10_000_000  # edges times evaluations of an integration that keep their graphs: a few GiB


@dataclass
class Entry:
    """A system with a step: a row of the table.

    Attributes:
        system: The solver.
        step_size: Its step.
        listed: Whether the paper's table has it, at this step.
        trainings: One; or two with fewer steps, for an epoch that is too long to run.
        evaluations: Of G in a training epoch: those of the forward pass, and products with
            derivatives in both.
        products: Of J in a training epoch.
        test_evaluations: Of G when the network is tested.
        best: The best validation accuracy so far, and the test accuracy with it, in %.
    """

    system: System
    step_size: float
    listed: bool
    trainings: list[Training] = field(default_factory=list)
    evaluations: float = math.nan
    products: float = math.nan
    test_evaluations: float = math.nan
    best: tuple[float, float] = (-1.0, math.nan)

    @property
    def label(self) -> str:
        if self.system.kind == "adaptive":
            return self.system.name
        return f"{self.system.name}, step {self.step_size:g}"


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    record, parts = Record(args.out / "table1.jsonl", args), []
    for name in args.datasets:
        problem = PROBLEMS[name]
        data, source = load(problem, args.root, args.out / "data")
        data = with_split(problem, data, args.seed)
        entries = make_entries(args)
        run_entries(args, problem, data, entries)
        for entry in entries:
            record.add(dataset=name, source=source, label=entry.label, **columns(entry, problem),
                       trainings=[t.plain() for t in entry.trainings])
        title = f"{name} ({source}, {data.num_nodes} nodes, {data.num_edges} directed edges)"
        plot(args.out / f"table1-{name}.png", title, entries)
        parts.append(f"**{title}**\n\n" + table(entries, problem))
        write(args.out / "table1.md", "\n\n".join(parts))


def make_entries(args: argparse.Namespace) -> list[Entry]:
    """The paper's rows, then those of --also."""
    step = {"explicit": EXPLICIT_STEP}
    entries = [Entry(SYSTEMS[name], step.get(SYSTEMS[name].kind, STEP), listed=True)
               for name in args.systems]
    pairs = (pair.split("=") for pair in args.also)
    return entries + [Entry(SYSTEMS[name], float(h), listed=False) for name, h in pairs]


def run_entries(args: argparse.Namespace, problem: GraphProblem, data: Data,
                entries: Sequence[Entry]) -> None:
    """Trains all entries by turns."""
    for entry in entries:
        time = problem.settings.time
        t = torch.tensor([0.0, time], dtype=torch.float64)
        count = (count_evaluations(entry.system, t, entry.step_size)
                 if entry.system.kind == "explicit" else 0)
        if count > LONG:
            entry.evaluations = entry.products = 2 * count
            entry.test_evaluations = count
            entry.trainings = [make_training(args, problem, data, entry, steps) for steps in SHORT]
        else:
            entry.trainings = [make_training(args, problem, data, entry)]
    race([t for entry in entries for t in entry.trainings], args.epochs or problem.settings.epochs,
         args.budget, problem.name, args.repeats)


def make_training(args: argparse.Namespace, problem: GraphProblem, data: Data, entry: Entry,
                  steps: int | None = None) -> Training:
    """The training of an entry, or of a few of its steps to be timed."""
    settings = problem.settings
    time = None if steps is None else steps * entry.step_size
    model = GraphODE(make_network(problem, data, args.seed), entry.system, entry.step_size, time)
    optimizer = getattr(torch.optim, settings.optimizer)(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    epochs = iter(range(1 << 30))

    def epoch() -> float:
        # The same dropout for all systems, whatever they draw otherwise.
        torch.manual_seed(1000 * args.seed + next(epochs))
        model.work = Work(args.limit, kept=KEPT // data.num_edges)
        loss = nc.train_epoch(model, optimizer, data)
        if not math.isfinite(loss):
            raise DivergedError(f"a loss of {loss}")
        if steps is None:
            total = model.work.totals()
            entry.evaluations = forward_cost(model.forward_work) + sum(
                total[key] - model.forward_work[key] for key in ("jvps", "vjps"))
            entry.products = total["products"]
        return loss

    def test() -> float:
        if steps is not None:
            return math.nan
        model.work = Work(args.limit)
        found = nc.evaluate(model, data)
        val, accuracy = 100 * found["val"], 100 * found["test"]
        entry.test_evaluations = forward_cost(model.work.totals())
        entry.best = max(entry.best, (val, accuracy), key=lambda pair: pair[0])
        return accuracy

    return Training(entry.label, epoch, test, epochs=None if steps is None else args.repeats)


def forward_cost(work: dict[str, int]) -> int:
    """Evaluations of G, and products with its derivatives, which cost about as much."""
    return work["evaluations"] + work["jvps"] + work["vjps"]


def columns(entry: Entry, problem: GraphProblem) -> dict[str, float | str | None]:
    """What the table says of an entry."""
    training = entry.trainings[0]
    return {"with_test": entry.evaluations + entry.test_evaluations,
            "paper": problem.evaluations.get(entry.system.name) if entry.listed else None,
            "training": entry.evaluations, "products": entry.products,
            "seconds": seconds(entry, problem), "repetitions": len(training.seconds),
            "estimated": len(entry.trainings) > 1, "accuracy": entry.best[1],
            "failure": training.failure}


def seconds(entry: Entry, problem: GraphProblem) -> float:
    """Of an epoch: the median; or a straight line through those with few steps."""
    if len(entry.trainings) == 1:
        return entry.trainings[0].median()
    few, more = (t.median() for t in entry.trainings)
    steps = math.ceil(problem.settings.time / entry.step_size - 1e-6)
    return few + (more - few) / (SHORT[1] - SHORT[0]) * (steps - SHORT[0])


def table(entries: Sequence[Entry], problem: GraphProblem) -> str:
    """The table in Markdown."""
    found = [columns(entry, problem) for entry in entries]
    unit = next((c["seconds"] for e, c in zip(entries, found, strict=True)
                 if e.system.name == "imex_rk2"), math.nan)
    rows = [[entry.label, number(c["with_test"], 6), number(c["paper"], 6),
             number(c["training"], 6), number(c["products"], 6),
             ("about " if c["estimated"] else "") + number(c["seconds"]), c["repetitions"],
             number(c["seconds"] / unit), number(c["accuracy"]), c["failure"] or ""]
            for entry, c in zip(entries, found, strict=True)]
    return markdown(["system", "evaluations an epoch, with the test", "paper", "training only",
                     "products of J", "seconds an epoch", "epochs timed", "to imex_rk2",
                     "test accuracy reached", "failed"], rows)


def plot(path: Path, title: str, entries: Sequence[Entry]) -> None:
    """Test accuracy against training time."""
    figure, axis = plt.subplots(figsize=(8.5, 4.6))
    without, others = [], Counter[str]()
    for entry in entries:
        others[entry.system.name] += not entry.listed
        curve = np.array(entry.trainings[0].curve).reshape(-1, 3)
        if len(entry.trainings) > 1 or not len(curve):
            why = "fails" if entry.trainings[0].failure else "an epoch is too long"
            without.append(f"{entry.label}: {why}")
            continue
        failed = " (fails later)" if entry.trainings[0].failure else ""
        axis.plot(curve[:, 0], curve[:, 2], label=entry.label + failed,
                  **marked_line(entry.system.name, len(curve), others[entry.system.name]))
    axis.set(xscale="log", xlabel="training time in s", ylabel="test accuracy in %",
             title=f"Accuracy against training time\n{title}")
    axis.tick_params(axis="x", which="minor", labelbottom=False)
    legend(figure, axis, "right upper", title=LEGEND)
    note(figure, [f"without a line: {'; '.join(without)}"] * bool(without))
    save(figure, path)
