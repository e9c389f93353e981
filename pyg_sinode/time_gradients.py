"""How does a gradient reach the output times?

Between two of them the equation is multiplied by a rate of one, (t1 - t0) over its own value, and
its time is moved as the two are: of this equation the steps are functions of t0 and t1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .operators import LinearOperator
from .operators.base import Scaled
from .terms import Affine, Nonlinear


class Interval(NamedTuple):
    """The terms between two output times, and their further argument of G."""

    explicit: torch.nn.Module | None
    implicit: LinearOperator | Affine | None
    args: tuple[Any, ...]


def between(explicit: Callable[..., Tensor] | None, implicit: LinearOperator | Affine | None,
            args: tuple[Any, ...], ends: Tensor, u: Tensor) -> Interval:
    """The terms between two times, a tensor of both, for a state like u."""
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
    """Refuses a gradient at the times where steps are not functions of the times around them."""
    why = ("steps are adaptive" if adaptive else "outputs are interpolated by dense=True" if dense
           else "a multistep scheme takes one step size throughout" if multistep
           else "a Nonlinear is integrated" if isinstance(implicit, Nonlinear)
           else "a callback may end the integration" if callback is not None else None)
    if why is not None:
        raise ValueError("Expected t without requires_grad (got one that requires a gradient): no "
                         f"gradient reaches the times where {why}; pass t.detach(), or scale G and "
                         "J instead.")


class OnClock(torch.nn.Module):
    """A function of time, times the rate of a clock that runs between two times.

    Args:
        fn (callable or torch.nn.Module): The function, called with the time first.
        start (float): The time at which the clock starts.
    """

    def __init__(self, fn: Callable[..., Any], start: float) -> None:
        super().__init__()
        self.fn, self.start = fn, start

    def forward(self, t: Tensor, *inputs: Any) -> Any:
        """The function's value with its inputs, of which the last are the two times."""
        *others, ends = inputs
        rate = rate_of(ends)
        # Numbers that are zero, and move as the times do.
        moved = ends[0] - ends[0].detach() + (rate - 1.0) * (t.to(ends.dtype) - self.start)
        value = self.fn(t + moved.to(t), *others)
        return rate.to(t) * value


def rate_of(ends: Tensor) -> Tensor:
    """The number one, as a function of two times."""
    length = ends[1] - ends[0]
    return length / length.detach()
