"""Do PyG's explainers reach a layer, and are coefficients given back as GATConv gives them?"""

import importlib.util

import pytest
import torch
from cases import EDGES, NODES
from conv_cases import TIGHT, WEIGHT, distance, every_split, features, make
from torch.autograd import gradcheck
from torch_geometric import EdgeIndex
from torch_geometric.explain import (
    AttentionExplainer,
    CaptumExplainer,
    Explainer,
    GNNExplainer,
    GraphMaskExplainer,
    PGExplainer,
)
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn import GATConv
from torch_geometric.typing import SparseTensor

from pyg_sinode import SINODE, SINODEConv

HARD = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0, 1.0], dtype=torch.float64)
MODEL = {"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"}


def masked(conv, mask, *, sigmoid=False):
    """The layer's output under a mask of the edges."""
    set_masks(conv, mask, EDGES, apply_sigmoid=sigmoid)
    out = conv(features(), EDGES, WEIGHT)
    clear_masks(conv)
    return out


# Masks


@every_split
def test_a_mask_of_one_changes_no_bit(split):
    conv = make(split)
    expected = conv(features(), EDGES, WEIGHT)
    assert torch.equal(masked(conv, torch.ones(9)), expected)
    assert torch.equal(masked(conv, torch.full((9,), 40.0), sigmoid=True), expected)
    assert torch.equal(conv(features(), EDGES, WEIGHT), expected)


@every_split
def test_a_mask_multiplies_the_normalised_coefficient_in_both_parts(split):
    conv, x = make(split), features()
    mask = torch.linspace(0.1, 1.0, 9, dtype=torch.float64)
    plain, u = conv.equation(x, EDGES, WEIGHT), features(4)
    set_masks(conv, mask, EDGES, apply_sigmoid=False)
    G, J, u0, args = conv.equation(x, EDGES, WEIGHT)
    both = G(torch.tensor(0.0), u, *args) + J.mv(u)
    # By the coefficients themselves, of which those of added self-loops keep their size.
    pattern, weight = plain.args[3], plain.args[4]
    alpha = conv.term.attention.coefficients(u, pattern, weight)
    whole = torch.cat([mask, torch.ones(5, dtype=torch.float64)])[pattern.perm]
    dense = torch.zeros(NODES, NODES, dtype=torch.float64).index_put(
        (pattern.row.long(), pattern.col.long()), alpha * whole, accumulate=True)
    rate = torch.sigmoid(conv.term.alpha)
    expected = rate * (dense @ u - u) + conv.term.beta * u0
    assert distance(both, expected) < 1e-14
    if split != "decay":
        assert distance(J.mv(u), plain.implicit.mv(u)) > 1e-2
        center, radius = J.disc()
        matrix = J.mv(torch.eye(NODES, dtype=torch.float64)).detach()
        assert float((torch.linalg.eigvals(matrix) - center).abs().max()) <= radius + 1e-12


@every_split
def test_a_hard_mask_zeroes_edges_and_all_of_them_leave_the_decay(split):
    conv = make(split, add_self_loops=False, source=False)
    hard = masked(conv, HARD)
    assert distance(hard, conv(features(), EDGES, WEIGHT)) > 1e-2
    set_masks(conv, torch.zeros(9), EDGES, apply_sigmoid=False)
    out = conv(features(), EDGES, WEIGHT)
    ratio = out / conv.lin(features())
    assert distance(ratio, ratio[0, 0].expand_as(ratio)) < 1e-12  # no node sees another
    clear_masks(conv)
    assert distance(hard, out) > 1e-2


@every_split
def test_the_gradient_of_a_mask_is_that_of_finite_differences(split):
    conv = make(split, solver=TIGHT[split])
    mask = torch.linspace(0.2, 0.9, 9, dtype=torch.float64).requires_grad_()
    for sigmoid in (False, True):
        assert gradcheck(lambda mask, sigmoid=sigmoid: masked(conv, mask, sigmoid=sigmoid), (mask,),
                         fast_mode=True)


@pytest.mark.parametrize("implicit", ["operator", "callable"])
def test_an_operator_of_the_users_is_refused_and_works_afterwards(implicit):
    conv = make(implicit)
    expected = conv(features(), EDGES, WEIGHT)
    set_masks(conv, torch.ones(9), EDGES)
    with pytest.raises(ValueError, match="an edge mask does not reach an operator of your own"):
        conv(features(), EDGES, WEIGHT)
    assert torch.equal(conv(features(), EDGES, WEIGHT), expected)


