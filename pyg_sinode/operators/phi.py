r"""What are the values of the phi functions of exponential integrators?

.. math::
    \varphi_0(z) = e^z, \qquad
    \varphi_k(z) = \int_0^1 e^{(1 - \theta) z} \frac{\theta^{k-1}}{(k - 1)!}\, d\theta
    = \sum_{m \ge 0} \frac{z^m}{(m + k)!}

Source: Hochbruck and Ostermann, "Exponential integrators" (2010), doi:10.1017/S0962492910000048,
section 2.1. The recurrence :math:`z \varphi_{k+1}(z) = \varphi_k(z) - 1/k!` is used upwards for
large z and downwards for small z, so that no digits cancel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[tuple[int, float], float]
NEAR = 2.0  # the magnitude of z up to which the Taylor series is used
TERMS = 30  # its number of terms; the next ones are below 1e-24 at that magnitude


def phi_functions(z: Tensor, count: int) -> list[Tensor]:
    r"""The values :math:`\varphi_0(z), \ldots, \varphi_{count - 1}(z)`, differentiable.

    Args:
        z (Tensor): Numbers, real or complex; they should be in double precision.
        count (int): The number of functions.
    """
    near = z.abs() <= NEAR
    small = torch.where(near, z, torch.zeros_like(z))
    large = torch.where(near, torch.ones_like(z), z)  # no division by zero, in the gradient either
    found, value = [], z.exp()
    for k, series in enumerate(_series(small, count)):
        found.append(torch.where(near, series, value))
        value = (value - 1.0 / math.factorial(k)) / large
    return found


def phi_matrices(matrix: Tensor, count: int) -> list[Tensor]:
    r"""The matrices :math:`\varphi_0(M), \ldots, \varphi_{count - 1}(M)`, differentiable.

    The matrix is halved s times until its norm is at most 1; :math:`\varphi_k(2 M) = 2^{-k} (e^M
    \varphi_k(M) + \sum_{j=1}^k \varphi_j(M) / (k - j)!)` then doubles it s times. No eigenvectors
    are needed: multiple eigenvalues are no exception, and neither is their derivative.

    Args:
        matrix (Tensor): A square matrix.
        count (int): The number of functions.
    """
    norm = float(torch.linalg.matrix_norm(matrix.detach(), 1)) if matrix.numel() else 0.0
    halvings = max(0, math.ceil(math.log2(norm))) if norm > 1.0 and math.isfinite(norm) else 0
    identity = torch.eye(matrix.size(0), dtype=matrix.dtype, device=matrix.device)
    found = list(_series_of_matrix(matrix / 2**halvings, count, identity))
    for _ in range(halvings):
        exponential, doubled = found[0], [found[0] @ found[0]]
        for k in range(1, count):
            rest = [found[j] / math.factorial(k - j) for j in range(1, k + 1)]
            doubled.append((exponential @ found[k] + sum(rest[1:], rest[0])) / 2**k)
        found = doubled
    return found


class PhiSums:
    r"""Several sums :math:`\sum w\, \varphi_k(c h z)`, times h or 1, as functions of z.

    Args:
        sums (sequence): For each a dictionary ``{(k, c): w}``.
        h (float): The step size.
        factors (sequence of float): The factor in front of each, h or 1.
    """

    def __init__(self, sums: Sequence[Weights], h: float, factors: Sequence[float]) -> None:
        self.sums, self.h, self.factors = list(sums), h, list(factors)
        self.unit = 1.0 / abs(h)  # the radius on which they vary
        self.highest: dict[float, int] = {}  # for each c, the highest k
        for each in self.sums:
            for k, c in each:
                self.highest[c] = max(k, self.highest.get(c, 0))

    def __call__(self, z: Tensor) -> Tensor:
        """The values at numbers z, along a new first dimension."""
        values = {c: phi_functions(c * self.h * z, k + 1) for c, k in self.highest.items()}
        return torch.stack([self._sum(each, factor, values, torch.zeros_like(z))
                            for each, factor in zip(self.sums, self.factors, strict=True)])

    def of_matrix(self, matrix: Tensor) -> Tensor:
        """The values at a matrix, along a new first dimension."""
        values = {c: phi_matrices(c * self.h * matrix, k + 1) for c, k in self.highest.items()}
        return torch.stack([self._sum(each, factor, values, torch.zeros_like(matrix))
                            for each, factor in zip(self.sums, self.factors, strict=True)])

    @staticmethod
    def _sum(each: Weights, factor: float, values: dict[float, list[Tensor]], zero: Tensor
             ) -> Tensor:
        for (k, c), w in each.items():
            zero = zero + (w * factor) * values[c][k]
        return zero


def _series(z: Tensor, count: int) -> list[Tensor]:
    """The functions of small numbers: the series of the last one, and the recurrence downwards."""
    last = count - 1
    value = torch.full_like(z, 1.0 / math.factorial(last + TERMS))
    for m in reversed(range(TERMS)):
        value = value * z + 1.0 / math.factorial(last + m)
    found = [value]
    for k in reversed(range(last)):
        found.append(found[-1] * z + 1.0 / math.factorial(k))
    return found[::-1]


def _series_of_matrix(matrix: Tensor, count: int, identity: Tensor) -> list[Tensor]:
    """The functions of a matrix of norm 1 at most."""
    last, value = count - 1, identity / float(math.factorial(count + 17))
    for m in reversed(range(18)):  # the next term is below 1e-16
        value = value @ matrix + identity / float(math.factorial(last + m))
    found = [value]
    for k in reversed(range(last)):
        found.append(found[-1] @ matrix + identity / math.factorial(k))
    return found[::-1]
