"""Which accuracy does which tolerance cost, where the layer takes adaptive steps?"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from by_others import Network, dopri5
from measuring import Record, Work, finished, number, print_table
from torch import nn
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from tqdm import tqdm

from pyg_sinode import SINODE, norms
from pyg_sinode.presets import GRAND

# What the layer is given, or None: torchdiffeq, which takes the root mean square of errors.
SYSTEMS: dict[str, dict[str, Any] | None] = {
    "decay": {"implicit": "decay"},
    "attention": {"implicit": "attention"},
    "decay, rms": {"implicit": "decay", "norm": norms.rms},
    "attention, rms": {"implicit": "attention", "norm": norms.rms},
    "dopri5": None,
}


class Choice(NamedTuple):
    """A system of the table and its tolerance; rtol None: decay in 19 equal steps."""

    system: str
    rtol: float | None


BASE = Choice("decay, 19 equal steps", None)


class Trainer:
    """A network, its optimiser and what its epochs took."""

    def __init__(self, choice: Choice, data: Data, classes: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.choice, self.data = choice, data
        self.model = make_network(choice, data.num_features, classes)
        preset = GRAND["Cora"]
        self.optimizer = torch.optim.Adamax(self.model.parameters(), lr=preset.lr,
                                            weight_decay=preset.weight_decay)
        self.random = torch.get_rng_state()
        self.seconds: list[float] = []
        self.steps: list[int] = []
        self.evaluations: list[int] = []
        self.val = self.test = 0.0

    def epoch(self) -> None:
        """Trains and evaluates once, with random numbers of its own."""
        torch.set_rng_state(self.random)
        start = time.perf_counter()
        self.train()
        self.count()
        self.evaluate()
        self.seconds.append(time.perf_counter() - start)
        self.random = torch.get_rng_state()

    def train(self) -> None:
        data = self.data
        self.model.train()
        self.optimizer.zero_grad()
        out = self.model(data.x, data.edge_index)
        F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        self.optimizer.step()

    def count(self) -> None:
        """The steps, rejected ones too, and the evaluations of G of the training pass."""
        if isinstance(self.model, Network):
            self.evaluations.append(self.model.work.evaluations)
            self.steps.append((self.evaluations[-1] - 2) // 6)  # two of them choose the first step
            self.model.work = Work()
            return
        stats = self.model.conv.stats
        self.evaluations.append(stats.explicit_evaluations)
        self.steps.append(stats.steps_accepted + stats.steps_rejected)

    @torch.no_grad()
    def evaluate(self) -> None:
        self.model.eval()
        right = self.model(self.data.x, self.data.edge_index).argmax(dim=-1) == self.data.y
        if isinstance(self.model, Network):
            self.model.work = Work()
        val, test = (float(right[self.data[f"{part}_mask"]].double().mean())
                     for part in ("val", "test"))
        if val > self.val:
            self.val, self.test = val, test

    def result(self) -> dict[str, Any]:
        return {**self.choice._asdict(), "test": 100 * self.test, "seconds": self.seconds,
                "steps": statistics.median(self.steps),
                "evaluations": statistics.median(self.evaluations)}


def make_network(choice: Choice, features: int, classes: int) -> nn.Module:
    """GRAND's network for Cora with the system's integrator."""
    if choice.rtol is None:
        return SINODE.grand("Cora", features, classes)
    options = SYSTEMS[choice.system]
    if options is None:
        solve = partial(dopri5, rtol=choice.rtol, atol=choice.rtol)
        return Network(SINODE.grand("Cora", features, classes), solve)
    return SINODE.grand("Cora", features, classes, step_size=None, method="imex_rk4",
                        rtol=choice.rtol, atol=choice.rtol, **options)


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    path = args.out / "tolerance.jsonl"
    found = [] if args.restart else finished(path, args, {"seeds"})
    record = Record(path, args)
    for result in found:
        record.add(**result)
    dataset = Planetoid(args.root, "Cora")
    choices = [BASE, *(Choice(name, rtol) for name in args.systems for rtol in args.rtol)]
    for seed in args.seeds:
        if any(result["seed"] == seed for result in found):
            continue
        trainers = [Trainer(choice, dataset[0], dataset.num_classes, seed) for choice in choices]
        for _ in tqdm(range(args.epochs), desc=f"seed {seed}", leave=False, disable=None):
            for trainer in trainers:
                trainer.epoch()
        for trainer in trainers:
            found.append({"seed": seed, **trainer.result()})
            record.add(**found[-1])
    report([result for result in found if result["seed"] in args.seeds])


# The table


def report(found: Sequence[dict[str, Any]]) -> None:
    """A row for each system and tolerance; seconds over those of equal steps, epoch by epoch."""
    print_table(["system", "rtol = atol", "steps", "evaluations of G, training pass",
                 "an epoch over decay in 19 steps", "test accuracy in %, each seed", "mean"],
                map(cells, rows_of(found)))


def rows_of(found: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The seeds of a system and a tolerance together."""
    base = {r["seed"]: r["seconds"] for r in found if r["rtol"] is None}
    groups: dict[Choice, list[dict[str, Any]]] = {}
    for result in found:
        groups.setdefault(Choice(result["system"], result["rtol"]), []).append(result)
    for choice, runs in groups.items():
        ratios = [a / b for r in runs for a, b in zip(r["seconds"], base[r["seed"]], strict=True)]
        steps, evaluations = (statistics.mean(r[k] for r in runs) for k in ("steps", "evaluations"))
        yield {"system": choice.system, "rtol": choice.rtol, "test": [r["test"] for r in runs],
               "ratio": statistics.median(ratios), "steps": steps, "evaluations": evaluations}


def cells(row: dict[str, Any]) -> list[object]:
    rtol = math.nan if row["rtol"] is None else row["rtol"]
    return [row["system"], number(rtol), f"{row['steps']:.0f}", f"{row['evaluations']:.0f}",
            f"{row['ratio']:.2f}", " ".join(f"{test:.1f}" for test in row["test"]),
            f"{statistics.mean(row['test']):.1f}"]
