"""Is the discrete adjoint the gradient of the steps that were made?"""

import functools
import itertools

import pytest
import torch
from adjoint_cases import (
    STEP_SIZE,
    TIMES,
    Rate,
    Tied,
    assert_equal,
    gradients_in_both_modes,
    random,
)
from cases import OPERATORS, SOLVERS, dense_matrix, double, fitting_pairs
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode import imex_odeint, operators, solvers
from pyg_sinode.schemes import RUNGE_KUTTA

every_operator = pytest.mark.parametrize("name", OPERATORS)
every_pair = pytest.mark.parametrize(("name", "solver"), fitting_pairs())
every_gradient = pytest.mark.parametrize("gradient", ["discrete", "backprop"])
STEPS = {"Direct": 2, "CG": 1, "GMRES": 1, "BiCGStab": 1}  # the loop does not know its solver


class Setting:
    """An operator case with everything that a gradient should reach, the same at each call."""

    def __init__(self, name):
        self.case = OPERATORS[name]
        torch.manual_seed(3)
        self.u0 = self.case.state().requires_grad_()
        self.rate = Rate(self.case.shape[-1])
        self.scale = double(0.3).requires_grad_()
        self.leaves = self.case.leaves()
        self.loss_weights = random(len(TIMES), *self.case.shape)  # a loss on every output time
        self.operator = self.case.build(*self.leaves)

    def gradients(self, result):
        wanted = [self.u0, self.rate.weight, self.scale, *self.leaves]
        loss = (self.loss_weights[:len(result)] * result).sum()
        return torch.autograd.grad(loss, wanted)


def plain_steps(scheme, rate, M, u, times):
    """The scheme as it is written, with dense solves, for autograd to differentiate."""
    outputs, shape, identity = [u], u.shape, torch.eye(M.size(0), dtype=M.dtype)
    for start, end in itertools.pairwise(times.tolist()):
        h, g, k = end - start, [], []
        for i, c in enumerate(scheme.c_explicit.tolist()):
            r = u.flatten()
            for j in range(i):
                r = r + h * scheme.a_explicit[i, j] * g[j] + h * scheme.a_implicit[i, j] * k[j]
            U = torch.linalg.solve(identity - h * scheme.a_implicit[i, i] * M, r)
            g.append(rate(start + c * h, U.view(shape)).flatten())
            k.append(M @ U)
        rise = sum(b * x for b, x in zip(scheme.b_explicit, g, strict=True))
        rise = rise + sum(b * x for b, x in zip(scheme.b_implicit, k, strict=True))
        u = u + h * rise.view(shape)
        outputs.append(u)
    return torch.stack(outputs)


@functools.cache
def expected_of(name, method, steps):
    """Result and gradients by plain autograd, for all solvers."""
    s = Setting(name)
    M = dense_matrix(s.operator, s.case.shape)
    result = plain_steps(RUNGE_KUTTA[method], lambda t, u: s.rate(t, u, s.scale), M, s.u0,
                         TIMES[:steps + 1])
    return result.detach(), s.gradients(result)


def found_by(name, method, solver, gradient):
    s = Setting(name)
    times = TIMES[:STEPS.get(solver, 2) + 1]
    result = imex_odeint(s.rate, s.operator, s.u0, times, method=method, step_size=STEP_SIZE,
                         solver=SOLVERS[solver], args=(s.scale,), gradient=gradient)
    return result.detach(), s.gradients(result)


def schemes_of_pairs():
    """Shares the schemes out among the solvers of each operator, another way for each operator."""
    pairs, result = fitting_pairs(), []
    for number, name in enumerate(OPERATORS):
        solvers_of = [solver for other, solver in pairs if other == name]
        for place, solver in enumerate(solvers_of):
            first, step = (place + number) % len(solvers_of), len(solvers_of)
            result.append((name, solver, list(RUNGE_KUTTA)[first::step]))
    return result


def test_every_scheme_is_tested_with_every_operator_and_with_every_solver():
    assert [(name, solver) for name, solver, _ in schemes_of_pairs()] == fitting_pairs()
    for column in (0, 1):
        met = {}
        for *pair, methods in schemes_of_pairs():
            met.setdefault(pair[column], set()).update(methods)
        assert all(m == set(RUNGE_KUTTA) for m in met.values())


@pytest.mark.parametrize(("name", "solver", "methods"), schemes_of_pairs())
def test_gradients_equal_autograd_through_the_same_steps_for_every_scheme(name, solver, methods):
    for method in methods:
        found, same = (found_by(name, method, solver, g) for g in ("discrete", "backprop"))
        plain = expected_of(name, method, STEPS.get(solver, 2))
        assert torch.equal(found[0], same[0]), method
        assert_equal([found[0]], [plain[0]], 1e-11, method)
        assert_equal(found[1], same[1], 1e-10, f"{method} against backprop")
        assert_equal(found[1], plain[1], 1e-10, f"{method} against dense steps")


