"""Is a gradient either right or refused, never silently missing, counted twice or wrong?"""

import copy
from functools import partial

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from cases import double
from torch import nn

from pyg_sinode import GRANDAttention, SINODEConv, imex_odeint
from pyg_sinode.operators import (
    Circulant,
    Dense,
    Diagonal,
    LinearOperator,
    MatrixFree,
    ScaledIdentity,
)
from pyg_sinode.terms import Affine

T = double([0.0, 0.5, 1.0])
U0 = double([0.3, -0.4])
MATRIX = double([[-1.0, 0.5], [0.2, -2.0]])
both_modes = pytest.mark.parametrize("gradient", ["discrete", "backprop"])
every_method = pytest.mark.parametrize("method", ["imex_rk2", "ark548l2sa", "sbdf3"])


def solve(explicit, implicit=None, u0=U0, **options):
    return imex_odeint(explicit, implicit, u0, T, **{"step_size": 0.25, **options})


# Tensors that nobody named


class Own(LinearOperator):
    """An operator of a user's own, which may hide a tensor."""

    dims = (-1,)

    def __init__(self, matrix, hidden=None):
        self.tensors, self.hidden = (matrix,), hidden

    def mv(self, u):
        product = u @ self.tensors[0].t()
        return product if self.hidden is None else product * self.hidden


class Disobedient(LinearOperator):
    """An operator that names its tensor, but takes it from elsewhere."""

    dims = (-1,)

    def __init__(self, matrix):
        self.matrix, self.tensors = matrix, (matrix,)

    def mv(self, u):
        return u @ self.matrix.t()


W = MATRIX.clone().requires_grad_()
HIDING = {
    "function": lambda: MatrixFree(lambda u: u @ W),
    "transposed": lambda: MatrixFree(lambda u: u @ W).T,
    "sum": lambda: Dense(MATRIX) + 0.5 * MatrixFree(lambda u: u @ W),
    "made_from_one": lambda: MatrixFree(lambda u: u @ (2.0 * W)),
    "beside_a_named_one": lambda: MatrixFree(lambda u, m: u @ W + u @ m, W.detach().clone()),
    "own": lambda: Own(MATRIX, torch.ones(2).double().requires_grad_()),
    "own_scaled": lambda: 2.0 * Own(MATRIX, torch.ones(2).double().requires_grad_()),
    "not_taken_from_tensors": lambda: Disobedient(W),
}  # fmt: skip


@both_modes
@pytest.mark.parametrize("make", HIDING.values(), ids=HIDING)
def test_a_tensor_of_an_operator_that_nobody_named_is_refused_before_any_work(make, gradient):
    calls = []
    with pytest.raises(ValueError, match=r"to use only its own tensors \(got another tensor"):
        solve(lambda t, u: calls.append(t) or u, make(), gradient=gradient)
    assert not calls


def test_named_tensors_of_an_operator_of_ones_own_receive_their_gradient():
    found = []
    for make in (Own, Dense, lambda m: MatrixFree(lambda u, m: u @ m.t(), m)):
        matrix = MATRIX.clone().requires_grad_()
        solve(lambda t, u: torch.sin(u), make(matrix))[-1].sum().backward()
        found.append(matrix.grad)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-8, atol=1e-10)


def test_without_gradients_hidden_tensors_are_no_fault():
    with torch.no_grad():
        assert solve(None, MatrixFree(lambda u: u @ W)).shape == (3, 2)
    assert solve(None, MatrixFree(lambda u: u @ W.detach())).shape == (3, 2)


@pytest.mark.parametrize("options", [{"step_size": 0.25}, {"step_size": 0.25, "method": "sbdf2"},
                                     {"step_size": None, "rtol": 1e-3}], ids=str)  # fmt: skip
def test_a_tensor_that_g_uses_later_than_at_first_is_not_lost(options):
    def late(t, u):
        return u @ W if t > 0.4 else -u

    with pytest.raises(ValueError, match="another tensor of shape"):
        solve(late, **options)
    u = solve(late, u0=U0.clone().requires_grad_(), **options)
    with pytest.raises(ValueError, match="another tensor of shape"):
        u[-1].sum().backward()
    u = solve(late, gradient="backprop", **options)
    u[-1].sum().backward()
    W.grad = None


@pytest.mark.parametrize("make", [
    lambda scale: Affine(ScaledIdentity(-1.0), lambda t: scale * t if t > 0.4 else t),
    lambda scale: Affine(ScaledIdentity(-1.0), scale=lambda t: scale * t if t > 0.4 else t),
], ids=["forcing", "scale"])
def test_a_tensor_that_a_forcing_or_scale_uses_later_than_at_first_is_not_lost(make):
    with pytest.raises(ValueError, match=r"own parameters .got another tensor"):
        solve(None, make(torch.ones((), dtype=torch.float64, requires_grad=True)))


# Hooks


