"""Which accuracies does GRAND's network reach here on GRAND's data sets and splits?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import node_classification as nc
import numpy as np
import torch
import torch.nn.functional as F
from benchmark_commands import GRAND_COLUMNS, GRAND_MODELS
from measuring import Record, finished, print_table
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv
from torch_geometric.transforms import NormalizeFeatures
from training import best_of

from pyg_sinode import SINODE, imex_odeint, terms
from pyg_sinode.presets import GRAND, Preset

FOLDERS = {"Cora": "planetoid", "CiteSeer": "planetoid", "CoauthorCS": "coauthor",
           "Photo": "amazon"}
SPARSE = ("Cora", "CiteSeer", "CoauthorCS")  # a node has few words, so that zeros are left out


class Column(NamedTuple):
    """A data set and its split, with the accuracies that GRAND published for it.

    Attributes:
        dataset: As node_classification.py has it.
        split: "own" is Planetoid's, of which the runs are seeds; the runs of "random" are splits.
        published: Of GRAND-l, GRAND-nl and GRAND-nl-rw, in %, https://arxiv.org/abs/2106.10934.
    """

    dataset: str
    split: str
    published: tuple[float, float, float]


COLUMNS = dict(zip(GRAND_COLUMNS, (
    Column("Cora", "random", (83.6, 82.3, 83.3)),
    Column("CiteSeer", "random", (73.4, 70.9, 74.1)),
    Column("CoauthorCS", "random", (92.9, 92.4, 91.3)),
    Column("Photo", "random", (92.3, 92.4, 92.5)),
    Column("Cora", "own", (84.7, 83.6, 82.9)),
    Column("CiteSeer", "own", (73.3, 70.8, 73.6))), strict=True))


@dataclass(frozen=True)
class Setting:
    """How a network is made and trained.

    Attributes:
        preset: Of the network and its optimiser.
        steps: Equal steps to the terminal time.
        once: Whether the attention is that of the initial features throughout (GRAND-l).
        normalized: Whether each node's features are divided by their sum.
        evaluate_every: Epochs from one evaluation to the next.
        patience: Epochs without a better validation accuracy after which a run ends.
    """

    preset: Preset
    steps: int = 3
    once: bool = True
    normalized: bool = False
    evaluate_every: int = 1
    patience: int = 25


# Chosen by the mean of the best validation accuracies at the terminal time: on CiteSeer over seeds
# or splits 0 to 2, on Cora over random splits 0 to 2 for both columns, on Photo over splits 0 to 2,
# on CoauthorCS on split 0. Test accuracies were not looked at; docs/grand.md names what was tried.
CORA = Setting(replace(GRAND["Cora"], attention_channels=64, time=18.0, input_dropout=0.6,
                       dropout=0.3, lr=0.02, weight_decay=0.005), steps=4)
OWN = Preset(normalizer="squareplus", stochastic="column", source=True, dropout=0.5)
CITESEER = replace(OWN, channels=128, time=6.0, input_dropout=0.5)
SETTINGS = {
    "Cora": CORA,
    "CiteSeer": Setting(replace(CITESEER, optimizer="Adamax", lr=0.01, weight_decay=0.05)),
    "CoauthorCS": Setting(replace(OWN, attention_channels=32, time=3.1, input_dropout=0.7,
                                  dropout=0.7), steps=2, evaluate_every=2),
    "Photo": Setting(replace(GRAND["Photo"], fill_value=1.0), steps=4, once=False,
                     evaluate_every=2),
    "Cora, Planetoid's": CORA,
    "CiteSeer, Planetoid's": Setting(replace(CITESEER, lr=0.005, weight_decay=0.03)),
}
# As their papers have them for citation graphs, https://arxiv.org/abs/1609.02907 (but 64 channels
# for its 16) and https://arxiv.org/abs/1710.10903.
BASELINES = {
    "gcn": Setting(Preset(channels=64, dropout=0.5, lr=0.01, weight_decay=5e-4, epochs=200),
                   patience=50),
    "gat": Setting(Preset(channels=64, dropout=0.6, lr=0.005, weight_decay=5e-4, epochs=200),
                   patience=50),
}


# Networks


class Network(nn.Module):
    """SINODE, with the attention of the initial features if wanted."""

    def __init__(self, net: SINODE, once: bool) -> None:
        super().__init__()
        self.net, self.once = net, once

    @property
    def conv(self) -> nn.Module:
        """The layer, whose time and statistics the training reads."""
        return self.net.conv

    def forward(self, x: Tensor, edge_index: Tensor, t: Tensor | None = None) -> Tensor:
        u = self.net.encode(x)
        u = self.fixed(u, edge_index, t) if self.once else self.net.conv(u, edge_index, t=t)
        result: Tensor = self.net.decode(u)
        return result

    def fixed(self, x: Tensor, edge_index: Tensor, t: Tensor | None) -> Tensor:
        """The flow of alpha (A(x) - I) u + beta x, at the terminal time or at several."""
        conv = self.net.conv
        _, J, _, _ = conv.equation(x, edge_index)
        linear = J if conv.term.beta is None else terms.Affine(J, conv.term.beta * x)
        times = torch.tensor([0.0, conv.time]) if t is None else t
        flow, conv.stats = imex_odeint(None, linear, x, times, method=conv.method,
                                       step_size=conv.step_size, return_stats=True)
        return flow[-1] if t is None else flow


class TwoLayers(nn.Module):
    """Two layers of another kind, with dropout before each."""

    def __init__(self, first: nn.Module, second: nn.Module, rate: float,
                 activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.rate = first, second, rate
        self.activation = activation

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.activation(self.first(dropped(x, self.rate, self.training), edge_index))
        result: Tensor = self.second(F.dropout(x, self.rate, self.training), edge_index)
        return result


def dropped(x: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout; of the stored entries only if the features are sparse."""
    if x.layout == torch.strided:
        return F.dropout(x, rate, training)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(),
                                   F.dropout(x.values(), rate, training), x.shape,
                                   check_invariants=False)


