"""Do the options of a layer do what they say: times, end times, dropout, attributes, residual?"""

import pytest
import torch
from cases import EDGES, HALF, NODES
from conv_cases import (
    TIGHT,
    WEIGHT,
    distance,
    every_implicit,
    every_split,
    features,
    gradients,
    loss_of,
    make,
)
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch_geometric.data import Batch, Data
from torch_geometric.nn import TransformerConv
from torch_geometric.nn.models import GCN

from pyg_sinode import SINODEConv, imex_odeint, norms, operators

T = torch.tensor([0.0, 0.4, 1.3, 2.0], dtype=torch.float64)


# Output times


@every_implicit
def test_the_features_at_several_times_are_those_of_layers_that_end_there(implicit):
    conv, x = make(implicit, step_size=0.1), features()
    flow = conv(x, EDGES, WEIGHT, t=T)
    assert flow.shape == (4, NODES, 4)
    assert torch.equal(flow[0], conv.lin(x))
    for k in (1, 2, 3):
        conv.time = float(T[k])
        assert distance(flow[k], conv(x, EDGES, WEIGHT)) < (1e-12 if k == 1 else 1e-4)


def test_a_loss_at_irregular_times_reaches_the_times_and_everything_else():
    conv, x = make(step_size=0.5), features()
    t = T[1:].clone().requires_grad_()

    def flow(t):
        return conv(x, EDGES, WEIGHT, t=torch.cat([T[:1], t]))

    assert gradcheck(flow, (t,), fast_mode=True)
    loss_of(flow(t)).backward()
    assert all(p.grad is not None and bool(p.grad.any())
               for p in (t, conv.lin.weight, conv.term.alpha, conv.term.beta,
                         conv.term.attention.lin_key.weight))


def test_options_of_the_integrator_reach_it():
    seen = []
    conv = make(step_size=None, method="imex_rk4", norm=norms.rms, rtol=1e-3, atol=1e-4)
    by_rms = conv(features(), EDGES, WEIGHT)
    conv.norm = norms.maximum
    assert not torch.equal(conv(features(), EDGES, WEIGHT), by_rms)
    conv = make(step_size=0.5, dense=True, method="imex_rk3", progress=True,
                callback=lambda t, u: seen.append(t))
    conv(features(), EDGES, WEIGHT, t=T)
    assert seen == pytest.approx([0.5, 1.0, 1.5, 2.0])
    conv.callback = lambda t, u: t > 0.9
    assert conv(features(), EDGES, WEIGHT, t=T).shape == (3, NODES, 4)
    assert conv.stats.stopped_at == 1.0
    conv.callback, conv.dense = (lambda t, u: t > 0.6), False
    stopped = conv(features(), EDGES, WEIGHT)
    conv.callback, conv.time = None, conv.stats.stopped_at
    conv.step_size = conv.time / 2
    assert distance(stopped, conv(features(), EDGES, WEIGHT)) < 1e-14


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"t": T + 1}, ValueError, r"starts at 0, .* \(got 1.0\)"),
    ({"t": T[None]}, ValueError, r"1-D tensor .* \(got \(1, 4\)\)"),
    ({"t": T.flip(0)[3:]}, None, ""),
    ({"t": T[[0, 2, 1]]}, ValueError, "Expected t increasing"),
    ({"t": [0.0, 1.0]}, TypeError, "t as a tensor"),
    ({"t": T, "end_times": T[1:3]}, ValueError, r"either t or end_times \(got both\)"),
    ({"batch": torch.zeros(6).long()}, ValueError, "batch only with end_times"),
    ({"end_times": T[1:3]}, ValueError, r"Expected batch, .* with 2 end_times \(got none\)"),
    ({"end_times": T[None], "batch": torch.zeros(6).long()}, ValueError,
     r"end_times of shape \(num_graphs,\)"),
    ({"end_times": T[1:3], "batch": torch.zeros(6).bool()}, ValueError, "of torch.bool"),
    ({"end_times": T[:1], "batch": torch.zeros(6).long()}, ValueError, "not all of them 0"),
    ({"end_times": -T[1:2]}, ValueError, "finite end_times of at least 0"),
    ({"end_times": T[1:3], "batch": torch.zeros(5).long()}, ValueError, r"batch of shape \(6,\)"),
    ({"end_times": T[1:3], "batch": torch.full((6,), 2)}, ValueError, r"batch from 0 to 1"),
    ({"end_times": 1.0}, TypeError, "end_times as a tensor"),
    ({"edge_attr": torch.ones(9, 2)}, ValueError, "no edge_attr in a layer without edge_dim"),
])
def test_calls_that_do_not_fit_are_refused(options, error, message):
    conv = make()
    if error is None:
        assert conv(features(), EDGES, **options).shape == (1, NODES, 4)
        return
    with pytest.raises(error, match=message):
        conv(features(), EDGES, **options)
    assert conv.stats is None


