"""Does SINODE classify nodes, drop out only in training, and refuse what is wrong?"""

import copy
import math

import pytest
import torch
import torch.nn.functional as nnf
from cases import EDGES, NODES
from torch_geometric.utils import stochastic_blockmodel_graph

from pyg_sinode import presets
from pyg_sinode.diffusion import SPLITS
from pyg_sinode.models import SINODE

X = torch.linspace(-1.0, 1.5, NODES * 5).sin().view(NODES, 5)
WEIGHT = torch.linspace(0.4, 2.0, EDGES.size(1))


def test_str_and_sizes():
    model = SINODE(5, 8, 3, heads=2, batch_norm=True)
    assert str(model) == (
        "SINODE(\n"
        "  (encoder): Linear(5, 8, bias=True)\n"
        f"  (norm): {torch.nn.BatchNorm1d(8)}\n"
        "  (conv): SINODEConv(8, 8, heads=2, implicit=decay, time=6, method=imex_rk2)\n"
        "  (decoder): Linear(8, 3, bias=True)\n"
        ")")
    assert model(X, EDGES).size() == (NODES, 3)
    assert model(X, EDGES, WEIGHT).size() == (NODES, 3)
    assert SINODE(5, 8, 3).norm is None


def test_lazy_in_channels_come_from_the_first_input():
    model = SINODE(-1, 8, 3)
    assert model(X, EDGES).size() == (NODES, 3)
    assert model.encoder.weight.size() == (8, 5)
    with pytest.raises(ValueError, match=r"Expected 5 input channels \(got 4\)"):
        model(X[:, :4], EDGES)


def test_it_is_an_encoder_the_layer_and_a_decoder():
    model = SINODE(5, 8, 3, time=2.0)
    expected = model.decoder(model.conv(model.encoder(X), EDGES, WEIGHT).relu())
    assert torch.equal(model(X, EDGES, WEIGHT), expected)
    assert model.conv.time == 2.0


@pytest.mark.parametrize("name", ["input_dropout", "dropout"])
def test_dropout_draws_anew_in_training_and_does_nothing_in_evaluation(name):
    model = SINODE(5, 8, 3, **{name: 0.5})
    plain = SINODE(5, 8, 3)
    plain.load_state_dict(model.state_dict())
    assert not torch.equal(model(X, EDGES), model(X, EDGES))
    model.eval()
    assert torch.equal(model(X, EDGES), plain(X, EDGES))


def test_input_dropout_zeroes_features_and_dropout_what_the_decoder_reads():
    seen = []
    model = SINODE(5, 64, 3, input_dropout=0.3, dropout=0.6)
    ones = torch.ones(NODES, 5)
    for layer in (model.encoder, model.decoder):
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    model(ones, EDGES)
    dropped, decoded = seen
    assert set(dropped.unique().tolist()) <= {0.0, torch.tensor(1 / 0.7).item()}
    assert 0 < int((dropped == 0).sum()) < dropped.numel()
    model.eval()
    model(ones, EDGES)
    assert torch.equal(seen[2], ones)
    zero = float((decoded == 0).float().mean() - (seen[3] == 0).float().mean())
    assert zero > 0.1  # of those that the rectifier let through


