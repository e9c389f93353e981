"""Which nonlinear terms are refused, with which words, and which are copied and kept?"""

import re

import pytest
import torch
from cases import double, times
from nonlinear_cases import F64, Reaction
from torch import nn

from pyg_sinode import imex_odeint
from pyg_sinode.operators import BlockDiagonal, Dense, Diagonal, MatrixFree, ScaledIdentity
from pyg_sinode.solvers import CG, GMRES, BlockJacobi, Jacobi, Newton
from pyg_sinode.terms import Affine, Nonlinear

U0 = torch.linspace(0.5, 1.5, 6, dtype=F64).view(2, 3)


def run(part, u0=U0, **options):
    return imex_odeint(None, part, u0, times(0, 0.2), **{"step_size": 0.1} | options)


def cubic(t, u):
    return -u**3


# Kinds of arguments


@pytest.mark.parametrize(("arguments", "options", "message"), [
    ((3.0,), {}, r"H of Nonlinear as a function or module of \(t, u, \*args\) \(got float\)"),
    ((Dense(torch.eye(3)),), {}, "H of Nonlinear as a function or module .*got Dense"),
    ((cubic,), {"jacobian": Dense(torch.eye(3))}, r"a function of \(t, u\) .*got Dense"),
    ((cubic,), {"jacobian": 1.0}, r"jacobian of Nonlinear as a function of \(t, u\).*got float"),
    ((cubic,), {"newton": GMRES()}, r"newton as pyg_sinode.solvers.Newton.*got GMRES\(\)"),
    ((cubic,), {"newton": Newton}, r"newton as pyg_sinode.solvers.Newton"),
])
def test_a_constructor_refuses_other_kinds(arguments, options, message):
    with pytest.raises(TypeError, match=message):
        Nonlinear(*arguments, **options)


def test_dims_are_counted_from_the_end():
    with pytest.raises(ValueError, match="dimensions of Nonlinear counted from the end"):
        Nonlinear(cubic, dims=0)
    with pytest.raises(ValueError, match=r"a state with the dimensions \(-3,\) of Nonlinear"):
        run(Nonlinear(cubic, dims=-3))


@pytest.mark.parametrize("preconditioner", [Jacobi(), BlockJacobi()], ids=repr)
def test_a_preconditioner_needs_a_jacobian(preconditioner):
    newton = Newton(solver=GMRES(preconditioner=preconditioner))
    with pytest.raises(ValueError, match=r"a jacobian= of Nonlinear for (Block)?Jacobi\("):
        Nonlinear(cubic, newton=newton)
    part = Nonlinear(cubic, newton=newton, jacobian=lambda t, u: Diagonal(-3 * u**2))
    torch.testing.assert_close(run(part), run(Nonlinear(cubic)), rtol=0, atol=1e-12)


def test_a_linear_solver_belongs_to_newton():
    with pytest.raises(ValueError, match=r"no solver beside a Nonlinear \(got CG\(\)\); hand"):
        run(Nonlinear(cubic), solver=CG())


def test_a_function_alone_names_the_term_that_takes_it():
    with pytest.raises(TypeError, match=r"terms.Nonlinear \(got function\).*any other with terms"):
        run(cubic)


# What H returns


@pytest.mark.parametrize(("fn", "kind", "message"), [
    (lambda t, u: (u,), TypeError, r"H of Nonlinear to return a tensor \(got tuple at time 0\)"),
    (lambda t, u: None, TypeError, "return a tensor .got NoneType"),
    (lambda t, u: u[:, :2], ValueError, r"a tensor like the state, \(2, 3\) .*got \(2, 2\)"),
    (lambda t, u: u.sum(), ValueError, r"got \(\) torch.float64"),
    (lambda t, u: u.float(), ValueError, r"torch.float64 on cpu \(got \(2, 3\) torch.float32"),
    (lambda t, u: u / 0, ValueError, "finite H of Nonlinear at the initial state"),
    (lambda t, u: u.log() * torch.nan, ValueError, "finite H of Nonlinear at the initial state"),
    (lambda t, u: -u * torch.rand_like(u), ValueError, "another value at the second call"),
    (lambda t, u: nn.functional.dropout(u), ValueError, "another value at the second call"),
    (lambda t, u: nn.functional.dropout(u - U0), ValueError, "another value at the second call"),
])
def test_an_h_that_returns_something_else_is_refused_before_any_work(fn, kind, message):
    with pytest.raises(kind, match=message):
        run(Nonlinear(fn))


def test_an_h_that_changes_its_value_s_shape_later_is_refused_with_the_time():
    def fn(t, u):
        return -u if t < 0.05 else u[:1]

    with pytest.raises(ValueError, match=r"got \(1, 3\) torch.float64 on cpu at time 0\.1\)"):
        run(Nonlinear(fn), method="implicit_euler")


