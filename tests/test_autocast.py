"""In which precision does everything compute under autocast, and with 16-bit tensors?"""

import contextlib
import copy

import pytest
import torch
from cases import OPERATORS, SOLVERS, fits
from torch import nn

from pyg_sinode import SINODE, GRANDAttention, SINODEConv, imex_odeint
from pyg_sinode.operators import Circulant, Dense, Graph, ScaledIdentity, Shifted
from pyg_sinode.solvers import Direct
from pyg_sinode.terms import Affine

SHORT = [torch.bfloat16, torch.float16]
EDGES = torch.tensor([[0, 1, 2, 3, 1], [1, 0, 1, 2, 2]])
T = torch.tensor([0.0, 1.0])
short = pytest.mark.parametrize("dtype", SHORT, ids=["bfloat16", "float16"])


def autocast(dtype):
    return torch.autocast("cpu", dtype=dtype)


LAYERS = {
    **{f"{implicit}-{gradient}": lambda i=implicit, g=gradient: SINODEConv(
        6, 6, heads=2, implicit=i, gradient=g)
       for implicit in ("decay", "laplacian", "attention")
       for gradient in ("discrete", "backprop")},
    "widened": lambda: SINODEConv(6, 4, implicit="laplacian"),
    "column": lambda: SINODEConv(6, 6, stochastic="column", normalizer="squareplus"),
    "attention": lambda: GRANDAttention(6, heads=2),
    "attention-plain": lambda: GRANDAttention(6, heads=2, fused=False),
    "attention-kernel": lambda: GRANDAttention(6, score="exp_kernel"),
}


def output_and_gradients(layer, x, weight, dtype=None):
    x, weight = (y.clone().requires_grad_() for y in (x, weight))
    with autocast(dtype) if dtype else contextlib.nullcontext():
        y = layer(x, EDGES, weight)
    y.square().sum().backward()
    return [y.detach(), x.grad, weight.grad, *(p.grad for p in layer.parameters())]


@short
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_layer_computes_in_the_dtype_of_its_parameters(make, dtype):
    layer, x, weight = make(), torch.randn(4, 6), torch.rand(5)
    other = copy.deepcopy(layer)
    expected = output_and_gradients(layer, x, weight)
    found = output_and_gradients(other, x, weight, dtype)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@short
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_layer_takes_what_an_autocast_layer_before_it_gives(make, dtype):
    layer, lin, x = make(), nn.Linear(6, 6), torch.randn(4, 6)
    with autocast(dtype):
        before = lin(x)
        y = layer(before, EDGES, torch.rand(5).to(dtype))
        assert before.dtype == dtype
    assert y.dtype == torch.float32
    y.sum().backward()
    assert lin.weight.grad.isfinite().all()
    torch.testing.assert_close(layer(before.float(), EDGES, torch.ones(5)),
                               layer(before.detach().float(), EDGES))


@short
def test_a_network_runs_and_trains_under_autocast(dtype):
    net, x = SINODE(6, 8, 3, heads=2, implicit="attention", batch_norm=True), torch.randn(4, 6)
    expected = net(x, EDGES)
    for features in (x, x.to(dtype)):
        with autocast(dtype):
            y = net(features, EDGES)
            loss = nn.functional.cross_entropy(y, torch.tensor([0, 1, 2, 0]))
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        off = (y.float() - expected).detach().abs().max()
        assert off < 0.1 * expected.detach().abs().max()


@short
@pytest.mark.parametrize("name", OPERATORS)
def test_products_and_solves_keep_their_precision(name, dtype):
    case = OPERATORS[name]
    J, u = case.operator(torch.float32), case.state(torch.float32)
    expected = [J.mv(u), J.T.mv(u)]
    with autocast(dtype):
        found = [J.mv(u), J.T.mv(u)]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@short
@pytest.mark.parametrize("solver", ["Direct", "CG", "GMRES", "BiCGStab"])
def test_solvers_reach_their_tolerance(solver, dtype):
    case = OPERATORS["dense_symmetric"]
    assert fits(solver, case)
    method = type(SOLVERS[solver])()  # with the tolerance of float32
    A, b = Shifted(case.operator(torch.float32), 0.5), case.state(torch.float32)
    with autocast(dtype):
        x = method.invert(A).solve(b).x
    assert float((A.mv(x) - b).detach().norm()) <= 2e-5 * float(b.norm())


class Net(nn.Module):
    """An explicit term, with autocast inside if asked for."""

    def __init__(self, inside=None):
        super().__init__()
        self.lin, self.inside = nn.Linear(5, 5), inside

    def forward(self, t, u):
        if self.inside is None:
            return self.lin(u).tanh()
        with autocast(self.inside):
            return self.lin(u).tanh()


@short
@pytest.mark.parametrize("options", [{"gradient": "discrete"}, {"gradient": "backprop"},
                                     {"checkpoints": 1}, {"rtol": 1e-3, "step_size": None}],
                         ids=str)  # fmt: skip
