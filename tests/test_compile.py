"""What do PyTorch's compilers and transforms make of a layer, and what do they refuse?"""

import inspect

import pytest
import torch
from cases import EDGES, NODES
from conv_cases import WEIGHT, features
from torch import nn
from torch._dynamo.utils import counters
from torch.autograd.functional import jacobian

from pyg_sinode import GRANDAttention, SINODEConv, imex_odeint, operators

# Deprecations inside PyTorch's own compilers.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"),
              pytest.mark.filterwarnings("ignore::FutureWarning"),
              pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
              pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")]
X, W = features(4, dtype=torch.float32), WEIGHT.float()
# PyTorch 2.4 gives neither reasons for graph breaks nor the words of errors in compiled functions.
SAYS_WHY = "reason" in inspect.signature(torch.compiler.disable).parameters


def said(words):
    return words if SAYS_WHY else "Observed exception"


class Model(nn.Module):
    """A layer between two others."""

    def __init__(self, **kwargs):
        super().__init__()
        self.first, self.conv = nn.Linear(4, 8), SINODEConv(8, 8, heads=2, **kwargs)
        self.last = nn.Linear(8, 2)

    def forward(self, x, edge_index):
        return self.last(self.conv(self.first(x).relu(), edge_index).relu())


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize("implicit", ["decay", "attention"])
def test_a_model_compiles_around_the_layer_with_one_graph_break(implicit):
    torch.manual_seed(0)
    model = Model(implicit=implicit)
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    out, expected = compiled(X, EDGES), model(X, EDGES)
    torch.testing.assert_close(out, expected)
    found = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    for one, other in zip(found, torch.autograd.grad(expected.square().sum(),
                                                     list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other)
    assert sum(counters["graph_break"].values()) == 1
    if SAYS_WHY:
        assert "steps and solves of pyg_sinode are Python" in next(iter(counters["graph_break"]))
    graphs = counters["stats"]["unique_graphs"]
    for count in (7, 9, 12):  # other sizes compile nothing anew
        x = torch.randn(count, 4)
        torch.testing.assert_close(compiled(x, EDGES), model(x, EDGES))
    assert counters["stats"]["unique_graphs"] == graphs == 2


@pytest.mark.parametrize("options", [
    {}, {"normalizer": "squareplus", "stochastic": "column"}, {"score": "exp_kernel"},
    {"edge_dim": 2}], ids=str)
def test_attention_by_itself_compiles_as_one_graph(options):
    torch.manual_seed(0)
    layer = GRANDAttention(4, heads=2, **options)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    given = (W, torch.randn(9, 2)) if options.get("edge_dim") else (W,)
    out, expected = compiled(X, EDGES, *given), layer(X, EDGES, *given)
    torch.testing.assert_close(out, expected)
    parameters = list(layer.parameters())
    for one, other in zip(torch.autograd.grad(out.square().sum(), parameters),
                          torch.autograd.grad(expected.square().sum(), parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    if not options.get("edge_dim"):
        assert compiled(X, EDGES, W.double()).dtype == torch.float32
        with pytest.raises(Exception, match=said("no edge_attr in a layer without edge_dim")):
            compiled(X, EDGES, W, torch.randn(9, 2))
    with pytest.raises(Exception, match=said("Expected an edge_index in a GRANDAttention")):
        compiled(X, EDGES.tolist())


def test_a_solver_is_a_graph_break_too():
    def solve(u):
        t = torch.tensor([0.0, 1.0])
        return imex_odeint(None, operators.ScaledIdentity(-1.0), u.sin(), t, step_size=0.5).cos()

    u = torch.rand(3)
    torch.testing.assert_close(torch.compile(solve, backend="eager")(u), solve(u))


@pytest.mark.parametrize("layer", [SINODEConv(4, 4), GRANDAttention(4)],
                         ids=lambda layer: type(layer).__name__)
def test_scripting_tracing_and_exporting_are_refused_in_one_sentence(layer):
    name = type(layer).__name__
    with pytest.raises(RuntimeError, match=rf"Expected {name} outside torch.jit.script \(got"):
        torch.jit.script(layer)
    with pytest.raises(RuntimeError, match=rf"Expected {name} outside torch.jit.trace \(got"):
        torch.jit.trace(layer, (X, EDGES))
    if isinstance(layer, SINODEConv) and hasattr(torch.compiler, "is_exporting"):
        with pytest.raises(RuntimeError, match=r"Expected SINODEConv outside torch.export \(got"):
            torch.export.export(layer, (X, EDGES), strict=False)
    assert layer(X, EDGES).shape == (NODES, 4)


def test_a_solver_refuses_to_be_traced():
    t = torch.tensor([0.0, 1.0])

    def solve(u):
        return imex_odeint(None, operators.ScaledIdentity(-1.0), u, t, step_size=0.5)

    with pytest.raises(RuntimeError, match=r"Expected imex_odeint outside torch.jit.trace"):
        torch.jit.trace(solve, (torch.rand(3),))


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.jacrev, torch.func.grad],
                         ids=lambda f: f.__name__)
def test_transforms_of_functions_are_refused_with_what_to_do(transform):
    conv = SINODEConv(4, 4)
    x = X.expand(2, NODES, 4) if transform is torch.func.vmap else X
    with pytest.raises(RuntimeError, match=r"Expected SINODEConv outside .*autograd\.grad"):
        transform(lambda x: conv(x, EDGES).sum())(x)


OPERATORS = {
    "closed": operators.Dense(-torch.eye(3)), "number": operators.ScaledIdentity(-1.0),
    "iterated": operators.Graph(torch.tensor([[0, 1], [1, 2]]), torch.rand(2), 3, dim=-1)}


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
@pytest.mark.parametrize("kind", OPERATORS)
def test_vectorized_jacobians_work_for_closed_inverses_and_are_refused_for_others(kind, gradient):
    def solve(u):
        t = torch.tensor([0.0, 1.0])
        return imex_odeint(lambda t, u: torch.sin(u), OPERATORS[kind], u, t, step_size=0.5,
                           gradient=gradient)[-1]

    u = torch.rand(3)
    if kind == "iterated":
        with pytest.raises(RuntimeError, match=r"one gradient at a time .*vectorize=True"):
            jacobian(solve, u, vectorize=True)
    else:
        torch.testing.assert_close(jacobian(solve, u, vectorize=True), jacobian(solve, u))


def test_a_vectorized_jacobian_of_a_layer_is_refused():
    conv = SINODEConv(4, 4)
    with pytest.raises(RuntimeError, match=r"one gradient at a time .*vectorize=True"):
        jacobian(lambda x: conv(x, EDGES), X, vectorize=True)
    assert jacobian(lambda x: conv(x, EDGES), X).shape == (NODES, 4, NODES, 4)
