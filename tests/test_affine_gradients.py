"""Do gradients flow through forcings and factors, by the tensors in force?"""

import pytest
import torch
from affine_cases import (
    ALL,
    DENSE,
    LEAF,
    TIMES,
    Forcing,
    Manufactured,
    Scale,
    assert_equal,
    every_gradient,
    every_method,
    random,
)
from cases import double, times
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode import imex_odeint
from pyg_sinode.operators import Dense, Diagonal, ScaledIdentity
from pyg_sinode.operators.checks import foreign_leaf
from pyg_sinode.terms import Affine


class Rate(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(double([0.5, 1.0, 1.5]))

    def forward(self, t, u):
        return torch.sin(self.weight * u.roll(1, -1) + t)


KINDS = ["module", "leaf", "nonleaf", "broadcast", "scale", "operator", "everything", "same_tensor"]


def setting(kind):
    """The implicit part, and the tensors that get a gradient through it."""
    torch.manual_seed(7)
    matrix = 0.4 * random(3, 3) - torch.eye(3, dtype=torch.float64)
    vector = random(3).requires_grad_()
    if kind == "module":
        f = Forcing()
        return Affine(Dense(matrix), f), list(f.parameters())
    if kind == "leaf":
        return Affine(Dense(matrix), vector), [vector]
    if kind == "nonleaf":
        return Affine(Dense(matrix), vector.exp()), [vector]
    if kind == "broadcast":
        number = double(0.7).requires_grad_()
        return Affine(Dense(matrix), number), [number]
    if kind == "scale":
        a = Scale()
        return Affine(Dense(matrix), scale=a), list(a.parameters())
    if kind == "operator":
        matrix.requires_grad_()
        part = Affine(Dense(matrix), lambda t: torch.cos(t), scale=lambda t: 1 + t)
        return part, [matrix]
    if kind == "same_tensor":
        return Affine(Diagonal(-vector.exp()), vector), [vector]
    f, a = Forcing(), Scale()
    matrix.requires_grad_()
    return Affine(Dense(matrix), f, scale=a), [matrix, *f.parameters(), *a.parameters()]


def gradients(kind, method, explicit=True, t=TIMES, **given):
    part, wanted = setting(kind)
    rate, u0 = Rate() if explicit else None, random(2, 3).requires_grad_()
    wanted = [u0, *(rate.parameters() if explicit else ()), *wanted]
    weights = random(len(t), 2, 3)
    steps = {"atol": 1e-4} if "rtol" in given else {"step_size": 0.1}
    result = imex_odeint(rate, part, u0, t, method=method, **steps, **given)
    return result.detach(), torch.autograd.grad((weights * result).sum(), wanted)


@pytest.mark.parametrize(("method", "kind", "explicit"), [
    *((method, "everything", explicit) for method in ALL for explicit in (True, False)),
    *((method, kind, True) for method in ("ssp222", "ark324l2sa", "cnab2")
      for kind in KINDS if kind != "everything")])
def test_the_discrete_gradient_is_that_of_backprop(method, kind, explicit):
    found = gradients(kind, method, explicit)
    expected = gradients(kind, method, explicit, gradient="backprop")
    assert torch.equal(found[0], expected[0])
    assert_equal(found[1], expected[1], 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["ark324l2sa", "ars122"])
def test_it_is_so_against_time_and_with_adaptive_steps(kind, method):
    for kwargs in ({"t": TIMES.flip(0)}, {"rtol": 1e-3}, {"t": TIMES.flip(0), "rtol": 1e-3}):
        found = gradients(kind, method, **kwargs)
        expected = gradients(kind, method, gradient="backprop", **kwargs)
        assert_equal(found[1], expected[1], 1e-11)


@pytest.mark.parametrize("method", DENSE)
def test_it_is_so_with_dense_output(method):
    t = times(0.3, 0.34, 0.5, 0.77, 0.9)
    found, expected = (gradients("everything", method, t=t, dense=True, gradient=g)[1]
                       for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-11)


@every_method
def test_checkpoints_give_the_gradient_to_the_last_bit(method):
    expected = gradients("everything", method)[1]
    for checkpoints in (1, 2, "auto"):
        found = gradients("everything", method, checkpoints=checkpoints)[1]
        assert all(map(torch.equal, found, expected)), checkpoints


class Layer(nn.Module):
    """A module that integrates an affine part of its own."""

    def __init__(self, method="ars222", gradient="discrete"):
        super().__init__()
        self.f, self.scale, self.method, self.gradient = Forcing(), Scale(), method, gradient
        self.matrix = nn.Parameter(Manufactured.J.clone())

    def forward(self, u0):
        part = Affine(Dense(self.matrix), self.f, scale=self.scale)
        return imex_odeint(lambda t, u: torch.sin(u.roll(1, -1)), part, u0, TIMES[:3],
                           method=self.method, step_size=0.1, gradient=self.gradient)


def of_its_tensors(layer):
    """The layer as a function of its state and of everything in it, and values for these."""
    names = [name for name, _ in layer.named_parameters()]

    def run(u0, *tensors):
        return torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), (u0,))

    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    return run, [double([0.3, -0.8, 1.1]).requires_grad_(), *values]