# End times of a batch's graphs, and a trained time


def graphs():
    torch.manual_seed(5)
    found = []
    for count in (3, 5, 4):
        edges = torch.stack([torch.arange(count), (torch.arange(count) + 1) % count])
        edges = torch.cat([edges, edges.flip(0), torch.tensor([[0], [2]])], dim=1)
        found.append(Data(x=torch.randn(count, 3).double(), edge_index=edges,
                          weight=torch.rand(edges.size(1)).double()))
    return found


@every_implicit
@pytest.mark.parametrize("stochastic", ["row", "column"])
def test_a_batch_with_end_times_is_each_graph_alone_in_as_many_steps(implicit, stochastic):
    if implicit == "operator":
        pytest.skip("an operator of one size fits no graph of another")
    conv = make(implicit, stochastic=stochastic, step_size=0.4, source=True)
    whole, ends = Batch.from_data_list(graphs()), torch.tensor([0.7, 1.9, 0.0]).double()
    together = conv(whole.x, whole.edge_index, whole.weight, batch=whole.batch, end_times=ends)
    for k, graph in enumerate(graphs()):
        own = together[whole.batch == k]
        if k == 2:
            assert distance(own, conv.lin(graph.x)) < 1e-14
            continue
        conv.time, conv.step_size = float(ends[k]), float(ends[k]) / 5
        alone = conv(graph.x, graph.edge_index, graph.weight)
        assert distance(own, alone) < 1e-11
    conv.step_size, ends = 0.4, torch.tensor([0.7, 1.9, 0.3]).double().requires_grad_()
    assert gradcheck(lambda ends: conv(whole.x, whole.edge_index, whole.weight, batch=whole.batch,
                                       end_times=ends), (ends,), fast_mode=True)


def test_adaptive_steps_of_a_batch_with_end_times_meet_their_tolerance():
    conv = make("laplacian", step_size=None, method="imex_rk4", rtol=1e-7, atol=1e-9)
    whole, ends = Batch.from_data_list(graphs()), torch.tensor([0.7, 1.9, 1.2]).double()
    together = conv(whole.x, whole.edge_index, whole.weight, batch=whole.batch, end_times=ends)
    for k, graph in enumerate(graphs()):
        conv.time = float(ends[k])
        alone = conv(graph.x, graph.edge_index, graph.weight)
        assert distance(together[whole.batch == k], alone) < 1e-5


def test_slower_graphs_keep_the_solver_of_the_fastest():
    conv = make("laplacian", solver=None, in_channels=4)
    whole, ends = Batch.from_data_list(graphs()), torch.tensor([0.7, 1.9, 1.2]).double()
    x = torch.cat([whole.x, whole.x[:, :1]], dim=1)
    conv(x, whole.edge_index, batch=whole.batch, end_times=ends)
    # Chebyshev's iteration: it needs a disc with the eigenvalues of every graph.
    assert conv.stats.linear_iterations > 0
    operator = conv._equation(x, whole.edge_index, None, None, (ends / 1.9)[whole.batch].view(
        -1, 1))[0].implicit
    center, radius = operator.disc()
    dense = operator.mv(torch.eye(whole.num_nodes).double()).detach()
    values = torch.linalg.eigvals(dense)
    assert float((values - center).abs().max()) <= radius * (1 + 1e-12)
    assert operator.T.disc() == (center, radius)


