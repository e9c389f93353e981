"""What does an integration report, and how does it fail?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


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
        time (float or None): Time at the start of the step in which it came, set by the march.
        step (int or None): Number of that step, from 0.
    """

    time: float | None = None
    step: int | None = None


@dataclass
class Stats:
    """What an integration did; the backward pass goes on filling it.

    Attributes:
        explicit_evaluations: Evaluations of G in the forward pass, and in steps made again.
        explicit_vjps: Vector-Jacobian products of G in the backward pass, each with the
            re-evaluation that it needs.
        operator_products: Products with J or its transpose outside the linear solver.
        setups: Factorisations, or other set-ups, of I - cJ.
        setups_saved: Accepted steps whose size was kept although the error allowed a larger one,
            so that the set-up serves again.
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
    operator_products: int = 0
    setups: int = 0
    setups_saved: int = 0
    linear_solves: int = 0
    linear_iterations: int = 0
    linear_seconds: float = 0.0
    worst_residual: float = 0.0
    steps_accepted: int = 0
    steps_rejected: int = 0
    steps_recomputed: int = 0
    stopped_at: float | None = None