@every_method
def test_gradcheck_passes_for_everything_at_once(method):
    assert gradcheck(*of_its_tensors(Layer(method)), fast_mode=method != "ars222")


@pytest.mark.parametrize("method", ["ars222", "sbdf2", "cnab2"])
def test_second_derivatives_of_backprop_pass_gradgradcheck(method):
    assert gradgradcheck(*of_its_tensors(Layer(method, "backprop")), fast_mode=True)


def test_gradients_reach_the_tensors_that_functional_call_puts_in_place():
    run, (u0, *values) = of_its_tensors(Layer())
    leaves = [v.detach().clone().requires_grad_() for v in values]
    found = torch.autograd.grad(run(u0, *(x.sin() for x in leaves)).square().sum(), leaves)
    run, _ = of_its_tensors(Layer(gradient="backprop"))
    expected = torch.autograd.grad(run(u0, *(x.sin() for x in leaves)).square().sum(), leaves)
    assert_equal(found, expected, 1e-12)


@every_gradient
def test_frozen_tensors_get_no_gradient_and_leave_the_others_as_they_are(gradient):
    whole = Layer(gradient=gradient)
    whole(double([0.3, -0.8, 1.1])).square().sum().backward()
    for name, _ in whole.named_parameters():
        layer = Layer(gradient=gradient)
        for other, p in layer.named_parameters():
            p.requires_grad_(other == name)
        layer(double([0.3, -0.8, 1.1])).square().sum().backward()
        for other, p in layer.named_parameters():
            if other == name:
                torch.testing.assert_close(p.grad, whole.get_parameter(name).grad, rtol=1e-12,
                                           atol=1e-14)
            else:
                assert p.grad is None


@every_gradient
def test_a_parameter_that_is_not_used_gets_none_and_the_others_what_is_theirs(gradient):
    class Spare(Forcing):
        def __init__(self):
            super().__init__()
            self.spare = nn.Parameter(double(1.0))

    f, u0 = Spare(), double([1.0, 2.0, 3.0])
    imex_odeint(None, Affine(ScaledIdentity(-1.0), f), u0, TIMES, step_size=0.1,
                gradient=gradient).sum().backward()
    assert f.spare.grad is None
    assert f.amplitude.grad is not None


def test_a_module_that_uses_none_of_its_parameters_gets_none():
    class Idle(Forcing):
        def forward(self, t):
            return t.new_ones(3)

    f, u0 = Idle(), double([1.0, 2.0, 3.0]).requires_grad_()
    imex_odeint(None, Affine(ScaledIdentity(-1.0), f), u0, TIMES, step_size=0.1).sum().backward()
    assert f.amplitude.grad is None
    assert u0.grad is not None


def test_a_module_that_is_both_forcing_and_scale_gets_the_sum():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(double(0.6))

        def forward(self, t):
            return self.weight * torch.cos(t)

    found = []
    for gradient in ("discrete", "backprop"):
        both = Both()
        result = imex_odeint(None, Affine(Dense(Manufactured.J), both, scale=both),
                             double([1.0, 2.0, 3.0]), TIMES, step_size=0.1, gradient=gradient)
        found.append(torch.autograd.grad(result.square().sum(), [both.weight]))
    assert_equal(*found, 1e-12)


@every_method
def test_gradients_in_float32_are_those_of_float64_to_rounding(method):
    layers = Layer(method), Layer(method).float()
    for layer in layers:
        u0 = layer.matrix.new_tensor([0.3, -0.8, 1.1])
        result = layer(u0)
        assert result.dtype == u0.dtype
        result.square().sum().backward()
    for low, high in zip(layers[1].parameters(), layers[0].parameters(), strict=True):
        torch.testing.assert_close(low.grad.double(), high.grad, rtol=1e-4, atol=1e-4)


