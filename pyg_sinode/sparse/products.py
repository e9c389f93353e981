"""How are products with a sparse matrix on a graph made, and how are they differentiated?

The functions take a pattern with the values of its entries, and are closed under differentiation:
each one's gradient is made of the others, so that gradients of any order exist and none of them
forms an edges-by-channels tensor.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..precision import without_autocast
from .pattern import Pattern


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
    pattern.check_entries(value)
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
        pattern.check_entries(value)
        pattern.check_nodes(x)
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
        pattern.check_nodes(a)
        pattern.check_nodes(b)
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
        pattern.check_entries(value)
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
