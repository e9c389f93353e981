"""Does a layer keep what PyG's own tests ask of its layers, and reach as far as it says?"""

import importlib.util

import pytest
import torch
from cases import EDGES, NODES
from conv_cases import distance, every_split, features, make
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import Sequential
from torch_geometric.testing import assert_module
from torch_geometric.utils import k_hop_subgraph

from pyg_sinode import GRANDAttention, SINODEConv, operators, schemes

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # inside PyG
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
SQUARE = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 1]])


# What PyG's own tests of GAT, GCN and APPNP assert


@every_split
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_a_layer_passes_pyg_s_own_check_of_modules(split, heads, residual):
    conv = SINODEConv(8, 32, heads=heads, residual=residual, implicit=split)
    assert str(conv).startswith(f"SINODEConv(8, 32, heads={heads}, implicit={split}")
    assert_module(conv, X, SQUARE, expected_size=(4, 32), atol=1e-6)


def test_attention_passes_pyg_s_own_check_of_modules():
    for stochastic in ("row", "column"):
        layer = GRANDAttention(8, heads=2, stochastic=stochastic)
        assert_module(layer, X, SQUARE, expected_size=(4, 8), atol=1e-6)


def test_lazy_layers_take_their_channels_from_the_first_input():
    conv = SINODEConv(-1, 32, heads=2)
    assert_module(conv, X, SQUARE, expected_size=(4, 32), atol=1e-6)
    assert conv.lin.in_channels == 8


@pytest.mark.parametrize("edge_dim", [1, 4])
@pytest.mark.parametrize("heads", [1, 2])
def test_attributes_of_edges_are_permuted_with_them(edge_dim, heads):
    conv = SINODEConv(8, 8, heads=heads, edge_dim=edge_dim)
    given = torch.randn(4, edge_dim, generator=torch.Generator().manual_seed(1))
    assert_module(conv, X, SQUARE, expected_size=(4, 8), edge_attr=given, test_sparse_layouts=[],
                  atol=1e-6)


def test_weights_of_a_cached_layer_and_one_with_improved_loops_fit_in_a_sequential():
    model = Sequential("x, edge_index, edge_weight", [
        (SINODEConv(8, 16, cached=True), "x, edge_index, edge_weight -> x"),
        torch.nn.ReLU(),
        (SINODEConv(16, 4, improved=True), "x, edge_index, edge_weight -> x")])
    assert model(X, SQUARE, torch.rand(4)).size() == (4, 4)


def test_an_empty_graph_gives_no_rows_and_one_without_edges_no_mixing():
    conv = SINODEConv(8, 16, heads=2)
    assert conv(torch.empty(0, 8), torch.empty(2, 0, dtype=torch.long)).size() == (0, 16)
    out = conv(X, SQUARE[:, :0])
    torch.testing.assert_close(out[:2], conv(X[:2], SQUARE[:, :0]))


# The receptive field


def line(count):
    """Edges from each node to the next."""
    return torch.stack([torch.arange(count - 1), torch.arange(1, count)])


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("method", schemes.SCHEMES)
def test_the_number_of_hops_is_how_far_a_node_is_seen(method, steps):
    conv = make(in_channels=4, method=method, time=float(steps), step_size=1.0)
    hops, count = conv.num_hops, 60
    x = features(4, count).requires_grad_()
    conv(x, line(count))[-1].sum().backward()
    seen = x.grad.abs().sum(dim=1).flip(0).nonzero().view(-1)
    assert int(seen.max()) == hops


def test_where_every_node_is_seen_or_it_is_not_known_there_is_no_number():
    assert make(step_size=1.0, time=4.5).num_hops == 10
    assert make(implicit="decay").num_hops == 4
    for options in ({"implicit": "laplacian"}, {"implicit": "attention"}, {"implicit": "callable"},
                    {"implicit": "operator"}, {"stochastic": "column"}, {"step_size": None}):
        assert make(**options).num_hops is None
    diagonal = operators.Diagonal(-torch.ones(4))
    assert SINODEConv(4, 4, implicit=diagonal, time=2.0).num_hops == 4
    assert SINODEConv(4, 4, time=torch.nn.Parameter(torch.tensor(3.0))).num_hops == 6


def graph(count=200, degree=2):
    generator = torch.Generator().manual_seed(3)
    edges = torch.randint(0, count, (2, count * degree), generator=generator)
    return Data(x=features(4, count), edge_index=edges, weight=torch.rand(
        count * degree, generator=generator).double())


def test_a_subgraph_of_so_many_hops_gives_the_same_and_of_fewer_does_not():
    data, conv = graph(), make(in_channels=4, time=2.0, step_size=1.0)
    whole = conv(data.x, data.edge_index, data.weight)[7]
    found = []
    for hops in (conv.num_hops, conv.num_hops - 3):
        nodes, edges, place, kept = k_hop_subgraph(7, hops, data.edge_index, relabel_nodes=True)
        own = conv(data.x[nodes], edges, data.weight[kept])[place[0]]
        found.append(distance(own, whole))
    assert found[0] < 1e-14
    assert found[1] > 1e-6


@pytest.mark.filterwarnings("ignore:Using .NeighborSampler. without a .pyg-lib")
@pytest.mark.skipif(importlib.util.find_spec("torch_sparse") is None
                    and importlib.util.find_spec("pyg_lib") is None,
                    reason="NeighborLoader needs torch_sparse or pyg_lib")
def test_a_neighbor_loader_of_so_many_hops_is_exact():
    data, conv = graph(), make(in_channels=4, time=2.0, step_size=1.0)
    whole = conv(data.x, data.edge_index, data.weight)
    loader = NeighborLoader(data, [-1] * conv.num_hops, batch_size=16)
    for batch in loader:
        out = conv(batch.x, batch.edge_index, batch.weight)[:batch.batch_size]
        assert distance(out, whole[batch.n_id[:batch.batch_size]]) < 1e-13


def test_a_graph_with_duplicates_and_loops_is_seen_as_far():
    conv = make(in_channels=4, time=1.0, step_size=1.0)
    x = features(4).requires_grad_()
    conv(x, EDGES)[3].sum().backward()
    nodes, *_ = k_hop_subgraph(3, conv.num_hops, EDGES, num_nodes=NODES)
    assert set(x.grad.abs().sum(dim=1).nonzero().view(-1).tolist()) <= set(nodes.tolist())