@every_operator
def test_gradcheck_passes_with_every_operator(name):
    s = Setting(name)

    def run(u0, scale, weight, *leaves):
        def explicit(t, u, scale, weight):
            return torch.sin(weight * u.roll(1, -1) + t) - scale * u * u

        return imex_odeint(explicit, s.case.build(*leaves), u0, TIMES, method="ark232",
                           step_size=STEP_SIZE, solver=None if closed else SOLVERS["GMRES"],
                           args=(scale, weight))

    closed = s.operator.has_closed_inverse()
    inputs = (s.u0, s.scale, s.rate.weight, *s.leaves)
    assert gradcheck(run, inputs, fast_mode=True)


def undirected(weights):
    ends = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 2]])
    edges = torch.cat([ends, ends.flip(0)], dim=1)
    return operators.Graph(edges, torch.cat([weights, weights]), 4)


SECOND = {
    "dense": (operators.Dense, (2, 2), (3, 2), None),
    "graph_by_cg": (undirected, (4,), (4, 2), solvers.CG(rtol=1e-13)),
    "graph_by_gmres": (undirected, (4,), (4, 2), solvers.GMRES(rtol=1e-13)),
    "graph_by_direct": (undirected, (4,), (4, 2), solvers.Direct()),
    "diagonal": (operators.Diagonal, (2,), (3, 2), None),
    "explicit_only": (lambda w: None, (1,), (3, 2), None),
}


def second(kind, gradient):
    """A small integration as a function of its state, parameter and coefficients; and these."""
    build, size, shape, solver = SECOND[kind]

    def run(u0, weight, coefficients):
        return imex_odeint(lambda t, u, w: torch.sin(w * u.flip(-1) + t), build(coefficients), u0,
                           TIMES[:2], method="ars222", step_size=STEP_SIZE, solver=solver,
                           args=(weight,), gradient=gradient)

    inputs = random(*shape), random(2), 0.3 * random(*size)
    return run, [x.requires_grad_() for x in inputs]


@pytest.mark.parametrize("kind", SECOND)
def test_second_derivatives_of_backprop_pass_gradgradcheck(kind):
    run, inputs = second(kind, "backprop")
    if kind == "explicit_only":
        assert gradgradcheck(lambda u0, w: run(u0, w, inputs[2]), inputs[:2])
    else:
        assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("kind", SECOND)
def test_create_graph_with_a_first_derivative_alone_works_in_the_discrete_mode(kind):
    run, inputs = second(kind, "discrete")
    wanted = inputs[:2] if kind == "explicit_only" else inputs
    loss = run(*inputs).square().sum()
    plain = torch.autograd.grad(loss, wanted, retain_graph=True)
    assert_equal(torch.autograd.grad(loss, wanted, create_graph=True), plain, 0.0)


@pytest.mark.parametrize("kind", SECOND)
def test_a_second_derivative_of_the_discrete_mode_raises_and_names_backprop(kind):
    run, inputs = second(kind, "discrete")
    for i in range(2 if kind == "explicit_only" else 3):
        loss = run(*inputs).square().sum()
        (first,) = torch.autograd.grad(loss, inputs[i], create_graph=True)
        for j in range(2 if kind == "explicit_only" else 3):
            with pytest.raises(RuntimeError, match='use gradient="backprop" for second deriv'):
                torch.autograd.grad(first.square().sum(), inputs[j], retain_graph=True)


def small(gradient="discrete", method="ark232", **given):
    """An integration of an explicit term with a parameter, an argument and a matrix."""
    values = {"u0": double([[0.5, -1.0], [2.0, 0.3]]), "weight": double([1.5, -0.7]),
              "scale": double(0.4), "matrix": double([[-1.0, 0.5], [0.2, -2.0]])} | given
    rate = Rate(2)
    rate.weight = nn.Parameter(values["weight"].detach(), values["weight"].requires_grad)
    values["weight"] = rate.weight
    result = imex_odeint(rate, operators.Dense(values["matrix"]), values["u0"], TIMES,
                         method=method, step_size=0.05, args=(values["scale"],), gradient=gradient)
    return result, values


NAMES = ("u0", "weight", "scale", "matrix")


def small_gradients(wanted, gradient="discrete"):
    _, values = small()
    given = {n: values[n].detach().requires_grad_(n in wanted) for n in NAMES}
    result, values = small(gradient, **given)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    loss = (result * weights).sum()
    return dict(zip(wanted, torch.autograd.grad(loss, [values[n] for n in wanted]), strict=True))


@pytest.mark.parametrize("wanted", [c for n in (1, 2, 3) for c in itertools.combinations(NAMES, n)],
                         ids="-".join)
