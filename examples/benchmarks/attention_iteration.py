"""What does one training iteration of SINODEConv cost beside the bare evaluations that it needs?

Prints, from one interleaved run:
1. the time of an iteration (forward and backward of the layer) over that of its evaluations alone:
   the same attention evaluated, and evaluated with its vector-Jacobian product, on the very stage
   states that the integration visits;
2. the time of a plain gather-and-scatter MessagePassing evaluation of the same attention over that
   of the fused one, forward and with the vector-Jacobian product;
3. the peak memory of an iteration with gradient="discrete" beside gradient="backprop".

    python examples/benchmarks/attention_iteration.py
    python examples/benchmarks/attention_iteration.py --dataset Cora --root data/planetoid
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import add_self_loops, scatter, softmax
from tqdm import tqdm

from pyg_sinode import SINODEConv
from pyg_sinode.sparse import Pattern


class PlainAttention(MessagePassing):
    """The same attention in the usual PyG way: scores and sums by gather and scatter.

    Takes its weights from the fused layer, so that both give the same numbers.
    """

    def __init__(self, conv: SINODEConv) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.term = conv.term

    def forward(self, x: Tensor, edge_index: Tensor, x0: Tensor) -> Tensor:
        attention = self.term.attention
        shape = (x.size(0), attention.heads, -1)
        query, key = attention.lin_query(x).view(shape), attention.lin_key(x).view(shape)
        score = self.edge_updater(edge_index, query=query, key=key)
        if attention.normalizer == "softmax":
            alpha = softmax(score, edge_index[1], num_nodes=x.size(0))
        else:
            positive = (score + torch.sqrt(score * score + 4.0)) / 2.0
            total = scatter(positive, edge_index[1], dim=0, dim_size=x.size(0), reduce="sum")
            alpha = positive / total[edge_index[1]]
        out = self.propagate(edge_index, x=x, alpha=alpha.mean(dim=-1, keepdim=True))
        return torch.sigmoid(self.term.alpha) * out + self.term.beta * x0

    def edge_update(self, query_i: Tensor, key_j: Tensor) -> Tensor:
        return (query_i * key_j).sum(dim=-1) / query_i.size(-1) ** 0.5

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        return alpha * x_j


class Bench:
    """The layer, its graph and the states that its integration visits."""

    def __init__(self, data: Data, channels: int, normalizer: str) -> None:
        self.edge_index, n = data.edge_index, data.num_nodes
        self.conv = SINODEConv(channels, channels, heads=8, attention_channels=128,
                               normalizer=normalizer, time=18.2948)
        self.plain = PlainAttention(self.conv)
        self.x = torch.randn(n, channels, requires_grad=True)
        self.loops, _ = add_self_loops(self.edge_index, num_nodes=n)
        self.pattern = Pattern(self.loops[1], self.loops[0], n)
        self.states: list[Tensor] = []
        hook = self.conv.term.register_forward_pre_hook(
            lambda _, inputs: self.states.append(inputs[1].detach().clone()))
        with torch.no_grad():
            self.conv(self.x, self.edge_index)
        hook.remove()
        self.weights = [torch.randn_like(u) for u in self.states]
        self.zero = torch.zeros(())

    def iteration(self, gradient: str = "discrete") -> None:
        self.conv.gradient = gradient
        self.conv(self.x, self.edge_index).square().mean().backward()

    def fused(self, u: Tensor, x0: Tensor) -> Tensor:
        return self.conv.term(self.zero, u, x0, None, None, self.pattern, None, None, None)

    def gathered(self, u: Tensor, x0: Tensor) -> Tensor:
        return self.plain(u, self.loops, x0)

    def forwards(self, term, count: int) -> None:
        with torch.no_grad():
            for u in self.states[:count]:
                term(u, self.x)

    def vjps(self, term, count: int) -> None:
        parameters = list(self.conv.term.parameters())
        for u, v in zip(self.states[:count], self.weights[:count], strict=True):
            u, x0 = u.detach().requires_grad_(), self.x.detach().requires_grad_()
            torch.autograd.grad(term(u, x0), [u, x0, *parameters], v)


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    bench = Bench(load_data(args), args.channels, args.normalizer)
    with torch.no_grad():
        difference = bench.fused(bench.x, bench.x) - bench.gathered(bench.x, bench.x)
    print(f"{bench.x.size(0)} nodes, {bench.loops.size(1)} edges with self-loops, {args.channels} "
          f"channels, 8 heads of 16, {args.normalizer}, {args.threads} thread(s); fused and plain "
          f"differ by {float(difference.abs().max()):.1e}")
    n = len(bench.states)
    jobs = {
        "iteration": bench.iteration,
        "fused forward": lambda: bench.forwards(bench.fused, n),
        "fused with VJP": lambda: bench.vjps(bench.fused, n),
        "plain forward": lambda: bench.forwards(bench.gathered, n // 4),
        "plain with VJP": lambda: bench.vjps(bench.gathered, n // 4),
    }
    report(measure(jobs, args.repeats), n)
    print_memory(bench)


def load_data(args) -> Data:
    if args.dataset != "random":
        return Planetoid(args.root, args.dataset)[0]
    half = torch.randint(0, 2708, (2, 5278))
    return Data(edge_index=torch.cat([half, half.flip(0)], dim=1), num_nodes=2708)


def measure(jobs: dict, repeats: int) -> dict[str, list[float]]:
    """Seconds of each job, all of them in every round, so that noise falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in tqdm(range(repeats), desc="rounds", leave=False, disable=None):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return times


