"""Does a solver that fails say so, with its best state?"""

import pytest
import torch
from solvers_cases import F32, F64, N, dtypes, krylov, laplacian, norms, randn, spd

from pyg_sinode.operators import (
    Dense,
    LinearOperator,
    LinearSolveError,
    MatrixFree,
)
from pyg_sinode.solvers import CG, GMRES, BiCGStab

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", [CG, GMRES, BiCGStab])
@pytest.mark.parametrize(("wrong", "message"), [
    ({"rtol": -1e-3}, r"Expected rtol from 0 up \(got -0.001\)"),
    ({"rtol": float("nan")}, "Expected rtol from 0 up"),
    ({"atol": -1.0}, r"Expected atol from 0 up \(got -1.0\)"),
    ({"atol": float("inf")}, "Expected atol from 0 up"),
    ({"rtol": 0.0}, r"Expected rtol or atol above 0 \(got 0 for both\)"),
    ({"max_iter": 0}, r"Expected max_iter from 1 up \(got 0\)"),
])
def test_arguments_out_of_range_are_refused(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        kind(**wrong)


def test_a_restart_below_one_and_a_preconditioner_that_is_no_solver_are_refused():
    with pytest.raises(ValueError, match=r"Expected restart from 1 up \(got 0\)"):
        GMRES(restart=0)
    with pytest.raises(TypeError, match=r"Expected a solver such as Jacobi\(\) as the p"):
        CG(preconditioner="jacobi")


@krylov
@pytest.mark.parametrize(("b", "guess", "kind", "message"), [
    (torch.ones(N, 2, dtype=torch.long), None, TypeError, "Expected a right-hand side of a real"),
    (torch.ones(N), None, ValueError, r"with the dimensions \(-2,\) \(got shape \(12,\)\)"),
    (torch.ones(N, 2), torch.ones(N), ValueError, r"Expected a guess of the shape .*\(12, 2\) "),
])
def test_right_hand_sides_that_do_not_fit_are_refused(solver, b, guess, kind, message):
    with pytest.raises(kind, match=message):
        solver.invert(laplacian(1.0, dtype=F32)).solve(b, guess)


@krylov
@dtypes
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_right_hand_side_that_is_not_finite_is_an_error(solver, dtype, bad):
    b = randn(N, 3, dtype=dtype)
    b[4, 1] = bad
    with pytest.raises(LinearSolveError, match=r"Expected a finite right-hand side \(got NaN o"):
        solver.invert(laplacian(1.0, dtype=dtype)).solve(b)


@krylov
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("good", [0, 1, 3, 8])
def test_an_operator_that_gives_nan_or_inf_is_an_error(solver, bad, good):
    calls = []

    def rate(u):
        calls.append(1)
        return 3.0 * u - u.roll(1, -1) - u.roll(-1, -1) + (bad if len(calls) > good else 0.0)

    with pytest.raises(LinearSolveError, match=r"Expected finite products in .* \(got NaN or Inf"):
        solver.invert(MatrixFree(rate)).solve(randn(2, 40))
    assert len(calls) > good


@krylov
def test_running_out_of_iterations_is_an_error_that_carries_the_best_state(solver):
    short = type(solver)(max_iter=5)
    b = randn(60, 3)
    operator = laplacian(50.0, 60)
    with pytest.raises(LinearSolveError, match=(
            r"\(max_iter=5\) did not converge in 5 iterations \(expected a residual of at most "
            r"\d\.\de-\d\d, got .*use a larger max_iter, another solver, or a precond")) as e:
        short.invert(operator).solve(b)
    assert e.value.iterations == 5
    left = norms(b - operator.mv(e.value.state), -2)
    assert e.value.residual == pytest.approx(float(left.max()), rel=1e-9)
    assert e.value.residual < float(norms(b, -2).max())


def test_max_iter_is_ten_times_the_unknowns_by_default():
    # The residual of a rotation by almost 180 degrees hardly shrinks under GMRES(1).
    angle = torch.tensor(1.4)
    rotation = torch.stack([torch.stack([angle.cos(), -angle.sin()]),
                            torch.stack([angle.sin(), angle.cos()])])
    with pytest.raises(LinearSolveError, match="did not converge in 20 iterations"):
        GMRES(restart=1).invert(Dense(rotation)).solve(torch.ones(3, 2))


@pytest.mark.parametrize(("kind", "condition"), [
    (CG, 1e3), (CG, 1e4), (BiCGStab, 1e3), (GMRES, 1e3), (GMRES, 1e4)])
def test_the_floor_of_float32_is_named_and_float64_goes_below_it(kind, condition):
    solver = kind(rtol=1e-8, max_iter=5000)
    b = torch.ones(1, 40)
    with pytest.raises(LinearSolveError, match=(
            r"reached the floor of rounding in torch.float32 \(expected a residual of at most "
            r"6\.3e-08, got \d.*\); use a larger rtol or atol, or float64")) as error:
        solver.invert(Dense(spd(40, F32, condition))).solve(b)
    # Rounding leaves at most about n eps |A| |x|, and |A| |x| is at most the condition times |b|.
    floor = 40 * torch.finfo(F32).eps * condition * 40**0.5
    assert 6.3e-8 < error.value.residual < floor
    left = norms(b.double() - error.value.state.double() @ spd(40, F32, condition).double(), -1)
    assert float(left) < 2 * floor
    fine = solver.invert(Dense(spd(40, F64, condition))).solve(b.double())
    assert float(fine.residual) <= 6.4e-8


def test_the_floor_in_float64_does_not_advise_float64():
    with pytest.raises(LinearSolveError, match=r"floor of rounding in torch.float64 .* or atol\.$"):
        CG(rtol=1e-17, max_iter=10**4).invert(Dense(spd(40, F64, 1e4))).solve(randn(1, 40))


class _Falsified(LinearOperator):
    """A diagonal operator whose product is off by a factor, except in the calls named."""

    dims = (-1,)

    def __init__(self, exact):
        self.exact, self.calls = exact, 0

    def mv(self, u):
        self.calls += 1
        right = u * torch.tensor([1.0, 2.0, 3.0], dtype=u.dtype)
        return right if self.calls in self.exact else right * 1.01


@pytest.mark.parametrize(("solver", "per_cycle"), [(CG(), 3), (GMRES(), 3), (BiCGStab(), 6)],
                         ids=repr)
def test_a_true_residual_above_the_recurrence_is_met_by_one_restart(solver, per_cycle):
    # The first cycle solves 1.01 A x = b; its true residual of 1 % is found by an exact product.
    operator = _Falsified(range(per_cycle + 1, 100))
    x, iterations, residual = solver.invert(operator).solve(torch.ones(1, 3, dtype=F64))
    torch.testing.assert_close(x, 1 / torch.tensor([[1.0, 2.0, 3.0]], dtype=F64))
    assert iterations == 6
    assert float(residual) <= 1.8e-10


@pytest.mark.parametrize(("solver", "per_cycle"), [(CG(), 3), (GMRES(), 3)], ids=repr)
def test_a_second_false_claim_is_the_floor(solver, per_cycle):
    operator = _Falsified((per_cycle + 1, 2 * per_cycle + 2))
    with pytest.raises(LinearSolveError, match=r"floor of rounding in torch\.float64") as error:
        solver.invert(operator).solve(torch.ones(1, 3, dtype=F64))
    assert operator.calls == 8
    assert error.value.iterations == 6
    assert error.value.residual == pytest.approx(1e-4 * 3**0.5, rel=0.05)  # 1 % of 1 %
