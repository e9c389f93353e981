"""How does time advance, step by step, and what stops it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from tqdm import tqdm

from ..operators.results import SolveError
from .report import ExplicitTermError, Stats, located
from .runge_kutta import Reverse, StepResult
from .step_sizes import StepSizes
from .steps import Step, Steps

Callback = Callable[[float, Tensor], object]


class Method(Protocol):
    """A method that advances a state step by step, and the transposes of its steps."""

    stats: Stats

    def initial(self, u: Tensor) -> Any:
        """The state from which the first step starts."""
        ...

    def initial_gradient(self) -> Any:
        """No gradient at the end of the last step."""
        ...

    def step(self, t: float, h: float, state: Any) -> StepResult:
        """Makes one step."""
        ...

    def transposed(self, t: float, h: float, tape: Any, lam: Any,
                   outputs: Sequence[tuple[float, Tensor]], reverse: Reverse) -> Any:
        """The gradients at the start of a step from those at its end and at outputs in it."""
        ...


class AcceptedStep(NamedTuple):
    """One step that counts: its number, the step, the state before it, and what it gave."""

    number: int
    step: Step
    before: Any
    result: StepResult


class Watch:
    """Shows progress, and lets a callback stop the integration.

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
        self.bar: tqdm[Any] | None = None
        if progress:
            span = abs(times[-1] - times[0])
            self.bar = tqdm(total=span, desc="imex_odeint", bar_format=(
                "{l_bar}{bar}| time {n:.4g} of {total:.4g} [{elapsed}<{remaining}{postfix}]"))

    def stops(self, t: float, u: Tensor) -> bool:
        """Notes the state after an accepted step; returns whether it is to be the last one."""
        if self.bar is not None:
            self.bar.update(abs(t - self.start) - self.bar.n)
            self.bar.set_postfix(steps=self.stats.steps_accepted, refresh=False)
        if self.callback is None or not self.callback(t, u.detach().clone()):
            return False
        self.stats.stopped_at = t
        return True

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self.bar is not None:
            self.bar.close()


def loop(method: Method, sizes: StepSizes, u: Tensor, watch: Watch | None = None
         ) -> Iterator[AcceptedStep]:
    """Makes one step after another, and gives those that count.

    Args:
        method (Method): Makes the steps.
        sizes (StepSizes): Chooses their sizes, and judges them.
        u (Tensor): The initial state.
        watch (Watch, optional): Shows progress, and may stop the integration.
    """
    state = method.initial(u)
    while (trial := sizes.next(state.u)) is not None:
        failure: SolveError | None = None
        try:
            result = sizes.judge(trial, state, method.step(trial.t, trial.h, state))
        except SolveError as error:
            failure, result = error, None
        except ExplicitTermError as error:
            sizes.finish()  # the first fault of all, not what came of it
            raise located(error, trial.t, trial.number, state.u) from error.__cause__
        if failure is not None:
            try:
                sizes.failed(trial, state.u, failure)
            finally:
                failure = None  # its traceback has this frame: no cycle
        if result is None:
            continue
        method.stats.steps_accepted += 1
        step, end = sizes.accept()
        if watch is not None and watch.stops(end, result.state.u):
            step = _ended(sizes.steps, trial.number)
        yield AcceptedStep(trial.number, step, state, result)
        if method.stats.stopped_at is not None:
            break
        state = result.state
    sizes.finish()


def _ended(steps: Steps, number: int) -> Step:
    """The step of that number as the last one: its end is an output."""
    outputs = steps[number].outputs
    if not outputs or outputs[-1] != 1.0:
        outputs = (*outputs, 1.0)
    steps.end_with(number, outputs)
    return steps[number]
