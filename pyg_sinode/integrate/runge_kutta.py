"""How is an implicit-explicit Runge-Kutta step made, and how is its transpose?

Both follow the scheme's tableau (Zhang, Liu, Maulik 2025, arXiv:2412.11301; Kennedy and Carpenter
2003). The H_i of an implicit stage is computed from the stage equation U_i = R_i + c H_i, c = h
At[i,i], not by a product with J, which would amplify rounding errors by the size of J. The
difference U_i - R_i is stored, and the weights of the sums contain the division by c.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..schemes import IMEXTableau
from ..schemes.tableau import Array
from .explicit import Evaluated, Evaluation, Explicit
from .implicit import ImplicitPart
from .report import Stats
from .sums import Scaled, Weighted, combine, total, weighted


class OneStepState(NamedTuple):
    """A state u, with the values g of G and k of H there if known; or the gradients of these."""

    u: Tensor | None
    g: Evaluated | None = None
    k: Scaled = Scaled(None)

    def plus(self, grads: Iterable[Tensor]) -> OneStepState:
        """The gradients with further ones added at the state."""
        return self._replace(u=total([(1.0, self.u), *((1.0, x) for x in grads)]))


class Tape(NamedTuple):
    """The data that the transpose of a step needs.

    Attributes:
        stages: The states at the stages.
        evaluations: The evaluations of G at the stages.
        continues: Whether the H of the first stage is that of the last stage of the step before.
    """

    stages: Sequence[Tensor | None]
    evaluations: Sequence[Evaluation | None]
    continues: bool = False

    def on(self, stages: Sequence[Tensor | None]) -> Tape:
        """The same tape with other tensors."""
        return self._replace(stages=stages)


class StepResult(NamedTuple):
    """The result of a step.

    Attributes:
        state: The state at the end.
        tape: The data for the transpose.
        g: The values of G at the stages; None where G is not evaluated.
        k: The values of H at the stages.
    """

    state: Any
    tape: Any
    g: Sequence[Tensor | None] = ()
    k: Sequence[Scaled] = ()


class Reverse(Protocol):
    """The products with transposed Jacobians that the transpose of a step needs."""

    def explicit(self, evaluation: Evaluation | None, t: float, u: Tensor, v: Scaled) -> Scaled:
        """Returns G_u^T v of an evaluation, and accumulates the gradients of G's tensors."""
        ...

    def implicit(self, t: float, u: Tensor, w: Scaled) -> None:
        """Accumulates the gradients of <w, H(t, u)> with respect to the tensors of H."""
        ...


