"""Can no parameters make a dissipative operator grow, and are its solves accurate and trained?"""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from cases import EDGES, HALF, NODES, dense_matrix
from torch import nn
from torch.func import functional_call

from pyg_sinode import LearnedOperator, SINODEConv, imex_odeint
from pyg_sinode.operators import (
    Circulant,
    Dense,
    Diagonal,
    Dissipative,
    DissipativeCirculant,
    DissipativeGraph,
    Graph,
    LinearSolveError,
    MatrixFree,
    ScaledIdentity,
)
from pyg_sinode.schemes import SCHEMES, IMEXTableau
from pyg_sinode.solvers import CG, Chebyshev, Direct, default

F32, F64 = torch.float32, torch.float64
BOTH = torch.cat([HALF, HALF.flip(0)], dim=1)  # both directions of the edges of a graph


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64).to(dtype)


def symmetric_graph(numbers, dim=-1):
    return DissipativeGraph(BOTH, torch.cat([numbers, numbers]), NODES, softplus=True, dim=dim)


KINDS = {
    "full": lambda **o: Dissipative(6, generator=seeded(), **o),
    "low rank": lambda **o: Dissipative(12, rank=2, generator=seeded(), **o),
    "circulant": lambda **o: DissipativeCirculant(6, generator=seeded(), **o),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def matrix_of(J):
    n = NODES if isinstance(J, Graph) else J.size_along(-1)
    return dense_matrix(J, (n,), J.tensors[0].dtype).detach()


# No parameters make a state grow


@every_kind
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_the_symmetric_part_is_negative_after_any_update(make, size):
    J = make(dtype=F64)
    for seed in range(10):
        with torch.no_grad():
            for number, p in enumerate(J.tensors):
                p.copy_(size * randn(*p.shape, seed=100 * seed + number))
        matrix = matrix_of(J)
        top, rounding = torch.linalg.eigvalsh(matrix + matrix.t())[-1] / 2, 1e-14 * matrix.norm()
        # With large parameters eps = 1e-3 is below the rounding of the matrix written out.
        assert float(top) < (0.0 if size == 1.0 else float(rounding))
        values = torch.linalg.eigvals(matrix)
        assert float(values.real.max()) <= J.largest_eigenvalue() + float(rounding)
        center, radius = J.disc()
        assert float((values - center).abs().max()) <= radius


def test_the_quadratic_form_is_that_of_b_and_eps_to_rounding():
    for rank in (None, 3):
        J = Dissipative(20, rank, eps=0.01, dtype=F64)
        u = randn(20)
        power = float(u @ J.mv(u).detach())
        exact = -float((J.tensors[-1].detach().t() @ u).square().sum() + 0.01 * u.square().sum())
        assert power == pytest.approx(exact, rel=1e-12)


A_STABLE = [s for s in SCHEMES.values() if isinstance(s, IMEXTableau)]


def test_all_runge_kutta_schemes_are_a_stable():
    z = -np.exp(1j * np.linspace(-math.pi / 2, math.pi / 2, 9)) * np.logspace(-2, 3, 40)[:, None]
    for scheme in A_STABLE:
        for value in z.flatten():
            one = np.ones(scheme.stages)
            stages = np.linalg.solve(np.eye(scheme.stages) - value * scheme.a_implicit, one)
            assert abs(1 + value * scheme.b_implicit @ stages) < 1 + 1e-9


@pytest.mark.parametrize("scheme", [s.name for s in A_STABLE])
@pytest.mark.parametrize("step_size", [0.03, 1.0, 1e3])
def test_the_2_norm_never_grows_in_a_stable_steps_of_any_size(scheme, step_size):
    u0 = randn(4, 6, seed=1)
    operators = [Dissipative(6, dtype=F64, generator=seeded(2)),
                 30.0 * Dissipative(6, 1, dtype=F64, generator=seeded(3)),
                 DissipativeCirculant(6, dtype=F64, generator=seeded(4)),
                 symmetric_graph(randn(6, seed=5))]
    # Skew but for 1e-3: a scheme whose stability ends at the imaginary axis would show it.
    operators.append(Dissipative.from_tensors(100 * randn(6, 6), torch.zeros(6, 1, dtype=F64)))
    for J in operators:
        t = step_size * torch.arange(21, dtype=F64)
        with torch.no_grad():
            u = imex_odeint(None, J, u0, t, method=scheme, step_size=step_size, solver=Direct())
        norm = torch.linalg.vector_norm(u, dim=-1)
        assert bool((norm[1:] <= norm[:-1] * (1 + 1e-12)).all())


@pytest.mark.parametrize("step_size", [0.03, 1.0, 1e3])
def test_the_maximum_norm_never_grows_on_a_graph_in_implicit_euler_steps(step_size):
    J = DissipativeGraph(EDGES, 3 * randn(9), NODES, softplus=True, dim=-1)
    t, u0 = step_size * torch.arange(11, dtype=F64), randn(4, NODES, seed=1)
    u = imex_odeint(None, J, u0, t, method="imex_euler", step_size=step_size, solver=Direct())
    largest = u.abs().amax(dim=-1)
    assert bool((largest[1:] <= largest[:-1] * (1 + 1e-12)).all())
    assert bool((u.amax(dim=-1).diff(dim=0) <= 1e-12).all())  # nor does any component leave
    assert bool((u.amin(dim=-1).diff(dim=0) >= -1e-12).all())  # the range of the others


def test_the_maximum_norm_of_crank_nicolson_may_grow_as_the_docstring_implies():
    J = DissipativeGraph(torch.tensor([[1], [0]]), torch.tensor([1e3], dtype=F64), 2, dim=-1)
    u0 = torch.tensor([1.0, -1.0], dtype=F64)
    u = imex_odeint(None, J, u0, torch.tensor([0.0, 1.0]), method="crank_nicolson", step_size=1.0,
                    solver=Direct())
    assert float(u[-1].abs().max()) > 2.5


# Solves


def shifted(J, c):
    matrix = matrix_of(J.with_tensors([x.detach().double() for x in J.tensors]))
    return torch.eye(len(matrix), dtype=F64) - c * matrix


def errors_of_solves(J, c, b):
    """The errors of the inverse and of its transpose, over the norm of b."""
    inverse, found = J.resolvent(c), []
    for own, matrix in ((inverse, shifted(J, c)), (inverse.T, shifted(J, c).t())):
        exact = torch.linalg.solve(matrix, b.double().t()).t()
        found.append(float((own.mv(b).double() - exact).norm() / b.double().norm()))
    return max(found)


@pytest.mark.parametrize("dtype", [F64, F32], ids=["f64", "f32"])
@pytest.mark.parametrize("c", [1e-4, 1.0, 1e2, 1e4])
def test_a_low_rank_inverse_is_the_dense_one_to_rounding_however_large_c_is(dtype, c):
    # No cancellation: |(I - cJ)^-1| <= 1, and the errors are of the rounding of b. Those of the
    # dense reference, in float64, grow with the condition.
    J = Dissipative(60, rank=4, dtype=dtype, generator=seeded())
    b = randn(5, 60, seed=1, dtype=dtype)
    condition = float(torch.linalg.cond(shifted(J, c)))
    assert condition < 1.01 + c * float(torch.linalg.matrix_norm(J.matrix().detach(), 2))
    eps = torch.finfo(dtype).eps
    assert errors_of_solves(J, c, b) < 4 * eps + 4 * torch.finfo(F64).eps * condition


@pytest.mark.parametrize("dtype", [F64, F32], ids=["f64", "f32"])
def test_columns_that_depend_on_each_other_do_no_harm(dtype):
    P = randn(40, 3, dtype=dtype) / 6
    B = torch.cat([P[:, :1], P[:, :1], P[:, 1:2] + 1e-4 * P[:, 2:]], dim=1)
    for tensors in ((P, P.flip(1), B), (P, P, P), (0 * P, P, 0 * P)):
        J = Dissipative.from_tensors(*tensors)
        error = errors_of_solves(J, 10.0, randn(2, 40, seed=1, dtype=dtype))
        assert error < 50 * torch.finfo(dtype).eps


def test_what_lies_in_the_span_of_the_columns_is_solved_as_well():
    J = Dissipative(50, rank=3, generator=seeded(), dtype=F32)
    b = (J.tensors[2] @ randn(3, 2, dtype=F32)).t().detach()
    assert errors_of_solves(J, 1e4, b) < 1e-6


@pytest.mark.parametrize("n", [30, 31])
def test_a_rank_of_a_third_of_the_size_is_solved_by_either_form(n):
    J = Dissipative(n, rank=10, dtype=F64, generator=seeded())
    assert type(J.resolvent(0.5)).__name__ == ("DenseInverse" if n == 30 else "LowRankInverse")
    assert errors_of_solves(J, 0.5, randn(2, n)) < 1e-14


def test_a_solve_of_low_rank_makes_no_matrix_of_the_full_size():
    n = 200_000  # a matrix of n x n would have 160 GB
    J = Dissipative(n, rank=2, generator=seeded())
    u = randn(2, n, dtype=F32)
    x = J.resolvent(0.3).mv(u)
    assert float((x - 0.3 * J.mv(x).detach() - u).norm() / u.norm()) < 1e-5
    assert default(J) == Direct()


def test_a_negative_c_may_be_singular_and_is_an_error():
    B = torch.zeros(8, 1, dtype=F64)
    B[0] = 1.0
    zero = torch.zeros(8, 1, dtype=F64)
    J = Dissipative.from_tensors(zero, zero, B, eps=0.25)  # eigenvalues -1.25 and -0.25
    with pytest.raises(LinearSolveError, match=r"singular to rounding: an eigenvalue is 0.0e\+00"):
        J.resolvent(-4.0)
    with pytest.raises(LinearSolveError, match="singular to rounding"):
        J.resolvent(-0.8)
    with pytest.raises(LinearSolveError, match="singular to rounding"):
        Dissipative.from_tensors(torch.zeros(8, 8, dtype=F64), B, eps=0.25).resolvent(-0.8)
    assert errors_of_solves(J, -0.5, randn(2, 8)) < 1e-14


def test_a_diffusion_is_solved_by_chebyshev_or_by_conjugate_gradients():
    J = symmetric_graph(randn(6))
    assert J.symmetric()
    assert isinstance(default(J, 1.0), Chebyshev)
    assert default(J, 1e3) == CG()
    assert isinstance(default(J.T, 1.0), Chebyshev)


# What each kind is


def test_the_matrices_are_those_of_their_formulas():
    S, B, P, Q = randn(5, 5), randn(5, 3, seed=1), randn(5, 2, seed=2), randn(5, 2, seed=3)
    eye = torch.eye(5, dtype=F64)
    for J, skew in ((Dissipative.from_tensors(S, B, eps=0.1), S - S.t()),
                    (Dissipative.from_tensors(P, Q, B, eps=0.1), P @ Q.t() - Q @ P.t())):
        torch.testing.assert_close(matrix_of(J), skew - B @ B.t() - 0.1 * eye)
        torch.testing.assert_close(J.matrix().detach(), matrix_of(J))
    assert (Dissipative(5).rank, Dissipative(5, 2).rank, Dissipative(5, 2).n) == (None, 2, 5)


@pytest.mark.parametrize("shape", [(6,), (5,), (4, 5), (2, 3, 4)])
def test_the_real_part_of_a_symbol_is_never_positive(shape):
    dims = tuple(range(-len(shape), 0))
    J = DissipativeCirculant(shape, dim=dims, dtype=F64, generator=seeded())
    full = J.spectrum(dict(zip(dims, shape, strict=True))).detach()
    assert float(full.real.max()) < 0
    assert float(full.imag.abs().max()) > 0
    a, b = (t.detach() for t in J.tensors)
    turned = [torch.from_numpy(np.roll(np.flip(x.numpy()), 1, tuple(range(len(shape)))).copy())
              for x in (a, b)]
    exact = torch.complex(-nn.functional.softplus((a + turned[0]) / 2), (b - turned[1]) / 2)
    torch.testing.assert_close(full, exact)
    still = DissipativeCirculant(shape, dim=dims, dispersive=False, conserve_mean=True, dtype=F64)
    u = randn(2, *shape)
    assert still.symmetric()
    assert still.largest_eigenvalue() == 0.0
    assert float(still.mv(u).detach().mean(dim=dims).abs().max()) < 1e-15
    assert isinstance(J, Circulant)


def test_a_scale_sets_the_rates_of_the_modes():
    scale = np.abs(np.fft.fftfreq(8, 1 / 8)) ** 4
    J = DissipativeCirculant.from_tensors(torch.full((8,), math.log(math.e - 1), dtype=F64),
                                          scale=scale)
    torch.testing.assert_close(J.spectrum({-1: 8}), torch.from_numpy(-scale))
    assert J.largest_eigenvalue() == 0.0


def test_a_diffusion_is_a_graph_less_its_degrees():
    weight = randn(9).abs()
    J = DissipativeGraph(EDGES, weight, NODES)
    degree = torch.zeros(NODES, dtype=F64).index_add(0, EDGES[1], weight)
    plain = Graph(EDGES, weight, NODES) + Diagonal(-degree.view(-1, 1))
    u = randn(NODES, 3)
    torch.testing.assert_close(J.mv(u), plain.mv(u))
    torch.testing.assert_close(J.T.mv(u), plain.T.mv(u))
    assert float(J.mv(torch.ones(NODES, 1, dtype=F64)).abs().max()) < 1e-15
    adj_t = torch.sparse_coo_tensor(EDGES.flip(0), weight, (NODES, NODES),
                                    check_invariants=True)
    torch.testing.assert_close(DissipativeGraph(adj_t).mv(u), plain.mv(u))
    assert DissipativeGraph(EDGES).pattern.num_nodes == 5
    assert repr(J) == "DissipativeGraph(num_nodes=6, num_edges=9)"


# Training


OPTIONS = [{}, {"gradient": "backprop"}, {"checkpoints": 2}]


@pytest.mark.parametrize("options", OPTIONS, ids=["discrete", "backprop", "checkpoints"])
@pytest.mark.parametrize("dtype", [F64, F32], ids=["f64", "f32"])
def test_the_gradients_of_an_integration_are_those_of_the_dense_matrix(options, dtype):
    u0, t = randn(3, 8, dtype=dtype), torch.linspace(0, 1, 3, dtype=F64)
    S, B, P, Q = (0.5 * randn(8, k, seed=k, dtype=dtype) for k in (8, 3, 2, 1))
    eye = torch.eye(8, dtype=dtype)
    numbers = randn(8, seed=9, dtype=dtype), randn(8, seed=10, dtype=dtype)
    edges = torch.randint(0, 8, (2, 20), generator=seeded(3))
    weight = randn(20, seed=4, dtype=dtype)

    def dense_of(J):  # by autograd through the product
        return Dense(J.mv(eye).t())

    cases = [(Dissipative.from_tensors, (S, B)), (Dissipative.from_tensors, (P, P.flip(0), B)),
             (Dissipative.from_tensors, (Q, Q.flip(0), Q.sin())),
             (DissipativeCirculant.from_tensors, numbers),
             (lambda w: DissipativeGraph(edges, w, 8, softplus=True, dim=-1), (weight,))]
    for make, tensors in cases:
        found = []
        for operator in (lambda J: J, dense_of):
            leaves = [x.clone().requires_grad_() for x in (u0, *tensors)]
            u = imex_odeint(lambda t, u: torch.sin(u), operator(make(*leaves[1:])), leaves[0], t,
                            method="ark324l2sa", step_size=0.125, solver=Direct(),
                            **(options if operator is not dense_of else {}))
            found.append(torch.autograd.grad(u[1:].square().sum(), leaves))
        for own, exact in zip(*found, strict=True):
            scale = float(exact.abs().max())
            assert float((own - exact).abs().max()) < (1e-12 if dtype == F64 else 1e-4) * scale


@pytest.mark.parametrize("make", [
    lambda: Dissipative(6, dtype=F64, generator=seeded(1)),
    lambda: Dissipative(6, 2, dtype=F64, generator=seeded(1)),
    lambda: DissipativeCirculant(6, dtype=F64, generator=seeded(1)),
    lambda: symmetric_graph(nn.Parameter(randn(6, seed=1))),
], ids=["full", "low rank", "circulant", "graph"])
def test_an_operator_is_trained_in_two_lines(make):
    torch.manual_seed(0)
    truth, u0, t = make(), randn(16, 6), torch.tensor([0.0, 1.0], dtype=F64)
    J = truth.with_tensors([nn.Parameter(p.detach() + 0.3 * torch.randn_like(p))
                            for p in truth.tensors])
    with torch.no_grad():
        data = imex_odeint(None, truth, u0, t, step_size=0.5, solver=Direct())
    optimizer = torch.optim.Adam([*J.tensors], lr=0.03)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        u = imex_odeint(None, J, u0, t, step_size=0.5, solver=Direct())
        loss = (u - data).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_adaptive_steps_and_second_derivatives_work():
    J = Dissipative(6, rank=1, dtype=F64, generator=seeded())
    t, u0 = torch.tensor([0.0, 1.0], dtype=F64), randn(2, 6)
    u = imex_odeint(lambda t, u: u.sin(), J, u0, t, rtol=1e-5, atol=1e-7)
    exact = imex_odeint(lambda t, u: u.sin(), Dense(matrix_of(J)), u0, t, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(u, exact)
    end = imex_odeint(None, J, u0, t, step_size=0.5, gradient="backprop")[-1].square().sum()
    (first,) = torch.autograd.grad(end, J.tensors[0], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), J.tensors[2])
    assert bool(second.any())


def test_a_seed_makes_the_same_operator():
    for make in KINDS.values():
        for a, b in zip(make().tensors, make().tensors, strict=True):
            assert torch.equal(a, b)
            assert isinstance(a, nn.Parameter)
            assert a.dtype == torch.get_default_dtype()
    assert KINDS["full"](dtype=F64, device="cpu").tensors[0].dtype == F64


# As the parameters of a module


class Model(nn.Module):
    def __init__(self, J):
        super().__init__()
        self.J = LearnedOperator(J)

    def forward(self, u0):
        return imex_odeint(lambda t, u: u.sin(), self.J(), u0, torch.tensor([0.0, 1.0]),
                           step_size=0.5)[-1]


@every_kind
def test_a_module_holds_the_tensors_and_gives_the_operator_of_those_in_force(make):
    J = make(dtype=F64)
    model, u0 = Model(J), randn(2, J.size_along(-1))
    assert [tuple(p.shape) for p in model.parameters()] == [tuple(x.shape) for x in J.tensors]
    before = model(u0)
    other = {name: 2 * p.detach() for name, p in model.named_parameters()}
    replaced = functional_call(model, other, (u0,))
    assert not torch.equal(replaced, before)
    assert torch.equal(model(u0), before)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    assert torch.equal(model(u0), replaced)
    model(u0).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@every_kind
def test_a_module_is_copied_pickled_saved_and_converted(make):
    J = make(dtype=F64)
    model, u0 = Model(J), randn(2, J.size_along(-1))
    expected = model(u0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(u0), expected)
    fresh = Model(J.with_tensors([torch.zeros_like(x) for x in J.tensors]))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(u0), expected)
    assert model.float()(u0.float()).dtype == F32
    assert repr(J) in repr(fresh)


