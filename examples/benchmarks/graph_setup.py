"""What does a layer pay for a graph that it has not seen, beside one evaluation of its term?

A forward pass on a graph whose tensor is new sorts the edges and lays them out for the heads; the
same pass on the tensor of the call before finds that done. The difference, over the time of one
evaluation of the second, is the price of a new graph. Random graphs, one interleaved run.

    python examples/benchmarks/graph_setup.py
    python examples/benchmarks/graph_setup.py --edges 20000 --heads 2 --repeats 3
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor
from tqdm import tqdm

from pyg_sinode import SINODEConv

EVALUATIONS = 8


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    print("| nodes | edges | heads | new graph, ms | seen last, ms | set-up in evaluations |")
    print("|---|---|---|---|---|---|")
    for edges in args.edges:
        for heads in args.heads:
            nodes = max(2, edges // 10)
            new, seen = measure(nodes, edges, heads, args.channels, args.repeats)
            print(f"| {nodes} | {edges} | {heads} | {1e3 * new:.2f} | {1e3 * seen:.2f} | "
                  f"{EVALUATIONS * (new - seen) / seen:.2f} |", flush=True)


@torch.no_grad()
def measure(nodes: int, edges: int, heads: int, channels: int, repeats: int
            ) -> tuple[float, float]:
    """The median seconds of a pass on a new graph, and on the one seen last."""
    torch.manual_seed(0)
    # Two evaluations a step of imex_rk2.
    conv = SINODEConv(channels, channels, heads=heads, time=EVALUATIONS / 2, step_size=1.0,
                      normalizer="softmax")
    x, edge_index = torch.randn(nodes, channels), torch.randint(0, nodes, (2, edges))
    conv(x, edge_index)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in tqdm(range(repeats), desc=f"{edges} edges, {heads} heads", leave=False, disable=None):
        graph = edge_index.clone()
        for kind in seconds:
            kind.append(seconds_of(conv, x, graph))
    assert conv.stats is not None
    assert conv.stats.explicit_evaluations == EVALUATIONS
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def seconds_of(conv: SINODEConv, x: Tensor, edge_index: Tensor) -> float:
    start = time.perf_counter()
    conv(x, edge_index)
    return time.perf_counter() - start


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The price of a graph that a layer has not seen, in evaluations.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--edges", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="their numbers")
    add("--heads", type=int, nargs="+", default=[2, 8], help="numbers of heads")
    add("--channels", type=int, default=32, help="channels of a node")
    add("--repeats", type=int, default=9, help="rounds, each with both passes")
    add("--threads", type=int, default=1, help="threads of PyTorch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
