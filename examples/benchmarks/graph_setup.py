"""What does a layer pay for a graph that it has not seen, beside one evaluation of its term?"""

from __future__ import annotations

import argparse
import statistics

import torch
from measuring import clock, print_table
from torch import Tensor
from tqdm import tqdm

from pyg_sinode import SINODEConv

EVALUATIONS = 8


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    print_table(["nodes", "edges", "heads", "new graph, ms", "seen last, ms",
                 "set-up in evaluations"],
                (row(edges, heads, args) for edges in args.edges for heads in args.heads))


def row(edges: int, heads: int, args: argparse.Namespace) -> list[object]:
    """A row of the table."""
    nodes = max(2, edges // 10)
    new, seen = measure(nodes, edges, heads, args)
    return [nodes, edges, heads, f"{1e3 * new:.2f}", f"{1e3 * seen:.2f}",
            f"{EVALUATIONS * (new - seen) / seen:.2f}"]


@torch.no_grad()
def measure(nodes: int, edges: int, heads: int, args: argparse.Namespace) -> tuple[float, float]:
    """The median seconds of a pass on a new graph, and on the one seen last."""
    torch.manual_seed(0)
    # Two evaluations a step of imex_rk2.
    conv = SINODEConv(args.channels, args.channels, heads=heads, time=EVALUATIONS / 2,
                      step_size=1.0, normalizer="softmax",
                      attention="scaled_dot").to(args.device)
    x = torch.randn(nodes, args.channels).to(args.device)
    edge_index = torch.randint(0, nodes, (2, edges)).to(args.device)
    conv(x, edge_index)
    seconds: tuple[list[float], list[float]] = ([], [])
    bar = tqdm(range(args.repeats), desc=f"{edges} edges, {heads} heads", leave=False, disable=None)
    for _ in bar:
        graph = edge_index.clone()
        for kind in seconds:
            kind.append(seconds_of(conv, x, graph))
    assert conv.stats is not None
    assert conv.stats.explicit_evaluations == EVALUATIONS
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def seconds_of(conv: SINODEConv, x: Tensor, edge_index: Tensor) -> float:
    start = clock()
    conv(x, edge_index)
    return clock() - start
