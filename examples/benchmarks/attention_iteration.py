"""What does one training iteration of SINODEConv cost beside the bare evaluations that it needs?

1. An iteration (forward and backward of the layer) beside its evaluations alone: the same attention
   evaluated, and evaluated with its vector-Jacobian product, on the states that it visits.
2. A plain gather-and-scatter evaluation of the same attention beside the fused one.
3. The peak memory of an iteration by gradient="discrete" and by gradient="backprop".
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from measuring import Timings, interleaved, peak_memory
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import add_self_loops, scatter, softmax

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
        index = edge_index[1 if attention.stochastic == "row" else 0]
        if attention.normalizer == "softmax":
            alpha = softmax(score, index, num_nodes=x.size(0))
        else:
            positive = (score + torch.sqrt(score * score + 4.0)) / 2.0
            total = scatter(positive, index, dim=0, dim_size=x.size(0), reduce="sum")
            alpha = positive / total[index]
        alpha = alpha.mean(dim=-1, keepdim=True)  # PyG 2.5 parses the call below: names only
        out = self.propagate(edge_index, x=x, alpha=alpha)
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
                               normalizer=normalizer, time=18.2948, source=True,
                               attention="scaled_dot")
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


def run(args: argparse.Namespace) -> None:
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
    report(interleaved(jobs, args.repeats), n)
    for gradient in ("discrete", "backprop"):
        memory = peak_memory(partial(bench.iteration, gradient))
        print(f"peak memory of an iteration, gradient={gradient!r}: {memory:.0f} MiB above the "
              "start")


def load_data(args) -> Data:
    if args.dataset != "random":
        return Planetoid(args.root, args.dataset)[0]
    half = torch.randint(0, 2708, (2, 5278))
    return Data(edge_index=torch.cat([half, half.flip(0)], dim=1), num_nodes=2708)


def report(timings: Timings, n: int) -> None:
    """What each job took, and how they compare."""
    for name, per in (("iteration", 1), ("fused forward", n), ("fused with VJP", n),
                      ("plain forward", n // 4), ("plain with VJP", n // 4)):
        median, best = (1e3 * t / per for t in (timings.median(name), timings.best(name)))
        print(f"{name:16s} {median:8.2f} ms (least {best:.2f})")
    bare = timings.ratio("iteration", "fused forward", "fused with VJP")
    forward, with_vjp = (timings.ratio(f"plain {kind}", f"fused {kind}") * n / (n // 4)
                         for kind in ("forward", "with VJP"))
    print(f"iteration over its {n} evaluations and {n} VJPs: {bare:.3f}")
    print(f"plain over fused: {forward:.2f} forward, {with_vjp:.2f} with VJP")