def test_a_mask_that_does_not_fit_is_refused_and_the_layer_works_afterwards():
    conv = make()
    expected = conv(features(), EDGES, WEIGHT)
    set_masks(conv, torch.ones(7), EDGES)
    with pytest.raises(ValueError, match=r"edge mask of shape \(9,\) .* \(got \(7,\)\)"):
        conv(features(), EDGES, WEIGHT)
    assert torch.equal(conv(features(), EDGES, WEIGHT), expected)


# Explainers


def explained(implicit, algorithm, **options):
    torch.manual_seed(0)
    model = SINODE(3, 8, 3, heads=2, implicit=implicit, time=2.0).eval()
    x = features(dtype=torch.float32)
    expected = model(x, EDGES)
    explainer = Explainer(model, algorithm, **{
        "explanation_type": "model", "edge_mask_type": "object", "model_config": MODEL} | options)
    return model, x, explainer, expected


@every_split
@pytest.mark.parametrize("task", ["nodes", "edges"])
def test_gnnexplainer_works_and_leaves_the_model_as_it_was(split, task):
    options = {"node_mask_type": "attributes"} if task == "nodes" else {}
    model, x, explainer, expected = explained(split, GNNExplainer(epochs=5), **options)
    explanation = explainer(x, EDGES, index=3)
    assert explanation.edge_mask.shape == (9,)
    assert float(explanation.edge_mask.max()) > 0
    assert torch.equal(model(x, EDGES), expected)


def test_gnnexplainer_finds_the_edge_that_matters():
    torch.manual_seed(1)
    # Node 0 hears two others; only the features of node 1 are not zero.
    edges, x = torch.tensor([[1, 2], [0, 0]]), torch.zeros(3, 3)
    x[1] = 3.0
    conv = SINODEConv(3, 1, time=3.0, bias=False).eval()
    torch.nn.init.ones_(conv.lin.weight)
    torch.nn.init.zeros_(conv.term.attention.lin_query.weight)
    torch.nn.init.zeros_(conv.term.attention.lin_query.bias)
    explainer = Explainer(
        conv, GNNExplainer(epochs=100, lr=0.1),
        explanation_type="model", edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "node", "return_type": "raw"})
    mask = explainer(x, edges, index=0).edge_mask
    assert float(mask[0]) > 0.9
    assert float(mask[1]) < 0.5


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # inside PyG
def test_pgexplainer_works():
    options = {"explanation_type": "phenomenon"}
    model, x, explainer, expected = explained("attention", PGExplainer(epochs=2), **options)
    target = expected.argmax(dim=1)
    for epoch in range(2):
        explainer.algorithm.train(epoch, model, x, EDGES, target=target, index=3)
    explanation = explainer(x, EDGES, target=target, index=3)
    assert explanation.edge_mask.shape == (9,)
    assert torch.equal(model(x, EDGES), expected)


@every_split
@pytest.mark.parametrize("method", ["IntegratedGradients", "Saliency"])
def test_captum_works(split, method):
    if importlib.util.find_spec("captum") is None:
        pytest.skip("captum is not installed")
    model, x, explainer, expected = explained(split, CaptumExplainer(method))
    explanation = explainer(x, EDGES, index=3)
    assert explanation.edge_mask.shape == (9,)
    assert float(explanation.edge_mask.detach().abs().max()) > 0
    assert torch.equal(model(x, EDGES), expected)


def test_an_explainer_that_replaces_messages_is_refused_by_name():
    model, x, explainer, expected = explained("decay", GraphMaskExplainer(2, epochs=1))
    with pytest.raises(ValueError, match=r"explain_message .* as GraphMaskExplainer sets it"):
        explainer(x, EDGES, index=3)
    assert torch.equal(model(x, EDGES), expected)  # the model can be used again


@every_split
def test_attentionexplainer_collects_the_coefficients_at_the_terminal_time(split):
    model, x, explainer, expected = explained(split, AttentionExplainer("mean"), model_config=MODEL
                                              | {"task_level": "graph"})
    explanation = explainer(x, EDGES)
    _, (edges, alpha) = model.conv(model.encoder(x), EDGES, return_attention_weights=True)
    own = {tuple(edge): a for edge, a in zip(edges.t().tolist(), alpha.mean(dim=1).tolist(),
                                             strict=True)}
    for k, edge in enumerate(EDGES.t().tolist()):
        if edges.t().tolist().count(edge) == 1:
            assert float(explanation.edge_mask[k]) == pytest.approx(own[tuple(edge)], rel=1e-5)
    assert torch.equal(model(x, EDGES), expected)