class RungeKutta:
    """The steps of a Runge-Kutta scheme and their transposes, for a given G and implicit part.

    Args:
        scheme (IMEXTableau): The scheme.
        explicit (callable, optional): Evaluates G(t, u); None for G = 0.
        part (ImplicitPart): The implicit part.
        stats (Stats): The statistics, updated.
        embedded, dense (bool): Whether the embedded weights, or the interpolant, will be used, so
            that the values they need are computed. (default: :obj:`False`)
    """

    def __init__(self, scheme: IMEXTableau, explicit: Explicit | None, part: ImplicitPart,
                 stats: Stats, *, embedded: bool = False, dense: bool = False) -> None:
        self.scheme, self.explicit, self.part, self.stats = scheme, explicit, part, stats
        numbers = _numbers(scheme, embedded, dense)
        self.a, self.at, self.b, self.bt = numbers.a, numbers.at, numbers.b, numbers.bt
        self.c, self.ct, self.d, self.dt = numbers.c, numbers.ct, numbers.d, numbers.dt
        self.d_second = numbers.d_second if explicit is not None else ()
        none = [False] * scheme.stages
        self.uses_g = none if explicit is None else numbers.uses_g
        self.uses_h = none if part.is_zero else numbers.uses_h
        # Whether the last stage is the state at the end, so that its H is the next step's first.
        self.continues = part.remembers and scheme.continues(alone=explicit is None)

    @property
    def has_second(self) -> bool:
        """Whether there is a second error estimate."""
        return bool(self.d_second)

    def initial(self, u: Tensor) -> OneStepState:
        """The state of the method before the first step."""
        return OneStepState(u)

    def initial_gradient(self) -> OneStepState:
        """The gradient at the end of the last step, before any is added: zero."""
        return OneStepState(None)

    def rate(self, t: float, u: Tensor) -> Tensor:
        """The right-hand side G(t, u) + H(t, u)."""
        value = self.part.value(t, u)
        if self.explicit is None:
            return value
        self.stats.explicit_evaluations += 1
        return value + self.explicit(t, u).value

    def step(self, t: float, h: float, state: OneStepState) -> StepResult:
        """Makes one step."""
        u, n = state.u, self.scheme.stages
        assert u is not None
        self.part.start_step(u)
        g: list[Tensor | None] = [None] * n
        k: list[Scaled] = [Scaled(None)] * n
        stages: list[Tensor | None] = [None] * n
        evaluations: list[Evaluation | None] = [None] * n
        for i in range(n):
            if not (self.uses_g[i] or self.uses_h[i]):
                continue
            r = combine(u, h, self.a[i][:i], g, self.at[i][:i], k)
            c, t_i = h * self.at[i][i], t + self.ct[i] * h
            stage = r
            if c != 0.0:
                stage = self.part.solve(t_i, c, r, partial(self._guess, r, c, k))
                if self.uses_h[i]:
                    k[i] = Scaled(stage - r, 1.0 / c)
            elif self.uses_h[i]:
                k[i] = Scaled(self.part.value(t_i, stage)) if i or state.k.x is None else state.k
            if self.uses_g[i]:
                at_start = state.g if i == 0 else None
                g[i], evaluations[i] = at_start or self._evaluate(t + self.c[i] * h, stage)
            stages[i] = stage
        tape = Tape(stages, evaluations, state.k.x is not None)
        if self.continues:
            known = k[-1] if self.uses_h[0] else Scaled(None)
            return StepResult(OneStepState(stages[-1], None, known), tape, g, k)
        return StepResult(OneStepState(combine(u, h, self.b, g, self.bt, k)), tape, g, k)

    def _evaluate(self, t: float, u: Tensor) -> Evaluated:
        assert self.explicit is not None
        self.stats.explicit_evaluations += 1
        return self.explicit(t, u)

    def _guess(self, r: Tensor, c: float, k: Sequence[Scaled]) -> Tensor | None:
        """An initial guess of a stage, r + c H with the H of the last stage that has one."""
        last = next((x for x in reversed(k) if x.x is not None), None)
        if last is None or last.x is None:
            return None
        return r.detach() + (c * last.factor) * last.x.detach()

    def with_end(self, t: float, result: StepResult) -> StepResult:
        """The result with the value of G at the end of the step (time t), the next step's first."""
        state = result.state
        return result._replace(state=state._replace(g=self._evaluate(t, state.u)))

    def interpolate(self, h: float, theta: float, state: OneStepState, result: StepResult
                    ) -> Tensor:
        """The state at t + theta h within a step of size h from ``state``, by the interpolant."""
        assert state.u is not None
        weights = self._weights_at(theta)
        return combine(state.u, h, weights[0], result.g, weights[1], result.k)

    def error(self, t: float, h: float, result: StepResult) -> Tensor:
        r"""The error estimate of a step, :math:`h \sum_i (b_i - \hat b_i) (G_i + H_i)`.

        If the scheme is not stiffly accurate, the estimate is too large for stiff components and is
        multiplied by :math:`(I - h \gamma H_u)^{-1}` (Hairer and Wanner, Solving Ordinary
        Differential Equations II, section IV.8).
        """
        u = result.state.u
        estimate = combine(torch.zeros_like(u), h, self.d, result.g, self.dt, result.k)
        gamma = next((row[i] for i, row in enumerate(self.at) if row[i] != 0.0), 0.0)
        if self.scheme.stiffly_accurate or gamma == 0.0:
            return estimate
        return self.part.linear_solve(t + h, h * gamma, u, estimate)

    def second_error(self, h: float, result: StepResult) -> Tensor:
        r"""The second error estimate :math:`h \sum_i d_i G_i`, for a result of :meth:`with_end`.

        If G is stiff, the first estimate vanishes at some eigenvalues :math:`\lambda` of G (at
        :math:`h \lambda = -6.24` for ark436l2sa) although the step is unstable; this one does not.
        """
        zero = torch.zeros_like(result.state.u)
        return combine(zero, h, self.d_second, [*result.g, result.state.g.value], (), ())

    def transposed(self, t: float, h: float, tape: Tape, lam: OneStepState,
                   outputs: Sequence[tuple[float, Tensor]], reverse: Reverse,
                   first: Tensor | None = None) -> OneStepState:
        r"""The gradient at the start of a step from the gradient :obj:`lam` at its end.

        .. math::
            v_i &= h (b_i \lambda + \sum_{j>i} A_{ji} \lambda_j), \quad
            w_i = h (\tilde b_i \lambda + \sum_{j>i} \tilde A_{ji} \lambda_j) \\
            (I - h \tilde A_{ii} H_u)^T \lambda_i &= G_u^T v_i + H_u^T w_i, \quad
            \lambda \leftarrow \lambda + \sum_i \lambda_i

        Args:
            t, h (float): Start and size of the step, in units of time.
            tape (Tape): The tape of the step, from :meth:`step`.
            lam (OneStepState): The gradient at the end of the step.
            outputs (sequence): A pair of theta and gradient for each output inside the step; these
                gradients enter with the weights of the interpolant.
            reverse (Reverse): Computes the products with transposed Jacobians.
            first (Tensor, optional): A further gradient at the first value of G.
                (default: :obj:`None`)
        """
        results = [(self.b, self.bt, lam.u)]
        results += [(*self._weights_at(theta), grad) for theta, grad in outputs]
        n = self.scheme.stages
        before = Scaled(None)  # the gradient at the H of the step before
        lams: list[Scaled] = [Scaled(None)] * n
        for i in reversed(range(n)):
            u = tape.stages[i]
            if u is None:
                continue
            v = w = back = Scaled(None)
            if self.uses_g[i]:
                terms: list[Weighted] = [(h * b[i], x) for b, _, x in results]
                terms += [(h * self.a[j][i] * lams[j].factor, lams[j].x) for j in range(i + 1, n)]
                v = weighted(terms)
                if first is not None:
                    v, first = self._with_first(i, v, first)
            if self.uses_h[i]:
                terms = [(h * bt[i], x) for _, bt, x in results]
                terms += [(h * self.at[j][i] * lams[j].factor, lams[j].x) for j in range(i + 1, n)]
                if i == n - 1:
                    terms.append((lam.k.factor, lam.k.x))
                w = weighted(terms)
                if i == 0 and tape.continues:
                    before, w = w, Scaled(None)
            if v.x is not None:
                back = reverse.explicit(tape.evaluations[i], t + self.c[i] * h, u, v)
            lams[i] = self._transposed_stage(t + self.ct[i] * h, h * self.at[i][i], u, back, w,
                                             reverse)
        u = total([(1.0, lam.u), *((1.0, grad) for _, grad in outputs),
                   *((x.factor, x.x) for x in lams)])
        return OneStepState(u, None, before)

    def _with_first(self, i: int, v: Scaled, first: Tensor) -> tuple[Scaled, Tensor | None]:
        """Adds the further gradient at the first stage that evaluates G."""
        if any(self.uses_g[:i]):
            return v, first
        return weighted([(v.factor, v.x), (1.0, first)]), None

    def _transposed_stage(self, t: float, c: float, u: Tensor, back: Scaled, w: Scaled,
                          reverse: Reverse) -> Scaled:
        """Solves for lambda_i, and accumulates the gradients of H's tensors with y.

        With y = w_i + c lambda_i, the weight of H_i, it solves (I - c H_u)^T y = w + c G_u^T v;
        then lambda_i = (y - w) / c, without a product with J. Scalar factors pass through the
        solve.
        """
        if (back.x is None and w.x is None) or self.part.is_zero:
            return back
        if c == 0.0:
            if w.x is None:
                return back
            reverse.implicit(t, u, w)
            value = self.part.transposed_value(t, u, w.x)
            return weighted([(w.factor, value), (back.factor, back.x)])
        if w.x is None:
            assert back.x is not None
            lam = self.part.transposed_solve(t, c, u, back.x)
            reverse.implicit(t, u, Scaled(lam, c * back.factor))
            return Scaled(lam, back.factor)
        right = w.x if back.x is None else torch.add(
            w.x, back.x, alpha=c * back.factor / w.factor)
        y = self.part.transposed_solve(t, c, u, right)
        reverse.implicit(t, u, Scaled(y, w.factor))
        return Scaled(y - w.x, w.factor / c)

    def _weights_at(self, theta: float) -> tuple[list[float], list[float]]:
        """The weights of the interpolant at theta, for the G_j and for the H_j."""
        assert self.scheme.interpolant is not None
        explicit, implicit = self.scheme.interpolant
        powers = [theta ** (k + 1) for k in range(explicit.shape[1])]
        return (explicit @ powers).tolist(), (implicit @ powers).tolist()


