"""What do the tests of nonlinear implicit terms share?"""

import torch
from cases import KnownSolution
from torch import nn

F64 = torch.float64
KNOWN = KnownSolution()


def explicit_half(t, u):
    return 0.5 * KNOWN.coupling(t, u)


def implicit_half(t, u):
    """Nonlinear and dependent on time; with the explicit half it has the known solution."""
    y = KNOWN.solution(t)
    e = u - y
    return (KNOWN.rate(t) - 0.5 * KNOWN.coupling(t, y) - 2 * e - 3 * e**3
            - (1 + t) * (torch.sin(u) - torch.sin(y)))


def both(t, u):
    return explicit_half(t, u) + implicit_half(t, u)


class Wave(nn.Module):
    """A G with a parameter."""

    def __init__(self, width=3):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width, dtype=F64))

    def forward(self, t, u):
        return torch.sin(self.weight * u.roll(1, -1) + t)


class Reaction(nn.Module):
    """A stiff cubic decay, a perceptron that mixes the last dimension, and an argument."""

    def __init__(self, width=3):
        super().__init__()
        self.mix = nn.Linear(width, width, dtype=F64)
        self.rate = nn.Parameter(torch.tensor(5.0, dtype=F64))

    def forward(self, t, u, q):
        return -self.rate * u**3 + torch.tanh(self.mix(u)) * (1 + t) - q * u


def robertson(t, u, k):
    x, y, z = u.unbind(-1)
    slow, fast, last = k[..., 0] * x, k[..., 1] * y * y, k[..., 2] * y * z
    return torch.stack([last - slow, slow - last - fast, fast], dim=-1)


RATES = torch.tensor([0.04, 3e7, 1e4], dtype=F64)


def van_der_pol(t, u):
    x, y = u.unbind(-1)
    return torch.stack([y, 1e3 * (1 - x * x) * y - x], dim=-1)


def oregonator(t, u):
    x, y, z = u.unbind(-1)
    return torch.stack([77.27 * (y + x * (1 - 8.375e-6 * x - y)), (z - (1 + x) * y) / 77.27,
                        0.161 * (x - z)], dim=-1)


# The equation, the initial state, the final time, the states there by Radau IIA of SciPy at
# rtol=1e-13, atol=1e-18 (the reference of examples/benchmarks/stiff_reactions.py, equal to nine
# digits at 1e-12), and the relative error that is allowed. Source: Hairer and Wanner, Solving
# Ordinary Differential Equations II, sections IV.1 and IV.10.
STIFF = {
    "van der Pol": (van_der_pol, [2.0, 0.0], 2000.0,
                    [1.706167732170467, -0.0008928097010248144], 1e-5),
    "Robertson": (lambda t, u: robertson(t, u, RATES), [1.0, 0.0, 0.0], 1e5,
                  [0.017865921142113158, 7.274751468442003e-08, 0.9821340061103762], 1e-5),
    "Oregonator": (oregonator, [1.0, 2.0, 3.0], 360.0,
                   [1.000814870318523, 1228.1785215498928, 132.05549428465773], 3e-5),
}
