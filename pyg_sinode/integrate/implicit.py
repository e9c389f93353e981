"""How is an implicit stage solved, transposed and differentiated?

Steps use the implicit term through the interface :class:`ImplicitPart`: values, solves and their
transposes. A linear part ignores the state U, at which a nonlinear part is linearized.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..operators import LinearOperator, LinearSolveError, Shifted, Solution
from ..operators.checks import as_float
from ..solvers import default
from ..solvers.krylov import Krylov
from ..terms import Affine
from ..terms.affine import check_finite
from .kept import KEPT, Kept, kept_of
from .report import Stats

Invert = Callable[[Shifted], LinearOperator]
InverseOf = Callable[[float, Tensor | float], LinearOperator]
Guess = Callable[[], Tensor | None]  # computes an initial guess, or None if there is none


class ImplicitPart(Protocol):
    """The interface of the implicit term H for a step; the time t and the number c are floats."""

    is_zero: bool
    remembers: bool  # whether H at the end of a step is kept for the next step

    def start_step(self, u: Tensor) -> None:
        """Marks the start of a step from a state u; discards what was kept for one step."""
        ...

    def value(self, t: float, U: Tensor) -> Tensor:
        """H(t, U)."""
        ...

    def solve(self, t: float, c: float, r: Tensor, guess: Guess) -> Tensor:
        """The solution U of U = r + c H(t, U); the guess is computed where it is used."""
        ...

    def linear_solve(self, t: float, c: float, U: Tensor, b: Tensor) -> Tensor:
        """The solution y of (I - c H_u(t, U)) y = b, which filters an error estimate."""
        ...

    def transposed_solve(self, t: float, c: float, U: Tensor, b: Tensor) -> Tensor:
        """The solution y of (I - c H_u(t, U))^T y = b."""
        ...

    def transposed_value(self, t: float, U: Tensor, w: Tensor) -> Tensor:
        """The product H_u(t, U)^T w."""
        ...

    def vjp(self, t: float, U: Tensor, w: Tensor, wanted: Sequence[bool]
            ) -> Sequence[Tensor | None]:
        """The gradients of <w, H(t, U)> with respect to the ``wanted`` tensors of H."""
        ...

    def accumulated(self) -> Sequence[Tensor | None]:
        """Gradients of the tensors of H that were added up over steps; empty if there are none."""
        ...


class NoPart:
    """The implicit part H = 0."""

    is_zero, remembers = True, False

    def start_step(self, u: Tensor) -> None:
        """Does nothing."""

    def value(self, t: float, U: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(U)

    def solve(self, t: float, c: float, r: Tensor, guess: Guess) -> Tensor:
        """The right-hand side."""
        return r

    def linear_solve(self, t: float, c: float, U: Tensor, b: Tensor) -> Tensor:
        """The right-hand side."""
        return b

    def transposed_solve(self, t: float, c: float, U: Tensor, b: Tensor) -> Tensor:
        """The right-hand side."""
        return b

    def transposed_value(self, t: float, U: Tensor, w: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(w)

    def vjp(self, t: float, U: Tensor, w: Tensor, wanted: Sequence[bool]
            ) -> Sequence[Tensor | None]:
        """An empty list: there are no tensors."""
        return []

    def accumulated(self) -> Sequence[Tensor | None]:
        """Empty: :meth:`vjp` gives all gradients."""
        return ()


class LinearPart:
    """The implicit part H = a(t) J u + f(t).

    Args:
        term (Affine): The term, with J, a and f.
        inverse (callable): Maps c and a(t) to the inverse of I - c a(t) J.
        stats (Stats): The statistics, updated.
    """

    is_zero, remembers = False, False

    def __init__(self, term: Affine, inverse: InverseOf, stats: Stats) -> None:
        self.term, self.inverse, self.stats = term, inverse, stats
        self.constant = term.is_constant()
        self.last: tuple[LinearOperator, LinearOperator] | None = None  # an inverse, its transpose
        self.turned: LinearOperator | None = None  # J^T, which may keep what its products need
        self.correction: tuple[float, Tensor] | None = None  # c and y - b of the last such solve

    def start_step(self, u: Tensor) -> None:
        """Does nothing: factorizations serve all steps."""

    def value(self, t: float, U: Tensor) -> Tensor:
        """The value a(t) J u + f(t)."""
        self.stats.operator_products += 1
        return self.term.product(t, U)

    def solve(self, t: float, c: float, r: Tensor, guess: Guess) -> Tensor:
        """The solution U of U = r + c (a(t) J U + f(t))."""
        if self.constant:
            return self._solve(self.inverse(c, 1.0), r, guess)
        scale, forcing = self.term.scale(t, r), self.term.forcing(t, r)
        b = r if forcing is None else r + c * forcing
        # A scale of zero is not skipped if it is differentiated: its derivative may be nonzero.
        followed = isinstance(scale, Tensor) and scale.requires_grad and torch.is_grad_enabled()
        check_finite(as_float(scale), t)
        if as_float(scale) == 0.0 and not followed:
            return b
        return self._solve(self.inverse(c, scale), b, guess)

    def linear_solve(self, t: float, c: float, U: Tensor, b: Tensor) -> Tensor:
        """The solution y of (I - c a(t) J) y = b."""
        scale = self.term.scale(t, b)
        return b if as_float(scale) == 0.0 else self._solve(self.inverse(c, scale), b)

    def transposed_solve(self, t: float, c: float, U: Tensor, b: Tensor) -> Tensor:
        """The solution y of (I - c a(t) J)^T y = b."""
        scale = 1.0 if self.constant else self.term.scale(t, b)
        if as_float(scale) == 0.0:
            return b
        inverse = self.inverse(c, scale)
        if self.last is None or self.last[0] is not inverse:
            self.last = inverse, inverse.T
        # The y - b = c J^T y of the last solve is a good guess, since gradients change slowly.
        y = self._solve(self.last[1], b, partial(self._turned_guess, c, b))
        self.correction = (c, y - b) if _is_iterative(self.last[1]) else None
        return y

    def _turned_guess(self, c: float, b: Tensor) -> Tensor | None:
        if self.correction is None or self.correction[1].shape != b.shape:
            return None
        before, difference = self.correction
        return torch.add(b, difference, alpha=c / before)

    def transposed_value(self, t: float, U: Tensor, w: Tensor) -> Tensor:
        """The product a(t) J^T w."""
        self.stats.operator_products += 1
        if self.turned is None:
            self.turned = self.term.operator.T
        return self.term.transposed(t, w, self.turned)

    def vjp(self, t: float, U: Tensor, w: Tensor, wanted: Sequence[bool]
            ) -> Sequence[Tensor | None]:
        """The gradients of <w, H(t, U)> with respect to the ``wanted`` tensors of J, f and a."""
        if not self.constant:
            self.term.check_ends(t, U)
        if not any(wanted):
            return ()
        self.stats.operator_products += 1
        return self.term.vjp(t, U, w, wanted)

    def accumulated(self) -> Sequence[Tensor | None]:
        """Empty: :meth:`vjp` gives all gradients."""
        return ()

    def _solve(self, inverse: LinearOperator, b: Tensor, guess: Guess | None = None) -> Tensor:
        start = time.perf_counter()
        first = guess() if guess is not None and _is_iterative(inverse) else None
        try:
            x, iterations, residual = solution(inverse, b, b if first is None else first)
        except LinearSolveError as error:
            if not bool(b.detach().isfinite().all()):
                error.state = b.detach()  # the cause is not the solver: see `report.located`
            raise
        if iterations is not None and residual is not None and iterations.numel():
            self.stats.linear_iterations += int(iterations.max())
            self.stats.worst_residual = max(self.stats.worst_residual, float(residual.max()))
        self.stats.linear_solves += 1
        self.stats.linear_seconds += time.perf_counter() - start
        return x


def _is_iterative(inverse: LinearOperator) -> bool:
    """Whether an inverse uses an initial guess."""
    return bool(getattr(inverse, "iterative", False))


def solution(inverse: LinearOperator, b: Tensor, guess: Tensor | None) -> Solution:
    """The solution by an inverse; that of a user's solver may have ``mv`` only, not ``solve``."""
    solve = getattr(inverse, "solve", None)
    found: Solution = Solution(inverse.mv(b)) if solve is None else solve(b, guess)
    return found


