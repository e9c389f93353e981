"""Which networks stand for the nonlinear term of an equation on a grid? Perceptrons and a flux.

And what makes a trained perceptron commute with shifts: a mean over some.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from pyg_sinode.grid import PeriodicGrid


class GridMLP(nn.Module):
    """G(u) by a multilayer perceptron of the whole state, four hidden layers as in the paper."""

    def __init__(self, num_points: int, width: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        widths = [num_points, width, width, width, width]
        layers = [layer for a, b in itertools.pairwise(widths)
                  for layer in (nn.Linear(a, b), activation())]
        last = nn.Linear(width, num_points)
        with torch.no_grad():  # starts near G = 0, the linear equation
            last.weight.mul_(0.1)
            last.bias.zero_()
        self.net = nn.Sequential(*layers, last)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.net(u)


class FluxMLP(nn.Module):
    """G(u) from fluxes F between neighbouring nodes, (F[i] - F[i + 1]) / h, by a perceptron.

    It sees the whole state, as GridMLP does. The mean of u is conserved.
    """

    def __init__(self, grid: PeriodicGrid, width: int) -> None:
        super().__init__()
        # Smooth: with ReLU the first steps of Burgers are as good and later ones much worse.
        self.flux = GridMLP(grid.num_nodes, width, nn.GELU)
        self.spacing = grid.spacing[0]

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        flux = self.flux(t, u)
        return (flux - flux.roll(-1, dims=-1)) / self.spacing


class Averaged(nn.Module):
    """The mean of a term over shifts along the grid, evenly apart, and every other one reflected.

    The true term commutes with them and a perceptron does so only about: the part of its error that
    does not is averaged out, at the price of as many evaluations as there are shifts.
    """

    def __init__(self, term: nn.Module, num_points: int, turns: int) -> None:
        super().__init__()
        self.term = term
        sign = 1 - 2 * (torch.arange(turns) % 2)
        shift = torch.arange(turns) * num_points // turns
        at = (torch.arange(num_points) * sign[:, None] + shift[:, None]) % num_points
        self.register_buffer("at", at)
        self.register_buffer("back", at.argsort(dim=1))
        self.register_buffer("sign", sign)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        total = torch.zeros_like(u)
        for at, back, sign in zip(self.at, self.back, self.sign, strict=True):
            total += sign * self.term(t, sign * u[..., at])[..., back]
        return total / len(self.at)


class GridFlux(MessagePassing):
    r"""G(u) by a learned flux between neighbouring nodes, :math:`v_i \mathrel{+}= F_{i - 1/2} -
    F_{i + 1/2}`, once or in several rounds from v = u, and :math:`G = (v - u) / s`.

    The flux between nodes i and i + 1 is made of the values z at the nodes i - r + 1 to i + r, by
    learned coefficients: a linear part and a bilinear one of products of neighbours; and, where
    :obj:`hidden` is not 0, a perceptron with a second output that gates diffusion between the two
    nodes. It conserves the mean, commutes with translations, and with the same weights runs on any
    grid. Several rounds carry values further than the stencil reaches.

    Args:
        grid (PeriodicGrid): The grid, of one dimension.
        radius (int): The r: how many nodes the flux sees on each side.
        hidden (int): Width of the perceptron; 0 for none.
        rounds (int): How often the message passing is repeated.
        scale (float, optional): The s, of the dimension of a time step; None: the distance of the
            nodes, for a flux that does not depend on the grid.
        stride (int): How many nodes of the grid there are from one neighbour to the next.
    """

    def __init__(self, grid: PeriodicGrid, radius: int = 3, hidden: int = 0, *, rounds: int = 1,
                 scale: float | None = None, stride: int = 1) -> None:
        super().__init__(node_dim=0)
        self.radius, self.hidden, self.rounds, self.given = radius, hidden, rounds, scale
        self.scale = grid.spacing[0] * stride if scale is None else scale
        edge_index, offset = grid.edge_index(radius * stride), grid.edge_offset(radius * stride)
        loops = torch.arange(grid.num_nodes).repeat(2, 1)
        # Sorted by their offset, so that the messages of one are a row for all nodes.
        rows = [loops if o == 0 else edge_index[:, offset[:, 0] == o * stride]
                for o in range(1 - radius, radius + 1)]
        self.register_buffer("edges", torch.cat(rows, dim=1), persistent=False)
        self.register_buffer("left", edge_index[0, offset[:, 0] == -stride], persistent=False)
        size = 2 * radius
        self.linear = nn.Parameter(torch.randn(size) * 0.05 / size)
        self.bilinear = nn.Parameter(torch.randn(size, size) * 0.05 / size)
        if hidden:
            self.lin1, self.lin2 = nn.Linear(size, hidden), nn.Linear(hidden, 2)
            with torch.no_grad():
                self.lin2.weight.mul_(0.1)
                self.lin2.bias.copy_(torch.tensor([0.0, -1.0]))

    def on(self, grid: PeriodicGrid, stride: int = 1) -> GridFlux:
        """The same term on another grid."""
        other = GridFlux(grid, self.radius, self.hidden, rounds=self.rounds, scale=self.given,
                         stride=stride).to(self.linear)
        other.load_state_dict(self.state_dict())
        return other

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        start = v = u.reshape(-1, u.size(-1)).t().contiguous()
        for _ in range(self.rounds):
            flux = self.propagate(self.edges, v=v)
            v = v + flux.index_select(0, self.left) - flux
        return ((v - start) / self.scale).t().reshape(u.shape)

    def message(self, v_j: Tensor) -> Tensor:
        return v_j

    def aggregate(self, inputs: Tensor) -> Tensor:
        """The flux at each node from the neighbours' values side by side, not from their sum."""
        r = self.radius
        z = inputs.view(2 * r, -1)
        flux = ((self.bilinear.t() @ z + self.linear.unsqueeze(1)) * z).sum(dim=0)
        if self.hidden:
            inner = torch.addmm(self.lin1.bias.unsqueeze(1), self.lin1.weight, z).tanh()
            more, gate = torch.addmm(self.lin2.bias.unsqueeze(1), self.lin2.weight, inner)
            flux = flux + more - 0.5 * gate.sigmoid() * (z[r] - z[r - 1])
        return flux.view(-1, inputs.size(-1))
