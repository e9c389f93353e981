"""How do the output times receive a gradient?

On each interval between two output times t0 and t1, the equation is multiplied by the rate
(t1 - t0) / (t1 - t0).detach(), which is 1, and its time is shifted by zeros that depend on t0 and
t1. The steps are then differentiable functions of t0 and t1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .operators import LinearOperator
from .operators.scaled import Scaled
from .terms import Affine, Nonlinear


class Interval(NamedTuple):
    """The terms of the equation between two output times, and the further arguments of G."""

    explicit: torch.nn.Module | None
    implicit: LinearOperator | Affine | None
    args: tuple[Any, ...]


def between(explicit: Callable[..., Tensor] | None, implicit: LinearOperator | Affine | None,
            args: tuple[Any, ...], ends: Tensor, u: Tensor) -> Interval:
    """The terms of the equation between two output times.

    Args:
        explicit, implicit, args: As in :func:`pyg_sinode.imex_odeint`.
        ends (Tensor): The two times.
        u (Tensor): A tensor with the dtype and device of the state.
    """
    start = float(ends[0].detach())
    G = None if explicit is None else OnClock(explicit, start)
    J = implicit
    if isinstance(J, LinearOperator):
        J = Scaled(J, rate_of(ends).to(u))
    elif J is not None:
        J = J.wrapped(lambda fn: OnClock(fn, start), ends)
    return Interval(G, J, args if G is None else (*args, ends))


def refuse_moving(*, adaptive: bool, dense: bool, multistep: bool, implicit: Any,
                  callback: Any) -> None:
    """Refuses a gradient of the times where the steps are not functions of two output times."""
    why = ("steps are adaptive" if adaptive else "outputs are interpolated by dense=True" if dense
           else "a multistep scheme takes one step size throughout" if multistep
           else "a Nonlinear is integrated" if isinstance(implicit, Nonlinear)
           else "a callback may end the integration" if callback is not None else None)
    if why is not None:
        raise ValueError("Expected t without requires_grad (got one that requires a gradient): no "
                         f"gradient reaches the times where {why}; pass t.detach(), or scale G and "
                         "J instead.")


class OnClock(torch.nn.Module):
    """A function of time as it enters the equation between two output times: with rate and shift.

    Args:
        fn (callable or torch.nn.Module): The function, whose first argument is the time.
        start (float): The first of the two times.
    """

    def __init__(self, fn: Callable[..., Any], start: float) -> None:
        super().__init__()
        self.fn, self.start = fn, start

    def forward(self, t: Tensor, *inputs: Any) -> Any:
        """The value of the function times the rate; the last input is the tensor of both times."""
        *others, ends = inputs
        rate = rate_of(ends)
        # Zero, with the derivative of the shifted time with respect to the two times.
        moved = ends[0] - ends[0].detach() + (rate - 1.0) * (t.to(ends.dtype) - self.start)
        value = self.fn(t + moved.to(t), *others)
        return rate.to(t) * value


def rate_of(ends: Tensor) -> Tensor:
    """The number 1 as a differentiable function of two times."""
    length = ends[1] - ends[0]
    return length / length.detach()
