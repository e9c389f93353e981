"""What is the transpose of an operator that has none of its own?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..precision import without_autocast
from .base import LinearOperator
from .functions import Functions
from .polynomials import Bound
from .results import Entries


class Transposed(LinearOperator, composes="transpose"):
    """The transpose of an operator, with products by autograd.

    Args:
        operator (LinearOperator): The operator to transpose.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.operator, self.dims = operator, operator.dims

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.operator.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> Transposed:
        other = copy.copy(self)  # keeps a subclass
        other.operator = self.operator.with_tensors(tensors)
        return other

    def vjp(self, u: Tensor, w: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        return self.operator.vjp(w, u, wanted)  # <w, J^T u> = <u, J w>

    @without_autocast
    def mv(self, u: Tensor) -> Tensor:
        self.operator.check_transposed(u)
        # J is linear, so that J^T u is the vector-Jacobian product of J at any point, here zero.
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            zero = torch.zeros_like(u, requires_grad=True)
            product = self.operator.mv(zero)
            if not product.requires_grad:
                _check_zero(self.operator, u)
                return torch.zeros_like(u)
            (result,) = torch.autograd.grad(
                product, zero, u, create_graph=graph, materialize_grads=True)
        return result

    def transpose(self) -> LinearOperator:
        return self.operator

    def check(self, u: Tensor) -> None:
        self.operator.check(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return (self.operator,)

    def symmetric(self) -> bool:
        return self.operator.symmetric()

    def disc(self) -> tuple[float, float] | None:
        return self.operator.disc()

    def largest_eigenvalue(self) -> float:
        return self.operator.largest_eigenvalue()

    def gershgorin(self) -> tuple[Tensor | float, Tensor | float] | None:
        return self.operator.gershgorin() if self.operator.symmetric() else None

    def size_along(self, dim: int) -> int | None:
        return self.operator.size_along(dim)

    def diagonal(self, u: Tensor) -> Tensor | None:
        return self.operator.diagonal(u)

    def to_coo(self, dim: int, size: int) -> Entries | None:
        e = self.operator.to_coo(dim, size)
        return None if e is None else Entries(e.col, e.row, e.value)

    def blocks(self, u: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        blocks = self.operator.blocks(u, dims)
        return None if blocks is None else blocks.mT

    def matrix(self) -> Tensor | None:
        matrix = self.operator.matrix()
        return None if matrix is None else matrix.mT

    def has_functions(self, like: Tensor) -> bool:
        return self.operator.has_functions(like)

    def functions(self, f: Any, like: Tensor, bound: Bound | None = None) -> Functions | None:
        found = self.operator.functions(f, like)
        return None if found is None else found.transposed()


@torch.no_grad()
def _check_zero(operator: LinearOperator, u: Tensor) -> None:
    """Refuses an operator other than zero whose products do not depend on u for autograd."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(u.shape, dtype=u.dtype, generator=generator, device="cpu").to(u.device)
    if bool((operator.mv(x) != 0).any()):
        raise ValueError(f"Expected products of {operator!r} that autograd can differentiate (got "
                         "one without a graph, as after detach(), numpy() or under no_grad): the "
                         "transpose, and with it the gradient, would be zero; compute the product "
                         "with differentiable operations, or write an operator with transpose().")
