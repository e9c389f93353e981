"""How is a sparse matrix on a graph stored, and how are its products differentiated?

A :class:`Pattern` is sorted once per graph; the functions below take it with the values of the
entries, and are closed under differentiation: each one's gradient is made of the others, so that
gradients of any order exist and none of them forms an edges-by-channels tensor.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch_geometric.typing import SparseTensor

__all__ = [
    "Pattern", "as_edges", "check_range", "gather_rows", "reorder", "sampled_heads",
    "sampled_product", "segment_max", "segment_sum", "sparse_product",
]


class Pattern:
    r"""The places of the entries of a sparse matrix :math:`M_{target, source}`, sorted by row.

    Values belonging to a pattern are one-dimensional and in its own (row-sorted) order; duplicate
    entries are kept and add up.

    Args:
        row (Tensor): Target node of each entry, in any order.
        col (Tensor): Source node of each entry.
        num_nodes (int): Number of rows and of columns.

    Shapes:
        - **row, col:** :math:`(|\mathcal{E}|)`, dimensionless
    """

    perm: Tensor  # the place in the given order of each entry

    # What is kept must serve training too, though it be made under torch.inference_mode.
    @torch.inference_mode(False)
    def __init__(self, row: Tensor, col: Tensor, num_nodes: int) -> None:
        # An edge_index may come in 32 bits.
        self.row, self.perm = torch.sort(row.long(), stable=True)
        self.col = col.long().index_select(0, self.perm)
        self._finish(num_nodes)

    def _finish(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        self.place: Tensor  # of a pattern of copies: the place of each (entry, copy)
        self.pointer = torch._convert_indices_from_coo_to_csr(self.row, num_nodes)
        self._transpose: Pattern | None = None
        self._made_from: Pattern | None = None
        self._blocks: dict[int, Pattern] = {}
        self._sums: dict[tuple[torch.dtype, bool], Tensor] = {}

    @property
    def num_entries(self) -> int:
        """How many entries are stored."""
        return self.row.numel()

    @property
    def T(self) -> Pattern:
        """The transposed pattern, sorted by its own rows; ``values[to_transpose]`` fit it."""
        if self._transpose is None:
            other = Pattern(self.col, self.row, self.num_nodes)
            other._transpose, other._made_from, self._transpose = self, self, other
        return self._transpose

    @cached_property
    @torch.inference_mode(False)
    def to_transpose(self) -> Tensor:
        """The permutation that carries values of this pattern to the order of ``T``."""
        other = self.T
        return other.perm if other._made_from is self else torch.argsort(other.to_transpose)

    @torch.inference_mode(False)
    def blocks(self, count: int) -> Pattern:
        """The pattern of ``count`` independent copies, made once: one product serves all heads.

        Copy h of node i is row i * count + h, so that (nodes, heads * channels) is, as it lies in
        memory, (nodes * heads, channels), and the copies of a neighbour lie side by side.
        """
        if count not in self._blocks:
            block, place = self._interleaved(count)
            turned, turned_place = self.T._interleaved(count)
            block._transpose, turned._transpose = turned, block
            ordered = torch.empty_like(block.row)
            ordered[turned_place.view(-1)] = place[self.to_transpose].view(-1)
            block.__dict__["to_transpose"] = ordered
            self._blocks[count] = block
        return self._blocks[count]

    def _interleaved(self, count: int) -> tuple[Pattern, Tensor]:
        """The copies, and the place (entry, copy) of each copy's entries among them."""
        copies = torch.arange(count, device=self.row.device)
        entry = torch.arange(self.num_entries, device=self.row.device)
        start = self.pointer.index_select(0, self.row)
        degree = self.pointer.diff().index_select(0, self.row)
        place = (start * (count - 1) + entry).unsqueeze(1) + copies * degree.unsqueeze(1)
        block = object.__new__(Pattern)

        def placed(values: Tensor) -> Tensor:
            result = values.new_empty(place.numel())
            return result.scatter_(0, place.view(-1), values.reshape(-1))

        block.row = placed((self.row * count).unsqueeze(1) + copies)
        block.col = placed((self.col * count).unsqueeze(1) + copies)
        block.perm, block.place = placed(torch.arange(place.numel(), device=place.device)), place
        block._finish(count * self.num_nodes)
        return block, place

    def matrix(self, value: Tensor) -> Tensor:
        """The pattern with values, as a ``torch.sparse_csr`` tensor that shares their memory."""
        _take_beta_warning()
        pointer, col = self._indices
        return torch.sparse_csr_tensor(
            pointer, col, value, (self.num_nodes, self.num_nodes), check_invariants=False)

    @cached_property
    def _indices(self) -> tuple[Tensor, Tensor]:
        return _narrow(self.pointer, self.col, max(self.num_entries, self.num_nodes))

    def sums(self, dtype: torch.dtype, columns: bool = False) -> Tensor:
        """The matrix that adds up the entries of each row, or of each column; kept."""
        if (dtype, columns) not in self._sums:
            _take_beta_warning()
            ones = torch.ones(self.num_entries, dtype=dtype, device=self.row.device)
            pointer, entry = self.segments(columns)
            pointer, entry = _narrow(pointer, entry, max(self.num_entries, self.num_nodes))
            self._sums[dtype, columns] = torch.sparse_csr_tensor(
                pointer, entry, ones, (self.num_nodes, self.num_entries), check_invariants=False)
        return self._sums[dtype, columns]

    def segments(self, columns: bool = False) -> tuple[Tensor, Tensor]:
        """Where each row, or column, begins in a list of entries, and that list."""
        if columns:
            return self.T.pointer, self.to_transpose
        return self.pointer, torch.arange(self.num_entries, device=self.row.device)


