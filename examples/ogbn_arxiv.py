"""Large graphs with SINODE: how accurate is it on ogbn-arxiv, as a whole, in samples, in parallel?

The data set is OGB's (https://ogb.stanford.edu, 80 MB, downloaded by the package ogb); a generated
graph of the same shape stands in for it where it is not at hand:

    python examples/ogbn_arxiv.py --root data
    python examples/ogbn_arxiv.py --generated 3000 --epochs 50
    python examples/ogbn_arxiv.py --root data --batch-size 1024 --bf16
    torchrun --nproc-per-node 4 examples/ogbn_arxiv.py --root data --batch-size 1024 --ddp

Whole-graph training takes all training nodes in one step. Sampled training needs torch-sparse or
pyg-lib. The accuracies are always those of the whole graph, whatever the training saw.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import figures
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from options import add_files, make_parser, output_folder, positive_float, positive_int
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage
from torch_geometric.loader import NeighborLoader
from torch_geometric.utils import index_to_mask, remove_self_loops, scatter, to_undirected
from tqdm import tqdm
from training import Checkpoint, best_of, device_name, fingerprint

from pyg_sinode.models import SINODE
from pyg_sinode.presets import GRAND

try:
    from ogb.nodeproppred import Evaluator, PygNodePropPredDataset
except ModuleNotFoundError as error:
    raise SystemExit('This example needs OGB: pip install -e ".[examples,ogb]"') from error

PRESETS = {"grand": "ogbn-arxiv", "source": "ogbn-arxiv, source"}
CLASSES, FEATURES, EDGES_PER_NODE = 40, 128, 1_166_243 / 169_343

# What a data set that ogb stored consists of, besides tensors. From PyTorch 2.6 on, torch.load
# reads no other class than it was told of. Binary data sets keep sizes and splits as NumPy's.
STORED = [DataEdgeAttr, DataTensorAttr, GlobalStorage]
STORED_BINARY = [*STORED, np.ndarray, np.dtype, np.dtypes.Int64DType,
                 np.zeros(0).__reduce__()[0], np.int64(0).__reduce__()[0]]


def main() -> None:
    args = parse_arguments()
    output_folder(args.out)
    device = torch.device(args.device)
    if args.ddp:
        if device.type != "cpu":
            device = torch.device(device.type, int(os.environ["LOCAL_RANK"]))
            torch.accelerator.set_device_index(device.index)
        # NCCL on NVIDIA's and AMD's accelerators, Gloo on CPUs.
        dist.init_process_group(dist.get_default_backend_for_device(device))
    data = load(args, device)
    if rank() == 0:
        print(f"{data.num_nodes} nodes, {data.num_edges} directed edges, {data.num_features} "
              f"features, {data.num_classes} classes; {world()} process(es) on {device}")
    seeds = range(args.seed, args.seed + args.runs)
    results = [train(args, data, seed, device) for seed in seeds]
    if rank() == 0:
        accuracy = np.array([100 * run["test"] for run in results])
        spread = accuracy.std(ddof=1) if len(accuracy) > 1 else 0.0
        print(f"test accuracy: {accuracy.mean():.2f} +- {spread:.2f} % over "
              f"{figures.plural(len(results), 'seed')}")
        print(f"training curves: {plot(args, results)}")
    if args.ddp:
        dist.destroy_process_group()


# Data


def load(args, device: torch.device) -> Data:
    """The graph; the first process downloads it before the others read it."""
    if args.generated:
        return generate(args.generated)
    data = load_ogb(args.root) if rank() == 0 else None
    over_processes(torch.zeros(1, device=device)).item()
    return data if rank() == 0 else load_ogb(args.root)


def load_ogb(root: str, meta_dict: dict | None = None) -> Data:
    """OGB's graph with its own split by years, its edges in both directions."""
    binary = meta_dict is not None and meta_dict["binary"] == "True"
    with torch.serialization.safe_globals(STORED_BINARY if binary else STORED):
        dataset = PygNodePropPredDataset("ogbn-arxiv", root, meta_dict=meta_dict)
        split = dataset.get_idx_split()
    data = dataset[0]
    train, val, test = (index_to_mask(torch.as_tensor(split[name]), data.num_nodes)
                        for name in ("train", "valid", "test"))
    return Data(x=data.x, y=data.y.view(-1), num_classes=dataset.num_classes,
                edge_index=to_undirected(data.edge_index, num_nodes=data.num_nodes),
                train_mask=train, val_mask=val, test_mask=test)


