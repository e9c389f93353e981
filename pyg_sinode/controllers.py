r"""How large should the next step be?

With the error estimate e of each component, a step is accepted where

.. math::
    E = \left\Vert \frac{e_i}{\mathrm{atol}_i + \mathrm{rtol}_i
    \max(|u_{n,i}|, |u_{n+1,i}|)} \right\Vert

in a norm of :mod:`pyg_sinode.norms` is at most 1, where the second magnitude counts up to twice the
largest entry of :math:`u_n`. One step size serves the whole state, batch
included.
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

SLACK = 1e-10  # the E that counts as no error, so that no power of it overflows


@dataclass(frozen=True)
class Controller:
    r"""Chooses the next step size from the errors of the last three steps.

    .. math::
        h_{n+1} = h_n \left( \frac{s^k}{E_n} \right)^{\beta_1 / k}
        \left( \frac{s^k}{E_{n-1}} \right)^{\beta_2 / k}
        \left( \frac{s^k}{E_{n-2}} \right)^{\beta_3 / k}

    with s the safety factor and k the order of the error estimate plus one. The factor is clipped
    to [:obj:`min_factor`, :obj:`max_factor`], and at most 1 after a rejection, where only the error
    of the rejected step counts. In [1, :obj:`deadband`) it becomes 1, so that the factorization is
    reused.

    Args:
        beta (tuple of float): The exponents :math:`\beta_1, \beta_2, \beta_3`.
        safety (float): The factor s, in (0, 1]. (default: :obj:`0.9`)
        min_factor (float): The smallest factor, in (0, 1). (default: :obj:`0.2`)
        max_factor (float): The largest factor, above 1. (default: :obj:`5.0`)
        deadband (float): The factor below which the step size stays, at least 1.
            (default: :obj:`1.2`)

    Raises:
        ValueError: if a number is out of its range.
    """

    beta: tuple[float, float, float]
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 5.0
    deadband: float = 1.2
    keep: InitVar[float | None] = None  # the old name of deadband, for one release

    def __post_init__(self, keep: float | None) -> None:
        """Refuses numbers out of their range."""
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
        """The factor to the next step size from the errors E so far, the newest last.

        Args:
            errors (sequence of float): Those of the accepted steps, then that of the last one; one
                that is not finite gives :obj:`min_factor`.
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
    """The integral controller: the step that would have made the last error just acceptable."""

    beta: tuple[float, float, float] = (1.0, 0.0, 0.0)


@dataclass(frozen=True)
class PI(Controller):
    """The proportional-integral controller, smoother where stability limits the step.

    Its exponents are 0.7 and -0.4: Hairer and Wanner, Solving Ordinary Differential Equations II,
    section IV.2, after Gustafsson (1991).
    """

    beta: tuple[float, float, float] = (0.7, -0.4, 0.0)


@dataclass(frozen=True)
class PID(Controller):
    """The controller with proportional, integral and derivative terms.

    Its exponents are 0.49, -0.34 and 0.10, which Kennedy and Carpenter (2003,
    doi:10.1016/S0168-9274(02)00138-1) use with their additive schemes.
    """

    beta: tuple[float, float, float] = (0.49, -0.34, 0.10)


@dataclass(frozen=True)
class Adaptive:
    """All that an adaptive integration is to keep to.

    Args:
        rtol, atol (float or Tensor): Tolerances; tensors broadcast against the state.
        controller (Controller): Chooses the step sizes.
        first_step (float, optional): Size of the first step tried; chosen if None.
        min_step (float): Size below which no step may fall.
        max_steps (int): Number of steps, rejected ones included, after which it gives up.
        measure (callable): The norm of the quotients of error and scale.
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
        """The norm E of an error in a step from u; NaN or infinite if anything in it is."""
        size = u.detach().abs()
        # A step that blows up is not to be measured by what it blew up to.
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
        """A size for the first step: Hairer, Norsett and Wanner, Solving Ordinary Differential
        Equations I, section II.4. It evaluates the rate of change twice.
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
