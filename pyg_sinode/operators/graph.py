"""How does the matrix of a weighted graph act on node features?"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..sparse import (
    Pattern,
    add_product,
    as_edges,
    check_range,
    sampled_product,
    segment_sum,
    sparse_product,
)
from .base import LinearOperator
from .checks import along, as_float, check_dim, check_real, check_size, check_tensors
from .results import Entries, equals_transpose
from .shifted import Shifted
from .sums import Sum


class Graph(LinearOperator):
    r"""A sparse matrix on the nodes of a graph, :math:`(J u)_i = \sum_{j \to i} w_{ji} u_j`.

    The orientation is PyG's: an edge runs from :obj:`edge_index[0]` to :obj:`edge_index[1]`. A
    sparse matrix is used as it is (PyG's ``adj_t``). Duplicate edges add up.

    For a diffusion, J = A - D is the negative of the graph Laplacian L = D - A:

    .. code-block:: python

        degree = torch.zeros(n).index_add(0, edge_index[1], edge_weight)
        J = Graph(edge_index, edge_weight, n) + Diagonal(-degree.view(-1, 1))

    Args:
        adjacency (Tensor or SparseTensor): The edge indices, a ``torch.sparse`` tensor in COO, CSR
            or CSC layout, or a ``torch_sparse.SparseTensor``.
        edge_weight (Tensor, optional): One weight per edge, ones if None; receives gradients.
            (default: :obj:`None`)
        num_nodes (int, optional): Number of nodes; if None, the largest index plus one, or the size
            of the matrix. (default: :obj:`None`)
        dim (int): The node dimension of the state, negative. (default: :obj:`-2`)
        largest (float, optional): A known upper bound on the eigenvalues of a symmetric matrix,
            such as 1 for a symmetrically normalised adjacency; if None, the Gershgorin bound is
            used. (default: :obj:`None`)
        radius (float, optional): A known upper bound on the spectral radius, such as 1 for a
            symmetrically normalised adjacency or nonnegative weights whose rows sum to one; with
            it, :class:`pyg_sinode.solvers.Chebyshev` can be used, which needs no inner products.
            (default: :obj:`None`)

    Shapes:
        - **adjacency:** :math:`(2, |\mathcal{E}|)` or sparse
          :math:`(|\mathcal{V}|, |\mathcal{V}|)`
        - **edge_weight:** :math:`(|\mathcal{E}|)`, per unit of time
        - **u:** :math:`(*, |\mathcal{V}|, *)` with the nodes at :obj:`dim`

    Raises:
        ValueError: if an index is out of range, a shape does not fit, or radius is negative.
        TypeError: if a dtype does not fit, or radius is not a number.
    """

    def __init__(self, adjacency: Any, edge_weight: Tensor | None = None,
                 num_nodes: int | None = None, *, dim: int = -2,
                 largest: float | None = None, radius: float | None = None) -> None:
        row, col, value, known = as_edges(adjacency, edge_weight)
        if value is None:
            value = torch.ones(row.numel(), device=row.device)
        check_real(value, "edge_weight")
        num_nodes = check_range(row, col, num_nodes, known)
        pattern = Pattern(row, col, num_nodes, checked=True)
        self._set(pattern, value, dim, largest, radius, ordered=False)

    @classmethod
    def of_pattern(cls, pattern: Pattern, value: Tensor, *, dim: int = -2,
                   largest: float | None = None, radius: float | None = None) -> Graph:
        """The operator of a sorted pattern and of the values of its entries.

        Args:
            pattern (Pattern): The sorted edges.
            value (Tensor): The weight of each entry, in the order of the pattern.
            dim, largest, radius: As in the class.
        """
        graph = object.__new__(cls)
        graph._set(pattern, value, dim, largest, radius, ordered=True)
        return graph

    def _set(self, pattern: Pattern, value: Tensor, dim: int, largest: float | None,
             radius: float | None, ordered: bool) -> None:
        if radius is not None and not isinstance(radius, Real):
            raise TypeError(f"Expected a number as the radius (got {type(radius).__name__}); take "
                            ".item() of a tensor.")
        if radius is not None and not 0 <= radius < math.inf:
            raise ValueError(f"Expected a radius from 0 up (got {radius}); leave it out where no "
                             "bound on the eigenvalues is known.")
        if value.shape != (pattern.num_entries,):
            raise ValueError(f"Expected one weight for each of the {pattern.num_entries} edges of "
                             f"Graph (got shape {tuple(value.shape)}).")
        self.pattern, self.tensors, self.dims = pattern, (value,), check_dim("Graph", dim)
        self.largest, self.radius, self.ordered = largest, radius, ordered

    @property
    def value(self) -> Tensor:
        """The weights in the order of the pattern."""
        value = self.tensors[0]
        return value if self.ordered else value.index_select(0, self.pattern.perm)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Graph:
        graph = copy.copy(self)  # keeps a subclass
        graph._set(self.pattern, tensors[0], self.dims[0], self.largest, self.radius, self.ordered)
        return graph

    def mv(self, u: Tensor) -> Tensor:
        moved = u.movedim(self.dims[0], 0)
        product = sparse_product(self.pattern, self.value, _flat(moved))
        return product.view(moved.shape).movedim(0, self.dims[0])

    def vjp(self, u: Tensor, w: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        if not any(wanted):
            return [None]
        n, columns = self.pattern.num_nodes, math.prod(u.shape) // max(1, self.pattern.num_nodes)
        a, b = (x.detach().movedim(self.dims[0], 0).reshape(n, columns) for x in (w, u))
        gradient = sampled_product(self.pattern, a, b)
        if not self.ordered:
            gradient = torch.empty_like(gradient).scatter_(0, self.pattern.perm.long(), gradient)
        return [gradient]

    def transpose(self) -> LinearOperator:
        return TransposedGraph(self)

    def check(self, u: Tensor) -> None:
        check_tensors(type(self).__name__, self.tensors, u)
        check_size("Graph", u, self.dims[0], self.pattern.num_nodes)

    def symmetric(self) -> bool:
        """Whether the matrix equals its transpose, with duplicate edges added up."""
        return equals_transpose(self._entries(), self.pattern.num_nodes)

    def disc(self) -> tuple[float, float] | None:
        return None if self.radius is None else (0.0, self.radius)

    def largest_eigenvalue(self) -> float:
        return super().largest_eigenvalue() if self.largest is None else self.largest

    def gershgorin(self) -> tuple[Tensor, Tensor]:
        return (along(self._diagonal(), self.dims[0]),
                along(self._sum_of(self.value.detach().abs(), loops=False), self.dims[0]))

    def size_along(self, dim: int) -> int | None:
        return self.pattern.num_nodes if dim == self.dims[0] else None

    def _diagonal(self) -> Tensor:
        return self._sum_of(self.value.detach(), loops=True)

    def _sum_of(self, value: Tensor, *, loops: bool) -> Tensor:
        """The row sums of the self-loops, or of all other entries."""
        chosen = (self.pattern.row == self.pattern.col) == loops
        return segment_sum(self.pattern, torch.where(chosen, value, 0.0))

    def diagonal(self, u: Tensor) -> Tensor:
        return along(self._diagonal(), self.dims[0])

    def to_coo(self, dim: int, size: int) -> Entries | None:
        if dim != self.dims[0]:
            return None
        return self._entries()

    def _entries(self) -> Entries:
        col, row = self.pattern.edge_index()
        return Entries(row, col, self.value.detach())

    def __repr__(self) -> str:
        return (f"{type(self).__name__}(num_nodes={self.pattern.num_nodes}, "
                f"num_edges={self.pattern.num_entries})")


class TransposedGraph(LinearOperator):
    """The transpose of a graph operator: the transposed pattern with the same weights.

    Args:
        graph (Graph): The operator to transpose.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.dims = graph, graph.dims

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.graph.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> TransposedGraph:
        other = copy.copy(self)
        other.graph = self.graph.with_tensors(tensors)
        return other

    def turned(self) -> Graph:
        """The transposed matrix as a :class:`Graph`."""
        pattern = self.graph.pattern
        value = self.graph.value.index_select(0, pattern.to_transpose)
        return Graph.of_pattern(pattern.T, value, dim=self.dims[0], largest=self.graph.largest,
                                radius=self.graph.radius)

    def mv(self, u: Tensor) -> Tensor:
        return self.turned().mv(u)

    def transpose(self) -> Graph:
        return self.graph

    def check(self, u: Tensor) -> None:
        self.graph.check(u)

    def symmetric(self) -> bool:
        return self.graph.symmetric()

    def disc(self) -> tuple[float, float] | None:
        return self.graph.disc()

    def largest_eigenvalue(self) -> float:
        return self.graph.largest_eigenvalue()

    def gershgorin(self) -> tuple[Tensor, Tensor]:
        return self.turned().gershgorin()

    def size_along(self, dim: int) -> int | None:
        return self.graph.size_along(dim)

    def diagonal(self, u: Tensor) -> Tensor:
        return self.graph.diagonal(u)

    def to_coo(self, dim: int, size: int) -> Entries | None:
        return self.turned().to_coo(dim, size)


class ShiftedGraph(LinearOperator):
    """The matrix a I + f M of a graph matrix M, with a product in two passes over memory.

    Args:
        graph (Graph): The matrix M.
        factor (float): The number f.
        number (float): The number a.
    """

    def __init__(self, graph: Graph, factor: float, number: float) -> None:
        self.pattern, self.value, self.dims = graph.pattern, graph.value * factor, graph.dims
        self.number = number

    @torch.no_grad()
    def mv(self, u: Tensor) -> Tensor:
        moved = u.movedim(self.dims[0], 0)
        flat = _flat(moved).contiguous()
        out = torch.mul(flat, self.number)
        add_product(out, self.pattern, self.value, flat)
        return out.view(moved.shape).movedim(0, self.dims[0])

    @torch.no_grad()
    def add_product(self, out: Tensor, u: Tensor, alpha: float) -> None:
        moved = out.movedim(self.dims[0], 0)
        if not moved.is_contiguous():
            super().add_product(out, u, alpha)
            return
        out.add_(u, alpha=alpha * self.number)
        flat = _flat(u.movedim(self.dims[0], 0))
        add_product(moved.view(flat.shape), self.pattern, self.value, flat, alpha)


def fused(operator: LinearOperator) -> LinearOperator:
    """A :class:`ShiftedGraph` if I - cJ is a graph plus multiples of the identity; else unchanged.
    """
    if type(operator) is not Shifted:
        return operator
    J = operator.operator
    terms = J.terms if type(J) is Sum else (J,)
    number, graphs = 1.0, []
    for term in terms:
        d = term.as_diagonal()
        if d is None:
            graphs.append(term)
        elif isinstance(d, Tensor) and d.dim() > 0:
            return operator
        else:
            number -= operator.c * as_float(d)
    if len(graphs) != 1 or not isinstance(graphs[0], (Graph, TransposedGraph)):
        return operator
    graph = graphs[0]
    inner = graph.graph if isinstance(graph, TransposedGraph) else graph
    if graph.is_foreign() or inner.is_foreign():  # may have a product of its own
        return operator
    return ShiftedGraph(graph.turned() if isinstance(graph, TransposedGraph) else graph,
                        -operator.c, number)


def _flat(moved: Tensor) -> Tensor:
    """The state with its nodes first and all other dimensions flattened into the second."""
    return moved.reshape(moved.size(0), math.prod(moved.shape[1:]))