def as_edges(
    adjacency: Any, edge_weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, int | None]:
    """Reads ``edge_index``, a ``torch.sparse`` tensor or a ``SparseTensor`` as matrix entries.

    Returns:
        (row, col, value, num_nodes): target, source and weight of each entry (weight None where
        there is none), and the number of nodes where the argument knows it.

    Raises:
        TypeError: if the argument is none of the three, or its dtype is not one of theirs.
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
    return adjacency[1].long(), adjacency[0].long(), edge_weight, None


def check_range(row: Tensor, col: Tensor, num_nodes: int | None, known: int | None = None) -> int:
    """The number of nodes; refuses indices outside it.

    Raises:
        ValueError: if an index is negative or too large, or two numbers of nodes disagree.
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


def sparse_product(pattern: Pattern, value: Tensor, x: Tensor) -> Tensor:
    r"""The product :math:`y_i = \sum_{e: row(e) = i} v_e\, x_{col(e)}`, with its gradients.

    Shapes:
        - **value:** :math:`(|\mathcal{E}|)` - **x:** :math:`(|\mathcal{V}|, C)`
        - **output:** :math:`(|\mathcal{V}|, C)`
    """
    result: Tensor = _SparseProduct.apply(value, x, pattern)
    return result


def sampled_product(pattern: Pattern, a: Tensor, b: Tensor) -> Tensor:
    r"""The inner products :math:`s_e = \langle a_{row(e)}, b_{col(e)} \rangle`, with gradients.

    Shapes:
        - **a, b:** :math:`(|\mathcal{V}|, C)`
        - **output:** :math:`(|\mathcal{E}|)`
    """
    result: Tensor = _SampledProduct.apply(a, b, pattern)
    return result


def segment_sum(pattern: Pattern, value: Tensor, columns: bool = False) -> Tensor:
    r"""The row sums :math:`z_i = \sum_{e: row(e) = i} v_e`, or column sums, with their gradient.

    Shapes:
        - **value:** :math:`(|\mathcal{E}|)` or :math:`(|\mathcal{E}|, H)`
        - **output:** :math:`(|\mathcal{V}|)` or :math:`(|\mathcal{V}|, H)`
    """
    result: Tensor = _SegmentSum.apply(value, pattern, columns)
    return result


def gather_rows(pattern: Pattern, z: Tensor, columns: bool = False) -> Tensor:
    r"""Each entry's row value :math:`v_e = z_{row(e)}`, or column value, with its gradient."""
    result: Tensor = _GatherRows.apply(z, pattern, columns)
    return result


