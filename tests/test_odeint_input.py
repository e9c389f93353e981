"""Does imex_odeint refuse what is wrong before it works?"""

import math

import pytest
import torch
from cases import double, times
from odeint_cases import AXES, decay, every_gradient

from pyg_sinode import NonFiniteStateError, imex_odeint, operators, solvers


class Counting:
    """An explicit term, or a linear solver, that counts how often it is used."""

    def __init__(self):
        self.calls = 0

    def __call__(self, t, u, *args):
        self.calls += 1
        return u

    def invert(self, operator):
        self.calls += 1
        return solvers.Direct().invert(operator)


META = operators.Dense(torch.empty(2, 2, dtype=torch.float64, device="meta"))
NOT_FINITE = operators.Dense(double([[1.0, math.nan], [0.0, 1.0]]))
REFUSED = {
    "u0_no_tensor": ({"u0": [1.0, 2.0]}, TypeError, "Expected u0 as a tensor"),
    "u0_tuple": ({"u0": (double(1.0), double([2.0]))}, TypeError,
                 r"u0 as one tensor \(got a tuple of tensors\); concatenate them"),
    "t_missing": ({"t": None}, TypeError, r"imex_odeint\(f, None, u0, t\)"),
    "implicit_state": ({"implicit": double([1.0, 2.0])}, TypeError,
                       r"where nothing is implicit, pass None"),
    "u0_sparse": ({"u0": torch.eye(2, dtype=torch.float64).to_sparse()}, TypeError,
                  r"Expected a dense u0 \(got torch.sparse_coo\); use u0.to_dense"),
    "u0_integer": ({"u0": torch.tensor([1, 2])}, TypeError, "Expected u0 of a real floating dtype"),
    "u0_complex": ({"u0": torch.zeros(2, dtype=torch.complex128)}, TypeError,
                   "Expected u0 of a real floating dtype"),
    "u0_nan": ({"u0": double([1.0, math.nan])}, ValueError, "Expected a finite u0"),
    "u0_inf": ({"u0": double([1.0, math.inf])}, ValueError, "Expected a finite u0"),
    "u0_shape": ({"u0": double([1.0, 2.0, 3.0])}, ValueError, "Expected a state of size 2 along"),
    "u0_no_dimension": ({"u0": double(1.0)}, ValueError, "Expected a state of size 2 along"),
    "u0_dtype": ({"u0": torch.ones(2)}, TypeError, "in the dtype of the state, torch.float32"),
    "implicit_device": ({"implicit": META}, ValueError, "on the device of the state, cpu"),
    "implicit_nan": ({"implicit": NOT_FINITE}, ValueError, "Expected finite tensors in Dense"),
    "implicit_size": ({"implicit": operators.Dense(torch.eye(3, dtype=torch.float64))}, ValueError,
                      "Expected a state of size 3 along dimension -1"),
    "implicit_diagonal": ({"implicit": operators.Diagonal(torch.ones(3, dtype=torch.float64))},
                          ValueError, "Expected a diagonal that broadcasts"),
    "implicit_sum": ({"implicit": operators.ScaledIdentity(-1.0) + NOT_FINITE}, ValueError,
                     "Expected finite tensors in Dense"),
    "implicit_bias": ({"implicit": operators.MatrixFree(torch.nn.Linear(2, 2).double())},
                      ValueError, r"Expected fn\(0\) = 0 .* bias=False"),
    "implicit_not_linear": ({"implicit": operators.MatrixFree(torch.sin)}, ValueError,
                            "Expected a linear function"),
    "implicit_tensor": ({"implicit": AXES}, TypeError, "wrap a matrix with operators.Dense"),
    "implicit_function": ({"implicit": torch.sin}, TypeError, "with operators.MatrixFree"),
    "t_no_tensor": ({"t": [0.0, 1.0]}, TypeError, "Expected t as a tensor"),
    "t_integer": ({"t": torch.tensor([0, 1])}, TypeError, "Expected t of a real floating dtype"),
    "t_no_dimension": ({"t": double(1.0)}, ValueError, "Expected t as a 1-D tensor"),
    "t_two_dimensions": ({"t": times(0, 1)[None]}, ValueError, "Expected t as a 1-D tensor"),
    "t_empty": ({"t": times()}, ValueError, "at least one time"),
    "t_nan": ({"t": times(0, math.nan)}, ValueError, "Expected finite times"),
    "t_too_far": ({"t": times(-1e308, 1e308)}, ValueError, "a finite time apart"),
    "t_unsorted": ({"t": times(0, 2, 1)}, ValueError, "strictly increasing or strictly decreasing"),
    "t_repeated": ({"t": times(0, 1, 1)}, ValueError, "drop repetitions"),
    "step_zero": ({"step_size": 0.0}, ValueError, "Expected a positive, finite step_size"),
    "step_too_small": ({"step_size": 1e-12}, ValueError, r"at most 1e\+08 equal steps .* larger"),
    "step_too_small_for_all": ({"t": times(*range(1001)), "step_size": 1e-7}, ValueError,
                               r"at most 1e\+08 equal steps \(got about 1e\+10\)"),
    "step_negative": ({"step_size": -0.1}, ValueError, "Expected a positive, finite step_size"),
    "step_nan": ({"step_size": math.nan}, ValueError, "Expected a positive, finite step_size"),
    "step_infinite": ({"step_size": math.inf}, ValueError, "Expected a positive, finite step_size"),
    "step_text": ({"step_size": "0.1"}, TypeError, "Expected step_size as a number"),
    "step_bool": ({"step_size": True}, TypeError, "Expected step_size as a number"),
    "method_unknown": ({"method": "rk4"}, ValueError, r"\(got 'rk4'\); use imex_euler"),
    "method_no_name": ({"method": 4}, TypeError, "method expects a scheme's name"),
    "gradient": ({"gradient": "adjoint"}, ValueError, r'"discrete" or "backprop" \(got .adjoint'),
    "args_list": ({"args": [double(1.0)]}, TypeError, r"Expected args as a tuple .* args=\(x,\)"),
    "args_tensor": ({"args": double([1.0])}, TypeError, "Expected args as a tuple"),
    "args_of_nothing": ({"explicit": None, "args": (1.0,)}, ValueError, "Expected no args without"),
    "explicit_tensor": ({"explicit": AXES}, TypeError, "Expected the explicit term as a function"),
    "solver_text": ({"solver": "cg"}, TypeError, "Expected a linear solver such as"),
    "solver_class": ({"solver": solvers.CG}, TypeError, r"Expected a linear solver .*CG\(\)"),
    "solver_unused": ({"solver": "cg", "implicit": None}, TypeError, "Expected a linear solver"),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED)
