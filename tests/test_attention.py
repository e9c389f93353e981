"""Is the fused attention the formula, and the plain path the same?"""

import copy
import math

import numpy as np
import pytest
import torch
from attention_cases import (
    CHANNELS,
    F64,
    HEADS,
    WEIGHTS,
    WIDTH,
    E,
    attention,
    every_direction,
    every_normalizer,
    every_score,
    features,
    fused_or_not,
    leaf,
    per_edge,
    the_pattern,
)
from cases import EDGES, NODES
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode import GRANDAttention
from pyg_sinode.coefficients import squareplus

ISOLATED = 5
every_weight = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)


def value_and_gradients(layer, x, weight):
    x = x.clone().requires_grad_()
    weight = leaf(weight, x.dtype)
    y = layer(x, EDGES, weight)
    inputs = [x, *([] if weight is None else [weight]), *layer.parameters()]
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(y.shape, generator=generator, dtype=F64).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, inputs, cotangent)


@every_score
@every_normalizer
@every_direction
@every_weight
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 2e-5)])
def test_the_fused_path_equals_the_plain_one_in_values_and_all_gradients(
    score, normalizer, stochastic, weight, dtype, tolerance
):
    layer = attention(dtype, score=score, normalizer=normalizer, stochastic=stochastic)
    plain = copy.deepcopy(layer)
    plain.fused = False
    x = features(dtype)
    y, gradients = value_and_gradients(layer, x, weight)
    y_plain, gradients_plain = value_and_gradients(plain, x, weight)
    assert y.dtype == dtype
    torch.testing.assert_close(y, y_plain, rtol=0, atol=tolerance)
    scale = max(float(g.abs().max()) for g in gradients_plain)
    assert scale > 1e-3
    for got, expected in zip(gradients, gradients_plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * max(1.0, scale))


def written_out(layer, x, weight):
    """Scaled dot products, softmax and rows, written as loops over nodes and edges."""

    def projected(lin):
        matrix, bias = lin.weight.detach().numpy(), lin.bias.detach().numpy()
        return (x.numpy() @ matrix.T + bias).reshape(NODES, layer.heads, -1)

    query, key = projected(layer.lin_query), projected(layer.lin_key)
    y = np.zeros((NODES, CHANNELS))
    for i in range(NODES):
        incoming = [e for e in range(E) if EDGES[1, e] == i]
        for h in range(layer.heads):
            score = {
                e: query[i, h] @ key[int(EDGES[0, e]), h] / math.sqrt(query.shape[2])
                for e in incoming
            }
            phi = {e: float(weight[e]) * math.exp(score[e]) for e in incoming}
            for e in incoming:
                a = phi[e] / sum(phi.values())
                y[i] += a * x[int(EDGES[0, e])].numpy() / layer.heads
    return y


@fused_or_not
@pytest.mark.parametrize("heads", [1, 2, 3])
@every_weight
def test_it_equals_the_formula_written_as_loops_over_nodes(fused, heads, weight):
    layer, x = attention(heads=heads, fused=fused), features()
    expected = written_out(layer, x, torch.ones(E) if weight is None else weight)
    got = layer(x, EDGES, weight).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


def score_written_out(name, layer, q, k):
    if name == "scaled_dot":
        return q @ k / math.sqrt(q.numel())
    if name == "cosine":
        return torch.cosine_similarity(q, k, dim=0)
    if name == "pearson":
        return torch.corrcoef(torch.stack([q, k]))[0, 1]
    distance = (q - k).square().sum()
    return layer.amplitude**2 * torch.exp(-distance / (2 * layer.length**2))


@every_score
@every_normalizer
@every_direction
def test_scores_and_normalizers_are_those_of_the_paper(score, normalizer, stochastic):
    layer = attention(score=score, normalizer=normalizer, stochastic=stochastic)
    x, weight = features(), WEIGHTS["weighted"]
    query = layer.lin_query(x).view(NODES, HEADS, -1)
    key = layer.lin_key(x).view(NODES, HEADS, -1)
    phi = torch.empty(E, HEADS, dtype=F64)
    for e, (source, target) in enumerate(EDGES.t().tolist()):
        for h in range(HEADS):
            s = score_written_out(score, layer, query[target, h], key[source, h])
            phi[e, h] = s.exp() if normalizer == "softmax" else (s + (s * s + 4).sqrt()) / 2
    positive = (phi * weight.unsqueeze(1)).detach()
    group = EDGES[1] if stochastic == "row" else EDGES[0]
    same = (group.unsqueeze(0) == group.unsqueeze(1)).to(F64)
    torch.testing.assert_close(per_edge(layer, x, weight), positive / (same @ positive),
                               rtol=0, atol=1e-12)  # fmt: skip


