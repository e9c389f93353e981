"""How are many right-hand sides iterated at once, and when does each of them count as solved?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ..operators import LinearOperator, LinearSolveError, Solution
from ..operators.graph import fused
from ..precision import without_autocast
from ..transforms import of_batch
from .base import Inverse, Solver


class Krylov:
    r"""What Krylov solvers share; a method is a frozen dataclass that gives :meth:`cycle`.

    A column is everything of the state that lies outside the operator's :obj:`dims`. Each counts as
    solved by its true residual, computed after the iteration,

    .. math::
        \Vert b - Ax \Vert_2 \leq \max(rtol \, \Vert b \Vert_2,\ atol).

    Where the recurrence's residual converges, or falls, and the true one does not, the column is
    restarted once from its true residual, then fails: rounding limits it. So does a column in which
    neither changes.
    """

    rtol: float | None
    atol: float
    max_iter: int | None
    preconditioner: Solver | None

    def __post_init__(self) -> None:
        """Refuses arguments out of range."""
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
        """The inverse of an operator, iterated at each product."""
        if self.preconditioner is None:
            return KrylovInverse(self, operator, None)
        return KrylovInverse(self, operator, self.preconditioner.invert(operator))

    def most(self, size: int) -> int:
        """The largest number of iterations for so many unknowns, where none is given."""
        return 10 * max(1, size)

    def cycle(self, system: System, r: Tensor, norm: Tensor, active: Tensor) -> Tensor | None:
        """Improves ``system.x`` in its active columns, from their true residual to a restart.

        Args:
            system (System): The system, whose ``advance`` counts the iterations.
            r (Tensor): The residual of ``system.x``; may be overwritten.
            norm (Tensor): Its norm per column.
            active (Tensor): Which columns to iterate; the others stay as they are.

        Returns:
            Tensor or None: Each column's residual norm by the method's own account, if it has one.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        own: Any = self
        given = [f"{f.name}={getattr(own, f.name)!r}" for f in dataclasses.fields(own)
                 if getattr(own, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(given)})"


