"""Does a layer sort the edges of the graph it has seen last only once, and of every other one?"""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch_geometric import EdgeIndex

from pyg_sinode import SINODE, SINODEConv
from pyg_sinode import graph_cache as cache
from pyg_sinode.sparse import Pattern


@pytest.fixture
def sorted_graphs(monkeypatch):
    """The numbers of edges that were sorted, self-loops included, in order."""
    made = []

    def counted(row, col, num_nodes, *, checked=False):
        made.append(row.numel())
        return Pattern(row, col, num_nodes, checked=checked)

    monkeypatch.setattr(cache, "Pattern", counted)
    return made


def graph(seed=0, nodes=6, edges=14):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, nodes, (2, edges), generator=generator)


def layer(**options):
    torch.manual_seed(0)
    return SINODEConv(4, 4, heads=2, time=2.0, **options)


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [{}, {"implicit": "laplacian"}, {"implicit": "attention"},
                                     {"add_self_loops": False}, {"fill_value": 0.5}], ids=str)
def test_the_graph_of_the_last_call_is_sorted_once_and_gives_the_same(sorted_graphs, options):
    conv, edge_index = layer(**options), graph()
    first = conv(X, edge_index)
    for _ in range(3):
        assert torch.equal(conv(X, edge_index), first)
    assert len(sorted_graphs) == 1
    assert torch.equal(layer(**options)(X, edge_index), first)


def test_the_same_tensor_with_other_edges_is_noticed(sorted_graphs):
    conv, edge_index = layer(), graph()
    conv(X, edge_index)
    edge_index[0, 3] = (edge_index[0, 3] + 1) % 6
    assert torch.equal(conv(X, edge_index), layer()(X, edge_index.clone()))
    edge_index.data[1, 5] = (edge_index[1, 5] + 1) % 6  # no version tells of it
    assert torch.equal(conv(X, edge_index), layer()(X, edge_index.clone()))
    edge_index.resize_(2, 10)
    assert torch.equal(conv(X, edge_index), layer()(X, edge_index.clone()))
    assert len(sorted_graphs) == 7


def test_an_index_out_of_range_is_refused_though_the_tensor_was_seen():
    conv, edge_index = layer(), graph()
    conv(X, edge_index)
    edge_index[0, 0] = 6
    with pytest.raises(ValueError, match="node indices from 0 to 5"):
        conv(X, edge_index)
    with pytest.raises(ValueError, match="node indices from 0 to"):
        conv(X[:3], graph())


def test_another_number_of_nodes_or_other_loops_are_noticed(sorted_graphs):
    conv, edge_index = layer(), graph()
    conv(X, edge_index)
    more = torch.cat([X, X[:1]])
    assert torch.equal(conv(more, edge_index), layer()(more, edge_index))
    conv.add_self_loops = False
    expected = layer(add_self_loops=False)(more, edge_index)
    assert torch.equal(conv(more, edge_index), expected)
    assert len(sorted_graphs) == 5


def test_weights_may_change_without_sorting(sorted_graphs):
    conv, edge_index = layer(fill_value=0.3), graph()
    for seed in range(3):
        weight = torch.rand(14, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        found = conv(X, edge_index, weight)
        (gradient,) = torch.autograd.grad(found.square().sum(), weight)
        other, fresh = weight.detach().clone().requires_grad_(), layer(fill_value=0.3)
        expected = fresh(X, edge_index, other)
        assert torch.equal(found, expected)
        assert torch.equal(gradient, torch.autograd.grad(expected.square().sum(), other)[0])
    assert len(sorted_graphs) == 4


def test_two_graphs_in_turn_are_sorted_in_turn(sorted_graphs):
    conv, graphs = layer(), [graph(0), graph(1)]
    expected = [layer()(X, g) for g in graphs]
    sorted_graphs.clear()
    for _ in range(2):
        for g, y in zip(graphs, expected, strict=True):
            assert torch.equal(conv(X, g), y)
    assert len(sorted_graphs) == 4


def test_layers_of_a_network_share_nothing():
    net = SINODE(4, 8, 3, heads=2, time=2.0)
    edge_index = graph()
    net(X, edge_index)
    assert net.conv._cache is not copy.deepcopy(net).conv._cache


@pytest.mark.parametrize("kind", ["edge_index", "EdgeIndex", "int32"])
def test_the_edges_go_with_the_tensor(kind):
    conv, edge_index = layer(), graph()
    if kind == "EdgeIndex":
        edge_index = EdgeIndex(edge_index, sparse_size=(6, 6))
    elif kind == "int32":
        edge_index = edge_index.int()
    conv(X, edge_index)
    held = weakref.ref(conv._cache._last.found[0])
    assert held() is not None
    gc.disable()
    try:
        del edge_index
        assert held() is None
    finally:
        gc.enable()
    conv(X, graph())


def test_a_sparse_graph_is_not_kept():
    conv = layer()
    dense = torch.zeros(6, 6)
    dense[tuple(graph())] = 1.0
    conv(X, dense.to_sparse_csr())
    assert conv._cache._last is None


@pytest.mark.parametrize("copied", [
    copy.copy, copy.deepcopy, lambda conv: pickle.loads(pickle.dumps(conv))])
def test_copies_and_pickles_hold_no_graph(copied):
    conv, edge_index = layer(), graph()
    size = len(pickle.dumps(conv))
    y = conv(X, edge_index)
    assert len(pickle.dumps(conv)) == size
    other = copied(conv)
    assert other._cache._last is None
    assert torch.equal(other(X, edge_index), y)
    assert conv._cache._last is not other._cache._last


def test_a_layer_pickled_by_an_earlier_version_gets_a_cache():
    conv = layer()
    state = conv.__getstate__()
    assert "_cache" not in state
    other = object.__new__(SINODEConv)
    other.__setstate__(state)
    assert torch.equal(other(X, graph()), conv(X, graph()))


def test_training_works_after_inference_mode():
    conv, edge_index = layer(), graph()
    with torch.inference_mode():
        conv(X, edge_index)
    x = X.clone().requires_grad_()
    conv(x, edge_index).sum().backward()
    assert x.grad is not None


def test_two_threads_with_two_graphs_get_their_own():
    conv, graphs = layer(), [graph(0), graph(1)]
    expected, wrong = [layer()(X, g) for g in graphs], []

    def work(at):
        for _ in range(50):
            with torch.no_grad():
                if not torch.equal(conv(X, graphs[at]), expected[at]):
                    wrong.append(at)

    threads = [threading.Thread(target=work, args=(at,)) for at in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize("options", [{}, {"stochastic": "column"}, {"implicit": "attention"}],
                         ids=str)
def test_what_stays_takes_at_most_forty_bytes_an_edge_whatever_the_heads(heads, options):
    edges = 20_000
    conv, edge_index = SINODEConv(8, 8, heads, time=2.0, **options), graph(nodes=2000, edges=edges)
    x = torch.randn(2000, 8)
    gc.collect()
    before = {id(t) for t in gc.get_objects() if type(t) is torch.Tensor}
    conv(x, edge_index).sum().backward()
    conv.stats = None
    gc.collect()
    stays = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
             for t in gc.get_objects() if type(t) is torch.Tensor and id(t) not in before}
    assert 28 * edges <= sum(stays.values()) <= 40 * edges