@every_implicit
@pytest.mark.parametrize("step_size", [0.7, None], ids=["equal", "adaptive"])
def test_a_time_that_is_a_parameter_is_trained(implicit, step_size):
    time = nn.Parameter(torch.tensor([1.3]))
    options = {} if step_size else {"method": "imex_rk4", "rtol": 1e-6, "atol": 1e-8}
    conv, plain = (make(implicit, time=end, step_size=step_size, **options) for end in (time, 1.3))
    conv.time.data.fill_(1.3)
    assert conv.time is dict(conv.named_parameters())["time"]
    x = features()
    assert torch.equal(conv(x, EDGES, WEIGHT), plain(x, EDGES, WEIGHT))
    assert repr(conv) == repr(plain)
    conv(x, EDGES, WEIGHT).square().sum().backward()
    found = conv.time.grad
    losses = []
    for plain.time in (1.3 + 1e-5, 1.3 - 1e-5):
        losses.append(plain(x, EDGES, WEIGHT).square().sum().detach())
    difference = (losses[0] - losses[1]) / 2e-5
    assert found.shape == (1,)
    assert float(found) == pytest.approx(float(difference), rel=1e-5 if step_size else 1e-2)


def test_a_frozen_time_is_kept_as_a_parameter_and_a_plain_tensor_is_not_lost():
    time = nn.Parameter(torch.tensor(2.0), requires_grad=False)
    conv = SINODEConv(4, 4, time=time)
    conv.requires_grad_(True)
    conv(features(4, dtype=torch.float32), EDGES).sum().backward()
    assert time.grad is not None
    with pytest.raises(ValueError, match=r"a number or a torch.nn.Parameter .* wrap it"):
        SINODEConv(4, 4, time=torch.tensor(2.0, requires_grad=True))


# Dropout of edges


@every_split
def test_dropout_leaves_edges_out_once_a_pass_and_never_a_self_loop(split):
    conv, x = make(split, dropout=0.5), features()
    conv.eval()
    assert torch.equal(conv(x, EDGES, WEIGHT), make(split)(x, EDGES, WEIGHT))
    conv.train()
    torch.manual_seed(3)
    out, (edges, alpha) = conv(x, EDGES, WEIGHT, return_attention_weights=True)
    gone = (alpha == 0).all(dim=1)
    assert 0 < int(gone.sum()) < EDGES.size(1)
    assert not bool(gone[edges[0] == edges[1]].any())
    sums = torch.zeros(NODES, 2, dtype=torch.float64).index_add(0, edges[1], alpha)
    assert distance(sums, torch.ones_like(sums)) < 1e-14
    # The same as the graph without those edges, in every evaluation and in J.
    order = conv.eval()(x, EDGES, WEIGHT, return_attention_weights=True)[1][0]
    assert torch.equal(order, edges)
    kept = [k for k in range(EDGES.size(1)) if k in given_places(EDGES, edges, ~gone)]
    assert distance(out, conv(x, EDGES[:, kept], WEIGHT[kept])) < 1e-12


def given_places(given, edges, chosen):
    """Which of the given edges are the chosen of those returned: non-loops keep their order."""
    places = [k for k in range(given.size(1)) if given[0, k] != given[1, k]]
    found = {k for at, k in enumerate(places) if chosen[at]}
    return found | {k for k in range(given.size(1)) if given[0, k] == given[1, k]}


def test_each_pass_in_training_draws_anew_and_its_gradient_is_of_its_own_draw():
    conv, x = make(dropout=0.5, graph_memory=0), features()
    assert not torch.equal(conv(x, EDGES), conv(x, EDGES))
    found = []
    for gradient in ("discrete", "backprop"):
        torch.manual_seed(8)
        found.append(gradients(conv, gradient))
    for name, expected in found[1].items():
        assert float((found[0][name] - expected).abs().max()) < 1e-10, name


