"""Node classification with SINODE: which accuracy does a semi-implicit diffusion reach on a graph?

Without arguments it classifies scikit-learn's bundled handwritten digits, as a graph of nearest
neighbours with ten labels per class, and needs no download:

    python examples/node_classification.py
    python examples/node_classification.py --model gcn
    python examples/node_classification.py --dataset Cora --root data/planetoid --runs 5

Prints the test accuracy at the epoch of the best validation accuracy; writes a checkpoint for each
seed, from which an interrupted run goes on, and a figure of the training to --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from pathlib import Path

import figures
import numpy as np
import torch
import torch.nn.functional as F
from options import (
    add_files,
    make_parser,
    non_negative_float,
    output_folder,
    positive_float,
    positive_int,
)
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv
from torch_geometric.transforms import LargestConnectedComponents
from torch_geometric.utils import to_undirected
from tqdm import tqdm
from training import (
    Checkpoint,
    best_of,
    device_name,
    end_of,
    fingerprint,
    random_state,
    set_random_state,
)

from pyg_sinode.models import SINODE
from pyg_sinode.presets import GRAND, Preset
from pyg_sinode.solvers import Chebyshev

# Class in torch_geometric.datasets, and its options.
SOURCES = {
    **{name: ("Planetoid", {"name": name}) for name in ("Cora", "CiteSeer", "PubMed")},
    **{f"Coauthor{name}": ("Coauthor", {"name": name}) for name in ("CS", "Physics")},
    **{name: ("Amazon", {"name": name}) for name in ("Photo", "Computers")},
    "WikiCS": ("WikiCS", {"is_undirected": True}),
    **{name: ("HeterophilousGraphDataset", {"name": name}) for name in (
        "Roman-empire", "Amazon-ratings", "Minesweeper", "Tolokers", "Questions")}}
# Those of CiteSeer and PubMed are Cora's: GRAND's own were tuned with other features.
SETTINGS = {name: Preset() for name in ("digits", *SOURCES)} | {
    "Cora": GRAND["Cora"], "CiteSeer": GRAND["Cora"], "PubMed": GRAND["Cora"],
    "CoauthorCS": GRAND["CoauthorCS"], "Photo": GRAND["Photo"]}


class GCN(torch.nn.Module):
    """The two-layer baseline of Kipf and Welling (2017), with their dropout of one half."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = GCNConv(in_channels, hidden_channels)
        self.conv2 = GCNConv(hidden_channels, out_channels)

    def forward(self, x, edge_index, edge_weight=None):
        x = F.dropout(x, 0.5, self.training)
        x = self.conv1(x, edge_index, edge_weight).relu()
        x = F.dropout(x, 0.5, self.training)
        return self.conv2(x, edge_index, edge_weight)


def main() -> None:
    args = parse_arguments()
    output_folder(args.out)
    settings = SETTINGS[args.dataset]
    given = {name: getattr(args, name) for name in ("time", "heads", "stochastic")}
    settings = dataclasses.replace(settings, **{k: v for k, v in given.items() if v is not None})
    data = load_data(args.dataset, args.root)
    print(f"{args.dataset}: {data.num_nodes} nodes, {data.num_edges} directed edges, "
          f"{data.num_features} features, {int(data.y.max()) + 1} classes")
    results = []
    for seed in range(args.seed, args.seed + args.runs):
        split = with_split(data, args.dataset, seed, args.split)
        results.append(train(args, settings, split, seed))
        print_run(results[-1])
    accuracy = np.array([100 * r["test"] for r in results])
    spread = accuracy.std(ddof=1) if len(accuracy) > 1 else 0.0
    print(f"test accuracy: {accuracy.mean():.2f} +- {spread:.2f} % over "
          f"{figures.plural(len(results), 'seed')}; each: "
          f"{', '.join(f'{a:.1f}' for a in accuracy)}")
    print(f"training curves: {plot(args, results)}")


# Data


def load_data(name: str, root: str) -> Data:
    """The data set's one graph."""
    if name == "digits":
        return load_digits()
    from torch_geometric import datasets

    source, options = SOURCES[name]
    return getattr(datasets, source)(root, **options)[0]


def load_digits(neighbors: int = 5) -> Data:
    """1797 handwritten digits of 8 x 8 pixels, each joined to its nearest ones, both ways."""
    from sklearn.datasets import load_digits
    from sklearn.neighbors import kneighbors_graph

    digits = load_digits()
    x = digits.data / 16.0
    near = kneighbors_graph(x, neighbors).tocoo()
    edge_index = to_undirected(torch.from_numpy(np.stack([near.row, near.col])).long())
    return Data(x=torch.from_numpy(x).float(), y=torch.from_numpy(digits.target),
                edge_index=edge_index)


