"""What is a function of an operator, such as its exponential, as an operator?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..precision import without_autocast
from .base import LinearOperator
from .functions import OfNumbers, Transform
from .matrix_functions import functions_of_matrix
from .user_function import no_functions, only


class FunctionOf(LinearOperator, composes="function"):
    """A function f(J) of an operator, computed anew for each product.

    Args:
        operator (LinearOperator): The operator J.
        f (callable): The function, of tensors of numbers.
    """

    def __init__(self, operator: LinearOperator, f: OfNumbers) -> None:
        self.operator, self.f, self.dims = operator, f, operator.dims

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.operator.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> FunctionOf:
        return FunctionOf(self.operator.with_tensors(tensors), self.f)

    @without_autocast
    def mv(self, u: Tensor) -> Tensor:
        functions = self.operator.functions(only(self.f), u)
        if functions is None:
            raise no_functions(self.operator)
        sums: list[Tensor | None] = [None]
        functions.add(sums, functions.enter(u), [(0, 0)])
        assert sums[0] is not None
        return functions.leave(sums[0])

    def transpose(self) -> FunctionOf:
        return FunctionOf(self.operator.T, self.f)

    def diagonalized(self, like: Tensor) -> tuple[Tensor, Transform | None] | None:
        inner = self.operator.diagonalized(like)
        return None if inner is None else (only(self.f)(inner[0])[0], inner[1])

    def matrix(self) -> Tensor | None:
        inner = self.operator.matrix()
        return None if inner is None else functions_of_matrix(inner, only(self.f))[0]

    def check(self, u: Tensor) -> None:
        self.operator.check(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return (self.operator,)

    def symmetric(self) -> bool:
        return self.operator.symmetric()

    def size_along(self, dim: int) -> int | None:
        return self.operator.size_along(dim)

    def __repr__(self) -> str:
        return f"f({self.operator!r})"