def test_with_dropped_edges_the_flow_stays_bounded():
    torch.manual_seed(0)
    edges = torch.randint(0, 60, (2, 400))
    x = torch.randn(60, 8)
    for split in ("laplacian", "attention"):
        conv = SINODEConv(8, 8, implicit=split, dropout=0.5, time=30.0, source=False)
        assert float(conv(x, edges).detach().abs().max()) <= float(x.abs().max()) * 1.01


# Attributes of edges


def attributes():
    return torch.linspace(-2, 2, 18, dtype=torch.float64).sin().view(9, 2)


@every_split
@pytest.mark.parametrize("fused", [True, False])
def test_attributes_of_edges_count_in_the_score_as_in_transformerconv(split, fused):
    conv = make(split, edge_dim=2, add_self_loops=False, in_channels=4)
    with torch.no_grad():
        conv.term.attention.lin_edge.weight.copy_(torch.linspace(-1, 1, 8).view(4, 2))
    attention, x = conv.term.attention, features(4)
    other = TransformerConv(4, 2, heads=2, edge_dim=2, root_weight=False).double()
    for own, theirs in ((attention.lin_query, other.lin_query), (attention.lin_key, other.lin_key)):
        theirs.load_state_dict(own.state_dict())
    other.lin_edge.load_state_dict(attention.lin_edge.state_dict())
    _, (edges, expected) = other(x, EDGES, attributes(), return_attention_weights=True)
    out, (own, alpha) = conv(x, EDGES, t=torch.zeros(1), edge_attr=attributes(),
                             return_attention_weights=True)
    assert torch.equal(own, edges)
    assert distance(alpha, expected) < 1e-14
    attention.fused = fused
    messages = expected.mean(dim=1, keepdim=True) * x[EDGES[0]]
    product = torch.zeros_like(x).index_add(0, EDGES[1], messages)
    assert distance(attention(x, EDGES, edge_attr=attributes()), product) < 1e-14
    assert conv(x, EDGES, edge_attr=attributes()).shape == out[0].shape


@every_split
def test_gradients_of_attributes_are_those_of_finite_differences(split):
    conv = make(split, edge_dim=2)
    a = attributes().requires_grad_()
    weight = conv.term.attention.lin_edge.weight

    def output(a, weight):
        swapped = {"term.attention.lin_edge.weight": weight}
        return functional_call(conv, swapped, (features(), EDGES, WEIGHT), {"edge_attr": a})

    assert gradcheck(output, (a, weight), fast_mode=True)


def test_attributes_of_one_number_may_be_a_vector_and_those_that_do_not_fit_are_refused():
    conv = make(edge_dim=1)
    one = attributes()[:, 0]
    assert torch.equal(conv(features(), EDGES, edge_attr=one),
                       conv(features(), EDGES, edge_attr=one.view(-1, 1).float().double()
                            + (one - one.float().double()).view(-1, 1)))
    for given, error, message in (
            (None, ValueError, r"edge_attr of shape \(9, 1\) .* \(got none\)"),
            (attributes(), ValueError, r"edge_attr of shape \(9, 1\) \(got \(9, 2\)\)"),
            (one.long(), TypeError, "edge_attr of a real floating dtype"),
            (one.to("meta"), ValueError, "edge_attr on the device of the features")):
        with pytest.raises(error, match=message):
            conv(features(), EDGES, edge_attr=given)


# Bias, residual, heads, and what GCNConv accepts


def test_bias_and_residual_are_added_to_every_output():
    x = features()
    conv, plain = make(residual=True), make(bias=True)
    assert not any("bias" in name for name, _ in make(bias=False).named_parameters()
                   if "attention" not in name)
    plain.load_state_dict({k: v for k, v in conv.state_dict().items() if k != "res.weight"})
    with torch.no_grad():
        conv.bias.copy_(torch.arange(4.0))
    flow = plain(x, EDGES, WEIGHT, t=T)
    expected = flow + x @ conv.res.weight.t() + torch.arange(4.0)
    assert distance(conv(x, EDGES, WEIGHT, t=T), expected) < 1e-14
    assert SINODEConv(4, 4, bias=False).bias is None
    assert SINODEConv(4, 4).bias.shape == (4,)
    loss_of(conv(x, EDGES, WEIGHT)).backward()
    assert all(p.grad is not None for p in conv.parameters())


