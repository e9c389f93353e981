"""How long until the same network has learned the same, here and under torchdiffeq?"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from by_others import GRAND_TOLERANCE, Equation, Network, Solve, dopri5, imex, rk4
from grid_learning import GridMLP, stiffness, windows
from measuring import (
    FOREIGN_FAILURES,
    DivergedError,
    Record,
    Work,
    finished,
    forget_peak,
    largest_resident,
    number,
    print_table,
    reason,
    resident,
)
from torch import nn
from torch_geometric.datasets import Planetoid
from tqdm import tqdm

from pyg_sinode import SINODE
from pyg_sinode.datasets import KuramotoSivashinsky
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky
from pyg_sinode.presets import GRAND

TIME = GRAND["Cora"].time
J_KS = kuramoto_sivashinsky(PeriodicGrid(64, 22.0), discretization="finite_difference").implicit
# As examples/paper have it: nearly the largest at which u' = J u is stable, a tenth left for G.
STEPS_KS = math.ceil(KuramotoSivashinsky.step * stiffness(J_KS, 64) / (0.9 * 2.785))


class System(NamedTuple):
    """A solver as the table names it, and the implicit part of its layer."""

    label: str
    solve: Solve
    implicit: str = "decay"


def equal(method: str, steps: int, time: float = TIME) -> Solve:
    """This package in that many equal steps."""
    return partial(imex, method=method, step_size=time / steps * (1 + 1e-6))


SYSTEMS = {
    "cora": {
        "imex": System("imex_rk2, 19 steps", equal("imex_rk2", 19)),
        "imex-large": System("imex_rk2, 7 steps", equal("imex_rk2", 7)),
        "imex-attention": System('imex_rk2, "attention", 3 steps', equal("imex_rk2", 3),
                                 "attention"),
        "rk4": System("torchdiffeq rk4, 7 steps", partial(rk4, steps=7)),
        "dopri5": System("torchdiffeq dopri5", partial(dopri5, **GRAND_TOLERANCE)),
    },
    "ks-64": {
        "imex": System("imex_rk2, 1 step", equal("imex_rk2", 1, KuramotoSivashinsky.step)),
        "imex-rk4": System("imex_rk4, 1 step", equal("imex_rk4", 1, KuramotoSivashinsky.step)),
        "rk4": System(f"torchdiffeq rk4, {STEPS_KS} steps", partial(rk4, steps=STEPS_KS)),
        "dopri5": System("torchdiffeq dopri5", partial(dopri5, **GRAND_TOLERANCE)),
    },
}


class Case(NamedTuple):
    """One training: what, by which solver, with which evaluation of the attention, from where."""

    problem: str
    system: str
    attention: str
    seed: int


# The trainings


class Cora:
    """GRAND's network for Cora with its own optimiser; the score is the test accuracy."""

    target, best = "a test accuracy of 82 %", max

    def __init__(self, case: Case, system: System, args: argparse.Namespace) -> None:
        dataset, preset = Planetoid(str(args.root), "Cora"), GRAND["Cora"]
        self.data = dataset[0]
        torch.manual_seed(case.seed)
        net = SINODE.grand("Cora", dataset.num_features, dataset.num_classes,
                           implicit=system.implicit)
        self.model = Network(net, system.solve, case.attention)
        self.optimizer = torch.optim.Adamax(self.model.parameters(), lr=preset.lr,
                                            weight_decay=preset.weight_decay)

    def epoch(self, work: Work) -> float:
        self.model.train()
        self.model.work = work
        self.optimizer.zero_grad()
        out, mask = self.model(self.data.x, self.data.edge_index), self.data.train_mask
        loss = F.cross_entropy(out[mask], self.data.y[mask])
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def score(self, loss: float, work: Work) -> float:
        self.model.eval()
        self.model.work = work
        right = self.model(self.data.x, self.data.edge_index).argmax(dim=-1) == self.data.y
        return float(right[self.data.test_mask].double().mean())

    @staticmethod
    def arrived(score: float) -> bool:
        return score >= 0.82 - 1e-12


class KS:
    """The perceptron on Kuramoto-Sivashinsky; the score is the mean training loss of an epoch."""

    target, best = "a training loss of 1e-3", min

    def __init__(self, case: Case, system: System, args: argparse.Namespace) -> None:
        self.states, self.args, self.solve = trajectories(args), args, system.solve
        self.seed, self.batches = case.seed, 0
        torch.manual_seed(case.seed)
        self.model = GridMLP(64, 200)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-3)

    def epoch(self, work: Work) -> float:
        return statistics.fmean(self.batch(work) for _ in range(15))

    def batch(self, work: Work) -> float:
        generator = torch.Generator().manual_seed(1_000_000 * self.seed + self.batches)
        self.batches += 1
        states = windows(self.states, self.args.batch_size, 1, generator)
        self.optimizer.zero_grad()
        found = self.solve(Equation(self.model, J_KS), states[:, 0], KuramotoSivashinsky.step, work)
        loss = (found - states[:, 1]).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        return float(loss.detach())

    def score(self, loss: float, work: Work) -> float:
        return loss

    @staticmethod
    def arrived(score: float) -> bool:
        return score <= 1e-3


PROBLEMS: dict[str, Callable[..., Any]] = {"cora": Cora, "ks-64": KS}


