"""What is known of a product of operators, and when has it a closed inverse?"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..sparse import take_beta_notice
from .base import LinearOperator
from .checks import along, as_float, as_tensor, is_number
from .composing import beside_one, combined, one_beside, varies, with_all
from .functions import Transform
from .results import Entries


class Product(LinearOperator, composes="product"):
    r"""The product :math:`J_1 J_2 \ldots` of operators, the last of which acts first.

    :math:`I - cJ` has a closed inverse if all factors are convolutions on one periodic grid, or if
    one factor has a closed inverse and the others are diagonals that are constant along its dims
    (a diffusivity per species, for example): then one inverse for each distinct value is used.

    Args:
        factors (sequence of LinearOperator): The operators; products among them are flattened.
    """

    def __init__(self, factors: Sequence[LinearOperator]) -> None:
        flat: list[LinearOperator] = []
        if not factors:
            raise ValueError("Expected at least one operator in a product (got none); use "
                             "ScaledIdentity(1.0).")
        for factor in factors:
            if not isinstance(factor, LinearOperator):
                raise TypeError(f"Expected linear operators in a product (got "
                                f"{type(factor).__name__}); J.mv(u) is the product with a state.")
            flat.extend(factor.factors if isinstance(factor, Product) else [factor])
        self.factors: tuple[LinearOperator, ...] = tuple(flat)
        self.dims = tuple(sorted({d for factor in flat for d in factor.dims}))

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(t for factor in self.factors for t in factor.tensors)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Product:
        other = copy.copy(self)
        other.factors = tuple(with_all(self.factors, tensors))
        return other

    def mv(self, u: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            u = factor.mv(u)
        return u

    def transpose(self) -> Product:
        return Product([factor.T for factor in reversed(self.factors)])

    def check(self, u: Tensor) -> None:
        for factor in self.factors:
            factor.check(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return self.factors

    def size_along(self, dim: int) -> int | None:
        sizes = (factor.size_along(dim) for factor in self.factors)
        return next((size for size in sizes if size is not None), None)

    def symmetric(self) -> bool:
        # Factors that commute: convolutions, or an operator and diagonals constant along its dims.
        return all(factor.symmetric() for factor in self.factors) and self.has_closed_inverse()

    def as_diagonal(self) -> Tensor | float | None:
        found: Tensor | float = 1.0
        for factor in self.factors:
            d = factor.as_diagonal()
            if d is None:
                return None
            found = found * d
        return found

    def diagonal(self, u: Tensor) -> Tensor | None:
        mixed = [d for factor in self.factors for d in factor.dims]
        if len(set(mixed)) == len(mixed):  # the factors commute, and their diagonals multiply
            own = [factor.diagonal(u) for factor in self.factors]
            known = [d for d in own if d is not None]
            return math.prod(known[1:], start=known[0]) if len(known) == len(own) else None
        entries = self.to_coo(self.dims[0], u.size(self.dims[0]))
        if entries is None:
            return None
        on = entries.row == entries.col
        sums = entries.value.new_zeros(u.size(self.dims[0])).index_add(
            0, entries.row[on], entries.value[on])
        return along(sums.to(u), self.dims[0])  # those of fixed numbers are in float64

    def to_coo(self, dim: int, size: int) -> Entries | None:
        parts = [factor.to_coo(dim, size) for factor in self.factors]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        like = next((part.value for factor, part in zip(self.factors, known, strict=True)
                     if factor.tensors), known[0].value)
        whole: Tensor | None = None
        take_beta_notice()  # torch.sparse.mm uses CSR internally
        for part in known:
            own = torch.sparse_coo_tensor(
                torch.stack([part.row, part.col]), part.value.detach(), (size, size),
                check_invariants=False).to(like)
            whole = own if whole is None else torch.sparse.mm(whole, own)
        assert whole is not None
        whole = whole.coalesce()
        row, col = whole.indices()
        return Entries(row, col, whole.values())

    def blocks(self, u: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        mixed = [d for factor in self.factors for d in factor.dims if d not in dims]
        parts = [factor.blocks(u, dims) for factor in self.factors]
        known = [part for part in parts if part is not None]
        # If two factors mix one outside dimension, blocks of the product are no products of blocks.
        if len(known) < len(parts) or len(set(mixed)) < len(mixed):
            return super().blocks(u, dims)
        found = known[0]
        for part in known[1:]:
            found = found @ part
        return found

    def disc(self) -> tuple[float, float] | None:
        found = one_beside(self.factors)
        if found is None or not is_number(found[1]):
            return super().disc()
        own, s = found[0].disc(), as_float(found[1])
        return None if own is None else (s * own[0], abs(s) * own[1])

    def gershgorin(self) -> tuple[Tensor | float, Tensor | float] | None:
        found = one_beside(self.factors)
        if found is None or not is_number(found[1]):
            return None
        bounds, s = found[0].gershgorin(), as_float(found[1])
        return None if bounds is None else (s * bounds[0], abs(s) * bounds[1])

    def matrix(self) -> Tensor | None:
        if len(self.dims) != 1:
            return None
        total: Tensor | None = None
        for factor in self.factors:
            own = factor.matrix()
            if own is None:
                return None
            total = own if total is None else total @ own
        return total

    def diagonalized(self, like: Tensor) -> tuple[Tensor, Transform | None] | None:
        return super().diagonalized(like) or beside_one(self.factors, like, self.dims, torch.mul)

    def is_convolution(self) -> bool:
        return all(factor.is_convolution() or is_number(factor.as_diagonal())
                   for factor in self.factors) and self.as_diagonal() is None

    def spectrum(self, sizes: dict[int, int]) -> Tensor | None:
        found: Tensor | None = None
        for factor in self.factors:
            own = factor.spectrum(sizes)
            if own is None:
                return None
            found = own if found is None else combined(torch.mul, found, own)
        return found

    def has_closed_inverse(self) -> bool:
        if self.as_diagonal() is not None or self.is_convolution():
            return True
        found = one_beside(self.factors)
        return found is not None and found[0].is_uniform and found[0].has_closed_inverse() and (
            varies(found[1], found[0].dims) is not None)

    @property
    def is_uniform(self) -> bool:
        return all(factor.is_uniform or is_number(factor.as_diagonal())
                   for factor in self.factors)

    def resolvent(self, c: float) -> LinearOperator | None:
        if self.as_diagonal() is not None:
            return super().resolvent(c)
        if self.is_convolution():
            return self.resolvent_of(self, c)
        found = one_beside(self.factors)
        if found is None or not self.has_closed_inverse():
            return None
        inner, d = found
        number = as_tensor(d)
        dim, values = varies(d, inner.dims), number.reshape(-1)
        assert dim is not None
        if not bool(number.isfinite().all()):
            raise ValueError("Expected finite numbers in the diagonals of a product (got NaN or "
                             "Inf).")
        inverses: dict[float, LinearOperator] = {}
        for value in values.tolist():
            own = inverses.get(value) or inner.resolvent(c * value)
            if own is None:
                return None
            inverses[value] = own
        if not inverses:  # an empty state
            return inner.resolvent(c)
        return Each(inverses, values.tolist(), dim)

    def resolvent_of(self, whole: LinearOperator, c: float) -> LinearOperator | None:
        first = next(f for f in self.factors if f.is_convolution())
        return first.resolvent_of(whole, c)

    def __repr__(self) -> str:
        return " @ ".join(repr(factor) for factor in self.factors)


class Each(LinearOperator, composes="each"):
    """A different operator for each index of a dimension outside their dims.

    Args:
        operators (dict): The operators, by number.
        numbers (list of float): The number of each index along the dimension, or one for all.
        dim (int): The dimension, negative.
    """

    def __init__(self, operators: dict[float, LinearOperator], numbers: list[float],
                 dim: int) -> None:
        self.operators, self.numbers, self.dim = operators, numbers, dim
        self.dims = next(iter(operators.values())).dims

    def mv(self, u: Tensor) -> Tensor:
        if len(self.numbers) == 1:
            return self.operators[self.numbers[0]].mv(u)
        if u.dim() < -self.dim or u.size(self.dim) != len(self.numbers):
            raise ValueError(f"Expected a state of length {len(self.numbers)} along dimension "
                             f"{self.dim}, where each place has a number of its own (got shape "
                             f"{tuple(u.shape)}).")
        out = torch.empty_like(u)
        for number, operator in self.operators.items():
            own = [i for i, n in enumerate(self.numbers) if n == number]
            at = torch.tensor(own, device=u.device)
            out.index_copy_(self.dim, at, operator.mv(u.index_select(self.dim, at)))
        return out

    def transpose(self) -> Each:
        turned = {number: operator.T for number, operator in self.operators.items()}
        return Each(turned, self.numbers, self.dim)
