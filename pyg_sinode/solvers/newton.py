"""How is a nonlinear system solved? By Newton's method, inexact or with factors that are reused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..operators import LinearOperator, LinearSolveError
from ..operators.results import SolveError
from .base import Solver

SLOW = 0.2  # the rate of convergence from which on factors of another state are not trusted
SUFFICIENT = 0.25  # the part of the decrease of a linear model that a trial has to reach
NOISE = 64.0  # how many times the effect of a rounding of the state counts as one
SMALLEST = 2.0**-16  # the smallest fraction of an update that is tried
# Tolerances of iterated solves, eta of Eisenstat and Walker: a step starts from a good guess.
ETA_FIRST, ETA_MAX, ETA_MIN = 1e-2, 0.5, 1e-4
GAMMA = 0.9  # of their choice 2, whose exponent is 2


class NewtonError(SolveError):
    r"""A nonlinear system that Newton's method could not solve: its residual is the largest entry
    of :math:`U - r - c H(t, U)`.
    """


@dataclass(frozen=True)
class Newton:
    r"""Newton's method for the implicit stages :math:`U = r + c H(t, U)`.

    Every index of the dimensions that H does not mix is a system of its own, which stops by itself.
    Where the derivative has a closed inverse (small dense blocks, or an operator that the user
    gave) its factors serve several iterations and stages of a step while they converge by a factor
    of 5 or more, and a system is solved when the error that is left in an entry is at most

    .. math::
        atol + rtol \, \max_j |U_j|.

    Otherwise the linear systems are iterated, each only as far as the present accuracy makes use of
    (choice 2 of Eisenstat and Walker, `"Choosing the Forcing Terms in an Inexact Newton Method"
    <https://doi.org/10.1137/0917003>`_, 1996), and the bound is that of the residual. Updates that
    do not help, or lead to NaN, are halved.

    Args:
        rtol (float, optional): Relative tolerance; if None 1e-2 of the integration's tolerance at
            every entry with adaptive steps, 100 units of rounding with equal ones.
            (default: :obj:`None`)
        atol (float): Absolute tolerance, in the unit of the state. (default: :obj:`0.0`)
        max_iter (int): Largest number of iterations of a stage. (default: :obj:`25`)
        solver (Solver, optional): The linear solver; if None the closed form where there is one,
            dense blocks of up to 64 rows included, else :class:`GMRES`. The tolerance of a Krylov
            solver is chosen as above unless it has one of its own; that of a gradient is the
            larger of :obj:`rtol` and the solver's default. (default: :obj:`None`)
        line_search (bool): Whether to halve updates that do not help. (default: :obj:`True`)

    Raises:
        ValueError, TypeError: if an argument is out of range, or of another kind.
        NewtonError: in an integration, if a stage is not solved.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iter: int = 25
    solver: Solver | None = None
    line_search: bool = True

    def __post_init__(self) -> None:
        """Refuses arguments out of range."""
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"Expected {name} of Newton from 0 up (got {value}).")
        if self.rtol == 0 and self.atol == 0:
            raise ValueError("Expected rtol or atol of Newton above 0 (got 0 for both): rounding "
                             "allows no error of zero.")
        if isinstance(self.max_iter, bool) or not isinstance(self.max_iter, int) or (
                self.max_iter < 1):
            raise ValueError(f"Expected max_iter of Newton as a positive int (got "
                             f"{self.max_iter!r}).")
        if self.solver is not None and (
                isinstance(self.solver, type) or not hasattr(self.solver, "invert")):
            raise TypeError(f"Expected the solver of Newton as a linear solver such as GMRES() "
                            f"(got {self.solver!r}).")

    def solve(self, system: NonlinearSystem, start: Tensor, scale: Callable[[Tensor], Tensor]
              ) -> Tensor:
        """The root of a system.

        Args:
            system (NonlinearSystem): What is to be zero, and its derivative.
            start (Tensor): The state to start from.
            scale (callable): From a state to the error that is allowed in each entry of it.

        Raises:
            NewtonError: if one of the systems is not solved.
        """
        return _Iteration(self, system, start, scale).run()


class Point(Protocol):
    """A state at which a system was evaluated."""

    residual: Tensor  # detached


