"""What does an integration report, and how does it fail?"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from dataclasses import dataclass

from torch import Tensor

from ..operators.results import SolveError


class NonFiniteStateError(RuntimeError):
    """The state became infinite or NaN.

    Args:
        message (str): The message.
        time, step, state: As the attributes.

    Attributes:
        time (float): Time at the start of the step that failed.
        step (int): Number of that step, from 0.
        state (Tensor or None): The last state known to be finite. On the CPU it is the state at
            :attr:`time`; on other devices, where states are checked less often, it may be earlier.
    """

    # Defaults: an exception is unpickled from its message alone, then its attributes are set.
    def __init__(self, message: str, *, time: float = math.nan, step: int = 0,
                 state: Tensor | None = None) -> None:
        super().__init__(message)
        self.time, self.step, self.state = time, step, state


class StepSizeError(RuntimeError):
    """An adaptive integration needs a step below min_step, or more than max_steps steps.

    Args:
        message (str): The message.
        time, step, state, step_size: As the attributes.

    Attributes:
        time (float): Time that was reached.
        step (int): Number of accepted steps.
        state (Tensor or None): The state at :attr:`time`.
        step_size (float): The size of the step that was to follow.
    """

    def __init__(self, message: str, *, time: float = math.nan, step: int = 0,
                 state: Tensor | None = None, step_size: float = math.nan) -> None:
        super().__init__(message)
        self.time, self.step, self.state, self.step_size = time, step, state, step_size


class ExplicitTermError(ValueError):
    """The explicit term did not return a tensor like the state, or changed the state in place.

    Attributes:
        time (float or None): Time at the start of the step in which it did.
        step (int or None): Number of that step, from 0.
    """

    time: float | None = None
    step: int | None = None


@dataclass
class Stats:
    """Counts of the work of an integration, which its backward pass continues to update.

    The counts are totals of the forward and the backward pass; :attr:`forward` and :attr:`backward`
    are those of one pass.

    Attributes:
        explicit_evaluations (int): Evaluations of G in the forward pass and in recomputed steps.
        explicit_vjps (int): Vector-Jacobian products of G in the backward pass.
        explicit_repeated (int): Those of these products for which G was evaluated again, since its
            autograd graph had not been kept.
        implicit_evaluations (int): Evaluations of a nonlinear H, without the three or four that
            check it before the first step.
        implicit_jvps, implicit_vjps (int): Products with the Jacobian of a nonlinear H, and with
            its transpose.
        newton_iterations (int): Newton iterations, those of the slowest system of each stage.
        operator_products (int): Products with J or its transpose outside the linear solver.
        factorizations (int): Factorizations of I - cJ, or preparations of an iterative solver.
        factorizations_reused (int): Accepted steps after which the step size was not increased,
            although the error permitted it, so that the factorization is reused.
        linear_solves (int): Linear solves, forward and transposed; all columns count as one.
        linear_iterations (int): Iterations of linear solvers, those of the slowest column of each
            solve.
        linear_seconds (float): Time spent in linear solves, in seconds.
        worst_residual (float): Largest norm of a true residual of the iterative linear solves.
        steps_accepted (int): Accepted steps.
        steps_rejected (int): Rejected steps, whose results were discarded.
        steps_recomputed (int): Steps recomputed in the backward pass, with checkpoints.
        stopped_at (float or None): Time at which a callback ended the integration, else None.
    """

    explicit_evaluations: int = 0
    explicit_vjps: int = 0
    explicit_repeated: int = 0
    implicit_evaluations: int = 0
    implicit_jvps: int = 0
    implicit_vjps: int = 0
    newton_iterations: int = 0
    operator_products: int = 0
    factorizations: int = 0
    factorizations_reused: int = 0
    linear_solves: int = 0
    linear_iterations: int = 0
    linear_seconds: float = 0.0
    worst_residual: float = 0.0
    steps_accepted: int = 0
    steps_rejected: int = 0
    steps_recomputed: int = 0
    stopped_at: float | None = None

    def __post_init__(self) -> None:
        """Starts without counts of a finished forward pass."""
        self._forward: Stats | None = None

    def end_forward(self) -> None:
        """Marks the end of the forward pass: later counts are those of the backward pass."""
        self._forward = None
        self._forward = copy.copy(self)

    @property
    def forward(self) -> Stats:
        """The counts of the forward pass alone."""
        return dataclasses.replace(self if self._forward is None else self._forward)

    @property
    def backward(self) -> Stats:
        """The counts of the backward passes so far; ``worst_residual`` is that of all passes."""
        before, found = self.forward, Stats(worst_residual=self.worst_residual)
        for each in dataclasses.fields(Stats):
            value = getattr(self, each.name)
            if each.name not in ("worst_residual", "stopped_at"):
                setattr(found, each.name, value - getattr(before, each.name))
        return found

    @property
    def setups(self) -> int:
        """The former name of :attr:`factorizations`, deprecated."""
        return _renamed(self, "setups", "factorizations")

    @property
    def setups_saved(self) -> int:
        """The former name of :attr:`factorizations_reused`, deprecated."""
        return _renamed(self, "setups_saved", "factorizations_reused")


def located(error: SolveError | ExplicitTermError, t: float, number: int,
            u: Tensor) -> Exception:
    """The error with its time and step added, or a NonFiniteStateError if the state is the cause.
    """
    state = None if isinstance(error, ExplicitTermError) else error.state
    if state is not None and not bool(state.isfinite().all()):
        return not_finite(t, number, u)
    error.time, error.step = t, number
    error.args = (f"{error.args[0]} (In step {number}, which starts at time {t:.6g}.)",)
    return error


def not_finite(t: float, number: int, state: Tensor) -> NonFiniteStateError:
    """The error for a step whose result is not finite."""
    return NonFiniteStateError(
        f"The state stopped being finite in step {number}, which starts at time {t:.6g}. Take a "
        "smaller step_size, move the stiff part of the explicit term into the implicit operator, "
        "or look for NaN in the explicit term, and for a J that grows (a Laplacian D - A enters as "
        "A - D).",
        time=t, step=number, state=state.detach())


def _renamed(stats: Stats, old: str, new: str) -> int:
    warnings.warn(f"Stats.{old} is now Stats.{new}.", DeprecationWarning, stacklevel=3)
    found: int = getattr(stats, new)
    return found
