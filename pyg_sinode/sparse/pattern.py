"""How is the sparsity pattern of a matrix stored and transposed?"""

from __future__ import annotations

import warnings
from functools import cache, cached_property

import torch
from torch import Tensor

from ..transforms import of_batch
from .edges import check_range


class Pattern:
    r"""The sparsity pattern of a matrix :math:`M_{target, source}`, sorted by row.

    The values of the entries are separate tensors, in the row-sorted order of the pattern along
    their last dimension; duplicate entries are kept and add up. A pattern and its transpose are two
    views of one structure, and neither refers to the other. Indices have 32 bits if that suffices:
    the pattern and its transpose take 20 bytes per entry and 8 per node, for any number of heads.

    Args:
        row (Tensor): Target node of each entry, in any order, from 0 to num_nodes - 1.
        col (Tensor): Source node of each entry.
        num_nodes (int): Number of rows and of columns.
        checked (bool): Whether :func:`check_range` has checked the indices.
            (default: :obj:`False`)

    Shapes:
        - **row, col:** :math:`(|\mathcal{E}|)`, dimensionless

    Raises:
        ValueError: if an index is out of range.
    """

    # A cached pattern must also serve training, even if made under torch.inference_mode.
    @torch.inference_mode(False)
    def __init__(self, row: Tensor, col: Tensor, num_nodes: int, *, checked: bool = False) -> None:
        if not checked:  # kernels do not check the indices
            check_range(row, col, num_nodes)
        dtype = torch.int32 if max(num_nodes, row.numel()) < 2**31 else torch.int64
        row, perm = _sorted(row.to(dtype))
        col = col.index_select(0, perm).to(dtype)
        self._view(_Structure(_Sorted(row, col, num_nodes), perm), turned=False)

    def _view(self, structure: _Structure, *, turned: bool) -> None:
        self._structure, self._is_turned = structure, turned
        self._own: _Sorted = structure.turned() if turned else structure.given

    @property
    def num_nodes(self) -> int:
        """Number of rows and of columns."""
        return self._own.num_nodes

    @property
    def num_entries(self) -> int:
        """Number of stored entries."""
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
        """The CSR row pointer, the index of each row's first entry and the number of entries."""
        return self._own.pointer

    @property
    def T(self) -> Pattern:
        """The transposed pattern, sorted by its own rows; its values are ``values[to_transpose]``.
        """
        other = object.__new__(Pattern)
        other._view(self._structure, turned=not self._is_turned)
        return other

    @property
    def perm(self) -> Tensor:
        """The index of each entry in the order in which the edges were given."""
        perm = self._structure.perm
        return perm.index_select(0, self._structure.order()) if self._is_turned else perm

    @property
    def to_transpose(self) -> Tensor:
        """The permutation from the order of this pattern to the order of ``T``."""
        return self._structure.back() if self._is_turned else self._structure.order()

    def edge_index(self) -> Tensor:
        """The entries as a PyG edge_index: sources, then targets, in 64 bits."""
        return torch.stack([self.col, self.row]).long()

    def matrix(self, value: Tensor) -> Tensor:
        """The pattern with values, as a ``torch.sparse_csr`` tensor that shares their memory."""
        self.check_entries(value)
        if value.dim() != 1:
            raise ValueError(f"Expected one number for each entry of the pattern (got shape "
                             f"{tuple(value.shape)}).")
        return csr_matrix(self.pointer, self.col, value, (self.num_nodes, self.num_nodes))

    def starts(self, count: int) -> Tensor:
        """The first index of each row in ``count`` concatenated lists of values, and the end."""
        return self._own.starts(count)

    def check_entries(self, value: Tensor) -> None:
        """Refuses values that are not one per entry: a kernel would read beyond their end."""
        if value.size(-1) != self.num_entries:
            raise ValueError(f"Expected one value for each of the {self.num_entries} entries of "
                             f"the pattern (got shape {tuple(value.shape)}); weights and edges "
                             "belong together.")

    def check_nodes(self, x: Tensor) -> None:
        """Raises a ValueError if x does not have one row per node."""
        if x.size(0) != self.num_nodes:
            raise ValueError(f"Expected one row for each of the {self.num_nodes} nodes of the "
                             f"pattern (got shape {tuple(x.shape)}).")


class _Sorted:
    """Entries sorted by row, without a reference to the transpose."""

    KEPT = 2**16  # larger tensors of starts are not cached: making them is cheap beside their use

    def __init__(self, row: Tensor, col: Tensor, num_nodes: int) -> None:
        self.col, self.num_nodes = col, num_nodes
        self.pointer = torch._convert_indices_from_coo_to_csr(
            row, num_nodes, out_int32=row.dtype == torch.int32)
        self._starts: dict[int, Tensor] = {}

    @cached_property
    @torch.inference_mode(False)
    def row(self) -> Tensor:
        """The row of each entry."""
        return torch.repeat_interleave(self.pointer.diff(), output_size=self.col.numel())

    @torch.inference_mode(False)
    def starts(self, count: int) -> Tensor:
        """The first index of each row in ``count`` concatenated lists of values, and the end."""
        if count == 1:
            return self.pointer
        if count in self._starts:
            return self._starts[count]
        total = count * self.col.numel()
        own = self.pointer if total < 2**31 else self.pointer.long()
        before = torch.arange(count, dtype=own.dtype, device=own.device) * self.col.numel()
        starts = torch.cat([(before.unsqueeze(1) + own[:-1]).view(-1), own.new_full((1,), total)])
        if starts.numel() <= self.KEPT:
            self._starts[count] = starts
        return starts


class _Structure:
    """A pattern and its transpose, which is computed at its first use."""

    def __init__(self, given: _Sorted, perm: Tensor) -> None:
        self.given, self.perm = given, perm
        self._turned: _Sorted | None = None
        self._order: Tensor | None = None
        self._back: Tensor | None = None

    @torch.inference_mode(False)
    def turned(self) -> _Sorted:
        """The entries of the transpose: sorted by column."""
        if self._turned is None:
            order = self.order()
            row, col = (x.index_select(0, order) for x in (self.given.col, self.given.row))
            self._turned = _Sorted(row, col, self.given.num_nodes)
        return self._turned

    @torch.inference_mode(False)
    def order(self) -> Tensor:
        """The permutation from the given order to that of the transpose."""
        if self._order is None:
            self._order = _sorted(self.given.col)[1]
        return self._order

    @torch.inference_mode(False)
    def back(self) -> Tensor:
        """The permutation from the order of the transpose to the given one."""
        if self._back is None:
            self._back = _sorted(self.order())[1]
        return self._back


def _sorted(index: Tensor) -> tuple[Tensor, Tensor]:
    """The indices in increasing order and the sorting permutation, in their own dtype."""
    values, order = torch.sort(index, stable=True)
    return values, order.to(index.dtype)


def csr_matrix(pointer: Tensor, col: Tensor, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A ``torch.sparse_csr`` tensor that shares the memory of its parts, without checks."""
    take_beta_notice()
    try:
        return torch.sparse_csr_tensor(pointer, col, value, shape, device=value.device,
                                       check_invariants=False)
    except RuntimeError as error:
        raise of_batch(error) from error


@cache
def take_beta_notice() -> None:
    """Suppresses PyTorch's notice about sparse CSR tensors, issued once per process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)