@every_gradient
def test_what_does_not_fit_is_refused_before_any_work(gradient, change, error, message):
    explicit, solver = Counting(), Counting()
    good = {"explicit": explicit, "implicit": operators.Dense(AXES), "u0": double([1.0, 2.0]),
            "t": times(0, 1), "step_size": 0.5, "solver": solver, "gradient": gradient}
    with pytest.raises(error, match=message):
        imex_odeint(**(good | change))
    assert explicit.calls == solver.calls == 0


def test_what_fits_is_not_refused():
    explicit, solver = Counting(), Counting()
    imex_odeint(explicit, operators.Dense(AXES), double([1.0, 2.0]), times(0, 1), step_size=0.5,
                solver=solver, method="ssp222")
    assert (explicit.calls, solver.calls) == (4, 1)


def from_half_time(value):
    return lambda t, u: value(u) if t >= 0.45 else u


WRONG = {
    "shape": (lambda u: u[:1], r"\(2,\) .* \(got \(1,\)"),
    "number": (lambda u: u.sum(), r"\(2,\) .* \(got \(\)"),
    "dtype": (lambda u: u.float(), r"torch.float64 .* torch.float32"),
    "device": (lambda u: u.detach().to("meta"), "on cpu .* on meta"),
    "no_tensor": (lambda u: 0.0, r"to return a tensor \(got float"),
    "none": (lambda u: None, r"to return a tensor \(got NoneType"),
    "tuple": (lambda u: (u, u), r"to return a tensor \(got tuple"),
}