def build(model: str, setting: Setting, words: argparse.Namespace, preset: Preset, data: Data
          ) -> nn.Module:
    """The network of a row of the table; makes what node_classification.make_model makes."""
    features, classes, width = data.num_features, int(data.y.max()) + 1, preset.channels
    if model == "gcn":
        return TwoLayers(GCNConv(features, width), GCNConv(width, classes), preset.dropout,
                         torch.relu)
    if model == "gat":
        drop = preset.dropout
        return TwoLayers(GATConv(features, width // 8, heads=8, dropout=drop),
                         GATConv(width, classes, dropout=drop), drop, F.elu)
    net = SINODE(features, width, classes, **preset.network(), implicit="attention",
                 step_size=preset.time / setting.steps)
    return Network(net, setting.once)


# Runs


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    path = args.out / "grand_table.jsonl"
    found = [] if args.restart else finished(path, args, {"columns", "models", "runs", "quick"})
    found = [r for r in found if r["setting"] == asdict(setting_of(r["column"], r["model"]))]
    record = Record(path, args)
    for result in found:
        record.add(**result)
    known = {(r["column"], r["model"], r["seed"]) for r in found}
    for name in args.columns:
        for model in args.models:
            for seed in range(args.runs):
                if (name, model, seed) not in known:
                    found.append(train(name, model, seed, args))
                    record.add(**found[-1])
    report([r for r in found if r["seed"] < args.runs], args)


def train(name: str, model: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training, of which accuracies at the terminal time and at the best one are kept."""
    column = COLUMNS[name]
    setting = setting_of(name, model)
    data = load(column, setting, args.root, seed)
    folder = args.out / "grand_table" / f"{column.dataset}-{column.split}-{model}"
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--dataset", column.dataset, "--split", column.split, "--device", "cpu",
             "--out", str(folder), "--patience", str(setting.patience),
             "--evaluate-every", str(setting.evaluate_every),
             "--epochs", str(args.epochs or setting.preset.epochs)]
    words += ["--follow", "3"] if model == "sinode" else []
    words += ["--restart"] if args.restart else []
    done = nc.train(nc.parse_arguments(words), setting.preset, data, seed,
                    build=partial(build, model, setting))
    done["checkpoint"].unlink(missing_ok=True)  # the record has what is needed of a whole run
    kept = ("best", "test", "best_epoch", "best_time", "epoch", "seconds")
    result = {"column": name, "model": model, "seed": seed, "setting": asdict(setting),
              **{key: done[key] for key in kept}}
    if model == "sinode":
        epoch, row = best_of([r.get("terminal", {}) for r in done["history"]])
        result["terminal"] = {"best": row["val"], "test": row["test"], "best_epoch": epoch}
    return result


def setting_of(name: str, model: str) -> Setting:
    """That of a network in a column; others' features are normalised on citation graphs alone."""
    if model == "sinode":
        return SETTINGS[name]
    return replace(BASELINES[model], normalized=FOLDERS[COLUMNS[name].dataset] == "planetoid")


def load(column: Column, setting: Setting, root: Path, seed: int) -> Data:
    """The graph with the split of a run."""
    data = nc.load_data(column.dataset, str(root / FOLDERS[column.dataset]))
    data = nc.with_split(data, column.dataset, seed, column.split)
    if setting.normalized:
        data = NormalizeFeatures()(data)
    return nc.sparse_features(data) if column.dataset in SPARSE else data


# The table


def report(found: list[dict[str, Any]], args: argparse.Namespace) -> None:
    print_table(["data set, split", "GRAND-l, -nl, -nl-rw, published", "GCN here", "GAT here",
                 "SINODE, terminal time", "SINODE, time of the best validation", "that time over T",
                 "runs"], rows(found, args))


def rows(found: list[dict[str, Any]], args: argparse.Namespace) -> Iterator[list[str]]:
    """A row of the table for each column of GRAND's."""
    for name in args.columns:
        runs = {model: [r for r in found if (r["column"], r["model"]) == (name, model)]
                for model in GRAND_MODELS}
        own = runs["sinode"]
        ends = [r["terminal"]["test"] for r in own]
        times = [r["best_time"] / SETTINGS[name].preset.time for r in own]
        yield [name, ", ".join(map(str, COLUMNS[name].published)),
               *(summary([r["test"] for r in runs[m]]) for m in ("gcn", "gat")),
               summary(ends), summary([r["test"] for r in own]),
               f"{np.median(times):.2g}" if times else "-",
               "/".join(str(len(runs[m])) for m in GRAND_MODELS)]


def summary(accuracy: list[float]) -> str:
    """Mean and standard deviation in %."""
    if not accuracy:
        return "-"
    spread = f" +- {100 * np.std(accuracy, ddof=1):.1f}" if len(accuracy) > 1 else ""
    return f"{100 * np.mean(accuracy):.1f}{spread}"
