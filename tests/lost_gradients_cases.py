"""What do the tests of lost gradients share?"""

import pytest
from cases import double

from pyg_sinode import imex_odeint
from pyg_sinode.operators import (
    LinearOperator,
)

T = double([0.0, 0.5, 1.0])
U0 = double([0.3, -0.4])
MATRIX = double([[-1.0, 0.5], [0.2, -2.0]])
both_modes = pytest.mark.parametrize("gradient", ["discrete", "backprop"])


def solve(explicit, implicit=None, u0=U0, **options):
    return imex_odeint(explicit, implicit, u0, T, **{"step_size": 0.25, **options})


class Own(LinearOperator):
    """An operator of a user's own, which may hide a tensor."""

    dims = (-1,)

    def __init__(self, matrix, hidden=None):
        self.tensors, self.hidden = (matrix,), hidden

    def mv(self, u):
        product = u @ self.tensors[0].t()
        return product if self.hidden is None else product * self.hidden
