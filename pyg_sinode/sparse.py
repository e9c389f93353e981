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
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor

from .precision import without_autocast

__all__ = [
    "Pattern", "as_edges", "check_range", "gather_rows", "reorder", "sampled_heads",
    "sampled_product", "segment_max", "segment_sum", "sparse_product",
]


class Pattern:
    r"""The places of the entries of a sparse matrix :math:`M_{target, source}`, sorted by row.

    Values belonging to a pattern are one-dimensional and in its own (row-sorted) order; duplicate
    entries are kept and add up. A pattern and its transpose are two views of one structure, and
    neither refers to the other.

    Args:
        row (Tensor): Target node of each entry, in any order, from 0 to num_nodes - 1.
        col (Tensor): Source node of each entry.
        num_nodes (int): Number of rows and of columns.
        checked (bool): Whether :func:`check_range` has seen them. (default: :obj:`False`)

    Shapes:
        - **row, col:** :math:`(|\mathcal{E}|)`, dimensionless

    Raises:
        ValueError: if an index is out of range.
    """

    perm: Tensor  # the place in the given order of each entry
    place: Tensor  # of a pattern of copies: the place of each (entry, copy)

    # What is kept must serve training too, though it be made under torch.inference_mode.
    @torch.inference_mode(False)
    def __init__(self, row: Tensor, col: Tensor, num_nodes: int, *, checked: bool = False) -> None:
        if not checked:  # kernels trust the indices
            check_range(row, col, num_nodes)
        row, self.perm = _sorted(row, num_nodes)
        col = col.long().index_select(0, self.perm)
        self._view(_Structure(_Sorted.of(row, col, num_nodes)), turned=False)

    def _view(self, structure: _Structure, *, turned: bool) -> None:
        self._structure, self._is_turned = structure, turned
        self._own: _Sorted = structure.turned() if turned else structure.given

    @property
    def num_nodes(self) -> int:
        """Number of rows and of columns."""
        return self._own.num_nodes

    @property
    def num_entries(self) -> int:
        """How many entries are stored."""
        return self.col.numel()

    @property
    def row(self) -> Tensor:
        """The row of each entry, in increasing order."""
        return self._own.row

    @property
    def col(self) -> Tensor:
        """The column of each entry."""
        return self._own.col

    @property
    def pointer(self) -> Tensor:
        """Where each row begins, and the number of entries."""
        return self._own.pointer

    @property
    def T(self) -> Pattern:
        """The transposed pattern, sorted by its own rows; ``values[to_transpose]`` fit it."""
        other = object.__new__(Pattern)
        other._view(self._structure, turned=not self._is_turned)
        return other

    @property
    def to_transpose(self) -> Tensor:
        """The permutation that carries values of this pattern to the order of ``T``."""
        return self._structure.back() if self._is_turned else self._structure.order()

    @torch.inference_mode(False)
    def blocks(self, count: int) -> Pattern:
        """The pattern of ``count`` independent copies, made once: one product serves all heads.

        Copy h of node i is row i * count + h, so that (nodes, heads * channels) is, as it lies in
        memory, (nodes * heads, channels), and the copies of a neighbour lie side by side.
        """
        structure, place, perm = self._structure.blocks(count)
        block = object.__new__(Pattern)
        block._view(structure, turned=self._is_turned)
        block.place, block.perm = place[self._is_turned], perm[self._is_turned]
        return block

    def matrix(self, value: Tensor) -> Tensor:
        """The pattern with values, as a ``torch.sparse_csr`` tensor that shares their memory."""
        self._check_entries(value)
        if value.dim() != 1:
            raise ValueError(f"Expected one number for each entry of the pattern (got shape "
                             f"{tuple(value.shape)}).")
        _take_beta_warning()
        pointer, col = self._own.narrow
        return torch.sparse_csr_tensor(
            pointer, col, value, (self.num_nodes, self.num_nodes), check_invariants=False)

    def sums(self, dtype: torch.dtype, columns: bool = False) -> Tensor:
        """The matrix that adds up the entries of each row, or of each column; kept."""
        key = (dtype, columns)
        if key not in self._own.sums:
            _take_beta_warning()
            ones = torch.ones(self.num_entries, dtype=dtype, device=self.row.device)
            pointer, entry = self.segments(columns)
            pointer, entry = _narrow(pointer, entry, max(self.num_entries, self.num_nodes))
            self._own.sums[key] = torch.sparse_csr_tensor(
                pointer, entry, ones, (self.num_nodes, self.num_entries), check_invariants=False)
        return self._own.sums[key]

    def segments(self, columns: bool = False) -> tuple[Tensor, Tensor]:
        """Where each row, or column, begins in a list of entries, and that list."""
        if columns:
            return self.T.pointer, self.to_transpose
        return self.pointer, torch.arange(self.num_entries, device=self.row.device)

    def _check_entries(self, value: Tensor) -> None:
        """Refuses values that are not one for each entry: a kernel would read past their end."""
        if value.size(0) != self.num_entries:
            raise ValueError(f"Expected one value for each of the {self.num_entries} entries of "
                             f"the pattern (got shape {tuple(value.shape)}); weights and edges "
                             "belong together.")

    def _check_nodes(self, x: Tensor) -> None:
        """Refuses features that are not one row for each node."""
        if x.size(0) != self.num_nodes:
            raise ValueError(f"Expected one row for each of the {self.num_nodes} nodes of the "
                             f"pattern (got shape {tuple(x.shape)}).")


