"""What is one implicit-explicit Runge-Kutta step, and what is its transpose?

Both directions follow the scheme's tableau (Zhang, Liu, Maulik 2025, arXiv:2412.11301; Kennedy and
Carpenter 2003). The product J U_i of an implicit stage is read off its own linear system,
J U_i = (U_i - R_i) / c with c = h At[i,i] and R_i its right-hand side: that saves a product, and
rounding is not amplified by the size of J. With an affine part, a(t) J U + f(t) takes its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .operators import Affine, LinearOperator, LinearSolveError
from .operators.affine import check_finite
from .operators.checks import as_float
from .report import Stats
from .tableau import Array, IMEXTableau

Explicit = Callable[[float, Tensor], Tensor]
# The state u, then what a multistep scheme came to remember, or what of G(t, u) is known.
State = tuple[Tensor, ...]
Gradients = Sequence[Tensor | None]
Weighted = tuple[float, Tensor | None]


class Made(NamedTuple):
    """One step: the state at its end, what its transpose needs, and the terms of its stages."""

    state: State
    tape: list[Tensor | None]
    g: list[Tensor | None]
    k: list[Tensor | None]


class Inverses(Protocol):
    """Gives the inverse of I - c scale J."""

    def __call__(self, c: float, scale: Tensor | float) -> LinearOperator:
        """The inverse."""
        ...


class Reverse(Protocol):
    """What the transpose of a step asks for: products with the transposed Jacobians."""

    def explicit(self, place: int, t: float, u: Tensor, v: Tensor) -> Tensor | None:
        """G_u^T v for the evaluation of that place in the step; takes the gradient of G's tensors.
        """
        ...

    def implicit(self, t: float, u: Tensor, w: Tensor) -> None:
        """Takes the gradient of <w, a(t) J u + f(t)> with respect to the implicit tensors."""
        ...


class Solves:
    """The implicit part with its linear solves, counted.

    Args:
        part (Affine, optional): The implicit part; None where there is none.
        inverse (callable): From c and a(t) to the inverse of I - c a(t) J.
        stats (Stats): Filled on the way.
    """

    def __init__(self, part: Affine | None, inverse: Inverses, stats: Stats) -> None:
        self.part, self.inverse, self.stats = part, inverse, stats

    def stage(self, t: float, c: float, r: Tensor, last: Tensor | None) -> Tensor:
        """The U with U = r + c (a(t) J U + f(t)); ``last`` is a guess of the bracket."""
        assert self.part is not None
        scale, forcing = self.part.scale(t, r), self.part.forcing(t, r)
        b = r if forcing is None else r + c * forcing
        # Autograd has to see a scale of zero: its derivative need not vanish.
        followed = isinstance(scale, Tensor) and scale.requires_grad and torch.is_grad_enabled()
        check_finite(as_float(scale), t)
        if as_float(scale) == 0.0 and not followed:
            return b
        return self._solve(self.inverse(c, scale), b, r, last, c)

    def transposed_stage(self, t: float, c: float, b: Tensor) -> Tensor:
        """The y with (I - c a(t) J)^T y = b."""
        assert self.part is not None
        scale = self.part.scale(t, b)
        if as_float(scale) == 0.0:
            return b
        return self._solve(self.inverse(c, scale).T, b, b, None, c)

    def filtered(self, t: float, c: float, e: Tensor) -> Tensor:
        """The solution of (I - c a(t) J) x = e, without a forcing."""
        assert self.part is not None
        scale = self.part.scale(t, e)
        return e if as_float(scale) == 0.0 else self._solve(self.inverse(c, scale), e, e, None, c)

    def product(self, t: float, u: Tensor) -> Tensor:
        """The value a(t) J u + f(t)."""
        assert self.part is not None
        self.stats.operator_products += 1
        return self.part.product(t, u)

    def transposed_product(self, t: float, u: Tensor) -> Tensor:
        """The product a(t) J^T u."""
        assert self.part is not None
        self.stats.operator_products += 1
        return self.part.transposed(t, u)

    def _solve(self, inverse: LinearOperator, b: Tensor, r: Tensor, last: Tensor | None, c: float
               ) -> Tensor:
        start = time.perf_counter()
        # The last J U of the same step is the best guess at hand of this one.
        guess = b if last is None or not inverse.iterative else r.detach() + c * last.detach()
        try:
            x, iterations, residual = inverse.solve(b, guess)
        except LinearSolveError as error:
            if not bool(b.detach().isfinite().all()):
                error.state = b.detach()  # the fault is not the solver's: see `march.located`
            raise
        if iterations is not None and residual is not None and iterations.numel():
            self.stats.linear_iterations += int(iterations.max())
            self.stats.worst_residual = max(self.stats.worst_residual, float(residual.max()))
        self.stats.linear_solves += 1
        self.stats.linear_seconds += time.perf_counter() - start
        return x


class RungeKutta:
    """One step of a scheme and its transpose, for given G, implicit part and linear solves.

    Args:
        scheme (IMEXTableau): The scheme.
        explicit (callable, optional): G(t, u), t a Python float.
        solves (Solves): The implicit part and its linear solves.
        stats (Stats): Filled on the way.
        embedded, dense (bool): Whether the embedded weights, or an interpolant, will be used, so
            that what they need is evaluated too.
    """

    def __init__(self, scheme: IMEXTableau, explicit: Explicit | None, solves: Solves,
                 stats: Stats, *, embedded: bool = False, dense: bool = False) -> None:
        self.scheme, self.explicit, self.solves, self.stats = scheme, explicit, solves, stats
        # Python floats: indexing an array of numpy in the loop over stages costs more than adding.
        self.a, self.at = scheme.a_explicit.tolist(), scheme.a_implicit.tolist()
        self.b, self.bt = scheme.b_explicit.tolist(), scheme.b_implicit.tolist()
        self.c, self.ct = scheme.c_explicit.tolist(), scheme.c_implicit.tolist()
        rows_g, rows_k = [scheme.b_explicit], [scheme.b_implicit]
        if embedded:
            self.d = (scheme.b_explicit - scheme.b_embedded).tolist()
            self.dt = (scheme.b_implicit - scheme.b_embedded_implicit).tolist()
            rows_g.append(scheme.b_embedded)
            if scheme.d_second is not None:
                rows_g.append(scheme.d_second[:-1])
            rows_k.append(scheme.b_embedded_implicit)
        if dense and scheme.interpolant is not None:
            rows_g.extend(scheme.interpolant[0].T)
            rows_k.extend(scheme.interpolant[1].T)
        self.has_second = embedded and explicit is not None and scheme.d_second is not None
        self.uses_g = _used(scheme.a_explicit, rows_g, explicit is not None)
        self.uses_j = _used(scheme.a_implicit, rows_k, solves.part is not None)
        self.place = [sum(self.uses_g[:i]) for i in range(scheme.stages)]

    def rate(self, t: float, u: Tensor) -> Tensor:
        """The rate of change G(t, u) + a(t) J u + f(t)."""
        parts: list[Tensor | None] = []
        if self.explicit is not None:
            self.stats.explicit_evaluations += 1
            parts.append(self.explicit(t, u))
        if self.solves.part is not None:
            parts.append(self.solves.product(t, u))
        rate = total(parts)
        return torch.zeros_like(u) if rate is None else rate

    def evaluations_before(self, number: int) -> int:
        """The number of evaluations of G in the steps before that one."""
        return number * sum(self.uses_g)

    def step(self, number: int, t: float, h: float, state: State) -> Made:
        """Makes one step; its tape is the stages U_i, None where one is not needed."""
        u, n = state[0], self.scheme.stages
        g: list[Tensor | None] = [None] * n
        k: list[Tensor | None] = [None] * n
        stages: list[Tensor | None] = [None] * n
        if len(state) > 1:
            g[0] = state[1]
        for i in range(n):
            if not (self.uses_g[i] or self.uses_j[i]):
                continue
            r = combine(u, h, self.a[i][:i], g, self.at[i][:i], k)
            c, t_i = h * self.at[i][i], t + self.ct[i] * h
            if self.solves.part is None or c == 0.0:
                stage = r
                if self.uses_j[i]:
                    k[i] = self.solves.product(t_i, stage)
            else:
                last = next((x for x in reversed(k) if x is not None), None)
                stage = self.solves.stage(t_i, c, r, last)
                if self.uses_j[i]:
                    k[i] = (stage - r).div_(c)
            if self.explicit is not None and self.uses_g[i] and g[i] is None:
                g[i] = self.explicit(t + self.c[i] * h, stage)
                self.stats.explicit_evaluations += 1
            stages[i] = stage
        return Made((combine(u, h, self.b, g, self.bt, k),), stages, g, k)

    def interpolate(self, h: float, theta: float, u: Tensor, made: Made) -> Tensor:
        """The state at t + theta h in a step that started from u."""
        weights = self._weights_at(theta)
        return combine(u, h, weights[0], made.g, weights[1], made.k)

    def error(self, t: float, h: float, made: Made) -> Tensor:
        r"""The estimate of a step's error, :math:`h \sum_i (b_i - \hat b_i) (G_i + J U_i)`.

        Where the scheme is not stiffly accurate the estimate does not fall off for stiff
        components; :math:`(I - h \gamma J)^{-1}` filters them (Hairer and Wanner, Solving Ordinary
        Differential Equations II, section IV.8).
        """
        zero = torch.zeros_like(made.state[0])
        estimate = combine(zero, h, self.d, made.g, self.dt, made.k)
        gamma = next((row[i] for i, row in enumerate(self.at) if row[i] != 0.0), 0.0)
        if self.solves.part is None or self.scheme.stiffly_accurate or gamma == 0.0:
            return estimate
        return self.solves.filtered(t + h, h * gamma, estimate)

    def with_end(self, t: float, made: Made) -> Made:
        """The step with the value of G at its end, time t: the next step's first."""
        assert self.explicit is not None
        self.stats.explicit_evaluations += 1
        return made._replace(state=(made.state[0], self.explicit(t, made.state[0])))

    def second_error(self, h: float, made: Made) -> Tensor:
        r"""The estimate :math:`h \sum_i d_i G_i`, with that of :meth:`with_end` as the last.

        Where G alone is stiff, :meth:`error` vanishes at some rates of it (at
        :math:`h \lambda = -6.24` for ark436l2sa) though the step is unstable; this one does not.
        """
        d = self.scheme.d_second.tolist()
        return combine(torch.zeros_like(made.state[0]), h, d, [*made.g, made.state[1]], (), ())

    def transposed(self, number: int, t: float, h: float, tape: Sequence[Tensor | None],
                   lam: Gradients, outputs: Sequence[tuple[float, Tensor]], reverse: Reverse,
                   first: Tensor | None = None) -> list[Tensor | None]:
        r"""The gradient at the start of a step from the gradient :obj:`lam` at its end.

        .. math::
            v_i &= h (b_i \lambda + \sum_{j>i} A_{ji} \lambda_j), \quad
            w_i = h (\tilde b_i \lambda + \sum_{j>i} \tilde A_{ji} \lambda_j) \\
            (I - h \tilde A_{ii} J)^T \lambda_i &= G_u^T v_i + J^T w_i, \quad
            \lambda \leftarrow \lambda + \sum_i \lambda_i

        Args:
            number (int): The number of the step.
            t, h (float): Start and size of the step, units of time.
            tape (sequence of Tensor): That of :meth:`step`.
            lam (sequence of Tensor): The gradient at the end.
            outputs (sequence): For each output inside the step its theta and its gradient, which
                count like results with the weights of the interpolant.
            reverse (Reverse): Products with the transposed Jacobians.
            first (Tensor, optional): A further gradient at the first evaluation of G.
        """
        n = self.scheme.stages
        results = [((self.b, self.bt), lam[0])]
        results += [(self._weights_at(theta), grad) for theta, grad in outputs]
        lams: list[Tensor | None] = [None] * n
        for i in reversed(range(n)):
            u = tape[i]
            if u is None:
                continue
            vs = [(w[0][i], x) for w, x in results] + [
                (row[i], x) for row, x in zip(self.a, lams, strict=True)]
            ws = [(w[1][i], x) for w, x in results] + [
                (row[i], x) for row, x in zip(self.at, lams, strict=True)]
            v = weighted(h, vs) if self.uses_g[i] else None
            w = weighted(h, ws) if self.uses_j[i] else None
            if first is not None and self.place[i] == 0 and self.uses_g[i]:
                v, first = (first if v is None else v + first), None
            back = (None if v is None else
                    reverse.explicit(self.place[i], t + self.c[i] * h, u, v))
            t_i = t + self.ct[i] * h
            lams[i], weight = self._transposed_stage(t_i, h * self.at[i][i], back, w)
            if weight is not None:
                reverse.implicit(t_i, u, weight)
        return [total([lam[0], *(grad for _, grad in outputs), *lams])]

    def _transposed_stage(self, t: float, c: float, back: Tensor | None, w: Tensor | None
                          ) -> tuple[Tensor | None, Tensor | None]:
        """Solves for lambda_i; returns it and y = w_i + c lambda_i, the weight of J U_i.

        The y alone is solved for, (I - cJ)^T y = w + c G_u^T v, and gives lambda_i = (y - w) / c:
        again without a product with J.
        """
        if self.solves.part is None or (back is None and w is None):
            return back, None
        if c == 0.0:
            return (back, None) if w is None else (
                total([back, self.solves.transposed_product(t, w)]), w)
        if w is None:
            assert back is not None
            lam = self.solves.transposed_stage(t, c, back)
            return lam, c * lam
        y = self.solves.transposed_stage(
            t, c, w if back is None else torch.add(w, back, alpha=c))
        return (y - w).div_(c), y

    def _weights_at(self, theta: float) -> tuple[list[float], list[float]]:
        """The weights of the interpolant in the G_j and in the J U_j."""
        assert self.scheme.interpolant is not None
        explicit, implicit = self.scheme.interpolant
        powers = [theta ** (k + 1) for k in range(explicit.shape[1])]
        return (explicit @ powers).tolist(), (implicit @ powers).tolist()


