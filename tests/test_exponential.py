"""Do exponential Runge-Kutta schemes keep their orders, and does a step do what its scheme says?"""

import copy
import math
import pickle
from functools import lru_cache

import pytest
import torch
from cases import double

from pyg_sinode import imex_odeint, operators, schemes
from pyg_sinode.grid import PeriodicGrid
from pyg_sinode.operators.phi import phi_functions
from pyg_sinode.schemes import EXPONENTIAL, ExponentialTableau, exponential_order_conditions

F64 = torch.float64
every_scheme = pytest.mark.parametrize("scheme", EXPONENTIAL.values(), ids=EXPONENTIAL)
adaptive = {name: s for name, s in EXPONENTIAL.items() if s.embedded_order}
every_adaptive = pytest.mark.parametrize("scheme", adaptive.values(), ids=adaptive)
# The orders for a stiff J of the problems below, as Hochbruck and Ostermann (2005) have them.
STIFF = {"etd1": 1, "etdrk2": 2, "etdrk3": 2, "etdrk4": 2, "etdrk4s": 4, "lawson4": 1}


def slope(errors):
    """The order by the last two of three halvings."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


# Orders


def wave(grid):
    """A periodic problem that is not stiff: u_t = 0.1 u_xx + 0.05 u_xxx - u u_x + a forcing."""
    J = 0.1 * grid.derivative(2) + 0.05 * grid.derivative(3)
    D, x = grid.derivative(1), grid.points

    def G(t, u):
        return -u * D.mv(u) + torch.cos(3 * t) * torch.sin(x) - 0.2 * u**3

    return G, J, torch.exp(torch.sin(x)).unsqueeze(0)


@lru_cache
def end_of_wave():
    G, J, u0 = wave(PeriodicGrid(16, 2 * math.pi))
    return imex_odeint(G, J, u0, double([0.0, 1.0]), method="etdrk4s", step_size=1 / 256)[-1]


@every_scheme
def test_every_scheme_reaches_its_order_on_a_periodic_problem(scheme):
    G, J, u0 = wave(PeriodicGrid(16, 2 * math.pi))
    errors = [float((imex_odeint(G, J, u0, double([0.0, 1.0]), method=scheme, step_size=h)[-1]
                     - end_of_wave()).abs().max()) for h in (1 / 10, 1 / 20, 1 / 40)]
    assert abs(slope(errors) - scheme.order) < 0.25, errors


def heat(count=95):
    """u_t = u_xx + 1 / (1 + u^2) + f on (0, 1) with u = x (1 - x) e^t, zero at both ends.

    Source: Hochbruck and Ostermann (2005), doi:10.1137/040611434, section 6. Differences are exact
    for this solution.
    """
    x = torch.arange(1, count + 1, dtype=F64) / (count + 1)
    ones = torch.ones(count - 1, dtype=F64)
    matrix = (torch.diag(ones, 1) + torch.diag(ones, -1) - 2 * torch.eye(count)) * (count + 1) ** 2

    def G(t, u):
        exact = x * (1 - x) * torch.exp(t)
        return 1 / (1 + u * u) + exact + 2 * torch.exp(t) - 1 / (1 + exact * exact)

    return G, operators.Dense(matrix), x * (1 - x)


@every_scheme
def test_every_scheme_has_its_stiff_order_where_the_solution_is_not_periodic(scheme):
    G, J, u0 = heat()
    errors = [float((imex_odeint(G, J, u0, double([0.0, 1.0]), method=scheme, step_size=h)[-1]
                     - math.e * u0).abs().max()) for h in (1 / 8, 1 / 16, 1 / 32)]
    assert abs(slope(errors) - STIFF[scheme.name]) < 0.3, errors


@pytest.mark.parametrize("method", ["etdrk4s", "sbdf4"])
def test_schemes_of_stiff_order_four_are_more_accurate_than_one_that_falls(method):
    G, J, u0 = heat()
    found = [float((imex_odeint(G, J, u0, double([0.0, 1.0]), method=m, step_size=1 / 32)[-1]
                    - math.e * u0).abs().max()) for m in (method, "ark436l2sa")]
    assert found[0] < 0.1 * found[1]


@every_scheme
def test_a_linear_equation_is_solved_exactly_with_any_step(scheme):
    matrix = double([[-1.0, 100.0], [0.0, -3000.0]])
    u0 = double([1.0, -2.0])
    u = imex_odeint(None, operators.Dense(matrix), u0, double([0.0, 0.5, 1.0]), method=scheme,
                    step_size=1.0)
    for t, found in zip((0.5, 1.0), u[1:], strict=True):
        torch.testing.assert_close(found, torch.linalg.matrix_exp(t * matrix) @ u0)


@every_scheme
def test_without_an_operator_it_is_the_explicit_scheme_of_the_coefficients_at_zero(scheme):
    def G(t, u):
        return torch.cos(u) * (1 + t)

    u, h, k = double([0.2]), 0.3, []
    rows = [[schemes.exponential.at_zero(w) for w in row] for row in (*scheme.a, scheme.b)]
    for row, c in zip(rows, scheme.c, strict=False):
        k.append(G(1.0 + c * h, u + h * sum(a * x for a, x in zip(row, k, strict=False))))
    expected = u + h * sum(b * x for b, x in zip(rows[-1], k, strict=True))
    found = imex_odeint(G, None, u, double([1.0, 1.0 + h]), method=scheme, step_size=h)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0.0)


def test_etdrk4_is_the_scheme_of_cox_and_matthews_written_out():
    grid = PeriodicGrid(16, 2 * math.pi)
    G, J, u = wave(grid)
    h, t0 = 0.1, 0.3
    z = h * (0.1 * (1j * grid.wavenumbers()) ** 2 + J.terms[1].spectrum({-1: 16}).numpy())[:9]
    z = torch.as_tensor(z)
    half, whole = phi_functions(z / 2, 2), phi_functions(z, 4)
    E2, E, Q = half[0], whole[0], h / 2 * half[1]
    f = [h * (whole[1] - 3 * whole[2] + 4 * whole[3]), h * (2 * whole[2] - 4 * whole[3]),
         h * (4 * whole[3] - whole[2])]

    def N(t, v):
        return torch.fft.rfft(G(torch.tensor(t, dtype=F64), torch.fft.irfft(v, 16)))

    v = torch.fft.rfft(u)
    Nv = N(t0, v)
    a = E2 * v + Q * Nv
    Na = N(t0 + h / 2, a)
    b = E2 * v + Q * Na
    Nb = N(t0 + h / 2, b)
    c = E2 * a + Q * (2 * Nb - Nv)
    v = E * v + f[0] * Nv + f[1] * (Na + Nb) + f[2] * N(t0 + h, c)
    found = imex_odeint(G, J, u, double([t0, t0 + h]), method="etdrk4", step_size=h)[-1]
    torch.testing.assert_close(found, torch.fft.irfft(v, 16), rtol=1e-13, atol=1e-13)


# Adaptive steps


@every_adaptive
def test_the_error_estimate_has_the_order_of_the_embedded_solution(scheme):
    G, J, u0 = wave(PeriodicGrid(16, 2 * math.pi))
    steps = {}
    coarse, fine = (1e-3, 1e-5) if scheme.order == 2 else (1e-4, 1e-7)
    for tolerance in (coarse, fine):
        u, stats = imex_odeint(G, J, u0, double([0.0, 1.0]), method=scheme, rtol=tolerance,
                               atol=tolerance, return_stats=True)
        steps[tolerance] = stats.steps_accepted
        assert float((u[-1] - end_of_wave()).abs().max()) < 10 * tolerance
    # The error of a step is h^(q + 1) for an embedded solution of order q.
    power = math.log(coarse / fine) / math.log(steps[fine] / steps[coarse])
    assert abs(power - (scheme.embedded_order + 1)) < 0.6, steps


@every_adaptive
def test_the_estimate_sees_the_error_of_a_quadrature(scheme):
    # Most embedded pairs of order 4 with nodes 0, 1/2 and 1 would find no error here at all.
    def G(t, u):
        return torch.cos(5 * t).expand_as(u)

    tolerance = 1e-4 if scheme.order == 2 else 1e-6
    u, stats = imex_odeint(G, operators.ScaledIdentity(-1.0), double([0.0]), double([0.0, 2.0]),
                           method=scheme, rtol=tolerance, atol=tolerance, return_stats=True)
    exact = (math.cos(10) + 5 * math.sin(10) - math.exp(-2)) / 26
    assert stats.steps_accepted > 15
    assert abs(float(u[-1]) - exact) < 10 * tolerance


@every_scheme
def test_equal_steps_evaluate_no_stage_that_only_the_estimate_uses(scheme):
    count = {"etd1": 1, "etdrk2": 2, "etdrk3": 3, "etdrk4": 4, "etdrk4s": 5, "lawson4": 4}
    _, stats = imex_odeint(lambda t, u: -u, operators.ScaledIdentity(-1.0), double([1.0]),
                           double([0.0, 1.0]), method=scheme, step_size=0.5, return_stats=True)
    assert stats.explicit_evaluations == 2 * count[scheme.name] == 2 * scheme.explicit_evaluations


def test_without_g_adaptive_steps_are_exact_and_as_long_as_the_interval_allows():
    J = operators.Diagonal(double([-1.0, -500.0]))
    u, stats = imex_odeint(None, J, double([1.0, 1.0]), double([0.0, 2.0]), method="etdrk4",
                           return_stats=True)
    torch.testing.assert_close(u[-1], torch.exp(2 * double([-1.0, -500.0])))
    assert stats.steps_rejected == 0


# Long runs, and matrices without eigenvectors


def test_a_long_run_in_two_dimensions_does_not_drift_from_real_states():
    # Modes that J makes grow, on a grid whose transform stores some of them twice: the part that
    # only rounding put there is invisible in the state, and would grow without a bound.
    line = {0: -3.6, 1: 0.9}
    stencil = torch.zeros(5, 5, dtype=F64)
    inner = torch.zeros(3, 3, dtype=F64)
    inner[1, 1] = line[0] + 1.0
    for at in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inner[at] = line[1]
    for i in range(3):
        for k in range(3):
            stencil[i:i + 3, k:k + 3] -= inner[i, k] * inner
    stencil[2, 2] += 0.3
    J = operators.Circulant(stencil.numpy(), dim=(-2, -1))
    u0 = 0.1 * torch.randn(15, 15, dtype=F64, generator=torch.Generator().manual_seed(0))
    u = imex_odeint(lambda t, u: -u**3, J, u0, double([0.0, 700.0]), method="etdrk4",
                    step_size=1.0)
    assert 0.1 < float(u[-1].abs().max()) < 1.0


def test_a_matrix_without_a_basis_of_eigenvectors_is_integrated():
    matrix = torch.diag(torch.ones(19, dtype=F64), 1) - torch.eye(20, dtype=F64)
    u0 = torch.ones(20, dtype=F64)
    u = imex_odeint(None, operators.Dense(matrix), u0, double([0.0, 1.0]), method="etdrk4",
                    step_size=0.5)
    torch.testing.assert_close(u[-1], torch.linalg.matrix_exp(matrix) @ u0)


# What is kept


def test_functions_are_computed_once_for_each_step_size_and_kept_between_calls():
    J = operators.Circulant([1.0, -2.0, 1.0])

    def made(t, J=J):
        _, stats = imex_odeint(lambda t, u: u, J, torch.ones(8, dtype=F64), double(t),
                               method="etdrk2", step_size=0.1, return_stats=True)
        return stats.factorizations

    assert made([0.0, 1.0]) == 1
    assert made([0.0, 1.0]) == 0
    assert made([0.0, 1.0, 1.05]) == 1  # the last step is shorter
    many = [0.05 * k + 5e-4 * k * k for k in range(30)]  # one step each, of another size
    assert made(many) > 8
    assert made(many) == 0  # however many sizes there are, while they are small
    trained = operators.Circulant(double([1.0, -2.0, 1.0]).requires_grad_())
    assert made([0.0, 1.0], trained) == made([0.0, 1.0], trained) == 1


def test_the_backward_pass_uses_the_functions_of_the_forward_pass():
    u0 = torch.ones(2, 3, dtype=F64, requires_grad=True)
    for trained in (False, True):
        J = operators.Dense(torch.diag(double([-1.0, -2.0, -3.0])).requires_grad_(trained))
        for again in (False, True):
            u, stats = imex_odeint(lambda t, u: u, J, u0, double([0.0, 1.0]), method="etdrk2",
                                   step_size=0.1, return_stats=True)
            u[-1].sum().backward()
            # One set for both, and one with the graph to the tensors if these are trained.
            assert stats.factorizations == (2 if trained else 0 if again else 1)


def test_products_with_a_graph_are_counted():
    J = operators.Graph(torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.ones(3, dtype=F64), 3)
    degree = J.functions(lambda z: torch.stack([(0.1 * z).exp()]), torch.ones(3, 1).double())
    _, stats = imex_odeint(lambda t, u: u, J, torch.ones(3, 1, dtype=F64), double([0.0, 1.0]),
                           method="etdrk2", step_size=0.1, return_stats=True)
    assert stats.operator_products >= 10 * 3 * (degree.products - 1)
    _, none = imex_odeint(lambda t, u: u, None, torch.ones(3, 1, dtype=F64), double([0.0, 1.0]),
                          method="etdrk2", step_size=0.1, return_stats=True)
    assert (none.operator_products, none.factorizations) == (0, 0)


def test_an_operator_changed_in_place_gets_new_functions():
    d = double([-1.0, -2.0])
    J = operators.Diagonal(d)

    def run():
        return imex_odeint(None, J, torch.ones(2, dtype=F64), double([0.0, 1.0]), method="etd1",
                           step_size=1.0)[-1]

    torch.testing.assert_close(run(), d.exp())
    d.mul_(2.0)
    torch.testing.assert_close(run(), d.exp())


def test_float32_keeps_its_precision_where_z_is_small():
    J = operators.Circulant([1e-4, -2e-4, 1e-4])
    u0 = torch.rand(3, 8, dtype=F64)
    found, exact = (imex_odeint(lambda t, u: torch.sin(u), J, u, double([0.0, 1.0]),
                                method="etdrk4s", step_size=0.1)[-1] for u in (u0.float(), u0))
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


# Schemes


GIVEN = {"name": "mine", "order": 2, "a": [[], [{(1, 1): 1}]],
         "b": [{(1, 1): 1, (2, 1): -1}, {(2, 1): 1}]}


@every_scheme
def test_the_order_is_the_highest_that_holds(scheme):
    holds = exponential_order_conditions(scheme, scheme.order)
    assert max(map(abs, holds.values())) < 1e-14
    if scheme.order < 5:
        more = exponential_order_conditions(scheme, scheme.order + 1)
        assert max(map(abs, more.values())) > 1e-3


def test_abscissae_are_those_of_the_phi_functions_to_the_bit():
    third = {(1, 1 / 3): 1 / 3}
    scheme = ExponentialTableau("third", 1, [[], [third]], [{(1, 1): 1}, {}])
    assert scheme.c == (0.0, 1 / 3)
    assert EXPONENTIAL["etdrk4s"].c == (0.0, 0.5, 0.5, 1.0, 0.5, 0.75)


@every_scheme
def test_schemes_copy_print_and_name_their_source(scheme):
    for made in (copy.deepcopy(scheme), pickle.loads(pickle.dumps(scheme))):
        assert (made.name, made.b, made.c) == (scheme.name, scheme.b, scheme.c)
    assert str(scheme) == (f"ExponentialTableau({scheme.name}, order={scheme.order}, "
                           f"stages={scheme.stages})")
    assert "doi:" in scheme.reference
    assert schemes.get_scheme(scheme.name) is schemes.get_scheme(scheme) is scheme


@pytest.mark.parametrize(("changes", "message"), [
    ({"order": 3}, r"all conditions up to order 3 to hold .* for the tree"),
    ({"b": [{(1, 1): 1}, {(2, 1): 1}]}, r"a residual of 5\.000e-01 for the tree E"),
    ({"b": [{(1, 1): 0.5}, {(1, 1): 0.5}]}, None),  # the trapezoidal rule has order 2 too
    ({"b": [{(0, 1): 1}, {}]}, r"for the tree E\[I\]|for the tree I\[E\]|for the tree E\[E\]"),
    ({"a": [[], []]}, r"i - 1 coefficients in row i of a.*\(got rows of \[0, 0\] and 2 weights\)"),
    ({"b": [{(1, 1): 1}]}, r"i - 1 coefficients in row i"),
    ({"b_embedded": [{}]}, r"as many rows as weights in b and b_embedded"),
    ({"order": 6}, r"order to be an int from 1 to 5, the highest that can be checked"),
    ({"a": [[], [{(5, 1): 1}]]}, r"phi_k\(c z\), k from 0 to 4 \(got \{\(5, 1\): 1\}\)"),
    ({"a": [[], [{(1, 1): math.nan}]]}, r"finite weights w"),
    ({"a": [[], [{1: 1}]]}, r"finite weights w of .* \(got \{1: 1\}\); write \{\(k, c\): w\}"),
])
def test_wrong_coefficients_are_refused(changes, message):
    if message is None:
        assert ExponentialTableau(**(GIVEN | changes)).order == 2
        return
    with pytest.raises(ValueError, match=f"ExponentialTableau 'mine' expects .*{message}"):
        ExponentialTableau(**(GIVEN | changes))


def test_conditions_of_an_embedded_solution_need_its_weights():
    scheme = ExponentialTableau(**GIVEN)
    assert scheme.embedded_order == 0
    with pytest.raises(ValueError, match="expects embedded weights"):
        exponential_order_conditions(scheme, 1, embedded=True)
