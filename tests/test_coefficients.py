"""Do scores become coefficients that sum to one, with the gradients of the formula written out?"""

import pytest
import torch
from cases import EDGES, NODES

from pyg_sinode import GRANDAttention, SINODEConv
from pyg_sinode.coefficients import normalized, normalized_mean
from pyg_sinode.solvers import GMRES
from pyg_sinode.sparse import Pattern

E, HEADS = EDGES.size(1), 3
WEIGHTS = {
    "none": None,
    "weights": torch.linspace(0.5, 2.0, E, dtype=torch.float64),
    "removed": torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0, 1.0, 0.5, 0.0, 1.0], dtype=torch.float64),
    "all_removed": torch.zeros(E, dtype=torch.float64),
}
every_weight = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
every_normalizer = pytest.mark.parametrize("normalizer", ["softmax", "squareplus"])
every_direction = pytest.mark.parametrize("columns", [False, True])


def the_pattern():
    return Pattern(EDGES[1], EDGES[0], NODES)


def inputs(weight):
    torch.manual_seed(3)
    scores = (3.0 * torch.randn(HEADS, E, dtype=torch.float64)).requires_grad_()
    return scores, None if weight is None else weight.clone().requires_grad_()


def written_out(scores, weight, normalizer, columns):
    """The mean of the coefficients, edge by edge."""
    p = the_pattern()
    phi = scores.exp() if normalizer == "softmax" else (scores + (scores**2 + 4).sqrt()) / 2
    phi = phi if weight is None else phi * weight
    index = p.col if columns else p.row
    total = torch.stack([phi[:, index == i].sum(dim=1) for i in index], dim=1)
    return (phi / torch.where(total == 0, 1.0, total)).mean(dim=0)


@every_direction
@every_normalizer
@every_weight
def test_the_mean_and_its_gradients_are_those_of_the_formula(weight, normalizer, columns):
    scores, weight = inputs(weight)
    g = torch.linspace(-1.0, 2.0, E, dtype=torch.float64)
    found = normalized_mean(scores, the_pattern(), weight, normalizer, columns)
    expected = written_out(scores, weight, normalizer, columns)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        normalized(scores, the_pattern(), weight, normalizer, columns).mean(dim=0), expected,
        rtol=0, atol=1e-14)
    leaves = [x for x in (scores, weight) if x is not None]
    for one, other in zip(torch.autograd.grad(found, leaves, g),
                          torch.autograd.grad(expected, leaves, g), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@every_direction
@every_normalizer
@pytest.mark.parametrize("weight", [None, WEIGHTS["weights"]], ids=["none", "weights"])
def test_gradients_of_both_orders_equal_difference_quotients(weight, normalizer, columns):
    leaves = tuple(x for x in inputs(weight) if x is not None)

    def mean(scores, weight=None):
        return normalized_mean(scores, the_pattern(), weight, normalizer, columns)

    assert torch.autograd.gradcheck(mean, leaves)
    assert torch.autograd.gradgradcheck(mean, leaves)


@every_normalizer
@pytest.mark.parametrize("wanted", ["scores", "weight"])
def test_a_gradient_is_had_alone_as_with_the_other(normalizer, wanted):
    pair = dict(zip(("scores", "weight"), inputs(WEIGHTS["removed"]), strict=True))
    both = torch.autograd.grad(
        normalized_mean(pair["scores"], the_pattern(), pair["weight"], normalizer, False).sum()
        ** 2, [pair[wanted]])[0]
    alone = {k: v if k == wanted else v.detach() for k, v in pair.items()}
    result = normalized_mean(alone["scores"], the_pattern(), alone["weight"], normalizer, False)
    assert torch.equal(torch.autograd.grad(result.sum() ** 2, [alone[wanted]])[0], both)


@every_normalizer
@pytest.mark.parametrize("implicit", ["decay", "laplacian", "attention"])
def test_scores_that_depend_on_the_weights_count_them_once(normalizer, implicit):
    conv = SINODEConv(3, 3, time=1.0, step_size=0.5, normalizer=normalizer, implicit=implicit,
                      gradient="backprop", solver=None if implicit == "decay" else
                      GMRES(rtol=1e-14)).double()
    x = torch.randn(NODES, 3, dtype=torch.float64)
    weight = WEIGHTS["weights"].clone().requires_grad_()
    once, twice = (torch.autograd.grad(conv(x, EDGES, weight).square().sum(), weight,
                                       create_graph=graph)[0] for graph in (False, True))
    torch.testing.assert_close(twice, once, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_squareplus_of_scores_whose_squares_overflow_is_finite(size):
    scores = torch.full((1, E), -size, requires_grad=True)
    mean = normalized_mean(scores, the_pattern(), None, "squareplus", False)
    (scores_gradient,) = torch.autograd.grad(mean[0], scores)
    torch.testing.assert_close(mean, 1.0 / the_pattern().pointer.diff()[the_pattern().row])
    assert bool(scores_gradient.isfinite().all())


@every_normalizer
def test_large_scores_neither_overflow_nor_lose_their_gradient(normalizer):
    scores = torch.tensor([[1e4, -1e4, 2e4] * 3], dtype=torch.float32, requires_grad=True)
    mean = normalized_mean(scores, the_pattern(), None, normalizer, False)
    mean[0].backward()
    assert bool(mean.isfinite().all())
    assert bool(scores.grad.isfinite().all())
    sums = torch.zeros(NODES).index_add(0, the_pattern().row, mean.detach())
    torch.testing.assert_close(sums[the_pattern().pointer.diff() > 0], torch.ones(5))


@every_normalizer
@pytest.mark.parametrize("heads", [1, 4])
def test_an_evaluation_keeps_at_most_five_numbers_for_each_edge_and_head(normalizer, heads):
    nodes, edges = 20, 5000
    p = Pattern(*torch.randint(nodes, (2, edges)), nodes)
    layer = GRANDAttention(8, heads, 8, normalizer=normalizer)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer.coefficients(torch.randn(nodes, 8, requires_grad=True), p)
    per_edge = sum(n for n in kept.values() if n >= edges)
    assert 2 * edges * heads <= per_edge <= 5 * edges * heads