class Net(nn.Module):
    """An explicit term with a parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(MATRIX.clone())

    def forward(self, t, u, *args):
        return torch.sin(u @ self.weight) + sum(args)


@pytest.mark.parametrize("options", [{}, {"checkpoints": 2}, {"gradient": "backprop"},
                                     {"method": "sbdf3"}], ids=str)  # fmt: skip
def test_a_hook_fires_once_on_the_whole_gradient(options):
    plain, hooked = Net(), Net()
    solve(plain, **options)[-1].sum().backward()
    calls = []
    hooked.weight.register_hook(lambda g: calls.append(g) or 2 * g)
    solve(hooked, **options)[-1].sum().backward()
    assert len(calls) == 1
    assert torch.equal(hooked.weight.grad, 2 * plain.weight.grad)


def test_hooks_on_the_state_the_arguments_and_the_tensors_of_j_fire_once():
    tensors = [U0.clone().requires_grad_(), torch.ones(2).double().requires_grad_(),
               MATRIX.clone().requires_grad_()]  # fmt: skip
    calls = []
    for number, x in enumerate(tensors):
        x.register_hook(lambda g, n=number: calls.append(n))
    solve(Net(), Dense(tensors[2]), u0=tensors[0], args=(tensors[1],))[-1].sum().backward()
    assert sorted(calls) == [0, 1, 2]


def test_a_hook_after_accumulation_sees_the_whole_gradient():
    net, seen = Net(), []
    net.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    solve(net)[-1].sum().backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], net.weight.grad)


# Parameters that are replaced


class Built(nn.Module):
    """A module that builds its implicit part once."""

    def __init__(self, make):
        super().__init__()
        self.weight = nn.Parameter(MATRIX.clone())
        self.net = nn.Linear(1, 2, dtype=torch.float64)
        self.implicit = make(self)

    def forward(self, u0):
        return solve(None, self.implicit, u0=u0)[-1].sum()


@pytest.mark.parametrize("make", [
    lambda m: Dense(m.weight),
    lambda m: Dense(m.weight) + ScaledIdentity(-1.0),
    lambda m: Affine(Dense(m.weight), torch.cos),
    lambda m: MatrixFree(lambda u, w: u @ w, m.weight),
    lambda m: Diagonal(m.weight.diagonal()),
    lambda m: Circulant.from_symbol(m.weight.sum(0, keepdim=True).sum(1).expand(2) * 1.0),
    lambda m: Affine(ScaledIdentity(-1.0), m.weight.diagonal()),
], ids=["dense", "sum", "affine", "function", "view", "symbol", "forcing"])
@pytest.mark.parametrize("hidden", [False, True])
def test_an_operator_on_a_parameter_that_was_replaced_is_refused(make, hidden):
    module = Built(make)
    if hidden:
        module.implicit = [{"inside": [module.implicit]}]
        module.forward = lambda u0: solve(None, module.implicit[0]["inside"][0], u0=u0)[-1].sum()
    new = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    with pytest.raises(ValueError, match="build the operator in forward, not in __init__"):
        torch.func.functional_call(module, new, (U0,))
    assert module(U0).isfinite()


def test_an_operator_built_in_forward_on_a_step_from_the_old_parameter_is_right():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(MATRIX.clone())

        def forward(self, u0):
            J = Dense(self.weight) + Dense(self.weight.tanh())
            return solve(None, J, u0=u0)[-1].sum()

    module = Inside()
    fast = {"weight": module.weight - 0.1}
    torch.func.functional_call(module, fast, (U0,)).backward()
    moved = Inside()
    moved.weight.data.sub_(0.1)
    moved(U0).backward()
    torch.testing.assert_close(module.weight.grad, moved.weight.grad)
    stale = Built(lambda m: Dense(m.weight))
    fast = {name: p - 0.1 for name, p in stale.named_parameters()}
    with pytest.raises(ValueError, match="build the operator in forward"):
        torch.func.functional_call(stale, fast, (U0,))


def test_a_frozen_parameter_that_was_replaced_is_refused_as_well():
    module = Built(lambda m: Dense(m.weight)).requires_grad_(False)
    new = {name: 5.0 * p.detach() for name, p in module.named_parameters()}
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, pytest.raises(ValueError, match="build the operator in forward"):
            torch.func.functional_call(module, new, (U0,))


@pytest.mark.parametrize("make", [
    lambda m: MatrixFree(Multiply(m)),
    lambda m: Affine(ScaledIdentity(-1.0), Forcing(m.net)),
], ids=["module", "forcing"])
def test_a_module_that_an_implicit_part_holds_may_be_replaced(make):
    module = Built(make)
    module(U0).backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    new = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    module.zero_grad()
    torch.func.functional_call(module, new, (U0,)).backward()
    assert grads
    for name, grad in grads.items():
        torch.testing.assert_close(new[name].grad, grad)
    assert all(p.grad is None for p in module.parameters())


class Multiply(nn.Module):
    """A linear module on the weight of another."""

    def __init__(self, owner):
        super().__init__()
        owner.linear = self
        self.inner = nn.Linear(2, 2, bias=False, dtype=torch.float64)

    def forward(self, u):
        return self.inner(u)


class Forcing(nn.Module):
    """A forcing by a network of time."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t):
        return self.net(t.view(1))


# Other kinds of differentiation


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


# Memory that is used twice


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
