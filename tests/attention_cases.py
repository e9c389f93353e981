"""What do the tests of attention share?"""

import pytest
import torch
from cases import EDGES, NODES

from pyg_sinode import GRANDAttention
from pyg_sinode.attention import NORMALIZERS, SCORES, STOCHASTIC
from pyg_sinode.sparse import Pattern

F64 = torch.float64
E = EDGES.size(1)


CHANNELS, HEADS, WIDTH = 4, 2, 6


every_score = pytest.mark.parametrize("score", SCORES)
every_normalizer = pytest.mark.parametrize("normalizer", NORMALIZERS)
every_direction = pytest.mark.parametrize("stochastic", STOCHASTIC)
fused_or_not = pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
WEIGHTS = {
    "unweighted": None,
    "weighted": torch.linspace(0.3, 1.7, E, dtype=F64),
    "one_removed": torch.linspace(0.0, 1.7, E, dtype=F64),
}


def attention(dtype=F64, heads=HEADS, **options):
    """A layer whose scores are spread, unlike those at the start of training."""
    layer = GRANDAttention(CHANNELS, heads, WIDTH, **options).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def features(dtype=F64, nodes=NODES):
    return torch.randn(nodes, CHANNELS, dtype=F64).to(dtype)


def leaf(tensor, dtype):
    return None if tensor is None else tensor.to(dtype, copy=True).requires_grad_()


def the_pattern():
    return Pattern(EDGES[1], EDGES[0], NODES)


def per_edge(layer, x, weight=None):
    """The coefficients per head, (E, H), in the order of EDGES."""
    p = the_pattern()
    sorted_weight = None if weight is None else weight[p.perm]
    result = x.new_empty(E, layer.heads)
    result[p.perm] = layer.coefficients_per_head(x, p, sorted_weight).detach()
    return result
