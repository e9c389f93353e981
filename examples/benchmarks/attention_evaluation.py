"""What does one evaluation of the attention cost beside PyG's layers, compiled and not?"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from attention_iteration import PlainAttention
from measuring import Timings, interleaved, print_table
from torch import Tensor
from torch_geometric.nn import GATConv, TransformerConv

from pyg_sinode import SINODEConv
from pyg_sinode.sparse import Pattern

GRAPHS = {"small": (200, 800), "cora": (2_708, 10_556), "arxiv": (169_343, 2_332_486)}


class Job:
    """A function of the features, the parameters of its gradient and the gradient of its result."""

    def __init__(self, function: Callable[[Tensor], Tensor], module: torch.nn.Module, x: Tensor
                 ) -> None:
        self.function, self.x = function, x
        self.wanted = [x, *module.parameters()]
        with torch.no_grad():
            self.v = torch.randn_like(function(x))

    def forward(self) -> None:
        with torch.no_grad():
            self.function(self.x)

    def with_vjp(self) -> None:
        torch.autograd.grad(self.function(self.x), self.wanted, self.v, allow_unused=True)

    def saved(self) -> int:
        """How many numbers the forward pass keeps for the gradient."""
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.function(self.x)
        return sum(kept.values())


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.zeros(8_000_000)  # its release teaches the allocator to keep memory, as a data set does
    nodes, edges = GRAPHS[args.graph]
    loops = torch.arange(nodes).repeat(2, 1)
    edge_index = torch.cat([torch.randint(0, nodes, (2, edges)), loops], dim=1).to(args.device)
    print(f"{nodes} nodes, {edge_index.size(1)} edges with self-loops, {args.channels} channels, "
          f"{args.heads} heads of {args.head_channels}, {args.normalizer}, {args.threads} "
          "thread(s)")
    jobs = jobs_of(args, edge_index, nodes)
    kept = {name: job.saved() / edge_index.size(1) / args.heads for name, job in jobs.items()}
    report(measure(jobs, args.repeats), kept)


def jobs_of(args: argparse.Namespace, edge_index: Tensor, nodes: int) -> dict[str, Job]:
    x = torch.randn(nodes, args.channels).to(args.device).requires_grad_()
    width = args.heads * args.head_channels
    conv = SINODEConv(args.channels, args.channels, args.heads, attention_channels=width,
                      normalizer=args.normalizer, source=True,
                      attention="scaled_dot").to(args.device)
    pattern, zero = Pattern(edge_index[1], edge_index[0], nodes), x.new_zeros(())
    x0 = x.detach()
    plain = PlainAttention(conv)
    gat = GATConv(args.channels, args.head_channels, args.heads, add_self_loops=False)
    transformer = TransformerConv(args.channels, args.head_channels, args.heads, root_weight=False)
    jobs = {"fused": Job(
        lambda u: conv.term(zero, u, x0, None, None, pattern, None, None, None), conv.term, x)}
    for name, module, inputs in (("plain", plain, (edge_index, x0)),
                                 ("GATConv", gat, (edge_index,)),
                                 ("TransformerConv", transformer, (edge_index,))):
        owner = conv.term if module is plain else module
        module.to(args.device)
        for compiled in (False, True):
            call = torch.compile(module) if compiled else module
            label = f"{name}, compiled" if compiled else name
            if label not in args.skip:
                jobs[label] = Job(lambda u, call=call, inputs=inputs: call(u, *inputs), owner, x)
    return jobs


def measure(jobs: dict[str, Job], repeats: int) -> Timings:
    """Of each job forward, and with the product; two rounds before compile and fill caches."""
    calls = {}
    for name, job in jobs.items():
        calls |= {f"{name}: forward": job.forward, f"{name}: VJP": job.with_vjp}
    return interleaved(calls, repeats, uncounted=2)


def report(timings: Timings, kept: dict[str, float]) -> None:
    """A row for each evaluation; kept: numbers per edge and head."""
    kinds = ("forward", "VJP")
    print_table(
        ["evaluation", "forward, ms", "with VJP, ms", "forward over fused", "with VJP over fused",
         "kept, numbers per edge and head"],
        ([name, *(f"{1e3 * timings.median(f'{name}: {kind}'):.2f}" for kind in kinds),
          *(f"{timings.ratio(f'{name}: {kind}', f'fused: {kind}'):.2f}" for kind in kinds),
          f"{count:.1f}"] for name, count in kept.items()))