def generate(num_nodes: int, seed: int = 0) -> Data:
    """A random graph with the ratios of ogbn-arxiv: edges a node, degrees, classes, split.

    Each node has a topic, which shows in its features under much noise. Two of three edges stay
    within a topic. The label is the topic that the features of a node and the mean of its
    neighbours' are nearest to, so that a network needs both.
    """
    random = torch.Generator().manual_seed(seed)
    topic = torch.randint(CLASSES, (num_nodes,), generator=random).sort().values
    centre = torch.randn(CLASSES, FEATURES, generator=random)
    x = centre[topic] + 4.0 * torch.randn(num_nodes, FEATURES, generator=random)
    edge_index = generate_edges(topic, random)
    near = x + scatter(x[edge_index[0]], edge_index[1], dim_size=num_nodes, reduce="mean")
    y = (near @ F.normalize(centre, dim=-1).t()).argmax(dim=-1)
    order = torch.randperm(num_nodes, generator=random)
    x, y, edge_index = x[order], y[order], order.argsort()[edge_index]
    place = torch.rand(num_nodes, generator=random)
    train, val = place < 90_941 / 169_343, place > 1.0 - 29_799 / 169_343
    return Data(x=x, y=y, edge_index=to_undirected(edge_index, num_nodes=num_nodes),
                num_classes=CLASSES, train_mask=train, val_mask=val, test_mask=~(train | val))


def generate_edges(topic: Tensor, random: torch.Generator) -> Tensor:
    """Edges to nodes of a popularity with a heavy tail, by inversion of its running sum."""
    num_nodes, num_edges = len(topic), round(EDGES_PER_NODE * len(topic))
    popularity = torch.rand(num_nodes, generator=random, dtype=torch.float64).pow(-0.7)
    running = popularity.cumsum(0)
    ends = torch.bincount(topic, minlength=CLASSES).cumsum(0)
    bounds = torch.cat([running.new_zeros(1), running])[torch.cat([ends.new_zeros(1), ends])]
    source = torch.randint(num_nodes, (num_edges,), generator=random)
    own = torch.rand(num_edges, generator=random) < 0.65
    low = torch.where(own, bounds[topic[source]], 0.0)
    high = torch.where(own, bounds[topic[source] + 1], running[-1])
    drawn = low + (high - low) * torch.rand(num_edges, generator=random, dtype=torch.float64)
    target = torch.searchsorted(running, drawn).clamp(max=num_nodes - 1)
    return remove_self_loops(torch.stack([source, target]))[0]


# Training


def make_model(args, data: Data) -> SINODE:
    """GRAND's network with its published settings."""
    return SINODE.grand(PRESETS[args.preset], data.num_features, data.num_classes,
                        implicit=args.implicit, step_size=args.step_size)


def train(args, data: Data, seed: int, device: torch.device) -> dict:
    """One run: test accuracy at the epoch of the best validation accuracy."""
    torch.manual_seed(seed)
    preset = GRAND[PRESETS[args.preset]]
    model = parallel = make_model(args, data).to(device)
    if args.ddp:
        parallel = torch.nn.parallel.DistributedDataParallel(
            model, device_ids=None if device.type == "cpu" else [device.index])
    optimizer = getattr(torch.optim, preset.optimizer)(
        model.parameters(), lr=preset.lr, weight_decay=preset.weight_decay)
    whole = copy.copy(data).to(device) if args.batch_size is None or rank() == 0 else None
    loader = make_loader(args, model, data)
    epochs = preset.epochs if args.epochs is None else args.epochs
    checkpoint = Checkpoint(args.out, f"{run_name(args)}-seed{seed}",
                            settings_of(args, data, seed), args.restart)
    history = resume(checkpoint, model, optimizer, device)
    bar = tqdm(range(len(history), epochs), initial=len(history), total=epochs,
               desc=f"seed {seed}", leave=False, disable=True if rank() else None)
    for epoch in bar:
        # Numbers of its own for each epoch and process: a resumed run draws those of one at once.
        torch.manual_seed((seed * 100_003 + epoch) * world() + rank())
        start = time.perf_counter()
        loss = train_epoch(parallel, optimizer, batches(args, loader, whole), device, args.bf16)
        row = {"loss": loss, "seconds": time.perf_counter() - start}
        if rank() == 0:
            row.update(zip(("train", "val", "test"), evaluate(model, whole), strict=True))
            history.append(row)
            bar.set_postfix(loss=f"{loss:.3f}", val=f"{row['val']:.3f}", test=f"{row['test']:.3f}")
            if len(history) % args.checkpoint_every == 0 or len(history) == epochs:
                checkpoint.save(model=model.state_dict(), optimizer=optimizer.state_dict(),
                                history=history)
    return summary(seed, history[:epochs], checkpoint.path) if rank() == 0 else {}