class Factorizations:
    """A cache of the inverses of I - cJ, by c; the most recently used ones are kept.

    If no tensor of J requires a gradient, they are also kept between calls while the operator
    object exists and its content is unchanged. Contents are compared, since version counters and
    addresses of tensors do not reveal every change (of ``.data`` or of inference tensors).

    Args:
        operator (LinearOperator): The operator J.
        solver (optional): The linear solver; that of :func:`pyg_sinode.solvers.default` if None.
        stats (Stats): The statistics, updated.
    """

    def __init__(self, operator: LinearOperator, solver: Any, stats: Stats) -> None:
        self.operator, self.solver, self.stats = operator, solver, stats
        self.made: dict[float, LinearOperator] = {}
        self.last_c = math.nan
        # An iterative inverse has no factors and uses the operator itself, as it is.
        self.iterates = isinstance(solver, Krylov) or (
            solver is None and not operator.has_closed_inverse())
        # Not kept between calls: a trained operator changes, and a division has no factors.
        for_once = any(t.requires_grad for t in operator.tensors) or (
            operator.as_diagonal() is not None) or not _is_hashable(solver)
        kept = None if for_once else kept_of(operator)
        # with_tensors of a subclass may return another class, which may behave differently.
        self.kept = kept if kept is not None and type(kept.operator) is type(operator) else None

    def inverse(self, c: float, scale: Tensor | float = 1.0) -> LinearOperator:
        """The inverse of I - c scale J."""
        c *= as_float(scale)
        if c == self.last_c:
            return self.made[c]
        found = self.made.pop(c, None)
        if found is None:
            found = self._new(self.operator, c) if self.kept is None else self._found(self.kept, c)
            if len(self.made) >= KEPT:
                self.made.pop(next(iter(self.made)))  # the least recently used one
        self.made[c] = found
        self.last_c = c
        return found

    def _new(self, operator: LinearOperator, c: float) -> LinearOperator:
        self.stats.factorizations += 1
        return self._invert(operator, c)

    def _invert(self, operator: LinearOperator, c: float) -> LinearOperator:
        solver = default(operator, c) if self.solver is None else self.solver
        with torch.no_grad():
            inverse: LinearOperator = solver.invert(Shifted(operator, c))
        return inverse

    def _found(self, kept: Kept, c: float) -> LinearOperator:
        key = (self.solver, c)
        if key in kept.inverses:
            found = kept.inverses[key]
            return self._invert(self.operator, c) if found is None else found
        inverse = self._new(self.operator if self.iterates else kept.operator, c)
        if len(kept.inverses) >= KEPT:
            kept.inverses.pop(next(iter(kept.inverses)))  # the oldest
        kept.inverses[key] = None if self.iterates else inverse
        return inverse


def _is_hashable(key: object) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True
