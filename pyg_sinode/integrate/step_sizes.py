"""What is the size of the next step, equal or adaptive, and is the step accepted?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..controllers import Adaptive
from ..operators.checks import is_finite
from ..operators.results import SolveError
from ..solvers import NewtonError
from .clock import Clock, on_grid, whole_steps
from .exponential import Exponential
from .report import StepSizeError, located, not_finite
from .runge_kutta import OneStepState, RungeKutta, StepResult
from .steps import EPS, Step, Steps, take_outputs

LOOK_EVERY = 64  # steps between two checks of the flags on an accelerator


class Next(NamedTuple):
    """A step to try: its number, start time and size."""

    number: int
    t: float
    h: float


class StepSizes(Protocol):
    """Chooses the steps, and accepts or rejects their results."""

    steps: Steps

    def next(self, u: Tensor) -> Next | None:
        """The next step to try from a state u; None at the end."""
        ...

    def judge(self, step: Next, state: OneStepState, result: StepResult) -> StepResult | None:
        """The result, completed if necessary, if the step is accepted; None if it is rejected."""
        ...

    def failed(self, step: Next, u: Tensor, error: SolveError) -> None:
        """Reduces the step size after a failed solve, or raises an error."""
        ...

    def accept(self) -> tuple[Step, float]:
        """Advances; returns the accepted step with its outputs, and the time at its end."""
        ...

    def finish(self) -> None:
        """Raises an error that is still pending after the last step."""
        ...


class EqualSteps:
    """Equal steps, planned beforehand; each is accepted unless the state is not finite.

    On the CPU each state is checked immediately. On other devices the results of the checks stay on
    the device and are read every 64 steps.

    Args:
        steps (Steps): The planned steps.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps, self.number = steps, 0
        self.good: Tensor | None = None
        self.flags: list[Tensor] = []
        self.first = 0  # the number of the step of the first flag

    def next(self, u: Tensor) -> Next | None:
        """The next planned step."""
        if self.number >= len(self.steps):
            return None
        return Next(self.number, self.steps.t[self.number], self.steps.h[self.number])

    def judge(self, step: Next, state: OneStepState, result: StepResult) -> StepResult:
        """The result; raises a NonFiniteStateError if a state is known not to be finite."""
        u, before = result.state.u, state.u
        assert before is not None
        if u.is_cpu:
            if not is_finite(u):
                raise not_finite(step.t, step.number, before)
            return result
        u = u.detach()
        self.good = before if self.good is None else self.good
        self.flags.append(u.isfinite().all())
        if len(self.flags) >= LOOK_EVERY:
            self.finish()
            self.good, self.flags, self.first = u, [], step.number + 1
        return result

    def failed(self, step: Next, u: Tensor, error: SolveError) -> None:
        """Raises the error of the failed solve, with time and step."""
        self.finish()  # raises if an earlier state was not finite, the cause of this error
        try:
            raise located(error, step.t, step.number, u) from error.__cause__
        finally:
            del error  # avoids a reference cycle through its traceback

    def accept(self) -> tuple[Step, float]:
        """Advances to the next planned step."""
        number = self.number
        self.number += 1
        return self.steps[number], self.steps.end(number)

    def finish(self) -> None:
        """Raises a NonFiniteStateError for the first step so far whose state was not finite."""
        if self.flags and not bool(torch.stack(self.flags).all()):
            number = self.first + int(torch.stack(self.flags).logical_not().nonzero()[0])
            assert self.good is not None
            raise not_finite(self.steps.t[number], number, self.good)


