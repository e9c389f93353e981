"""What does an integration report, and how does it fail?"""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass

from torch import Tensor

from ..operators.results import SolveError


class NonFiniteStateError(RuntimeError):
    """A state that stopped being finite.

    Attributes:
        time (float): Time at the start of the step that failed.
        step (int): Number of that step, from 0.
        state (Tensor or None): The last state known to be finite; on the CPU the one at that time.
    """

    # Defaults, since an exception is unpickled from its message alone and then given the rest.
    def __init__(self, message: str, *, time: float = math.nan, step: int = 0,
                 state: Tensor | None = None) -> None:
        super().__init__(message)
        self.time, self.step, self.state = time, step, state


class StepSizeError(RuntimeError):
    """An adaptive integration that cannot go on: its steps became too small, or too many.

    Attributes:
        time (float): Time that was reached.
        step (int): Number of steps accepted.
        state (Tensor or None): The state at that time.
        step_size (float): The last step size tried.
    """

    def __init__(self, message: str, *, time: float = math.nan, step: int = 0,
                 state: Tensor | None = None, step_size: float = math.nan) -> None:
        super().__init__(message)
        self.time, self.step, self.state, self.step_size = time, step, state, step_size


class ExplicitTermError(ValueError):
    """A value of the explicit term that cannot be a rate of change of the state.

    Attributes:
        time (float or None): Time at the start of the step in which it came, set by the loop.
        step (int or None): Number of that step, from 0.
    """

    time: float | None = None
    step: int | None = None


@dataclass
class Stats:
    """What an integration did; the backward pass goes on filling it.

    The numbers are of both passes together; those of the backward pass alone are in
    :attr:`backward`, those of the forward pass in :attr:`forward`.

    Attributes:
        explicit_evaluations: Evaluations of G in the forward pass, and in steps made again.
        explicit_vjps: Vector-Jacobian products of G in the backward pass.
        explicit_repeated: Those of them that had to evaluate G again, for want of its graph.
        implicit_evaluations: Evaluations of a nonlinear H, but for the three or four that check it
            before the first step.
        implicit_jvps, implicit_vjps: Products with its derivative and with the transpose.
        newton_iterations: Newton's iterations, those of the slowest system of each stage.
        operator_products: Products with J or its transpose outside the linear solver.
        factorizations: Factorizations of I - cJ, and what iterative solvers prepare in their place.
        factorizations_reused: Accepted steps whose size stayed although the error allowed a larger
            one, so that the factorization is reused.
        linear_solves: Linear systems solved, forward and transposed; all columns count as one.
        linear_iterations: Krylov iterations, those of the slowest column of each solve.
        linear_seconds: Time spent in linear solves, in seconds.
        worst_residual: Largest true residual norm of a Krylov solve.
        steps_accepted: Steps made.
        steps_rejected: Steps made and not used.
        steps_recomputed: Steps that the backward pass made again for want of their stages.
        stopped_at: Time at which a callback ended the integration, else None.
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
        """Has no forward pass to tell apart yet."""
        self._forward: Stats | None = None

    def end_forward(self) -> None:
        """Notes that all further work is that of the backward pass."""
        self._forward = dataclasses.replace(self)

    @property
    def forward(self) -> Stats:
        """The numbers of the forward pass alone."""
        return dataclasses.replace(self if self._forward is None else self._forward)

    @property
    def backward(self) -> Stats:
        """The numbers of the backward passes so far; the largest residual is that of both."""
        before, found = self.forward, Stats(worst_residual=self.worst_residual)
        for each in dataclasses.fields(Stats):
            value = getattr(self, each.name)
            if each.name not in ("worst_residual", "stopped_at"):
                setattr(found, each.name, value - getattr(before, each.name))
        return found

    @property
    def setups(self) -> int:
        """The old name of factorizations, for one release."""
        return _renamed(self, "setups", "factorizations")

    @property
    def setups_saved(self) -> int:
        """The old name of factorizations_reused, for one release."""
        return _renamed(self, "setups_saved", "factorizations_reused")


def located(error: SolveError | ExplicitTermError, t: float, number: int,
            u: Tensor) -> Exception:
    """The error with its time and step, or the true cause where the state was not finite."""
    state = None if isinstance(error, ExplicitTermError) else error.state
    if state is not None and not bool(state.isfinite().all()):
        return not_finite(t, number, u)
    error.time, error.step = t, number
    error.args = (f"{error.args[0]} (In step {number}, which starts at time {t:.6g}.)",)
    return error


def not_finite(t: float, number: int, state: Tensor) -> NonFiniteStateError:
    """The error of a step whose result is not finite."""
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
