"""How do the time and the memory of a training epoch grow with the edges of a graph?"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import clock, peak_of_tensors, print_table
from scipy.spatial import cKDTree
from torch import Tensor
from tqdm import tqdm

from pyg_sinode import SINODE

CHANNELS, HEADS, EVALUATIONS, NEIGHBORS = 32, 2, 8, 10


def run(args: argparse.Namespace) -> None:
    if args.one:
        print(json.dumps(measure(args.kinds[0], args.edges[0], args.implicit[0], args)))
        return
    print_table(["graph", "edges", "implicit", "epoch, s", "over a bare product", "slope",
                 "bytes an edge", "of tensors", "share of the solves"], rows(args))


def rows(args: argparse.Namespace) -> Iterator[list[object]]:
    """The rows of the table."""
    cases = [(kind, implicit, edges) for kind in args.kinds for implicit in args.implicit
             for edges in args.edges]
    before: dict[tuple[str, str], dict] = {}
    for kind, implicit, edges in tqdm(cases, leave=False, disable=None):
        found = in_its_own_process(kind, edges, implicit, args)
        last = before.get((kind, implicit))
        slope = "" if last is None else f"{slope_of(last, found):.2f}"
        before[kind, implicit] = found
        yield [kind, found["edges"], implicit, f"{found['epoch']:.3f}",
               f"{found['epoch'] / found['product']:.0f}", slope, f"{found['bytes']:.0f}",
               f"{found['tensors']:.0f}",
               f"{100 * found['share']:.0f} %"]


def slope_of(one: dict, other: dict) -> float:
    """The power of the number of edges with which the epoch grows."""
    return math.log(other["epoch"] / one["epoch"]) / math.log(other["edges"] / one["edges"])


def in_its_own_process(kind: str, edges: int, implicit: str, args: argparse.Namespace) -> dict:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent), "scale", "--one",
               "--kinds", kind, "--edges", str(edges), "--implicit", implicit, "--epochs",
               str(args.epochs), "--threads", str(args.threads), "--device", args.device]
    if args.keep_graphs:
        command.append("--keep-graphs")
    env = os.environ | ({"THP_MEM_ALLOC_ENABLE": "1"} if args.huge_pages else {})
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(kind: str, edges: int, implicit: str, args: argparse.Namespace) -> dict:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    edge_index, nodes = make_graph(kind, edges)
    x, y, edge_index = (t.to(args.device) for t in (
        torch.randn(nodes, CHANNELS), torch.randint(0, 5, (nodes,)), edge_index))
    memory = {} if args.keep_graphs else {"checkpoints": "auto", "graph_memory": 0}
    # Two evaluations a step of imex_rk2.
    model = SINODE(CHANNELS, CHANNELS, 5, heads=HEADS, implicit=implicit, time=EVALUATIONS / 2,
                   normalizer="softmax", attention="scaled_dot", step_size=1.0,
                   **memory).to(args.device)
    optimizer = torch.optim.Adam(model.parameters())
    product = bare_product(edge_index, x)
    start = peak_memory(x.device)
    epochs, shares = [], []

    def epoch(edge_index: Tensor) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x, edge_index), y).backward()
        optimizer.step()

    for _ in range(args.epochs + 1):
        begin = clock()
        epoch(edge_index)
        epochs.append(clock() - begin)
        shares.append(model.conv.stats.linear_seconds / epochs[-1])
    peak = peak_memory(x.device) - start
    # Of an epoch on a graph that is new to the layer. On an accelerator that is the same.
    tensors = peak if x.is_cuda else peak_of_tensors(lambda: epoch(edge_index.clone()))
    return {"edges": edge_index.size(1), "epoch": statistics.median(epochs[1:]),
            "product": product, "bytes": peak / edge_index.size(1),
            "tensors": tensors / edge_index.size(1),
            "share": statistics.median(shares[1:])}


def peak_memory(device: torch.device) -> int:
    """The largest memory so far in bytes: of this process, or of tensors on an accelerator."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def make_graph(kind: str, edges: int) -> tuple[Tensor, int]:
    nodes = max(2, edges // NEIGHBORS)
    if kind == "random":
        return torch.randint(0, nodes, (2, edges)), nodes
    points = along_a_curve(np.random.default_rng(0).random((nodes, 2)))
    _, neighbors = cKDTree(points).query(points, k=NEIGHBORS + 1)
    target = np.repeat(np.arange(nodes), NEIGHBORS)
    return torch.from_numpy(np.stack([neighbors[:, 1:].reshape(-1), target])).long(), nodes


def along_a_curve(points: np.ndarray) -> np.ndarray:
    """The points in the order of Morton's curve: the bits of both coordinates by turns."""
    whole = (points * 2**16).astype(np.uint64)
    code = np.zeros(len(points), dtype=np.uint64)
    for bit in range(16):
        for axis in (0, 1):
            taken = (whole[:, axis] >> np.uint64(bit)) & np.uint64(1)
            code |= taken << np.uint64(2 * bit + axis)
    return points[np.argsort(code)]


def bare_product(edge_index: Tensor, x: Tensor) -> float:
    """The seconds of a product with a CSR matrix of the graph."""
    coo = torch.sparse_coo_tensor(edge_index.flip(0), x.new_ones(edge_index.size(1)),
                                  (x.size(0), x.size(0)), check_invariants=False)
    matrix = coo.to_sparse_csr()
    matrix = torch.sparse_csr_tensor(matrix.crow_indices().int(), matrix.col_indices().int(),
                                     matrix.values(), matrix.shape, check_invariants=False)
    seconds = []
    for _ in range(6):
        begin = clock()
        matrix @ x
        seconds.append(clock() - begin)
    return statistics.median(seconds[1:])
