"""Is SINODEConv a PyG layer, do its splits integrate one equation, and do gradients reach all?"""

import copy
import io
import math
import pickle

import pytest
import torch
import torch_geometric.nn
import torch_geometric.typing
from cases import EDGES, HALF, NODES
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch_geometric.data import Batch, Data
from torch_geometric.nn.models.basic_gnn import BasicGNN

import pyg_sinode.conv
from pyg_sinode import SINODEConv, imex_odeint, operators, solvers
from pyg_sinode.conv import SPLITS

WEIGHT = torch.linspace(0.4, 2.0, EDGES.size(1), dtype=torch.float64)
NONE = EDGES[:, :0]
ISOLATED = 5


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
    """The same layer for every split: float64, two heads, and parameters away from their start."""
    torch.manual_seed(1)
    kwargs = {"heads": 2, "time": 1.3, "step_size": 0.7} | kwargs
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


def distance(a, b):
    """The largest difference relative to the largest entry of the second."""
    assert a.shape == b.shape
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def loss_of(y):
    """A loss with another weight for each entry."""
    return (y * torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).view_as(y)).sum()


# A layer of PyG


def test_str_and_sizes():
    x = features(dtype=torch.float32)
    conv = SINODEConv(3, 8)
    assert str(conv) == "SINODEConv(3, 8, heads=1)"
    assert conv(x, EDGES).size() == (NODES, 8)
    conv = SINODEConv(3, 8, heads=4)
    assert str(conv) == "SINODEConv(3, 8, heads=4)"
    assert conv(x, EDGES, WEIGHT.float()).size() == (NODES, 8)
    assert isinstance(conv, torch_geometric.nn.MessagePassing)


def test_a_linear_map_comes_first_only_when_the_widths_differ():
    assert SINODEConv(4, 4).lin is None
    assert not any(name.startswith("lin.") for name in SINODEConv(4, 4).state_dict())
    conv = make()
    direct = make(in_channels=4)
    direct.term.load_state_dict(conv.term.state_dict())
    x = features()
    assert torch.equal(conv(x, EDGES, WEIGHT), direct(conv.lin(x), EDGES, WEIGHT))


def test_lazy_in_channels_come_from_the_first_input():
    conv = SINODEConv(-1, 4)
    assert str(conv) == "SINODEConv(-1, 4, heads=1)"
    assert conv(torch.randn(NODES, 7), EDGES).size() == (NODES, 4)
    assert conv.lin.weight.size() == (4, 7)
    # Of equal widths too: a lazy layer cannot leave its linear map out.
    assert SINODEConv(-1, 4)(torch.randn(NODES, 4), EDGES).size() == (NODES, 4)
    with pytest.raises(ValueError, match="Expected 7 input channels \\(got 5\\)"):
        conv(torch.randn(NODES, 5), EDGES)


def test_reset_parameters_draws_anew_and_leaves_an_operator_of_the_users_alone():
    conv = make("operator")
    given = conv.implicit.tensors[0].clone()
    before = copy.deepcopy(conv.state_dict())
    torch.manual_seed(7)
    conv.reset_parameters()
    first = copy.deepcopy(conv.state_dict())
    assert all(not torch.equal(before[name], first[name])
               for name in before if not name.startswith("implicit"))
    assert conv.term.alpha.item() == 0.0
    assert conv.term.beta.item() == 0.0
    assert torch.equal(conv.implicit.tensors[0], given)
    conv.reset_parameters()
    assert not torch.equal(conv.lin.weight, first["lin.weight"])
    torch.manual_seed(7)
    conv.reset_parameters()
    assert all(torch.equal(value, first[name]) for name, value in conv.state_dict().items())


def adjacency(layout, weight):
    """The matrix M[target, source] of the graph of these tests in a sparse layout."""
    source, target = EDGES
    if layout == "SparseTensor":
        return torch_geometric.typing.SparseTensor(
            row=target, col=source, value=weight, sparse_sizes=(NODES, NODES))
    coo = torch.sparse_coo_tensor(torch.stack([target, source]), weight, (NODES, NODES),
                                  check_invariants=True)
    return {"coo": lambda: coo, "csr": coo.to_sparse_csr, "csc": coo.to_sparse_csc}[layout]()


with_torch_sparse = pytest.mark.skipif(not torch_geometric.typing.WITH_TORCH_SPARSE,
                                       reason="torch_sparse is not installed")
every_layout = pytest.mark.parametrize(
    "layout", ["coo", "csr", "csc", pytest.param("SparseTensor", marks=with_torch_sparse)])


