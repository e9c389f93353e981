r"""What is one implicit-explicit multistep step, and what is its transpose?

.. math::
    \sum_{j=0}^{s} a_j u_{n+1-j} = h \sum_{j=1}^{s} b_j G(t_{n+1-j}, u_{n+1-j})
    + h \sum_{j=0}^{1} c_j H(t_{n+1-j}, u_{n+1-j})

Source: Ascher, Ruuth and Wetton (1995), doi:10.1137/0732037.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from ..schemes import IMEXMultistep
from .explicit import Evaluation, Explicit
from .implicit import ImplicitPart
from .report import Stats
from .runge_kutta import OneStepState, Reverse, RungeKutta, StepResult, Tape
from .sums import Scaled, total


class History(NamedTuple):
    """What a multistep scheme remembers, or the gradients at it; the newest first.

    Attributes:
        states: The state, then the earlier ones.
        values: The values of G at the earlier ones.
        h: The value of H at the state, where the scheme uses it.
    """

    states: Sequence[Tensor | None]
    values: Sequence[Tensor | None] = ()
    h: Tensor | None = None

    @property
    def u(self) -> Tensor | None:
        """The state itself."""
        return self.states[0] if self.states else None

    def plus(self, grads: Iterable[Tensor]) -> History:
        """Gradients with further ones at the state."""
        u = total([(1.0, self.u), *((1.0, x) for x in grads)])
        return self._replace(states=[u, *self.states[1:]])


class MultistepTape(NamedTuple):
    """What the transpose of a step needs.

    Attributes:
        stages: The states before and after the step; of a starting step its stages and its end.
        evaluations: The evaluations of G at the first of these.
        start: Whether the start made the step.
        earlier: The number of earlier states before the step.
    """

    stages: Sequence[Tensor | None]
    evaluations: Sequence[Evaluation | None]
    start: bool
    earlier: int

    def on(self, stages: Sequence[Tensor | None]) -> MultistepTape:
        """The same with other tensors."""
        return self._replace(stages=stages)


class Multistep:
    """One step of a multistep scheme and its transpose.

    Args:
        scheme (IMEXMultistep): The scheme.
        explicit (callable, optional): Evaluates G(t, u).
        part (ImplicitPart): The implicit part.
        stats (Stats): Filled on the way.
    """

    def __init__(self, scheme: IMEXMultistep, explicit: Explicit | None, part: ImplicitPart,
                 stats: Stats) -> None:
        self.scheme, self.explicit, self.part, self.stats = scheme, explicit, part, stats
        self.start = RungeKutta(scheme.start, explicit, part, stats)
        self.earlier = scheme.steps - 1  # earlier states that a step uses
        self.remembers_h = not part.is_zero and scheme.c[1] != 0.0

    def initial(self, u: Tensor) -> History:
        """The state from which the first step starts."""
        return History((u,))

    def initial_gradient(self) -> History:
        """No gradient at the end of the last step."""
        return History(())

    def step(self, t: float, h: float, state: History) -> StepResult:
        """Makes one step, by the start while there are too few earlier states."""
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
        guess = None
        if state.h is not None and self.part.wants_guess():
            guess = r.detach() + c * state.h.detach()
        new = self.part.solve(t + h, c, r, guess)
        following = (new - r).div_(c) if self.remembers_h else None
        history = History((new, *state.states[:-1]), values[:self.earlier], following)
        return StepResult(history, MultistepTape([u, new], [evaluation], False, earlier))

    def transposed(self, t: float, h: float, tape: MultistepTape, lam: History,
                   outputs: Sequence[tuple[float, Tensor]], reverse: Reverse) -> History:
        """The gradients at the start of a step from those at its end.

        With c = h c_0 and mu = (I - c H_u)^-T (lam_u + lam_h / c), the gradient at the right-hand
        side is mu - lam_h / c.
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


def _padded(parts: Sequence[Tensor | None], length: int) -> list[Tensor | None]:
    """The gradients, with None where the last step has none."""
    return [*parts, *[None] * (length - len(parts))]


