"""How is the network of a layer integrated by another solver, with the same parameters and G?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from attention_iteration import PlainAttention
from measuring import Work
from torch import Tensor, nn
from torch_geometric.utils import add_remaining_self_loops
from torchdiffeq import odeint

from pyg_sinode import SINODE, imex_odeint
from pyg_sinode.operators import LinearOperator

Solve = Callable[["Equation", Tensor, float, Work], Tensor]
# GRAND's code multiplies 1e-9 and 1e-7 by the tol_scale that its best parameters have for Cora.
GRAND_TOLERANCE = {"rtol": 821.977e-9, "atol": 821.977e-7}


class Equation(NamedTuple):
    """du/dt = G(t, u, *args) + J u."""

    explicit: nn.Module
    implicit: LinearOperator
    args: tuple[Any, ...] = ()


def imex(equation: Equation, u0: Tensor, time: float, work: Work, **options: Any) -> Tensor:
    """The state at a time by :func:`pyg_sinode.imex_odeint`."""
    work.check_time()
    G, J, args = equation
    states, stats = imex_odeint(G, J, u0, torch.tensor([0.0, time], dtype=torch.float64),
                                args=args, return_stats=True, **options)
    work.parts.append(stats)
    return states[-1]


def rk4(equation: Equation, u0: Tensor, time: float, work: Work, steps: int) -> Tensor:
    """The state at a time by torchdiffeq's RK4 in equal steps, differentiated by autograd."""
    grid = torch.linspace(0, time, steps + 1, dtype=torch.float64)
    return odeint(whole(equation, work), u0, grid[[0, -1]], method="rk4",
                  options={"grid_constructor": lambda f, y, t: grid})[-1]


def dopri5(equation: Equation, u0: Tensor, time: float, work: Work, rtol: float, atol: float
           ) -> Tensor:
    """The state at a time by torchdiffeq's Dopri5, differentiated by autograd."""
    t = torch.tensor([0.0, time], dtype=torch.float64)
    return odeint(whole(equation, work), u0, t, method="dopri5", rtol=rtol, atol=atol)[-1]


def whole(equation: Equation, work: Work) -> Callable[[Tensor, Tensor], Tensor]:
    """G + J u as one function of the time and the state, counted."""
    G, J, args = equation
    return work.counted(lambda t, u: G(t, u, *args) + J.mv(u))


class Network(nn.Module):
    """The network :class:`~pyg_sinode.SINODE` with any solver in place of its layer's own.

    Args:
        net: Its encoder, equation and decoder are used.
        solve: The solver.
        attention: "fused": the layer's G; "plain": the same G by gather and scatter, for
            ``implicit="decay"`` and a graph without weights.
    """

    def __init__(self, net: SINODE, solve: Solve, attention: str = "fused") -> None:
        super().__init__()
        self.net, self.solve, self.work = net, solve, Work()
        self.plain = PlainAttention(net.conv) if attention == "plain" else None

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """The class scores of each node."""
        net = self.net
        u0 = net.encode(x)
        u = self.solve(self.equation(u0, edge_index), u0, net.conv.time, self.work)
        return net.decode(u)

    def equation(self, u0: Tensor, edge_index: Tensor) -> Equation:
        """The layer's, with its own attention or the plain one."""
        G, J, _, args = self.net.conv.equation(u0, edge_index)
        if self.plain is None:
            return Equation(G, J, args)
        loops, _ = add_remaining_self_loops(edge_index, num_nodes=u0.size(0))
        return Equation(PlainTerm(self.plain), J, (u0, loops))


class PlainTerm(nn.Module):
    """The plain attention, called as an explicit term."""

    def __init__(self, attention: PlainAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, t: Tensor, u: Tensor, x0: Tensor, edge_index: Tensor) -> Tensor:
        """G = alpha A(u) u + beta x0."""
        return self.attention(u, edge_index, x0)