class AdaptiveSteps:
    """Adaptive steps: as large as the error permits, and equal up to the next output if possible.

    The current time is an exact rational sum of the step sizes, so that rounding errors do not
    accumulate.

    Args:
        method (RungeKutta or Exponential): The method, with embedded weights.
        control (Adaptive): Tolerances and limits.
        times (sequence of float): The output times.
        clock (Clock): Their rounding units.
        u (Tensor): The initial state.
        dense (bool): Whether outputs may lie within steps; if False, a step ends at each.
        steps (Steps): The list to which accepted steps are appended.
    """

    def __init__(self, method: RungeKutta | Exponential, control: Adaptive,
                 times: Sequence[float], clock: Clock, u: Tensor, *, dense: bool,
                 steps: Steps) -> None:
        self.method, self.control, self.dense, self.steps = method, control, dense, steps
        self.stats, self.order = method.stats, method.scheme.embedded_order
        self.rest = list(times[1:])  # the remaining output times
        self.targets = self.rest[-1:] if dense else self.rest[:]  # times at which a step must end
        self.ends = self.targets if dense else on_grid(times, clock)[1:]  # the same, unrounded
        self.t, self.h, self.wanted = times[0], 0.0, 0.0
        self.exact, self.left = Fraction(self.t), 0
        self.after_rejection, self.tried = False, 0
        self.errors: list[float] = []
        # The rounding error of the time must be small compared with a step.
        self.least = max(control.min_step, 16 * EPS * max(abs(times[0]), abs(times[-1])))
        if len(times) > 1:
            sign = math.copysign(1.0, times[-1] - times[0])
            span = abs(self.targets[0] - times[0])
            with torch.no_grad():
                self.wanted = control.choose_first(
                    times[0], u.detach(), sign, span, self.order, method.rate)
            self._fit()

    def next(self, u: Tensor) -> Next | None:
        """The next step to try; raises a StepSizeError if max_steps steps were tried."""
        number = len(self.steps)
        if not self.targets:
            return None
        if self.tried >= self.control.max_steps:
            raise StepSizeError(
                f"Expected to reach time {self.targets[-1]:.6g} within max_steps="
                f"{self.control.max_steps} steps (came to {self.t:.6g} in {number} accepted steps "
                f"of a size that is {abs(self.h):.3g} now). Raise max_steps or the tolerances, or "
                "move what is stiff from the explicit term into the implicit part.",
                time=self.t, step=number, state=u.detach(), step_size=abs(self.h))
        return Next(number, self.t, self.h)

    def judge(self, step: Next, state: OneStepState, result: StepResult) -> StepResult | None:
        """The result if its error is small enough, with G at its end if that was evaluated."""
        u = state.u
        assert u is not None
        with torch.no_grad():
            error = self.control.norm(self.method.error(step.t, step.h, result), u, result.state.u)
        if error <= 1.0 and isinstance(self.method, RungeKutta) and self.method.has_second:
            result = self.method.with_end(float(self.exact + Fraction(step.h)), result)
            with torch.no_grad():
                second = self.control.norm(
                    self.method.second_error(step.h, result), u, result.state.u)
            error = second if math.isnan(second) else max(error, second)
        self._note(error)
        if error <= 1.0:
            return result
        self._shrink(step, u, error, None)
        return None

    def failed(self, step: Next, u: Tensor, error: SolveError) -> None:
        """Reduces the step size after a failed solve."""
        # Without the traceback, which would keep the tensors of the failed step.
        cause = located(error, step.t, step.number, u).with_traceback(None)
        self._note(math.inf)
        self._shrink(step, u, math.inf, cause)

    def accept(self) -> tuple[Step, float]:
        """Advances to the end of the step and chooses the next step size."""
        t, h = self.t, self.h
        self.left -= 1
        self.exact += Fraction(h)
        ends = self.left == 0
        self.t = float(self.exact)
        end = self.targets.pop(0) if ends else self.t
        outputs: tuple[float, ...] = (1.0,) if ends else ()
        if self.dense:
            outputs = take_outputs(self.rest, t, h, last=ends)
        step = Step(t, h, outputs)
        self.steps.append(step)
        self._choose(ends)
        return step, end

    def finish(self) -> None:
        """Does nothing: no error is pending."""

    def _note(self, error: float) -> None:
        self.tried += 1
        self.errors = [*self.errors[-2:], error]

    def _shrink(self, step: Next, u: Tensor, error: float, cause: Exception | None) -> None:
        """Reduces the step size after a rejected step."""
        self.stats.steps_rejected += 1
        factor = self.control.controller.factor(self.errors, self.order)
        self.errors.pop()
        self.wanted, self.after_rejection = abs(self.h) * min(factor, 0.9), True
        if self.wanted < self.least:
            raise self._too_small(step, u, error, cause) from cause
        self._fit()

    def _choose(self, ends: bool) -> None:
        """Chooses the step size after an accepted step."""
        controller = self.control.controller
        factor = controller.factor(self.errors, self.order)
        if self.after_rejection:
            factor = min(factor, 1.0)
        self.after_rejection = False
        stays = 1.0 <= factor < controller.deadband
        if not self.method.part.is_zero and stays and factor > 1.0:
            self.stats.factorizations_reused += 1
        self.wanted = abs(self.h) * (1.0 if stays else factor)
        if self.targets and (ends or not stays):
            self._fit()

    def _fit(self) -> None:
        """Sets equal steps, at most of the wanted size, up to the next target time."""
        target = self.ends[len(self.ends) - len(self.targets)]
        interval = Fraction(target) - self.exact
        self.left = whole_steps(float(interval), self.wanted)
        # Keep the step size, and its factorization, if that moves no output by more than four
        # rounding errors.
        ahead = self.left * Fraction(self.h) - interval
        if self.h == 0.0 or abs(ahead) > 2 * EPS * abs(target):
            self.h = float(interval / self.left)

    def _too_small(self, step: Next, u: Tensor, error: float, cause: Exception | None
                   ) -> StepSizeError:
        what = (f"an implicit stage was not solved: {cause}" if isinstance(cause, NewtonError)
                else f"a linear solve failed: {cause}" if cause is not None
                else "its result was not finite" if not math.isfinite(error)
                else f"its error was {error:.3g} times what the tolerances allow")
        cure = ("The implicit term may have a discontinuity or a singularity there, or give NaN."
                if self.method.explicit is None else
                "The explicit term may be stiff (move its linear part into the implicit one), have "
                "a discontinuity or a singularity there, or give NaN.")
        return StepSizeError(
            f"The step size fell to {self.wanted:.3g} at time {step.t:.6g}, after {step.number} "
            f"accepted steps, below min_step={self.control.min_step:.3g} or the rounding of time; "
            f"in the last step tried, {what}. {cure}",
            time=step.t, step=step.number, state=u.detach(), step_size=self.wanted)
