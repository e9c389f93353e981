"""How wrong is a layer on a sampled subgraph, as a function of the hops that were sampled?"""

from __future__ import annotations

import argparse

import torch
from measuring import print_table
from torch import Tensor
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GATConv
from torch_geometric.utils import k_hop_subgraph, to_undirected
from tqdm import tqdm

from pyg_sinode import SINODEConv

CHANNELS = 16


def layers(time: float) -> dict[str, torch.nn.Module]:
    """The layers by name; no solve stops early."""
    torch.manual_seed(0)
    options = {"heads": 2, "time": time, "step_size": 1.0}
    made = {implicit: SINODEConv(CHANNELS, CHANNELS, implicit=implicit, **options)
            for implicit in ("decay", "laplacian", "attention")}
    made["decay, column-stochastic"] = SINODEConv(CHANNELS, CHANNELS, stochastic="column",
                                                  **options)
    made["GATConv"] = GATConv(CHANNELS, CHANNELS)
    return {name: layer.double() for name, layer in made.items()}


def generated(nodes: int) -> Tensor:
    """A graph of ogbn-arxiv's number of edges a node, whose degrees have a heavy tail."""
    generator = torch.Generator().manual_seed(0)
    edges = round(6.9 * nodes)
    source = torch.randint(nodes, (edges,), generator=generator)
    weight = torch.rand(nodes, generator=generator).pow(-0.7)
    target = torch.multinomial(weight, edges, replacement=True, generator=generator)
    return to_undirected(torch.stack([source, target]), num_nodes=nodes)


@torch.no_grad()
def errors(layer: torch.nn.Module, x: Tensor, edge_index: Tensor, seeds: Tensor, hops: int
           ) -> list[float]:
    """The mean relative error at the seeds with 0, 1, ... hops sampled."""
    whole = layer(x, edge_index)[seeds]
    found = []
    for count in tqdm(range(hops + 1), leave=False, disable=None):
        total = 0.0
        for k, seed in enumerate(seeds.tolist()):
            nodes, edges, place, _ = k_hop_subgraph(seed, count, edge_index, relabel_nodes=True,
                                                    num_nodes=len(x))
            own = layer(x[nodes], edges)[place[0]]
            total += float((own - whole[k]).norm() / whole[k].norm())
        found.append(total / len(seeds))
    return found


def run(args: argparse.Namespace) -> None:
    if args.root is None:
        edge_index, name = generated(args.nodes), f"generated, {args.nodes} nodes"
        count = args.nodes
    else:
        data = Planetoid(args.root, "Cora")[0]
        edge_index, count, name = data.edge_index, data.num_nodes, "Cora"
    torch.manual_seed(1)
    x, seeds = torch.randn(count, CHANNELS).double(), torch.randperm(count)[:args.seeds]
    print_table([f"{name}, relative error at hops", *range(args.hops + 1)],
                ([f"{kind} (num_hops {getattr(layer, 'num_hops', 1)})",
                  *(f"{e:.0e}" for e in errors(layer, x, edge_index, seeds, args.hops))]
                 for kind, layer in layers(args.time).items()))
