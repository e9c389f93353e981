"""Do changed settings, pruned parameters and subclasses of a layer act, or are they refused?"""

import pytest
import torch
from cases import EDGES, NODES
from conv_cases import WEIGHT, distance, every_split, features
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch_geometric.typing import OptTensor

from pyg_sinode import SINODE, GRANDAttention, LearnedOperator, SINODEConv, operators

ATTR = torch.linspace(-1.0, 1.0, 2 * EDGES.size(1), dtype=torch.float64).view(-1, 2)


def with_edges(**options):
    torch.manual_seed(0)
    return SINODEConv(4, 4, edge_dim=2, **options).double()


def rows(conv):
    with torch.no_grad():
        return conv(features(4), EDGES, edge_attr=ATTR)


# Modules and parameters inside


@pytest.mark.parametrize("lin", ["lin_query", "lin_key", "lin_edge"])
def test_a_pruned_weight_is_that_of_the_mask_and_trains(lin):
    conv = with_edges()
    attention = conv.term.attention
    prune.random_unstructured(getattr(attention, lin), "weight", 0.5)
    pruned = rows(conv)
    plain = with_edges()
    getattr(plain.term.attention, lin).weight.data.copy_(getattr(attention, lin).weight)
    assert distance(pruned, rows(plain)) < 1e-14
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        conv(features(4), EDGES, edge_attr=ATTR).square().sum().backward()
        optimizer.step()
    assert float(getattr(attention, lin).weight_orig.grad.abs().max()) > 0
    assert distance(rows(conv), pruned) > 1e-6


def test_a_module_in_place_of_the_map_of_edge_attributes_is_called():
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, x):
            self.calls += 1
            return 2.0 * self.inner(x)

    conv, plain = with_edges(), with_edges()
    conv.term.attention.lin_edge = Wrapped(conv.term.attention.lin_edge)
    plain.term.attention.lin_edge.weight.data.mul_(2.0)
    assert distance(rows(conv), rows(plain)) < 1e-14
    assert conv.term.attention.lin_edge.calls > 0


@pytest.mark.parametrize("module", [
    nn.Linear(2, 4), nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4))],
    ids=["bias", "perceptron"])
def test_any_module_may_map_the_edge_attributes(module):
    layers = [GRANDAttention(4, heads=2, edge_dim=2, fused=fused) for fused in (True, False)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer in layers:
        layer.lin_edge = module
    x, attr = features(4), ATTR
    fused, plain = (layer.double()(x, EDGES, edge_attr=attr) for layer in layers)
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("where", "name"), [("term", "alpha"), ("attention", "amplitude")])
def test_pruned_parameters_of_the_term_are_refused_and_parametrized_ones_act(where, name):
    conv = SINODEConv(4, 4, attention="exp_kernel").double()
    module = conv.term if where == "term" else conv.term.attention
    expected = conv(features(4), EDGES)
    prune.identity(module, name)
    with pytest.raises(ValueError, match=rf"got {name}_orig, .* use torch.nn.utils.parametrize"):
        conv(features(4), EDGES)
    prune.remove(module, name)
    assert torch.equal(conv(features(4), EDGES), expected)

    class Doubled(nn.Module):
        def forward(self, x):
            return 2.0 * x

    parametrize.register_parametrization(module, name, Doubled())
    if name == "amplitude":  # 1 at the start: alpha is 0 there
        assert not torch.equal(conv(features(4), EDGES), expected)
    getattr(module.parametrizations, name).original.data.fill_(0.7)
    twice = conv(features(4), EDGES)
    parametrize.remove_parametrizations(module, name)
    assert float(getattr(module, name).detach()) == pytest.approx(1.4)
    assert torch.equal(conv(features(4), EDGES), twice)


# Subclasses


def test_a_subclass_with_messages_of_its_own_is_refused():
    class Layer(SINODEConv):
        def message(self, x_j: Tensor) -> Tensor:
            return 2.0 * x_j

    with pytest.raises(TypeError, match=r"Expected a subclass without messages of its own .*Layer"):
        Layer(4, 4)

    class Both(SINODEConv):  # passes them itself
        def message(self, x_j: Tensor) -> Tensor:
            return x_j

        def forward(self, x, edge_index):
            return self.propagate(edge_index, x=super().forward(x, edge_index))

    assert Both(4, 4)(features(4, dtype=torch.float32), EDGES).shape == (NODES, 4)

    class Attention(GRANDAttention):
        def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
            return 2.0 * alpha * x_j

    conv = SINODEConv(4, 4)
    conv.term.attention = Attention(4)
    with pytest.raises(TypeError, match=r"passes messages as it does \(got Attention"):
        conv(features(4, dtype=torch.float32), EDGES)


def test_a_subclass_with_coefficients_of_its_own_acts():
    class Uniform(GRANDAttention):
        def coefficients(self, x: Tensor, pattern, weight: OptTensor = None,
                         edge_attr: OptTensor = None) -> Tensor:
            counts = torch.bincount(pattern.row, minlength=pattern.num_nodes)
            return 1.0 / counts[pattern.row.long()].to(x.dtype)

    conv, plain = SINODEConv(4, 4).double(), SINODEConv(4, 4).double()
    plain.load_state_dict(conv.state_dict())
    conv.term.attention = Uniform(4).double()
    for parameter in plain.term.attention.parameters():
        nn.init.zeros_(parameter)
    assert distance(conv(features(4), EDGES), plain(features(4), EDGES)) < 1e-14


# Settings that are changed afterwards


