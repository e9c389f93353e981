r"""How is an exponential Runge-Kutta step made, and how is its transpose?

With the transform F that diagonalizes J, if there is one (the Fourier transform on a periodic
grid), the sums of a step are formed of transformed values of G: each stage takes one transform of G
and one back to the state, or none if G is evaluated on Fourier coefficients. The transform of the
state is kept for the next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.functions import Fourier, Functions, Uses
from ..operators.phi import PhiSums
from ..schemes.exponential import ExponentialTableau, Weights, plus, times
from .explicit import Evaluation, Explicit
from .function_part import FunctionPart
from .report import Stats
from .runge_kutta import Reverse, StepResult
from .sums import Scaled, total


class ExponentialState(NamedTuple):
    """A state u and its transform, if known; or the gradient at the state."""

    u: Tensor | None
    transform: Tensor | None = None

    def plus(self, grads: Iterable[Tensor]) -> ExponentialState:
        """The gradient with further ones added."""
        return ExponentialState(total([(1.0, self.u), *((1.0, x) for x in grads)]))


class ExponentialTape(NamedTuple):
    """The data that the transpose of a step needs.

    Attributes:
        stages: The states at the stages, or their coefficients; then, if J is differentiated, the
            transforms of the state before the step and of the values of G.
        evaluations: The evaluations of G at the stages.
    """

    stages: Sequence[Tensor | None]
    evaluations: Sequence[Evaluation | None]

    def on(self, stages: Sequence[Tensor | None]) -> ExponentialTape:
        """The same tape with other tensors."""
        return self._replace(stages=stages)


class Exponential:
    """The steps of an exponential Runge-Kutta scheme and their transposes.

    Args:
        scheme (ExponentialTableau): The scheme.
        explicit (callable, optional): Evaluates G(t, u); None for G = 0.
        part (FunctionPart): The functions of J.
        stats (Stats): The statistics, updated.
        embedded (bool): Whether errors are estimated. (default: :obj:`False`)
        fourier (Fourier, optional): The transform of which G is evaluated on coefficients; if None,
            G is evaluated on states. (default: :obj:`None`)
    """

    def __init__(self, scheme: ExponentialTableau, explicit: Explicit | None, part: FunctionPart,
                 stats: Stats, *, embedded: bool = False, fourier: Fourier | None = None) -> None:
        self.scheme, self.explicit, self.part, self.stats = scheme, explicit, part, stats
        self.fourier = fourier
        self.weights: Tensor | None = None
        self.plan, self.c = plan_of(scheme, embedded, explicit is not None), scheme.c

    def initial(self, u: Tensor) -> ExponentialState:
        """The state of the method before the first step."""
        return ExponentialState(u)

    def initial_gradient(self) -> ExponentialState:
        """The gradient at the end of the last step, before any is added: zero."""
        return ExponentialState(None)

    def rate(self, t: float, u: Tensor) -> Tensor:
        """The right-hand side G(t, u) + J u."""
        value = self.part.value(u)
        if self.explicit is None:
            return value
        self.stats.explicit_evaluations += 1
        if self.fourier is None:
            return value + self.explicit(t, u).value
        found = self.explicit(t, self.fourier.forward(u)).value
        return value + self.fourier.backward(found)

    def step(self, t: float, h: float, state: ExponentialState) -> StepResult:
        """Makes one step."""
        u, plan = state.u, self.plan
        assert u is not None
        functions = self.part.functions(h, u, plan)
        transform = functions.enter(u) if state.transform is None else state.transform
        sums: list[Tensor | None] = [None] * (plan.stages + 2)
        functions.add(sums, transform, plan.of_state)
        self.stats.operator_products += functions.products * (1 + len(plan.used))
        stages: list[Tensor | None] = [None] * plan.stages
        evaluations: list[Evaluation | None] = [None] * plan.stages
        sources: list[Tensor | None] = [transform] + [None] * plan.stages
        self.stats.explicit_evaluations += len(plan.used)
        inside = self.fourier is not None
        for i in plan.used:
            own, stage = sums[i], transform if inside else u
            if own is not None:
                stage, sums[i] = own if inside else functions.leave(own), None
            assert self.explicit is not None
            value, evaluations[i] = self.explicit(t + self.c[i] * h, stage)
            source = value if inside else functions.enter(value)
            if inside and self.part.differentiates:  # kept longer than G may leave its memory alone
                source = source.clone()
            functions.add(sums, source, plan.of_stage[i])
            stages[i], sources[i + 1] = stage, source
        end, estimate = sums[plan.stages:]
        assert end is not None
        new = functions.leave(end)
        following = ExponentialState(new, end if functions.carries else None)
        kept = [*stages, *sources] if self.part.differentiates else stages
        return StepResult(following, ExponentialTape(kept, evaluations), (estimate,))

    def error(self, t: float, h: float, result: StepResult) -> Tensor:
        """The error estimate of a step: the difference from the embedded solution."""
        (estimate,) = result.g
        if estimate is None:  # without G, the step is exact
            return torch.zeros_like(result.state.u)
        return self.part.functions(h, result.state.u, self.plan).leave(estimate)

    def transposed(self, t: float, h: float, tape: ExponentialTape, lam: ExponentialState,
                   outputs: Sequence[tuple[float, Tensor]], reverse: Reverse
                   ) -> ExponentialState:
        r"""The gradient at the start of a step from the gradient :obj:`lam` at its end.

        .. math::
            v_i = h \left( b_i(h J)^T \lambda + \sum_{j > i} a_{ji}(h J)^T \lambda_j \right), \quad
            \lambda_i = G_u^T v_i, \quad
            \lambda \leftarrow e^{h J^T} \lambda + \sum_i e^{c_i h J^T} \lambda_i
        """
        if lam.u is None:
            return lam
        plan, n = self.plan, self.plan.stages
        functions = self.part.transposed(h, lam.u, plan)
        at_sums: list[Tensor | None] = [None] * (n + 2)  # the gradients at the sums of the step
        grads: list[Tensor | None] = [None] * (n + 1)  # those at the state and at the values of G
        at_sums[n] = functions.enter(lam.u)
        functions.add(grads, at_sums[n], plan.into[n])  # type: ignore[arg-type]
        direct = Scaled(None)  # that at the first stage, which is the state
        for i in reversed(plan.used):
            u, own = tape.stages[i], grads[i + 1]
            if u is None or own is None:
                continue
            v = Scaled(self._at_value(functions, own))
            back = reverse.explicit(tape.evaluations[i], t + self.c[i] * h, u, v)
            if back.x is None:
                continue
            if i == 0 and self.fourier is None:
                direct = back
                continue
            at_stage = self._at_stage(functions, back.x)
            if i == 0:
                assert grads[0] is not None
                grads[0] = grads[0] + at_stage
                continue
            at_sums[i] = at_stage
            functions.add(grads, at_stage, plan.into[i])
        if self.part.differentiates:
            for x, uses in zip(tape.stages[n:], [plan.of_state, *plan.of_stage], strict=True):
                if x is not None:
                    self.part.add_vjp(h, lam.u, plan, x, at_sums, uses)
        assert grads[0] is not None
        return ExponentialState(total([(1.0, functions.leave(grads[0])),
                                       (direct.factor, direct.x)]))

    # The product of two states is sum_k w_k Re(conj(a_k) b_k) by their coefficients: autograd's
    # gradient at the coefficients is w times the transform of the gradient at the state.

    def _at_value(self, functions: Functions, transform: Tensor) -> Tensor:
        """The gradient at a value of G from its transform."""
        if self.fourier is None:
            return functions.leave(transform)
        return transform * self._weights(transform)

    def _at_stage(self, functions: Functions, gradient: Tensor) -> Tensor:
        """The transform of the gradient at a stage."""
        if self.fourier is None:
            return functions.enter(gradient)
        return gradient / self._weights(gradient)

    def _weights(self, like: Tensor) -> Tensor:
        assert self.fourier is not None
        if self.weights is None:
            self.weights = self.fourier.weight(like)
        return self.weights


@dataclass(frozen=True, eq=False)
class Plan:
    """What a step adds to which sum: those of the stages, of the result, and of the estimate.

    Attributes:
        stages (int): The number of stages n: sum n is that of the result, n + 1 of the estimate.
        functions: The coefficients of the scheme, without repetitions.
        scaled: For each, whether it is multiplied by h.
        used: The numbers of the stages that are computed.
        of_state, of_stage: The uses of the state, and of the value of G at each stage.
        into: For each sum but the estimate, what is added to it: the state is 0, G at stage i is
            i + 1.
    """

    stages: int
    functions: tuple[Weights, ...]
    scaled: tuple[bool, ...]
    used: tuple[int, ...]
    of_state: Uses
    of_stage: Sequence[Uses]
    into: Sequence[Uses]

    def at(self, h: float) -> PhiSums:
        """The coefficients as functions of J, for a step of size h."""
        return PhiSums(self.functions, h, [h if scaled else 1.0 for scaled in self.scaled])


@lru_cache(maxsize=64)
def plan_of(scheme: ExponentialTableau, embedded: bool, explicit: bool) -> Plan:
    """The plan of a step.

    Args:
        scheme (ExponentialTableau): The scheme.
        embedded (bool): Whether errors are estimated.
        explicit (bool): Whether there is a G.
    """
    n, found = scheme.stages, _Numbered()
    needed = scheme.used(embedded=embedded) if explicit else (False,) * n
    used = tuple(i for i in range(n) if needed[i])
    of_state = [(i, found.number({(0, scheme.c[i]): 1.0}, scaled=False)) for i in used if i > 0]
    of_state.append((n, found.number({(0, 1.0): 1.0}, scaled=False)))
    of_stage: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for j in used:
        targets = [(i, scheme.a[i][j]) for i in used if i > j] + [(n, scheme.b[j])]
        if embedded and scheme.b_embedded is not None:
            targets.append((n + 1, plus(scheme.b[j], times(scheme.b_embedded[j], -1.0))))
        of_stage[j] = [(i, found.number(w, scaled=True)) for i, w in targets if w]
    uses = [of_state, *of_stage]
    into = [[(source, k) for source, own in enumerate(uses) for place, k in own if place == target]
            for target in range(n + 1)]
    return Plan(n, tuple(found.weights), tuple(found.scaled), used, of_state, of_stage, into)


class _Numbered:
    """Coefficients with their numbers; equal ones have one number."""

    def __init__(self) -> None:
        self.weights: list[Weights] = []
        self.scaled: list[bool] = []

    def number(self, weights: Weights, *, scaled: bool) -> int:
        """The number of a coefficient, a new one if it is not there yet."""
        for k, known in enumerate(self.weights):
            if known == weights and self.scaled[k] == scaled:
                return k
        self.weights.append(weights)
        self.scaled.append(scaled)
        return len(self.weights) - 1
