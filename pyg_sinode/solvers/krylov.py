"""How are many right-hand sides iterated together, and when is each of them solved?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ..operators import LinearOperator, LinearSolveError, Solution
from ..operators.checks import is_finite
from ..operators.graph import fused
from ..precision import without_autocast
from ..transforms import of_batch
from .base import Inverse, Solver


class Krylov:
    r"""Base class of iterative solvers: frozen dataclasses that implement :meth:`cycle`.

    Each index of the state's dimensions outside the operator's :obj:`dims` is a column, a
    right-hand side of its own. It is solved when its true residual, computed after a cycle, is

    .. math::
        \Vert b - Ax \Vert_2 \leq \max(rtol \, \Vert b \Vert_2,\ atol).

    If the residual of the recurrence has converged or decreases while the true residual does not,
    rounding limits the accuracy: the column is restarted once from its true residual, then the
    solve fails. The same holds for a column whose residuals both stagnate.
    """

    rtol: float | None
    atol: float
    max_iter: int | None
    preconditioner: Solver | None

    def __post_init__(self) -> None:
        """Raises a ValueError or TypeError if an argument is invalid."""
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"Expected {name} from 0 up (got {value}).")
        if self.rtol == 0 and self.atol == 0:
            raise ValueError("Expected rtol or atol above 0 (got 0 for both): rounding allows no "
                             "residual of zero.")
        for name in ("max_iter", "restart"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"Expected {name} from 1 up (got {value}).")
        if self.preconditioner is not None and not hasattr(self.preconditioner, "invert"):
            raise TypeError("Expected a solver such as Jacobi() as the preconditioner (got "
                            f"{self.preconditioner!r}).")

    def invert(self, operator: LinearOperator) -> KrylovInverse:
        """The inverse of an operator, whose product is computed by the iteration."""
        if self.preconditioner is None:
            return KrylovInverse(self, operator, None)
        return KrylovInverse(self, operator, self.preconditioner.invert(operator))

    def most(self, size: int) -> int:
        """The default of :obj:`max_iter` for columns of ``size`` unknowns."""
        return 10 * max(1, size)

    def cycle(self, system: System, r: Tensor, norm: Tensor, active: Tensor) -> Tensor | None:
        """Iterates until the columns are solved or the method has to be restarted.

        It updates ``system.x`` in place and calls ``system.advance`` or ``system.count`` once per
        iteration.

        Args:
            system (System): The system.
            r (Tensor): The true residual of ``system.x``; may be overwritten.
            norm (Tensor): The norm of r in each column.
            active (Tensor): Which columns to iterate; the others must not change.

        Returns:
            Tensor or None: The norm of each column's residual according to the recurrence of the
            method; None if it has none.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        own: Any = self
        given = [f"{f.name}={getattr(own, f.name)!r}" for f in dataclasses.fields(own)
                 if getattr(own, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(given)})"


class KrylovInverse(Inverse):
    """An inverse whose products are computed by a Krylov method.

    Args:
        solver (Krylov): The method and its tolerances.
        operator (LinearOperator): The operator A to invert.
        preconditioner (LinearOperator or None): An approximate inverse M of A.
    """

    iterative = True

    def __init__(self, solver: Krylov, operator: LinearOperator,
                 preconditioner: LinearOperator | None) -> None:
        super().__init__(operator)
        self.solver, self.preconditioner = solver, preconditioner

    @torch.no_grad()
    @without_autocast
    def solve(self, b: Tensor, guess: Tensor | None = None) -> Solution:
        """The solution of A x = b.

        Args:
            b (Tensor): The right-hand side.
            guess (Tensor, optional): An initial guess, used in the columns where its residual is
                smaller than that of zero. (default: :obj:`None`)

        Raises:
            LinearSolveError: if the true residual of a column does not reach its tolerance.
        """
        self._check(b, guess)
        if b.numel() == 0:
            empty = [1 if at - b.dim() in self.dims else n for at, n in enumerate(b.shape)]
            zeros = b.new_zeros(empty)
            return Solution(torch.zeros_like(b), zeros.long(), zeros)
        return System(self, b).solve(guess)

    def transpose(self) -> KrylovInverse:
        """The inverse of the transposed operator, with the transposed preconditioner."""
        M = None if self.preconditioner is None else self.preconditioner.T
        return KrylovInverse(self.solver, self.operator.T, M)

    def _check(self, b: Tensor, guess: Tensor | None) -> None:
        if not b.is_floating_point():
            raise TypeError(f"Expected a right-hand side of a real floating dtype (got {b.dtype}).")
        if b.dim() < max((-d for d in self.dims), default=0):
            raise ValueError(f"Expected a right-hand side with the dimensions {self.dims} (got "
                             f"shape {tuple(b.shape)}).")
        if guess is not None and guess.shape != b.shape:
            raise ValueError(f"Expected a guess of the shape of the right-hand side, "
                             f"{tuple(b.shape)} (got {tuple(guess.shape)}).")

    def __repr__(self) -> str:
        return f"{self.solver!r}.invert({self.operator!r})"


