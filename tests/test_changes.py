"""What if something changes while an integration runs, or between it and its backward pass?"""

import dataclasses

import numpy as np
import pytest
import torch
from cases import double
from torch import Tensor, nn
from torch_geometric.typing import OptTensor  # noqa: F401  (PyG 2.5 looks for it, see below)

from pyg_sinode import GRANDAttention, SINODEConv, imex_odeint, solvers
from pyg_sinode.operators import Dense, Diagonal, MatrixFree, Scaled, ScaledIdentity, Shifted

T = double([0.0, 0.5, 1.0])
MATRIX = double([[-1.0, 0.3], [0.2, -2.0]])


def solve(G, J=None, u0=None, **options):
    u0 = double([1.0, -0.5]) if u0 is None else u0
    return imex_odeint(G, J, u0, T, **{"step_size": 0.25, **options})


# In place, on the way


def arg_changed(w):
    def G(t, u, weight):
        if float(t) > 0.6:
            with torch.no_grad():
                weight.mul_(1.5)
        return weight * u
    return {"G": G, "args": (w,)}


def parameter_changed(w):
    class Decays(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(w.detach().clone())

        def forward(self, t, u):
            if float(t) > 0.6:
                with torch.no_grad():
                    self.w.mul_(1.5)
            return self.w * u
    return {"G": Decays()}


def operator_changed(w):
    def G(t, u):
        if float(t) > 0.6:
            with torch.no_grad():
                w.mul_(1.5)
        return torch.sin(u)
    return {"G": G, "J": Diagonal(w)}


def changed_by_the_callback(w):
    def callback(t, u):
        with torch.no_grad():
            w.mul_(1.5)
    return {"G": lambda t, u, weight: weight * u, "args": (w,), "callback": callback}


@pytest.mark.parametrize("case", [arg_changed, parameter_changed, operator_changed,
                                  changed_by_the_callback])
def test_what_is_differentiated_by_is_not_to_change_on_the_way(case):
    w = double([-1.0, -2.0]).requires_grad_()
    with pytest.raises(RuntimeError, match="to stay as they are during an integration"):
        solve(**case(w))


def test_a_callback_that_writes_the_initial_state_does_not_change_the_first_output():
    u0 = double([1.0, -0.5])

    def callback(t, u):
        u0.fill_(7.0)

    u = solve(lambda t, u: -u, u0=u0, callback=callback)
    assert u[0].tolist() == [1.0, -0.5]


def test_an_initial_state_does_not_come_to_require_a_gradient():
    u0 = double([1.0, -0.5])
    with torch.no_grad():
        solve(lambda t, u: -u.requires_grad_().detach(), u0=u0)
    assert not u0.requires_grad


@pytest.mark.parametrize("count", [1, 2])
def test_a_linear_function_may_write_its_products_into_a_few_buffers_in_turn(count):
    buffers, calls = [torch.empty(2).double() for _ in range(count)], []

    def product(u):
        calls.append(1)
        out = buffers[len(calls) % count]
        out.copy_(u @ MATRIX.T)
        return out

    with torch.no_grad():
        for method in ("ark324l2sa", "sbdf2", "cnab2"):
            found = solve(lambda t, u: torch.sin(u), MatrixFree(product), method=method,
                          solver=solvers.GMRES(rtol=1e-12))
            expected = solve(lambda t, u: torch.sin(u), Dense(MATRIX), method=method)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# Between the integration and its backward pass


class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(2, 2).double()
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, t, u):
        return self.dropout(torch.tanh(self.lin(u)))


@pytest.mark.parametrize("checkpoints", [None, 1])
def test_a_module_put_into_evaluation_before_the_backward_pass_has_the_gradient_of_training(
        checkpoints):
    module, found = Noisy(), []
    for gradient in ("backprop", "discrete"):
        torch.manual_seed(3)
        module.train()
        options = {"checkpoints": checkpoints} if gradient == "discrete" else {}
        u = solve(module, gradient=gradient, **options)
        module.eval()
        found.append(torch.autograd.grad(u.square().sum(), list(module.parameters())))
        assert {module.training, module.dropout.training} == {False}
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# Operators that hide what they use


def test_a_closure_in_a_shifted_operator_is_refused():
    W = MATRIX.clone().requires_grad_()
    with pytest.raises(ValueError, match="product of MatrixFree to use only its own tensors"):
        solve(None, Shifted(MatrixFree(lambda u: u @ W.T), 0.1))