def combine(u: Tensor, h: float, a: Sequence[float], g: Sequence[Tensor | None],
            at: Sequence[float], k: Sequence[Tensor | None]) -> Tensor:
    """The sum u + h sum_j (a_j g_j + at_j k_j), zero coefficients skipped."""
    result = u
    for weights, values in ((a, g), (at, k)):
        for weight, value in zip(weights, values, strict=False):
            if weight == 0.0 or value is None:
                continue
            # Only the first sum makes a new tensor; the others go into it.
            result = (torch.add(u, value, alpha=h * weight) if result is u
                      else result.add_(value, alpha=h * weight))
    return result


def weighted(h: float, terms: Sequence[Weighted]) -> Tensor | None:
    """The sum h sum_j w_j x_j, or None where every term is zero."""
    result: Tensor | None = None
    for weight, value in terms:
        if weight != 0.0 and value is not None:
            result = (value * (h * weight) if result is None
                      else result.add_(value, alpha=h * weight))
    return result


def total(parts: Gradients) -> Tensor | None:
    """The sum of the parts that are there, or None; a part alone comes back as it is."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    return combine(there[0], 1.0, [1.0] * (len(there) - 1), there[1:], [], [])


def _used(matrix: Array, rows: Sequence[Array], present: bool) -> list[bool]:
    """Which stages a later stage or one of the rows of weights uses."""
    used = (np.tril(matrix, -1) != 0).any(axis=0) | (np.stack(rows) != 0).any(axis=0)
    return [present and bool(x) for x in used]
