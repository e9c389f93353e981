"""What is an equation on a grid, and which numbers may it have?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators import LinearOperator


class Equation(NamedTuple):
    """An equation du/dt = G(t, u) + J u on a grid, for :func:`pyg_sinode.imex_odeint`.

    Attributes:
        explicit (torch.nn.Module): The explicit, nonlinear term G.
        implicit (LinearOperator): The operator J of the stiff, linear term.
        initial (callable): ``initial(count, generator=None)`` returns random initial states of
            shape (count, \\*shape), or (count, fields, \\*shape) of several fields, in float64.
    """

    explicit: torch.nn.Module
    implicit: LinearOperator
    initial: Callable[..., Tensor]


def check_positive(value: float, name: str) -> None:
    """Raises a ValueError unless a number is positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"Expected a positive, finite {name} (got {value}).")


def check_not_negative(value: float, name: str) -> None:
    """Raises a ValueError unless a number is finite and at least zero."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"Expected a finite {name} of at least 0 (got {value}).")