class KrylovInverse(Inverse):
    """An inverse that iterates at each product; its transpose iterates with the transposes.

    Args:
        solver (Krylov): The method and its tolerances.
        operator (LinearOperator): The operator A that is inverted.
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
        """The solution of A x = b from a guess; one that is worse than zero is not used.

        Raises:
            LinearSolveError: if a column's true residual does not reach the tolerance.
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
    """The system A x = b of all columns, scaled, as a method sees it while it iterates.

    Each column of b is divided by the power of two below its largest entry, so that squares of
    norms neither under- nor overflow: gradients in float32 are often below 1e-20.

    Attributes:
        operator (LinearOperator): The operator A.
        x (Tensor): The scaled solution so far; methods update it in place.
        initial (Tensor): The residual norm of each column at the start.
        target (Tensor): The residual norm at which a method may leave a column.
        size (int): Unknowns per column.
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
        # Not the number over the scale, which would be its product with an infinite reciprocal.
        atol = torch.full_like(self.scale, self.solver.atol) / self.scale
        self.bound = (rtol * self.norm_b).clamp_min(atol)
        # A method's own residual shrinks on below what rounding allows the true one, to underflow.
        eps = torch.finfo(b.dtype).eps
        self.target = self.bound.clamp_min(1e-3 * eps * self.norm_b)
        self.limit = self.solver.max_iter or self.solver.most(self.size)
        self.spent = 0
        self.best: Tensor | None = None  # the best x so far, once a cycle left a column unsolved
        self.best_norm = self._least = self.norm_b
        self._lowest: Tensor | None = None  # see `remember`
        self.iterations = torch.zeros_like(self.norm_b, dtype=torch.long)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """The inner product of each column, its dimensions kept."""
        if not self.dims:  # torch.sum over no dimensions would be one over all
            return a * b
        return torch.mul(a, b, out=self._product).sum(dim=self.dims, keepdim=True)

    def norm(self, a: Tensor) -> Tensor:
        """The Euclidean norm of each column, its dimensions kept."""
        return self.dot(a, a).sqrt_()

    def subtract(self, r: Tensor, x: Tensor, alpha: float = 1.0) -> None:
        """Subtracts alpha times the product A x from r, in place."""
        self.operator.add_product(r, x, -alpha)

    def precondition(self, r: Tensor) -> Tensor:
        """The product with the preconditioner; r itself where there is none."""
        return r if self.preconditioner is None else self.preconditioner.mv(r)

    def remember(self, rr: Tensor) -> None:
        """Keeps the solution where its squared residual is the least since the cycle began.

        For methods whose residual may rise again: what they reached is what a failure carries.
        """
        if self._lowest is None:
            self._least, self._lowest = rr, self.x.clone()
            return
        better = rr < self._least
        self._least = torch.where(better, rr, self._least)
        self._lowest = torch.where(better, self.x, self._lowest)

    def count(self, active: Tensor) -> bool:
        """Counts one more iteration of the active columns; False if none is left."""
        if self.spent >= self.limit:
            return False
        self.spent += 1
        self.iterations += active
        return True

    def advance(self, active: Tensor) -> bool:
        """Counts one more iteration of the active columns; False if there is none, or none left."""
        return self.spent < self.limit and bool(active.any()) and self.count(active)

    def solve(self, guess: Tensor | None) -> Solution:
        """Runs cycles of the method until each column's true residual is within its bound."""
        self.guess = guess
        r, norm = self._start()
        active = ~(norm <= self.bound)  # so written, NaN stays active
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
            # Zero where b is zero, and where a guess is worse than zero or not finite.
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
        """The solution from which the iteration started, which a failure may have to go back to."""
        self.best_norm = self.initial
        if self.guess is None:
            return torch.zeros_like(self.b)
        return torch.where(self.initial < self.norm_b, self.guess / self.scale, 0.0)

    def _give_up(self, limited: Tensor, stalled: Tensor) -> None:
        """Raises where a column is beyond help: at its floor, out of iterations or stalled."""
        # Where rounding leaves next to nothing of a solution, the operator is as good as singular.
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
        """The error of a solve that failed, with the worst residual of the columns concerned."""
        norm, bound = self.best_norm, self.bound
        excess = torch.where(norm > bound, norm / bound, 0.0)
        worst = (excess if where is None else torch.where(where, excess, 0.0)).argmax()
        got, most = (float((t * self.scale).reshape(-1)[worst]) for t in (norm, bound))
        return self.error(f"{what} (expected a residual of at most {most:.1e}, got {got:.1e}); "
                          f"{remedy}")

    def not_finite(self) -> LinearSolveError:
        """The error of an operator or preconditioner that gives NaN or Inf."""
        return self.error(
            f"Expected finite products in {self.solver!r} (got NaN or Inf by iteration "
            f"{self.spent}); look at the entries of the operator, or use float64.")

    def error(self, message: str) -> LinearSolveError:
        """An error that carries the best state reached and its largest residual."""
        best = self._first() if self.best is None else self.best
        return LinearSolveError(message, iterations=int(self.iterations.max()),
                                residual=float((self.best_norm * self.scale).max()),
                                state=best * self.scale)


def default_rtol(dtype: torch.dtype) -> float:
    """The relative tolerance of a solver that was given none."""
    return 1e-10 if dtype == torch.float64 else 1e-5


def safe_divide(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """The quotient where wanted, elsewhere zero whatever a and b are."""
    return torch.where(where, a / b, 0.0)


def _root_eps(like: Tensor) -> float:
    return math.sqrt(torch.finfo(like.dtype).eps)


def _is_finite(x: Tensor) -> bool:
    try:
        return bool(x.isfinite().all())
    except RuntimeError as error:
        raise of_batch(error) from error
