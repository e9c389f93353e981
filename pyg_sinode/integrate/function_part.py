"""How are the functions of hJ of an exponential step had, and J's tensors differentiated?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..operators import LinearOperator, ScaledIdentity
from ..operators.functions import Functions, Transform, Uses
from ..operators.polynomials import Bound
from ..operators.user_function import no_functions
from .kept import KEPT, kept_of
from .report import Stats

MOST_NUMBERS = 2**22  # numbers of kept functions, beyond which only the last ones are kept


class Coefficients(Protocol):
    """The coefficients of a scheme, as functions of J for each step size; identified by itself."""

    def at(self, h: float) -> Any:
        """The functions for a step of size h."""
        ...


class FunctionStore:
    """The functions of the J of an integration, made in its forward pass and used in the backward.

    They are kept for the integration; between calls too if no tensor of J requires a gradient.

    Args:
        operator (LinearOperator, optional): The operator J; zero if None.
        stats (Stats): The statistics, updated.
    """

    def __init__(self, operator: LinearOperator | None, stats: Stats) -> None:
        self.stats, self.counts = stats, operator is not None
        self.operator = ScaledIdentity(0.0) if operator is None else operator
        trained = any(p.requires_grad for p in self.operator.tensors)
        kept = None if trained or operator is None else kept_of(operator)
        self.source = self.operator if kept is None else kept.operator
        self.made: dict[Any, list[Functions]] = {} if kept is None else kept.functions
        self.known: Bound | None = None if kept is None else kept.bound
        self.kept = kept

    def get(self, h: float, like: Tensor, plan: Coefficients) -> list[Functions]:
        """The functions for a step of size h, and after them their transposes if made already."""
        key = (plan, h, like.shape, like.dtype, like.device)
        found = self.made.pop(key, None)
        if found is None:
            found = [self.make(self.source, h, like, plan)]
            self._make_room(found[0].size)
        self.made[key] = found
        return found

    def make(self, operator: LinearOperator, h: float, like: Tensor, plan: Coefficients
             ) -> Functions:
        """The functions of J, or of J with other tensors of the same values."""
        self.stats.factorizations += self.counts
        found = operator.functions(plan.at(h), like, self.bound(like))
        if found is None:
            raise no_functions(self.operator)
        return found

    def transform(self, like: Tensor) -> Transform | None:
        """The transform in which J multiplies; None if there is none."""
        with torch.no_grad():
            found = self.source.diagonalized(like)
        return None if found is None else found[1]

    def bound(self, like: Tensor) -> Bound | None:
        """The disc for polynomials; None if none are needed."""
        if self.known is None and self.source.diagonalized(like) is None and (
                self.source.matrix() is None):
            self.known = Bound(self.source)
            if self.kept is not None:
                self.kept.bound = self.known
        return self.known

    def _make_room(self, size: int) -> None:
        """Drops the least recently used functions if there are many large ones."""
        total = size + sum(each.size for pair in self.made.values() for each in pair)
        while len(self.made) >= KEPT and total > MOST_NUMBERS:
            total -= sum(each.size for each in self.made.pop(next(iter(self.made))))


class FunctionPart:
    """The implicit part H = J u of an exponential scheme.

    Args:
        operator (LinearOperator): The operator J, with the tensors in force.
        store (FunctionStore): Its functions.
        differentiates (bool): Whether gradients with respect to J's tensors are accumulated by
            :meth:`add_vjp`.
    """

    is_zero = False

    def __init__(self, operator: LinearOperator, store: FunctionStore, *, differentiates: bool
                 ) -> None:
        self.operator, self.store, self.differentiates = operator, store, differentiates
        self.last: tuple[float, Functions] | None = None  # of the last step size
        self.last_transposed: tuple[float, Functions] | None = None
        self.followed: _Followed | None = None

    def value(self, u: Tensor) -> Tensor:
        """The product J u."""
        self.store.stats.operator_products += 1
        return self.operator.mv(u)

    def functions(self, h: float, like: Tensor, plan: Coefficients) -> Functions:
        """The coefficients of a step of size h for states like ``like``."""
        if self.last is None or self.last[0] != h:
            self.last = h, self.store.get(h, like, plan)[0]
        return self.last[1]

    def transposed(self, h: float, like: Tensor, plan: Coefficients) -> Functions:
        """The same coefficients for the transposed operator."""
        if self.last_transposed is None or self.last_transposed[0] != h:
            pair = self.store.get(h, like, plan)
            if len(pair) == 1:
                pair.append(pair[0].transposed())
            self.last_transposed = h, pair[1]
        return self.last_transposed[1]

    def add_vjp(self, h: float, like: Tensor, plan: Coefficients, x: Tensor,
                w: Sequence[Tensor | None], uses: Uses) -> None:
        """Accumulates the gradients of the products <w_i, f_k(hJ) x> over the ``uses`` (i, k)."""
        if self.followed is None:
            self.followed = _Followed(self.operator, self.store)
        functions, grads = self.followed.at(h, like, plan)
        functions.add_vjp(grads, x, w, uses)

    def accumulated(self) -> Sequence[Tensor | None]:
        """The accumulated gradients of J's tensors; empty if there are none."""
        return () if self.followed is None else self.followed.gradients()


class _Followed:
    """Functions of J that depend on copies of its tensors, with the gradients at their leaves.

    The gradients of all steps of one size are added up at the coefficients, and taken on to the
    tensors once.
    """

    def __init__(self, operator: LinearOperator, store: FunctionStore) -> None:
        self.store = store
        self.tensors = [p.detach().requires_grad_(p.requires_grad) for p in operator.tensors]
        self.operator = operator.with_tensors(self.tensors)
        self.of_size: dict[float, tuple[Functions, list[Tensor | None]]] = {}
        self.total: list[Tensor | None] = [None] * len(self.tensors)

    def at(self, h: float, like: Tensor, plan: Coefficients
           ) -> tuple[Functions, list[Tensor | None]]:
        """The functions for a step of size h, and the gradients at their leaves so far."""
        if h not in self.of_size:
            if len(self.of_size) >= KEPT:
                self._take(next(iter(self.of_size)))
            with torch.enable_grad():
                functions = self.store.make(self.operator, h, like, plan)
            self.of_size[h] = functions, [None] * len(functions.leaves)
        return self.of_size[h]

    def gradients(self) -> list[Tensor | None]:
        """The gradients at the tensors of J; zero where J is not used, as on an empty state."""
        for h in list(self.of_size):
            self._take(h)
        return [torch.zeros_like(p) if found is None and p.requires_grad else found
                for p, found in zip(self.tensors, self.total, strict=True)]

    def _take(self, h: float) -> None:
        """Takes the gradients of one step size on to the tensors."""
        functions, grads = self.of_size.pop(h)
        pairs = [(leaf, g) for leaf, g in zip(functions.leaves, grads, strict=True)
                 if g is not None and leaf.requires_grad]
        chosen = [p for p in self.tensors if p.requires_grad]
        if not pairs or not chosen:
            return
        found = iter(torch.autograd.grad([leaf for leaf, _ in pairs], chosen,
                                         [g for _, g in pairs], allow_unused=True))
        for i, p in enumerate(self.tensors):
            new = next(found) if p.requires_grad else None
            present = self.total[i]
            if new is not None:
                self.total[i] = new if present is None else present + new
