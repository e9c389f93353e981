"""Which implicit parts are refused, and what else do they go with?"""

import copy
import functools
import math

import pytest
import torch
from affine_cases import (
    LEAF,
    TIMES,
    Forcing,
    Manufactured,
    Scale,
    assert_equal,
    every_gradient,
    random,
)
from cases import double, graph, symmetric_graph, times
from torch import nn

from pyg_sinode import imex_odeint, operators, solvers, terms
from pyg_sinode.operators import Circulant, Dense, Diagonal, ScaledIdentity
from pyg_sinode.terms import Affine

META = torch.ones(3, dtype=torch.float64, device="meta")
I3 = ScaledIdentity(-1.0)


def affine(f=None, scale=None, operator=I3):
    return lambda: Affine(operator, f, scale=scale)


NO_GOOD = {
    "operator_tensor": (affine(operator=Manufactured.J), TypeError,
                        r"as a LinearOperator \(got Tensor\); wrap a matrix with operators.Dense"),
    "operator_affine": (affine(operator=Affine(I3)), TypeError, r"\(got Affine\)"),
    "f_number": (affine(1.0), TypeError, r"a module or a tensor \(got float\)"),
    "f_integer_tensor": (affine(torch.ones(3, dtype=torch.int64)), TypeError,
                         "the forcing f of a real floating dtype .got torch.int64"),
    "f_complex_tensor": (affine(torch.ones(3, dtype=torch.complex128)), TypeError,
                         "the forcing f of a real floating dtype"),
    "scale_number": (affine(scale=2.0), TypeError,
                     r"scale as a function .* \(got float\); multiply the operator by a constant"),
    "scale_tensor": (affine(scale=double(2.0)), TypeError, r"scale .* \(got Tensor\)"),
}


@pytest.mark.parametrize(("make", "error", "message"), NO_GOOD.values(), ids=NO_GOOD)
def test_what_is_no_affine_part_is_refused_when_it_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


REFUSED = {
    "operator_size": (affine(operator=Dense(torch.eye(2).double())), ValueError,
                      "Expected a state of size 2 along"),
    "operator_nan": (affine(operator=Diagonal(LEAF * math.nan)), ValueError,
                     "Expected finite tensors in Diagonal"),
    "f_none": (affine(lambda t: None), TypeError, r"return a tensor \(got NoneType at time 0\.3\)"),
    "f_float": (affine(lambda t: 1.0), TypeError, r"return a tensor \(got float at time 0\.3\)"),
    "f_float32": (affine(lambda t: torch.ones(3)), ValueError,
                  r"f in the dtype .* torch.float64 on cpu \(got torch.float32 on cpu\)"),
    "f_meta": (affine(lambda t: META), ValueError, r"on cpu \(got torch.float64 on meta\)"),
    "f_shape": (affine(lambda t: LEAF[:2]), ValueError, r"broadcast .* \(3,\) \(got \(2,\)\)"),
    "f_larger": (affine(lambda t: torch.ones(2, 3).double()), ValueError,
                 r"f to broadcast to the state of shape \(3,\) \(got \(2, 3\)\)"),
    "f_tensor_float32": (affine(torch.ones(3)), TypeError,
                         "the tensors of Affine in the dtype of the state, torch.float64"),
    "f_tensor_meta": (affine(META), ValueError, "tensors of Affine on the device of the state"),
    "f_tensor_nan": (affine(LEAF * math.nan), ValueError, "Expected finite tensors in Affine"),
    "f_tensor_shape": (affine(LEAF[:2]), ValueError, r"f to broadcast .* \(got \(2,\)\)"),
    "f_module_float32": (affine(Forcing().float()), TypeError, "tensors of Affine in the dtype"),
    "f_module_meta": (affine(Forcing().to("meta")), ValueError, "of Affine on the device"),
    "scale_none": (affine(scale=lambda t: None), TypeError,
                   r"scale to return a number or a 0-dim tensor \(got NoneType at time 0\.3\)"),
    "scale_text": (affine(scale=lambda t: "1"), TypeError, r"0-dim tensor \(got str at time 0\.3"),
    "scale_complex": (affine(scale=lambda t: 1j), TypeError, r"0-dim tensor \(got complex at"),
    "scale_shape": (affine(scale=lambda t: LEAF), ValueError,
                    r"number or a 0-dim tensor \(got shape \(3,\) at time 0\.3\)"),
    "scale_nan": (affine(scale=lambda t: math.nan), ValueError,
                  r"Expected a finite scale \(got nan at time 0\.3\)"),
    "scale_infinite": (affine(scale=lambda t: double(math.inf)), ValueError,
                       r"Expected a finite scale \(got inf at"),
    "scale_module_float32": (affine(scale=Scale().float()), TypeError, "tensors of Affine in the"),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED)
