"""How is an implicit stage with a nonlinear H solved, transposed and differentiated?

The stages are solved by Newton's method. All else uses the Jacobian of H at a stage, given by the
autograd graph of one evaluation of H.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..operators import LinearOperator, LinearSolveError, Shifted
from ..operators.block_diagonal import BlockInverse, derivative_blocks
from ..operators.checks import is_finite
from ..operators.flat import identity_minus
from ..operators.pointwise import Reciprocal
from ..solvers import GMRES, Direct, NewtonError, Solver, default
from ..solvers.krylov import Krylov, KrylovInverse, default_rtol
from ..terms import Nonlinear
from ..transforms import recording
from .implicit import Guess, solution
from .report import Stats

DENSE = 64  # up to so many rows, a Jacobian is computed as dense blocks
Scale = Callable[[Tensor], Tensor]


class NewtonPart:
    """A nonlinear implicit part H(t, u), solved by Newton's method.

    Args:
        term (Nonlinear): The term: H, its Jacobian if given, and the options of Newton's method.
        allowed (callable, optional): Maps a state to 1e-2 of the tolerance of the integration for
            each entry; None with equal steps.
        u0 (Tensor): The initial state of the integration.
        stats (Stats): The statistics, updated.
    """

    is_zero, remembers = False, True

    def __init__(self, term: Nonlinear, allowed: Scale | None, u0: Tensor, stats: Stats) -> None:
        self.term, self.newton, self.allowed, self.stats = term, term.newton, allowed, stats
        self.local, self.at_first, self.before = term.local(), u0.detach().abs(), u0
        self.factors: tuple[float, LinearOperator] | None = None  # c and an inverse, of this step
        self.checked = False  # whether products with the Jacobian were checked
        self.derives = False  # whether H itself differentiates with respect to the state
        self.held: Derivative | None = None  # the Jacobian at the last state
        self.exact: tuple[Derivative, float, LinearOperator] | None = None  # its inverse, for a c

    def start_step(self, u: Tensor) -> None:
        """Discards the factorization, so that a recomputed step gives the same result."""
        self.factors, self.before = None, u.detach()

    def value(self, t: float, U: Tensor) -> Tensor:
        """H(t, U)."""
        return self.plain(t, U).clone()  # the next value may overwrite it

    def solve(self, t: float, c: float, r: Tensor, guess: Guess) -> Tensor:
        """The solution U of U = r + c H(t, U), by Newton's method.

        It starts from the guess if there is one; if that fails, from r; and if that fails, from the
        state before the step, where H is known to be defined.
        """
        r = r.detach()
        if r.numel() == 0:
            return r
        if not is_finite(r):
            raise NewtonError("Expected a finite right-hand side (got NaN or Inf).", state=r)
        first = guess()
        starts = [r, self.before] if first is None else [first.detach(), r, self.before]
        for start in starts[:-1]:
            found = self._root_or_none(t, c, r, start)
            if found is not None:
                return found
        return self._root(t, c, r, starts[-1])

    def _root_or_none(self, t: float, c: float, r: Tensor, start: Tensor) -> Tensor | None:
        try:
            return self._root(t, c, r, start)
        except NewtonError:
            self.factors = None
            return None

    def _root(self, t: float, c: float, r: Tensor, start: Tensor) -> Tensor:
        return self.newton.solve(_Stage(self, t, c, r), start, self._scale(r))

    def linear_solve(self, t: float, c: float, U: Tensor, b: Tensor) -> Tensor:
        """The solution y of (I - c H_u) y = b, with the factorization of this step if there is one.
        """
        known = self.factors
        if b.numel() == 0:
            return b
        if known is None or known[0] != c:
            return self._finite(self.inverse(self.at(t, U), c), b)
        return self._finite(known[1], b)

    def transposed_solve(self, t: float, c: float, U: Tensor, b: Tensor) -> Tensor:
        """The solution y of (I - c H_u(t, U))^T y = b, with the exact Jacobian."""
        if b.numel() == 0:
            return b
        derivative = self.at(t, U)
        if self.exact is None or self.exact[0] is not derivative or self.exact[1] != c:
            self.exact = derivative, c, self.exact_inverse(derivative, c)
        return self._finite(self.exact[2].T, b)

    def transposed_value(self, t: float, U: Tensor, w: Tensor) -> Tensor:
        """H_u(t, U)^T w."""
        return self.at(t, U).transposed(w)

    def vjp(self, t: float, U: Tensor, w: Tensor, wanted: Sequence[bool]
            ) -> Sequence[Tensor | None]:
        """The gradients of <w, H(t, U)> with respect to the ``wanted`` tensors of H."""
        if not any(wanted):
            return ()
        chosen = [p if want else None for p, want in zip(self.local.tensors, wanted, strict=True)]
        return self.at(t, U).vjp_at(w, chosen)

    def accumulated(self) -> Sequence[Tensor | None]:
        """Empty: :meth:`vjp` gives all gradients."""
        return ()

    def at(self, t: float, U: Tensor) -> Derivative:
        """The Jacobian at a state; the last one is kept and reused."""
        if self.held is None or not self.held.is_at(t, U):
            self.exact = None
            self.held = self.evaluate(t, U)
            self.local.check_named(self.held.value, self.held.u)
        return self.held

    def plain(self, t: float, U: Tensor) -> Tensor:
        """One evaluation of H without a graph, unless H itself differentiates by the state."""
        if not self.derives:
            self.stats.implicit_evaluations += 1
            try:
                return self.local.value(t, U if U.is_inference() else U.detach().requires_grad_())
            except RuntimeError as error:
                if "not require grad" not in str(error):
                    raise
            self.derives = True
        return self.evaluate(t, U).value.detach()

    def evaluate(self, t: float, U: Tensor) -> Derivative:
        """One evaluation of H with its autograd graph."""
        self.stats.implicit_evaluations += 1
        found = Derivative(self.local, t, U, self.stats)
        if self.term.refuses_lost:
            self.local.check_named(found.value, found.u)
        return found

    def inverse(self, derivative: Derivative, c: float, rtol: float | None = None
                ) -> LinearOperator:
        """The inverse of I - c H_u that Newton's method uses."""
        if self.term.jacobian is None:
            found = self.exact_inverse(derivative, c, rtol)
            if not self.checked and getattr(found, "iterative", False):
                derivative.check_products()
            self.checked = True
            return found
        operator = self.term.operator(derivative.t, derivative.u.detach())
        solver = self.newton.solver or default(operator, c)
        if not isinstance(solver, Krylov):
            self.stats.factorizations += 1
        with torch.no_grad():
            return _with_rtol(solver, rtol).invert(Shifted(operator, c))

    def exact_inverse(self, derivative: Derivative, c: float, rtol: float | None = None
                      ) -> LinearOperator:
        """The inverse of I - c H_u with the exact Jacobian."""
        dims, solver = derivative.dims, self.newton.solver
        size = math.prod(derivative.u.size(d) for d in dims)
        own = self.term.jacobian is None
        if isinstance(solver, Direct) if own and solver is not None else size <= DENSE:
            self.stats.factorizations += 1
            if not dims:
                slopes = derivative.transposed(torch.ones_like(derivative.value))
                return Reciprocal(1.0 - c * slopes)
            return BlockInverse.of(derivative.shifted_blocks(c), dims, checked=False)
        krylov = solver if own and solver is not None else GMRES()
        if rtol is None:  # for a gradient
            rtol = max(self.newton.rtol or 0.0, default_rtol(derivative.u.dtype))
        inner = None if own else self.inverse(derivative, c)
        if isinstance(inner, KrylovInverse):
            inner = inner.preconditioner
        with torch.no_grad():
            found: LinearOperator = _with_rtol(krylov, rtol).invert(Shifted(derivative, c))
        if inner is not None:
            assert isinstance(found, KrylovInverse)
            found = KrylovInverse(found.solver, found.operator, inner)
        return found

    def _scale(self, r: Tensor) -> Scale:
        """A function from a state to the error of a stage allowed in each entry."""
        newton, dims = self.newton, self.term.dims(r)
        info = torch.finfo(r.dtype)
        if newton.rtol is None and self.allowed is not None:
            allowed = self.allowed
            return lambda U: (allowed(U) + newton.atol).clamp_min(info.tiny)
        rtol = 100 * info.eps if newton.rtol is None else newton.rtol

        def of(U: Tensor) -> Tensor:
            size = U.abs()
            most = size.amax(dim=dims, keepdim=True) if dims else size
            return (newton.atol + rtol * most).clamp_min(info.tiny)
        return of

    def _finite(self, inverse: LinearOperator, b: Tensor) -> Tensor:
        x = self.linear(inverse, b)
        if not is_finite(x):
            raise LinearSolveError("I - c H_u is singular to rounding, or the right-hand side not "
                                   "finite. Change the step size, or use float64.",
                                   residual=math.inf, state=b)
        return x

    def linear(self, inverse: LinearOperator, b: Tensor) -> Tensor:
        """The solution of a linear system, counted in the statistics."""
        start = time.perf_counter()
        x, iterations, residual = solution(inverse, b, None)
        self.stats.linear_seconds += time.perf_counter() - start
        self.stats.linear_solves += 1
        if iterations is not None and residual is not None and iterations.numel():
            self.stats.linear_iterations += int(iterations.max())
            self.stats.worst_residual = max(self.stats.worst_residual, float(residual.max()))
        return x


