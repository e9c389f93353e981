"""Do all splits of SINODEConv integrate one equation, with all gradients?"""

import math

import pytest
import torch
from cases import EDGES, HALF, NODES
from conv_cases import (
    IMPLICIT,
    WEIGHT,
    distance,
    entries,
    every_implicit,
    every_split,
    everything,
    features,
    gradients,
    loss_of,
    make,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import pyg_sinode.conv
from pyg_sinode import SINODEConv, imex_odeint, operators, solvers


def attention_matrix(conv, x, edges, weight):
    """The scaled-dot-product attention, row-stochastic by softmax, as a dense matrix."""
    attention, n = conv.term.attention, x.size(0)
    heads, width = conv.heads, attention.attention_channels // conv.heads
    query, key = (lin(x).view(n, heads, width)
                  for lin in (attention.lin_query, attention.lin_key))
    total = torch.zeros(n, n, dtype=x.dtype)
    for head in range(heads):
        scores = query[:, head] @ key[:, head].t() / math.sqrt(width)
        places = torch.zeros(n, n, dtype=x.dtype).index_put(
            (edges[1], edges[0]), weight, accumulate=True)
        positive = torch.exp(scores) * places
        total = total + positive / positive.sum(dim=1, keepdim=True)
    return total / heads


def right_hand_side(conv, x0, edges, weight):
    """The whole equation, as the class docstring states it."""

    def rate(t, u):
        alpha, decay = torch.sigmoid(conv.term.alpha), conv.term.decay
        decay = alpha if decay is None else torch.sigmoid(decay)
        return (alpha * attention_matrix(conv, u, edges, weight) @ u - decay * u
                + conv.term.beta * x0)

    return rate


def reference(conv, x):
    """The equation written out densely, integrated explicitly with small steps."""
    with torch.no_grad():
        x0 = x if conv.lin is None else conv.lin(x)
        times = torch.tensor([0.0, conv.time], dtype=torch.float64)
        return imex_odeint(right_hand_side(conv, x0, *entries()), None, x0, times,
                           method="ark548l2sa", step_size=0.02)[-1]


@pytest.mark.parametrize("separate_alpha", [False, True], ids=["one_alpha", "two_alphas"])
def test_with_small_steps_all_splits_give_the_solution_of_the_same_equation(separate_alpha):
    x = features()
    expected = reference(make(separate_alpha=separate_alpha), x)
    coarse = []
    for implicit in IMPLICIT:
        conv = make(implicit, separate_alpha=separate_alpha, method="ark548l2sa", step_size=0.1)
        assert distance(conv(x, EDGES, WEIGHT), expected) < 1e-8, implicit
        conv.method, conv.step_size = "imex_rk2", conv.time
        coarse.append(conv(x, EDGES, WEIGHT))
    # They are different methods all the same.
    for i in range(len(coarse)):
        for j in range(i):
            assert distance(coarse[i], coarse[j]) > 1e-4


def test_the_paper_s_two_alphas_are_a_parameter_more_and_another_equation():
    x = features()
    one, two = make(), make(separate_alpha=True)
    assert "term.decay" not in one.state_dict()
    assert set(two.state_dict()) - set(one.state_dict()) == {"term.decay"}
    two.term.decay.data.copy_(one.term.alpha.data)
    assert distance(two(x, EDGES, WEIGHT), one(x, EDGES, WEIGHT)) < 1e-14
    two.term.decay.data.fill_(-0.5)
    assert distance(two(x, EDGES, WEIGHT), one(x, EDGES, WEIGHT)) > 1e-2


def test_without_a_source_there_is_no_beta():
    x = features()
    conv, zero = make(source=False), make(source=True)
    assert SINODEConv(3, 4).term.beta is None  # the default
    assert set(zero.state_dict()) - set(conv.state_dict()) == {"term.beta"}
    zero.term.beta.data.fill_(0.0)
    assert distance(conv(x, EDGES, WEIGHT), zero(x, EDGES, WEIGHT)) < 1e-14


@pytest.fixture
def split_of(monkeypatch):
    """The explicit term with its arguments, the operator and the state that a layer integrates."""

    def captured(conv, *inputs):
        calls = []

        def spy(explicit, implicit, u0, t, *, args, **kwargs):
            calls.append((lambda u: explicit(t[0], u, *args), implicit, u0))
            return imex_odeint(explicit, implicit, u0, t, args=args, **kwargs)

        monkeypatch.setattr(pyg_sinode.conv, "imex_odeint", spy)
        conv(*inputs)
        (call,) = calls
        return call

    return captured


@every_implicit
@pytest.mark.parametrize("separate_alpha", [False, True], ids=["one_alpha", "two_alphas"])
def test_explicit_and_implicit_part_add_up_to_the_right_hand_side(
        implicit, separate_alpha, split_of):
    conv = make(implicit, separate_alpha=separate_alpha)
    G, J, x0 = split_of(conv, features(), EDGES, WEIGHT)
    u = features(4).flip(0)
    expected = right_hand_side(conv, x0, *entries())(None, u)
    assert distance(G(u) + J.mv(u), expected) < 1e-14
    assert float(J.mv(u).detach().abs().max()) > 0.1


def test_the_linear_part_is_the_one_that_is_named(split_of):
    edges, weight = entries()
    x = features(4)
    identity = torch.eye(NODES, dtype=torch.float64)
    matrix = torch.zeros(NODES, NODES, dtype=torch.float64)
    matrix.index_put_((edges[1], edges[0]), weight, accumulate=True)
    scale = matrix.sum(dim=1).rsqrt()
    for split, base in (("decay", 0 * identity), ("laplacian", scale[:, None] * matrix * scale),
                        ("attention", attention_matrix(make(in_channels=4), x, edges, weight))):
        conv = make(split, in_channels=4)
        _, J, _ = split_of(conv, x, EDGES, WEIGHT)
        assert distance(J.mv(identity), torch.sigmoid(conv.term.alpha) * (base - identity)) < 1e-14


@pytest.mark.parametrize("weight", [None, WEIGHT[:6]], ids=["bare", "weighted"])
def test_the_laplacian_of_an_undirected_graph_is_solved_by_cg(weight, split_of):
    edges = torch.cat([HALF, HALF.flip(0)], dim=1)
    weight = None if weight is None else torch.cat([weight, weight])
    for split, solver in (("laplacian", solvers.CG), ("attention", solvers.GMRES),
                          ("decay", solvers.Direct)):
        _, J, _ = split_of(make(split, solver=None), features(), edges, weight)
        # By the bound on its eigenvalues, which holds for any step; row sums of J exceed zero.
        assert isinstance(solvers.default(J, 100.0), solver)


def test_a_function_gets_the_graph_with_its_self_loops():
    seen = []

    def implicit(edge_index, edge_weight, num_nodes):
        seen.append((edge_index, edge_weight, num_nodes))
        return operators.ScaledIdentity(-0.5)

    conv = SINODEConv(4, 4, implicit=implicit).double()
    conv(features(4), EDGES, WEIGHT)
    conv(features(4), EDGES)
    (edges, weight, nodes), (_, bare, _) = seen
    found = sorted(zip(*edges.tolist(), weight.tolist(), strict=True))
    expected = sorted(zip(*entries()[0].tolist(), entries()[1].tolist(), strict=True))
    assert found == expected
    assert nodes == NODES
    assert bare is None


def test_options_of_the_attention_reach_it():
    x = features()
    plain = make()(x, EDGES, WEIGHT)
    for kwargs in ({"attention": "cosine"}, {"normalizer": "squareplus"},
                   {"stochastic": "column"}, {"heads": 4}):
        assert distance(make(**kwargs)(x, EDGES, WEIGHT), plain) > 1e-4, kwargs
    attention = SINODEConv(3, 4, heads=3, attention_channels=6).term.attention
    assert attention.lin_query.weight.size() == (6, 4)


@pytest.mark.parametrize("stochastic", ["row", "column"])
def test_attention_weights_are_those_at_the_terminal_time(stochastic):
    conv, x = make(stochastic=stochastic), features()
    out, (edges, alpha) = conv(x, EDGES, WEIGHT, return_attention_weights=True)
    assert torch.equal(out, conv(x, EDGES, WEIGHT))
    given, weight = entries()
    assert sorted(zip(*edges.tolist(), strict=True)) == sorted(zip(*given.tolist(), strict=True))
    assert alpha.shape == (given.size(1), conv.heads)
    sums = torch.zeros(NODES, conv.heads, dtype=torch.float64)
    sums.index_add_(0, edges[1 if stochastic == "row" else 0], alpha.detach())
    assert distance(sums, torch.ones_like(sums)) < 1e-14
    messages = alpha.mean(dim=1, keepdim=True) * out[edges[0]]
    product = torch.zeros_like(out).index_add(0, edges[1], messages)
    plain = conv.term.attention(out, given, weight)
    assert distance(product, plain) < 1e-14
    if stochastic == "row":
        assert distance(product, attention_matrix(conv, out, given, weight) @ out) < 1e-14
    (gradient,) = torch.autograd.grad(alpha[:, 0].square().sum(), conv.lin.weight)
    assert bool(gradient.any())


@every_implicit
@pytest.mark.parametrize("normalizer", ["softmax", "squareplus"])
def test_gradients_reach_everything_and_equal_backpropagation(implicit, normalizer):
    conv = make(implicit, normalizer=normalizer, separate_alpha=True)
    found, expected = gradients(conv), gradients(conv, "backprop")
    for name, gradient in expected.items():
        if name == "term.attention.lin_key.bias" and normalizer == "softmax":
            # The same number added to all scores of a row changes no softmax.
            assert float(gradient.abs().max()) < 1e-12
            assert float(found[name].abs().max()) < 1e-12
            continue
        assert float(gradient.abs().max()) > 1e-6, name
        assert distance(found[name], gradient) < 1e-9, name


@every_implicit
def test_gradients_are_those_of_finite_differences(implicit):
    conv = make(implicit, in_channels=2, out_channels=3, heads=1, time=0.8, step_size=0.8)
    names, tensors = everything(conv, features(2).requires_grad_(), WEIGHT.clone().requires_grad_())

    def output(x, weight, *parameters):
        swapped = dict(zip(names[2:], parameters, strict=True))
        return functional_call(conv, swapped, (x, EDGES, weight))

    assert gradcheck(output, tensors, fast_mode=True)
    assert gradcheck(lambda x, weight: conv(x, EDGES, weight), tensors[:2])


@pytest.mark.parametrize("split", ["decay", "attention"])
def test_second_derivatives_need_backpropagation(split):
    conv = make(split, in_channels=2, out_channels=2, heads=1, time=0.8, step_size=0.8)
    x = features(2).requires_grad_()
    conv.gradient = "backprop"
    assert gradgradcheck(lambda x: conv(x, EDGES, WEIGHT), [x], fast_mode=True)
    conv.gradient = "discrete"
    (first,) = torch.autograd.grad(loss_of(conv(x, EDGES, WEIGHT)), x, create_graph=True)
    with pytest.raises(RuntimeError, match='gradient="backprop"'):
        first.square().sum().backward()


def test_a_tensor_of_an_operator_that_is_no_parameter_gets_its_gradient_too():
    rates = -features(1).abs().requires_grad_()  # not a leaf
    conv = SINODEConv(4, 4, implicit=operators.Diagonal(rates), step_size=0.5).double()
    found = []
    for conv.gradient in ("discrete", "backprop"):
        found.append(torch.autograd.grad(loss_of(conv(features(4), EDGES)), rates)[0])
    assert float(found[1].abs().max()) > 1e-3
    assert distance(*found) < 1e-12


@every_split
def test_the_second_order_scheme_evaluates_twice_a_step_and_as_often_backwards(split):
    conv = make(split, time=18.2948, step_size=1.0, method="ssp222")
    assert conv.stats is None
    out = conv(features(), EDGES, WEIGHT)
    stats = conv.stats
    assert (stats.steps_accepted, stats.explicit_evaluations, stats.explicit_vjps) == (19, 38, 0)
    assert (stats.linear_solves, stats.factorizations) == (38, 1)
    assert (stats.linear_iterations > 38) == (split != "decay")
    loss_of(out).backward()
    assert conv.stats is stats
    assert (stats.explicit_evaluations, stats.explicit_vjps) == (38, 38)
    assert (stats.linear_solves, stats.factorizations) == (76, 1)
    with torch.no_grad():
        conv(features(), EDGES, WEIGHT)
    assert conv.stats is not stats
    assert (conv.stats.explicit_evaluations, conv.stats.explicit_vjps) == (38, 0)
