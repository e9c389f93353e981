r"""How is an implicit-explicit multistep step made, and how is its transpose?

.. math::
    \sum_{j=0}^{s} a_j u_{n+1-j} = h \sum_{j=1}^{s} b_j G(t_{n+1-j}, u_{n+1-j})
    + h \sum_{j=0}^{1} c_j H(t_{n+1-j}, u_{n+1-j})

Source: Ascher, Ruuth and Wetton (1995), doi:10.1137/0732037.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..schemes import IMEXMultistep
from .explicit import Evaluation, Explicit
from .implicit import ImplicitPart
from .report import Stats
from .runge_kutta import OneStepState, Reverse, RungeKutta, StepResult, Tape
from .sums import Scaled, total


class History(NamedTuple):
    """The data that a multistep scheme uses, or the gradients with respect to them; newest first.

    Attributes:
        states: The current state, then the earlier states.
        values: The values of G at the earlier states.
        h: The value of H at the current state, if the scheme uses it.
    """

    states: Sequence[Tensor | None]
    values: Sequence[Tensor | None] = ()
    h: Tensor | None = None

    @property
    def u(self) -> Tensor | None:
        """The current state."""
        return self.states[0] if self.states else None

    def plus(self, grads: Iterable[Tensor]) -> History:
        """The gradients with further ones added at the current state."""
        u = total([(1.0, self.u), *((1.0, x) for x in grads)])
        return self._replace(states=[u, *self.states[1:]])


class MultistepTape(NamedTuple):
    """The data that the transpose of a step needs.

    Attributes:
        stages: The states before and after the step; for a step of the starting scheme, its stages
            and the state after it.
        evaluations: The evaluations of G at the state before the step, or at the stages.
        start: Whether the step was made by the starting scheme.
        earlier: The number of earlier states that were known before the step.
    """

    stages: Sequence[Tensor | None]
    evaluations: Sequence[Evaluation | None]
    start: bool
    earlier: int

    def on(self, stages: Sequence[Tensor | None]) -> MultistepTape:
        """The same tape with other tensors."""
        return self._replace(stages=stages)


class Multistep:
    """The steps of a multistep scheme and their transposes.

    Args:
        scheme (IMEXMultistep): The scheme.
        explicit (callable, optional): Evaluates G(t, u); None for G = 0.
        part (ImplicitPart): The implicit part.
        stats (Stats): The statistics, updated.
    """

    def __init__(self, scheme: IMEXMultistep, explicit: Explicit | None, part: ImplicitPart,
                 stats: Stats) -> None:
        self.scheme, self.explicit, self.part, self.stats = scheme, explicit, part, stats
        self.start = RungeKutta(scheme.start, explicit, part, stats)
        self.earlier = scheme.steps - 1  # the number of earlier states that a step uses
        self.remembers_h = not part.is_zero and scheme.c[1] != 0.0

    def initial(self, u: Tensor) -> History:
        """The history before the first step."""
        return History((u,))

    def initial_gradient(self) -> History:
        """The gradient at the end of the last step, before any is added: zero."""
        return History(())

    def step(self, t: float, h: float, state: History) -> StepResult:
        """Makes one step, by the starting scheme while there are too few earlier states."""
        earlier = len(state.states) - 1
        if earlier < self.earlier:
            return self._start(t, h, state, earlier)
        u, values, evaluation = state.states[0], list(state.values), None
        assert u is not None
        self.part.start_step(u)
        if self.explicit is not None:
            self.stats.explicit_evaluations += 1
            value, evaluation = self.explicit(t, u)
            values = [value, *values]
        terms = [(-a, x) for a, x in zip(self.scheme.a[1:], state.states, strict=True)]
        terms += [(h * b, g) for b, g in zip(self.scheme.b, values, strict=False)]
        r = total([*terms, (h * self.scheme.c[1], state.h)])
        assert r is not None
        c = h * self.scheme.c[0]
        new = self.part.solve(t + h, c, r, partial(_guess, r, c, state.h))
        following = (new - r).div_(c) if self.remembers_h else None
        history = History((new, *state.states[:-1]), values[:self.earlier], following)
        return StepResult(history, MultistepTape([u, new], [evaluation], False, earlier))

    def transposed(self, t: float, h: float, tape: MultistepTape, lam: History,
                   outputs: Sequence[tuple[float, Tensor]], reverse: Reverse) -> History:
        """The gradients at the start of a step, from the gradients lam at its end.

        With c = h c_0 and mu = (I - c H_u)^-T (lam_u + lam_h / c), the gradient with respect to the
        right-hand side of the implicit solve is mu - lam_h / c.
        """
        if tape.start:
            return self._transposed_start(t, h, tape, lam, reverse)
        before, u = tape.stages
        assert before is not None
        assert u is not None
        states, values = _padded(lam.states, self.earlier + 1), _padded(lam.values, self.earlier)
        mu = states[0]
        if not self.part.is_zero:
            c = h * self.scheme.c[0]
            right = total([(1.0, mu), (1.0 / c, lam.h)])
            if right is not None:
                y = self.part.transposed_solve(t + h, c, u, right)
                reverse.implicit(t + h, u, Scaled(y, c))
                mu = total([(1.0, y), (-1.0 / c, lam.h)])
        states = [total([(-a, mu), (1.0, later)])
                  for a, later in zip(self.scheme.a[1:], [*states[1:], None], strict=True)]
        last = total([(h * self.scheme.c[1], mu)]) if self.remembers_h else None
        if self.explicit is None:
            return History(states, (), last)
        values = [total([(h * b, mu), (1.0, later)])
                  for b, later in zip(self.scheme.b, [*values, None], strict=True)]
        if values[0] is not None:
            (evaluation,) = tape.evaluations
            back = reverse.explicit(evaluation, t, before, Scaled(values[0]))
            states[0] = total([(1.0, states[0]), (back.factor, back.x)])
        return History(states, values[1:], last)

    def _start(self, t: float, h: float, state: History, earlier: int) -> StepResult:
        made = self.start.step(t, h, OneStepState(state.u))
        u, last, values = made.state.u, None, list(state.values)
        if self.remembers_h and earlier == self.earlier - 1:
            last = self.part.value(t + h, u)
        if self.explicit is not None:
            values = [made.g[0], *values]
        tape = MultistepTape([*made.tape.stages, u], made.tape.evaluations, True, earlier)
        return StepResult(History((u, *state.states), values, last), tape)

    def _transposed_start(self, t: float, h: float, tape: MultistepTape, lam: History,
                          reverse: Reverse) -> History:
        states = _padded(lam.states, tape.earlier + 2)
        values = _padded(lam.values, tape.earlier + 1)
        at_end = states[0]
        if lam.h is not None:
            u = tape.stages[-1]
            assert u is not None
            reverse.implicit(t + h, u, Scaled(lam.h))
            back = self.part.transposed_value(t + h, u, lam.h)
            at_end = total([(1.0, at_end), (1.0, back)])
        stages = Tape(tape.stages[:-1], tape.evaluations)
        first = values[0] if self.explicit is not None else None
        found = self.start.transposed(t, h, stages, OneStepState(at_end), [], reverse, first)
        before = total([(1.0, found.u), (1.0, states[1])])
        return History([before, *states[2:]], values[1:], None)


def _guess(r: Tensor, c: float, h: Tensor | None) -> Tensor | None:
    """An initial guess of the new state, r + c H with the H of the last one."""
    return None if h is None else r.detach() + c * h.detach()


def _padded(parts: Sequence[Tensor | None], length: int) -> list[Tensor | None]:
    """The gradients, padded with None to a length."""
    return [*parts, *[None] * (length - len(parts))]


