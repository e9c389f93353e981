"""What is one implicit-explicit Runge-Kutta step, what is its transpose, and how does time march?

Both directions follow the scheme's tableau (Zhang, Liu, Maulik 2025, arXiv:2412.11301; Kennedy and
Carpenter 2003). The product J U_i of an implicit stage is read off its own linear system,
J U_i = (U_i - R_i) / c with c = h At[i,i] and R_i its right-hand side: that saves a product, and
rounding is not amplified by the size of J.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .operators import LinearOperator, LinearSolveError, Shifted
from .tableau import IMEXTableau

Explicit = Callable[[float, Tensor], Tensor]
KEPT = 8  # set-ups kept on an operator between calls, so that changing steps do not pile them up


class NonFiniteStateError(RuntimeError):
    """A state that stopped being finite.

    Attributes:
        time (float): Time at the start of the step that failed.
        step (int): Number of that step, from 0.
        state (Tensor or None): The last finite state, where it was kept.
    """

    def __init__(self, message: str, *, time: float, step: int, state: Tensor | None) -> None:
        super().__init__(message)
        self.time, self.step, self.state = time, step, state


class ExplicitTermError(ValueError):
    """A value of the explicit term that cannot be a rate of change of the state.

    Attributes:
        time (float or None): Time at the start of the step in which it came, set by the march.
        step (int or None): Number of that step, from 0.
    """

    time: float | None = None
    step: int | None = None


@dataclass
class Stats:
    """What an integration did; the backward pass goes on filling it.

    Attributes:
        explicit_evaluations: Evaluations of G in the forward pass.
        explicit_vjps: Vector-Jacobian products of G in the backward pass, each with the
            re-evaluation that it needs.
        operator_products: Products with J or its transpose outside the linear solver.
        setups: Factorisations, or other set-ups, of I - cJ.
        linear_solves: Linear systems solved, forward and transposed; all columns count as one.
        linear_iterations: Krylov iterations, those of the slowest column of each solve.
        linear_seconds: Time spent in linear solves, in seconds.
        worst_residual: Largest true residual norm of a Krylov solve.
        steps_accepted: Steps made.
        steps_rejected: Steps made and not used.
    """

    explicit_evaluations: int = 0
    explicit_vjps: int = 0
    operator_products: int = 0
    setups: int = 0
    linear_solves: int = 0
    linear_iterations: int = 0
    linear_seconds: float = 0.0
    worst_residual: float = 0.0
    steps_accepted: int = 0
    steps_rejected: int = 0


class Interval(NamedTuple):
    """Equal steps between two output times."""

    start: float
    h: float
    steps: int


class Setups:
    """The inverses of I - cJ, each made once and found again by its c.

    Where no tensor of J requires a gradient they are also kept on the operator between calls, with
    a copy of the tensors that they belong to. Versions and addresses of tensors do not tell of
    every change (``.data`` writes and inference tensors have none): contents do.
    """

    def __init__(self, operator: LinearOperator, invert: Callable[[Shifted], LinearOperator],
                 key: object, stats: Stats) -> None:
        self.operator, self.invert, self.key, self.stats = operator, invert, key, stats
        self.made: dict[float, LinearOperator] = {}
        self.kept = not any(t.requires_grad for t in operator.tensors)

    def inverse(self, c: float) -> LinearOperator:
        """The inverse of I - cJ."""
        if c not in self.made:
            self.made[c] = self._kept(c) if self.kept else self._new(c)
        return self.made[c]

    def _new(self, c: float) -> LinearOperator:
        self.stats.setups += 1
        with torch.no_grad():
            return self.invert(Shifted(self.operator, c))

    def _kept(self, c: float) -> LinearOperator:
        factors = self.operator.__dict__.setdefault("_factors", {})
        key = (self.key, c, torch.is_inference_mode_enabled())
        tensors = self.operator.tensors
        if key in factors:
            copies, inverse = factors[key]
            if len(copies) == len(tensors) and all(map(same, copies, tensors)):
                found: LinearOperator = inverse
                return found
        inverse = self._new(c)
        if len(factors) >= KEPT:
            factors.pop(next(iter(factors)))  # the oldest
        factors[key] = tuple(t.detach().clone() for t in tensors), inverse
        return inverse


class Stepper:
    """One step of a scheme and its transpose, for given G, J and linear solves.

    Args:
        scheme (IMEXTableau): The scheme.
        explicit (callable, optional): G(t, u), t a Python float.
        implicit (LinearOperator, optional): J.
        inverse (callable): From c to the inverse of I - cJ.
        stats (Stats): Filled on the way.
    """

    def __init__(self, scheme: IMEXTableau, explicit: Explicit | None,
                 implicit: LinearOperator | None,
                 inverse: Callable[[float], LinearOperator], stats: Stats) -> None:
        self.scheme, self.explicit, self.implicit = scheme, explicit, implicit
        self.inverse, self.stats = inverse, stats
        # Python floats: indexing an array of numpy in the loop over stages costs more than adding.
        self.a, self.at = scheme.a_explicit.tolist(), scheme.a_implicit.tolist()
        self.b, self.bt = scheme.b_explicit.tolist(), scheme.b_implicit.tolist()
        self.c = scheme.c_explicit.tolist()
        self.uses_g = [explicit is not None and n for n in scheme.needs_explicit]
        self.uses_j = [implicit is not None and n for n in scheme.needs_implicit]

    def step(self, t: float, h: float, u: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The state after one step, and the stages U_i (None where none is needed)."""
        n = self.scheme.stages
        g: list[Tensor | None] = [None] * n
        k: list[Tensor | None] = [None] * n
        stages: list[Tensor | None] = [None] * n
        for i in range(n):
            if not (self.uses_g[i] or self.uses_j[i]):
                continue
            r = combine(u, h, self.a[i][:i], g, self.at[i][:i], k)
            c = h * self.at[i][i]
            if self.implicit is None or c == 0.0:
                stage = r
                if self.implicit is not None and self.uses_j[i]:
                    k[i] = self._product(self.implicit, stage)
            else:
                last = next((x for x in reversed(k) if x is not None), None)
                stage = self._solve(self.inverse(c), r, last, c)
                if self.uses_j[i]:
                    k[i] = (stage - r).div_(c)
            if self.explicit is not None and self.uses_g[i]:
                g[i] = self.explicit(t + self.c[i] * h, stage)
                self.stats.explicit_evaluations += 1
            stages[i] = stage
        return combine(u, h, self.b, g, self.bt, k), stages

    def transposed(
        self, t: float, h: float, stages: Sequence[Tensor | None], lam: Tensor,
        explicit_vjp: Callable[[int, float, Tensor, Tensor], Tensor | None],
        implicit_vjp: Callable[[Tensor, Tensor], None] | None,
    ) -> Tensor:
        r"""The gradient at the start of a step from the gradient :obj:`lam` at its end.

        .. math::
            v_i &= h (b_i \lambda + \sum_{j>i} A_{ji} \lambda_j), \quad
            w_i = h (\tilde b_i \lambda + \sum_{j>i} \tilde A_{ji} \lambda_j) \\
            (I - h \tilde A_{ii} J)^T \lambda_i &= G_u^T v_i + J^T w_i, \quad
            \lambda \leftarrow \lambda + \sum_i \lambda_i

        Args:
            t, h (float): Start and size of the step, units of time.
            stages (sequence of Tensor): What :meth:`step` returned.
            lam (Tensor): The gradient at the end.
            explicit_vjp (callable): From (i, t_i, U_i, v_i) to G_u^T v_i; takes the gradients of
                G's parameters on the way.
            implicit_vjp (callable, optional): Given (U_i, w), takes the gradient of <w, J U_i>
                with respect to J's tensors.
        """
        n = self.scheme.stages
        lams: list[Tensor | None] = [None] * n
        for i in reversed(range(n)):
            stage, c = stages[i], h * self.at[i][i]
            if stage is None:
                continue
            later = [row[i] for row in self.a], [row[i] for row in self.at]
            v = _weighted(h, self.b[i], lam, later[0], lams) if self.uses_g[i] else None
            w = _weighted(h, self.bt[i], lam, later[1], lams) if self.uses_j[i] else None
            back = None if v is None else explicit_vjp(i, t + self.c[i] * h, stage, v)
            lams[i], weight = self._transposed_stage(c, back, w)
            if implicit_vjp is not None and weight is not None:
                implicit_vjp(stage, weight)
        parts = [part for part in lams if part is not None]
        return combine(lam, 1.0, [1.0] * len(parts), parts, [], [])

    def _transposed_stage(self, c: float, back: Tensor | None, w: Tensor | None
                          ) -> tuple[Tensor | None, Tensor | None]:
        """Solves for lambda_i; returns it and y = w_i + c lambda_i, the weight of J U_i.

        The y alone is solved for, (I - cJ)^T y = w + c G_u^T v, and gives lambda_i = (y - w) / c:
        again without a product with J.
        """
        if self.implicit is None or (back is None and w is None):
            return back, None
        if c == 0.0:
            return (back, None) if w is None else (
                _add(back, self._product(self.implicit.T, w), 1.0), w)
        inverse = self.inverse(c).T
        if w is None:
            assert back is not None
            lam = self._solve(inverse, back, None, c)
            return lam, c * lam
        y = self._solve(inverse, w if back is None else torch.add(w, back, alpha=c), None, c)
        return (y - w).div_(c), y

    def _product(self, operator: LinearOperator, u: Tensor) -> Tensor:
        self.stats.operator_products += 1
        return operator.mv(u)

    def _solve(self, inverse: LinearOperator, r: Tensor, last: Tensor | None, c: float) -> Tensor:
        start = time.perf_counter()
        # The last J U of the same step is the best guess at hand of this one.
        guess = r if last is None or not inverse.iterative else r.detach() + c * last.detach()
        try:
            x, iterations, residual = inverse.solve(r, guess)
        except LinearSolveError as error:
            if not bool(r.detach().isfinite().all()):
                error.state = r.detach()  # the fault is not the solver's: see `_located`
            raise
        if iterations is not None and residual is not None and iterations.numel():
            self.stats.linear_iterations += int(iterations.max())
            self.stats.worst_residual = max(self.stats.worst_residual, float(residual.max()))
        self.stats.linear_solves += 1
        self.stats.linear_seconds += time.perf_counter() - start
        return x