@every_kind
def test_an_operator_made_in_init_is_refused_where_its_parameters_are_replaced(make):
    class Stale(nn.Module):
        def __init__(self):
            super().__init__()
            self.operator = make(dtype=F64)
            self.weights = nn.ParameterList(self.operator.tensors)

        def forward(self, u0):
            return imex_odeint(None, self.operator, u0, torch.tensor([0.0, 1.0]), step_size=1.0)

    model = Stale()
    other = {name: 2 * p.detach() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="build the operator in forward, not in __init__"):
        functional_call(model, other, (randn(2, model.operator.size_along(-1)),))


def test_any_operator_is_learned_and_none_without_tensors():
    matrix = randn(3, 3)
    module = LearnedOperator(Dense(matrix) - ScaledIdentity(1.0))
    assert torch.equal(module().mv(matrix), matrix @ matrix.t() - matrix)
    assert module.weights[0] is not matrix
    with pytest.raises(ValueError, match="Expected an operator with tensors to learn"):
        LearnedOperator(ScaledIdentity(-1.0))
    with pytest.raises(TypeError, match="Expected a LinearOperator in LearnedOperator"):
        LearnedOperator(nn.Linear(2, 2))
    free = LearnedOperator(MatrixFree(lambda u, a: a * u, torch.tensor(-1.0)))
    assert float(free().mv(torch.ones(2))[0].detach()) == -1.0


