"""Is the attention a PyG layer, with gradients, on graphs in every form?"""

import copy
import pickle

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
from test_sparse import LargestTensor, beta_notice_expected
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch_geometric.data import Batch, Data

from pyg_sinode import GRANDAttention
from pyg_sinode.sparse import Pattern


@every_score
@every_normalizer
@every_direction
def test_gradients_of_both_orders_of_the_coefficients(score, normalizer, stochastic):
    layer = GRANDAttention(2, 2, 4, score=score, normalizer=normalizer, stochastic=stochastic)
    layer = layer.double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    names = [name for name, _ in layer.named_parameters()]
    p = Pattern(torch.tensor([1, 1, 2, 2, 0]), torch.tensor([0, 0, 2, 0, 1]), 4)

    def coefficients(x, weight, *values):
        layer.forward = lambda *inputs: type(layer).coefficients(layer, *inputs)
        return functional_call(layer, dict(zip(names, values, strict=True)), (x, p, weight))

    x = torch.randn(4, 2, dtype=F64, requires_grad=True)
    weight = leaf(torch.linspace(0.5, 1.5, 5), F64)
    inputs = (x, weight, *(leaf(v.detach(), F64) for v in layer.parameters()))
    assert gradcheck(coefficients, inputs)
    assert gradgradcheck(coefficients, inputs, fast_mode=True)


@every_score
@every_normalizer
@every_direction
def test_no_tensor_of_edges_by_channels_is_formed(score, normalizer, stochastic):
    nodes, edges, heads, width = 30, 600, 2, 64
    layer = GRANDAttention(8, heads, width, score=score, normalizer=normalizer,
                           stochastic=stochastic)  # fmt: skip
    graph = torch.randint(nodes, (2, edges))
    x, weight = torch.randn(nodes, 8, requires_grad=True), torch.rand(edges, requires_grad=True)
    sizes = {}
    for fused in (True, False):
        layer.fused = fused
        with LargestTensor() as largest:
            layer(x, graph, weight).square().sum().backward()
        sizes[fused] = largest.size
    assert sizes[True] < edges * width / 8
    assert sizes[False] >= edges * width


def adjacency_forms(weight):
    at, values = EDGES.flip(0), weight
    coo = torch.sparse_coo_tensor(at, values, (NODES, NODES), check_invariants=True)
    p = the_pattern()
    csr = torch.sparse_csr_tensor(p.pointer, p.col, values[p.perm], (NODES, NODES),
                                  check_invariants=False)  # fmt: skip
    return {"coo": coo, "coo_coalesced": coo.coalesce(), "csr": csr}


@beta_notice_expected
@fused_or_not
@every_direction
@pytest.mark.parametrize("form", ["coo", "coo_coalesced", "csr", "int32"])
def test_a_torch_sparse_matrix_gives_the_numbers_of_its_edges(fused, stochastic, form):
    layer, x, weight = (
        attention(fused=fused, stochastic=stochastic),
        features(),
        WEIGHTS["weighted"],
    )
    expected = layer(x, EDGES, weight)
    if form == "int32":
        got = layer(x, EDGES.int(), weight)
    else:
        got = layer(x, adjacency_forms(weight)[form])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


@fused_or_not
@every_direction
@pytest.mark.parametrize("weight", [None, WEIGHTS["weighted"]], ids=["unweighted", "weighted"])
def test_a_sparse_tensor_gives_the_numbers_of_its_edges(fused, stochastic, weight):
    torch_sparse = pytest.importorskip("torch_sparse", reason="torch_sparse is not installed")
    layer, x = attention(fused=fused, stochastic=stochastic), features()
    adjacency = torch_sparse.SparseTensor(row=EDGES[1], col=EDGES[0], value=weight,
                                          sparse_sizes=(NODES, NODES))  # fmt: skip
    got = layer(x, adjacency)
    torch.testing.assert_close(got, layer(x, EDGES, weight), rtol=0, atol=1e-13)


@fused_or_not
@every_normalizer
@every_direction
def test_a_batch_of_two_graphs_gives_the_numbers_of_each(fused, normalizer, stochastic):
    layer = attention(fused=fused, normalizer=normalizer, stochastic=stochastic)
    other = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 2]])
    graphs = [
        Data(x=features(), edge_index=EDGES, edge_weight=WEIGHTS["weighted"]),
        Data(x=features(nodes=3), edge_index=other, edge_weight=torch.ones(4, dtype=F64)),
    ]
    together = Batch.from_data_list(graphs)
    y = layer(together.x, together.edge_index, together.edge_weight)
    apart = [layer(g.x, g.edge_index, g.edge_weight) for g in graphs]
    torch.testing.assert_close(y, torch.cat(apart), rtol=0, atol=1e-14)


