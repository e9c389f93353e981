"""How is a graph read from the argument of a layer or operator, and when is it invalid?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor


def as_edges(
    adjacency: Any, edge_weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, int | None]:
    """Reads a graph as the entries of a matrix.

    Args:
        adjacency (Tensor or SparseTensor): An ``edge_index``, a ``torch.sparse`` tensor or a
            ``torch_sparse.SparseTensor``.
        edge_weight (Tensor, optional): The edge weights, only with an ``edge_index``.
            (default: :obj:`None`)

    Returns:
        (row, col, value, num_nodes): target, source and weight of each entry (weight None if there
        are no weights), and the number of nodes if the argument determines it, else None.

    Raises:
        TypeError: if the argument is none of the three, or its dtype or layout is not supported.
        ValueError: if its shape does not fit, or weights are given twice.
    """
    if isinstance(adjacency, SparseTensor):
        _refuse_second_weight(edge_weight)
        _check_matrix(adjacency.sizes())
        row, col, value = adjacency.coo()
        return row, col, value, adjacency.size(0)
    if not isinstance(adjacency, Tensor):
        raise TypeError(
            "Expected the graph as an edge_index tensor, a torch.sparse tensor or a "
            f"torch_sparse.SparseTensor (got {type(adjacency).__name__}); pass data.edge_index.")
    if adjacency.layout != torch.strided:
        _refuse_second_weight(edge_weight)
        _check_matrix(adjacency.shape)
        row, col, value = _torch_sparse_entries(adjacency)
        return row, col, value, adjacency.size(0)
    _check_edge_index(adjacency, edge_weight)
    known = None
    if isinstance(adjacency, EdgeIndex):
        known = _size_of(adjacency)
        adjacency = adjacency.as_tensor()
    return adjacency[1].long(), adjacency[0].long(), edge_weight, known


def check_range(row: Tensor, col: Tensor, num_nodes: int | None, known: int | None = None) -> int:
    """Checks that node indices are in range, and returns the number of nodes.

    Args:
        row, col (Tensor): Target and source of each edge.
        num_nodes (int, optional): The number of nodes given by the user.
        known (int, optional): The number of nodes given by the graph. (default: :obj:`None`)

    Raises:
        ValueError: if an index is negative or too large, or the two numbers differ.
    """
    if num_nodes is not None and num_nodes < 0:
        raise ValueError(f"Expected num_nodes from 0 up (got {num_nodes}).")
    if num_nodes is not None and known is not None and num_nodes != known:
        raise ValueError(f"Expected num_nodes to be the size of the adjacency matrix, {known} (got "
                         f"{num_nodes}).")
    count = known if num_nodes is None else num_nodes
    if row.numel() == 0:
        return count or 0
    ends = torch.stack([row, col])
    low, high = int(ends.min()), int(ends.max())
    if count is None:
        count = high + 1
    if low < 0 or high >= count:
        raise ValueError(f"Expected node indices from 0 to {count - 1} in edge_index (got {low} to "
                         f"{high}); check num_nodes, or that features and edges belong together.")
    return count


def _torch_sparse_entries(adjacency: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if adjacency.layout == torch.sparse_coo:
        coo = adjacency.coalesce()
        return coo.indices()[0], coo.indices()[1], coo.values()
    if adjacency.layout == torch.sparse_csr:
        outer, inner = adjacency.crow_indices(), adjacency.col_indices()
    elif adjacency.layout == torch.sparse_csc:
        outer, inner = adjacency.ccol_indices(), adjacency.row_indices()
    else:
        raise TypeError(f"Expected a torch.sparse tensor in COO, CSR or CSC layout (got "
                        f"{adjacency.layout}); convert it with adjacency.to_sparse_csr().")
    rises = outer.diff()
    if outer.numel() != adjacency.size(0) + 1 or int(outer[0]) != 0 or int(
            outer[-1]) != inner.numel() or bool((rises < 0).any()):
        raise ValueError("Expected compressed indices that rise from 0 to the number of entries in "
                         f"a torch.sparse tensor (got {outer[:8].tolist()}...); build it with "
                         "check_invariants=True.")
    count = torch.arange(outer.numel() - 1, device=outer.device)
    long = count.repeat_interleave(rises, output_size=inner.numel())
    inner = inner.long()
    row, col = (long, inner) if adjacency.layout == torch.sparse_csr else (inner, long)
    return row, col, adjacency.values()


def _check_matrix(shape: Sequence[int]) -> None:
    if len(shape) != 2:
        raise ValueError(f"Expected a sparse adjacency matrix with one number per entry (got shape "
                         f"{tuple(shape)}); pass one matrix.")
    if shape[0] != shape[1]:
        raise ValueError(f"Expected a square adjacency matrix (got {shape[0]} x {shape[1]}); "
                         "bipartite graphs have no flow of their own, pass one graph.")


def _size_of(adjacency: EdgeIndex) -> int | None:
    """The number of nodes stored in an EdgeIndex; None if there is none."""
    sizes = [size for size in adjacency.sparse_size() if size is not None]
    if len(set(sizes)) > 1:
        raise ValueError(f"Expected a square adjacency matrix (got {sizes[0]} x {sizes[1]}); "
                         "bipartite graphs have no flow of their own, pass one graph.")
    return sizes[0] if sizes else None


def _refuse_second_weight(edge_weight: Tensor | None) -> None:
    if edge_weight is not None:
        raise ValueError("Expected no edge_weight beside a sparse adjacency matrix (got both); its "
                         "values are the weights, set them there.")


def _check_edge_index(edge_index: Tensor, edge_weight: Tensor | None) -> None:
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"Expected edge_index of an integer dtype (got {edge_index.dtype}); use "
                        "torch.long, or adjacency.to_sparse_csr() for a dense adjacency matrix.")
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"Expected edge_index of shape (2, num_edges) (got "
                         f"{tuple(edge_index.shape)}); transpose a list of pairs.")
    if edge_weight is not None and edge_weight.shape != (edge_index.size(1),):
        raise ValueError(f"Expected edge_weight of shape ({edge_index.size(1)},), one number per "
                         f"edge (got {tuple(edge_weight.shape)}); an edge_attr of shape "
                         "(num_edges, 1) becomes one by .squeeze(-1), and a layer with edge_dim "
                         "takes more as edge_attr=.")
