"""Is a gradient either right or refused, never silently missing, counted twice or wrong?"""

import pytest
import torch
from lost_gradients_cases import MATRIX, U0, Own, both_modes, solve
from torch import nn

from pyg_sinode.operators import (
    Circulant,
    Dense,
    Diagonal,
    LinearOperator,
    MatrixFree,
    ScaledIdentity,
)
from pyg_sinode.terms import Affine


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
