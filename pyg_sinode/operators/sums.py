"""What is known of a sum of operators, and when has it a closed inverse?"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from .base import LinearOperator
from .bounds import largest_of, rounding_of
from .checks import as_float, is_array, is_number
from .composing import beside_one, combined, with_all
from .functions import Transform
from .results import Entries, equals_transpose
from .scaled import Scaled


class Sum(LinearOperator, composes="sum"):
    r"""The sum :math:`J_1 + J_2 + \ldots` of operators.

    Args:
        terms (sequence of LinearOperator): The operators to add; sums among them are flattened.
        disc (tuple of float, optional): Centre (real) and radius of a disc that is known to hold
            all eigenvalues. (default: :obj:`None`)
    """

    known_disc: tuple[float, float] | None = None  # for sums pickled by an earlier version

    def __init__(self, terms: Sequence[LinearOperator],
                 disc: tuple[float, float] | None = None) -> None:
        flat: list[LinearOperator] = []
        if not terms:
            raise ValueError("Expected at least one operator in a sum (got none); use "
                             "ScaledIdentity(0.0).")
        for term in terms:
            if not isinstance(term, LinearOperator):
                raise TypeError(f"Expected linear operators in a sum (got {type(term).__name__}); "
                                "write ScaledIdentity(alpha) for a multiple of the identity.")
            flat.extend(term.terms if isinstance(term, Sum) else [term])
        self.terms: tuple[LinearOperator, ...] = tuple(flat)
        self.dims = tuple(sorted({d for term in flat for d in term.dims}))
        self.known_disc = disc

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(t for term in self.terms for t in term.tensors)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Sum:
        other = copy.copy(self)
        other.terms = tuple(with_all(self.terms, tensors))
        return other

    def mv(self, u: Tensor) -> Tensor:
        total = self.terms[0].mv(u)
        for term in self.terms[1:]:
            total = total + term.mv(u)
        return total

    def vjp(self, u: Tensor, w: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for term in self.terms:
            start = len(found)
            found += term.vjp(u, w, wanted[start:start + len(term.tensors)])
        return found

    def transpose(self) -> Sum:
        return Sum([term.T for term in self.terms], self.known_disc)

    def check(self, u: Tensor) -> None:
        for term in self.terms:
            term.check(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return self.terms

    def symmetric(self) -> bool:
        others = sum(not term.symmetric() for term in self.terms)
        if others < 2:  # one nonsymmetric term makes the sum nonsymmetric
            return others == 0
        size = self.size_along(self.dims[0]) if len(self.dims) == 1 else None
        entries = None if size is None else self.to_coo(self.dims[0], size)
        return entries is not None and size is not None and equals_transpose(entries, size)

    def disc(self) -> tuple[float, float] | None:
        if self.known_disc is not None:
            return self.known_disc
        known = [disc for disc in (term.disc() for term in self.terms) if disc is not None]
        # Multiples of the identity shift eigenvalues; those of two other terms do not simply add.
        others = sum(term.as_diagonal() is None for term in self.terms)
        if len(known) < len(self.terms) or others > 1:
            return None
        return sum(center for center, _ in known), max(radius for _, radius in known)

    def largest_eigenvalue(self) -> float:
        # A symmetric sum may have nonsymmetric terms, whose bounds mean nothing.
        mixing = [term for term in self.terms if term.as_diagonal() is None]
        own = math.inf
        if len(mixing) < 2 or all(term.symmetric() for term in mixing):
            own = sum(term.largest_eigenvalue() for term in self.terms)
        # The row sums of the whole may give a sharper bound; it is not needed if own <= 0.
        return own if own <= 0.0 else min(own, largest_of(self.gershgorin()))

    def gershgorin(self) -> tuple[Tensor | float, Tensor | float] | None:
        diagonal: Tensor | float = 0.0
        others: Tensor | float = 0.0
        for term in self.terms:
            bounds = term.gershgorin()
            if bounds is None:
                return None
            # Diagonals may cancel: their rounding errors are added to the radii.
            diagonal, others = diagonal + bounds[0], others + bounds[1] + rounding_of(bounds[0])
        return diagonal, others

    def size_along(self, dim: int) -> int | None:
        sizes = (term.size_along(dim) for term in self.terms)
        return next((size for size in sizes if size is not None), None)

    def as_diagonal(self) -> Tensor | float | None:
        total: Tensor | float = 0.0
        for term in self.terms:
            d = term.as_diagonal()
            if d is None:
                return None
            total = total + d
        return total

    def diagonal(self, u: Tensor) -> Tensor | None:
        total: Tensor | None = None
        for term in self.terms:
            d = term.diagonal(u)
            if d is None:
                return None
            total = d if total is None else total + d
        return total

    def to_coo(self, dim: int, size: int) -> Entries | None:
        parts = [term.to_coo(dim, size) for term in self.terms]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        # Entries of fixed numbers are in float64 on the host, those of tensors like the state.
        like = next((part.value for term, part in zip(self.terms, known, strict=True)
                     if term.tensors), known[0].value)
        return Entries(torch.cat([part.row.to(like.device) for part in known]),
                       torch.cat([part.col.to(like.device) for part in known]),
                       torch.cat([part.value.to(like) for part in known]))

    def blocks(self, u: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        parts = [term.blocks(u, dims) for term in self.terms]
        known = [part for part in parts if part is not None]
        return sum(known[1:], known[0]) if len(known) == len(parts) else None

    def _split(self) -> tuple[float, list[LinearOperator]]:
        """The multiple of the identity in the sum, and the other terms."""
        number, others = 0.0, []
        for term in self.terms:
            d = term.as_diagonal()
            if d is None or is_array(d):
                others.append(term)
            else:
                number += as_float(d)
        return number, others

    def spectrum(self, sizes: dict[int, int]) -> Tensor | None:
        parts = [term.spectrum(sizes) for term in self.terms]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return reduce(partial(combined, torch.add), known)

    def diagonalized(self, like: Tensor) -> tuple[Tensor, Transform | None] | None:
        return super().diagonalized(like) or beside_one(self.terms, like, self.dims, torch.add)

    def matrix(self) -> Tensor | None:
        parts = [term.matrix() for term in self.terms]
        known = [part for part in parts if part is not None]
        if not known or len(self.dims) != 1:
            return None
        total = sum(known[1:], known[0])
        for term, part in zip(self.terms, parts, strict=True):
            if part is None and not is_number(term.as_diagonal()):
                return None
            if part is None:
                number = term.mv(total.new_ones(()))
                total = total + number * torch.eye(total.size(0)).to(total)
        return total

    @property
    def is_uniform(self) -> bool:
        return all(term.is_uniform or is_number(term.as_diagonal()) for term in self.terms)

    def has_closed_inverse(self) -> bool:
        if self.as_diagonal() is not None:
            return True
        others = [t for t in self.terms if t.as_diagonal() is None or is_array(t.as_diagonal())]
        if len(others) == 1:
            return others[0].has_closed_inverse()
        return all(term.is_convolution() for term in others)

    def resolvent(self, c: float) -> LinearOperator | None:
        if self.as_diagonal() is not None:
            return super().resolvent(c)
        # I - c (a I + J) = (1 - c a) (I - c / (1 - c a) J)
        number, others = self._split()
        if len(others) > 1 and self.has_closed_inverse():
            return others[0].resolvent_of(self, c)
        rest = 1.0 - c * number
        if len(others) != 1 or rest == 0.0:
            return None
        inner = others[0].resolvent(c / rest)
        return None if inner is None else Scaled(inner, 1.0 / rest)

    def __repr__(self) -> str:
        return " + ".join(repr(term) for term in self.terms)
