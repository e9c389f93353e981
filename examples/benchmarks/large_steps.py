"""What does an epoch of training take with fewer, larger steps, for each implicit part?"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measuring import print_table
from node_classification import sparse_features
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from tqdm import tqdm

from pyg_sinode import SINODE
from pyg_sinode.solvers import Chebyshev

TIME = 18.2948


class Choice(NamedTuple):
    """An implicit part, its steps or their tolerance, and the tolerance of its solves."""

    implicit: str
    steps: int | None = None
    rtol: float | None = None
    solves: float | None = None

    def __str__(self) -> str:
        how = f"rtol = {self.rtol:g}" if self.steps is None else f"{self.steps} steps"
        return f"{self.implicit}, {how}" + (
            "" if self.solves is None else f", solves to {self.solves:g}")


CHOICES = [Choice(implicit, steps) for steps in (19, 7, 3)
           for implicit in ("decay", "laplacian", "attention")]
CHOICES += [Choice("attention", 3, solves=rtol) for rtol in (1e-3, 1e-2)]


class Trainer:
    """A network, its optimiser and what its solves took."""

    def __init__(self, choice: Choice, data: Data, classes: int) -> None:
        torch.manual_seed(0)
        steps: dict[str, object] = {"rtol": choice.rtol, "step_size": None, "method": "imex_rk4"}
        if choice.steps is not None:
            steps = {"step_size": TIME / choice.steps, "method": "imex_rk2"}
        self.data = data
        self.model = SINODE(
            data.num_features, 80, classes, heads=8, attention_channels=128,
            normalizer="squareplus", stochastic="column", implicit=choice.implicit, time=TIME,
            input_dropout=0.5, dropout=0.0469, source=True,
            attention="scaled_dot", **steps,
            solver=None if choice.solves is None else Chebyshev(rtol=choice.solves))
        self.model(data.x, data.edge_index)  # finds the widths that are derived
        self.optimizer = torch.optim.Adamax(self.model.parameters(), lr=0.02292,
                                            weight_decay=0.005077)
        self.seconds: list[float] = []
        self.solving: list[float] = []
        self.iterations: list[float] = []
        self.steps: list[int] = []

    def epoch(self) -> None:
        start = time.perf_counter()
        data = self.data
        self.model.train()
        self.optimizer.zero_grad()
        out = self.model(data.x, data.edge_index)
        F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        self.optimizer.step()
        solving = self._note()
        self.model.eval()
        with torch.no_grad():
            self.model(data.x, data.edge_index)
        solving += self._note()
        self.seconds.append(time.perf_counter() - start)
        self.solving.append(solving / self.seconds[-1])

    def _note(self) -> float:
        stats = self.model.conv.stats
        assert stats is not None
        self.steps.append(stats.steps_accepted)
        if stats.linear_solves:
            self.iterations.append(stats.linear_iterations / stats.linear_solves)
        return stats.linear_seconds


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    data, classes = load(args)
    choices = CHOICES + [Choice(implicit, rtol=rtol) for rtol in args.rtol
                         for implicit in ("decay", "attention")]
    trainers = {choice: Trainer(choice, data, classes) for choice in choices}
    for number in tqdm(range(args.epochs + 1), desc="epochs", leave=False, disable=None):
        for trainer in trainers.values():
            trainer.epoch()
            if number == 0:  # the first is not counted
                trainer.seconds, trainer.solving = [], []
    report(trainers)


def report(trainers: dict[Choice, Trainer]) -> None:
    base = trainers[CHOICES[0]].seconds
    print_table(["implicit part and steps", "steps", "epoch, ms", "over decay in 19 steps",
                 "share of the solves", "iterations of a solve"],
                (cells(choice, trainer, base) for choice, trainer in trainers.items()))


def cells(choice: Choice, trainer: Trainer, base: list[float]) -> list[object]:
    """A row of the table."""
    over = statistics.median(a / b for a, b in zip(trainer.seconds, base, strict=True))
    iterations = statistics.mean(trainer.iterations) if trainer.iterations else 0.0
    return [choice, f"{statistics.median(trainer.steps):.0f}",
            f"{1e3 * statistics.median(trainer.seconds):.0f}", f"{over:.3f}",
            f"{100 * statistics.median(trainer.solving):.0f} %", f"{iterations:.1f}"]


def load(args: argparse.Namespace) -> tuple[Data, int]:
    if not args.random:
        dataset = Planetoid(args.root, "Cora")
        return sparse_features(dataset[0]), dataset.num_classes
    half = torch.randint(0, 2708, (2, 5278))
    mask = torch.zeros(2708, dtype=torch.bool)
    mask[:140] = True
    return Data(x=torch.rand(2708, 64), y=torch.randint(0, 7, (2708,)), train_mask=mask,
                edge_index=torch.cat([half, half.flip(0)], dim=1)), 7