# Coefficients, given back


def test_coefficients_are_in_the_order_of_gatconv():
    x = features()
    conv, gat = make(), GATConv(3, 4, heads=2).double()
    for loops in (True, False):
        conv.add_self_loops = gat.add_self_loops = loops
        _, (expected, theirs) = gat(x, EDGES, return_attention_weights=True)
        _, (edges, alpha) = conv(x, EDGES, return_attention_weights=True)
        assert torch.equal(edges, expected)
        assert alpha.shape == theirs.shape
    for none in (None, False):
        assert isinstance(conv(x, EDGES, return_attention_weights=none), torch.Tensor)
    given = EdgeIndex(EDGES, sparse_size=(NODES, NODES))
    edges, _ = conv(x, given, return_attention_weights=True)[1]
    assert torch.equal(edges, EDGES)


def test_self_loops_that_are_there_are_moved_last_with_their_own_coefficients():
    conv, x = make(), features()
    _, (edges, alpha) = conv(x, EDGES, WEIGHT, return_attention_weights=True)
    turned = EDGES.flip(1)
    _, (other, beta) = conv(x, turned, WEIGHT.flip(0), return_attention_weights=True)
    assert torch.equal(edges[:, -NODES:], torch.arange(NODES).expand(2, -1))
    assert torch.equal(other[:, -NODES:], torch.arange(NODES).expand(2, -1))
    assert distance(beta[-NODES:], alpha[-NODES:]) < 1e-14
    assert distance(beta[:8].flip(0), alpha[:8]) < 1e-14


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_a_torch_sparse_matrix_comes_back_as_one_with_the_coefficients(layout):
    conv, x = make(), features()
    simple, weight = torch.unique(EDGES, dim=1), torch.linspace(0.5, 2, 8, dtype=torch.float64)
    dense = torch.zeros(NODES, NODES, dtype=torch.float64)
    dense[simple[1], simple[0]] = weight[:simple.size(1)]
    adjacency = {"coo": dense.to_sparse(), "csr": dense.to_sparse_csr(),
                 "csc": dense.to_sparse_csc()}[layout]
    out, (matrix, alpha) = conv(x, adjacency, return_attention_weights=True)
    assert matrix.layout == adjacency.layout
    assert matrix.shape == (NODES, NODES, 2)
    _, (edges, expected) = conv(x, simple, weight[:simple.size(1)], return_attention_weights=True)
    whole = torch.zeros(NODES, NODES, 2, dtype=torch.float64)
    whole[edges[1], edges[0]] = expected
    found = torch.zeros_like(whole)
    if layout == "coo":
        row, col = matrix._indices()
    else:
        outer, inner = ((matrix.crow_indices(), matrix.col_indices()) if layout == "csr"
                        else (matrix.ccol_indices(), matrix.row_indices()))
        long = torch.repeat_interleave(torch.arange(NODES), outer.diff())
        row, col = (long, inner) if layout == "csr" else (inner, long)
    found[row, col] = matrix.values() if layout != "coo" else matrix._values()
    assert distance(found, whole) < 1e-14
    values = matrix._values() if layout == "coo" else matrix.values()
    assert distance(values.sort(dim=0).values, alpha.sort(dim=0).values) == 0.0
    assert torch.equal(out, conv(x, adjacency))


def test_a_sparse_tensor_comes_back_as_one_with_the_coefficients():
    pytest.importorskip("torch_sparse", reason="torch_sparse is not installed")
    conv, x = make(), features()
    adjacency = SparseTensor(row=EDGES[1], col=EDGES[0], value=WEIGHT, sparse_sizes=(NODES, NODES))
    _, matrix = conv(x, adjacency, return_attention_weights=True)
    assert isinstance(matrix, SparseTensor)
    row, _, value = matrix.coo()
    assert value.shape == (14, 2)
    sums = torch.zeros(NODES, 2, dtype=torch.float64).index_add(0, row, value)
    assert distance(sums, torch.ones_like(sums)) < 1e-14
    assert bool((row.diff() >= 0).all())
