"""Does one step do what its scheme says, and is its transpose exact?"""

import math

import numpy as np
import pytest
import torch
from cases import double, stepper_of

from pyg_sinode import Stats
from pyg_sinode.integrate.runge_kutta import OneStepState
from pyg_sinode.integrate.sums import Scaled, combine
from pyg_sinode.schemes import RUNGE_KUTTA

every_scheme = pytest.mark.parametrize("scheme", RUNGE_KUTTA.values(), ids=RUNGE_KUTTA)
GAMMA = 1 - 1 / math.sqrt(2)
J = np.array([[-3.0, 1.0], [0.5, -40.0]])
U0 = np.array([0.7, -1.3])


def result_of(stepper, t, h, u):
    return stepper.step(t, h, stepper.initial(u)).state.u


# A step


def G(t, u):
    """A coupled, nonlinear, time-dependent term, for numpy arrays."""
    return np.array([np.sin(3 * t) + u[0] * u[1], np.cos(u[0]) - t * u[1]])


def G_of_tensors(t, u):
    return torch.as_tensor(G(t, u.numpy()))


def by_hand_imex_euler(t, h, u):
    return np.linalg.solve(np.eye(2) - h * J, u + h * G(t, u))


def by_hand_ssp222(t, h, u):
    A = np.eye(2) - h * GAMMA * J
    U1 = np.linalg.solve(A, u)
    G1 = G(t, U1)
    U2 = np.linalg.solve(A, u + h * G1 + h * (1 - 2 * GAMMA) * J @ U1)
    G2 = G(t + h, U2)
    return u + h / 2 * (G1 + G2) + h / 2 * (J @ U1 + J @ U2)


def by_hand_ars222(t, h, u):
    A, delta = np.eye(2) - h * GAMMA * J, 1 - 1 / (2 * GAMMA)
    G1 = G(t, u)
    U2 = np.linalg.solve(A, u + h * GAMMA * G1)
    G2 = G(t + GAMMA * h, U2)
    U3 = np.linalg.solve(A, u + h * (delta * G1 + (1 - delta) * G2) + h * (1 - GAMMA) * J @ U2)
    return u + h * (delta * G1 + (1 - delta) * G2) + h * J @ ((1 - GAMMA) * U2 + GAMMA * U3)


@pytest.mark.parametrize("h", [0.1, -0.05])
@pytest.mark.parametrize("by_hand", [by_hand_imex_euler, by_hand_ssp222, by_hand_ars222])
def test_a_step_equals_one_written_out_by_hand(by_hand, h):
    scheme = RUNGE_KUTTA[by_hand.__name__.removeprefix("by_hand_")]
    result = result_of(stepper_of(scheme, G_of_tensors, J), 0.3, h, torch.as_tensor(U0))
    np.testing.assert_allclose(result.numpy(), by_hand(0.3, h, U0), rtol=1e-14, atol=1e-14)


@every_scheme
def test_a_step_of_a_linear_equation_is_its_stability_function(scheme):
    # One eigenvalue at a time: the scheme is 1 + z b^T (I - z A)^-1 1 with the implicit tableau.
    z = -1.7
    A, b = scheme.a_implicit, scheme.b_implicit
    expected = 1 + z * b @ np.linalg.solve(np.eye(len(b)) - z * A, np.ones(len(b)))
    result = result_of(stepper_of(scheme, None, double([[z / 0.5]])), 0.0, 0.5, double([1.0]))
    assert float(result) == pytest.approx(expected, rel=1e-13)


@every_scheme
def test_the_explicit_part_alone_is_its_own_runge_kutta_scheme(scheme):
    def rate(t, u):
        return torch.cos(u) * (1 + t)

    u, h, k = double([0.2]), 0.3, []
    for row, c in zip(scheme.a_explicit, scheme.c_explicit, strict=True):
        k.append(rate(1.0 + c * h, u + h * sum(a * x for a, x in zip(row, k, strict=False))))
    expected = u + h * sum(b * x for b, x in zip(scheme.b_explicit, k, strict=True))
    result = result_of(stepper_of(scheme, rate, None), 1.0, h, u)
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=0.0)