def summary(seed: int, history: list[dict], checkpoint: Path) -> dict:
    """Prints and gives what a run has come to, by its epochs up to its own end."""
    best_epoch, best = best_of(history)
    seconds = sum(row["seconds"] for row in history)
    print(f"seed {seed}: test {100 * best['test']:.2f} % at epoch {best_epoch} (validation "
          f"{100 * best['val']:.2f} %), {figures.plural(len(history), 'epoch')}, "
          f"{seconds / len(history):.3f} s per training epoch", flush=True)
    return {"test": best["test"], "best_epoch": best_epoch, "history": history,
            "checkpoint": checkpoint}


def make_loader(args, model: SINODE, data: Data) -> NeighborLoader | None:
    """Samples around this process's share of the training nodes; None without a batch size.

    As many hops as a node's result depends on. Ten neighbours at each of the 8 hops of the preset
    grand would lead from 1024 nodes to 99 % of the graph; 10, 5 and then 1 lead to 31 %.
    """
    if args.batch_size is None:
        return None
    hops = model.conv.num_hops or 3  # None: J reaches every node, and any number is too few
    fan_out = (args.num_neighbors + [args.num_neighbors[-1]] * hops)[:hops]
    share = data.train_mask.nonzero().view(-1)[rank()::world()]
    if len(share) == 0:
        raise SystemExit(f"{world()} processes are more than there are training nodes")
    kept = Data(x=data.x, y=data.y, edge_index=data.edge_index, train_mask=data.train_mask)
    return NeighborLoader(kept, fan_out, share, batch_size=args.batch_size, shuffle=True)


def batches(args, loader: NeighborLoader | None, whole: Data | None
            ) -> Iterator[tuple[Data, Tensor | slice]]:
    """Graphs, and the nodes in each that the loss is of; the same number on every process.

    The shares of the processes differ by one node at most. Where that makes one batch less, the
    last one comes again without such nodes: the process takes part in the sums and adds nothing.
    """
    if loader is None:
        yield whole, whole.train_mask
        return
    largest = math.ceil(int(loader.data.train_mask.sum()) / world())
    for batch in tqdm(loader, leave=False, desc="batches", disable=True if rank() else None):
        yield batch, slice(0, batch.batch_size)
    if len(loader) < math.ceil(largest / args.batch_size):
        yield batch, slice(0, 0)


def train_epoch(model, optimizer, graphs, device: torch.device, bf16: bool) -> float:
    """A step for each graph; the mean loss over the training nodes of all processes."""
    model.train()
    total = torch.zeros(2, device=device)
    for graph, nodes in graphs:
        graph = graph.to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = model(graph.x, graph.edge_index)
        losses = F.cross_entropy(out[nodes].float(), graph.y[nodes], reduction="none")
        mean_over_processes(losses).backward()
        optimizer.step()
        total += torch.stack([losses.detach().sum(), total.new_tensor(float(len(losses)))])
    loss, count = over_processes(total).tolist()
    return loss / count


def mean_over_processes(losses: Tensor) -> Tensor:
    """This process's share of the mean loss over the training nodes of all processes.

    DistributedDataParallel and FSDP average the gradients of the W processes as if each had as
    many nodes. With n_r losses in process r, sum(losses) W / (n_1 + ... + n_W) makes that average
    the gradient of the mean over all nodes, as one process with all of them would have it.
    """
    count = over_processes(torch.tensor(float(len(losses)), device=losses.device))
    return losses.sum() * (world() / count)


