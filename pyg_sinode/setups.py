"""Which inverses of I - cJ are at hand, within a call and between calls?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .operators import LinearOperator, Shifted
from .operators.checks import as_float
from .report import Stats
from .solvers.krylov import Krylov

KEPT = 8  # set-ups kept, in a call and on an operator, so that changing steps do not pile them up


class Setups:
    """The inverses of I - cJ, each made once and found again by its c while it is among the last.

    Where no tensor of J requires a gradient they are also kept on the operator between calls, with
    a copy of it that they belong to, so that they do not refer to the operator itself. Versions and
    addresses of tensors do not tell of every change (``.data`` writes and inference tensors have
    none): contents do.
    """

    def __init__(self, operator: LinearOperator, invert: Callable[[Shifted], LinearOperator],
                 key: object, stats: Stats) -> None:
        self.operator, self.invert, self.key, self.stats = operator, invert, key, stats
        self.made: dict[float, LinearOperator] = {}
        self.kept = not any(t.requires_grad for t in operator.tensors) and _is_hashable(key)
        # An iteration has no factors, and follows whatever is changed in the operator itself.
        self.iterates = isinstance(key, Krylov) or (
            key is None and not operator.has_closed_inverse())

    def inverse(self, c: float, scale: Tensor | float = 1.0) -> LinearOperator:
        """The inverse of I - c scale J."""
        c *= as_float(scale)
        found = self.made.pop(c, None)
        if found is None:
            found = self._kept(c) if self.kept else self._new(self.operator, c)
            if len(self.made) >= KEPT:
                self.made.pop(next(iter(self.made)))  # the one not used for longest
        self.made[c] = found
        return found

    def _new(self, operator: LinearOperator, c: float) -> LinearOperator:
        self.stats.setups += 1
        return self._invert(operator, c)

    def _invert(self, operator: LinearOperator, c: float) -> LinearOperator:
        with torch.no_grad():
            return self.invert(Shifted(operator, c))

    def _kept(self, c: float) -> LinearOperator:
        factors = self.operator.__dict__.setdefault("_factors", {})
        key = (self.key, c, torch.is_inference_mode_enabled())
        tensors = self.operator.tensors
        if key in factors:
            own, inverse = factors[key]
            if _all_same(own.tensors, tensors):
                found: LinearOperator | None = inverse
                return self._invert(self.operator, c) if found is None else found
        # Set-ups of the same tensors share one copy of them.
        own = next((x for (*_, inference), (x, _) in factors.items()
                    if inference == key[-1] and _all_same(x.tensors, tensors)), None)
        if own is None:
            own = self.operator.with_tensors([t.detach().clone() for t in tensors])
        inverse = self._new(self.operator if self.iterates else own, c)
        if len(factors) >= KEPT:
            factors.pop(next(iter(factors)))  # the oldest
        factors[key] = own, None if self.iterates else inverse
        return inverse


def _is_hashable(key: object) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _all_same(copies: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    return len(copies) == len(tensors) and all(map(same, copies, tensors))


def same(copy: Tensor, tensor: Tensor) -> bool:
    """Whether two tensors agree in shape, dtype, device and every entry."""
    return (copy.shape == tensor.shape and copy.dtype == tensor.dtype
            and copy.device == tensor.device and torch.equal(copy, tensor))
