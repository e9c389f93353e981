r"""How large should the next step be?

A step from :math:`u_n` to :math:`u_{n+1}` with the error estimate e is accepted if

.. math::
    E = \left\Vert \frac{e_i}{\mathrm{atol}_i + \mathrm{rtol}_i
    \max(|u_{n,i}|, |u_{n+1,i}|)} \right\Vert \le 1

in a norm of :mod:`pyg_sinode.norms`. In this formula, :math:`|u_{n+1,i}|` is limited to twice the
largest magnitude in :math:`u_n`, so that a step that diverges is rejected. One step size serves the
whole state, including the batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from torch import Tensor

from .norms import maximum

SLACK = 1e-10  # the least E in a power, so that none overflows


@dataclass(frozen=True)
class Controller:
    r"""Chooses the next step size from the errors of the last three steps.

    .. math::
        h_{n+1} = h_n \left( \frac{s^k}{E_n} \right)^{\beta_1 / k}
        \left( \frac{s^k}{E_{n-1}} \right)^{\beta_2 / k}
        \left( \frac{s^k}{E_{n-2}} \right)^{\beta_3 / k}

    where s is the safety factor and k the order of the error estimate plus one. The factor
    :math:`h_{n+1} / h_n` is clipped to [:obj:`min_factor`, :obj:`max_factor`]. After a rejected
    step it depends on the error of that step only, and is at most 1. A factor in
    [1, :obj:`deadband`) is replaced by 1, so that the factorization of I - cJ is reused.

    Args:
        beta (tuple of float): The exponents :math:`\beta_1, \beta_2, \beta_3`.
        safety (float): The safety factor s, in (0, 1]. (default: :obj:`0.9`)
        min_factor (float): The smallest factor, in (0, 1). (default: :obj:`0.2`)
        max_factor (float): The largest factor, above 1. (default: :obj:`5.0`)
        deadband (float): The smallest factor, at least 1, that increases the step size.
            (default: :obj:`1.2`)
        keep (float, optional): The former name of :obj:`deadband`, deprecated.
            (default: :obj:`None`)

    Raises:
        ValueError: if an argument is out of its range.
    """

    beta: tuple[float, float, float]
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 5.0
    deadband: float = 1.2
    keep: InitVar[float | None] = None  # the former name of deadband, for one release

    def __post_init__(self, keep: float | None) -> None:
        """Raises a ValueError if an argument is out of its range."""
        if keep is not None:
            warnings.warn("keep= of a controller is now deadband=.", DeprecationWarning,
                          stacklevel=3)
            object.__setattr__(self, "deadband", keep)
        if len(self.beta) != 3 or not all(map(math.isfinite, self.beta)) or self.beta[0] <= 0:
            raise ValueError(f"Expected three finite exponents beta, the first positive (got "
                             f"{self.beta}); fill with zeros.")
        for name, value, fits in (
                ("safety in (0, 1]", self.safety, 0 < self.safety <= 1),
                ("min_factor in (0, 1)", self.min_factor, 0 < self.min_factor < 1),
                ("max_factor above 1", self.max_factor, 1 < self.max_factor < math.inf),
                ("deadband of at least 1", self.deadband, 1 <= self.deadband < math.inf)):
            if not fits:
                raise ValueError(f"Expected {name} (got {value}).")

    def factor(self, errors: Sequence[float], order: int) -> float:
        """The quotient of the next step size and the last one tried.

        Args:
            errors (sequence of float): The E of the last steps, the newest last: those of accepted
                steps, and that of the last step tried. If the last one is not finite, the factor is
                :obj:`min_factor`.
            order (int): The order of the error estimate.
        """
        if not math.isfinite(errors[-1]):
            return self.min_factor
        power = -1.0 / (order + 1)
        factors = [self.safety * math.pow(max(error, SLACK), power) for error in errors]
        if errors[-1] > 1.0:
            return min(max(factors[-1], self.min_factor), 1.0)
        factor = 1.0
        for each, beta in zip(reversed(factors), self.beta, strict=False):
            factor *= math.pow(each, beta)
        return min(max(factor, self.min_factor), self.max_factor)


@dataclass(frozen=True)
class I(Controller):  # noqa: E742
    """The integral controller: only the error of the last step decides.

    Args:
        beta (tuple of float): The exponents. (default: :obj:`(1.0, 0.0, 0.0)`)
        safety, min_factor, max_factor, deadband (float): As in :class:`Controller`.
    """

    beta: tuple[float, float, float] = (1.0, 0.0, 0.0)


@dataclass(frozen=True)
class PI(Controller):
    """The proportional-integral controller: smoother step sizes where stability limits them.

    The exponents are those of Hairer and Wanner, Solving Ordinary Differential Equations II,
    section IV.2, after Gustafsson (1991).

    Args:
        beta (tuple of float): The exponents. (default: :obj:`(0.7, -0.4, 0.0)`)
        safety, min_factor, max_factor, deadband (float): As in :class:`Controller`.
    """

    beta: tuple[float, float, float] = (0.7, -0.4, 0.0)


@dataclass(frozen=True)
class PID(Controller):
    """The proportional-integral-derivative controller.

    The exponents are those that Kennedy and Carpenter (2003, doi:10.1016/S0168-9274(02)00138-1) use
    with their additive schemes.

    Args:
        beta (tuple of float): The exponents. (default: :obj:`(0.49, -0.34, 0.10)`)
        safety, min_factor, max_factor, deadband (float): As in :class:`Controller`.
    """

    beta: tuple[float, float, float] = (0.49, -0.34, 0.10)


@dataclass(frozen=True)
class Adaptive:
    """The tolerances and limits of an adaptive integration.

    Args:
        rtol, atol (float or Tensor): Relative and absolute tolerance; tensors broadcast against the
            state.
        controller (Controller): Chooses the step sizes.
        first_step (float, optional): Size of the first step tried; estimated if None.
        min_step (float): The smallest step size.
        max_steps (int): The largest number of steps tried, rejected ones included.
        measure (callable): The norm of the quotients of error and tolerance.
            (default: :func:`pyg_sinode.norms.maximum`)
    """

    rtol: float | Tensor
    atol: float | Tensor
    controller: Controller
    first_step: float | None
    min_step: float
    max_steps: int
    measure: Callable[[Tensor], Tensor] = maximum

    def norm(self, error: Tensor, u: Tensor, following: Tensor) -> float:
        """The norm E of the error of a step; not finite if the error is not.

        Args:
            error (Tensor): The error estimate.
            u (Tensor): The state before the step.
            following (Tensor): The state after the step.
        """
        size = u.detach().abs()
        # Limited, so that a step that diverges has no large tolerance.
        most = 2.0 * size.amax() if size.numel() else 0.0
        grown = torch.minimum(following.detach().abs(), torch.as_tensor(most).to(size))
        scale = self.atol + self.rtol * torch.maximum(size, grown)
        return self._norm(error.detach() / scale)

    def _norm(self, x: Tensor) -> float:
        value: Any = self.measure(x)
        if not isinstance(value, Tensor) or value.dim() != 0:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"Expected norm to give a 0-dim tensor (got {got}); reduce over all "
                            "dimensions of the state.")
        return float(value)

    def choose_first(self, t: float, u: Tensor, sign: float, span: float, order: int,
                     rate: Callable[[float, Tensor], Tensor]) -> float:
        """The size of the first step to try.

        It is :obj:`first_step`, or else an estimate from two evaluations of the right-hand side:
        Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.4.

        Args:
            t (float): The initial time.
            u (Tensor): The initial state.
            sign (float): The direction of time, 1 or -1.
            span (float): The time to the first output, an upper bound of the result.
            order (int): The order of the error estimate.
            rate (callable): From time and state to the right-hand side G + H.
        """
        if self.first_step is not None:
            return min(self.first_step, span)
        scale = self.atol + self.rtol * u.abs()
        f = rate(t, u)
        d0, d1 = self._norm(u / scale), self._norm(f / scale)
        h = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
        h = min(h, span) if math.isfinite(h) else span
        d2 = self._norm((rate(t + sign * h, u + sign * h * f) - f) / scale) / h
        largest = max(d1, d2)
        if not math.isfinite(largest):
            return h
        other = max(1e-6, h * 1e-3) if largest <= 1e-15 else (0.01 / largest) ** (1 / (order + 1))
        return min(100.0 * h, other, span)