def with_split(data: Data, name: str, seed: int, split: str = "own") -> Data:
    """The data with a split for the seed: the published one, or one of several, where there is any.

    The random split is that of GRAND's experiments, after Shchur et al. (2018),
    https://arxiv.org/abs/1811.05868: of the largest component, 20 nodes a class to train on, the
    rest of 1500 nodes (5000 of CoauthorCS) to validate, all others to test.
    """
    if split == "own" and name == "digits":
        return split_by_class(data.clone(), seed, train=10, validate=10)
    if split == "own" and "train_mask" in data:
        data = data.clone()
        for mask in ("train_mask", "val_mask", "test_mask"):
            if data[mask].dim() == 2:
                data[mask] = data[mask][:, seed % data[mask].size(1)]
        return data
    data = split_by_class(LargestConnectedComponents()(data), seed, train=20, validate=0)
    others = torch.randperm(data.num_nodes, generator=torch.Generator().manual_seed(seed))
    others = others[~data.train_mask[others]]
    developed = 5000 if name == "CoauthorCS" else 1500
    data.val_mask[others[: max(developed - int(data.train_mask.sum()), 0)]] = True
    data.test_mask = ~(data.train_mask | data.val_mask)
    return data


def split_by_class(data: Data, seed: int, train: int, validate: int) -> Data:
    """So many nodes of each class to train on and to validate, all others to test."""
    order = torch.randperm(data.num_nodes, generator=torch.Generator().manual_seed(seed))
    data.train_mask, data.val_mask = torch.zeros(2, data.num_nodes, dtype=torch.bool)
    for label in data.y.unique():
        own = order[data.y[order] == label]
        data.train_mask[own[:train]] = True
        data.val_mask[own[train : train + validate]] = True
    data.test_mask = ~(data.train_mask | data.val_mask)
    return data


def sparse_features(data: Data) -> Data:
    """The data with its features as a CSR matrix: bags of words are mostly zeros."""
    data = data.clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        data.x = data.x.to_sparse_csr()
    return data


# Training


def make_model(args, settings: Preset, data: Data) -> torch.nn.Module:
    classes = int(data.y.max()) + 1
    if args.model == "gcn":
        return GCN(data.num_features, settings.channels, classes)
    return SINODE(
        data.num_features, settings.channels, classes, **settings.network(),
        implicit=args.implicit, method=args.method,
        graph_memory=round(args.graph_memory * 2**30), checkpoints=args.checkpoints,
        rtol=args.rtol, atol=args.rtol, step_size=args.step_size if args.rtol is None else None,
        solver=None if args.solver_rtol is None else Chebyshev(rtol=args.solver_rtol))


def train(args, settings: Preset, data: Data, seed: int, build=make_model) -> dict:
    """One run: test accuracy at the epoch of the best validation accuracy."""
    torch.manual_seed(seed)
    device = torch.device(args.device)
    data = data.to(device)
    model = build(args, settings, data).to(device)
    optimizer = make_optimizer(args, settings, model)
    epochs = epochs_of(args, settings)
    checkpoint = Checkpoint(args.out, f"{run_name(args)}-seed{seed}",
                            settings_of(args, settings, data, seed), args.restart)
    history = resume(checkpoint, model, optimizer, device)
    bar = tqdm(range(len(history), epochs), initial=len(history), total=epochs,
               desc=f"seed {seed}", leave=False, disable=None)
    for epoch in bar:
        if epoch >= end_of(history, epochs, args.patience):
            break
        history.append(one_epoch(args, model, optimizer, data, epoch))
        done = len(history) == end_of(history, epochs, args.patience)
        if done or len(history) % args.checkpoint_every == 0:
            checkpoint.save(model=model.state_dict(), optimizer=optimizer.state_dict(),
                            history=history, random=random_state(device))
        bar.set_postfix(loss=f"{history[-1]['loss']:.3f}", val=history[-1].get("val"))
    history = history[: end_of(history, epochs, args.patience)]
    return summary(seed, history) | {"checkpoint": checkpoint.path}