def test_batch_normalisation_is_of_the_encoded_features():
    model, x = SINODE(5, 8, 3, batch_norm=True).double(), X.double()
    seen = []
    model.conv.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    model(x, EDGES)
    encoded = model.encoder(x).detach()
    expected = (encoded - encoded.mean(dim=0)) / (encoded.var(dim=0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(seen[0], expected)
    # Its statistics are updated once a pass, however often the integrator evaluates.
    assert int(model.norm.num_batches_tracked) == 1
    model.eval()
    # Then a node's result does not depend on the other graphs of its batch.
    none = EDGES[:, :0]
    torch.testing.assert_close(model(x[:1], none), model(x, none)[:1])


def test_reset_parameters_starts_anew():
    model = SINODE(5, 8, 3, batch_norm=True, source=True)
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    nnf.cross_entropy(model(X, EDGES), torch.arange(NODES) % 3).backward()
    optimizer.step()
    torch.manual_seed(3)
    model.reset_parameters()
    first = copy.deepcopy(model.state_dict())
    for name in ("encoder.weight", "decoder.weight", "conv.term.attention.lin_query.weight"):
        assert not torch.equal(first[name], start[name]), name
    for name in ("norm.weight", "norm.bias", "norm.running_mean", "norm.num_batches_tracked",
                 "conv.term.alpha", "conv.term.beta"):
        assert torch.equal(first[name], start[name]), name
    torch.manual_seed(3)
    model.reset_parameters()
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("implicit", SPLITS)
def test_gradients_reach_every_parameter_and_equal_backpropagation(implicit):
    # Squareplus, because a softmax has no gradient at the bias of its keys.
    model = SINODE(5, 8, 3, implicit=implicit, normalizer="squareplus", heads=2, batch_norm=True,
                   separate_alpha=True, time=2.0).double()
    found = []
    for model.conv.gradient in ("discrete", "backprop"):
        model.zero_grad()
        out = model(X.double(), EDGES, WEIGHT.double())
        nnf.cross_entropy(out, torch.arange(NODES) % 3).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in found[1].items():
        if name != "encoder.bias":  # the batch normalisation takes it away again
            assert float(expected.abs().max()) > 1e-9, name
        torch.testing.assert_close(found[0][name], expected, rtol=1e-6, atol=1e-10)


def test_dropout_before_the_layer_does_not_disturb_the_gradient():
    model = SINODE(5, 8, 3, input_dropout=0.4, dropout=0.4, time=2.0).double()
    found = []
    for model.conv.gradient in ("discrete", "backprop"):
        torch.manual_seed(5)
        model.zero_grad()
        nnf.cross_entropy(model(X.double(), EDGES), torch.arange(NODES) % 3).backward()
        found.append(model.encoder.weight.grad.clone())
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("implicit", SPLITS)
def test_it_learns_a_stochastic_block_model(implicit):
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.full((3, 3), 0.02) + 0.28 * torch.eye(3)
    edge_index = stochastic_blockmodel_graph([30, 30, 30], probabilities)
    y = torch.arange(3).repeat_interleave(30)
    x = nnf.one_hot(y, 3) + 0.8 * torch.randn(90, 3, generator=generator)
    guess = float((x.argmax(dim=1) == y).float().mean())
    model = SINODE(3, 16, 3, implicit=implicit, heads=2, time=3.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(25):
        optimizer.zero_grad()
        nnf.cross_entropy(model(x, edge_index), y).backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = float((model(x, edge_index).argmax(dim=1) == y).float().mean())
    assert guess < 0.8  # the features alone do not tell
    assert accuracy > 0.9


@pytest.mark.parametrize("name", ["input_dropout", "dropout"])
@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan])
def test_a_probability_outside_zero_to_one_is_refused(name, p):
    with pytest.raises(ValueError, match=rf"Expected {name} in \[0, 1\) \(got {p}\)"):
        SINODE(5, 8, 3, **{name: p})


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"heads": 3, "attention_channels": 8}, r"multiple of heads \(got 8 and 3\)"),
    ({"implicit": "none"}, "implicit to be one of decay"),
    ({"time": 0.0}, "positive, finite time"),
])
def test_a_bad_option_of_the_layer_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SINODE(5, 8, 3, **kwargs)


@pytest.mark.parametrize(("inputs", "error", "message"), [
    ((X[:, :4], EDGES), ValueError, r"Expected 5 input channels \(got 4\)"),
    ((X[0], EDGES), ValueError, r"shape \(num_nodes, channels\) \(got \(5,\)\)"),
    ((X.double(), EDGES), TypeError, r"torch.float32 \(got torch.float64\); convert one"),
    ((X.long(), EDGES), TypeError, "real floating dtype"),
    ((X.to("meta"), EDGES), ValueError, r"device of the layer, cpu \(got meta\)"),
    ((X * math.inf, EDGES), ValueError, r"finite u0 \(got NaN or Inf\)"),
    ((X, EDGES + 2), ValueError, "node indices from 0 to 5"),
    ((X, EDGES, -WEIGHT), ValueError, "finite edge weights of at least 0"),
])
def test_bad_input_is_refused(inputs, error, message):
    with pytest.raises(error, match=message):
        SINODE(5, 8, 3)(*inputs)


# Presets


@pytest.mark.parametrize("name", presets.GRAND)
def test_grand_s_settings_are_those_of_its_data_set_and_may_be_overridden(name):
    preset = presets.GRAND[name]
    model = SINODE.grand(name, 5, 3)
    attention = model.conv.term.attention
    assert model.encoder.weight.shape == (preset.channels, 5)
    assert (attention.heads, attention.attention_channels) == (
        preset.heads, preset.attention_channels)
    assert model.conv.time == preset.time
    assert (model.norm is not None) == preset.batch_norm
    assert (model.conv.term.beta is not None) == preset.source
    assert model(X, EDGES).shape == (NODES, 3)
    assert issubclass(getattr(torch.optim, preset.optimizer), torch.optim.Optimizer)
    other = SINODE.grand(name, 5, 3, hidden_channels=16, heads=1, time=2.0, implicit="attention")
    assert other.conv.out_channels == 16
    assert (other.conv.time, other.conv.heads, other.conv.implicit) == (2.0, 1, "attention")


def test_a_data_set_that_grand_has_no_settings_for_is_refused():
    with pytest.raises(ValueError, match=r"one of Cora; CoauthorCS; .* \(got 'PubMed'\)"):
        SINODE.grand("PubMed", 5, 3)


def test_attributes_of_edges_reach_the_layer():
    model = SINODE(5, 8, 3, edge_dim=2)
    given = torch.randn(EDGES.size(1), 2)
    assert not torch.equal(model(X, EDGES, None, given), model(X, EDGES, None, -given))


def test_the_flow_is_decoded_at_several_times():
    torch.manual_seed(0)
    model = SINODE(5, 4, 3, time=2.0, step_size=0.5).double().eval()
    x = torch.randn(6, 5, dtype=torch.float64)
    edges = torch.randint(0, 6, (2, 12), generator=torch.Generator().manual_seed(0))
    found = model(x, edges, t=torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert found.shape == (4, 6, 3)
    torch.testing.assert_close(found[0], model.decoder(model.encoder(x).relu()))
    torch.testing.assert_close(found[2], model(x, edges), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found[3], found[2])
