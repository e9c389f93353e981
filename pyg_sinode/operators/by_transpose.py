"""How is a product differentiated that autograd cannot follow, such as a solve by LAPACK?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import LinearOperator


def product(operator: LinearOperator, u: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """The product of an operator with u, differentiable in u to any order.

    Its gradient is a product with ``operator.T``; none reaches the tensors of the operator.

    Args:
        operator (LinearOperator): The operator.
        u (Tensor): The state.
        compute (callable): Computes the product of a tensor that requires no gradient.
    """
    if not (torch.is_grad_enabled() and u.requires_grad):
        return compute(u)
    result: Tensor = _ByTranspose.apply(u, operator, compute)
    return result


class _ByTranspose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, operator: LinearOperator,
                compute: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.operator = operator
        x = compute(u.detach())
        return x.clone() if x.data_ptr() == u.data_ptr() else x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.operator.T.mv(grads[0]), None, None