@every_split
@every_layout
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
def test_every_form_of_the_adjacency_gives_the_same_result_and_gradients(layout, split):
    # PyTorch's layouts merge the duplicate edge into one whose weight is the sum; as weights count
    # before the normalisation, that is the same graph. SparseTensor keeps it.
    conv = make(split)
    x = features().requires_grad_()
    results, gradients = [], []
    for graph in (lambda w: (EDGES, w), lambda w: (adjacency(layout, w),)):
        weight = WEIGHT.clone().requires_grad_()
        results.append(conv(x, *graph(weight)))
        gradients.append(torch.autograd.grad(loss_of(results[-1]), [x, weight]))
    assert distance(results[1], results[0]) < 1e-12
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        assert distance(found, expected) < 1e-10
    # Turned around, the directed graph is another one.
    assert distance(conv(x, EDGES.flip(0), WEIGHT), results[0]) > 1e-3


@with_torch_sparse
def test_a_sparse_tensor_without_values_is_a_graph_without_weights():
    conv, x = make(), features()
    assert distance(conv(x, adjacency("SparseTensor", None)), conv(x, EDGES)) < 1e-14


@every_split
def test_no_weights_are_weights_of_one(split):
    conv, x = make(split), features()
    assert distance(conv(x, EDGES, torch.ones_like(WEIGHT)), conv(x, EDGES)) < 1e-12
    assert distance(conv(x, EDGES, WEIGHT), conv(x, EDGES)) > 1e-3


def test_edge_indices_of_32_bits_are_the_same_graph():
    conv, x = make(), features()
    assert torch.equal(conv(x, EDGES.int(), WEIGHT), conv(x, EDGES, WEIGHT))


class Stack(BasicGNN):
    """PyG's own stack of layers, as its GCN is, with SINODEConv in GCNConv's place."""

    supports_edge_weight, supports_edge_attr = True, False

    def init_conv(self, in_channels, out_channels, **kwargs):
        return SINODEConv(in_channels, out_channels, **kwargs)


def test_it_takes_the_place_of_gcnconv_in_a_sequential_and_in_pygs_stacks():
    x = features(dtype=torch.float32)
    sizes = []
    for conv in (torch_geometric.nn.GCNConv, SINODEConv):
        model = torch_geometric.nn.Sequential("x, edge_index, edge_weight", [
            (conv(3, 8), "x, edge_index, edge_weight -> x"), nn.ReLU(),
            (conv(-1, 2), "x, edge_index, edge_weight -> x"), nn.LogSoftmax(dim=-1)])
        out = model(x, EDGES, WEIGHT.float())
        out[:, 0].sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        sizes.append(out.size())
    assert sizes == [(NODES, 2)] * 2
    stack = Stack(3, 8, num_layers=3, out_channels=2, jk="cat", heads=2)
    assert stack(x, EDGES, edge_weight=WEIGHT.float()).size() == (NODES, 2)