class NonlinearSystem(Protocol):
    """The system F(U) = 0 as Newton's method sees it.

    Attributes:
        dims: The dimensions that F mixes; every index of the others is a system of its own.
        inverse: The inverse of F's derivative that is at hand, if there is one.
        exact: Whether :meth:`linearize` takes the derivative itself, or what approximates it.
    """

    dims: tuple[int, ...]
    inverse: LinearOperator | None
    exact: bool

    def at(self, U: Tensor) -> Any:
        """Evaluates F; gives a :class:`Point`."""
        ...

    def linearize(self, point: Any, rtol: float) -> LinearOperator:
        """The inverse of F's derivative at a point, to a tolerance where it is iterated."""
        ...

    def solve(self, inverse: LinearOperator, b: Tensor) -> Tensor:
        """The solution of a linear system."""
        ...

    def magnitude(self, U: Tensor) -> Tensor:
        """The size of the terms that F is the difference of."""
        ...

    def rounded(self, U: Tensor) -> Tensor:
        """The size of the numbers whose rounding F shows, at least :meth:`magnitude`."""
        ...

    def count(self) -> None:
        """Counts an iteration."""
        ...


class _Trial(NamedTuple):
    """A state, its point, and what is measured there: the next update, or the residual."""

    U: Tensor
    point: Any
    x: Tensor
    size: Tensor  # of x, for each system, in units of what is allowed at the present state