@every_gradient
def test_what_does_not_fit_the_state_is_refused_before_any_work(make, error, message, gradient):
    def fails(t, u):
        raise AssertionError

    with pytest.raises(error, match=message):
        imex_odeint(fails, make(), double([1.0, 2.0, 3.0]), TIMES, step_size=0.1, gradient=gradient)


LATER = {
    "f_none": ({"f": lambda t: LEAF if t < 0.65 else None}, TypeError, r"NoneType at time 0\.7\)"),
    "scale_shape": ({"scale": lambda t: 1.0 if t < 0.65 else LEAF}, ValueError,
                    r"got shape \(3,\) at time 0\.7\)"),
    "scale_none": ({"scale": lambda t: 1.0 if t < 0.65 else None}, TypeError, r"at time 0\.7\)"),
    "f_nan": ({"f": lambda t: LEAF if t < 0.65 else LEAF * math.nan}, RuntimeError,
              r"finite in step 3, which starts at time 0\.6"),
}


@pytest.mark.parametrize(("given", "error", "message"), LATER.values(), ids=LATER)
def test_what_goes_wrong_on_the_way_is_an_error_with_its_time(given, error, message):
    with pytest.raises(error, match=message):
        imex_odeint(None, Affine(I3, **given), double([1.0, 2.0, 3.0]), TIMES, method="imex_euler",
                    step_size=0.1)


def grid_operator():
    return Circulant([1.0, -2.0, 1.0])


OPERATORS = {
    "circulant": (grid_operator, (2, 6), [None, solvers.CG(rtol=1e-14), solvers.GMRES(rtol=1e-14)]),
    "graph": (lambda: graph(torch.linspace(0.1, 0.4, 9).double()), (6, 3),
              [None, solvers.GMRES(rtol=1e-14), solvers.BiCGStab(rtol=1e-14), solvers.Direct()]),
    "symmetric_graph": (lambda: symmetric_graph(torch.linspace(0.1, 0.3, 6).double()) + I3, (6, 3),
                        [None, solvers.CG(rtol=1e-14), solvers.Direct()]),
    "diagonal": (lambda: Diagonal(-torch.linspace(0.1, 2, 3).double()), (6, 3), [None]),
    "matrix_free": (lambda: operators.MatrixFree(lambda u: u.roll(1, -1) - u), (2, 5),
                    [None, solvers.GMRES(rtol=1e-14)]),
}


class Wave(nn.Module):
    def __init__(self, amplitude):
        super().__init__()
        self.amplitude = nn.Parameter(amplitude.clone())

    def forward(self, t):
        return torch.cos(t) * self.amplitude


def whole_matrix(name):
    make, shape, _ = OPERATORS[name]
    size, operator = math.prod(shape), make()
    units = torch.eye(size, dtype=torch.float64)
    return torch.stack([operator.mv(e.view(shape)).flatten() for e in units], dim=1)


def with_operator(operator, shape, solver, gradient):
    """Result and gradients of an integration of a linear part with forcing and factor."""
    u0 = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).view(shape)
    u, f, a = u0.clone().requires_grad_(), Wave(u0), Scale()
    result = imex_odeint(None, Affine(operator, f, scale=a), u, times(0, 0.5, 1), step_size=0.25,
                         method="ark324l2sa", solver=solver, gradient=gradient)
    found = torch.autograd.grad(result.square().sum(), [u, f.amplitude, a.weight])
    return [x.flatten() for x in (result.detach(), *found)]


@functools.cache
def on_the_whole_matrix(name):
    return with_operator(Dense(whole_matrix(name)), (math.prod(OPERATORS[name][1]),), None,
                         "backprop")


@pytest.mark.parametrize(("name", "i"), [(n, i) for n, o in OPERATORS.items()
                                         for i in range(len(o[2]))])
@every_gradient
def test_every_operator_and_solver_gives_result_and_gradients_of_the_whole_matrix(
        name, i, gradient):
    make, shape, several = OPERATORS[name]
    found = with_operator(make(), shape, several[i], gradient)
    exact = several[i] is not None or make().has_closed_inverse()
    assert_equal(found, on_the_whole_matrix(name), 1e-11 if exact else 1e-7)