@every_scheme
def test_a_step_leaves_the_state_it_starts_from_as_it_was(scheme):
    u = torch.as_tensor(U0).clone()
    result_of(stepper_of(scheme, lambda t, x: x, J), 0.0, 0.1, u)
    assert torch.equal(u, torch.as_tensor(U0))


@pytest.mark.parametrize(
    ("name", "count"),
    [("imex_euler", 1), ("ars122", 2), ("ars222", 2), ("ssp222", 2), ("ark232", 3), ("ars443", 4),
     ("ark324l2sa", 4), ("ark436l2sa", 6), ("ark548l2sa", 8)],
)
def test_evaluations_that_nothing_uses_are_not_made(name, count):
    times, stats = [], Stats()

    def rate(t, u):
        times.append(t)
        return u

    result_of(stepper_of(RUNGE_KUTTA[name], rate, J, stats=stats), 0.0, 0.1, torch.as_tensor(U0))
    assert len(times) == stats.explicit_evaluations == count


@every_scheme
def test_stages_are_evaluated_at_the_explicit_abscissae(scheme):
    times = []

    def rate(t, u):
        times.append(t)
        return u

    result_of(stepper_of(scheme, rate, J), 2.0, 0.5, torch.as_tensor(U0))
    used = [c for c, needed in zip(scheme.c_explicit, scheme.needs_explicit, strict=True) if needed]
    assert times == pytest.approx([2.0 + 0.5 * c for c in used], rel=1e-15)


def test_zero_weights_are_skipped_and_neither_the_state_nor_the_terms_are_overwritten():
    u, g, k = double([1.0]), double([2.0]), double([4.0])
    assert combine(u, 0.5, [0.0], [g], [0.0], [Scaled(k)]) is u
    found = combine(u, 0.5, [3.0, 1.0], [g, None], [1.0], [Scaled(k, 2.0)])
    assert found.item() == 1 + 0.5 * (6 + 8)
    assert (u.item(), g.item(), k.item()) == (1.0, 2.0, 4.0)


# Its transpose


def matrix_of_step(stepper, B, t, h):
    columns = [result_of(stepper, t, h, e) for e in torch.eye(B.size(0), dtype=B.dtype)]
    return torch.stack(columns, dim=1)


def matrix_of_transposed_step(stepper, B, t, h):
    tape = stepper.step(t, h, stepper.initial(torch.ones(B.size(0), dtype=B.dtype))).tape

    class Reverse:
        def explicit(self, evaluation, time, u, v):
            return Scaled((1 + time) * (v.x @ B), v.factor)

        def implicit(self, time, u, w):
            pass

    rows = [stepper.transposed(t, h, tape, OneStepState(e), [], Reverse()).u
            for e in torch.eye(B.size(0), dtype=B.dtype)]
    return torch.stack(rows, dim=1)


@every_scheme
@pytest.mark.parametrize("h", [0.2, -0.03])
def test_the_transposed_step_is_the_exact_adjoint(scheme, h):
    torch.manual_seed(0)
    B, M = torch.randn(2, 3, 3, dtype=torch.float64)
    M = M - 5 * torch.eye(3, dtype=torch.float64)
    stepper = stepper_of(scheme, lambda t, u: (1 + t) * (B @ u), M)
    S = matrix_of_step(stepper, B, 0.4, h)
    assert not torch.allclose(S, S.T, atol=1e-3)
    torch.testing.assert_close(matrix_of_transposed_step(stepper, B, 0.4, h), S.T,
                               rtol=1e-13, atol=1e-13)


@every_scheme
@pytest.mark.parametrize("part", ["explicit", "implicit"])
def test_the_transposed_step_is_exact_with_one_part_only(scheme, part):
    torch.manual_seed(1)
    B = torch.randn(3, 3, dtype=torch.float64)
    if part == "explicit":
        stepper = stepper_of(scheme, lambda t, u: (1 + t) * (B @ u), None)
    else:
        stepper = stepper_of(scheme, None, B - 5 * torch.eye(3, dtype=torch.float64))
    S = matrix_of_step(stepper, B, 0.4, 0.2)
    torch.testing.assert_close(matrix_of_transposed_step(stepper, B, 0.4, 0.2), S.T,
                               rtol=1e-13, atol=1e-13)