class _Iteration:
    """One solve by Newton's method, of all systems at once."""

    def __init__(self, newton: Newton, system: NonlinearSystem, start: Tensor,
                 scale: Callable[[Tensor], Tensor]) -> None:
        self.newton, self.system, self.scale = newton, system, scale
        self.iterations, self.rtol = 0, ETA_FIRST
        self.inverse, self.fresh = system.inverse, False
        point = system.at(start)
        self.allowed = self._allowed(start)
        self.now = _Trial(start, point, point.residual, self._size(point.residual))
        if not bool(point.residual.isfinite().all()):
            raise self._error("H is not finite at the state to start from")
        if self.inverse is None:
            self._linearize(point)
            self.allowed = self._allowed(start)
        self.now = self._measured(start, point)
        self.rate = torch.full_like(self.now.size, math.inf)  # the quotient of the last two sizes
        self.live = torch.ones_like(self.now.size, dtype=torch.bool)

    @property
    def iterated(self) -> bool:
        """Whether linear systems are iterated."""
        return getattr(self.inverse, "iterative", False)

    def run(self) -> Tensor:
        """Iterates until every system is solved."""
        while True:
            live = self.live & ~(self._error_left() <= 1.0)
            if bool(live.any()) and self.iterations >= self.newton.max_iter:
                live = live & self._beyond_rounding(live)
                if bool(live.any()):
                    raise self._error(f"{self.iterations} iterations were not enough")
            if not bool(live.any()):
                # The last update of systems with factors comes for nothing.
                return self.now.U if self.iterated else self.now.U - self._update(self.live)
            self.iterations += 1
            self.system.count()
            self._advance(live)

    def _error_left(self) -> Tensor:
        """The error after the update that is at hand, or the residual, in units of the allowed."""
        if self.iterated:
            return self.now.size
        # All further updates add up to rate / (1 - rate) of the next one, or more if the rate
        # grows. Where it is not known to be small, the update tells of the error only if its
        # factors are of this very state, or if it is zero.
        size = self.now.size
        unknown = size if self.fresh else torch.where(size == 0.0, 0.0, math.inf)
        # One small rate tells nothing of the next where the derivative is an approximation.
        known = size * self.rate / SLOW if self.system.exact else size
        return torch.where(self.rate <= SLOW, known, unknown)

    def _update(self, live: Tensor) -> Tensor:
        """The update of some systems, zero in the others."""
        x = torch.where(live, self.now.x, 0.0)
        return self._solved(x) if self.iterated else x

    def _solved(self, b: Tensor) -> Tensor:
        """The solution of a linear system with the derivative."""
        assert self.inverse is not None
        try:
            return self.system.solve(self.inverse, b)
        except LinearSolveError as error:
            raise self._error(f"a linear solve failed: {error}") from error

    def _advance(self, live: Tensor) -> None:
        """Makes one update, shorter where that is needed."""
        update = self._update(self.live)
        trial = self._trial(update)
        short = live & self._is_long(trial)
        if not bool(short.any()):
            self._accept(trial, live, self._rate(trial))
        elif self.fresh:
            self._shorten(update, live, short)
        else:  # these factors were of another state
            self._refresh()

    def _is_long(self, trial: _Trial, fraction: Tensor | float = 1.0) -> Tensor:
        """Where an update leads to too little; without a line search, where it leads to NaN."""
        if not self.newton.line_search:
            return ~trial.size.isfinite()
        enough = 1.0 - SUFFICIENT * fraction * (1.0 - self.rtol if self.iterated else 1.0)
        return ~(trial.size <= enough * self.now.size)  # so written, NaN is too long

    def _shorten(self, update: Tensor, live: Tensor, short: Tensor) -> None:
        """Halves the update of some systems until it helps."""
        if not bool(self.now.x.isfinite().all()):
            raise self._error("the derivative of U - c H is singular to rounding")
        at_floor = short & ~self._beyond_rounding(short)
        self.live, live, short = self.live & ~at_floor, live & ~at_floor, short & ~at_floor
        if not bool(short.any()):
            return
        update = torch.where(at_floor, 0.0, update)
        fraction, trial = torch.ones_like(self.now.size), self.now
        while bool(short.any()):
            fraction = torch.where(short, 0.5 * fraction, fraction)
            if float(fraction.min()) < SMALLEST:
                raise self._error("no update makes the residual smaller")
            trial = self._trial(fraction * update)
            short = live & self._is_long(trial, fraction)
        self._accept(trial, live, torch.where(fraction == 1.0, self._rate(trial), 1.0))

    def _rate(self, trial: _Trial) -> Tensor:
        """The quotient of the sizes after and before an update."""
        return torch.where(trial.size == 0.0, 0.0, trial.size / self.now.size)

    def _accept(self, trial: _Trial, live: Tensor, rate: Tensor) -> None:
        """Takes a trial for the present state, with new factors where the old ones are slow."""
        self.allowed = self._allowed(trial.U)
        self.now = trial._replace(size=self._size(trial.x))
        self.live, self.rate, self.fresh = live, rate, False
        if self.iterated:
            size = torch.where(live, self.now.size, 0.0)
            self._choose_rtol(torch.where(live, rate, 0.0), size)
            if bool((size > 1.0).any()):
                self._linearize(trial.point)
        elif bool((live & ~(self.rate <= SLOW)).any()):
            self._refresh()

    def _refresh(self) -> None:
        """Makes factors of the present state."""
        self._linearize(self.now.point)
        self.now = self._measured(self.now.U, self.now.point)

    def _choose_rtol(self, rate: Tensor, size: Tensor) -> None:
        """The tolerance of the next linear solves."""
        wanted, before = GAMMA * min(float(rate.max()), 1.0) ** 2, GAMMA * self.rtol**2
        if before > 0.1:  # their safeguard: no sudden jump after one lucky update
            wanted = max(wanted, before)
        spared = ETA_MAX / max(float(size.max()), 1.0)  # no more accurate than the end asks for
        self.rtol = min(ETA_MAX, max(wanted, spared, ETA_MIN))

    def _linearize(self, point: Any) -> None:
        try:
            self.inverse = self.system.linearize(point, self.rtol)
        except LinearSolveError as error:
            raise self._error(f"a linear solve failed: {error}") from error
        self.fresh = True

    def _trial(self, update: Tensor) -> _Trial:
        U = self.now.U - update
        return self._measured(U, self.system.at(U))

    def _measured(self, U: Tensor, point: Any) -> _Trial:
        """What is measured at a state: the next update if that costs little, else the residual."""
        x = point.residual if self.iterated else self._solved(point.residual)
        return _Trial(U, point, x, self._size(x))

    def _allowed(self, U: Tensor) -> Tensor:
        """The error that is allowed in each entry."""
        # A residual cannot be smaller than the rounding of all that it is the difference of.
        return self.scale(self.system.magnitude(U) if self.iterated else U)

    def _size(self, x: Tensor) -> Tensor:
        quotient = x.abs() / self.allowed
        return quotient.amax(dim=self.system.dims, keepdim=True) if self.system.dims else quotient

    def _beyond_rounding(self, live: Tensor) -> Tensor:
        """The systems whose error is more than what rounding makes of the residual."""
        now, eps = self.now, torch.finfo(self.now.U.dtype).eps
        rounding = eps * self.system.rounded(now.U)
        small = live & (now.size <= self._size(rounding / math.sqrt(eps)))
        if not bool(small.any()):
            return live
        generator, floor = torch.Generator().manual_seed(0), torch.zeros_like(now.size)
        for _ in range(2):  # the signs of one may cancel
            signs = torch.randint(0, 2, now.U.shape, generator=generator).to(now.U) * 2.0 - 1.0
            change = self.system.at(now.U + signs * rounding).residual - now.point.residual
            change = change + signs * rounding
            floor = torch.maximum(floor, self._size(
                change if self.iterated else self._solved(change)))
        return live & ~(small & (now.size <= NOISE * floor))

    def _error(self, what: str) -> NewtonError:
        now = self.now
        largest = now.size.max()
        residual = float(now.point.residual.abs().max())
        return NewtonError(
            f"Newton's method did not solve an implicit stage: {what} (expected an error within "
            f"the tolerance, got {float(largest):.1e} times that, iterations: {self.iterations}). "
            "Take a smaller step_size, a larger rtol or max_iter of Newton, or look at H near that "
            "state.", iterations=self.iterations, residual=residual, state=now.U)