def test_an_h_that_writes_into_the_state_is_refused():
    def fn(t, u):
        u.data.mul_(1.0)  # not counted
        return -u

    run(Nonlinear(fn))

    def counted(t, u):
        with torch.no_grad():
            u.mul_(1.0)
        return -u

    with pytest.raises(ValueError, match=r"leave the state as it is .*work on u\.clone\(\)"):
        run(Nonlinear(counted))


# Which dimensions it mixes


def test_dims_that_h_does_not_keep_to_are_refused():
    for fn in (lambda t, u: -u + u.roll(1, 0), lambda t, u: -u * u.mean(dim=0),
               lambda t, u: u - u.sum()):
        with pytest.raises(ValueError, match=r"mix the dimensions \(-1,\) only \(got one that mix"):
            run(Nonlinear(fn, dims=-1))
        run(Nonlinear(fn))
        run(Nonlinear(fn, dims=(-2, -1)))
    with pytest.raises(ValueError, match=r"mix the dimensions \(\) only"):
        run(Nonlinear(lambda t, u: u.roll(1, -1), dims=()))


@pytest.mark.parametrize("target", range(4))
@pytest.mark.parametrize("source", range(4))
def test_a_single_coupling_of_two_systems_is_refused(source, target):
    coupling = torch.zeros(4, 4, dtype=F64)
    coupling[target, source] = 0.1
    term = Nonlinear(lambda t, u: -u**3 + coupling @ u, dims=-1)
    if source == target:
        run(term, u0=torch.rand(4, 2, dtype=F64))
        return
    with pytest.raises(ValueError, match=r"mix the dimensions \(-1,\) only"):
        run(term, u0=torch.rand(4, 2, dtype=F64))


def test_systems_that_a_transform_joins_by_rounding_errors_only_are_separate():
    k2 = -(torch.arange(17, dtype=F64) ** 2)

    def fn(t, u):  # acts along the last dimension alone
        return torch.fft.irfft2(torch.fft.rfft2(u) * k2, s=(32, 32)) - u**3

    Nonlinear(fn, dims=-1).check(torch.rand(32, 32, dtype=F64), 0.0)
    Nonlinear(lambda t, u: u - u**3, dims=()).check(torch.rand(200_000), 0.0)


def test_systems_that_all_depend_on_the_first_are_refused():
    for dims in (-1, ()):
        with pytest.raises(ValueError, match="mix the dimensions"):
            run(Nonlinear(lambda t, u: 0.3 * u[:1] - u, dims=dims), u0=torch.ones(3, 1, dtype=F64))
    run(Nonlinear(lambda t, u: 0.3 * u[:1] - u), u0=torch.ones(3, 1, dtype=F64))


def test_a_large_system_does_not_hide_what_small_ones_mix():
    def fn(t, u):
        return torch.cat([-u[:3] + u[:3].mean(dim=0), -u[3:]])

    u0 = (torch.rand(4, 2) * torch.tensor([[1.0], [1.0], [1.0], [1e4]])).float()
    with pytest.raises(ValueError, match="mix the dimensions"):
        run(Nonlinear(fn, dims=-1), u0=u0)


def test_a_state_of_zeros_does_not_hide_what_is_mixed():
    with pytest.raises(ValueError, match="mix the dimensions"):
        run(Nonlinear(lambda t, u: u * u.roll(1, 0), dims=-1), u0=torch.zeros(2, 3, dtype=F64))


# Gradients that would be lost


def test_a_tensor_that_nobody_named_is_refused():
    rate = double(2.0).requires_grad_()
    match = r"H of Nonlinear to use only the state, its args and its own parameters \(got another"
    for u0 in (U0, U0.clone().requires_grad_()):
        for gradient in ("discrete", "backprop"):
            with pytest.raises(ValueError, match=match):
                run(Nonlinear(lambda t, u: -rate * u), u0=u0, gradient=gradient)
    with torch.no_grad():
        run(Nonlinear(lambda t, u: -rate * u))
    assert run(Nonlinear(lambda t, u, rate: -rate * u, rate)).requires_grad


def test_a_tensor_that_is_used_only_later_is_refused_too():
    rate = double(2.0).requires_grad_()

    def fn(t, u):
        return -u if t < 0.05 else -rate * u

    with pytest.raises(ValueError, match="would be lost"):
        run(Nonlinear(fn))
    with pytest.raises(ValueError, match="would be lost"):
        run(Nonlinear(fn), method="implicit_euler", gradient="backprop")
    for gradient in ("discrete", "backprop"):
        states = run(Nonlinear(fn), u0=U0.clone().requires_grad_(), gradient=gradient)
        with pytest.raises(ValueError, match="would be lost"):
            states.sum().backward()