def test_it_learns():
    x, target = features(), features(4)
    conv = make("attention", add_self_loops=False)
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (conv(x, EDGES, WEIGHT) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@every_split
def test_float32_agrees_with_float64_to_its_tolerance(split):
    conv = make(split, solver=None)
    expected = conv(features(), EDGES, WEIGHT)
    found = conv.float()(features(dtype=torch.float32), EDGES, WEIGHT.float())
    assert found.dtype == torch.float32
    assert distance(found.double(), expected) < 1e-4


@every_implicit
def test_inference_mode_gives_the_same_and_training_goes_on_after_it(implicit):
    conv, x = make(implicit), features()
    with torch.inference_mode():
        found = conv(x, EDGES, WEIGHT)
    y = conv(x, EDGES, WEIGHT)
    torch.testing.assert_close(found, y, rtol=1e-12, atol=1e-13)
    loss_of(y).backward()
    assert all(p.grad is not None for p in conv.parameters())


# Graphs of every kind


@every_split
def test_a_batch_of_graphs_is_the_graphs_apart(split):
    x = features(nodes=NODES + 4)
    other = torch.tensor([[0, 1, 2, 3, 3], [1, 0, 3, 2, 0]])
    graphs = [Data(x=x[:NODES], edge_index=EDGES, edge_weight=WEIGHT),
              Data(x=x[NODES:], edge_index=other, edge_weight=WEIGHT[:5])]
    conv = make(split)
    apart = torch.cat([conv(g.x, g.edge_index, g.edge_weight) for g in graphs])
    batch = Batch.from_data_list(graphs)
    assert distance(conv(batch.x, batch.edge_index, batch.edge_weight), apart) < 1e-11


@every_split
def test_nodes_in_another_order_give_the_result_in_that_order(split):
    conv, x = make(split), features()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    there = torch.argsort(order)
    assert distance(conv(x[order], there[EDGES], WEIGHT), conv(x, EDGES, WEIGHT)[order]) < 1e-11


@every_split
def test_edges_in_another_order_are_the_same_graph(split):
    conv, x = make(split), features()
    order = torch.tensor([4, 8, 1, 0, 7, 2, 6, 3, 5])
    assert distance(conv(x, EDGES[:, order], WEIGHT[order]), conv(x, EDGES, WEIGHT)) < 1e-11


@every_split
@pytest.mark.parametrize("in_channels", [3, 4])
def test_zero_nodes_give_zero_rows_and_a_gradient(split, in_channels):
    conv = make(split, in_channels)
    x = torch.zeros(0, in_channels, dtype=torch.float64, requires_grad=True)
    out = conv(x, NONE)
    assert out.shape == (0, 4)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert all(not p.grad.any() for p in conv.parameters())


def alone(self_loops, beta, time, rate=0.5):
    """What a node without neighbours multiplies its features with: alpha is 1/2 at the start."""
    if self_loops:  # A x = x, so that the source alone is left
        return 1.0 + beta * time
    return math.exp(-rate * time) + beta * (1 - math.exp(-rate * time)) / rate


@every_split
@pytest.mark.parametrize("self_loops", [True, False], ids=["self_loops", "no_self_loops"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("edges", [EDGES, NONE], ids=["isolated", "edgeless"])
def test_a_node_without_neighbours_follows_the_closed_form(split, self_loops, beta, edges):
    conv = SINODEConv(4, 4, implicit=split, add_self_loops=self_loops, time=2.0, step_size=0.2,
                      method="ark548l2sa", solver=TIGHT[split]).double()
    conv.term.beta.data.fill_(beta)
    x = features(4)
    expected = alone(self_loops, beta, 2.0) * x
    lonely = slice(ISOLATED, None) if edges is EDGES else slice(None)
    out = conv(x, edges)
    assert distance(out[lonely], expected[lonely]) < 1e-8
    if edges is EDGES:
        assert distance(out[:ISOLATED], expected[:ISOLATED]) > 1e-2


@every_split
def test_a_single_node_is_a_node_without_neighbours(split):
    conv = SINODEConv(4, 4, implicit=split, add_self_loops=False, time=2.0, step_size=0.2,
                      method="ark548l2sa", solver=TIGHT[split]).double()
    x = features(4, nodes=1)
    assert distance(conv(x, NONE), math.exp(-1.0) * x) < 1e-8


@every_split
def test_an_edge_of_weight_zero_is_no_edge(split):
    conv, x = make(split), features()
    # A score far above the others of its row must not matter either.
    x[3] *= 40
    weight = torch.where(EDGES[0] == 3, 0.0, WEIGHT)
    kept = weight > 0
    without = conv(x, EDGES[:, kept], WEIGHT[kept])
    assert 0 < int((~kept).sum()) < kept.numel()
    assert distance(conv(x, EDGES, weight), without) < 1e-12
    assert distance(conv(x, EDGES, WEIGHT), without) > 1e-3


@pytest.mark.parametrize("normalizer", ["softmax", "squareplus"])
def test_an_edge_of_weight_zero_has_the_gradient_of_bringing_it_back(normalizer):
    conv, x = make(normalizer=normalizer), features()
    weight = torch.where(EDGES[0] == 3, 0.0, WEIGHT).requires_grad_()
    (found,) = torch.autograd.grad(loss_of(conv(x, EDGES, weight)), weight)
    for edge in (weight == 0).nonzero():
        small = 1e-6 * torch.zeros_like(weight).index_fill(0, edge, 1.0)
        with torch.no_grad():
            rise = loss_of(conv(x, EDGES, weight + small)) - loss_of(conv(x, EDGES, weight))
        assert abs(rise) > 1e-9
        assert float(found[edge]) == pytest.approx(float(rise) / 1e-6, rel=1e-3)


@every_split
@pytest.mark.parametrize("stochastic", ["row", "column"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["bare", "weighted"])
def test_self_loops_of_weight_zero_are_no_self_loops(split, stochastic, weight):
    x = features()
    filled, none, ones = (
        make(split, stochastic=stochastic, **kwargs)(x, EDGES, weight)
        for kwargs in ({"fill_value": 0.0}, {"add_self_loops": False}, {}))
    assert distance(filled, none) < 1e-12
    assert distance(ones, none) > 1e-3


@every_split
@pytest.mark.parametrize("fill_value", [1.0, 0.3])
def test_self_loops_are_added_where_there_are_none(split, fill_value):
    edges, weight = entries()
    weight[WEIGHT.numel():] = fill_value
    x = features()
    found = make(split, fill_value=fill_value)(x, EDGES, WEIGHT)
    assert distance(found, make(split, add_self_loops=False)(x, edges, weight)) < 1e-12


@every_split
def test_only_the_ratio_of_the_weights_counts(split):
    conv, x = make(split, add_self_loops=False), features()
    assert distance(conv(x, EDGES, 7.0 * WEIGHT), conv(x, EDGES, WEIGHT)) < 1e-11


# One equation, however it is split


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
    conv, zero = make(source=False), make()
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


# Attention weights


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


# Gradients


def everything(conv, x, weight):
    """Names and tensors of all that a gradient should reach."""
    return ["x", "edge_weight", *dict(conv.named_parameters())], [x, weight, *conv.parameters()]


def gradients(conv, gradient="discrete"):
    conv.gradient = gradient
    x, weight = features().requires_grad_(), WEIGHT.clone().requires_grad_()
    names, tensors = everything(conv, x, weight)
    found = torch.autograd.grad(loss_of(conv(x, EDGES, weight)), tensors)
    return dict(zip(names, found, strict=True))


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


# Statistics


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


# After training


def file_round_trip(conv):
    buffer = io.BytesIO()
    torch.save(conv, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@every_implicit
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda conv: pickle.loads(pickle.dumps(conv)), file_round_trip],
    ids=["deepcopy", "pickle", "torch.save"])
def test_a_copy_is_the_same_layer_on_its_own_parameters_without_statistics(implicit, copied):
    conv, x = make(implicit), features()
    expected = conv(x, EDGES, WEIGHT)
    other = copied(conv)
    assert conv.stats is not None
    assert other.stats is None
    assert torch.equal(other(x, EDGES, WEIGHT), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert torch.equal(conv(x, EDGES, WEIGHT), expected)
    changed = other(x, EDGES, WEIGHT)
    assert distance(changed, expected) > 1e-3
    # Every parameter of the copy is still the one that it computes with.
    loss_of(changed).backward()
    assert all(p.grad is not None for p in other.parameters())
    assert all(p.grad is None for p in conv.parameters())


@every_implicit
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_a_state_dict_carries_all_that_was_learned(implicit, assign):
    conv, x = make(implicit), features()
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.mul_(0.9)
    expected = conv(x, EDGES, WEIGHT)
    state = conv.state_dict()
    assert set(state) == set(dict(conv.named_parameters()))  # and no statistics
    other = make(implicit)
    assert distance(other(x, EDGES, WEIGHT), expected) > 1e-4
    other.load_state_dict(copy.deepcopy(state), assign=assign)
    assert torch.equal(other(x, EDGES, WEIGHT), expected)


def test_time_step_scheme_and_solver_may_be_changed_after_training():
    conv, x = make("attention"), features()
    before = conv(x, EDGES, WEIGHT)
    for name, value in (("time", 2.1), ("step_size", 0.3), ("method", "ars443"),
                        ("solver", solvers.Direct())):
        setattr(conv, name, value)
        after = conv(x, EDGES, WEIGHT)
        fresh = make("attention", time=conv.time, step_size=conv.step_size, method=conv.method,
                     solver=conv.solver)
        assert torch.equal(after, fresh(x, EDGES, WEIGHT)), name
        if name == "solver":
            assert distance(after, before) < 1e-10
            assert conv.stats.linear_iterations == 0
        else:
            assert distance(after, before) > 1e-6, name
        before = after


# Swapped parameters and operators of the user's


@every_implicit
def test_functional_call_computes_with_the_swapped_parameters_and_differentiates_them(implicit):
    conv, other = make(implicit), make(implicit)
    x = features()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.8)
    swapped = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    found = functional_call(conv, swapped, (x, EDGES, WEIGHT))
    expected = other(x, EDGES, WEIGHT)
    assert torch.equal(found, expected)
    loss_of(found).backward()
    loss_of(expected).backward()
    for name, parameter in other.named_parameters():
        assert torch.equal(swapped[name].grad, parameter.grad), name
    assert all(p.grad is None for p in conv.parameters())


def test_the_parameter_of_an_operator_is_the_layer_s_and_follows_its_dtype():
    rate = nn.Parameter(torch.tensor(-0.4))
    conv = SINODEConv(4, 4, implicit=operators.ScaledIdentity(rate), step_size=0.5)
    assert any(p is rate for p in conv.parameters())
    assert conv(features(4, dtype=torch.float32), EDGES).dtype == torch.float32
    conv.double()
    out = conv(features(4), EDGES)
    assert out.dtype == torch.float64
    loss_of(out).backward()
    (own,) = conv.implicit_parameters
    assert own.dtype == torch.float64
    assert own.grad is not None
    before = out.detach()
    with torch.no_grad():
        own.mul_(3.0)
    assert distance(conv(features(4), EDGES), before) > 1e-4


def test_training_moves_the_parameter_of_an_operator():
    conv = make("operator", step_size=1.3)
    start = conv.implicit.tensors[0].detach().clone()
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.5)
    before = conv(features(), EDGES, WEIGHT)
    loss_of(before).backward()
    optimizer.step()
    assert not torch.equal(conv.implicit.tensors[0], start)
    # No factor of the old matrix is left.
    fresh = make("operator", step_size=1.3)
    fresh.load_state_dict(conv.state_dict())
    assert torch.equal(conv(features(), EDGES, WEIGHT), fresh(features(), EDGES, WEIGHT))


# Bad input


@pytest.mark.parametrize(("kwargs", "error", "message"), [
    ({"heads": 3}, ValueError, r"attention_channels to be a multiple of heads \(got 4 and 3\)"),
    ({"heads": 0}, ValueError, r"multiple of heads \(got 4 and 0\)"),
    ({"heads": 4, "attention_channels": 6}, ValueError, r"multiple of heads \(got 6 and 4\)"),
    ({"attention": "dot"}, ValueError, r"attention score to be one of scaled_dot, .* \(got 'dot'"),
    ({"normalizer": "sparsemax"}, ValueError, "normalizer to be one of softmax, squareplus"),
    ({"stochastic": "both"}, ValueError, "stochastic to be one of row, column"),
    ({"implicit": "diagonal"}, ValueError, "implicit to be one of decay, laplacian, attention"),
    ({"implicit": torch.eye(4)}, TypeError, r"implicit as one of .* \(got Tensor\)"),
    ({"method": "rk4"}, ValueError, r"a scheme's name.*\(got 'rk4'\); use imex_euler"),
    ({"time": -1.0}, ValueError, r"positive, finite time \(got -1.0\)"),
    ({"time": 0.0}, ValueError, r"positive, finite time \(got 0.0\)"),
    ({"time": math.inf}, ValueError, r"positive, finite time \(got inf\)"),
    ({"step_size": -0.5}, ValueError, r"positive, finite step_size \(got -0.5\)"),
    ({"step_size": 0.0}, ValueError, r"positive, finite step_size \(got 0.0\)"),
    ({"step_size": math.nan}, ValueError, r"positive, finite step_size \(got nan\)"),
    ({"fill_value": -1.0}, ValueError, r"fill_value of at least 0 \(got -1.0\)"),
    ({"fill_value": math.nan}, ValueError, r"fill_value of at least 0 \(got nan\)"),
    ({"flow": "target_to_source"}, ValueError, r"edge_index\.flip\(0\)"),
    ({"aggr": "max"}, ValueError, r"aggr to be one of add, sum \(got 'max'\)"),
    ({"edge_dim": 2}, TypeError, "edge_dim"),
])
def test_a_bad_option_is_refused_when_the_layer_is_made(kwargs, error, message):
    with pytest.raises(error, match=message):
        SINODEConv(4, 4, **kwargs)


X = features(4, dtype=torch.float32)
W = WEIGHT.float()
META = torch.device("meta")


@pytest.mark.parametrize(("inputs", "error", "message"), [
    ((X[0], EDGES), ValueError, r"shape \(num_nodes, channels\) \(got \(4,\)\)"),
    ((X[None], EDGES), ValueError, r"\(got \(1, 6, 4\)\); put several graphs into one Batch"),
    ((X[:, :3], EDGES), ValueError, r"Expected 4 input channels \(got 3\)"),
    (((X, X), EDGES), ValueError, "bipartite graphs are not supported"),
    (((X, None), EDGES), ValueError, "bipartite graphs are not supported"),
    ((None, EDGES), TypeError, r"x as a tensor \(got NoneType\)"),
    ((X.long(), EDGES), TypeError, r"real floating dtype \(got torch.int64\)"),
    ((torch.complex(X, X), EDGES), TypeError, r"real floating dtype \(got torch.complex64\)"),
    ((X.double(), EDGES), TypeError, r"torch.float32 \(got torch.float64\); convert one"),
    ((X / 0, EDGES), ValueError, r"finite u0 \(got NaN or Inf\)"),
    ((X.to(META), EDGES), ValueError, r"features on the device .* cpu \(got meta\); move"),
    ((X, EDGES.to(META)), ValueError, r"the graph on the device .* cpu \(got meta\); move"),
    ((X, EDGES, W.to(META)), ValueError, r"edge_weight on the device .* cpu \(got meta\); move"),
    ((X, EDGES + 2), ValueError, r"node indices from 0 to 5 in edge_index \(got 2 to 6\)"),
    ((X[:4], EDGES), ValueError, r"node indices from 0 to 3 in edge_index \(got 0 to 4\)"),
    ((X, EDGES - 1), ValueError, r"node indices from 0 to 5 in edge_index \(got -1 to 3\)"),
    ((X, EDGES.t()), ValueError, r"shape \(2, num_edges\) \(got \(9, 2\)\)"),
    ((X, EDGES.float()), TypeError, r"edge_index of an integer dtype \(got torch.float32\)"),
    ((X, EDGES.tolist()), TypeError, r"edge_index tensor.* \(got list\)"),
    ((X, EDGES, W[:-1]), ValueError, r"shape \(9,\), one number per edge \(got \(8,\)\)"),
    ((X, EDGES, W[:, None]), ValueError, r"one number per edge \(got \(9, 1\)\)"),
    ((X, EDGES, W.tolist()), TypeError, r"edge_weight as a tensor \(got list\)"),
    ((X, EDGES, W.long()), TypeError, r"edge_weight of a real floating dtype \(got torch.int64\)"),
    ((X, EDGES, W - 1), ValueError, r"finite edge weights of at least 0 \(got -0.6"),
    ((X, EDGES, W / 0), ValueError, r"finite edge weights of at least 0 \(got inf to inf\)"),
    ((X, EDGES, W * math.nan), ValueError, r"finite edge weights of at least 0 \(got nan to nan\)"),
    ((X, torch.eye(4).to_sparse()), ValueError, "size of the adjacency matrix, 4"),
    ((X, torch.ones(6, 4).to_sparse()), ValueError, r"square adjacency matrix \(got 6 x 4\)"),
    ((X, torch.eye(6).to_sparse(), W[:6]), ValueError, "no edge_weight beside a sparse"),
])
def test_bad_input_is_refused_before_any_work_is_done(inputs, error, message):
    conv = SINODEConv(4, 4)
    with pytest.raises(error, match=message):
        conv(*inputs)
    assert conv.stats is None


@pytest.mark.parametrize(("name", "value", "error", "message"), [
    ("time", -1.0, ValueError, r"positive, finite time \(got -1.0\)"),
    ("step_size", 0.0, ValueError, r"positive, finite step_size \(got 0.0\)"),
    ("method", "rk4", ValueError, r"\(got 'rk4'\)"),
    ("gradient", "exact", ValueError, r'gradient="discrete" or "backprop" \(got \'exact\'\)'),
    ("solver", "CG", TypeError, r"a linear solver .*\(got 'CG'\)"),
    ("explain", True, ValueError, r"explain=False \(got True\)"),
])
def test_a_bad_option_set_later_is_refused_at_the_next_call(name, value, error, message):
    conv = SINODEConv(4, 4)
    setattr(conv, name, value)
    with pytest.raises(error, match=message):
        conv(X, EDGES)


@pytest.mark.parametrize(("implicit", "error", "message"), [
    (lambda *graph: torch.eye(NODES), TypeError, r"return a LinearOperator \(got Tensor\)"),
    (operators.Dense(torch.eye(5), dim=-2), ValueError, r"size 5 along dimension -2 for Dense"),
    (operators.Dense(torch.eye(6).double(), dim=-2), TypeError, r"Dense .* torch.float32 \(got"),
    (operators.Diagonal(torch.full((6, 1), math.nan)), ValueError, "finite tensors in Diagonal"),
])
def test_an_operator_that_does_not_fit_is_refused(implicit, error, message):
    with pytest.raises(error, match=message):
        SINODEConv(4, 4, implicit=implicit)(X, EDGES)
