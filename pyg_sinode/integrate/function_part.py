"""How are the functions of hJ of an exponential step had, and J's tensors differentiated?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..operators import LinearOperator
from ..operators.base import no_functions
from ..operators.functions import Functions, Uses
from .kept import KEPT, kept_of
from .report import Stats


class Coefficients(Protocol):
    """The coefficients of a scheme, as functions of J for each step size; identified by itself."""

    def at(self, h: float) -> Any:
        """The functions for a step of size h."""
        ...


class FunctionPart:
    """The implicit part H = J u of an exponential scheme.

    The functions of the last step sizes are kept; between calls too if no tensor of J requires a
    gradient.

    Args:
        operator (LinearOperator): The operator J.
        stats (Stats): The statistics, updated.
        differentiates (bool): Whether gradients with respect to J's tensors are accumulated by
            :meth:`add_vjp`.
    """

    is_zero = False

    def __init__(self, operator: LinearOperator, stats: Stats, *, differentiates: bool) -> None:
        self.operator, self.stats, self.differentiates = operator, stats, differentiates
        trained = any(p.requires_grad for p in operator.tensors)
        self.kept = None if trained else kept_of(operator)
        self.made: dict[Any, Functions] = {}
        self.turned: dict[float, tuple[Functions, Functions]] = {}  # with their transposes
        self.last: tuple[float, Functions] | None = None
        self.followed: _Followed | None = None

    def value(self, u: Tensor) -> Tensor:
        """The product J u."""
        self.stats.operator_products += 1
        return self.operator.mv(u)

    def functions(self, h: float, like: Tensor, plan: Coefficients) -> Functions:
        """The coefficients of a step of size h for states like ``like``."""
        if self.last is not None and self.last[0] == h:
            return self.last[1]
        key = (plan, h, like.shape, like.dtype, like.device)
        made = self.made if self.kept is None else self.kept.functions
        found = made.pop(key, None)
        if found is None:
            self.stats.factorizations += 1
            operator = self.operator if self.kept is None else self.kept.operator
            found = operator.functions(plan.at(h), like)
            if found is None:
                raise no_functions(self.operator)
            if len(made) >= KEPT:
                made.pop(next(iter(made)))  # the least recently used ones
        made[key] = found
        self.last = h, found
        return found

    def transposed(self, h: float, like: Tensor, plan: Coefficients) -> Functions:
        """The same coefficients for the transposed operator."""
        found = self.functions(h, like, plan)
        if h not in self.turned or self.turned[h][0] is not found:
            if len(self.turned) >= KEPT:
                self.turned.pop(next(iter(self.turned)))
            self.turned[h] = found, found.transposed()
        return self.turned[h][1]

    def add_vjp(self, h: float, like: Tensor, plan: Coefficients, x: Tensor,
                w: Sequence[Tensor | None], uses: Uses) -> None:
        """Accumulates the gradients of the products <w_i, f_k(hJ) x> over the ``uses`` (i, k)."""
        if self.followed is None:
            self.followed = _Followed(self.operator)
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

    def __init__(self, operator: LinearOperator) -> None:
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
                functions = self.operator.functions(plan.at(h), like)
            assert functions is not None
            self.of_size[h] = functions, [None] * len(functions.leaves)
        return self.of_size[h]

    def gradients(self) -> list[Tensor | None]:
        """The gradients at the tensors of J."""
        for h in list(self.of_size):
            self._take(h)
        return self.total

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
