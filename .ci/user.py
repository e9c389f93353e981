"""What a user writes: run and type-checked with the installed package, away from the checkout."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_sinode import SINODE, SINODEConv, Stats, imex_odeint, operators, solvers, terms
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky

x, edge_index = torch.randn(4, 16), torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
conv = SINODEConv(16, 32, heads=4, step_size=1.0)
y: Tensor = conv(x, edge_index)
y.sum().backward()  # type: ignore[no-untyped-call]  # torch's own
network = SINODE(16, 8, 3)
print(network(x, edge_index).shape)


def reaction(t: Tensor, u: Tensor) -> Tensor:
    """G."""
    return u * (1 - u)


u0 = torch.rand(4, 8)
J = operators.ScaledIdentity(-1.0)
times = torch.linspace(0, 1, 3)
plain: Tensor = imex_odeint(reaction, J, u0, times, step_size=0.1, solver=solvers.CG(rtol=1e-5))
pair: tuple[Tensor, Stats] = imex_odeint(reaction, terms.Affine(J, lambda t: torch.sin(t)), u0,
                                         times, return_stats=True)
print(plain.shape, pair[1].steps_accepted)

grid = PeriodicGrid(64, 22.0)
G, linear, initial = kuramoto_sivashinsky(grid)
u = imex_odeint(G, linear, initial(2), times, method="imex_rk4", step_size=0.2)
print(u.shape)