def plan(times: Sequence[float], step_size: float, eps: float) -> list[Interval]:
    """Equal steps that land on every time, with as few different step sizes as there can be.

    An interval that exceeds a whole number of steps by 1e-6 relative, or by the rounding of its
    own end points (``eps`` of their dtype), is that number of steps; a step size so close to one
    already used is that step size, so that it shares its set-up.
    """
    used: list[float] = []
    result = []
    for start, end in itertools.pairwise(times):
        interval = end - start
        rounding = 1e-6 + 2.0 * eps * max(abs(start), abs(end)) / min(step_size, abs(interval))
        count = max(1, math.ceil(abs(interval) / step_size - rounding))
        h = interval / count
        same = [k for k in used if abs(k - h) <= rounding * abs(h)]
        if same:
            h = same[0]
        else:
            used.append(h)
        result.append(Interval(start, h, count))
    return result


class Marched(NamedTuple):
    """One step of the march: where it began, its stages, and the state at its end."""

    t: float
    h: float
    stages: list[Tensor | None]
    state: Tensor
    lands: bool


def march(stepper: Stepper, intervals: Sequence[Interval], u: Tensor) -> Iterator[Marched]:
    """Makes the steps one after another, and stops at the first state that is not finite.

    On the CPU each state is looked at at once; elsewhere the flags stay on the device to the end.
    """
    number = 0
    flags: list[Tensor] = []
    for interval in intervals:
        for k in range(interval.steps):
            t = interval.start + k * interval.h
            try:
                following, stages = stepper.step(t, interval.h, u)
            except (LinearSolveError, ExplicitTermError) as error:
                _raise_flagged(flags, intervals)  # the first fault of all, not what came of it
                raise _located(error, t, number, u) from error.__cause__
            stepper.stats.steps_accepted += 1
            if u.is_cpu:
                if not _finite(following.detach()):
                    raise _not_finite(t, number, u)
            else:
                flags.append(following.detach().isfinite().all())
            yield Marched(t, interval.h, stages, following, k == interval.steps - 1)
            u, number = following, number + 1
    _raise_flagged(flags, intervals)


