"""How does time march, step by step, and what stops it?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from .controllers import Adaptive
from .operators import LinearSolveError
from .report import ExplicitTermError, NonFiniteStateError, Stats, StepSizeError
from .stepper import Gradients, Made, Reverse, RungeKutta, State
from .steps import EPS, Clock, Step, Steps, on_grid, take_outputs, whole_steps

LOOK_EVERY = 64  # steps between two looks at the flags of an accelerator
Callback = Callable[[float, Tensor], object]


class Method(Protocol):
    """A method that advances a state step by step, and the transposes of its steps."""

    stats: Stats

    def evaluations_before(self, number: int) -> int:
        """The number of evaluations of G in the steps before that one."""
        ...

    def step(self, number: int, t: float, h: float, state: State) -> Made:
        """Makes one step."""
        ...

    def transposed(self, number: int, t: float, h: float, tape: Sequence[Tensor | None],
                   lam: Gradients, outputs: Sequence[tuple[float, Tensor]], reverse: Reverse
                   ) -> list[Tensor | None]:
        """The gradients at the start of a step from those at its end and at outputs in it."""
        ...


class Marched(NamedTuple):
    """One accepted step: its number, the step, the state before it, and what it made."""

    number: int
    step: Step
    before: State
    made: Made


class Watch:
    """Shows progress, and lets a callback stop the march.

    Args:
        callback (callable, optional): Called as ``callback(t, u)`` after every accepted step; a
            true value ends the integration.
        progress (bool): Whether to show a bar.
        times (sequence of float): The output times.
        stats (Stats): Filled on the way.
    """

    def __init__(self, callback: Callback | None, progress: bool, times: Sequence[float],
                 stats: Stats) -> None:
        self.callback, self.stats, self.start = callback, stats, times[0]
        span = abs(times[-1] - times[0])
        self.bar = tqdm(total=span, disable=not progress, desc="imex_odeint", bar_format=(
            "{l_bar}{bar}| time {n:.4g} of {total:.4g} [{elapsed}<{remaining}{postfix}]"))

    def stops(self, t: float, u: Tensor) -> bool:
        """Notes the state after an accepted step; returns whether it is to be the last one."""
        if not self.bar.disable:
            self.bar.update(abs(t - self.start) - self.bar.n)
            self.bar.set_postfix(steps=self.stats.steps_accepted, refresh=False)
        if self.callback is None or not self.callback(t, u.detach().clone()):
            return False
        self.stats.stopped_at = t
        return True

    def close(self) -> None:
        """Leaves the bar as it is."""
        self.bar.close()


def march(method: Method, steps: Steps, u: Tensor, watch: Watch | None = None
          ) -> Iterator[Marched]:
    """Makes the given steps, and stops at the first state that is not finite.

    On the CPU each state is looked at at once; elsewhere the flags stay on the device for a while.
    """
    state: State = (u,)
    flags = _Flags(steps, u)
    for number in range(len(steps)):
        step = steps[number]
        try:
            made = method.step(number, step.t, step.h, state)
        except (LinearSolveError, ExplicitTermError) as error:
            flags.raise_for_any()  # the first fault of all, not what came of it
            raise located(error, step.t, number, state[0]) from error.__cause__
        method.stats.steps_accepted += 1
        flags.look(number, state[0], made.state[0])
        if watch is not None and watch.stops(steps.end(number), made.state[0]):
            step = _ended(steps, number)
        yield Marched(number, step, state, made)
        if method.stats.stopped_at is not None:
            break
        state = made.state
    flags.raise_for_any()


def adaptive_march(method: RungeKutta, control: Adaptive, times: Sequence[float], clock: Clock,
                   u: Tensor, *, dense: bool, steps: Steps, discard: Callable[[int, int], None],
                   watch: Watch) -> Iterator[Marched]:
    """Makes steps of the size that the error allows, and notes the accepted ones.

    Args:
        method (RungeKutta): The scheme, with its embedded weights.
        control (Adaptive): Tolerances and limits.
        times (sequence of float): The output times.
        clock (Clock): To what they are rounded.
        u (Tensor): The initial state.
        dense (bool): Whether outputs fall into steps, or end them.
        steps (Steps): The accepted steps, filled on the way.
        discard (callable): Called with a step's number when what it evaluated is not to be kept,
            but for the first so many evaluations.
        watch (Watch): Shows progress, and may stop the march.
    """
    state: State = (u,)
    rest = list(times[1:])
    sizes = _Sizes(method, control, times, clock, u, dense=dense)
    discard(0, 0)
    while rest:
        number, t, h = len(steps), sizes.t, sizes.h
        trial = _try(method, control, number, sizes, state)
        if not sizes.accepts(trial.error):
            discard(number, len(state) - 1)
            method.stats.steps_rejected += 1
            sizes.shrink(trial, number, state[0])
            continue
        assert trial.made is not None
        method.stats.steps_accepted += 1
        sizes.move()
        if dense:
            outputs = take_outputs(rest, t, h, last=sizes.landed)
        else:
            outputs = (1.0,) if sizes.landed else ()
            del rest[:len(outputs)]
        step = Step(t, h, outputs)
        steps.append(step)
        if watch.stops(sizes.end, trial.made.state[0]):
            step = _ended(steps, number)
        yield Marched(number, step, state, trial.made)
        if method.stats.stopped_at is not None:
            break
        state = trial.made.state
        if rest:
            sizes.limit(number + 1, state[0])


class _Trial(NamedTuple):
    made: Made | None
    error: float
    cause: Exception | None


def _try(method: RungeKutta, control: Adaptive, number: int, sizes: _Sizes, state: State
         ) -> _Trial:
    """A step and the norm of its error; infinite where a linear solve failed."""
    t, h = sizes.t, sizes.h
    try:
        made = method.step(number, t, h, state)
        with torch.no_grad():
            error = control.norm(method.error(t, h, made), state[0], made.state[0])
        if error <= 1.0 and method.has_second:
            made = method.with_end(float(sizes.exact + Fraction(h)), made)
            with torch.no_grad():
                second = control.norm(method.second_error(h, made), state[0], made.state[0])
            error = second if math.isnan(second) else max(error, second)
    except LinearSolveError as cause:
        # Without its frames, which would hold the trial, and it them.
        fault = located(cause, t, number, state[0]).with_traceback(None)
        return _Trial(None, math.inf, fault)
    except ExplicitTermError as cause:
        raise located(cause, t, number, state[0]) from cause.__cause__
    return _Trial(made, error, None)


class _Sizes:
    """The step sizes of an adaptive march: equal ones up to the next time to land on, if possible.

    The sum of the steps is kept exactly, so that rounding moves no time, however many there are.
    """

    def __init__(self, method: RungeKutta, control: Adaptive, times: Sequence[float], clock: Clock,
                 u: Tensor, *, dense: bool) -> None:
        self.control, self.stats = control, method.stats
        self.order = method.scheme.embedded_order
        self.targets = list(times[-1:] if dense else times[1:])
        self.ends = self.targets if dense else on_grid(times, clock)[1:]  # where exactly they lie
        self.t, self.h, self.wanted = times[0], 0.0, 0.0
        self.exact, self.end = Fraction(self.t), self.t
        self.landed, self.after_rejection, self.tried = False, False, 0
        self.errors: list[float] = []
        # What rounding of time leaves of a step must be a small part of it.
        self.least = max(control.min_step, 16 * EPS * max(abs(times[0]), abs(times[-1])))
        self.implicit = method.solves.part is not None
        if len(times) > 1:
            sign = math.copysign(1.0, times[-1] - times[0])
            span = abs(self.targets[0] - times[0])
            with torch.no_grad():
                self.wanted = control.choose_first(
                    times[0], u.detach(), sign, span, self.order, method.rate)
            self._fit()

    def accepts(self, error: float) -> bool:
        """Notes the error of a step; returns whether the step counts."""
        self.tried += 1
        self.errors = [*self.errors[-2:], error]
        return error <= 1.0

    def shrink(self, trial: _Trial, number: int, u: Tensor) -> None:
        """Makes the step smaller after a rejection."""
        factor = self.control.controller.factor(self.errors, self.order)
        self.errors.pop()
        self.wanted, self.after_rejection = abs(self.h) * min(factor, 0.9), True
        if self.wanted < self.least:
            raise _too_small(self, trial, number, u) from trial.cause
        self.limit(number, u)
        self._fit()

    def move(self) -> None:
        """Goes on to the end of an accepted step, and chooses the next size."""
        self.left -= 1
        self.exact += Fraction(self.h)
        self.landed = self.left == 0
        self.t = float(self.exact)
        self.end = self.targets.pop(0) if self.landed else self.t
        controller = self.control.controller
        factor = controller.factor(self.errors, self.order)
        if self.after_rejection:
            factor = min(factor, 1.0)
        self.after_rejection = False
        keeps = 1.0 <= factor < controller.keep
        self.stats.setups_saved += self.implicit and keeps and factor > 1.0
        self.wanted = abs(self.h) * (1.0 if keeps else factor)
        if self.targets and (self.landed or not keeps):
            self._fit()

    def limit(self, number: int, u: Tensor) -> None:
        """Raises once as many steps as there may be were tried."""
        if self.tried >= self.control.max_steps:
            raise StepSizeError(
                f"Expected to reach time {self.targets[-1]:.6g} within max_steps="
                f"{self.control.max_steps} steps (came to {self.t:.6g} in {number} accepted steps "
                f"of a size that is {abs(self.h):.3g} now). Raise max_steps or the tolerances, or "
                "move what is stiff from the explicit term into the implicit part.",
                time=self.t, step=number, state=u.detach(), step_size=abs(self.h))

    def _fit(self) -> None:
        """Equal steps, none larger than wanted, to the next time to land on."""
        target = self.ends[len(self.ends) - len(self.targets)]
        interval = Fraction(target) - self.exact
        self.left = whole_steps(float(interval), self.wanted)
        # The size before, and its set-up, where that moves no output by more than four roundings.
        ahead = self.left * Fraction(self.h) - interval
        if self.h == 0.0 or abs(ahead) > 2 * EPS * abs(target):
            self.h = float(interval / self.left)


def located(error: LinearSolveError | ExplicitTermError, t: float, number: int,
            u: Tensor) -> Exception:
    """The error with its time and step, or the true cause where the state was not finite."""
    state = error.state if isinstance(error, LinearSolveError) else None
    if state is not None and not bool(state.isfinite().all()):
        return _not_finite(t, number, u)
    error.time, error.step = t, number
    error.args = (f"{error.args[0]} (In step {number}, which starts at time {t:.6g}.)",)
    return error


class _Flags:
    """Whether the states so far are finite."""

    def __init__(self, steps: Steps, u: Tensor) -> None:
        self.steps, self.good = steps, u
        self.flags: list[Tensor] = []
        self.first = 0  # the number of the step that the first flag belongs to

    def look(self, number: int, before: Tensor, u: Tensor) -> None:
        """Raises if the state after a step is known not to be finite."""
        if u.is_cpu:
            if not _finite(u.detach()):
                raise _not_finite(self.steps.t[number], number, before)
            return
        self.flags.append(u.detach().isfinite().all())
        if len(self.flags) >= LOOK_EVERY:
            self.raise_for_any()
            self.good, self.flags, self.first = u, [], number + 1

    def raise_for_any(self) -> None:
        """Raises for the first of the steps made so far whose state was not finite."""
        if self.flags and not bool(torch.stack(self.flags).all()):
            number = self.first + int(torch.stack(self.flags).logical_not().nonzero()[0])
            raise _not_finite(self.steps.t[number], number, self.good)


def _ended(steps: Steps, number: int) -> Step:
    """The step of that number as the last one: its end is an output."""
    outputs = steps[number].outputs
    if not outputs or outputs[-1] != 1.0:
        outputs = (*outputs, 1.0)
    steps.end_with(number, outputs)
    return steps[number]


def _finite(u: Tensor) -> bool:
    # One pass decides the usual case: a sum that is finite has finite terms.
    return math.isfinite(float(u.sum())) or bool(u.isfinite().all())


def _not_finite(t: float, number: int, state: Tensor) -> NonFiniteStateError:
    return NonFiniteStateError(
        f"The state stopped being finite in step {number}, which starts at time {t:.6g}. Take a "
        "smaller step_size, move the stiff part of the explicit term into the implicit operator, "
        "or look for NaN in the explicit term.",
        time=t, step=number, state=state.detach())


def _too_small(sizes: _Sizes, trial: _Trial, number: int, u: Tensor) -> StepSizeError:
    what = (f"a linear solve failed: {trial.cause}" if trial.cause is not None
            else "its result was not finite" if not math.isfinite(trial.error)
            else f"its error was {trial.error:.3g} times what the tolerances allow")
    return StepSizeError(
        f"The step size fell to {sizes.wanted:.3g} at time {sizes.t:.6g}, after {number} accepted "
        f"steps, below min_step={sizes.control.min_step:.3g} or the rounding of time; in the last "
        f"step tried, {what}. The explicit term may be stiff (move its linear part into the "
        "implicit one), have a discontinuity or a singularity there, or give NaN.",
        time=sizes.t, step=number, state=u.detach(), step_size=sizes.wanted)
