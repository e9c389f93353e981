"""Is this the graph of the last call, whose sorted edges can be reused?"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .sparse import Pattern, check_range

Sorted = tuple[Pattern, int]  # the sorted edges and the number of added self-loops


class GraphCache:
    """A cache of the sorted edges of the last graph that a layer was called with.

    The key is the caller's ``edge_index`` tensor object, if its content has not changed. The entry
    is deleted with that tensor, and is not copied or pickled with the layer.
    """

    def __init__(self) -> None:
        self._last: _Entry | None = None

    def pattern(self, adjacency: Any, row: Tensor, col: Tensor, num_nodes: int, known: int | None,
                *, loops: bool) -> Sorted:
        """The sorted edges and the number of added self-loops, from the cache if possible.

        Args:
            adjacency: The graph as the caller gave it.
            row, col (Tensor): Target and source of its edges.
            num_nodes (int): The number of nodes.
            known (int, optional): The number of nodes that the graph itself stores.
            loops (bool): Whether to add a self-loop to each node that has none.
        """
        last = self._last  # read once: another thread may replace it
        if last is not None and last.is_of(adjacency, num_nodes, known, loops=loops):
            return last.found
        check_range(row, col, num_nodes, known)
        count = 0
        if loops:
            row, col, count = with_loops(row, col, num_nodes)
        found = Pattern(row, col, num_nodes, checked=True), count
        self._last = _Entry.of(adjacency, num_nodes, known, loops, found, weakref.ref(self))
        return found

    def forget(self, tensor: weakref.ref[Any]) -> None:
        """Deletes the entry if it belongs to the given tensor, which was deleted."""
        last = self._last
        if last is not None and last.tensor is tensor:
            self._last = None


class _Entry(NamedTuple):
    """The sorted edges of a tensor, and a copy of its content to detect changes."""

    tensor: weakref.ref[Tensor]
    edges: Tensor  # a copy, in 32 bits where they suffice
    num_nodes: int
    known: int | None
    loops: bool
    found: Sorted

    @classmethod
    @torch.inference_mode(False)
    def of(cls, adjacency: Any, num_nodes: int, known: int | None, loops: bool, found: Sorted,
           cache: weakref.ref[GraphCache]) -> _Entry | None:
        """The entry of an edge_index; None for sparse matrices, which are not cached."""
        if not isinstance(adjacency, Tensor) or adjacency.layout != torch.strided:
            return None

        def gone(tensor: weakref.ref[Any]) -> None:
            owner = cache()
            if owner is not None:
                owner.forget(tensor)

        narrow = torch.int32 if num_nodes < 2**31 else torch.int64
        edges = adjacency.as_subclass(Tensor).to(narrow, copy=True)
        return cls(weakref.ref(adjacency, gone), edges, num_nodes, known, loops, found)

    def is_of(self, adjacency: Any, num_nodes: int, known: int | None, *, loops: bool) -> bool:
        """Whether the entry holds the edges of the given graph."""
        return (self.tensor() is adjacency and adjacency is not None
                and (self.num_nodes, self.known, self.loops) == (num_nodes, known, loops)
                and self.edges.shape == adjacency.shape and self.edges.device == adjacency.device
                and bool((self.edges == adjacency.as_subclass(Tensor)).all()))


def with_loops(row: Tensor, col: Tensor, n: int) -> tuple[Tensor, Tensor, int]:
    """The entries with a self-loop at each node that has none, and the number of those added."""
    bare = torch.ones(n, dtype=torch.bool, device=row.device)
    bare[row[row == col]] = False
    loops = bare.nonzero().view(-1)
    return torch.cat([row, loops]), torch.cat([col, loops]), loops.numel()
