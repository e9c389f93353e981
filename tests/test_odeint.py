"""Does imex_odeint reach its order, stay stable, and keep factors between calls?"""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from cases import KnownSolution, double, slope, times
from odeint_cases import AXES, decay, every_gradient

from pyg_sinode import imex_odeint, operators, solvers
from pyg_sinode.schemes import ALIASES, RUNGE_KUTTA

every_scheme = pytest.mark.parametrize("scheme", RUNGE_KUTTA.values(), ids=RUNGE_KUTTA)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


class Manufactured(KnownSolution):
    """u' = G(t, u) + J u, non-autonomous, nonlinear and coupled, with a solution that is known."""

    J = double([[-2.0, 1.0, 0.3], [0.4, -1.0, -0.8], [0.2, 0.9, -3.0]])

    def __init__(self, dtype=torch.float64):
        self.matrix = self.J.to(dtype)

    def __call__(self, t, u):
        s = self.solution(t)
        return self.rate(t) - s @ self.matrix.T + self.coupling(t, u) - self.coupling(t, s)

    def error(self, scheme, steps, start=0.0, end=1.0):
        t = times(start, end).to(self.matrix.dtype)
        result = imex_odeint(self, operators.Dense(self.matrix), self.solution(t[0]), t,
                             method=scheme, step_size=abs(end - start) / steps)
        return float((result[-1] - self.solution(t[-1])).abs().max())


@every_scheme
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)], ids=["onwards", "backwards"])
def test_every_scheme_reaches_its_order(scheme, start, end):
    steps = [32, 64, 128]
    errors = [Manufactured().error(scheme, n, start, end) for n in steps]
    assert slope(steps, errors) == pytest.approx(scheme.order, abs=0.2), errors


@every_scheme
def test_float32_is_accurate_to_its_rounding(scheme):
    expected = Manufactured().error(scheme, 32)
    # Each stage of each step adds a few roundings of numbers of order one.
    slack = 8 * torch.finfo(torch.float32).eps * 32 * scheme.stages
    assert Manufactured(torch.float32).error(scheme, 32) == pytest.approx(expected, abs=slack)


STIFF = -1e6
STIFF_MATRIX = AXES @ torch.diag(double([STIFF, -1.0])) @ AXES.T


def forcing(t, u):
    return torch.stack([torch.sin(t), torch.cos(2 * t)])


def stiff_solution(t):
    """Exact, in the axes of J: y' = k y + p sin t + q cos 2t for each eigenvalue k."""

    def particular(k, t):
        sin = -(k * np.sin(t) + np.cos(t)) / (k**2 + 1)
        cos = (2 * np.sin(2 * t) - k * np.cos(2 * t)) / (k**2 + 4)
        return np.stack([sin, cos])

    axes, y = AXES.numpy(), []
    for k, axis in zip([STIFF, -1.0], axes.T, strict=True):
        start = axis @ np.ones(2) - axis @ particular(k, 0.0)
        y.append(axis @ particular(k, t) + start * np.exp(k * t))
    return axes @ np.array(y)


def test_the_exact_solution_of_the_stiff_problem_solves_it():
    t, d = 0.7, 1e-4
    slope = (stiff_solution(t + d) - stiff_solution(t - d)) / (2 * d)
    now = stiff_solution(t)
    # The stiff component cancels to 1e-6 of J u, so that the defect is measured along the axes.
    defect = AXES.numpy().T @ (slope - forcing(double(t), None).numpy()) - np.array(
        [STIFF, -1.0]) * (AXES.numpy().T @ now)
    np.testing.assert_allclose(defect, 0.0, atol=1e-7)
    np.testing.assert_allclose(stiff_solution(0.0), [1.0, 1.0], atol=1e-15)


def stiff_error(method):
    result = imex_odeint(forcing, operators.Dense(STIFF_MATRIX), double([1.0, 1.0]), times(0, 10),
                         method=method, step_size=0.1)
    return np.abs(result[-1].numpy() - stiff_solution(10.0)).max()


@pytest.mark.parametrize(
    ("method", "expected"),
    [("ssp222", 9e-4), ("ars222", 1.4e-3), ("ark232", 1.2e-3), ("ars443", 5e-5),
     ("ark324l2sa", 3.6e-3), ("ark436l2sa", 2e-6), ("ark548l2sa", 1.5e-6), ("imex_euler", 0.03),
     ("ars122", 1.2)],
)
def test_the_error_on_the_stiff_problem_is_that_of_an_independent_computation(method, expected):
    assert expected / 1.2 <= stiff_error(method) <= expected * 1.2


def damping_at_infinity(scheme):
    """What is left of the stiffest component after a step: 0 for an L-stable implicit part."""
    A, b = scheme.a_implicit, scheme.b_implicit
    z = -1e7  # further out, rounding is amplified to more than what is left
    return abs(1 + z * b @ np.linalg.solve(np.eye(len(b)) - z * A, np.ones(len(b))))