class _Sorted:
    """Entries sorted by row, and what products with them need; refers to nothing else."""

    def __init__(self, pointer: Tensor, col: Tensor, row: Tensor | None = None) -> None:
        self.pointer, self.col, self.num_nodes = pointer, col, pointer.numel() - 1
        self.sums: dict[tuple[torch.dtype, bool], Tensor] = {}
        if row is not None:
            self.row = row

    @classmethod
    def of(cls, row: Tensor, col: Tensor, num_nodes: int) -> _Sorted:
        """That of entries in the order of their rows."""
        return cls(torch._convert_indices_from_coo_to_csr(row, num_nodes), col, row)

    @cached_property
    @torch.inference_mode(False)
    def row(self) -> Tensor:
        """The row of each entry."""
        return torch.repeat_interleave(self.pointer.diff(), output_size=self.col.numel())

    @cached_property
    @torch.inference_mode(False)
    def narrow(self) -> tuple[Tensor, Tensor]:
        """The pointer and the columns, in 32 bits where they suffice."""
        return _narrow(self.pointer, self.col, max(self.col.numel(), self.num_nodes))

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k != "narrow"}
        return kept | {"sums": {}}


class _Structure:
    """A pattern and its transpose, made when it is first asked for, and their copies for heads."""

    def __init__(self, given: _Sorted) -> None:
        self.given = given
        self._turned: _Sorted | None = None
        self._order: Tensor | None = None
        self._back: Tensor | None = None
        self._blocks: dict[int, _Blocks] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_blocks": {}}

    @torch.inference_mode(False)
    def turned(self) -> _Sorted:
        """The entries sorted by column, as those of the transpose."""
        if self._turned is None:
            order = self.order()
            row, col = (x.index_select(0, order) for x in (self.given.col, self.given.row))
            self._turned = _Sorted.of(row, col, self.given.num_nodes)
        return self._turned

    @torch.inference_mode(False)
    def order(self) -> Tensor:
        """The permutation from the given order to that of the transpose."""
        if self._order is None:
            self._order = _sorted(self.given.col, self.given.num_nodes)[1]
        return self._order

    @torch.inference_mode(False)
    def back(self) -> Tensor:
        """The permutation from the order of the transpose to the given one."""
        if self._back is None:
            self._back = torch.argsort(self.order())
        return self._back

    def blocks(self, count: int) -> _Blocks:
        """The structure of ``count`` copies, with place and perm of it and of its transpose."""
        if count not in self._blocks:
            given, place, perm = _interleaved(self.given, count)
            turned, turned_place, turned_perm = _interleaved(self.turned(), count)
            structure = _Structure(given)
            structure._turned = turned
            # From (entry of the transpose, copy) to (entry, copy), and to its place among these.
            moved = self.order().to(perm.dtype).index_select(0, turned_perm // count)
            moved = moved.mul_(count).add_(turned_perm % count)
            structure._order = place.view(-1).index_select(0, moved)
            self._blocks[count] = structure, (place, turned_place), (perm, turned_perm)
        return self._blocks[count]


_Blocks = tuple[_Structure, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def _interleaved(own: _Sorted, count: int) -> tuple[_Sorted, Tensor, Tensor]:
    """The copies, the place of each (entry, copy) among them, and the inverse of that."""
    pointer, col = own.narrow
    degree, total = pointer.diff(), count * own.col.numel()
    if total >= 2**31 or count * own.num_nodes >= 2**31:
        pointer, col, degree = pointer.long(), col.long(), degree.long()
    copies = torch.arange(count, dtype=col.dtype, device=col.device)
    # Where each copy of a row begins: the copies of a node lie side by side.
    start = (pointer[:-1] * count).unsqueeze(1) + degree.unsqueeze(1) * copies
    starts = torch.cat([start.view(-1), pointer[-1:] * count])
    row = torch.repeat_interleave(starts.diff(), output_size=total)  # of each entry of a copy
    first = (pointer[:-1].unsqueeze(1) - start).view(-1)
    entry = torch.arange(total, dtype=col.dtype, device=col.device).add_(first.index_select(0, row))
    copy = row.remainder_(count)
    perm = (entry * count).add_(copy)
    place = torch.arange(own.col.numel(), dtype=col.dtype, device=col.device)
    own_row = torch.repeat_interleave(degree, output_size=place.numel())
    place = (place.add_((pointer[:-1] * (count - 1)).index_select(0, own_row)).unsqueeze(1)
             + degree.index_select(0, own_row).unsqueeze(1) * copies)
    return _Sorted(starts, col.index_select(0, entry).mul_(count).add_(copy)), place, perm


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
    known = None
    if isinstance(adjacency, EdgeIndex):
        known = _size_of(adjacency)
        adjacency = adjacency.as_tensor()
    return adjacency[1].long(), adjacency[0].long(), edge_weight, known


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
    pattern._check_entries(value)
    if value.numel() == 0:
        return value.new_full((pattern.num_nodes, *value.shape[1:]), -math.inf)
    pointer, entry = pattern.segments(columns)
    value = value.detach().index_select(0, entry) if columns else value.detach()
    return torch.segment_reduce(value, "max", offsets=pointer, axis=0, unsafe=True)


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, value: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(value, x)
        pattern._check_entries(value)
        pattern._check_nodes(x)
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
    @without_autocast
    def forward(ctx: Any, a: Tensor, b: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(a, b)
        pattern._check_nodes(a)
        pattern._check_nodes(b)
        value = a.new_zeros(pattern.num_entries)
        if value.numel() == 0 or a.size(1) == 0:
            return value
        if pattern.num_entries > pattern.num_nodes**2:
            # So many parallel edges that sampled_addmm would take its output for too large, and
            # shrink it; all products of two nodes are fewer than the entries then.
            return (a @ b.t())[pattern.row, pattern.col]
        # Into a matrix of our own, or its indices would be copied with the result.
        matrix = pattern.matrix(value)
        torch.sparse.sampled_addmm(matrix, a.contiguous(), b.contiguous().t(), beta=0.0, out=matrix)
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
    @without_autocast
    def forward(ctx: Any, value: Tensor, pattern: Pattern, columns: bool) -> Tensor:
        ctx.pattern, ctx.columns = pattern, columns
        pattern._check_entries(value)
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


def _sorted(index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """The indices in increasing order, and the place that each comes from."""
    # Half the bits are sorted in half the time.
    values, order = torch.sort(index.int() if num_nodes < 2**31 else index.long(), stable=True)
    return values.long(), order


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
    """The number of nodes that an EdgeIndex knows, if it does."""
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
                         "(num_edges, 1) becomes one by .squeeze(1).")
