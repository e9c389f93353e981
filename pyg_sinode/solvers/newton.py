"""How is a nonlinear system solved by Newton's method, inexact or with reused factorizations?"""

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

SLOW = 0.2  # a slower rate of convergence makes a new factorization
SUFFICIENT = 0.25  # the fraction of the linear model's decrease that an update must reach
NOISE = 64.0  # an error below this multiple of the effect of rounding counts as rounding
SMALLEST = 2.0**-16  # the smallest fraction of an update that is tried
# Tolerances eta of iterative linear solves (Eisenstat and Walker); the initial guess is good.
ETA_FIRST, ETA_MAX, ETA_MIN = 1e-2, 0.5, 1e-4
GAMMA = 0.9  # the factor in their choice 2, whose exponent is 2


class NewtonError(SolveError):
    r"""An implicit stage was not solved by Newton's method.

    :attr:`residual` is the largest magnitude in :math:`U - r - c H(t, U)`. The other attributes are
    :attr:`iterations`, :attr:`state` (the last iterate U), :attr:`time` (at the start of the step)
    and :attr:`step` (its number, from 0).
    """


@dataclass(frozen=True)
class Newton:
    r"""Newton's method for the implicit stages :math:`U = r + c H(t, U)`.

    Each index of the dimensions that H does not mix is a separate system with its own convergence
    test. If :math:`I - c H_u` has a closed inverse (small dense blocks, or that of a given
    Jacobian), one factorization is reused over several iterations and stages of a step, as long as
    each iteration reduces the error by a factor of 5 or more. A system is solved when the estimated
    error of each entry is at most

    .. math::
        atol + rtol \, \max_j |U_j|.

    Otherwise the linear systems are solved iteratively, with tolerances that decrease as Newton's
    method converges (choice 2 of Eisenstat and Walker, `"Choosing the Forcing Terms in an Inexact
    Newton Method" <https://doi.org/10.1137/0917003>`_, 1996), and the bound holds for the residual.
    Updates that do not reduce the error enough, or that lead to NaN, are halved.

    Args:
        rtol (float, optional): Relative tolerance. If None, 1e-2 of the tolerance of the
            integration with adaptive steps, 100 units of rounding with equal steps.
            (default: :obj:`None`)
        atol (float): Absolute tolerance, in the unit of the state. (default: :obj:`0.0`)
        max_iter (int): Largest number of iterations of a stage. (default: :obj:`25`)
        solver (Solver, optional): The linear solver. If None, a closed form if there is one, dense
            blocks of up to 64 rows, else :class:`GMRES`. The :obj:`rtol` of a Krylov solver is
            chosen as above unless it is set; for gradients it is the larger of :obj:`rtol` here and
            the solver's default. (default: :obj:`None`)
        line_search (bool): Whether to halve updates that do not reduce the error enough. If False,
            only updates that lead to NaN or Inf are halved. (default: :obj:`True`)

    Raises:
        ValueError, TypeError: if an argument is out of range or of the wrong type.
        NewtonError: in an integration, if a stage is not solved.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_iter: int = 25
    solver: Solver | None = None
    line_search: bool = True

    def __post_init__(self) -> None:
        """Raises a ValueError or TypeError if an argument is invalid."""
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
        """The root of a nonlinear system.

        Args:
            system (NonlinearSystem): The system and its Jacobian.
            start (Tensor): The initial guess.
            scale (callable): Maps a state to the error allowed in each of its entries.

        Raises:
            NewtonError: if one of the systems is not solved.
        """
        return _Iteration(self, system, start, scale).run()


class Point(Protocol):
    """The evaluation of a system at a state."""

    residual: Tensor  # detached


class NonlinearSystem(Protocol):
    """A system F(U) = 0, for Newton's method.

    Attributes:
        dims: The dimensions that F mixes; each index of the others is a separate system.
        inverse: An inverse of F's Jacobian at an earlier state, if there is one.
        exact: Whether :meth:`linearize` uses the exact Jacobian, not an approximation.
    """

    dims: tuple[int, ...]
    inverse: LinearOperator | None
    exact: bool

    def at(self, U: Tensor) -> Any:
        """Evaluates F at U; returns a :class:`Point`."""
        ...

    def linearize(self, point: Any, rtol: float) -> LinearOperator:
        """The inverse of F's Jacobian at a point; rtol is the tolerance of an iterative one."""
        ...

    def solve(self, inverse: LinearOperator, b: Tensor) -> Tensor:
        """The solution of a linear system."""
        ...

    def magnitude(self, U: Tensor) -> Tensor:
        """The magnitude of the terms whose difference is F."""
        ...

    def rounded(self, U: Tensor) -> Tensor:
        """The magnitude of the numbers whose rounding errors affect F; at least :meth:`magnitude`.
        """
        ...

    def count(self) -> None:
        """Counts an iteration."""
        ...