@every_scheme
def test_l_stable_schemes_of_order_two_and_up_solve_the_stiff_problem_to_0_004(scheme):
    l_stable = damping_at_infinity(scheme) < 1e-5
    assert l_stable == (scheme.name not in ("ars122", "crank_nicolson"))
    if l_stable and scheme.order >= 2:
        assert stiff_error(scheme) <= 0.004


def test_classical_rk4_at_the_same_step_overflows():
    def rate(t, u):
        return STIFF_MATRIX @ u + forcing(double(t), u)

    u, h = double([1.0, 1.0]), 0.1
    for n in range(100):
        t = n * h
        k1 = rate(t, u)
        k2 = rate(t + h / 2, u + h / 2 * k1)
        k3 = rate(t + h / 2, u + h / 2 * k2)
        k4 = rate(t + h, u + h * k3)
        u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    assert not u.isfinite().all()


@every_scheme
def test_a_purely_linear_equation_is_solved_without_an_explicit_term(scheme):
    M, t = Manufactured.J, times(0, 0.5, 1)
    u0 = double([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]])
    result, stats = imex_odeint(None, operators.Dense(M), u0, t, method=scheme, step_size=0.01,
                                return_stats=True)
    expected = torch.stack([u0 @ torch.matrix_exp(s * M).T for s in t])
    torch.testing.assert_close(result, expected, rtol=0.0, atol=0.05 if scheme.order == 1 else 1e-3)
    assert stats.explicit_evaluations == 0


@every_scheme
def test_a_purely_explicit_equation_is_solved_without_an_operator(scheme):
    result, stats = imex_odeint(lambda t, u: 2 * t * u, None, double([1.0, 2.0]), times(0, 1),
                                method=scheme, step_size=0.01, return_stats=True)
    expected = math.e * double([1.0, 2.0])
    torch.testing.assert_close(result[-1], expected, rtol=0.0,
                               atol=0.1 if scheme.order == 1 else 1e-3)
    assert (stats.factorizations, stats.linear_solves, stats.operator_products) == (0, 0, 0)
    assert stats.explicit_evaluations == 100 * scheme.explicit_evaluations


def test_without_either_part_nothing_moves():
    result = imex_odeint(None, None, double([1.0, 2.0]), times(0, 1), step_size=0.5)
    assert result.tolist() == [[1.0, 2.0], [1.0, 2.0]]


@every_gradient
def test_one_output_time_gives_the_initial_state_and_evaluates_nothing(gradient):
    def fails(t, u):
        raise AssertionError

    u0 = double([1.0, 2.0]).requires_grad_()
    result = imex_odeint(fails, operators.Dense(AXES), u0, times(3), step_size=0.1,
                         gradient=gradient)
    assert torch.equal(result, u0[None])
    (grad,) = torch.autograd.grad(result.sum(), u0)
    assert grad.tolist() == [1.0, 1.0]


def test_the_first_output_is_the_initial_state_itself():
    u0 = torch.randn(5, 3, dtype=torch.float64)
    result = imex_odeint(Manufactured(), operators.Dense(Manufactured.J), u0, times(0, 1, 2),
                         step_size=0.1)
    assert result.shape == (3, 5, 3)
    assert torch.equal(result[0], u0)


def test_an_output_in_between_does_not_change_the_others_where_steps_agree():
    problem, J = Manufactured(), operators.Dense(Manufactured.J)
    u0 = problem.solution(double(0.0))
    few, many = (imex_odeint(problem, J, u0, t, step_size=0.25) for t in
                 (times(0, 1), times(0, 0.25, 0.5, 0.75, 1)))
    assert torch.equal(few[-1], many[-1])


@pytest.mark.parametrize("kind", ["float", "number", "module"])
def test_an_explicit_term_may_be_any_callable_of_time_and_state(kind):
    class Module(torch.nn.Module):
        def forward(self, t, u):
            return t * u

    explicit = {"float": lambda t, u: t * u, "number": torch.mul, "module": Module()}[kind]
    result = imex_odeint(explicit, None, double([1.0]), times(0, 1), step_size=0.1)
    assert float(result[-1]) == pytest.approx(math.exp(0.5), rel=1e-4)


def test_arguments_reach_the_explicit_term_whatever_they_are():
    def explicit(t, u, scale, name, index):
        assert name == "edge"
        return scale * u[index]

    result = imex_odeint(explicit, None, double([1.0, 2.0]), times(0, 0.5), step_size=0.5,
                         method="imex_euler", args=(2.0, "edge", torch.tensor([1, 0])))
    assert result[-1].tolist() == [3.0, 3.0]