@every_score
@every_normalizer
@every_direction
@every_weight
def test_coefficients_are_not_negative_and_sum_to_one(score, normalizer, stochastic, weight):
    layer = attention(score=score, normalizer=normalizer, stochastic=stochastic)
    a = per_edge(layer, features(), weight)
    group = EDGES[1] if stochastic == "row" else EDGES[0]
    sums = a.new_zeros(NODES, HEADS).index_add(0, group, a)
    present = sums.new_zeros(NODES).index_fill(0, group, 1.0).unsqueeze(1).expand(-1, HEADS)
    assert bool((a >= 0).all())
    torch.testing.assert_close(sums, present, rtol=0, atol=1e-13)


@every_weight
def test_heads_are_averaged(weight):
    layer, x, p = attention(), features(), the_pattern()
    weight = None if weight is None else weight[p.perm]
    average = layer.coefficients(x, p, weight)
    heads = layer.coefficients_per_head(x, p, weight)
    assert heads.shape == (E, HEADS)
    assert not torch.allclose(heads[:, 0], heads[:, 1])
    torch.testing.assert_close(average, heads.mean(dim=1), rtol=0, atol=1e-15)


@fused_or_not
def test_several_heads_are_the_mean_of_layers_with_one_head(fused):
    layer, x = attention(fused=fused), features()
    total = torch.zeros_like(x)
    for h in range(HEADS):
        single = GRANDAttention(CHANNELS, 1, WIDTH // HEADS, fused=fused).double()
        rows = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
        for lin, whole in ((single.lin_query, layer.lin_query), (single.lin_key, layer.lin_key)):
            lin.weight.data, lin.bias.data = whole.weight.data[rows], whole.bias.data[rows]
        total += single(x, EDGES)
    torch.testing.assert_close(layer(x, EDGES), total / HEADS, rtol=0, atol=1e-13)


def test_a_duplicate_edge_counts_twice():
    layer, x = attention(), features()
    once = torch.cat([EDGES[:, :1], EDGES[:, 2:]], dim=1)
    weight = torch.ones(E - 1, dtype=F64)
    weight[0] = 2.0
    assert torch.equal(EDGES[:, 0], EDGES[:, 1])
    torch.testing.assert_close(layer(x, EDGES), layer(x, once, weight), rtol=0, atol=1e-14)


def graph_with_one_large_score(stochastic):
    """Edges of which the last has by far the largest score of its row and of its column."""
    edges = torch.tensor([[0, 1, 3, 3, 2], [3, 3, 0, 1, 3]])
    if stochastic == "column":
        edges = edges.flip(0)
    x = torch.tensor([[0.5], [-0.5], [1000.0], [1.0]], dtype=F64)
    return edges, x if stochastic == "row" else x.clone()


def product_layer(normalizer, stochastic, fused, dtype=F64):
    """A layer whose score is the product of the two features."""
    layer = GRANDAttention(1, normalizer=normalizer, stochastic=stochastic, fused=fused).to(dtype)
    for lin in (layer.lin_query, layer.lin_key):
        torch.nn.init.ones_(lin.weight)
        torch.nn.init.zeros_(lin.bias)
    return layer


@fused_or_not
@every_normalizer
@every_direction
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_weight_of_zero_removes_an_edge_even_of_the_largest_score(
    fused, normalizer, stochastic, dtype
):
    layer = product_layer(normalizer, stochastic, fused, dtype)
    edges, x = graph_with_one_large_score(stochastic)
    x = x.to(dtype).requires_grad_()
    weight = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0], dtype=dtype)
    y = layer(x, edges, weight)
    expected = layer(x, edges[:, :4], weight[:4])
    # A few roundings of scores, normalisers and sums.
    rounding = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(y, expected, rtol=rounding, atol=rounding)
    assert y[:, 0].abs().max() > 0.1
    (got,) = torch.autograd.grad(y.sum(), x)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(got, wanted, rtol=rounding, atol=rounding)


@fused_or_not
@every_normalizer
@every_direction
def test_the_gradient_of_a_zero_weight_is_that_of_bringing_the_edge_back(
    fused, normalizer, stochastic
):
    layer = attention(fused=fused, normalizer=normalizer, stochastic=stochastic)
    x, cotangent, h = features(), features(), 1e-6
    removed = 3  # 1 -> 3: neither the only edge into 3 nor the only one out of 1
    weight = WEIGHTS["weighted"].index_fill(0, torch.tensor(removed), 0.0).requires_grad_()
    (gradient,) = torch.autograd.grad((layer(x, EDGES, weight) * cotangent).sum(), weight)
    ends = []
    for value in (0.0, h, 2 * h):
        moved = weight.detach().index_fill(0, torch.tensor(removed), value)
        ends.append((layer(x, EDGES, moved) * cotangent).sum().item())
    slope = (4 * ends[1] - 3 * ends[0] - ends[2]) / (2 * h)
    assert abs(slope) > 1e-3
    assert gradient[removed].item() == pytest.approx(slope, rel=1e-5)