def over_processes(value: Tensor) -> Tensor:
    """The sum over the processes."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@torch.no_grad()
def evaluate(model, data: Data) -> list[float]:
    """OGB's accuracies on the training, validation and test nodes, of the whole graph."""
    model.eval()
    found = model(data.x, data.edge_index).argmax(dim=-1, keepdim=True)
    score, y = Evaluator("ogbn-arxiv"), data.y.view(-1, 1)
    masks = (data.train_mask, data.val_mask, data.test_mask)
    return [score.eval({"y_true": y[m], "y_pred": found[m]})["acc"] for m in masks]


# Files


def resume(checkpoint: Checkpoint, model, optimizer, device: torch.device) -> list[dict]:
    """The epochs so far, with the state after them in place; none where there is no checkpoint."""
    state = checkpoint.load(device)
    if state is None:
        return []
    checkpoint.restore(state, model=model, optimizer=optimizer)
    if rank() == 0:
        checkpoint.tell(len(state["history"]))
    return state["history"]


def settings_of(args, data: Data, seed: int) -> dict:
    """All that shapes a run; when it ends is read from its history."""
    free = {"out", "runs", "seed", "restart", "checkpoint_every", "epochs", "root"}
    return {"seed": seed, "processes": world(), "data": fingerprint(data.x, data.y,
                                                                    data.edge_index),
            **{name: value for name, value in vars(args).items() if name not in free}}


def many(text: str) -> int:
    """A number of nodes that leaves some of each class to train and to test on."""
    count = positive_int(text)
    if count < 50:
        raise argparse.ArgumentTypeError(f"expected at least 50 nodes (got {count})")
    return count


def run_name(args) -> str:
    name = f"arxiv-{args.preset}-{args.implicit}"
    return f"generated-{name}" if args.generated else name


def plot(args, results: list[dict]) -> Path:
    """The figure of the training, beside the checkpoint of the first seed."""
    name = "generated graph" if args.generated else "ogbn-arxiv"
    return figures.plot_classification(
        f"{name}, SINODE, preset {args.preset}, implicit: {args.implicit}", results)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(
        "Classify the papers of ogbn-arxiv with a semi-implicit neural diffusion.",
        "ogbn_arxiv.py --root data", "ogbn_arxiv.py --generated 3000 --epochs 50",
        "ogbn_arxiv.py --root data --batch-size 1024 --bf16")
    add = parser.add_argument_group("data").add_argument
    add("--root", default="data", metavar="FOLDER", help="where ogb keeps, or puts, the data set")
    add("--generated", type=many, metavar="N",
        help="a generated graph of N nodes in the place of the data set, which has 169343")
    add = parser.add_argument_group("network and integration").add_argument
    add("--preset", choices=list(PRESETS), default="grand",
        help="GRAND's settings: 162 channels and batch normalisation, or 128 and a source term")
    add("--implicit", choices=["decay", "laplacian", "attention"], default="decay",
        help="the part of the equation that is integrated implicitly")
    add("--step-size", type=positive_float, default=1.0, metavar="TIME",
        help="the largest step of the integration, in units of time")
    add = parser.add_argument_group("training").add_argument
    add("--batch-size", type=positive_int, metavar="N",
        help="training nodes of a sampled step, for each process; default: the whole graph at once")
    add("--num-neighbors", type=int, nargs="+", default=[10, 5, 1], metavar="K",
        help="neighbours sampled at each hop, the last number for all further hops; -1: all")
    add("--bf16", action="store_true",
        help="train under autocast to bfloat16; the integration stays in float32")
    add("--ddp", action="store_true",
        help="split the training nodes among the processes that torchrun started")
    add("--epochs", type=positive_int, help="number of epochs; default: the preset's")
    add("--runs", type=positive_int, default=1, help="number of seeds")
    add("--seed", type=int, default=0, help="the first seed")
    add("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute; with --ddp each process takes its own")
    add_files(parser)
    args = parser.parse_args(words)
    if args.ddp and args.batch_size is None:
        parser.error("--ddp needs --batch-size: it splits batches of training nodes")
    if any(k < -1 or k == 0 for k in args.num_neighbors):
        parser.error(f"--num-neighbors needs numbers above 0, or -1 for all (got "
                     f"{args.num_neighbors})")
    if args.ddp and "LOCAL_RANK" not in os.environ:
        parser.error("--ddp needs torchrun: torchrun --nproc-per-node 2 examples/ogbn_arxiv.py ...")
    return args


if __name__ == "__main__":
    main()
