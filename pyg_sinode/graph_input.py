"""How does a layer prepare its graph: sorting, self-loops, weights, attributes and dropout?"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention import GRANDAttention, check_weight
from .graph_cache import GraphCache
from .operators.checks import check_real
from .sparse import Pattern, as_edges


class SortedGraph(NamedTuple):
    """A graph with sorted edges, and the values of its edges in that order.

    Attributes:
        pattern: The sorted edges, the added self-loops among them.
        weight: The edge weights; ones if None.
        edge_attr: The edge attributes.
        mask: The factors of the attention coefficients, set by an explainer; ones if None.
    """

    pattern: Pattern
    weight: Tensor | None
    edge_attr: Tensor | None = None
    mask: Tensor | None = None


class GraphInput(NamedTuple):
    """The preparation of graphs by a layer.

    Attributes:
        cache: The sorted edges of the last graph.
        attention: The attention of the layer.
        loops: Whether self-loops are added.
        fill_value: The weight of added self-loops.
        dropout: The probability of dropping an edge; 0 in evaluation.
    """

    cache: GraphCache
    attention: GRANDAttention
    loops: bool
    fill_value: float
    dropout: float

    def sort(self, x: Tensor, adjacency: Any, edge_weight: Any, edge_attr: Any
             ) -> tuple[SortedGraph, int]:
        """The prepared graph, without a mask, and the number of added self-loops.

        Args:
            x (Tensor): The node features.
            adjacency: The graph as the user gave it.
            edge_weight (Tensor, optional): The edge weights.
            edge_attr (Tensor, optional): The edge attributes.
        """
        if edge_weight is not None:
            check_real(edge_weight, "edge_weight")
        row, col, weight, known = as_edges(adjacency, edge_weight)
        for name, own in (("the graph", row), ("edge_weight", weight)):
            if own is not None and own.device != x.device:
                raise ValueError(f"Expected {name} on the device of the features, {x.device} (got "
                                 f"{own.device}); move one of the two.")
        edge_attr = self.attention.check_edge_attr(edge_attr, row.numel(), x)
        pattern, loops = self.cache.pattern(adjacency, row, col, x.size(0), known,
                                            loops=self.loops)
        if weight is not None:
            weight = check_weight(weight, x)
        weight = sorted_weight(weight, pattern, loops, self.fill_value, x)
        if self.dropout > 0.0:
            weight = _dropped(weight, pattern, self.dropout, x)
        if edge_attr is not None:
            edge_attr = with_loops_of(edge_attr, pattern, loops, 0.0)
        return SortedGraph(pattern, weight, edge_attr), loops


def _dropped(weight: Tensor | None, pattern: Pattern, p: float, x: Tensor) -> Tensor:
    """The weights, set to zero at dropped edges; self-loops are not dropped."""
    kept = torch.rand(pattern.num_entries, device=x.device) >= p
    kept = (kept | (pattern.row == pattern.col)).to(x.dtype)
    return kept if weight is None else weight * kept


def sorted_weight(weight: Tensor | None, pattern: Pattern, loops: int, fill_value: float,
                  x: Tensor) -> Tensor | None:
    """The weights in the order of a pattern, with ``fill_value`` at added self-loops."""
    if weight is None:
        if fill_value == 1.0 or loops == 0:
            return None
        weight = x.new_ones(pattern.num_entries - loops)
    return with_loops_of(weight, pattern, loops, fill_value)


def with_loops_of(values: Tensor, pattern: Pattern, loops: int, fill_value: float) -> Tensor:
    """Values of the given edges in the order of a pattern, ``fill_value`` at added self-loops."""
    if loops:
        own = values.new_full((loops, *values.shape[1:]), fill_value)
        values = torch.cat([values, own])
    return values.index_select(0, pattern.perm)
