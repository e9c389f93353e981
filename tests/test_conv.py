"""Is SINODEConv a PyG layer, on graphs of every kind?"""

import copy
import math

import pytest
import torch
import torch_geometric.nn
import torch_geometric.typing
from cases import EDGES, NODES
from conv_cases import (
    TIGHT,
    WEIGHT,
    distance,
    entries,
    every_implicit,
    every_split,
    features,
    loss_of,
    make,
)
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data
from torch_geometric.nn.models.basic_gnn import BasicGNN

from pyg_sinode import SINODEConv

NONE = EDGES[:, :0]
ISOLATED = 5


def test_str_and_sizes():
    x = features(dtype=torch.float32)
    conv = SINODEConv(3, 8)
    assert str(conv) == "SINODEConv(3, 8, heads=1, implicit=decay, time=4, method=imex_rk2)"
    assert conv(x, EDGES).size() == (NODES, 8)
    conv = SINODEConv(3, 8, heads=4, implicit="laplacian", time=nn.Parameter(torch.tensor(2.5)),
                      method="imex_rk4")
    assert str(conv) == (
        "SINODEConv(3, 8, heads=4, implicit=laplacian, time=2.5, method=imex_rk4)")
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
    assert str(conv).startswith("SINODEConv(-1, 4, heads=1, ")
    assert conv(torch.randn(NODES, 7), EDGES).size() == (NODES, 4)
    assert conv.lin.weight.size() == (4, 7)
    # Of equal widths too: a lazy layer cannot leave its linear map out.
    assert SINODEConv(-1, 4)(torch.randn(NODES, 4), EDGES).size() == (NODES, 4)
    with pytest.raises(ValueError, match="Expected 7 input channels \\(got 5\\)"):
        conv(torch.randn(NODES, 5), EDGES)


def test_reset_parameters_draws_anew_and_leaves_an_operator_of_the_users_alone():
    conv = make("operator")
    given = conv.implicit.tensors[0].clone()
    torch.nn.init.ones_(conv.bias)
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
    if layout == "EdgeIndex":
        return EdgeIndex(EDGES, sparse_size=(NODES, NODES))
    if layout == "SparseTensor":
        return torch_geometric.typing.SparseTensor(
            row=target, col=source, value=weight, sparse_sizes=(NODES, NODES))
    coo = torch.sparse_coo_tensor(torch.stack([target, source]), weight, (NODES, NODES),
                                  check_invariants=True)
    return {"coo": lambda: coo, "csr": coo.to_sparse_csr, "csc": coo.to_sparse_csc}[layout]()


with_torch_sparse = pytest.mark.skipif(not torch_geometric.typing.WITH_TORCH_SPARSE,
                                       reason="torch_sparse is not installed")


every_layout = pytest.mark.parametrize(
    "layout", ["coo", "csr", "csc", "EdgeIndex",
               pytest.param("SparseTensor", marks=with_torch_sparse)])


@every_split
@every_layout
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
def test_every_form_of_the_adjacency_gives_the_same_result_and_gradients(layout, split):
    # PyTorch's layouts merge the duplicate edge into one whose weight is the sum; as weights count
    # before the normalisation, that is the same graph. SparseTensor keeps it.
    conv = make(split)
    x = features().requires_grad_()
    results, gradients = [], []
    for own in (None, layout):
        weight = WEIGHT.clone().requires_grad_()
        graph = EDGES if own is None else adjacency(layout, weight)
        results.append(conv(x, graph, weight if own in (None, "EdgeIndex") else None))
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
                      method="ark548l2sa", solver=TIGHT[split], source=True).double()
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