@pytest.mark.parametrize(("path", "value", "message"), [
    ("dropout", 3.0, r"Expected dropout in \[0, 1\) \(got 3.0\)"),
    ("dropout", -1.0, r"Expected dropout in \[0, 1\) \(got -1.0\)"),
    ("fill_value", -3.0, r"fill_value of at least 0 \(got -3.0\)"),
    ("term.attention.normalizer", "foo", "Expected normalizer to be one of softmax, squareplus"),
    ("term.attention.stochastic", "foo", "Expected stochastic to be one of row, column"),
    ("term.attention.score", "foo", "Expected attention score to be one of scaled_dot"),
    ("term.implicit_reaction", True, "Expected a reaction where term.implicit_reaction is set"),
])
def test_a_setting_that_does_not_exist_is_refused_at_the_next_call(path, value, message):
    conv = SINODEConv(4, 4).double()
    conv(features(4), EDGES)
    *parents, name = path.split(".")
    module = conv
    for parent in parents:
        module = getattr(module, parent)
    before = getattr(module, name)
    setattr(module, name, value)
    with pytest.raises(ValueError, match=message):
        conv(features(4), EDGES)
    setattr(module, name, before)
    conv(features(4), EDGES)


@pytest.mark.parametrize("name", ["score", "normalizer", "stochastic"])
def test_an_attention_by_itself_refuses_them_too(name):
    layer = GRANDAttention(4).double()
    setattr(layer, name, "foo")
    with pytest.raises(ValueError, match=r"to be one of .* \(got 'foo'\)"):
        layer(features(4), EDGES)


def test_add_self_loops_none_is_true_afterwards_too():
    conv = SINODEConv(4, 4).double()
    expected = conv(features(4), EDGES)
    conv.add_self_loops = None
    assert torch.equal(conv(features(4), EDGES), expected)
    conv.add_self_loops = False
    assert not torch.equal(conv(features(4), EDGES), expected)


@pytest.mark.parametrize("name", ["dropout", "input_dropout"])
@pytest.mark.parametrize("p", [-0.5, 1.5, None, True, "half"])
def test_dropout_of_the_network_stays_between_zero_and_one(name, p):
    model = SINODE(4, 4, 3)
    setattr(model, name, p)
    with pytest.raises(ValueError, match="Expected a dropout probability from 0 to 1"):
        model(features(4, dtype=torch.float32), EDGES)


def test_a_dropout_of_one_zeroes_all():
    model = SINODE(4, 4, 3)
    model.dropout = 1.0
    expected = model.decoder.bias.expand(NODES, 3)
    assert torch.equal(model(features(4, dtype=torch.float32), EDGES), expected)


@every_split
def test_an_implicit_part_replaces_a_learned_operator(split):
    learned = LearnedOperator(operators.Diagonal(-torch.ones(4)))
    conv = SINODEConv(4, 4, implicit=learned)
    x = features(4, dtype=torch.float32)
    before = conv(x, EDGES)
    conv.implicit = split
    assert not any("implicit" in name for name, _ in conv.named_parameters())
    plain = SINODEConv(4, 4, implicit=split)
    plain.load_state_dict(conv.state_dict())
    assert torch.equal(conv(x, EDGES), plain(x, EDGES))
    conv.implicit = learned
    assert torch.equal(conv(x, EDGES), before)


# Input


def test_edge_attributes_must_be_finite():
    bad = ATTR.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match="Expected finite edge_attr"):
        with_edges()(features(4), EDGES, edge_attr=bad)


@pytest.mark.parametrize("score", ["cosine", "pearson"])
def test_a_direction_needs_two_numbers(score):
    with pytest.raises(ValueError, match="at least two attention_channels for each head"):
        SINODEConv(5, 6, heads=6, attention_channels=6, attention=score)
    assert SINODEConv(5, 6, heads=6, attention=score).term.attention.attention_channels == 12
    assert SINODEConv(5, 7, heads=3, attention=score).term.attention.attention_channels == 9


def test_the_default_score_is_bounded_but_where_edges_have_attributes():
    assert SINODEConv(5, 6).term.attention.score == "cosine"
    assert SINODEConv(5, 1)(torch.rand(4, 5), torch.tensor([[0, 1], [1, 2]])).shape == (4, 1)
    assert SINODEConv(5, 6, edge_dim=2).term.attention.score == "scaled_dot"
    assert SINODEConv(5, 6, attention="pearson").term.attention.score == "pearson"


def test_edges_between_graphs_are_refused_with_end_times():
    conv = SINODEConv(4, 4).double()
    batch = torch.arange(NODES) % 2
    inside = (batch[EDGES[0]] == batch[EDGES[1]]).double()
    conv(features(4), EDGES, inside, batch=batch, end_times=torch.tensor([1.0, 4.0]))
    with pytest.raises(ValueError, match="Expected edges within each graph of batch"):
        conv(features(4), EDGES, batch=batch, end_times=torch.tensor([1.0, 4.0]))


def test_the_end_time_of_a_graph_without_nodes_has_no_influence():
    conv = SINODEConv(4, 4).double()
    batch, times = torch.zeros(NODES, dtype=torch.long), torch.tensor([1.5], dtype=torch.float64)
    expected = conv(features(4), EDGES, WEIGHT, batch=batch, end_times=times)
    more = torch.cat([times, 40.0 * times])
    assert torch.equal(conv(features(4), EDGES, WEIGHT, batch=batch, end_times=more), expected)
    with pytest.raises(ValueError, match="not all of them 0"):
        conv(features(4), EDGES, WEIGHT, batch=batch, end_times=more - 1.5)


def test_a_default_device_of_another_kind_does_not_disturb_a_call():
    conv, x = SINODEConv(4, 4).double(), features(4)
    expected = conv(x, EDGES)
    with torch.device("meta"):
        assert torch.equal(conv(x, EDGES), expected)

