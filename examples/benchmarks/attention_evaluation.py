"""What does one evaluation of the attention cost beside PyG's layers, compiled and not?

The diffusion term of SINODEConv (fused sparse products), the same term by gather and scatter
(plain), GATConv and TransformerConv of the same heads and widths; the last three also under
torch.compile. Forward, and forward with the vector-Jacobian product, in one interleaved run, as
ratios to the fused one; above 1 the fused one is faster. GATConv and TransformerConv compute other
functions, with values of the width of all heads where the diffusion keeps its channels.

    python examples/benchmarks/attention_evaluation.py
    python examples/benchmarks/attention_evaluation.py --graph arxiv --heads 4 --head-channels 8 \
        --repeats 3
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from attention_iteration import PlainAttention
from torch import Tensor
from torch_geometric.nn import GATConv, TransformerConv
from tqdm import tqdm

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


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.zeros(8_000_000)  # its release teaches the allocator to keep memory, as a data set does
    nodes, edges = GRAPHS[args.graph]
    loops = torch.arange(nodes).repeat(2, 1)
    edge_index = torch.cat([torch.randint(0, nodes, (2, edges)), loops], dim=1)
    print(f"{nodes} nodes, {edge_index.size(1)} edges with self-loops, {args.channels} channels, "
          f"{args.heads} heads of {args.head_channels}, {args.normalizer}, {args.threads} "
          "thread(s)")
    report(measure(jobs_of(args, edge_index, nodes), args.repeats), edge_index.size(1), args.heads)


def jobs_of(args: argparse.Namespace, edge_index: Tensor, nodes: int) -> dict[str, Job]:
    x = torch.randn(nodes, args.channels, requires_grad=True)
    width = args.heads * args.head_channels
    conv = SINODEConv(args.channels, args.channels, args.heads, attention_channels=width,
                      normalizer=args.normalizer)
    pattern, zero = Pattern(edge_index[1], edge_index[0], nodes), torch.zeros(())
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
        for compiled in (False, True):
            call = torch.compile(module) if compiled else module
            label = f"{name}, compiled" if compiled else name
            if label not in args.skip:
                jobs[label] = Job(lambda u, call=call, inputs=inputs: call(u, *inputs), owner, x)
    return jobs


def measure(jobs: dict[str, Job], repeats: int) -> dict[str, tuple[list[float], list[float], int]]:
    """Seconds forward, seconds with the product, and numbers kept; all jobs in every round."""
    found: dict[str, tuple[list[float], list[float], int]] = {}
    for name, job in tqdm(jobs.items(), desc="first calls", leave=False, disable=None):
        for _ in range(2):
            job.forward()
            job.with_vjp()
        found[name] = [], [], job.saved()
    for _ in tqdm(range(repeats), desc="rounds", leave=False, disable=None):
        for name, job in jobs.items():
            for seconds, call in zip(found[name][:2], (job.forward, job.with_vjp), strict=True):
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
    return found


def report(found: dict[str, tuple[list[float], list[float], int]], edges: int, heads: int) -> None:
    print("| evaluation | forward, ms | with VJP, ms | forward over fused | with VJP over fused | "
          "kept, numbers per edge and head |")
    print("|---|---|---|---|---|---|")
    own = found["fused"]
    for name, (forward, vjp, kept) in found.items():
        over = [statistics.median(a / b for a, b in zip(mine, fused, strict=True))
                for mine, fused in ((forward, own[0]), (vjp, own[1]))]
        print(f"| {name} | {1e3 * statistics.median(forward):.2f} | "
              f"{1e3 * statistics.median(vjp):.2f} | {over[0]:.2f} | {over[1]:.2f} | "
              f"{kept / edges / heads:.1f} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="One evaluation of the attention beside PyG's layers, compiled and not.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--graph", choices=GRAPHS, default="cora", help="size of a random graph")
    add("--heads", type=int, default=8, help="number of heads")
    add("--head-channels", type=int, default=16, help="width of a head")
    add("--channels", type=int, default=80, help="width of the diffused features")
    add("--normalizer", choices=["squareplus", "softmax"], default="squareplus",
        help="GRAND's setting for Cora is squareplus")
    add("--skip", nargs="*", default=[], metavar="NAME",
        help='rows to leave out, such as "plain, compiled"')
    add("--repeats", type=int, default=20, help="rounds, each with every row")
    add("--threads", type=int, default=1, help="threads of PyTorch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
