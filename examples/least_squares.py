"""How are few parameters fitted more precisely than by a gradient? The Levenberg-Marquardt method.

For grid_learning.py. The coefficients of a flux are nearly dependent on smooth states: the least
and the greatest effect of a change differ by 1e8. A method that sees gradients only squares that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

DAMPINGS = [10.0**-k for k in range(0, 25, 2)]
CHANGE = 1e-3  # of a parameter, for the derivative by it
RANK = 1e-12  # smaller effects, relative to the largest, are rounding


class LevenbergMarquardt(torch.optim.Optimizer):
    r"""Minimizes the mean square of residuals r(p) by damped Gauss-Newton steps.

    A step takes the derivatives of all residuals by all parameters, by central differences, which
    are two evaluations for each parameter; so it is for few parameters, and for float64. They are
    scaled to columns of norm 1, and with the singular values s of the result

    .. math::
        dp = -V\, \mathrm{diag}(s / (s^2 + d\, s_0^2))\, U^T r

    is tried with dampings d from 1 to 1e-24; the best is taken, if it is better than none.

    Args:
        parameters: Of the model, in one group.
        failures: Exceptions of an evaluation at parameters that are merely tried.
    """

    def __init__(self, parameters: Iterable[nn.Parameter],
                 failures: tuple[type[Exception], ...] = ()) -> None:
        super().__init__(parameters, {"lr": 1.0})
        self.failures = failures

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step; the mean square before it.

        Args:
            closure: Gives the residuals at the parameters as they are.
        """
        parameters = self.param_groups[0]["params"]
        start, residual = parameters_to_vector(parameters), closure()
        value = residual.square().mean()

        def at(change: Tensor) -> Tensor:
            vector_to_parameters(start + change, parameters)
            return closure()

        columns = []
        for i in range(start.numel()):
            change = torch.zeros_like(start)
            change[i] = CHANGE
            columns.append((at(change) - at(-change)) / (2 * CHANGE))
        steps = _steps(torch.stack(columns, dim=1), residual)
        best, least = torch.zeros_like(start), float(value)
        for damping in DAMPINGS:
            change = steps(damping)
            try:
                found = float(at(change).square().mean())
            except self.failures:
                continue
            if found < least:
                best, least = change, found
        vector_to_parameters(start + best, parameters)
        return value


def _steps(jacobian: Tensor, residual: Tensor) -> Callable[[float], Tensor]:
    """The step of each damping."""
    size = torch.linalg.vector_norm(jacobian, dim=0)
    size = torch.where(size > 0, size, math.inf)
    q, r = torch.linalg.qr(jacobian / size)
    u, s, vh = torch.linalg.svd(r)
    target = -(u.mT @ (q.mT @ residual))
    target = torch.where(s > RANK * s[0], target, 0.0)
    return lambda damping: (vh.mT @ (target * s / (s.square() + damping * s[0] ** 2))) / size
