"""How are products with a sparse matrix on a graph computed and differentiated?

The functions take a pattern and the values of its entries. The gradient of each is composed of the
others, so that gradients of any order exist, and none forms a tensor of edges by channels. Heads
are the first dimension of the values and the second of the features; each head is a product on a
view of them, without a copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..precision import without_autocast
from .pattern import Pattern


def sparse_product(pattern: Pattern, value: Tensor, x: Tensor) -> Tensor:
    r"""The product :math:`y_i = \sum_{e: row(e) = i} v_e\, x_{col(e)}`, differentiable.

    Args:
        pattern (Pattern): The sparsity pattern.
        value (Tensor): The values v of its entries.
        x (Tensor): The node features.

    Shapes:
        - **value:** :math:`(|\mathcal{E}|)` or :math:`(H, |\mathcal{E}|)`
        - **x, output:** :math:`(|\mathcal{V}|, C)` or :math:`(|\mathcal{V}|, H, C)`
    """
    result: Tensor = _SparseProduct.apply(value, x, pattern)
    return result


def add_product(out: Tensor, pattern: Pattern, value: Tensor, x: Tensor, alpha: float = 1.0
                ) -> None:
    """Adds alpha times :func:`sparse_product` to ``out`` in place, for one head; no gradient.

    Raises:
        ValueError: if the shapes do not fit, or ``out`` is not contiguous.
    """
    pattern.check_entries(value)
    pattern.check_nodes(x)
    if out.shape != x.shape or not out.is_contiguous():
        raise ValueError(f"Expected a contiguous sum of the shape of the features, "
                         f"{tuple(x.shape)} (got {tuple(out.shape)}).")
    if pattern.num_entries > 0 and x.numel() > 0:
        torch.addmm(out, pattern.matrix(value.contiguous()), x.contiguous(), alpha=alpha, out=out)


def sampled_product(pattern: Pattern, a: Tensor, b: Tensor) -> Tensor:
    r"""The inner products :math:`s_e = \langle a_{row(e)}, b_{col(e)} \rangle`, differentiable.

    Args:
        pattern (Pattern): The sparsity pattern.
        a, b (Tensor): Two tensors of node features.

    Shapes:
        - **a, b:** :math:`(|\mathcal{V}|, C)` or :math:`(|\mathcal{V}|, H, C)`
        - **output:** :math:`(|\mathcal{E}|)` or :math:`(H, |\mathcal{E}|)`
    """
    result: Tensor = _SampledProduct.apply(a, b, pattern)
    return result


def segment_sum(pattern: Pattern, value: Tensor, columns: bool = False) -> Tensor:
    r"""The row sums :math:`z_i = \sum_{e: row(e) = i} v_e`, or column sums, differentiable.

    Args:
        pattern (Pattern): The sparsity pattern.
        value (Tensor): The values v of its entries.
        columns (bool): Whether to sum over columns. (default: :obj:`False`)

    Shapes:
        - **value:** :math:`(|\mathcal{E}|)` or :math:`(H, |\mathcal{E}|)`
        - **output:** :math:`(|\mathcal{V}|)` or :math:`(H, |\mathcal{V}|)`
    """
    result: Tensor = _SegmentSum.apply(value, pattern, columns)
    return result


def gather_rows(pattern: Pattern, z: Tensor, columns: bool = False) -> Tensor:
    r"""The value of each entry's row, :math:`v_e = z_{row(e)}`, or column; differentiable.

    Args:
        pattern (Pattern): The sparsity pattern.
        z (Tensor): The values of the rows or columns.
        columns (bool): Whether z belongs to the columns. (default: :obj:`False`)

    Shapes:
        - **z:** :math:`(|\mathcal{V}|)` or :math:`(H, |\mathcal{V}|)`
        - **output:** :math:`(|\mathcal{E}|)` or :math:`(H, |\mathcal{E}|)`
    """
    result: Tensor = _GatherRows.apply(z, pattern, columns)
    return result


def reduced(how: str, pattern: Pattern, value: Tensor, columns: bool = False) -> Tensor:
    """The :obj:`"sum"` or :obj:`"max"` over each row, or column; no gradient.

    It is 0 or minus infinity in rows without entries. The shapes are those of :func:`segment_sum`.
    """
    pattern.check_entries(value)
    if value.numel() == 0:
        empty = 0.0 if how == "sum" else -math.inf
        return value.new_full((*value.shape[:-1], pattern.num_nodes), empty)
    if columns:
        pattern, value = pattern.T, value.index_select(-1, pattern.to_transpose)
    starts = pattern.starts(value.numel() // pattern.num_entries)
    flat = torch.segment_reduce(value.reshape(-1), how, offsets=starts, axis=0, unsafe=True)
    return flat.view(*value.shape[:-1], pattern.num_nodes)


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, value: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(value, x)
        pattern.check_entries(value)
        pattern.check_nodes(x)
        _check_heads(value.shape[:-1], x.shape[1:-1])
        if pattern.num_entries == 0 or x.numel() == 0:
            return torch.zeros_like(x)
        # Into a preallocated tensor: torch.mm would allocate one and copy the result.
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for v, y, to in _each_head(value.contiguous(), x.contiguous(), out):
            torch.addmm(to, pattern.matrix(v), y.contiguous(), beta=0.0, out=to)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (value, x) = grads, ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        wanted = ctx.needs_input_grad
        to_value = sampled_product(pattern, g, x) if wanted[0] else None
        to_x = None
        if wanted[1]:
            to_x = sparse_product(pattern.T, _turned(pattern, value), g)
        return to_value, to_x, None


class _SampledProduct(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, a: Tensor, b: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(a, b)
        pattern.check_nodes(a)
        pattern.check_nodes(b)
        _check_heads(a.shape[1:-1], b.shape[1:-1])
        value = a.new_zeros(*a.shape[1:-1], pattern.num_entries)
        if value.numel() == 0 or a.size(-1) == 0:
            return value
        if pattern.num_entries > pattern.num_nodes**2:
            # With more entries than node pairs, sampled_addmm would shrink its output; the products
            # of all pairs are then fewer than the entries.
            a, b = (x.movedim(0, -2) for x in (a, b))
            return (a @ b.mT)[..., pattern.row.long(), pattern.col.long()]
        for v, left, right in _each_head(value, a.contiguous(), b.contiguous()):
            # Into an existing matrix, so that its indices are not copied.
            matrix = pattern.matrix(v)
            torch.sparse.sampled_addmm(matrix, left, right.t(), beta=0.0, out=matrix)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (a, b) = grads, ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        wanted = ctx.needs_input_grad
        to_a = sparse_product(pattern, g, b) if wanted[0] else None
        to_b = sparse_product(pattern.T, _turned(pattern, g), a) if wanted[1] else None
        return to_a, to_b, None


class _SegmentSum(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, value: Tensor, pattern: Pattern, columns: bool) -> Tensor:
        ctx.pattern, ctx.columns = pattern, columns
        return reduced("sum", pattern, value, columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return gather_rows(ctx.pattern, grads[0], ctx.columns), None, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, pattern: Pattern, columns: bool) -> Tensor:
        ctx.pattern, ctx.columns = pattern, columns
        return z.index_select(-1, pattern.col if columns else pattern.row)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return segment_sum(ctx.pattern, grads[0], ctx.columns), None, None


class _Turned(torch.autograd.Function):
    """Values permuted to the order of the transpose; the gradient is a gather, not a scatter."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        return value.index_select(-1, pattern.to_transpose)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _turned(ctx.pattern.T, grads[0]), None


def _turned(pattern: Pattern, value: Tensor) -> Tensor:
    result: Tensor = _Turned.apply(value, pattern)
    return result


def _each_head(value: Tensor, x: Tensor, y: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """The values and the features of each head; the arguments themselves if there are no heads."""
    if value.dim() == 1:
        return [(value, x, y)]
    return zip(value.unbind(0), x.unbind(1), y.unbind(1), strict=True)


def _check_heads(one: torch.Size, other: torch.Size) -> None:
    if one != other or len(one) > 1:
        raise ValueError("Expected one number for each entry of the pattern and one row for each "
                         f"node, with as many heads in both (got {tuple(one)} and "
                         f"{tuple(other)}).")
