"""Are other kinds of differentiation right or refused, and reused memory harmless?"""

import copy
from functools import partial

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from cases import double
from lost_gradients_cases import MATRIX, U0, Own, T, both_modes, solve
from torch import nn

from pyg_sinode import GRANDAttention, SINODEConv, imex_odeint
from pyg_sinode.operators import (
    Dense,
    LinearOperator,
    MatrixFree,
    ScaledIdentity,
)
from pyg_sinode.terms import Affine

every_method = pytest.mark.parametrize("method", ["imex_rk2", "ark548l2sa", "sbdf3"])


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
@pytest.mark.parametrize("where", ["state", "argument", "parameter", "operator"])
def test_forward_mode_is_right_or_refused(where, gradient):
    with forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(x, torch.ones_like(x)) for name, x in (
            ("state", U0), ("argument", U0), ("operator", MATRIX), ("parameter", MATRIX))}
        u0 = dual["state"] if where == "state" else U0
        args = (dual["argument"],) if where == "argument" else ()
        J = Dense(dual["operator"]) if where == "operator" else None
        weight = dual["parameter"] if where == "parameter" else MATRIX

        def G(t, u, *more):
            return torch.sin(u @ weight) + sum(more)

        if gradient == "discrete" or where == "operator":
            with pytest.raises(RuntimeError, match="without forward-mode differentiation"):
                solve(G, J, u0=u0, args=args, gradient=gradient)
            return
        tangent = forward_ad.unpack_dual(solve(G, J, u0=u0, args=args, gradient=gradient)).tangent

    def moved(s):
        weight = MATRIX + s * (where == "parameter")
        return solve(lambda t, u, *more: torch.sin(u @ weight) + sum(more), None,
                     u0=U0 + s * (where == "state"),
                     args=(U0 + s,) if where == "argument" else ())

    slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
    torch.testing.assert_close(tangent, slope, rtol=1e-7, atol=1e-9)


W_DUAL = MATRIX.diagonal().clone()


@pytest.mark.parametrize("implicit", [
    lambda w: MatrixFree(lambda u: u * w), lambda w: Affine(ScaledIdentity(-1.0), lambda t: w * t),
    lambda w: Affine(ScaledIdentity(-1.0), scale=lambda t: w[0])],
    ids=["function", "forcing", "scale"])
@both_modes
def test_a_tangent_in_a_closure_of_the_implicit_part_is_refused(implicit, gradient):
    u0 = U0.clone().requires_grad_()
    with forward_ad.dual_level():
        w = forward_ad.make_dual(W_DUAL, torch.ones(2).double())
        with pytest.raises(RuntimeError, match="without forward-mode"):
            solve(None, implicit(w), u0=u0, gradient=gradient)


@pytest.mark.parametrize("grad", [True, False])
def test_a_tangent_that_comes_later_is_refused(grad):
    with forward_ad.dual_level(), torch.set_grad_enabled(grad):
        w = forward_ad.make_dual(W_DUAL, torch.ones(2).double())
        for u0 in (U0, U0.clone().requires_grad_()):
            with pytest.raises(RuntimeError, match="without forward-mode"):
                solve(lambda t, u: u * w if t > 0.4 else -u, Dense(MATRIX), u0=u0)


def test_transforms_of_torch_func_say_what_to_do_instead():
    def loss(u, **options):
        return solve(lambda t, u: torch.sin(u), u0=u, **options)[-1].sum()

    for transform in (torch.func.grad, torch.func.jacrev, lambda f: torch.func.vjp(f, U0),
                      lambda f: torch.func.jvp(f, (U0,), (U0,))):
        with pytest.raises(RuntimeError, match=r"torch.func .*; use loss.backward\(\)"):
            transform(loss)(U0)
    for gradient in ("discrete", "backprop"):
        batched = torch.func.vmap(partial(loss, gradient=gradient))
        with pytest.raises(RuntimeError, match=r"outside torch.func.vmap .* dimension"):
            batched(torch.stack([U0, U0]))
    u0 = U0.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(u0), u0)
    torch.testing.assert_close(
        torch.func.grad(lambda u: loss(u, gradient="backprop"))(U0), expected)


@pytest.mark.parametrize("layer", [SINODEConv(2, 2).double(), GRANDAttention(2).double(),
                                   SINODEConv(2, 2, implicit="attention").double()],
                         ids=["decay", "attention", "implicit_attention"])  # fmt: skip
def test_transforms_around_a_layer_say_what_to_do_instead(layer):
    edges, x = torch.tensor([[0, 1], [1, 0]]), torch.randn(2, 2).double()
    with pytest.raises(RuntimeError, match=r"outside the transforms of torch.func .* use loss"):
        torch.func.grad(lambda x: layer(x, edges).sum())(x)
    with pytest.raises(RuntimeError, match=r"outside torch.func.vmap .* graphs into one Batch"):
        torch.func.vmap(lambda x: layer(x, edges))(torch.stack([x, x]))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="without forward-mode"):
        layer(forward_ad.make_dual(x, x), edges)