def one_epoch(args, model, optimizer, data: Data, epoch: int) -> dict:
    """Trains for an epoch and, if it is its turn, evaluates; what came of it."""
    start = time.perf_counter()
    row = {"loss": train_epoch(model, optimizer, data)}
    row["seconds"] = time.perf_counter() - start
    stats = getattr(getattr(model, "conv", None), "stats", None)
    if stats is not None:
        row["stats"] = dataclasses.asdict(stats)
    if (epoch + 1) % args.evaluate_every == 0:
        row |= evaluate(model, data, args.follow)
    return row


def train_epoch(model, optimizer, data: Data) -> float:
    model.train()
    optimizer.zero_grad()
    out = model(data.x, data.edge_index)
    loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def evaluate(model, data: Data, follow: float | None = None) -> dict:
    """The accuracies on the training, validation and test nodes, and the validation loss.

    With ``follow``, they are those at the time of the best validation accuracy, the earliest of
    several, among twelve up to so many times the terminal time; those at the terminal time are
    kept beside them as ``terminal``.
    """
    model.eval()
    terminal = measured(model(data.x, data.edge_index), data)
    if follow is None:
        return terminal
    end = float(model.conv.time)
    times = torch.linspace(0.0, follow * end, 13, device=data.x.device)
    flow = model(data.x, data.edge_index, t=times)[1:]
    found = [measured(out, data) | {"time": float(t)}
             for t, out in zip(times[1:], flow, strict=True)]
    return max(found, key=lambda row: row["val"]) | {"terminal": terminal}


def measured(out: torch.Tensor, data: Data) -> dict[str, float]:
    """The accuracies of class scores, and their loss on the validation nodes."""
    right = (out.argmax(dim=-1) == data.y).float()
    masks = {"train": data.train_mask, "val": data.val_mask, "test": data.test_mask}
    loss = F.cross_entropy(out[data.val_mask], data.y[data.val_mask])
    return {name: float(right[m].mean()) for name, m in masks.items()} | {"val_loss": float(loss)}


def make_optimizer(args, settings: Preset, model) -> torch.optim.Optimizer:
    """The data set's own; a plain GCN is trained by its own paper's, the same loop around it."""
    kind, lr, decay = ((settings.optimizer, settings.lr, settings.weight_decay)
                       if args.model == "sinode" else ("Adam", 0.01, 5e-4))
    return getattr(torch.optim, kind)(model.parameters(), lr=lr, weight_decay=decay)


def epochs_of(args, settings: Preset) -> int:
    """The largest number of epochs."""
    if args.epochs is not None:
        return args.epochs
    return settings.epochs if args.model == "sinode" else max(settings.epochs, 200)


def summary(seed: int, history: list[dict]) -> dict:
    """What a run has come to, by its epochs up to its own end."""
    best_epoch, best = best_of(history)
    solved = [row["stats"]["linear_seconds"] for row in history if "stats" in row]
    return {"seed": seed, "epoch": len(history), "best": best["val"], "test": best["test"],
            "best_epoch": best_epoch, "best_time": best.get("time"), "history": history,
            "stats": history[-1].get("stats"), "solve_seconds": sum(solved),
            "seconds": sum(row["seconds"] for row in history)}


def print_run(run: dict) -> None:
    moment = "" if run["best_time"] is None else f", time {run['best_time']:.3g}"
    line = (f"seed {run['seed']}: test {100 * run['test']:.2f} % at epoch {run['best_epoch']}"
            f"{moment} (validation {100 * run['best']:.2f} %), "
            f"{figures.plural(run['epoch'], 'epoch')}, "
            f"{run['seconds'] / run['epoch']:.3f} s per training epoch")
    stats = run["stats"]
    if stats is not None:
        solves = max(stats["linear_solves"], 1)
        line += (f"; per epoch: {stats['steps_accepted']} steps, "
                 f"{stats['explicit_evaluations']} evaluations, {stats['explicit_vjps']} "
                 f"vector-Jacobian products, {stats['linear_solves']} linear solves of "
                 f"{stats['linear_iterations'] / solves:.1f} iterations, "
                 f"{100 * run['solve_seconds'] / max(run['seconds'], 1e-9):.0f} % of the time")
    print(line, flush=True)


# Files


def settings_of(args, settings: Preset, data: Data, seed: int) -> dict:
    """All that shapes a run; when it ends is read from its history."""
    free = {"out", "root", "runs", "seed", "restart", "checkpoint_every", "epochs", "patience",
            "time", "heads", "stochastic"}  # the last three are in the settings
    return {"network": dataclasses.asdict(dataclasses.replace(settings, epochs=0)), "seed": seed,
            "data": fingerprint(data.x, data.y, data.edge_index, data.train_mask, data.val_mask,
                                data.test_mask),
            **{name: value for name, value in vars(args).items() if name not in free}}


