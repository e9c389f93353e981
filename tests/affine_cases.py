"""What do the tests of affine share?"""

import pytest
import torch
from cases import KnownSolution, double, times
from torch import nn

from pyg_sinode import imex_odeint
from pyg_sinode.operators import Dense
from pyg_sinode.schemes import MULTISTEP, RUNGE_KUTTA
from pyg_sinode.terms import Affine

ALL = {**RUNGE_KUTTA, **MULTISTEP}
every_method = pytest.mark.parametrize("method", ALL)
every_gradient = pytest.mark.parametrize("gradient", ["discrete", "backprop"])


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


class Manufactured(KnownSolution):
    """u' = G(t, u) + a(t) J u + f(t), coupled and not stiff, with a solution that is known.

    Args:
        explicit (bool): Whether there is a G, nonlinear and time-dependent.
    """

    J = double([[-1.0, 0.5, 0.3], [0.4, -0.5, -0.8], [0.2, 0.9, -1.5]])

    def __init__(self, explicit=True, dtype=torch.float64):
        self.explicit, self.matrix = explicit, self.J.to(dtype)

    def scale(self, t):
        return 1 + torch.sin(2 * t + 0.3) / 2

    def forcing(self, t):
        value = self.rate(t) - self.scale(t) * (self.solution(t) @ self.matrix.T)
        return value - self.coupling(t, self.solution(t)) if self.explicit else value

    def run(self, method, t, **kwargs):
        part = Affine(Dense(self.matrix), self.forcing, scale=self.scale)
        t = t.to(self.matrix.dtype)
        return imex_odeint(self.coupling if self.explicit else None, part, self.solution(t[0]), t,
                           method=method, **kwargs)

    def error(self, method, steps, start=0.0, end=1.0):
        result = self.run(method, times(start, end), step_size=abs(end - start) / steps)
        return float((result[-1] - self.solution(double(end))).abs().max())


DENSE = [name for name, s in RUNGE_KUTTA.items() if s.interpolant is not None]
TIMES = times(0.3, 0.5, 0.7, 0.9)


class Forcing(nn.Module):
    def __init__(self):
        super().__init__()
        self.amplitude = nn.Parameter(double([0.5, -1.0, 0.8]))
        self.frequency = nn.Parameter(double(1.3))

    def forward(self, t):
        return self.amplitude * torch.sin(self.frequency * t)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(double(0.4))

    def forward(self, t):
        return 1 + torch.sin(self.weight * t)


def assert_equal(found, expected, tolerance):
    """Each tensor agrees relative to the largest entry of the expected one."""
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        size = float(b.abs().max())
        assert a.shape == b.shape
        assert size > 1e-3, i
        assert float((a - b).abs().max()) / size <= tolerance, i


LEAF = double([1.0, -0.7, 0.3])
