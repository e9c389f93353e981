"""What do the tests of conv share?"""

import pytest
import torch
from cases import EDGES, NODES
from torch import nn

from pyg_sinode import SINODEConv, operators, solvers
from pyg_sinode.diffusion import SPLITS

WEIGHT = torch.linspace(0.4, 2.0, EDGES.size(1), dtype=torch.float64)


def operator_of_the_user():
    generator = torch.Generator().manual_seed(2)
    matrix = 0.1 * torch.randn(NODES, NODES, dtype=torch.float64, generator=generator)
    return operators.Dense(nn.Parameter(matrix - 0.4 * torch.eye(NODES).double()), dim=-2)


class OperatorOfTheGraph(nn.Module):
    """A function of the graph, with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(-0.7, dtype=torch.float64))

    def forward(self, edge_index, edge_weight, num_nodes):
        graph = operators.Graph(edge_index, edge_weight, num_nodes)
        return 0.2 * graph + operators.ScaledIdentity(self.rate)


IMPLICIT = {name: lambda name=name: name for name in SPLITS}
IMPLICIT |= {"operator": operator_of_the_user, "callable": OperatorOfTheGraph}


TIGHT = {name: None if name == "decay" else solvers.GMRES(rtol=1e-13) for name in IMPLICIT}
every_split = pytest.mark.parametrize("split", SPLITS)
every_implicit = pytest.mark.parametrize("implicit", IMPLICIT)


def make(implicit="decay", in_channels=3, out_channels=4, **kwargs):
    """The same layer for every split: float64, two heads, a source, random parameters."""
    torch.manual_seed(1)
    kwargs = {"heads": 2, "time": 1.3, "step_size": 0.7, "normalizer": "softmax",
              "source": True} | kwargs
    if "edge_dim" not in kwargs:
        kwargs.setdefault("attention", "scaled_dot")
    kwargs.setdefault("solver", TIGHT[implicit])
    conv = SINODEConv(in_channels, out_channels, implicit=IMPLICIT[implicit](), **kwargs).double()
    with torch.no_grad():
        for number, value in zip((conv.term.alpha, conv.term.beta, conv.term.decay),
                                 (0.4, 0.3, -0.5), strict=True):
            if number is not None:
                number.fill_(value)
        for parameter in (*conv.term.attention.parameters(), *([] if conv.lin is None else
                                                               conv.lin.parameters())):
            parameter.copy_(torch.randn(parameter.shape) / 2)
    return conv


def features(channels=3, nodes=NODES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(nodes, channels, dtype=torch.float64, generator=generator).to(dtype)


def entries():
    """Edges and weights with the self-loops that the layer adds: the one of node 2 is there."""
    loops = torch.tensor([0, 1, 3, 4, 5])
    edges = torch.cat([EDGES, torch.stack([loops, loops])], dim=1)
    return edges, torch.cat([WEIGHT, torch.ones(5, dtype=torch.float64)])


def distance(a, b):
    """The largest difference relative to the largest entry of the second."""
    assert a.shape == b.shape
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def loss_of(y):
    """A loss with another weight for each entry."""
    return (y * torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).view_as(y)).sum()


def everything(conv, x, weight):
    """Names and tensors of all that a gradient should reach."""
    return ["x", "edge_weight", *dict(conv.named_parameters())], [x, weight, *conv.parameters()]


def gradients(conv, gradient="discrete"):
    conv.gradient = gradient
    x, weight = features().requires_grad_(), WEIGHT.clone().requires_grad_()
    names, tensors = everything(conv, x, weight)
    found = torch.autograd.grad(loss_of(conv(x, EDGES, weight)), tensors)
    return dict(zip(names, found, strict=True))
