"""How are the places of a sparse matrix's entries stored, transposed and laid out for heads?"""

from __future__ import annotations

import warnings
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from .edges import check_range


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
        self.check_entries(value)
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

    def check_entries(self, value: Tensor) -> None:
        """Refuses values that are not one for each entry: a kernel would read past their end."""
        if value.size(0) != self.num_entries:
            raise ValueError(f"Expected one value for each of the {self.num_entries} entries of "
                             f"the pattern (got shape {tuple(value.shape)}); weights and edges "
                             "belong together.")

    def check_nodes(self, x: Tensor) -> None:
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
