"""Can SINODEConv be changed after training, and is bad input refused?"""

import copy
import io
import math
import pickle

import pytest
import torch
from cases import EDGES, NODES
from conv_cases import (
    WEIGHT,
    distance,
    every_implicit,
    features,
    loss_of,
    make,
)
from torch import nn
from torch.func import functional_call

from pyg_sinode import SINODEConv, operators, solvers


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


def test_an_operator_may_be_replaced_and_its_parameters_with_it():
    rates = [nn.Parameter(torch.full((4,), -rate)) for rate in (1.0, 5.0)]
    first, second = (SINODEConv(4, 4, implicit=operators.Diagonal(r)) for r in rates)
    second.load_state_dict(first.state_dict() | {"implicit_parameters.0": rates[1].detach()})
    first.implicit = operators.Diagonal(rates[1])
    assert torch.equal(first(X, EDGES), second(X, EDGES))
    assert [p is rates[1] for n, p in first.named_parameters() if "implicit" in n] == [True]
    with pytest.raises(ValueError, match="an implicit operator on parameters themselves"):
        first.implicit = operators.Diagonal(2.0 * rates[0])
    assert torch.equal(first(X, EDGES), second(X, EDGES))  # as it was before
    first.implicit = "laplacian"
    assert not any("implicit" in name for name, _ in first.named_parameters())
    assert first(X, EDGES).shape == (NODES, 4)
    first.implicit = operators.Diagonal(rates[0])
    first(X, EDGES).sum().backward()
    assert rates[0].grad is not None


def test_a_layer_can_be_made_on_the_meta_device():
    with torch.device("meta"):
        conv = SINODEConv(4, 4, time=2.0)
    assert conv.term.alpha.device.type == "meta"
    conv = conv.to_empty(device="cpu")
    conv.reset_parameters()
    assert conv(X, EDGES).isfinite().all()


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


@pytest.mark.parametrize(("kwargs", "error", "message"), [
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
    ({"fill_value": "mean"}, ValueError, r"\(got mean\): the weight of the added self-loops"),
    ({"fill_value": -1.0}, ValueError, r"fill_value of at least 0 \(got -1.0\)"),
    ({"fill_value": math.nan}, ValueError, r"fill_value of at least 0 \(got nan\)"),
    ({"flow": "target_to_source"}, ValueError, r"edge_index\.flip\(0\)"),
    ({"aggr": "max"}, ValueError, r"aggr to be one of add, sum \(got 'max'\)"),
    ({"concat": True}, TypeError, r"arguments of SINODEConv, or those .* \(got concat\)"),
    ({"edge_dim": 0}, ValueError, r"edge_dim as a positive int or None \(got 0\)"),
    ({"edge_dim": 2, "attention": "cosine"}, ValueError, r"only with .* scaled_dot.*'cosine'"),
    ({"solver": "cg"}, TypeError, r"a linear solver .*\(got 'cg'\)"),
    ({"gradient": "adjoint"}, ValueError, r"\(got 'adjoint'\)"),
    ({"checkpoints": -1}, ValueError, "checkpoints"),
    ({"graph_memory": -1}, ValueError, "graph_memory as a number of bytes"),
    ({"dropout": 1.0}, ValueError, r"dropout in \[0, 1\) \(got 1.0\)"),
    ({"normalize": False}, ValueError, "attention coefficients always sum to one"),
    ({"improved": True, "fill_value": 3.0}, ValueError, "either improved, which is fill_value=2"),
    ({"heads": True}, TypeError, r"heads as an int \(got True\); it is the third argument"),
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
    ((X, EDGES, None, W), TypeError, r"return_attention_weights as a bool \(got Tensor\)"),
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
    ("implicit", "diagonal", ValueError, "implicit to be one of decay"),
    ("solver", "CG", TypeError, r"a linear solver .*\(got 'CG'\)"),
    ("explain", True, ValueError, r"an edge mask of shape \(9,\) .* \(got None\)"),
])
def test_a_bad_option_set_later_is_refused_at_the_next_call(name, value, error, message):
    def set_and_call():  # refused when it is set, or at the call
        setattr(conv, name, value)
        conv(X, EDGES)

    conv = SINODEConv(4, 4)
    with pytest.raises(error, match=message):
        set_and_call()


@pytest.mark.parametrize(("implicit", "error", "message"), [
    (lambda *graph: torch.eye(NODES), TypeError, r"return a LinearOperator \(got Tensor\)"),
    (operators.Dense(torch.eye(5), dim=-2), ValueError, r"size 5 along dimension -2 for Dense"),
    (operators.Dense(torch.eye(6).double(), dim=-2), TypeError, r"Dense .* torch.float32 \(got"),
    (operators.Diagonal(torch.full((6, 1), math.nan)), ValueError, "finite tensors in Diagonal"),
])
def test_an_operator_that_does_not_fit_is_refused(implicit, error, message):
    with pytest.raises(error, match=message):
        SINODEConv(4, 4, implicit=implicit)(X, EDGES)