def sampled_heads(pattern: Pattern, a: Tensor, b: Tensor) -> Tensor:
    r"""The inner products per head, :math:`s_{eh} = \langle a_{row(e) h}, b_{col(e) h} \rangle`.

    Shapes:
        - **a, b:** :math:`(|\mathcal{V}|, H, C)`
        - **output:** :math:`(|\mathcal{E}|, H)`
    """
    blocks = pattern.blocks(a.size(1))
    products = sampled_product(blocks, a.flatten(0, 1), b.flatten(0, 1))
    return reorder(products, blocks.place.view(-1), blocks.perm).view(blocks.place.shape)


def reorder(value: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """The values in another order; the gradient goes back by a gather, not by a scatter."""
    result: Tensor = _Reorder.apply(value, order, inverse)
    return result


def segment_max(pattern: Pattern, value: Tensor, columns: bool = False) -> Tensor:
    r"""The row maxima :math:`m_i = \max_{e: row(e) = i} v_e`, or column maxima; shapes as sums.

    Minus infinity where there is no entry. They have no gradient: they shift exponentials that are
    normalised afterwards.
    """
    if value.numel() == 0:
        return value.new_full((pattern.num_nodes, *value.shape[1:]), -math.inf)
    pointer, entry = pattern.segments(columns)
    value = value.detach().index_select(0, entry) if columns else value.detach()
    return torch.segment_reduce(value, "max", offsets=pointer, axis=0, unsafe=True)


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(value, x)
        if pattern.num_entries == 0 or x.numel() == 0:
            return torch.zeros_like(x)
        # Into a tensor of our own: torch.mm would make one, fill it, and copy it to another.
        out = torch.zeros_like(x, memory_format=torch.contiguous_format)
        torch.addmm(out, pattern.matrix(value.contiguous()), x.contiguous(), out=out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (value, x) = grads, ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        wanted = ctx.needs_input_grad
        to_value = sampled_product(pattern, g, x) if wanted[0] else None
        to_x = None
        if wanted[1]:
            to_x = sparse_product(pattern.T, value.index_select(0, pattern.to_transpose), g)
        return to_value, to_x, None


class _SampledProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(a, b)
        value = a.new_zeros(pattern.num_entries)
        if value.numel() > 0 and a.size(1) > 0:
            # Into a matrix of our own, or its indices would be copied with the result.
            matrix = pattern.matrix(value)
            torch.sparse.sampled_addmm(
                matrix, a.contiguous(), b.contiguous().t(), beta=0.0, out=matrix)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (a, b) = grads, ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        wanted = ctx.needs_input_grad
        to_a = sparse_product(pattern, g, b) if wanted[0] else None
        to_b = None
        if wanted[1]:
            to_b = sparse_product(pattern.T, g.index_select(0, pattern.to_transpose), a)
        return to_a, to_b, None


class _SegmentSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, pattern: Pattern, columns: bool) -> Tensor:
        ctx.pattern, ctx.columns = pattern, columns
        if value.numel() == 0:
            return value.new_zeros(pattern.num_nodes, *value.shape[1:])
        sums = pattern.sums(value.dtype, columns)
        product = torch.mv if value.dim() == 1 else torch.mm
        return product(sums, value.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return gather_rows(ctx.pattern, grads[0], ctx.columns), None, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, pattern: Pattern, columns: bool) -> Tensor:
        ctx.pattern, ctx.columns = pattern, columns
        return z.index_select(0, pattern.col if columns else pattern.row)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return segment_sum(ctx.pattern, grads[0], ctx.columns), None, None


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return value.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        order, inverse = ctx.saved_tensors
        return reorder(grads[0], inverse, order), None, None


def _narrow(pointer: Tensor, col: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    # 32 bits where they suffice: the sparse kernels would convert longer ones at each product.
    return (pointer.int(), col.int()) if largest < 2**31 else (pointer, col)


@cache
def _take_beta_warning() -> None:
    """Takes PyTorch's once-a-process notice about sparse CSR tensors, and no other warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


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
    count = torch.arange(outer.numel() - 1, device=outer.device)
    long = count.repeat_interleave(outer.diff(), output_size=inner.numel())
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
                         f"edge (got {tuple(edge_weight.shape)}).")