def trajectories(args: argparse.Namespace) -> torch.Tensor:
    """The states to train on, made at the first use."""
    return KuramotoSivashinsky(str(args.root), "train", num_points=64, trajectories=16,
                               duration=args.duration).states.float()


def train(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """What one training took until it arrived, failed or was stopped, in this process."""
    torch.set_num_threads(args.threads)
    trainer = PROBLEMS[case.problem](case, SYSTEMS[case.problem][case.system], args)
    forget_peak()
    before, seconds, curve, failure, arrived = resident(), 0.0, [], None, False
    work, evaluations = Work(args.limit), 0
    try:
        while len(curve) < args.epochs and not arrived:
            start = time.process_time()  # what else the machine does is not counted
            loss = trainer.epoch(work)
            seconds += time.process_time() - start
            if not math.isfinite(loss):
                raise DivergedError("the loss is not finite")
            evaluations = work.totals()["evaluations"]
            curve.append((seconds, loss, trainer.score(loss, Work(args.limit))))
            arrived = trainer.arrived(curve[-1][2])
    except FOREIGN_FAILURES as error:
        failure = reason(error)
    return {**case._asdict(), "arrived": arrived, "seconds": seconds, "curve": curve,
            "failure": failure, "evaluations": evaluations / max(len(curve), 1),
            "mib": (largest_resident() - before) / 2**20}


# All of them in turns


def run(args: argparse.Namespace) -> None:
    if args.only:
        print(json.dumps(train(Case(*json.loads(args.only)), args)))
        return
    path, cases = args.out / "beside_others.jsonl", cases_of(args)
    free = {"problems", "systems", "attention", "seeds", "only"}
    found = [] if args.restart else finished(path, args, free)
    record = Record(path, args)
    for result in found:
        record.add(**result)
    if any(case.problem == "ks-64" for case in cases):
        trajectories(args)
    known = {case_of(result) for result in found}
    for case in tqdm([c for c in cases if c not in known], leave=False, disable=None):
        found.append(in_its_own_process(case, args))
        record.add(**found[-1])
    for problem in args.problems:
        print(f"\n{problem}: to {PROBLEMS[problem].target}\n")
        report(problem, [r for r in found if case_of(r) in cases and r["problem"] == problem])


def cases_of(args: argparse.Namespace) -> list[Case]:
    """Every solver in turn, seed after seed."""
    return [Case(problem, name, attention, seed) for seed in args.seeds
            for problem in args.problems for name, system in SYSTEMS[problem].items()
            if name in args.systems
            for attention in (("fused", "plain") if problem == "cora" else ("-",))
            if attention in args.attention or attention == "-"
            if attention != "plain" or system.implicit == "decay"]


def case_of(result: dict[str, Any]) -> Case:
    return Case(*(result[name] for name in Case._fields))


def in_its_own_process(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """A training whose peak of memory is its own."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent), "beside_others",
               "--only", json.dumps(case), "--root", str(args.root), "--out", str(args.out)]
    for name in ("limit", "epochs", "batch_size", "duration", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


# The table


def report(problem: str, found: Sequence[dict[str, Any]]) -> None:
    """A row for each solver and attention; ratios are to the first row, seed by seed."""
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for result in found:
        groups.setdefault((result["system"], result["attention"]), {})[result["seed"]] = result
    if not groups:
        return
    base = next(iter(groups.values()))
    print_table(["solver", "attention", "seeds that arrive", "epochs", "seconds", "over the first",
                 "an epoch over the first", "evaluations an epoch", "peak memory, MiB",
                 "the others"],
                (cells(SYSTEMS[problem][name].label, attention, runs, base)
                 for (name, attention), runs in groups.items()))


def cells(label: str, attention: str, runs: dict[int, dict[str, Any]],
          base: dict[int, dict[str, Any]]) -> list[object]:
    """The row of a solver: medians over its seeds; of times and epochs, of those that arrive."""
    arrived = [r for r in runs.values() if r["arrived"]]
    late = [r for r in runs.values() if not r["arrived"]]
    both = [seed for seed in runs if seed in base and runs[seed]["curve"] and base[seed]["curve"]]
    to_target = [runs[s]["seconds"] / base[s]["seconds"] for s in both
                 if runs[s]["arrived"] and base[s]["arrived"]]
    an_epoch = [epoch_of(runs[s]) / epoch_of(base[s]) for s in both]
    return [label, attention, f"{len(arrived)} of {len(runs)}",
            middle(len(r["curve"]) for r in arrived), middle(r["seconds"] for r in arrived),
            middle(to_target), middle(an_epoch), middle(r["evaluations"] for r in runs.values()),
            middle(r["mib"] for r in runs.values()),
            "; ".join(dict.fromkeys(described(r) for r in late))]


def epoch_of(result: dict[str, Any]) -> float:
    """The median seconds of its epochs."""
    ends = [0.0, *(point[0] for point in result["curve"])]
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def described(result: dict[str, Any]) -> str:
    """How far a training came that did not arrive."""
    scores = [point[2] for point in result["curve"]]
    best = f", best {number(PROBLEMS[result['problem']].best(scores))}" if scores else ""
    epochs = f"{len(scores)} epoch" + "s" * (len(scores) != 1)
    return f"{result['failure'] or 'not'} after {epochs}{best}"


def middle(values: Any) -> str:
    """The median, a dash where there is none."""
    values = list(values)
    return number(statistics.median(values)) if values else "-"