@pytest.mark.parametrize("solver", [solvers.Direct(), solvers.GMRES()])
def test_an_inverse_of_what_is_trained_is_no_operator(solver):
    W = MATRIX.clone().requires_grad_()
    with pytest.raises(ValueError, match="an operator through which gradients flow"):
        solve(None, solver.invert(Dense(W)), solver=solvers.GMRES())
    with torch.no_grad():
        assert solve(None, solver.invert(Dense(W)), solver=solvers.GMRES()).isfinite().all()


def test_an_operator_whose_copies_are_of_another_class_is_refused():
    class Twice(Scaled):
        def with_tensors(self, tensors):
            return Scaled(self.operator.with_tensors(tensors), self.factor)

        def mv(self, u):
            return 2.0 * super().mv(u)

    W = MATRIX.clone().requires_grad_()
    with pytest.raises(TypeError, match="with_tensors to give another Twice"):
        solve(None, Twice(Dense(W), 1.0), solver=solvers.GMRES())


class Triple(Dense):
    """Of three times its matrix; its copies are inherited."""

    def full(self):
        return Dense(3.0 * self.tensors[0])

    def mv(self, u):
        return self.full().mv(u)

    def transpose(self):
        return self.full().T

    def resolvent(self, c):
        return self.full().resolvent(c)

    def to_coo(self, dim, size):
        return self.full().to_coo(dim, size)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("make", [lambda J: J, lambda J: J + ScaledIdentity(-1.0),
                                  lambda J: 2.0 * J, lambda J: J + Diagonal(double([-1.0, -2.0]))])
@pytest.mark.parametrize("options", [{}, {"checkpoints": 2}, {"gradient": "backprop"},
                                     {"solver": solvers.GMRES(rtol=1e-13)}])
def test_a_subclass_that_inherits_its_copies_stays_itself(make, trained, options):
    found = []
    for kind, factor in ((Triple, 1.0), (Dense, 3.0)):
        W = (factor * MATRIX).requires_grad_(trained)
        u0 = double([1.0, -0.5]).requires_grad_()
        u = solve(None, make(kind(W)), u0=u0, **options)
        wanted = [u0, W] if trained else [u0]
        grads = list(torch.autograd.grad(u.square().sum(), wanted))
        found.append([u, grads[0], *(factor * g for g in grads[1:])])
        with torch.no_grad():
            found[-1].append(solve(None, make(kind(W)), u0=u0, **options))
    torch.testing.assert_close(found[0][:2] + found[0][-1:], found[1][:2] + found[1][-1:],
                               rtol=1e-10, atol=1e-12)
    if trained:
        torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-10, atol=1e-12)


def test_parameters_may_be_frozen_before_the_backward_pass():
    for memory in (0, 2**30):
        module, u0 = Noisy().eval(), double([1.0, -0.5]).requires_grad_()
        u = solve(module, u0=u0, graph_memory=memory)
        expected = torch.autograd.grad(u.sum(), [u0, module.lin.bias], retain_graph=True)
        module.lin.weight.requires_grad_(False)
        u.sum().backward()
        torch.testing.assert_close([u0.grad, module.lin.bias.grad], list(expected))
        assert module.lin.weight.grad is None


def test_a_subclass_whose_copies_are_of_its_own_has_its_gradient():
    class Twice(MatrixFree):
        def mv(self, u):
            return 2.0 * super().mv(u)

    W, found = MATRIX.clone().requires_grad_(), []
    for J in (Twice(lambda u, w: u @ w.T, W), Dense(2.0 * W)):
        u = solve(None, J, solver=solvers.GMRES(rtol=1e-13))
        found.append(torch.autograd.grad(u.sum(), W)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"checkpoints": 2}, {"gradient": "backprop"}])