class _Numbers(NamedTuple):
    """The coefficients of a scheme as Python floats, and for each stage whether it is used.

    Indexing numpy arrays in the loop over stages would take longer than the additions.
    """

    a: list[list[float]]
    at: list[list[float]]
    b: list[float]
    bt: list[float]
    c: list[float]
    ct: list[float]
    d: list[float]
    dt: list[float]
    d_second: list[float]
    uses_g: list[bool]
    uses_h: list[bool]


@lru_cache(maxsize=64)
def _numbers(scheme: IMEXTableau, embedded: bool, dense: bool) -> _Numbers:
    rows_g, rows_h = [scheme.b_explicit], [scheme.b_implicit]
    d = dt = d_second = np.zeros(0)
    if embedded:
        d = scheme.b_explicit - scheme.b_embedded
        dt = scheme.b_implicit - scheme.b_embedded_implicit
        rows_g.append(scheme.b_embedded)
        rows_h.append(scheme.b_embedded_implicit)
        if scheme.d_second is not None:
            d_second = scheme.d_second
            rows_g.append(d_second[:-1])
    if dense and scheme.interpolant is not None:
        rows_g.extend(scheme.interpolant[0].T)
        rows_h.extend(scheme.interpolant[1].T)
    return _Numbers(
        scheme.a_explicit.tolist(), scheme.a_implicit.tolist(), scheme.b_explicit.tolist(),
        scheme.b_implicit.tolist(), scheme.c_explicit.tolist(), scheme.c_implicit.tolist(),
        d.tolist(), dt.tolist(), d_second.tolist(), _used(scheme.a_explicit, rows_g),
        _used(scheme.a_implicit, rows_h))


def _used(matrix: Array, rows: Sequence[Array]) -> list[bool]:
    """For each stage, whether a later stage or one of the rows of weights uses it."""
    used = (np.tril(matrix, -1) != 0).any(axis=0)
    for row in rows:
        used = used | (row != 0)
    return [bool(x) for x in used]
