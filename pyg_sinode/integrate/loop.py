"""How does an integration advance in time, and what ends it?"""

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
    """A time-stepping method: its steps and their transposes."""

    stats: Stats

    def initial(self, u: Tensor) -> Any:
        """The state of the method before the first step."""
        ...

    def initial_gradient(self) -> Any:
        """The gradient at the end of the last step, before any is added: zero."""
        ...

    def step(self, t: float, h: float, state: Any) -> StepResult:
        """Makes one step."""
        ...

    def transposed(self, t: float, h: float, tape: Any, lam: Any,
                   outputs: Sequence[tuple[float, Tensor]], reverse: Reverse) -> Any:
        """The gradients at the start of a step, from those at its end and at outputs within it."""
        ...


class AcceptedStep(NamedTuple):
    """An accepted step: its number, time and size, the state before it, and its result."""

    number: int
    step: Step
    before: Any
    result: StepResult


class Watch:
    """Shows progress and calls the user's callback.

    Args:
        callback (callable, optional): Called as ``callback(t, u)`` after each accepted step; the
            integration ends if it returns True.
        progress (bool): Whether to show a progress bar.
        times (sequence of float): The output times.
        stats (Stats): The statistics, updated.
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
        """Reports an accepted step that ends at t in state u; returns whether it is the last."""
        if self.bar is not None:
            self.bar.update(abs(t - self.start) - self.bar.n)
            self.bar.set_postfix(steps=self.stats.steps_accepted, refresh=False)
        if self.callback is None or not self.callback(t, u.detach().clone()):
            return False
        self.stats.stopped_at = t
        return True

    def close(self) -> None:
        """Closes the progress bar."""
        if self.bar is not None:
            self.bar.close()


def loop(method: Method, sizes: StepSizes, u: Tensor, watch: Watch | None = None
         ) -> Iterator[AcceptedStep]:
    """Makes one step after another and yields the accepted ones.

    Args:
        method (Method): The method that makes the steps.
        sizes (StepSizes): Chooses their sizes, and accepts or rejects them.
        u (Tensor): The initial state.
        watch (Watch, optional): Shows progress and may end the integration.
            (default: :obj:`None`)
    """
    state = method.initial(u)
    while (trial := sizes.next(state.u)) is not None:
        failure: SolveError | None = None
        try:
            result = sizes.judge(trial, state, method.step(trial.t, trial.h, state))
        except SolveError as error:
            failure, result = error, None
        except ExplicitTermError as error:
            sizes.finish()  # raises if an earlier state was not finite, the cause of this error
            raise located(error, trial.t, trial.number, state.u) from error.__cause__
        if failure is not None:
            try:
                sizes.failed(trial, state.u, failure)
            finally:
                failure = None  # avoids a reference cycle through its traceback
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
    """Makes a step the last one, with an output at its end, and returns it."""
    outputs = steps[number].outputs
    if not outputs or outputs[-1] != 1.0:
        outputs = (*outputs, 1.0)
    steps.end_with(number, outputs)
    return steps[number]