@both_dtypes
@every_gradient
def test_the_explicit_term_gets_time_as_a_tensor_like_the_state(dtype, gradient):
    seen = []

    def explicit(t, u):
        seen.append((t.shape, t.dtype, t.device, t.requires_grad))
        return torch.sin(t) * u

    u0 = torch.ones(2, dtype=dtype, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    result = imex_odeint(explicit, None, u0, t, step_size=0.5, gradient=gradient)
    result.sum().backward()
    assert set(seen) == {(torch.Size(), dtype, u0.device, False)}
    assert result.dtype == u0.grad.dtype == dtype


@both_dtypes
def test_equal_intervals_in_either_dtype_are_as_many_steps_with_one_set_up(dtype):
    t = torch.linspace(0, 10, 51, dtype=dtype)
    J = operators.Dense(-torch.eye(2, dtype=dtype))
    _, stats = imex_odeint(None, J, torch.ones(2, dtype=dtype), t, method="ssp222", step_size=0.2,
                           return_stats=True)
    assert (stats.steps_accepted, stats.factorizations) == (50, 1)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_an_alias_or_a_tableau_is_as_good_as_a_name(alias, name):
    problem, J = Manufactured(), operators.Dense(Manufactured.J)
    mine = dataclasses.replace(RUNGE_KUTTA[name], name="mine")
    results = [imex_odeint(problem, J, double([1.0, 2.0, 3.0]), times(0, 1), method=m,
                           step_size=0.25) for m in (name, alias, mine)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_statistics_count_what_was_done_and_the_backward_pass_goes_on_counting():
    M = Manufactured.J.clone().requires_grad_()
    u0 = double([1.0, 2.0, 3.0]).requires_grad_()
    result, stats = imex_odeint(Manufactured(), operators.Dense(M), u0, times(0, 0.5, 2),
                                method="ssp222", step_size=0.1, return_stats=True)
    forward = dataclasses.replace(stats)
    assert (forward.steps_accepted, forward.steps_rejected) == (20, 0)
    assert (forward.explicit_evaluations, forward.explicit_vjps) == (40, 0)
    assert (forward.factorizations, forward.linear_solves) == (1, 40)
    result.square().sum().backward()
    assert stats.steps_accepted == 20
    assert (stats.explicit_evaluations, stats.explicit_vjps) == (40, 40)
    assert (stats.factorizations, stats.linear_solves) == (1, 80)
    assert stats.operator_products > forward.operator_products
    assert stats.linear_seconds > forward.linear_seconds > 0


def test_statistics_of_a_krylov_solver_have_its_iterations_and_worst_true_residual():
    J = operators.Dense(Manufactured.J)
    u0 = double([1.0, 2.0, 3.0])
    _, stats = imex_odeint(None, J, u0, times(0, 1), method="ssp222", step_size=0.1,
                           solver=solvers.GMRES(rtol=1e-3), return_stats=True)
    assert stats.linear_solves == 20
    assert 20 <= stats.linear_iterations <= 60
    assert 1e-12 < stats.worst_residual <= 1e-3 * 4 * float(u0.norm())
    _, direct = imex_odeint(None, J, u0, times(0, 1), step_size=0.1, return_stats=True)
    assert (direct.linear_iterations, direct.worst_residual) == (0, 0.0)


def set_ups(operator, step_size=0.1, **kwargs):
    """The set-ups of a call, whose result has to be that of a new operator."""
    u0 = torch.ones(2, dtype=torch.float64)
    result, stats = imex_odeint(None, operator, u0, times(0, 1), method="ssp222",
                                step_size=step_size, return_stats=True, **kwargs)
    new = operators.Dense(operator.tensors[0].detach().clone())
    expected = imex_odeint(None, new, u0, times(0, 1), method="ssp222", step_size=step_size)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=0.0)
    return stats.factorizations


def test_a_constant_matrix_is_factorised_once_over_all_calls():
    operator = operators.Dense(decay())
    assert [set_ups(operator) for _ in range(3)] == [1, 0, 0]


def step_of_a_fused_optimiser(matrix):
    # A Parameter on the same memory: what a fused optimiser writes has no trace in the versions.
    parameter = torch.nn.Parameter(matrix)
    assert parameter.data_ptr() == matrix.data_ptr()
    parameter.grad = torch.ones_like(matrix)
    torch.optim.Adam([parameter], lr=0.1, fused=True).step()


def load_a_state(matrix):
    module = torch.nn.Module()
    module.register_buffer("matrix", matrix)
    module.load_state_dict({"matrix": 2 * matrix})


def write_to_data(matrix):
    matrix.data[0, 0] = -7.0


def write_through_numpy(matrix):
    matrix.numpy()[0, 0] = -7.0


@pytest.mark.parametrize(
    "change",
    [lambda m: m.mul_(2), write_to_data, write_through_numpy, load_a_state,
     step_of_a_fused_optimiser],
    ids=["in_place", "data", "numpy", "load_state_dict", "fused_optimiser"],
)
def test_a_matrix_that_changed_is_factorised_anew(change):
    matrix = decay()
    operator = operators.Dense(matrix)
    assert [set_ups(operator), set_ups(operator)] == [1, 0]
    change(matrix)
    assert not torch.equal(matrix, decay())
    assert [set_ups(operator), set_ups(operator)] == [1, 0]


def test_another_tensor_in_its_place_is_factorised_anew():
    operator = operators.Dense(decay())
    set_ups(operator)
    operator.tensors = (2 * decay(),)
    assert [set_ups(operator), set_ups(operator)] == [1, 0]


@pytest.mark.parametrize("fused", [False, True])
def test_a_trainable_matrix_never_keeps_its_factors_between_calls(fused):
    matrix = torch.nn.Parameter(decay())
    operator = operators.Dense(matrix)
    optimizer = torch.optim.Adam([matrix], lr=0.1, fused=fused)
    for _ in range(3):
        result, stats = imex_odeint(None, operator, double([1.0, 1.0]), times(0, 1),
                                    step_size=0.1, return_stats=True)
        result[-1].sum().backward()
        optimizer.step()
        assert stats.factorizations == 1
        with torch.no_grad():
            assert set_ups(operator) == 1
    assert "_factors" not in operator.__dict__


def test_under_inference_mode_factors_are_kept_and_made_anew_after_a_change():
    matrix = decay()
    operator = operators.Dense(matrix)
    with torch.inference_mode():
        assert [set_ups(operator), set_ups(operator)] == [1, 0]
        matrix.mul_(2)
        assert [set_ups(operator), set_ups(operator)] == [1, 0]


def test_an_inference_tensor_which_has_no_version_is_noticed_when_it_changes():
    with torch.inference_mode():
        matrix = decay()
        operator = operators.Dense(matrix)
        assert [set_ups(operator), set_ups(operator)] == [1, 0]
        matrix.mul_(2)
        assert [set_ups(operator), set_ups(operator)] == [1, 0]
    assert matrix.is_inference()
    assert [set_ups(operator), set_ups(operator)] == [1, 0]


def test_factors_made_under_inference_mode_do_not_get_in_the_way_of_gradients():
    operator = operators.Dense(decay())
    with torch.inference_mode():
        set_ups(operator)
    u0 = double([1.0, 1.0]).requires_grad_()
    imex_odeint(None, operator, u0, times(0, 1), step_size=0.1)[-1].sum().backward()
    expected = torch.matrix_exp(decay()).T @ double([1.0, 1.0])
    torch.testing.assert_close(u0.grad, expected, rtol=1e-3, atol=0.0)


def test_another_step_size_is_another_set_up_and_the_first_one_is_kept():
    operator = operators.Dense(decay())
    assert [set_ups(operator, h) for h in (0.1, 0.05, 0.1)] == [1, 1, 0]


def test_another_solver_is_another_set_up():
    operator = operators.Dense(decay())
    kinds = (None, solvers.GMRES(), solvers.GMRES(), solvers.GMRES(restart=2), None)
    assert [set_ups(operator, solver=s) for s in kinds] == [1, 1, 0, 1, 0]


def test_reset_forgets_the_factors():
    operator = operators.Dense(decay())
    set_ups(operator)
    operator.reset()
    assert [set_ups(operator), set_ups(operator)] == [1, 0]


@pytest.mark.parametrize("make", [
    lambda: operators.Dense(decay()),
    lambda: operators.Dense(decay()) + operators.ScaledIdentity(-0.5),
    lambda: 2.0 * operators.Dense(decay()).T,
    lambda: operators.Dense(decay()) + operators.Diagonal(double([-1.0, -2.0])),
], ids=["dense", "sum", "scaled_transpose", "two_terms"])
def test_an_operator_that_has_factors_is_pickled_and_copied_without_them(make):
    def run(operator):
        return imex_odeint(None, operator, double([1.0, 1.0]), times(0, 1), step_size=0.1,
                           solver=solvers.Direct(), return_stats=True)

    operator = make()
    expected, _ = run(operator)
    for other in (pickle.loads(pickle.dumps(operator)), copy.deepcopy(operator),
                  copy.copy(operator)):
        result, stats = run(other)
        assert torch.equal(result, expected)
        assert stats.factorizations == 1
    assert run(operator)[1].factorizations == 0


def test_a_finite_state_whose_sum_overflows_is_accepted():
    u0 = torch.full((8,), 3e38)
    u = imex_odeint(None, operators.ScaledIdentity(-1.0), u0, times(0, 1).float(), step_size=0.5)
    assert bool((u[-1] > 1e38).all())
    assert bool(u.isfinite().all())
