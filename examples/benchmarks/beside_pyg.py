"""Does the layer without an option hold its own beside PyG's layers, and what do reactions add?"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from measuring import print_table
from node_classification import with_split
from sklearn.metrics import roc_auc_score
from torch import nn
from torch_geometric import datasets
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv
from torch_geometric.transforms import NormalizeFeatures
from tqdm import tqdm

from pyg_sinode import SINODE, SINODEConv

HETEROPHILOUS = ("Minesweeper", "Tolokers")
OPTIONS = {"none": {}, "source": {"source": True}, "scaled_dot": {"attention": "scaled_dot"},
           "blurring_sharpening": {"reaction": "blurring_sharpening"},
           "acmp": {"reaction": "acmp", "implicit_reaction": True},
           "allen_cahn": {"reaction": "allen_cahn", "implicit_reaction": True}}


class TwoLayers(nn.Module):
    """The model of PyG's example of a GCN, with any layer."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x, edge_index):
        x = F.dropout(x, 0.5, self.training)
        x = self.first(x, edge_index).relu()
        return self.second(F.dropout(x, 0.5, self.training), edge_index)

    def groups(self) -> list[dict]:
        return [{"params": self.first.parameters(), "weight_decay": 5e-4},
                {"params": self.second.parameters(), "weight_decay": 0.0}]


class Skips(nn.Module):
    """Three layers with normalisation and skips, as the baselines of Platonov et al. have them."""

    def __init__(self, features: int, channels: int, classes: int, layer) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(features, channels), nn.Linear(channels, classes)
        self.convs = nn.ModuleList([layer(channels, channels) for _ in range(3)])
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(3)])

    def forward(self, x, edge_index):
        x = self.encoder(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.dropout(conv(norm(x), edge_index).relu(), 0.2, self.training)
        return self.decoder(x)


def run(args: argparse.Namespace) -> None:
    data = load(args.dataset, args.root)
    measure = "ROC AUC" if args.dataset in HETEROPHILOUS else "accuracy"
    print_table([f"{args.dataset}, {measure} in %", "seeds or splits", "mean", "s an epoch"],
                (row(name, args, data) for name in args.models))


def row(name: str, args: argparse.Namespace, data: Data) -> list[str]:
    """The scores of a model over the seeds, their mean, and the seconds of an epoch."""
    runs, start = [], time.perf_counter()
    for seed in tqdm(args.seeds, desc=name, leave=False, disable=None):
        split = with_masks(data, args.dataset, seed)
        torch.manual_seed(seed)
        found = train(make(name, args, split), split, args.epochs, args.dataset in HETEROPHILOUS)
        runs.append(100 * found)
    seconds = (time.perf_counter() - start) / (len(runs) * args.epochs)
    return [name, " ".join(f"{r:.1f}" for r in runs), f"{np.mean(runs):.1f}", f"{seconds:.2f}"]


def load(name: str, root: str) -> Data:
    if name in HETEROPHILOUS:
        return datasets.HeterophilousGraphDataset(root, name)[0]
    if name == "Photo":
        return datasets.Amazon(root, name)[0]
    return datasets.Planetoid(root, name, transform=NormalizeFeatures())[0]


def with_masks(data: Data, name: str, seed: int) -> Data:
    """The data with the split of a seed: Planetoid's public one, GRAND's random, or published."""
    if name not in HETEROPHILOUS:
        return with_split(data, name, seed)
    data = data.clone()
    for mask in ("train_mask", "val_mask", "test_mask"):
        data[mask] = data[mask][:, seed]
    return data


def make(name: str, args: argparse.Namespace, data: Data) -> nn.Module:
    """A model by its name, in the recipe of its data set."""
    features, classes = data.num_features, int(data.y.max()) + 1
    kind, _, option = name.partition("+")
    options = OPTIONS[option or "none"]
    layers = {"gcn": GCNConv, "gat": lambda a, b: GATConv(a, b // 4, heads=4),
              "layers": lambda a, b: SINODEConv(a, b, **options)}
    if args.dataset in HETEROPHILOUS:
        if kind in layers:
            return Skips(features, 64, classes, layers[kind])
        return SINODE(features, 64, classes, dropout=0.2, batch_norm=True, **options)
    width = 64 if args.dataset == "Photo" else 16
    if kind in ("gcn", "layers"):
        return TwoLayers(layers[kind](features, width), layers[kind](width, classes))
    if kind == "gat":
        return TwoLayers(GATConv(features, 8, heads=8, dropout=0.6),
                         GATConv(64, classes, heads=1, dropout=0.6))
    return SINODE(features, 64, classes, input_dropout=0.5, dropout=0.5, **options)


def train(model: nn.Module, data: Data, epochs: int, mixed: bool) -> float:
    """The test score at the epoch of the best validation score."""
    groups = model.groups() if isinstance(model, TwoLayers) else [
        {"params": model.parameters(), "weight_decay": 0.0 if mixed else 5e-4}]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    best = test = 0.0
    for epoch in tqdm(range(epochs), leave=False, disable=None):
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()
        if mixed and epoch % 5 != 4:
            continue
        model.eval()
        with torch.no_grad():
            out = model(data.x, data.edge_index)
        found = score(out, data.y, data.val_mask, mixed)
        if found > best:
            best, test = found, score(out, data.y, data.test_mask, mixed)
    return test


def score(out: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, mixed: bool) -> float:
    if mixed:
        return float(roc_auc_score(y[mask], out[mask].softmax(dim=1)[:, 1]))
    return float((out[mask].argmax(dim=1) == y[mask]).float().mean())