class System:
    """The scaled systems A x = b of all columns, on which a method iterates.

    Each column of b is divided by the power of two below its largest entry, so that squared norms
    neither under- nor overflow: gradients in float32 are often below 1e-20.

    Args:
        inverse (KrylovInverse): The method, the operator and the preconditioner.
        b (Tensor): The right-hand side.

    Attributes:
        operator (LinearOperator): The operator A.
        x (Tensor): The scaled approximate solution; methods update it in place.
        initial (Tensor): The residual norm of each column at the start.
        target (Tensor): The residual norm at which a method may stop iterating a column.
        size (int): The number of unknowns per column.
    """

    def __init__(self, inverse: KrylovInverse, b: Tensor) -> None:
        self.solver: Krylov = inverse.solver
        self.operator = fused(inverse.operator)
        self.preconditioner, self.dims = inverse.preconditioner, inverse.dims
        self.guess: Tensor | None = None
        self.size = math.prod(b.size(d) for d in self.dims)
        top = b.abs().amax(dim=self.dims, keepdim=True) if self.dims else b.abs()
        if not _is_finite(top):
            raise LinearSolveError("Expected a finite right-hand side (got NaN or Inf); look where "
                                   "it was computed.")
        self.scale = torch.where(top > 0, top / (2.0 * torch.frexp(top).mantissa), 1.0)
        self.b = b / self.scale
        self._product = torch.empty_like(self.b)
        self.norm_b = self.norm(self.b)
        rtol = self.solver.rtol
        if rtol is None:
            rtol = default_rtol(b.dtype)
        # Not number / tensor, which multiplies by the reciprocal: that may be infinite.
        atol = torch.full_like(self.scale, self.solver.atol) / self.scale
        self.bound = (rtol * self.norm_b).clamp_min(atol)
        # The residual of a recurrence decreases even when rounding stops the true one: limit it.
        eps = torch.finfo(b.dtype).eps
        self.target = self.bound.clamp_min(1e-3 * eps * self.norm_b)
        self.limit = self.solver.max_iter or self.solver.most(self.size)
        self.spent = 0
        self.best: Tensor | None = None  # the best x, known once a cycle left a column unsolved
        self.best_norm = self._least = self.norm_b
        self._lowest: Tensor | None = None  # see `remember`
        self.iterations = torch.zeros_like(self.norm_b, dtype=torch.long)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """The inner product of each column, with the reduced dimensions kept."""
        if not self.dims:  # torch.sum with dim=() sums over all dimensions
            return a * b
        return torch.mul(a, b, out=self._product).sum(dim=self.dims, keepdim=True)

    def norm(self, a: Tensor) -> Tensor:
        """The Euclidean norm of each column, with the reduced dimensions kept."""
        return self.dot(a, a).sqrt_()

    def subtract(self, r: Tensor, x: Tensor, alpha: float = 1.0) -> None:
        """Subtracts alpha times the product A x from r, in place."""
        self.operator.add_product(r, x, -alpha)

    def precondition(self, r: Tensor) -> Tensor:
        """The product of the preconditioner with r; r itself if there is none."""
        return r if self.preconditioner is None else self.preconditioner.mv(r)

    def remember(self, rr: Tensor) -> None:
        """Stores x in the columns whose squared residual rr is the smallest of this cycle.

        For methods whose residual may increase: an error then holds the best iterate.
        """
        if self._lowest is None:
            self._least, self._lowest = rr, self.x.clone()
            return
        better = rr < self._least
        self._least = torch.where(better, rr, self._least)
        self._lowest = torch.where(better, self.x, self._lowest)

    def count(self, active: Tensor) -> bool:
        """Counts an iteration of the active columns; False if the limit is reached."""
        if self.spent >= self.limit:
            return False
        self.spent += 1
        self.iterations += active
        return True

    def advance(self, active: Tensor) -> bool:
        """As :meth:`count`; False also if no column is active."""
        return self.spent < self.limit and bool(active.any()) and self.count(active)

    def solve(self, guess: Tensor | None) -> Solution:
        """Runs cycles of the method until the true residual of each column is within its bound."""
        self.guess = guess
        r, norm = self._start()
        active = ~(norm <= self.bound)  # true for NaN
        limited, stalled = torch.zeros_like(self.iterations), torch.zeros_like(self.iterations)
        unsolved = bool(active.any())
        while unsolved:
            self._lowest = None
            own = self.solver.cycle(self, r, norm, active.clone())
            before, (r, norm) = norm, self._residual(self.x)
            own = norm if own is None else own
            active = ~(norm <= self.bound)
            unsolved = bool(active.any())
            if unsolved:
                if not bool((own + norm).isfinite().all()):
                    raise self.not_finite()
                self._keep_best(self.x, norm)
                if self._lowest is not None:
                    self._keep_best(self._lowest, self._residual(self._lowest)[1])
                claimed = own <= self.target
                floating = (norm > 2 * own) & (norm > 0.5 * before)
                still = (norm - before).abs() <= _root_eps(r) * before
                limited += active & (claimed | floating)
                stalled += active & still & ~claimed & ~floating
                self._give_up(active & (limited > 1), active & (stalled > 1))
        return Solution(self.x.mul_(self.scale), self.iterations, norm.mul_(self.scale))

    def _start(self) -> tuple[Tensor, Tensor]:
        if self.guess is None:
            self.x, r, norm = torch.zeros_like(self.b), self.b.clone(), self.norm_b.clone()
        else:
            self.x = self.guess / self.scale
            r, norm = self._residual(self.x)
            # Start from zero where b is zero, or the guess is worse than zero or not finite.
            better = norm < self.norm_b
            if not bool(better.all()):
                self.x = torch.where(better, self.x, 0.0)
                r, norm = torch.where(better, r, self.b), torch.where(better, norm, self.norm_b)
        self.initial = norm
        return r, norm

    def _residual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = self.b.clone()
        self.subtract(r, x)
        return r, self.norm(r)

    def _keep_best(self, x: Tensor, norm: Tensor) -> None:
        if self.best is None:
            self.best = self._first()
        better = norm < self.best_norm
        self.best = torch.where(better, x, self.best)
        self.best_norm = torch.where(better, norm, self.best_norm)

    def _first(self) -> Tensor:
        """The initial approximation, which is the best one if no iteration improved on it."""
        self.best_norm = self.initial
        if self.guess is None:
            return torch.zeros_like(self.b)
        return torch.where(self.initial < self.norm_b, self.guess / self.scale, 0.0)

    def _give_up(self, limited: Tensor, stalled: Tensor) -> None:
        """Raises if a column cannot be solved: limited by rounding, out of iterations or stalled.
        """
        # If hardly any digit of the solution is right, the operator is singular to rounding.
        hopeless = limited & (self.best_norm > 0.1 * self.norm_b)
        limited, stalled = limited & ~hopeless, stalled | hopeless
        finer = "." if self.b.dtype == torch.float64 else ", or float64."
        if bool(limited.any()):
            raise self._failure(f"{self.solver!r} reached the floor of rounding in {self.b.dtype}",
                                f"use a larger rtol or atol{finer}", limited)
        if self.spent >= self.limit:
            raise self._failure(
                f"{self.solver!r} did not converge in {self.spent} iterations",
                "use a larger max_iter, another solver, or a preconditioner such as Jacobi() where "
                f"it takes one{finer}")
        if bool(stalled.any()):
            raise self._failure(
                f"{self.solver!r} makes no progress after {self.spent} iterations",
                "the operator is singular, or breaks the method down: use GMRES with a larger "
                f"restart, a preconditioner or another step size{finer}", stalled)

    def _failure(self, what: str, remedy: str, where: Tensor | None = None) -> LinearSolveError:
        """The error of a failed solve, with the worst residual of the columns in ``where``."""
        norm, bound = self.best_norm, self.bound
        excess = torch.where(norm > bound, norm / bound, 0.0)
        worst = (excess if where is None else torch.where(where, excess, 0.0)).argmax()
        got, most = (float((t * self.scale).reshape(-1)[worst]) for t in (norm, bound))
        return self.error(f"{what} (expected a residual of at most {most:.1e}, got {got:.1e}); "
                          f"{remedy}")

    def not_finite(self) -> LinearSolveError:
        """The error for an operator or preconditioner whose product is NaN or Inf."""
        return self.error(
            f"Expected finite products in {self.solver!r} (got NaN or Inf by iteration "
            f"{self.spent}); look at the entries of the operator, or use float64.")

    def error(self, message: str) -> LinearSolveError:
        """An error that holds the best solution and its largest residual."""
        best = self._first() if self.best is None else self.best
        return LinearSolveError(message, iterations=int(self.iterations.max()),
                                residual=float((self.best_norm * self.scale).max()),
                                state=best * self.scale)


def default_rtol(dtype: torch.dtype) -> float:
    """The default relative tolerance of iterative solvers."""
    return 1e-10 if dtype == torch.float64 else 1e-5


def safe_divide(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """The quotient a / b where ``where`` is true, and zero elsewhere, even for NaN."""
    return torch.where(where, a / b, 0.0)


def _root_eps(like: Tensor) -> float:
    return math.sqrt(torch.finfo(like.dtype).eps)


def _is_finite(x: Tensor) -> bool:
    try:
        return is_finite(x)
    except RuntimeError as error:
        raise of_batch(error) from error