@fused_or_not
@every_score
@every_normalizer
@every_direction
@every_weight
def test_isolated_nodes_give_zeros(fused, score, normalizer, stochastic, weight):
    layer = attention(fused=fused, score=score, normalizer=normalizer, stochastic=stochastic)
    y, gradients = value_and_gradients(layer, features(), weight)
    assert torch.equal(y[ISOLATED], torch.zeros(CHANNELS, dtype=F64))
    assert bool(y.isfinite().all())
    assert all(bool(g.isfinite().all()) for g in gradients)


@fused_or_not
@every_normalizer
@every_direction
def test_a_node_whose_edges_are_all_removed_gives_zeros(fused, normalizer, stochastic):
    layer = attention(fused=fused, normalizer=normalizer, stochastic=stochastic)
    y, gradients = value_and_gradients(layer, features(), torch.zeros(E))
    assert not y.any()
    assert all(bool(g.isfinite().all()) for g in gradients)


@fused_or_not
@every_normalizer
@every_direction
@pytest.mark.parametrize("shape", [(NODES, CHANNELS), (0, CHANNELS)], ids=["nodes", "no_nodes"])
def test_a_graph_without_edges_gives_zeros(fused, normalizer, stochastic, shape):
    layer = attention(fused=fused, normalizer=normalizer, stochastic=stochastic)
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    y = layer(x, torch.empty(2, 0, dtype=torch.long))
    assert torch.equal(y, torch.zeros_like(x))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@fused_or_not
@every_normalizer
@every_direction
@pytest.mark.parametrize("size", [1e3, 1e9])
def test_huge_scores_neither_overflow_nor_lose_their_sums(fused, normalizer, stochastic, size):
    layer = product_layer(normalizer, stochastic, fused, torch.float32)
    x = size * torch.tensor([[1.0], [-1.0], [0.5], [-0.5], [2.0]])
    edges = torch.cartesian_prod(torch.arange(5), torch.arange(5)).t()
    x.requires_grad_()
    y = layer(x, edges)
    scores = x.double() @ x.double().t()
    phi = scores.softmax(1) if normalizer == "softmax" else (scores + scores.abs()) / 2
    if stochastic == "row":
        a = phi / phi.sum(dim=1, keepdim=True)
    else:
        phi = scores.softmax(0) if normalizer == "softmax" else phi
        a = phi / phi.sum(dim=0, keepdim=True)
    torch.testing.assert_close(y.double(), a @ x.double(), rtol=1e-5, atol=1e-5 * size)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_squareplus_is_accurate_to_rounding_for_large_arguments_of_both_signs(dtype):
    s = torch.tensor([-1e15, -1e8, -1e4, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4, 1e8, 1e15])
    # phi(-s) phi(s) = 1, and for s > 0 the formula loses nothing.
    large = [(abs(v) + math.hypot(v, 2)) / 2 for v in s.tolist()]
    expected = [p if v >= 0 else 1 / p for v, p in zip(s.tolist(), large, strict=True)]
    got = squareplus(s.to(dtype)).double()
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, torch.tensor(expected, dtype=F64), rtol=rounding, atol=0)
    assert got[5] == 1.0
    assert got[2] > 0


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_slope_of_squareplus_is_one_half_at_zero_and_accurate_elsewhere(dtype):
    points = [-1e4, -1.0, 0.0, 1.0, 1e4]
    s = torch.tensor(points, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(squareplus(s).sum(), s)
    assert slope[2] == 0.5
    # phi' = phi / sqrt(s^2 + 4), and phi(s) = 2 / (sqrt(s^2 + 4) - s)
    expected = [2 / (math.hypot(v, 2) - v) / math.hypot(v, 2) for v in points[:4]] + [1 - 1e-8]
    rounding = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        slope.double(), torch.tensor(expected, dtype=F64), rtol=rounding, atol=0
    )


def test_the_slope_of_squareplus_is_finite_where_squares_overflow():
    s = torch.tensor([1e25, -1e25], requires_grad=True)
    value = squareplus(s)
    (slope,) = torch.autograd.grad(value.sum(), s)
    assert value[0] == s[0]
    assert slope.tolist() == [1.0, 0.0]


def test_squareplus_has_right_gradients_of_both_orders():
    s = torch.linspace(-6, 6, 7, dtype=F64, requires_grad=True)
    assert gradcheck(squareplus, s)
    assert gradgradcheck(squareplus, s)