def test_a_checkpoint_without_a_bias_is_read_as_one_of_zero():
    conv, old = make(), make()
    state = old.state_dict()
    del state["bias"]
    nn.init.ones_(conv.bias)
    for version in (2, None):  # not an older one: the bias is missing
        state._metadata[""]["version"] = version
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "bias"'):
            conv.load_state_dict(state)
        conv.load_state_dict(state, strict=False)
        assert bool((conv.bias == 1.0).all())
    state._metadata[""]["version"] = 1
    conv.load_state_dict(state)
    assert not bool(conv.bias.any())
    with pytest.raises(RuntimeError, match="Missing key"):
        conv.load_state_dict({})


def test_heads_that_do_not_divide_the_width_get_the_next_multiple():
    conv = SINODEConv(3, 7, heads=4)
    assert conv.term.attention.attention_channels == 8
    assert conv(features(dtype=torch.float32), EDGES).shape == (NODES, 7)


class Stack(GCN):
    """PyG's own GCN, of another layer."""

    def init_conv(self, in_channels, out_channels, **kwargs):
        return SINODEConv(in_channels, out_channels, **kwargs)


def test_what_gcnconv_accepts_is_accepted():
    x = features(dtype=torch.float32)
    conv = SINODEConv(3, 4, improved=True, cached=True, add_self_loops=None, normalize=True,
                      bias=True)
    same = SINODEConv(3, 4, fill_value=2.0)
    same.load_state_dict(conv.state_dict())
    assert torch.equal(conv(x, EDGES, WEIGHT.float()), same(x, EDGES, WEIGHT.float()))
    other = EDGES.flip(0)
    assert torch.equal(conv(x, other), same(x, other))  # another graph is noticed, cached or not
    model = Stack(3, 8, num_layers=2, out_channels=2, cached=True, dropout=0.5, norm="batch")
    assert model(x, EDGES, edge_weight=WEIGHT.float()).shape == (NODES, 2)


# The equation


@every_implicit
def test_the_equation_of_a_layer_can_be_integrated_by_itself(implicit):
    conv, x = make(implicit, bias=False), features()
    G, J, u0, args = conv.equation(x, EDGES, WEIGHT)
    u = imex_odeint(G, J, u0, torch.tensor([0.0, 1.3], dtype=torch.float64), method="imex_rk2",
                    step_size=0.7, solver=TIGHT[implicit], args=args)
    assert distance(u[-1], conv(x, EDGES, WEIGHT)) < 1e-14
    assert isinstance(conv.equation(x, EDGES).implicit, operators.LinearOperator)
    found = torch.autograd.grad(loss_of(u), [*conv.parameters()])
    assert all(bool(g.isfinite().all()) for g in found)


class Driven(nn.Module):
    """The term of a layer and one of the user's own."""

    def __init__(self, term):
        super().__init__()
        self.term, self.rate = term, nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t, u, *args):
        return self.term(t, u, *args) + self.rate * t * torch.ones_like(u)


def test_terms_of_ones_own_can_be_added_to_it():
    conv, x = make(), features()
    G, J, u0, args = conv.equation(x, EDGES, WEIGHT)
    G, t = Driven(G), torch.tensor([0.0, 1.0], dtype=torch.float64)
    u = imex_odeint(G, J, u0, t, step_size=0.1, args=args)
    loss_of(u).backward()
    assert float(G.rate.grad.abs()) > 1e-3
    assert all(p.grad is not None for p in G.parameters())
    with pytest.raises(ValueError, match="Expected 3 input channels"):
        conv.equation(x[:, :2], EDGES)


def test_undirected_edges_keep_a_symmetric_laplacian_without_dropout():
    edges = torch.cat([HALF, HALF.flip(0)], dim=1)
    operator = make("laplacian").equation(features(), edges).implicit
    assert operator.symmetric()