@pytest.mark.parametrize(("value", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("start", [0.0, 0.45], ids=["later", "at_once"])
@pytest.mark.parametrize("mode", ["discrete", "backprop", "plain"])
def test_an_explicit_term_that_returns_something_else_stops_with_time_and_step(
        mode, start, value, message):
    u0 = double([1.0, 2.0]).requires_grad_(mode != "plain")
    gradient = "discrete" if mode == "plain" else mode
    step = 5 if start == 0.0 else 0
    located = rf"{message}.* \(In step {step}, which starts at time {0.5 if step else start}"
    with pytest.raises(ValueError, match=located) as caught:
        imex_odeint(from_half_time(value), None, u0, times(start, 1), step_size=0.1,
                    method="imex_euler", gradient=gradient)
    assert (caught.value.step, caught.value.time) == (step, pytest.approx(0.5 if step else start))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("implicit", [None, "closed", "krylov"])
@pytest.mark.parametrize("mode", ["discrete", "backprop", "plain"])
def test_an_explicit_term_that_returns_nan_stops_with_time_step_and_last_state(
        mode, implicit, value):
    u0 = double([1.0, 2.0]).requires_grad_(mode != "plain")
    operator = None if implicit is None else operators.Dense(decay())
    with pytest.raises(NonFiniteStateError, match=r"step 5, which starts at time 0\.5") as caught:
        imex_odeint(from_half_time(lambda u: u * value), operator, u0, times(0, 1), step_size=0.1,
                    method="imex_euler", gradient="discrete" if mode == "plain" else mode,
                    solver=solvers.GMRES() if implicit == "krylov" else None)
    assert (caught.value.step, caught.value.time) == (5, pytest.approx(0.5))
    assert caught.value.state.isfinite().all()
    assert not caught.value.state.requires_grad


def test_a_matrix_that_makes_a_stage_singular_is_an_error_with_time_and_step():
    J = operators.Dense(10.0 * torch.eye(2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"singular to rounding.* \(In step 0, .* time 0\.") as e:
        imex_odeint(None, J, double([1.0, 1.0]), times(0, 1), step_size=0.1, method="imex_euler")
    assert (e.value.step, e.value.time) == (0, 0.0)


def test_a_linear_solve_that_does_not_converge_is_an_error_with_time_and_step():
    torch.manual_seed(0)
    J = operators.Dense(torch.randn(8, 8, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"\(In step 0, which starts at time 2\.\)") as caught:
        imex_odeint(None, J, torch.ones(8, dtype=torch.float64), times(2, 3), step_size=0.5,
                    solver=solvers.GMRES(max_iter=1))
    assert (caught.value.step, caught.value.time) == (0, 2.0)
    assert caught.value.iterations == 1
    assert caught.value.residual > 0


def test_set_ups_kept_between_calls_do_not_pile_up():
    matrix = torch.diag(torch.tensor([-1.0, -2.0], dtype=torch.float64))
    operator = operators.Dense(matrix)
    u0, t = torch.ones(2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for steps in range(1, 31):
        imex_odeint(None, operator, u0, t, step_size=1.0 / steps)
    _, stats = imex_odeint(None, operator, u0, t, step_size=1.0 / 30, return_stats=True)
    assert stats.factorizations == 0
    _, stats = imex_odeint(None, operator, u0, t, step_size=1.0, return_stats=True)
    assert stats.factorizations == 1