def test_a_subset_of_the_gradients_is_the_same_as_in_all_of_them(wanted):
    everything = small_gradients(NAMES, "backprop")
    assert_equal(list(small_gradients(wanted).values()), [everything[n] for n in wanted], 1e-12)


@every_gradient
def test_what_needs_no_gradient_gets_none_and_no_graph_is_made_without_need(gradient):
    result, _ = small(gradient)  # the parameter requires none either
    assert not result.requires_grad
    with torch.no_grad():
        result, values = small(gradient, u0=double([[0.5, -1.0]]).requires_grad_())
        assert not result.requires_grad
    result, values = small(gradient, u0=double([[0.5, -1.0]]).requires_grad_())
    result.sum().backward()
    assert values["u0"].grad is not None
    assert all(values[n].grad is None for n in NAMES[1:])


def test_the_result_is_the_same_with_and_without_gradients():
    expected, _ = small()
    for gradient in ("discrete", "backprop"):
        result, _ = small(gradient, u0=double([[0.5, -1.0], [2.0, 0.3]]).requires_grad_())
        assert torch.equal(result, expected)


@pytest.mark.parametrize("output", [0, 1, 2])
def test_a_loss_on_one_output_time_reaches_only_what_comes_before(output):
    found, expected = [], []
    for gradient, results in (("discrete", found), ("backprop", expected)):
        u0 = double([[0.5, -1.0], [2.0, 0.3]]).requires_grad_()
        result, _ = small(gradient, u0=u0)
        results.extend(torch.autograd.grad(result[output].square().sum(), u0))
    assert_equal(found, expected, 1e-12)
    if output == 0:
        torch.testing.assert_close(found[0], 2 * u0)


def test_gradients_in_float32_are_those_of_float64_to_rounding():
    expected = small_gradients(("u0", "scale", "matrix"))
    _, values = small()
    given = {n: values[n].detach().float().requires_grad_(n != "weight") for n in NAMES}
    result, values = small(**given)
    assert result.dtype == torch.float32
    loss = (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum()
    found = torch.autograd.grad(loss, [values[n] for n in expected])
    assert_equal([g.double() for g in found], list(expected.values()), 1e-5)


def test_two_backward_passes_over_a_kept_graph_agree():
    u0 = double([[0.5, -1.0], [2.0, 0.3]]).requires_grad_()
    result, values = small(u0=u0, matrix=double([[-1.0, 0.5], [0.2, -2.0]]).requires_grad_())
    wanted = [u0, values["matrix"]]
    first = torch.autograd.grad(result.sum(), wanted, retain_graph=True)
    second = torch.autograd.grad(result.sum(), wanted)
    assert_equal(second, first, 0.0)


def test_one_tensor_in_several_places_gets_the_sum_of_its_gradients():
    def run(u0, scale, matrix, gradient):
        return imex_odeint(lambda t, u, x0, a, M: torch.sin(u @ M) + a * x0,
                           a_times_dense(scale, matrix), u0, TIMES, method="ssp222",
                           step_size=0.05, args=(u0, scale, matrix), gradient=gradient)

    def a_times_dense(scale, matrix):
        return operators.Scaled(operators.Dense(matrix), scale) + operators.Dense(matrix).T

    values = [x.requires_grad_() for x in (random(3, 2), double(0.3), 0.5 * random(2, 2))]
    found, expected = (torch.autograd.grad(run(*values, g).square().sum(), values)
                       for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-12)


def test_a_parameter_that_two_layers_share_gets_the_gradient_of_both():
    module, u0 = Tied(), random(3, 2)
    found, expected = gradients_in_both_modes(module, u0)
    assert_equal(found, expected, 1e-12)


@pytest.mark.parametrize("step_size", [0.05, 1.0], ids=["several_steps", "one_step_of_one"])
@pytest.mark.parametrize("rows", [1, 50], ids=["many_parameters", "few_parameters"])
def test_tensors_that_autograd_gives_one_gradient_get_memory_of_their_own(rows, step_size):
    def run(u0, p, q, gradient):
        t = TIMES if step_size < 1.0 else double([0.0, 1.0])
        return imex_odeint(lambda t, u, p, q: (p + q.view(4)).expand(u.shape) - u.sin(),
                           operators.ScaledIdentity(-1.0), u0, t, method="imex_euler",
                           step_size=step_size, args=(p, q), gradient=gradient)

    values = [x.requires_grad_() for x in (random(rows, 4), random(4), random(2, 2))]
    found, expected = (torch.autograd.grad(run(*values, g).square().sum(), values)
                       for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-12)
    run(*values, "discrete").sum().backward()
    before = values[2].grad.clone()
    values[1].grad.zero_()  # as an optimizer does in place
    assert torch.equal(values[2].grad, before)