class Derivative(LinearOperator):
    """The Jacobian H_u at a state as an operator, by the autograd graph of one evaluation.

    Args:
        term (Nonlinear): H, with leaf tensors.
        t (float): The time.
        U (Tensor): The state.
        stats (Stats): The statistics, updated.
    """

    def __init__(self, term: Nonlinear, t: float, U: Tensor, stats: Stats) -> None:
        self.term, self.t, self.stats, self.dims = term, t, stats, term.dims(U)
        with recording():
            self.u = (U.clone() if U.is_inference() else U.detach()).requires_grad_()
            self.value = term.value(t, self.u)
        self.state = U  # kept, so that its address identifies it
        self._tangent: tuple[Tensor, Tensor] | None = None

    def is_at(self, t: float, U: Tensor) -> bool:
        """Whether this is the Jacobian at time t and state U, identified by its address."""
        return t == self.t and U.shape == self.u.shape and U.data_ptr() == self.state.data_ptr()

    def mv(self, u: Tensor) -> Tensor:
        """The product H_u u, as the derivative of the vector-Jacobian product by its vector."""
        self.stats.implicit_jvps += 1
        if not self.value.requires_grad:
            return torch.zeros_like(u)
        if self._tangent is None:
            self._tangent = self._record_tangent()
        w, back = self._tangent
        if not back.requires_grad:
            return torch.zeros_like(u)
        (found,) = torch.autograd.grad(back, w, u, retain_graph=True, allow_unused=True,
                                       materialize_grads=True)
        return found

    def check_products(self) -> None:
        """Refuses an H that autograd cannot differentiate twice, or differentiates to zero."""
        generator = torch.Generator().manual_seed(0)
        v, w = torch.randn(2, *self.u.shape, dtype=self.u.dtype, generator=generator,
                           device="cpu").to(self.u)
        reason = "products that are not those of the transpose"
        try:
            with torch.no_grad():
                forward, back = self.mv(v), self.transposed(w)
                off = float((w * forward).sum() - (back * v).sum())
                size = float(w.norm() * forward.norm() + back.norm() * v.norm())
        except RuntimeError as error:
            if not any(words in str(error) for words in ("twice", "not implemented")):
                raise
            off, size, reason = math.inf, 0.0, str(error)
        if abs(off) > math.sqrt(torch.finfo(self.u.dtype).eps) * size:
            raise RuntimeError(
                "Expected H of Nonlinear to be differentiable twice by autograd, for products with "
                f"its derivative (got {reason}); give it a jacobian=, or small systems by dims=, "
                "whose derivative is made by single derivatives.")

    def _record_tangent(self) -> tuple[Tensor, Tensor]:
        """A vector w, and the vector-Jacobian product with it as a function of w."""
        with recording():
            w = torch.zeros_like(self.value, requires_grad=True)
            (back,) = torch.autograd.grad(self.value, self.u, w, create_graph=True,
                                          allow_unused=True, materialize_grads=True)
        return w, back

    def transpose(self) -> LinearOperator:
        """The operator of vector-Jacobian products."""
        return _Transpose(self)

    def transposed(self, w: Tensor) -> Tensor:
        """The product H_u^T w."""
        self.stats.implicit_vjps += 1
        if not self.value.requires_grad:
            return torch.zeros_like(w)
        (found,) = torch.autograd.grad(self.value, self.u, w, retain_graph=True,
                                       allow_unused=True, materialize_grads=True)
        return found

    def vjp_at(self, w: Tensor, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of <w, H> with respect to leaf tensors; None where None is given."""
        self.stats.implicit_vjps += 1
        chosen = [p for p in tensors if p is not None and p.requires_grad]
        if not chosen or not self.value.requires_grad:
            return [None] * len(tensors)
        found = iter(torch.autograd.grad(self.value, chosen, w, retain_graph=True,
                                         allow_unused=True))
        return [next(found) if p is not None and p.requires_grad else None for p in tensors]

    def shifted_blocks(self, c: float) -> Tensor:
        """I - c H_u as a dense block for each system."""
        blocks = derivative_blocks(self.value, self.u, self.dims)
        self.stats.implicit_vjps += blocks.size(-1)
        return identity_minus(blocks, c)


class _Transpose(LinearOperator):
    """The transpose of a Jacobian."""

    def __init__(self, derivative: Derivative) -> None:
        self.derivative, self.dims = derivative, derivative.dims

    def mv(self, u: Tensor) -> Tensor:
        return self.derivative.transposed(u)

    def transpose(self) -> LinearOperator:
        return self.derivative


class _Point(NamedTuple):
    """A state, the residual of the stage equation there, and the Jacobian if it was evaluated."""

    U: Tensor
    residual: Tensor
    derivative: Derivative | None


class _Stage:
    """The system U - r - c H(t, U) = 0 of a stage."""

    def __init__(self, part: NewtonPart, t: float, c: float, r: Tensor) -> None:
        self.part, self.t, self.c, self.r, self.dims = part, t, c, r, part.term.dims(r)
        self.exact = part.term.jacobian is None
        known = part.factors
        self.inverse = None if known is None or known[0] != c else known[1]

    def at(self, U: Tensor) -> _Point:
        # A factorization serves several states; without one, each state needs its Jacobian.
        derivative = None if self.part.factors is not None else self.part.evaluate(self.t, U)
        value = self.part.plain(self.t, U) if derivative is None else derivative.value.detach()
        return _Point(U, torch.sub(U - self.r, value, alpha=self.c), derivative)

    def linearize(self, point: _Point, rtol: float) -> LinearOperator:
        derivative = point.derivative or self.part.evaluate(self.t, point.U)
        inverse = self.part.inverse(derivative, self.c, rtol)
        if not getattr(inverse, "iterative", False):
            self.part.factors = self.c, inverse
        return inverse

    def solve(self, inverse: LinearOperator, b: Tensor) -> Tensor:
        return self.part.linear(inverse, b)

    def magnitude(self, U: Tensor) -> Tensor:
        return torch.maximum(U.abs(), self.r.abs())

    def rounded(self, U: Tensor) -> Tensor:
        # H may cancel numbers of the magnitude of the initial state, even if U is small.
        return torch.maximum(self.magnitude(U), self.part.at_first)

    def count(self) -> None:
        self.part.stats.newton_iterations += 1


def _with_rtol(solver: Solver, rtol: float | None) -> Solver:
    """A Krylov solver with relative tolerance rtol, unless its own is set."""
    if rtol is None or not isinstance(solver, Krylov) or solver.rtol is not None:
        return solver
    own: Any = solver
    found: Solver = dataclasses.replace(own, rtol=rtol)
    return found
