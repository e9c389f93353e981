"""What does an epoch on the paper's grid problems cost by each system? Table 2, figures 3 to 6."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from grid_figures import plot_losses, plot_rollout
from grids import PROBLEMS, GridProblem, mean_square, resized
from measuring import (
    FAILURES,
    KEPT,
    DivergedError,
    Record,
    Work,
    environment,
    markdown,
    number,
    write,
)
from race import Training, race
from systems import SYSTEMS, System, count_evaluations
from torch import Tensor, nn

TARGET = 1e-3  # the training loss that the paper times on Kuramoto-Sivashinsky
# Evaluations an epoch, arXiv:2412.11301, table 2.
PAPER = {
    "dopri5": ("12619", "diverges", "22819", "45619"),
    "rk4": ("24000", "diverges", "15200", "30400"),
    "crank_nicolson": ("3195", "fails", "13072", "11883"),
    "imex_rk2": ("60", "60", "152", "152"), "imex_rk3": ("120", "120", "304", "304"),
    "imex_rk4": ("180", "180", "456", "456"), "imex_rk5": ("240", "240", "608", "608"),
}
# Its text: on which problem; the time to the target or of an epoch, or the loss after as many
# turns; of which system over that of which other; how many times.
CLAIMS = (
    ("ks-64", "target", "dopri5", "imex_rk2", 47.0),
    ("ks-64", "target", "crank_nicolson", "imex_rk2", 33.0),
    ("ks-64", "epoch", "imex_rk5", "imex_rk2", 2.5),
    ("ks-512", "epoch", "imex_rk5", "imex_rk2", 5.0),
    ("burgers-512", "epoch", "rk4", "imex_rk3", 6.0),
    ("burgers-1024", "epoch", "rk4", "imex_rk3", 10.0),
    ("burgers-512", "epoch", "crank_nicolson", "imex_rk3", 3.4),
    ("burgers-1024", "epoch", "crank_nicolson", "imex_rk3", 2.0),
    ("burgers-512", "loss", "crank_nicolson", "imex_rk3", math.nan),  # "slower", without a number
    ("burgers-1024", "loss", "crank_nicolson", "imex_rk3", math.nan),
)
HEADER = ("system", "step", "evaluations an epoch", "paper's", "products of J an epoch",
          "seconds an epoch", "turns", "times imex_rk2", f"seconds to loss {TARGET:g}",
          "last loss", "failure")


@dataclass(frozen=True)
class Row:
    """A system at a step size; the paper's evaluations where it has them."""

    label: str
    system: System
    step: float
    paper: str = "-"


class Trainer:
    """Trains one network through one system, some batches a turn."""

    def __init__(self, problem: GridProblem, row: Row, states: Tensor, args: argparse.Namespace
                 ) -> None:
        self.problem, self.row, self.states, self.args = problem, row, states, args
        self.model = problem.model(args.seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=args.lr)
        self.evaluations: list[int] = []  # of each batch, by the paper's convention
        self.products: list[int] = []

    def turn(self) -> float:
        """The mean loss of the batches of a turn."""
        return statistics.fmean(self.batch() for _ in range(turn_of(self.problem, self.args)))

    def batch(self) -> float:
        states = self.problem.batch(self.states, self.args.seed, len(self.evaluations))
        work = Work(self.args.limit)
        self.optimizer.zero_grad()
        forward = self.gradient(states, self.problem.t, work)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        if not bool(norm.isfinite()):
            raise DivergedError("the gradient is not finite")
        self.optimizer.step()
        total = work.totals()
        self.evaluations.append(forward["evaluations"] + total["jvps"] + total["vjps"])
        self.products.append(total["products"])
        return self.loss

    def gradient(self, states: Tensor, t: Tensor, work: Work) -> dict[str, int]:
        """Adds to the gradients those of a batch's loss; what the forward pass alone took."""
        found = self.row.system.integrate(self.problem.split(self.model), states[:, 0], t,
                                          self.row.step, work)
        forward, loss = work.totals(), mean_square(found[-1], states[:, 1])
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise DivergedError("the loss is not finite")
        loss.backward()
        return forward


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    path = args.out / "table2.jsonl"
    finished = {} if args.restart else read_finished(path, args)
    record, rows = Record(path, args), {}
    for name in PROBLEMS:
        if name not in args.problems and name not in finished:
            continue
        rows[name] = finished.get(name) or run_problem(name, args)
        for row in rows[name]:
            record.add(**row)
        record.add(finished=name)
        plot_losses(args.out / f"table2-{name}-loss.png", name, rows[name],
                    TARGET if name.startswith("ks") else None)
        write(args.out / "table2.md", text(rows, args))