@every_direction
def test_the_order_of_the_edges_and_the_names_of_the_nodes_do_not_matter(stochastic):
    layer, x, weight = attention(stochastic=stochastic), features(), WEIGHTS["weighted"]
    y = layer(x, EDGES, weight)
    shuffled, renamed = torch.randperm(E), torch.randperm(NODES)
    torch.testing.assert_close(layer(x, EDGES[:, shuffled], weight[shuffled]), y)
    moved = torch.empty_like(x)
    moved[renamed] = x
    torch.testing.assert_close(layer(moved, renamed[EDGES], weight)[renamed], y)


def test_it_shows_its_width_and_heads():
    assert str(GRANDAttention(16, heads=4)) == "GRANDAttention(16, heads=4)"


def test_reset_parameters_starts_anew_with_attention_near_uniform():
    layer = attention(score="exp_kernel")
    before = [p.clone() for p in layer.parameters()]
    layer.reset_parameters()
    assert layer.amplitude.item() == layer.length.item() == 1.0
    assert not any(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    fresh = GRANDAttention(CHANNELS, HEADS, WIDTH).double()
    a = per_edge(fresh, 0.01 * features())
    counts = EDGES[1].bincount(minlength=NODES)[EDGES[1]].unsqueeze(1)
    torch.testing.assert_close(a * counts, torch.ones_like(a), rtol=0, atol=1e-2)


def test_it_is_copied_and_pickled():
    layer, x = attention(), features()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, EDGES), layer(x, EDGES))


def test_queries_and_keys_have_the_width_of_the_input_unless_said_otherwise():
    assert GRANDAttention(8, 2).attention_channels == 8
    assert GRANDAttention(8, 2, 6).lin_query.weight.shape == (6, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        ((4,), {"score": "dot"}, r"attention score to be one of scaled_dot, .* \(got 'dot'\)"),
        ((4,), {"normalizer": "relu"}, r"normalizer to be one of softmax, squareplus \(got 'relu"),
        ((4,), {"stochastic": "both"}, r"stochastic to be one of row, column \(got 'both'\)"),
        ((4,), {"aggr": "mean"}, r"aggr to be one of add, sum \(got 'mean'\)"),
        ((4,), {"flow": "target_to_source"}, r'flow="source_to_target".*edge_index.flip\(0\)'),
        ((4, 3), {}, r"a multiple of heads \(got 4 and 3\)"),
        ((4, 0), {}, r"a multiple of heads \(got 4 and 0\)"),
        ((4, 2, 5), {}, r"a multiple of heads \(got 5 and 2\)"),
        ((4, 1, 0), {}, r"a multiple of heads \(got 0 and 1\)"),
    ],
)
def test_options_that_do_not_exist_or_do_not_fit_are_refused(arguments, options, match):
    with pytest.raises(ValueError, match=match):
        GRANDAttention(*arguments, **options)


X, ONES = torch.ones(NODES, CHANNELS), torch.ones(E)


INPUTS = {
    "out_of_range": ((X[:4], EDGES), ValueError, "node indices from 0 to 3 in edge_index"),
    "no_graph": ((X, [[0], [1]]), TypeError, "an edge_index tensor.*got list"),
    "weights": ((X, EDGES, ONES[:3]), ValueError, r"edge_weight of shape \(9,\)"),
    "channels": ((X[:, :3], EDGES), ValueError, r"\(num_nodes, 4\) \(got \(6, 3\)\)"),
    "one_dimension": ((X[:, 0], EDGES), ValueError, r"\(num_nodes, 4\) \(got \(6,\)\)"),
    "two_inputs": (((X, X), EDGES), ValueError, r"\(num_nodes, 4\) \(got tuple\)"),
    "dtype": ((X.double(), EDGES), TypeError, "dtype of the layer, torch.float32.*got torch.float"),
    "weight_integer": ((X, EDGES, ONES.long()), TypeError, r"real floating .* torch.int64\)"),
    "weight_nan": ((X, EDGES, ONES * torch.nan), ValueError, "finite edge weights of at least 0"),
    "weight_negative": ((X, EDGES, -ONES), ValueError, r"at least 0 \(got -1.0 to -1.0\)"),
}


@fused_or_not
@pytest.mark.parametrize(("inputs", "error", "match"), INPUTS.values(), ids=INPUTS)
def test_input_that_does_not_fit_is_refused(fused, inputs, error, match):
    layer = GRANDAttention(CHANNELS, HEADS, WIDTH, fused=fused)
    with pytest.raises(error, match=match):
        layer(*inputs)


def test_scores_start_close_together_in_a_lazy_layer_too():
    torch.manual_seed(0)
    for layer in (GRANDAttention(40, attention_channels=64),
                  GRANDAttention(-1, attention_channels=64)):
        layer(torch.randn(3, 40), torch.tensor([[0, 1], [1, 2]]))
        # Glorot's uniform numbers have a standard deviation of sqrt(2 / (40 + 64)).
        assert float(layer.lin_key.weight.detach().std()) == pytest.approx(
            0.1 * (2 / 104) ** 0.5, rel=0.1)
