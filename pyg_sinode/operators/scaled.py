"""What is a multiple of an operator?"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import LinearOperator
from .bounds import largest_of
from .checks import as_float, check_number, check_real, check_tensors, detached
from .composing import combined
from .functions import Transform
from .results import Entries


class Scaled(LinearOperator, composes="multiple"):
    r"""A multiple :math:`s J` of an operator.

    Args:
        operator (LinearOperator): The operator J.
        factor (float or Tensor): The number s; a 0-dim tensor receives gradients.
    """

    def __init__(self, operator: LinearOperator, factor: float | Tensor) -> None:
        if isinstance(factor, Tensor):
            check_real(factor, "factor")
            if factor.dim() != 0:
                raise ValueError(f"Expected a number or a 0-dim tensor as the factor of an "
                                 f"operator (got shape {tuple(factor.shape)}); use a Diagonal.")
        else:
            check_number(factor, "the factor of an operator")
        self.operator, self.factor, self.dims = operator, factor, operator.dims

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        own = (self.factor,) if isinstance(self.factor, Tensor) else ()
        return own + self.operator.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> Scaled:
        other = copy.copy(self)
        if isinstance(self.factor, Tensor):
            other.factor, tensors = tensors[0], tensors[1:]
        other.operator = self.operator.with_tensors(tensors)
        return other

    def mv(self, u: Tensor) -> Tensor:
        return self.operator.mv(u) * self.factor

    def transpose(self) -> Scaled:
        return Scaled(self.operator.T, self.factor)

    def check(self, u: Tensor) -> None:
        check_tensors(type(self).__name__, self.tensors, u)
        self.operator.check(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return (self.operator,)

    def symmetric(self) -> bool:
        return self.operator.symmetric()

    def disc(self) -> tuple[float, float] | None:
        own, s = self.operator.disc(), as_float(self.factor)
        return None if own is None else (s * own[0], abs(s) * own[1])

    def largest_eigenvalue(self) -> float:
        s = as_float(self.factor)
        if s > 0:
            return s * self.operator.largest_eigenvalue()
        return 0.0 if s == 0 else largest_of(self.gershgorin())

    def gershgorin(self) -> tuple[Tensor | float, Tensor | float] | None:
        bounds, s = self.operator.gershgorin(), as_float(self.factor)
        return None if bounds is None else (s * bounds[0], abs(s) * bounds[1])

    def size_along(self, dim: int) -> int | None:
        return self.operator.size_along(dim)

    def as_diagonal(self) -> Tensor | float | None:
        d = self.operator.as_diagonal()
        return None if d is None else d * detached(self.factor)

    def diagonal(self, u: Tensor) -> Tensor | None:
        d = self.operator.diagonal(u)
        return None if d is None else d * detached(self.factor)

    def to_coo(self, dim: int, size: int) -> Entries | None:
        e = self.operator.to_coo(dim, size)
        return None if e is None else Entries(e.row, e.col, e.value * detached(self.factor))

    def blocks(self, u: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        blocks = self.operator.blocks(u, dims)
        return None if blocks is None else blocks * detached(self.factor)

    @property
    def is_uniform(self) -> bool:
        return self.operator.is_uniform

    def has_closed_inverse(self) -> bool:
        return self.operator.has_closed_inverse()

    def resolvent(self, c: float) -> LinearOperator | None:
        return self.operator.resolvent(c * as_float(self.factor))

    def is_convolution(self) -> bool:
        return self.operator.is_convolution()

    def spectrum(self, sizes: dict[int, int]) -> Tensor | None:
        inner = self.operator.spectrum(sizes)
        return None if inner is None else combined(torch.mul, inner, self.factor)

    def diagonalized(self, like: Tensor) -> tuple[Tensor, Transform | None] | None:
        inner = self.operator.diagonalized(like)
        return None if inner is None else (
            combined(torch.mul, inner[0], self.factor), inner[1])

    def matrix(self) -> Tensor | None:
        inner = self.operator.matrix()
        return None if inner is None else inner * self.factor

    def resolvent_of(self, whole: LinearOperator, c: float) -> LinearOperator | None:
        return self.operator.resolvent_of(whole, c)