def combine(u: Tensor, h: float, a: Sequence[float], g: Sequence[Tensor | None],
            at: Sequence[float], k: Sequence[Tensor | None]) -> Tensor:
    """The sum u + h sum_j (a_j g_j + at_j k_j), zero coefficients skipped."""
    total = u
    for weights, values in ((a, g), (at, k)):
        for weight, value in zip(weights, values, strict=False):
            if weight == 0.0 or value is None:
                continue
            # Only the first sum makes a new tensor; the others go into it.
            total = (torch.add(u, value, alpha=h * weight) if total is u
                     else total.add_(value, alpha=h * weight))
    return total


def _weighted(h: float, b: float, lam: Tensor, column: Sequence[float],
              lams: Sequence[Tensor | None]) -> Tensor | None:
    """The sum h (b lam + sum_j column_j lam_j), or None where every term is zero."""
    total = lam * (h * b) if b != 0.0 else None
    for weight, value in zip(column, lams, strict=True):
        if weight != 0.0 and value is not None:
            total = value * (h * weight) if total is None else total.add_(value, alpha=h * weight)
    return total


def _add(a: Tensor | None, b: Tensor | None, factor: float) -> Tensor | None:
    """The sum a + factor b, where None is zero."""
    if b is None:
        return a
    return b * factor if a is None else torch.add(a, b, alpha=factor)


