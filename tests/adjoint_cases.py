"""What do the tests of adjoint share?"""

import torch
from torch import nn

from pyg_sinode import imex_odeint

# Two steps of different sizes, and an output after each.
TIMES, STEP_SIZE = torch.tensor([0.3, 0.5, 0.6], dtype=torch.float64), 0.2


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def assert_equal(found, expected, tolerance, what=""):
    """Each tensor agrees relative to the largest entry of the expected one."""
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        size = float(b.detach().abs().max())
        assert size > 0, (what, i)
        error = float((a - b).detach().abs().max()) / size
        assert error <= tolerance, f"{what}: relative error {error:.1e} in gradient {i}"


class Rate(nn.Module):
    """A nonlinear, coupled, time-dependent term with a parameter and an argument."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width, dtype=torch.float64))

    def forward(self, t, u, scale):
        return torch.sin(self.weight * u.roll(1, -1) + t) - scale * u * u


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Linear(2, 2, dtype=torch.float64) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, t, u):
        return torch.tanh(self.second(torch.sin(self.first(u))))


def gradients_in_both_modes(module, u0, seed=5, method="ars222", operator=None, args=()):
    """The gradients of a module's parameters, from copies that begin in the same state."""
    results, state = [], {k: v.clone() for k, v in module.state_dict().items()}
    for gradient in ("discrete", "backprop"):
        module.load_state_dict(state)
        torch.manual_seed(seed)
        result = imex_odeint(module, operator, u0, TIMES, method=method, step_size=0.1, args=args,
                             gradient=gradient)
        wanted = [*module.parameters(), *(a for a in args if a.requires_grad)]
        results.append(torch.autograd.grad(result.square().sum(), wanted))
    return results
