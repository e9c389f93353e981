"""What may be done to a layer from outside, and is what it cannot honour refused, and harmless?"""

import pytest
import torch
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn import GCNConv, to_hetero_with_bases

from pyg_sinode import SINODE, GRANDAttention, SINODEConv

EDGES = torch.tensor([[0, 1, 2, 3, 1], [1, 0, 1, 2, 2]])
X = torch.linspace(-1, 1, 16).view(4, 4)


# Hooks


def nothing(module, *args):
    return None


REGISTRATIONS = [
    f"register_{what}_{when}" for when in ("forward_pre_hook", "forward_hook")
    for what in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")]


@pytest.mark.parametrize("register", REGISTRATIONS)
def test_a_hook_on_messages_is_refused_and_may_be_removed(register):
    conv = SINODEConv(4, 4)
    expected = conv(X, EDGES)
    for module in (conv, conv.term.attention):
        handle = getattr(module, register)(nothing)
        with pytest.raises(ValueError, match=r"Expected no hooks on messages.* with edge_weight"):
            conv(X, EDGES)
        handle.remove()
        assert torch.equal(conv(X, EDGES), expected)


def test_forward_hooks_of_modules_are_no_such_hooks():
    conv, seen = SINODEConv(4, 4), []
    conv.register_forward_hook(lambda *args: seen.append(1))
    conv.register_forward_pre_hook(lambda *args: seen.append(2))
    conv(X, EDGES)
    assert seen == [2, 1]


@pytest.mark.parametrize("fused", [True, False])
def test_attention_by_itself_honours_hooks_on_messages(fused):
    layer = GRANDAttention(4, heads=2, fused=fused)
    expected = layer(X, EDGES)
    handle = layer.register_message_forward_hook(lambda module, inputs, out: 2.0 * out)
    torch.testing.assert_close(layer(X, EDGES), 2.0 * expected)
    handle.remove()
    torch.testing.assert_close(layer(X, EDGES), expected)


METADATA = (["a"], [("a", "r", "a"), ("a", "s", "a")])


class Model(nn.Module):
    """One layer, as to_hetero_with_bases takes it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, edge_index):
        return self.layer(x, edge_index)


def hetero(layer):
    model = to_hetero_with_bases(Model(layer), METADATA, num_bases=1)
    edges = {METADATA[1][0]: EDGES, METADATA[1][1]: EDGES.flip(0)}
    return model, lambda: model({"a": X}, edges)["a"]


def test_relation_weights_are_refused_by_the_flow_and_honoured_by_attention():
    _, run = hetero(SINODEConv(4, 4, add_self_loops=False))
    with pytest.raises(ValueError, match="as to_hetero_with_bases registers them"):
        run()
    model, run = hetero(GRANDAttention(4))
    (conv,) = (m for m in model.modules() if isinstance(m, GRANDAttention))
    conv.edge_type_weight.data.fill_(1.0)
    expected = run()
    conv.edge_type_weight.data.fill_(3.0)
    torch.testing.assert_close(run(), 3.0 * expected)
    run().sum().backward()
    assert conv.edge_type_weight.grad.abs().min() > 0


# The flow, changed afterwards


def test_a_flow_changed_after_construction_is_refused():
    conv = SINODEConv(4, 4)
    for module in (conv, conv.term.attention):
        module.flow = "target_to_source"
        with pytest.raises(ValueError, match="turn the edges"):
            conv(X, EDGES)
        module.flow = "source_to_target"
    layer = GRANDAttention(4)
    layer.flow = "target_to_source"
    with pytest.raises(ValueError, match="turn the edges"):
        layer(X, EDGES)
    assert conv(X, EDGES).shape == (4, 4)


# Explanations of attention by itself


def test_masks_reach_attention_by_itself():
    layer = GRANDAttention(4, heads=2)
    expected = layer(X, EDGES)
    set_masks(layer, torch.ones(5), EDGES, apply_sigmoid=False)
    torch.testing.assert_close(layer(X, EDGES), expected)
    set_masks(layer, torch.zeros(5), EDGES, apply_sigmoid=False)
    assert not layer(X, EDGES).any()
    clear_masks(layer)
    torch.testing.assert_close(layer(X, EDGES), expected)


# Arguments


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"in_channels": (-1, -1)}, TypeError, "in_channels as one int .* bipartite"),
    ({"in_channels": 4.0}, TypeError, "in_channels as one int"),
    ({"time": nn.Parameter(torch.tensor(-2.0))}, ValueError, "positive, finite time"),
    ({"step_size": nn.Parameter(torch.tensor(2.0))}, ValueError, "step_size without requires_grad"),
    ({"time": torch.tensor([1.0, 2.0])}, TypeError, r"time as one number \(got \(2,\)\)"),
    ({"step_size": "1"}, TypeError, r"step_size as one number \(got '1'\); None makes"),
    ({"time": "1"}, TypeError, "time as one number"),
    ({"time": True}, TypeError, "time as one number"),
    ({"time": float("nan")}, ValueError, "positive, finite time"),
    ({"step_size": -1.0}, ValueError, "positive, finite step_size"),
])
def test_arguments_that_do_not_fit_are_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        SINODEConv(**{"in_channels": 4, "out_channels": 4, **options})


def test_a_time_assigned_later_is_checked_too():
    conv = SINODEConv(4, 4, time=torch.tensor(2.0), step_size=torch.tensor([0.5]))
    torch.testing.assert_close(conv(X, EDGES), conv(X, EDGES))
    assert conv.time == 2.0
    conv.time = nn.Parameter(torch.tensor(0.0))
    with pytest.raises(ValueError, match="positive, finite time"):
        conv(X, EDGES)
    other = SINODEConv(4, 4)
    other.step_size = "adaptive"
    with pytest.raises(TypeError, match="step_size as one number"):
        other(X, EDGES)


@pytest.mark.parametrize("layer", [SINODEConv(4, 4), SINODE(4, 4, 2), GRANDAttention(4)])
def test_weights_of_another_float_dtype_are_promoted_as_gcn_does(layer):
    weight = torch.rand(5)
    expected = layer(X, EDGES, weight.double().float())
    torch.testing.assert_close(layer(X, EDGES, weight.double()), expected)
    half = weight.bfloat16()
    torch.testing.assert_close(layer(X, EDGES, half), layer(X, EDGES, half.float()))
    assert GCNConv(4, 4)(X, EDGES, weight.double()).shape == (4, 4)
    with pytest.raises(ValueError, match=r"edge_weight of shape \(5,\).*squeeze\(-1\)"):
        layer(X, EDGES, weight.unsqueeze(1))
    with pytest.raises(TypeError, match="real floating dtype"):
        layer(X, EDGES, torch.ones(5, dtype=torch.long))


@pytest.mark.parametrize("layer", [SINODEConv(4, 4), GRANDAttention(4)])
def test_an_edge_index_that_knows_its_size_has_to_fit(layer):
    expected = layer(X, EDGES)
    for size in ((4, 4), (4, None), None):
        torch.testing.assert_close(layer(X, EdgeIndex(EDGES, sparse_size=size)), expected)
    with pytest.raises(ValueError, match="size of the adjacency matrix, 9"):
        layer(X, EdgeIndex(EDGES, sparse_size=(9, 9)))
    with pytest.raises(ValueError, match=r"a square adjacency matrix .got 4 x 9"):
        layer(X, EdgeIndex(EDGES, sparse_size=(4, 9)))


# Parameters that can be sharded, and older checkpoints


@pytest.mark.parametrize("layer", [
    SINODEConv(4, 4, separate_alpha=True, attention="exp_kernel"), GRANDAttention(
        4, score="exp_kernel"), SINODE(4, 4, 2, source=True)])
def test_every_parameter_has_a_dimension_and_old_checkpoints_are_read(layer):
    assert all(p.dim() > 0 for p in layer.parameters())
    old = {name: value.clone().squeeze(0) + 0.25 if value.shape == (1,) else value.clone()
           for name, value in layer.state_dict().items()}
    assert sum(value.dim() == 0 for value in old.values()) >= 2
    layer.load_state_dict(old)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, old[name].reshape(value.shape))
    assert layer(X, EDGES).isfinite().all()
    assert all(value.dim() == 0 for name, value in old.items() if name.endswith("alpha"))