def resume(checkpoint: Checkpoint, model, optimizer, device: torch.device) -> list[dict]:
    """The epochs so far, with the state after them in place; none where there is no checkpoint."""
    state = checkpoint.load(device)
    if state is None:
        return []
    checkpoint.restore(state, model=model, optimizer=optimizer)
    set_random_state(state["random"], device)
    checkpoint.tell(len(state["history"]))
    return state["history"]


def run_name(args) -> str:
    return f"{args.dataset}-{args.model if args.model == 'gcn' else args.implicit}"


def plot(args, results: list[dict]) -> Path:
    """The figure of the training, beside the checkpoint of the first seed."""
    model = "GCN" if args.model == "gcn" else f"SINODE, implicit: {args.implicit}"
    return figures.plot_classification(f"{args.dataset}, {model}", results)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(
        "Classify the nodes of a graph with a semi-implicit neural diffusion.",
        "node_classification.py", "node_classification.py --model gcn --runs 5",
        "node_classification.py --dataset Cora --root data/planetoid --implicit attention "
        "--step-size 6.1",
        "node_classification.py --dataset Questions --root data --epochs 500 --evaluate-every 10")
    group = parser.add_argument_group
    add = group("data").add_argument
    add("--dataset", choices=list(SETTINGS), default="digits", metavar="NAME",
        help=f"one of {', '.join(SETTINGS)}; digits needs no download")
    add("--root", default="data", metavar="FOLDER",
        help="where PyG keeps, or puts, the other data sets")
    add("--split", choices=["own", "random"], default="own",
        help="own: the published split, of several the seed's, or GRAND's where there is none; "
        "random: GRAND's, of the largest component")
    add = group("network").add_argument
    add("--model", choices=["sinode", "gcn"], default="sinode", help="gcn is a plain baseline")
    add("--implicit", choices=["decay", "laplacian", "attention"], default="decay",
        help="the part of the equation that is integrated implicitly")
    add("--time", type=positive_float, help="terminal time, dimensionless; default: the data set's")
    add("--heads", type=positive_int, help="attention heads; default: the data set's")
    add("--stochastic", choices=["row", "column"],
        help="whose attention coefficients sum to one; default: the data set's")
    add = group("integration").add_argument
    add("--method", default="imex_rk2", metavar="SCHEME", help="the scheme, such as ars222")
    add("--step-size", type=positive_float, default=1.0, help="the largest step, in units of time")
    add("--rtol", type=positive_float,
        help="relative tolerance of adaptive steps; default: equal steps of --step-size")
    add("--solver-rtol", type=positive_float,
        help="relative tolerance of the linear solves of laplacian and attention; default: 1e-5")
    add("--graph-memory", type=non_negative_float, default=1.0, metavar="GIB",
        help="GiB that kept graphs may hold for the backward pass; 0 keeps none")
    add("--checkpoints", type=positive_int, metavar="N",
        help="states to keep for the backward pass instead of all stages; default: all stages")
    add = group("training").add_argument
    add("--epochs", type=positive_int,
        help="largest number of epochs; default: the data set's, of gcn at least 200")
    add("--patience", type=positive_int, default=50, metavar="N",
        help="epochs without a better validation accuracy after which a run ends")
    add("--evaluate-every", type=positive_int, default=1, metavar="N",
        help="epochs from one evaluation of the accuracies to the next")
    add("--follow", type=positive_float, metavar="F",
        help="evaluate at twelve times up to F times the terminal time, and keep the one of the "
        "best validation accuracy, as GRAND's code does with F = 3; default: the terminal time")
    add("--runs", type=positive_int, default=1, help="number of seeds, and so of splits for digits")
    add("--seed", type=int, default=0, help="the first seed")
    add("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute, such as cpu or cuda:1")
    add_files(parser)
    args = parser.parse_args(words)
    if args.solver_rtol is not None and (args.model == "gcn" or args.implicit == "decay"):
        parser.error("--solver-rtol needs linear solves: --implicit laplacian or attention")
    if args.follow is not None and args.model == "gcn":
        parser.error("--follow needs a flow: --model sinode")
    if args.evaluate_every > epochs_of(args, SETTINGS[args.dataset]):
        parser.error(f"--evaluate-every {args.evaluate_every} never comes to its turn in "
                     f"{epochs_of(args, SETTINGS[args.dataset])} --epochs")
    return args


if __name__ == "__main__":
    main()