def same(copy: Tensor, tensor: Tensor) -> bool:
    """Whether two tensors agree in shape, dtype, device and every entry."""
    return (copy.shape == tensor.shape and copy.dtype == tensor.dtype
            and copy.device == tensor.device and torch.equal(copy, tensor))


def _finite(u: Tensor) -> bool:
    # One pass decides the usual case: a sum that is finite has finite terms.
    return math.isfinite(float(u.sum())) or bool(u.isfinite().all())


def _not_finite(t: float, number: int, state: Tensor | None) -> NonFiniteStateError:
    return NonFiniteStateError(
        f"The state stopped being finite in step {number}, which starts at time {t:.6g}. Take a "
        "smaller step_size, move the stiff part of the explicit term into the implicit operator, "
        "or look for NaN in the explicit term.",
        time=t, step=number, state=None if state is None else state.detach())


def _raise_flagged(flags: Sequence[Tensor], intervals: Sequence[Interval]) -> None:
    """Raises for the first of the steps made so far whose flag says that it was not finite."""
    if flags and not bool(torch.stack(tuple(flags)).all()):
        number = int(torch.stack(tuple(flags)).logical_not().nonzero()[0])
        starts = [i.start + k * i.h for i in intervals for k in range(i.steps)]
        raise _not_finite(starts[number], number, None)


def _located(error: LinearSolveError | ExplicitTermError, t: float, number: int,
             u: Tensor) -> Exception:
    """The error with its time and step, or the true cause where the state was not finite."""
    state = error.state if isinstance(error, LinearSolveError) else None
    if state is not None and not bool(state.isfinite().all()):
        return _not_finite(t, number, u)
    error.time, error.step = t, number
    error.args = (f"{error.args[0]} (In step {number}, which starts at time {t:.6g}.)",)
    return error