def report(times: dict[str, list[float]], n: int) -> None:
    for name, per in (("iteration", 1), ("fused forward", n), ("fused with VJP", n),
                      ("plain forward", n // 4), ("plain with VJP", n // 4)):
        values = [1e3 * t / per for t in times[name]]
        print(f"{name:16s} {statistics.median(values):8.2f} ms (least {min(values):.2f})")
    rounds = list(zip(*times.values(), strict=True))
    bare = statistics.median(r[0] / (r[1] + r[2]) for r in rounds)
    forward = statistics.median(r[3] / (n // 4) / (r[1] / n) for r in rounds)
    with_vjp = statistics.median(r[4] / (n // 4) / (r[2] / n) for r in rounds)
    print(f"iteration over its {n} evaluations and {n} VJPs: {bare:.3f}")
    print(f"plain over fused: {forward:.2f} forward, {with_vjp:.2f} with VJP")


def print_memory(bench: Bench) -> None:
    """The growth of the resident set during an iteration, seen from a second thread."""
    for gradient in ("discrete", "backprop"):
        before, peak, done = resident(), 0, threading.Event()

        def watch(done=done) -> None:
            nonlocal peak
            while not done.is_set():
                peak = max(peak, resident())
                time.sleep(0.001)

        thread = threading.Thread(target=watch)
        thread.start()
        bench.iteration(gradient)
        done.set()
        thread.join()
        print(f"peak memory of an iteration, gradient={gradient!r}: "
              f"{(peak - before) / 2**20:.0f} MiB above the start")


def resident() -> int:
    """The resident set in bytes, from Linux' own account."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Cost of a training iteration of SINODEConv, and of its attention.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=["random", "Cora", "CiteSeer", "PubMed"], default="random",
        help="random is a graph of Cora's size and needs no download")
    add("--root", default="data", help="where PyG keeps the data set")
    add("--channels", type=int, default=80, help="width of the diffused features")
    add("--normalizer", choices=["squareplus", "softmax"], default="squareplus",
        help="GRAND's setting for Cora is squareplus")
    add("--threads", type=int, default=1, help="threads of PyTorch")
    add("--repeats", type=int, default=9, help="rounds, each with every job")
    return parser.parse_args()


if __name__ == "__main__":
    main()