@pytest.mark.parametrize("wrap", [lambda J: J, LearnedOperator], ids=["operator", "module"])
@pytest.mark.parametrize("J", [
    lambda: Dissipative(4, rank=1), lambda: DissipativeGraph(
        EDGES, nn.Parameter(torch.zeros(9)), NODES, softplus=True)], ids=["channels", "graph"])
def test_a_layer_trains_a_dissipative_operator(wrap, J):
    torch.manual_seed(0)
    operator = J()
    conv = SINODEConv(3, 4, implicit=wrap(operator), time=1.0, step_size=0.5)
    assert len(list(conv.parameters())) >= len(operator.tensors)
    conv(torch.randn(NODES, 3), EDGES).square().sum().backward()
    shapes = [p.shape for p in conv.parameters() if p.grad is not None and p.grad.any()]
    assert all(x.shape in shapes for x in operator.tensors)


# What is refused


WRONG = {
    "n": (lambda: Dissipative(0), "Expected n as an int of at least 1 in Dissipative"),
    "rank": (lambda: Dissipative(3, 0), "Expected rank as an int of at least 1 in Dissipative"),
    "eps": (lambda: Dissipative(3, eps=0.0), "Expected eps as a finite number above 0"),
    "count": (lambda: Dissipative.from_tensors(randn(3, 3)), "Expected two tensors, S and B, or"),
    "full": (lambda: Dissipative.from_tensors(randn(3, 2), randn(3, 3)),
             r"Expected S of shape \(n, n\) and B of shape \(n, k\)"),
    "low rank": (lambda: Dissipative.from_tensors(randn(3, 2), randn(3, 1), randn(3, 2)),
                 r"Expected P and Q of shape \(n, r\) and B of shape \(n, k\)"),
    "0-dim": (lambda: Dissipative.from_tensors(torch.ones(()), randn(3)), "Expected S of shape"),
    "state": (lambda: Dissipative(3).check(torch.ones(4)), "Expected a state of size 3 along"),
    "size": (lambda: DissipativeCirculant(0), "Expected sizes of at least 1 in Diss"),
    "axes": (lambda: DissipativeCirculant((2, 3)), "Expected a damping with one axis for each"),
    "shapes": (lambda: DissipativeCirculant.from_tensors(randn(3), randn(4)),
               "Expected damping and dispersion of one shape in DissipativeCirculant"),
    "scales": (lambda: DissipativeCirculant(4, scale=[1.0, 2.0]), "Expected one scale, or one for"),
    "negative": (lambda: DissipativeCirculant(4, scale=-1.0),
                 "Expected finite scales of at least 0 in DissipativeCirculant"),
    "odd": (lambda: DissipativeCirculant(4, scale=[0.0, 1.0, 0.0, 2.0]),
            "Expected the scale at -k to be that at k in DissipativeCirculant"),
    "edges": (lambda: DissipativeGraph(EDGES, randn(8).abs(), NODES), "Expected edge_weight"),
    "weights": (lambda: DissipativeGraph(EDGES, -torch.ones(9), NODES),
                r"Expected weights of at least 0 in DissipativeGraph \(got -1.0e\+00\); softp"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_is_not_dissipative_or_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_wrong_kind_of_numbers_is_refused():
    with pytest.raises(TypeError, match="Expected real numbers as the scale of Diss"):
        DissipativeCirculant(4, scale=1j)
    with pytest.raises(TypeError, match="Expected S of a real floating dtype"):
        Dissipative.from_tensors(torch.ones(3, 3, dtype=torch.long), torch.ones(3, 3))
    with pytest.raises(TypeError, match="Expected damping as a tensor"):
        DissipativeCirculant.from_tensors([1.0, 2.0])


def test_weights_that_training_made_negative_are_refused():
    J = DissipativeGraph(EDGES, nn.Parameter(torch.ones(9)), NODES)
    with torch.no_grad():
        J.tensors[0][3] = -0.1
    with pytest.raises(ValueError, match="Expected weights of at least 0 in DissipativeGraph"):
        imex_odeint(None, J, torch.ones(NODES, 1), torch.tensor([0.0, 1.0]), step_size=1.0)