def test_an_integration_leaves_autocast(dtype, options):
    net, u0, matrix = Net(), torch.randn(3, 5), 0.3 * torch.randn(5, 5)
    options = {"step_size": 0.25, **options}
    found = []
    for inside in (False, True):
        u, M = u0.clone().requires_grad_(), matrix.clone().requires_grad_()
        net.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=inside):
            y = imex_odeint(net, Dense(M), u, T, **options)
            if options.get("gradient") != "backprop":  # its backward pass is PyTorch's own
                y[-1].sum().backward()
        if options.get("gradient") == "backprop":
            y[-1].sum().backward()
        assert y.dtype == torch.float32
        found.append([y.detach(), u.grad, M.grad, net.lin.weight.grad.clone()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@short
def test_a_short_state_and_short_tensors_of_j_are_widened_under_autocast(dtype):
    u0, matrix = torch.randn(3, 5).to(dtype), torch.randn(5, 5).to(dtype)
    f = torch.ones(5).to(dtype)
    with autocast(dtype):
        for implicit in (Dense(matrix), Affine(Dense(matrix), f), Dense(matrix) + ScaledIdentity(
                torch.tensor(-1.0).to(dtype))):
            u = imex_odeint(None, implicit, u0, T, step_size=0.25)
            assert u.dtype == torch.float32
    expected = imex_odeint(None, Dense(matrix.float()), u0.float(), T, step_size=0.25)
    with autocast(dtype):
        torch.testing.assert_close(imex_odeint(None, Dense(matrix), u0, T, step_size=0.25),
                                   expected)


@short
def test_factors_are_kept_and_arguments_widened_under_autocast(dtype):
    J, u0 = Dense(torch.randn(5, 5)), torch.randn(3, 5)
    counts = []
    with autocast(dtype):
        h = nn.Linear(5, 5)(u0)
        assert h.dtype == dtype
        for _ in range(3):
            _, stats = imex_odeint(lambda t, u, h: u * h @ torch.eye(5), J, u0, T, step_size=0.25,
                                   args=(h,), return_stats=True)
            counts.append(stats.factorizations)
    assert counts == [1, 0, 0]


@short
def test_an_explicit_term_may_use_autocast_inside(dtype):
    net, u0 = Net(inside=dtype), torch.randn(3, 5)
    plain = Net()
    plain.load_state_dict(net.state_dict())
    for options in ({}, {"gradient": "backprop"}):
        u = imex_odeint(net, ScaledIdentity(-1.0), u0, T, step_size=0.25, **options)
        assert u.dtype == torch.float32
        u[-1].sum().backward()
        assert net.lin.weight.grad.dtype == torch.float32
        exact = imex_odeint(plain, ScaledIdentity(-1.0), u0, T, step_size=0.25)
        assert 0.0 < float((u - exact).detach().abs().max()) < 0.05


@short
def test_short_states_and_layers_without_autocast_are_refused(dtype):
    with pytest.raises(TypeError, match=rf"u0 in float32 or float64 \(got {dtype}\)"):
        imex_odeint(None, ScaledIdentity(-1.0), torch.ones(2, dtype=dtype), T, step_size=0.1)
    x = torch.ones(4, 6, dtype=dtype)
    for layer in (SINODEConv(6, 6), SINODE(6, 6, 2), GRANDAttention(6)):
        with pytest.raises(TypeError, match="parameters of the layer in float32 or float64"):
            layer.to(dtype)(x, EDGES)
    with pytest.raises(TypeError, match="dtype of the layer"):
        SINODEConv(6, 6)(x, EDGES)


@pytest.mark.parametrize("make", [
    lambda J: J + ScaledIdentity(-1.0), lambda J: ScaledIdentity(-1.0) + J,
    lambda J: J - 0.5 * ScaledIdentity(2.0), lambda J: (J + ScaledIdentity(-1.0)).T,
    lambda J: J + Circulant([0.5, -1.0, 0.5], dim=-2)], ids=[
    "after", "before", "scaled", "transposed", "stencil"])  # fmt: skip
def test_a_sum_with_python_numbers_has_entries_in_the_dtype_of_its_tensors(make):
    J = make(Graph(EDGES, torch.full((5,), 0.1), 4))
    for operator in (J, Shifted(J, 0.5)):
        entries = operator.to_coo(-2, 4)
        assert entries.value.dtype == torch.float32
        matrix = torch.zeros(4, 4).index_put_(entries[:2], entries.value, accumulate=True)
        torch.testing.assert_close(matrix, operator.mv(torch.eye(4)))
    for dense in (True, False):
        x = Direct(dense).invert(Shifted(J, 0.5)).solve(torch.eye(4)).x
        assert x.dtype == torch.float32
        torch.testing.assert_close(Shifted(J, 0.5).mv(x), torch.eye(4), rtol=0.0, atol=4e-6)