def test_the_result_is_the_same_with_and_without_gradients():
    u0 = double([0.3, -0.8, 1.1])
    expected = Layer()(u0)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(Layer()(u0), expected, rtol=1e-13, atol=1e-14)
    for layer in (Layer(gradient="backprop"), Layer().requires_grad_(False)):
        torch.testing.assert_close(layer(u0), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("which", ["f", "scale"])
@pytest.mark.parametrize("method", ["ark324l2sa", "sbdf2"])
def test_a_weight_swapped_between_the_passes_changes_nothing(which, method):
    layers, u0 = (Layer(method), Layer(method)), random(2, 3)
    losses = [layer(u0).square().sum() for layer in layers]
    name = {"f": "amplitude", "scale": "weight"}[which]
    module = getattr(layers[0], which)
    old = getattr(module, name)
    new = nn.Parameter(torch.full_like(old, 7.0))
    setattr(module, name, new)
    for loss in losses:
        loss.backward()
    assert torch.equal(old.grad, getattr(getattr(layers[1], which), name).grad)
    assert new.grad is None
    assert getattr(module, name) is new
    assert torch.equal(layers[0].matrix.grad, layers[1].matrix.grad)


@pytest.mark.parametrize("name", ["f.amplitude", "f.frequency", "scale.weight", "matrix"])
def test_a_change_in_place_between_the_passes_is_an_error(name):
    layer = Layer()
    loss = layer(random(2, 3)).sum()
    with torch.no_grad():
        layer.get_parameter(name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_so_is_one_of_a_tensor_that_is_the_forcing():
    f = double([1.0, 2.0, 3.0]).requires_grad_()
    loss = imex_odeint(None, Affine(ScaledIdentity(-1.0), f), random(3), TIMES,
                       step_size=0.1).sum()
    with torch.no_grad():
        f.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Closure(nn.Module):
    """A module with a parameter, which also uses another tensor."""

    def __init__(self, use):
        super().__init__()
        self.weight, self.use = nn.Parameter(double(1.0)), [use]

    def forward(self, t):
        return self.weight * self.use[0]


def unnamed(kind):
    leaf = LEAF.clone().requires_grad_()
    made = leaf.exp()
    number = double(0.5).requires_grad_()
    linear = nn.Linear(1, 3).double()
    return {
        "leaf": lambda t: leaf * t, "leaf_itself": lambda t: leaf,
        "nonleaf": lambda t: made, "method": lambda t: linear(t.view(1)),
        "module": Closure(leaf), "scale_leaf": lambda t: number * t,
        "scale_itself": lambda t: number, "scale_module": Closure(number)}[kind]


def part_with(value, what):
    return Affine(ScaledIdentity(-1.0), value) if what == "forcing f" else Affine(
        ScaledIdentity(-1.0), scale=value)


UNNAMED = {"leaf": ("forcing f", r"\(3,\)"), "leaf_itself": ("forcing f", r"\(3,\)"),
           "nonleaf": ("forcing f", r"\(3,\)"), "method": ("forcing f", r"\(3(, 1)?,?\)"),
           "module": ("forcing f", r"\(3,\)"), "scale_leaf": ("scale", r"\(\)"),
           "scale_itself": ("scale", r"\(\)"), "scale_module": ("scale", r"\(\)")}


MESSAGE = ("Expected the {} to use only its own parameters .got another tensor of shape {} that "
           r"requires a gradient, which would be lost.; make it a torch\.nn\.Module")


@pytest.mark.parametrize("kind", UNNAMED)
@pytest.mark.parametrize("requires_grad", [True, False], ids=["with_gradient", "nothing_else"])
@every_gradient
def test_a_tensor_that_nobody_named_is_refused_before_any_work(kind, requires_grad, gradient):
    def fails(t, u):
        raise AssertionError

    what, shape = UNNAMED[kind]
    u0 = double([1.0, 2.0, 3.0]).requires_grad_(requires_grad)
    with pytest.raises(ValueError, match=MESSAGE.format(what, shape)):
        imex_odeint(fails, part_with(unnamed(kind), what), u0, TIMES, step_size=0.1,
                    gradient=gradient)


@pytest.mark.parametrize("kind", UNNAMED)
@pytest.mark.parametrize("method", ["ars222", "ark324l2sa", "cnab2"])
def test_a_tensor_used_only_later_is_refused_in_the_backward_pass(kind, method):
    what, shape = UNNAMED[kind]
    early, late = LEAF if what == "forcing f" else double(1.0), unnamed(kind)

    class Later(nn.Module):
        def forward(self, t):
            return late(t) if t > 0.6 else early

    for value in (Later(), lambda t: late(t) if t > 0.6 else early):
        u0 = double([1.0, 2.0, 3.0]).requires_grad_()
        result = imex_odeint(None, part_with(value, what), u0, TIMES, step_size=0.1, method=method)
        with pytest.raises(ValueError, match=MESSAGE.format(what, shape)):
            result.sum().backward()
        assert u0.grad is None


def test_a_frozen_tensor_need_not_be_named():
    u0 = double([1.0, 2.0, 3.0]).requires_grad_()
    part = Affine(ScaledIdentity(-1.0), lambda t: LEAF * t, scale=lambda t: LEAF[0])
    imex_odeint(None, part, u0, TIMES, step_size=0.01).sum().backward()
    torch.testing.assert_close(u0.grad, 1 + torch.exp(0.3 - TIMES[1:]).sum().expand(3), rtol=1e-5,
                               atol=0.0)


def test_foreign_leaf_finds_the_leaf_that_is_not_among_the_named():
    a, b, c = (double([1.0]).requires_grad_() for _ in range(3))
    assert foreign_leaf(a, [a]) is None
    assert foreign_leaf(a, [b]) is a
    assert foreign_leaf(a.exp(), [a]) is None
    assert foreign_leaf(a.exp() * b, [a]) is b
    assert foreign_leaf((a * b + a.exp()) * c, [a, b, c]) is None
    assert foreign_leaf((a * b + a.exp()) * c, [a, b]) is c
    assert foreign_leaf(a.detach(), []) is None
    assert foreign_leaf((a * b).detach() * c, [c]) is None
    with torch.no_grad():
        assert foreign_leaf(a * b, []) is None