def test_modules_in_operators_are_those_of_a_functional_call(options):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.g, self.j = nn.Linear(2, 2).double(), nn.Linear(2, 2, bias=False).double()

        def forward(self, u):
            J = MatrixFree(self.j) + ScaledIdentity(-1.0)
            return solve(Named(self.g), J, u, solver=solvers.GMRES(rtol=1e-13), **options)

    class Named(nn.Module):
        def __init__(self, lin):
            super().__init__()
            self.lin = lin

        def forward(self, t, u):
            return torch.tanh(self.lin(u))

    whole = Whole()
    other = {name: (0.5 * p.detach()).requires_grad_() for name, p in whole.named_parameters()}
    u = torch.func.functional_call(whole, other, (double([1.0, -0.5]),))
    found = torch.autograd.grad(u.square().sum(), list(other.values()))
    with torch.no_grad():
        for name, p in whole.named_parameters():
            p.copy_(other[name])
    expected = torch.autograd.grad(whole(double([1.0, -0.5])).square().sum(),
                                   list(whole.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_subclass_that_is_not_trained_may_inherit_its_copies():
    class Twice(Dense):
        def mv(self, u):
            return 2.0 * super().mv(u)

        def resolvent(self, c):
            return super().resolvent(2.0 * c)

    found = [solve(None, Twice(MATRIX)) for _ in range(2)]
    torch.testing.assert_close(found[0], solve(None, Dense(2.0 * MATRIX)))
    assert torch.equal(*found)


# Good input that was refused


def test_an_operator_on_a_module_s_own_parameter_beside_a_buffer_has_its_gradient():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.W = torch.nn.Parameter(MATRIX.clone())
            self.register_buffer("count", torch.zeros(()))
            self.J = Dense(self.W)

        def forward(self, t, u):
            self.count += 1
            return self.J.mv(u)

    module = Own()
    found = [torch.autograd.grad(solve(module, gradient=gradient).sum(), module.W)[0]
             for gradient in ("backprop", "discrete")]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gradient", ["backprop", "discrete"])
def test_a_module_whose_parameters_have_no_shape_yet_gets_them(gradient):
    class Lazy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.LazyLinear(2, dtype=torch.float64)

        def forward(self, t, u):
            return torch.tanh(self.lin(u))

    module = Lazy()
    solve(module, gradient=gradient).sum().backward()
    assert module.lin.weight.grad.abs().sum() > 0


def test_a_solver_of_ones_own_need_not_be_hashable():
    @dataclasses.dataclass
    class Mine:
        rtol: float = 1e-12

        def invert(self, operator):
            return solvers.GMRES(rtol=self.rtol).invert(operator)

    expected = solve(None, Dense(MATRIX))
    torch.testing.assert_close(solve(None, Dense(MATRIX), solver=Mine()), expected)


def test_an_operator_used_under_inference_mode_is_of_use_after_it():
    @dataclasses.dataclass(frozen=True)
    class Mine:
        def invert(self, operator):
            return solvers.Direct().invert(operator)

    operator, u0 = Dense(MATRIX.clone()), double([1.0, -0.5]).requires_grad_()
    for solver in (Mine(), None):
        with torch.inference_mode():
            solve(None, operator, solver=solver)
        solve(None, operator, u0=u0, solver=solver).sum().backward()
    assert u0.grad.isfinite().all()


@pytest.mark.parametrize("size", [np.float32(0.25), np.float64(0.25), np.int64(1), 1])
def test_a_step_size_is_any_real_number(size):
    found = solve(lambda t, u: -u, step_size=size)
    torch.testing.assert_close(found, solve(lambda t, u: -u, step_size=float(size)))


def test_a_layer_refuses_an_operator_that_training_would_not_change():
    p = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="implicit operator on parameters themselves"):
        SINODEConv(4, 4, implicit=ScaledIdentity(-p))


def test_the_messages_of_a_subclass_of_the_attention_are_used():
    # PyG 2.5 looks up the types of all messages in the module of a subclass, of its own layers too.
    class Doubled(GRANDAttention):
        def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
            return 2.0 * super().message(x_j, alpha)

    edges = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]])
    x = torch.randn(3, 4)
    torch.manual_seed(0)
    plain = GRANDAttention(4)
    torch.manual_seed(0)
    torch.testing.assert_close(Doubled(4)(x, edges), 2.0 * plain(x, edges))


def test_a_dual_time_is_refused():
    with torch.autograd.forward_ad.dual_level():
        t = torch.autograd.forward_ad.make_dual(T, torch.ones_like(T))
        with pytest.raises(RuntimeError, match="t without forward-mode"):
            imex_odeint(lambda t, u: -u, None, double([1.0]), t, step_size=0.5)