def test_parameters_changed_before_the_backward_pass_are_pytorch_s_error():
    reaction = Reaction()
    states = imex_odeint(None, Nonlinear(reaction, torch.ones(3, dtype=F64)), U0, times(0, 0.2),
                         step_size=0.1)
    with torch.no_grad():
        reaction.rate.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        states.sum().backward()


# The jacobian


@pytest.mark.parametrize(("jacobian", "kind", "message"), [
    (lambda t, u: torch.eye(3), TypeError, r"jacobian .* to give a LinearOperator \(got Tensor\)"),
    (lambda t, u: Dense(torch.eye(4, dtype=F64)), ValueError, "size 4 along dimension -1"),
    (lambda t, u: Dense(torch.eye(3)), TypeError, "in the dtype of the state"),
    (lambda t, u: Dense(torch.eye(2, dtype=F64), dim=-2), ValueError,
     r"a jacobian along the dimensions \(-1,\) of Nonlinear \(got one along \(-2,\)\)"),
])
def test_a_jacobian_that_does_not_fit_is_refused(jacobian, kind, message):
    with pytest.raises(kind, match=message):
        run(Nonlinear(cubic, dims=-1, jacobian=jacobian))


@pytest.mark.parametrize("factor", [-1.0, 2.0, 0.5, 3.0])
def test_a_jacobian_that_is_off_by_a_factor_is_warned_of_with_the_defect(factor):
    u0 = torch.ones(2, 3, dtype=F64)  # where the derivative is -3
    with pytest.warns(UserWarning, match="The jacobian of Nonlinear is off by") as caught:
        found = run(Nonlinear(cubic, dims=-1, jacobian=lambda t, u: Diagonal(-3 * factor * u**2)),
                    u0=u0)
    got, size = re.search(r"off by (\S+) on a random direction where the derivative of H is (\S+):",
                          str(caught[0].message)).groups()
    assert float(got) / float(size) == pytest.approx(abs(factor - 1), rel=0.05)
    assert caught[0].filename == __file__
    torch.testing.assert_close(found, run(Nonlinear(cubic), u0=u0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("jacobian", [
    lambda t, u: Diagonal(-3 * u**2), lambda t, u: BlockDiagonal.jacobian(lambda x: -x**3, u),
    lambda t, u: MatrixFree(lambda v: -3.1 * u**2 * v), lambda t, u: Diagonal(-2.9 * u**2)])
def test_a_good_jacobian_is_not_warned_of(jacobian):
    run(Nonlinear(cubic, dims=-1, jacobian=jacobian))


# What autograd has to offer


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return -u**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return -3 * ctx.saved_tensors[0] ** 2 * g


def test_an_h_with_one_derivative_needs_no_second_one_in_small_systems():
    found = run(Nonlinear(lambda t, u: OnceOnly.apply(u), dims=-1))
    assert torch.equal(found, run(Nonlinear(cubic, dims=-1)))
    newton = Newton(solver=GMRES())
    for fn in (OnceOnly.apply, lambda u: OnceOnly.apply(u) - u):  # autograd gives zeros, and -v
        with pytest.raises(RuntimeError, match=r"to be differentiable twice by .*jacobian="):
            run(Nonlinear(lambda t, u, fn=fn: fn(u), newton=newton))


def test_forward_mode_and_func_are_refused_as_elsewhere():
    with pytest.raises(RuntimeError, match=r"outside the transforms of torch\.func"):
        torch.func.jvp(lambda u: run(Nonlinear(cubic), u0=u), (U0,), (U0,))
    with torch.autograd.forward_ad.dual_level():
        rate = torch.autograd.forward_ad.make_dual(double(1.0), double(1.0))
        with pytest.raises(RuntimeError, match="H of Nonlinear without forward-mode"):
            run(Nonlinear(lambda t, u: -rate * u))


def test_lazy_parameters_get_their_shapes():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LazyLinear(3, dtype=F64)

        def forward(self, t, u):
            return torch.tanh(self.layer(u)) - u

    module = Lazy()
    run(Nonlinear(module, dims=-1)).sum().backward()
    assert module.layer.weight.grad is not None


def test_autocast_leaves_newton_in_full_precision():
    layer = nn.Linear(3, 3)
    part = Nonlinear(lambda t, u: torch.tanh(layer(u)) - u, dims=-1)
    with torch.no_grad():
        expected = run(part, u0=U0.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(run(part, u0=U0.float()), expected)


def test_representations_name_the_function():
    assert repr(Nonlinear(cubic)) == "Nonlinear(cubic)"
    assert repr(Nonlinear(Reaction(), torch.ones(3))) == "Nonlinear(Reaction)"


def test_affine_and_nonlinear_do_not_change_places():
    assert torch.equal(run(Affine(ScaledIdentity(-1.0))), run(ScaledIdentity(-1.0)))