def test_a_part_gives_its_products_and_their_transposes():
    part = Affine(Dense(Manufactured.J), Forcing(), scale=Scale())
    u, w, t = random(3), random(3), 0.4
    a, M = 1 + math.sin(0.4 * t), Manufactured.J
    f = double([0.5, -1.0, 0.8]) * math.sin(1.3 * t)
    torch.testing.assert_close(part.product(t, u), a * M @ u + f, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(part.transposed(t, w), a * M.T @ w, rtol=1e-14, atol=1e-14)
    found = part.vjp(t, u, w, [True] * 4)
    expected = torch.autograd.grad(part.product(t, u) @ w, part.f.tensors + part.a.tensors)
    torch.testing.assert_close(found[0], a * torch.outer(w, u), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found[1:], list(expected), rtol=1e-14, atol=1e-14)
    assert part.vjp(t, u, w, [False] * 4) == [None] * 4
    assert [g is None for g in part.vjp(t, u, w, [True, False, False, False])] == [
        False, True, True, True]
    assert [g is None for g in part.vjp(t, u, w, [False, False, True, False])] == [
        True, True, False, True]


def test_a_part_on_other_tensors_is_another_part():
    part, u = Affine(Dense(Manufactured.J), Forcing(), scale=Scale()), random(3)
    before = part.product(0.4, u)
    other = part.with_tensors([2 * p for p in part.tensors])
    expected = (1 + math.sin(0.8 * 0.4)) * (2 * Manufactured.J) @ u + 2 * double(
        [0.5, -1.0, 0.8]) * math.sin(2.6 * 0.4)
    torch.testing.assert_close(other.product(0.4, u), expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(part.product(0.4, u), before)


def test_a_copied_part_gives_the_same_result():
    part = Affine(Dense(Manufactured.J), Forcing(), scale=Scale())
    results = [imex_odeint(None, p, double([1.0, 2.0, 3.0]), TIMES, step_size=0.1)
               for p in (part, copy.copy(part), copy.deepcopy(part))]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_representation_names_the_operator():
    assert repr(Affine(Dense(Manufactured.J), LEAF)) == "Affine(Dense((3, 3)))"


class Stateful(nn.Module):
    """Another value at every call: by dropout, or by a buffer that counts."""

    def __init__(self, kind):
        super().__init__()
        self.drop = nn.Dropout(0.5) if kind == "dropout" else nn.Identity()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.counts = kind == "buffer"

    def forward(self, t):
        if self.counts:
            self.calls += 1
        return self.drop(torch.ones(64, dtype=torch.float64)) + self.calls


@pytest.mark.parametrize("what", ["forcing f", "scale"])
@pytest.mark.parametrize("kind", ["dropout", "buffer"])
def test_a_part_that_is_not_a_function_of_time_alone_is_refused(kind, what):
    torch.manual_seed(0)
    f = Stateful(kind)
    part = (terms.Affine(operators.ScaledIdentity(-1.0), f) if what == "forcing f" else
            terms.Affine(operators.ScaledIdentity(-1.0), scale=lambda t: f(t).sum()))
    with pytest.raises(ValueError, match=f"the {what} to be a function of time alone"):
        imex_odeint(None, part, torch.ones(64).double(), times(0, 1), step_size=0.5)


def test_dropout_that_is_switched_off_is_fine():
    part = terms.Affine(operators.ScaledIdentity(-1.0), Stateful("dropout").eval())
    u = imex_odeint(None, part, torch.ones(64).double(), times(0, 1), step_size=0.5)
    torch.testing.assert_close(u[-1], torch.ones(64).double())


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_an_integer_tensor_is_a_scale(gradient):
    part = terms.Affine(operators.ScaledIdentity(-1.0), scale=lambda t: torch.tensor(2))
    u0 = torch.ones(2).double().requires_grad_()
    u = imex_odeint(None, part, u0, times(0, 1), step_size=0.01, gradient=gradient)
    assert float(u[-1, 0].detach()) == pytest.approx(math.exp(-2.0), rel=1e-6)


def test_a_scale_that_becomes_nan_is_named_with_its_time():
    part = terms.Affine(operators.ScaledIdentity(-1.0),
                            scale=lambda t: math.nan if t > 0.55 else 1.0)
    with pytest.raises(ValueError, match=r"finite scale \(got nan at time 0\.\d+\)"):
        imex_odeint(None, part, torch.ones(2).double(), times(0, 1), step_size=0.1)


def test_without_gradients_a_closure_need_not_be_a_module():
    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    part = terms.Affine(operators.ScaledIdentity(-1.0), lambda t: weight * torch.cos(t))
    with torch.no_grad():
        u = imex_odeint(None, part, torch.ones(1).double(), times(0, 1), step_size=0.5)
    assert not u.requires_grad
