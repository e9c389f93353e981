"""What do the tests of multistep share?"""

import pytest
import torch
from cases import KnownSolution, double, times

from pyg_sinode import imex_odeint, operators, terms
from pyg_sinode.schemes import (
    MULTISTEP,
)

every_scheme = pytest.mark.parametrize("scheme", MULTISTEP.values(), ids=MULTISTEP)
every_method = pytest.mark.parametrize("method", MULTISTEP)


class Manufactured(KnownSolution):
    """u' = G(t, u) + J u, nonlinear, non-autonomous and coupled, with a solution that is known.

    Args:
        parts: Whether both terms are there, or G alone, or J alone (with the forcing beside it).
    """

    J = double([[-2.0, 1.0, 0.3], [0.4, -1.0, -0.8], [0.2, 0.9, -3.0]])

    def __init__(self, parts="both", dtype=torch.float64):
        self.parts, self.matrix = parts, self.J.to(dtype)

    def forcing(self, t):
        return self.rate(t) - self.solution(t) @ self.matrix.T

    def __call__(self, t, u):
        s = self.solution(t)
        off = self.coupling(t, u) - self.coupling(t, s)
        return (self.forcing(t) if self.parts == "both" else self.rate(t)) + off

    def run(self, method, t, **kwargs):
        explicit = None if self.parts == "implicit" else self
        implicit = {"both": operators.Dense(self.matrix), "explicit": None,
                    "implicit": terms.Affine(operators.Dense(self.matrix), self.forcing)}
        t = t.to(self.matrix.dtype)
        return imex_odeint(explicit, implicit[self.parts], self.solution(t[0]), t, method=method,
                           **kwargs)

    def error(self, method, steps, start=0.0, end=1.0):
        result = self.run(method, times(start, end), step_size=abs(end - start) / steps)
        return float((result[-1] - self.solution(double(end))).abs().max())