class Hamiltonian(nn.Module):
    """A term that is the derivative of a learned energy."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()

    def forward(self, t, u):
        (slope,) = torch.autograd.grad(self.energy(u).sum(), u, create_graph=True)
        return slope @ double([[0.0, 1.0], [-1.0, 0.0]])


def test_a_term_that_takes_derivatives_itself_has_the_gradient_of_backpropagation():
    net = Hamiltonian()
    found = []
    for options in ({}, {"checkpoints": 1}, {"gradient": "backprop"}):
        other, u0 = copy.deepcopy(net), U0.clone().requires_grad_()
        solve(other, Dense(MATRIX), u0=u0, **options)[-1].square().sum().backward()
        found.append([u0.grad, *(p.grad for p in other.parameters() if p.grad is not None)])
    assert len(found[0]) == 4
    for other in found[:-1]:
        for a, b in zip(other, found[-1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_term_that_takes_derivatives_itself_needs_nobody_else_to_want_one():
    net = Hamiltonian()
    expected = solve(net, Dense(MATRIX)).detach()
    frozen = copy.deepcopy(net).requires_grad_(False)

    def own_leaf(t, u):
        u = u.requires_grad_()
        (slope,) = torch.autograd.grad(frozen.energy(u).sum(), u, create_graph=True)
        return slope @ double([[0.0, 1.0], [-1.0, 0.0]])

    for gradient in ("discrete", "backprop"):
        for term in (net, frozen):
            found = solve(term, Dense(MATRIX), gradient=gradient)
            torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-13)
            with torch.no_grad():
                found = solve(term, Dense(MATRIX), gradient=gradient)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(solve(own_leaf, Dense(MATRIX)), expected, rtol=1e-12, atol=1e-13)


@every_method
@both_modes
def test_a_term_that_overwrites_its_last_value_changes_nothing(method, gradient):
    buffers = [torch.empty(2).double() for _ in range(2)]
    calls = []

    def fresh(t, u):
        return torch.cos(t) - u * u.flip(0)

    def reused(t, u):
        return buffers[0].copy_(fresh(t, u))

    def hidden(t, u):
        buffers[0].data.copy_(fresh(t, u))
        return buffers[0].view(1, 2)[0]

    def alternating(t, u):
        calls.append(t)
        return buffers[len(calls) % 2].copy_(fresh(t, u))

    J = ScaledIdentity(-1.0)
    expected = solve(fresh, J, method=method, gradient=gradient)
    for term in (reused, hidden, alternating):
        assert torch.equal(solve(term, J, method=method, gradient=gradient), expected)
        with torch.inference_mode():
            assert torch.equal(solve(term, J, method=method, gradient=gradient), expected)


def test_adaptive_steps_and_their_first_size_are_not_changed_by_it_either():
    buffer = torch.empty(2).double()

    def run(term):
        return imex_odeint(term, None, U0, T, rtol=1e-5, return_stats=True)

    expected, stats = run(lambda t, u: torch.cos(t) - u * u.flip(0))
    found, same = run(lambda t, u: buffer.copy_(torch.cos(t) - u * u.flip(0)))
    assert torch.equal(found, expected)
    assert same.steps_accepted == stats.steps_accepted


def test_a_product_that_overwrites_the_last_one_changes_nothing():
    buffers = {}

    def product(u):
        return buffers.setdefault(u.shape, torch.empty_like(u)).copy_(u @ MATRIX)

    J = MatrixFree(product)
    expected = solve(None, Dense(MATRIX.t()), method="ark324l2sa")
    torch.testing.assert_close(solve(None, J, method="ark324l2sa"), expected, rtol=1e-8, atol=1e-9)


class Reusing(Own):
    """An operator of a user's own that writes each product over the last one."""

    buffer = torch.empty(2).double()

    def mv(self, u):
        if u.requires_grad or self.tensors[0].requires_grad:
            return super().mv(u)
        return self.buffer.copy_(super().mv(u)) if u.shape == (2,) else super().mv(u)


def test_an_operator_that_overwrites_its_last_product_changes_nothing():
    for method in ("ark324l2sa", "ark436l2sa", "cnab2"):
        expected = solve(lambda t, u: torch.sin(u), Own(MATRIX), method=method)
        found = solve(lambda t, u: torch.sin(u), Reusing(MATRIX), method=method)
        assert torch.equal(found, expected)


class ByProperty(LinearOperator):
    """An operator whose tensors cannot be put in place of others."""

    dims = (-1,)

    @property
    def tensors(self):
        return (MATRIX,)

    def mv(self, u):
        return u @ MATRIX


def test_an_operator_without_a_way_to_take_other_tensors_says_so():
    with pytest.raises(TypeError, match="give it the method with_tensors"):
        solve(None, ByProperty())


def test_changes_of_an_operator_that_are_no_tensors_are_seen():
    J = -0.1 * MatrixFree(lambda u: u @ MATRIX)
    solve(None, J)
    J.factor = -0.5
    again = solve(None, -0.5 * MatrixFree(lambda u: u @ MATRIX))
    torch.testing.assert_close(solve(None, J), again, rtol=0.0, atol=0.0)


@both_modes
@pytest.mark.parametrize("inference", [False, True])
def test_a_term_that_changes_the_state_is_refused(gradient, inference):
    with torch.inference_mode(inference), pytest.raises(ValueError, match="leave the state as it"):
        solve(lambda t, u: u.mul_(2.0), u0=U0.clone(), gradient=gradient)


def test_a_linear_function_that_changes_its_argument_is_refused():
    with pytest.raises(ValueError, match="leaves its argument as it is in MatrixFree"):
        solve(None, MatrixFree(lambda u: u.mul_(-1.0)))


@both_modes
@pytest.mark.parametrize("options", [{}, {"method": "sbdf3"}, {"step_size": None}], ids=str)
def test_a_callback_that_changes_the_state_changes_nothing(gradient, options):
    def spoil(t, u):
        u.mul_(3.0)

    def G(t, u):
        return torch.cos(t) - u

    expected = solve(G, gradient=gradient, **options)
    assert torch.equal(solve(G, gradient=gradient, callback=spoil, **options), expected)