def run_problem(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains all systems on a problem, draws a prediction, and gives the rows of its table."""
    problem = resized(PROBLEMS[name], args.points, args.batch_size, args.trajectories,
                      args.duration)
    states = problem.states(args.root, "train")
    trainers = [Trainer(problem, row, states, args) for row in rows_of(problem, args)]
    trainings = [Training(trainer.row.label, trainer.turn) for trainer in trainers]
    turns = math.ceil(args.epochs * problem.batches / turn_of(problem, args))
    race(trainings, turns, args.budget, name, args.repeats, "batch" if args.turn == 1 else "turn"
         if args.turn else "epoch")
    found = [measured(a, b) for a, b in zip(trainers, trainings, strict=True)]
    reference = {r.name: r for r in trainings}.get("imex_rk2")
    for values, training in zip(found, trainings, strict=True):
        values["ratio"] = ratio(values, training, reference, problem, args)
    for trainer in trainers:
        if trainer.row.label == "imex_rk2":
            plot_rollout(args.out / f"table2-{name}-prediction.png", problem, trainer.row,
                         trainer.model,
                         {"trained on": states[:1],
                          "held out": problem.states(args.root, "test")[:1]},
                         len(trainer.evaluations))
    return found


def rows_of(problem: GridProblem, args: argparse.Namespace) -> list[Row]:
    """Every system at the paper's step, and some at a step that does them more justice."""
    place = list(PROBLEMS).index(problem.name)
    rows = []
    for name in args.systems:
        system, step = SYSTEMS[name], problem.step_size(SYSTEMS[name])
        rows.append(Row(name, system, step, PAPER[name][place] if name in PAPER else "-"))
        if system.kind == "explicit":
            rows.append(Row(f"{name}, largest stable step", system, problem.stable_step(system)))
        if name == "crank_nicolson" and problem.name == "ks-512":
            rows.append(Row("crank_nicolson, smaller step", system, 0.02))
    return rows


def measured(trainer: Trainer, training: Training) -> dict[str, Any]:
    """What is known of a system after the race."""
    problem, row, args = trainer.problem, trainer.row, trainer.args
    scale = problem.batches / turn_of(problem, args)
    values = {"problem": problem.name, "system": row.label, "paper": row.paper,
              "step": None if math.isnan(row.step) else row.step,
              "evaluations": an_epoch(trainer.evaluations, problem.batches),
              "products": an_epoch(trainer.products, problem.batches),
              "seconds": training.median() * scale if training.seconds else None,
              "about": False, "turns": len(training.seconds), "failure": training.failure,
              "loss": training.curve[-1][1] if training.curve else None,
              "to_target": next((s for s, loss, _ in training.curve if loss <= TARGET), None),
              "curve": [point[:2] for point in training.curve]}
    slow = training.failure is not None and "longer than" in training.failure
    if slow and not training.seconds and row.system.kind == "explicit":
        evaluations = evaluations_of(problem, row)
        # Of the right-hand side, and as many products with its derivatives.
        values["evaluations"] = values["products"] = 2 * evaluations * problem.batches
        values["seconds"], values["about"] = estimated(trainer, evaluations), True
    return values


def an_epoch(of_batches: list[int], batches: int) -> float | None:
    """The counts of an epoch: of one batch many times where all are alike, else about."""
    return statistics.fmean(of_batches) * batches if of_batches else None


def evaluations_of(problem: GridProblem, row: Row) -> int:
    """Of a forward pass by equal steps: of any steps after the first few, each has as many."""
    steps = math.ceil(problem.interval / row.step * (1 - 1e-12))
    few = min(steps, 20)
    first, second = (count_evaluations(row.system, problem.t.new_tensor([0.0, n * row.step]),
                                       row.step) for n in (few, few + 1))
    return first + (steps - few) * (second - first)


def estimated(trainer: Trainer, evaluations: int, steps: int = 4) -> float | None:
    """Seconds of an epoch, from a window of few steps of the same size."""
    problem, step = trainer.problem, trainer.row.step
    states = problem.batch(trainer.states, trainer.args.seed, 0)
    t = problem.t.new_tensor([0.0, steps * step])
    share = count_evaluations(trainer.row.system, t, step) / evaluations
    start, work = time.perf_counter(), Work(kept=share * KEPT)
    try:
        trainer.gradient(states, t, work)
    except FAILURES:
        return None
    return (time.perf_counter() - start) / share * problem.batches


def ratio(values: dict[str, Any], training: Training, reference: Training | None,
          problem: GridProblem, args: argparse.Namespace) -> float | None:
    """Seconds over those of imex_rk2 in the same turns."""
    if reference is None or not reference.seconds or values["seconds"] is None:
        return None
    turns = min(len(training.seconds), len(reference.seconds)) or len(reference.seconds)
    scale = problem.batches / turn_of(problem, args)
    seconds = (values["seconds"] if values["about"]
               else statistics.median(training.seconds[:turns]) * scale)
    return seconds / (statistics.median(reference.seconds[:turns]) * scale)


def turn_of(problem: GridProblem, args: argparse.Namespace) -> int:
    """How many batches a turn has."""
    return args.turn or problem.batches


def read_finished(path: Path, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The rows of the problems that were finished on the same machine with the same settings."""
    if not path.exists():
        return {}
    first, *lines = map(json.loads, path.read_text().splitlines())
    if comparable(first["environment"]) != comparable(environment(args)):
        return {}
    names = [line["finished"] for line in lines if "finished" in line]
    return {name: [line for line in lines if line.get("problem") == name] for name in names}


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """An environment without what changes no measurement."""
    free = ("out", "root", "restart", "problems")
    return found | {"settings": {k: v for k, v in found["settings"].items() if k not in free}}


def text(rows: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> str:
    """The tables of the problems and of the claims."""
    found = environment(args)
    turn = f"{args.turn} batch" + "es" * (args.turn > 1) if args.turn else "an epoch"
    parts = [
        f"# Table 2\n\n{found['processor']}, {found['system']}, Python {found['python']}, PyTorch "
        f"{found['torch']}, torchdiffeq {found['torchdiffeq']}; threads: {found['threads']}; seed "
        f"{args.seed}.\n\nEvaluations: of G forward and products with its derivatives in both "
        "passes. Seconds: the median of the turns, in which each system trains for "
        f"{turn}, scaled to an epoch; the ratio is over the turns that both systems had. About: "
        f"the integration of a batch was ended after {args.limit:g} s, so the evaluations follow "
        "from the steps, and the seconds from a window of 4 steps."]
    if "implicit_adams" in args.systems:
        parts.append(
            "The Adams methods of torchdiffeq begin with steps of rk4, here two: at the paper's "
            "steps, one or two in a window, implicit_adams never comes to a step of its own.")
    for name, values in rows.items():
        parts += [f"## {name}", markdown(HEADER, map(cells, values))]
    claims = [line for claim in CLAIMS if (line := claimed(rows, args, *claim))]
    if claims:
        parts += ["## The paper's claims of speed",
                  markdown(("problem", "ratio", "paper", "measured"), claims)]
    return "\n\n".join(parts)


def cells(values: dict[str, Any]) -> tuple[str, ...]:
    about = "about " if values["about"] else ""
    return (values["system"], number(values["step"]), number(values["evaluations"], 5),
            values["paper"], number(values["products"], 5),
            about * (values["seconds"] is not None) + number(values["seconds"]),
            str(values["turns"]),
            about * (values["ratio"] is not None) + number(values["ratio"]),
            number(values["to_target"]), number(values["loss"]), values["failure"] or "")


def claimed(rows: dict[str, list[dict[str, Any]]], args: argparse.Namespace, name: str, what: str,
            slow: str, fast: str, times: float) -> tuple[str, ...] | None:
    """The paper's ratio of two systems beside the measured one; None where one has not run."""
    found = {values["system"]: values for values in rows.get(name, ())}
    if slow not in found or fast not in found:
        return None
    a, b = found[slow], found[fast]
    if what == "loss":
        turns = min(len(a["curve"]), len(b["curve"]))
        after = "a batch" if args.turn == 1 else f"{args.turn} batches" if args.turn else "an epoch"
        label = f"loss of {slow} / {fast} after {turns} turns of {after}"
        losses = [x["curve"][turns - 1][1] if turns else math.nan for x in (a, b)]
        return name, label, "more than 1", number(losses[0] / losses[1])
    label = f"seconds of {slow} / {fast}, " + (
        f"to a loss of {TARGET:g}" if what == "target" else "an epoch")
    if what == "target" and a["to_target"] and b["to_target"]:
        measured = number(a["to_target"] / b["to_target"])
    elif a["ratio"] is None or b["ratio"] is None:
        measured = "-"
    else:
        # Both ratios are to imex_rk2 in the turns that each had.
        about = "about " if a["about"] or b["about"] else ""
        measured = about + number(a["ratio"] / b["ratio"])
        measured += " an epoch: the loss was not reached" if what == "target" else ""
    return name, label, number(times), measured