class _Trial(NamedTuple):
    """A state, its evaluation, and the quantity x that measures it: next update or residual."""

    U: Tensor
    point: Any
    x: Tensor
    size: Tensor  # the largest entry of x in each system, in units of the allowed error


class _Iteration:
    """One solve by Newton's method, of all systems together."""

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
        """Whether the linear systems are solved iteratively."""
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
                # With a factorization, the next update is known: apply it.
                return self.now.U if self.iterated else self.now.U - self._update(self.live)
            self.iterations += 1
            self.system.count()
            self._advance(live)

    def _error_left(self) -> Tensor:
        """The estimated error after the known update, or the residual, relative to the allowed."""
        if self.iterated:
            return self.now.size
        # All updates after the next one sum to rate / (1 - rate) times that one, or more if the
        # rate increases. If the rate is not known to be small, the size of the update bounds the
        # error only with a factorization at this state, or if the update is zero.
        size = self.now.size
        unknown = size if self.fresh else torch.where(size == 0.0, 0.0, math.inf)
        # With an approximate Jacobian, one small rate does not predict the next.
        known = size * self.rate / SLOW if self.system.exact else size
        return torch.where(self.rate <= SLOW, known, unknown)

    def _update(self, live: Tensor) -> Tensor:
        """The update of the live systems, zero in the others."""
        x = torch.where(live, self.now.x, 0.0)
        return self._solved(x) if self.iterated else x

    def _solved(self, b: Tensor) -> Tensor:
        """The solution of a linear system with the Jacobian."""
        assert self.inverse is not None
        try:
            return self.system.solve(self.inverse, b)
        except LinearSolveError as error:
            raise self._error(f"a linear solve failed: {error}") from error

    def _advance(self, live: Tensor) -> None:
        """Makes one update, shortened where necessary."""
        update = self._update(self.live)
        trial = self._trial(update)
        short = live & self._is_long(trial)
        if not bool(short.any()):
            self._accept(trial, live, self._rate(trial))
        elif self.fresh:
            self._shorten(update, live, short)
        else:  # the factorization was of another state
            self._refresh()

    def _is_long(self, trial: _Trial, fraction: Tensor | float = 1.0) -> Tensor:
        """Where an update does not reduce the error enough, or (no line search) leads to NaN."""
        if not self.newton.line_search:
            return ~trial.size.isfinite()
        enough = 1.0 - SUFFICIENT * fraction * (1.0 - self.rtol if self.iterated else 1.0)
        return ~(trial.size <= enough * self.now.size)  # true for NaN

    def _shorten(self, update: Tensor, live: Tensor, short: Tensor) -> None:
        """Halves the update of the systems in ``short`` until it reduces their error."""
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
        """The quotient of the sizes after and before an update: the rate of convergence."""
        return torch.where(trial.size == 0.0, 0.0, trial.size / self.now.size)

    def _accept(self, trial: _Trial, live: Tensor, rate: Tensor) -> None:
        """Accepts a trial as the current state; linearizes again if convergence is slow."""
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
        """Linearizes at the current state."""
        self._linearize(self.now.point)
        self.now = self._measured(self.now.U, self.now.point)

    def _choose_rtol(self, rate: Tensor, size: Tensor) -> None:
        """Chooses the tolerance of the next linear solves."""
        wanted, before = GAMMA * min(float(rate.max()), 1.0) ** 2, GAMMA * self.rtol**2
        if before > 0.1:  # their safeguard against a sudden decrease after one good update
            wanted = max(wanted, before)
        spared = ETA_MAX / max(float(size.max()), 1.0)  # no more than the final accuracy needs
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
        """A trial measured by its next update if there is a factorization, else by the residual."""
        x = point.residual if self.iterated else self._solved(point.residual)
        return _Trial(U, point, x, self._size(x))

    def _allowed(self, U: Tensor) -> Tensor:
        """The error allowed in each entry."""
        # A residual cannot be smaller than the rounding of the terms whose difference it is.
        return self.scale(self.system.magnitude(U) if self.iterated else U)

    def _size(self, x: Tensor) -> Tensor:
        quotient = x.abs() / self.allowed
        return quotient.amax(dim=self.system.dims, keepdim=True) if self.system.dims else quotient

    def _beyond_rounding(self, live: Tensor) -> Tensor:
        """The live systems whose error exceeds the effect of rounding on the residual."""
        now, eps = self.now, torch.finfo(self.now.U.dtype).eps
        rounding = eps * self.system.rounded(now.U)
        small = live & (now.size <= self._size(rounding / math.sqrt(eps)))
        if not bool(small.any()):
            return live
        generator, floor = torch.Generator().manual_seed(0), torch.zeros_like(now.size)
        for _ in range(2):  # the rounding errors of one draw may cancel
            signs = torch.randint(0, 2, now.U.shape, generator=generator, device="cpu")
            signs = signs.to(now.U) * 2.0 - 1.0
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
