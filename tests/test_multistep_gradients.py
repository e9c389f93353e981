"""Are gradients of multistep schemes exact, and bad coefficients refused?"""

import copy
import dataclasses
import functools
import math
import pickle

import pytest
import torch
from affine_cases import Scale
from cases import double, slope, times
from multistep_cases import Manufactured, every_method, every_scheme
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode import SINODEConv, imex_odeint, operators, solvers, terms
from pyg_sinode.schemes import (
    ALIASES,
    MULTISTEP,
    RUNGE_KUTTA,
    IMEXMultistep,
    IMEXTableau,
    get_scheme,
)
from pyg_sinode.schemes.multistep import CNAB2, SBDF2, SBDF4
from pyg_sinode.schemes.runge_kutta import ARS222, ARS443


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


TIMES = torch.linspace(0.3, 1.5, 7, dtype=torch.float64)  # six steps, or twelve


class Rate(nn.Module):
    """A nonlinear, coupled, time-dependent term with a parameter and an argument."""

    def __init__(self, width=3):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width, dtype=torch.float64))

    def forward(self, t, u, scale):
        return torch.sin(self.weight * u.roll(1, -1) + t) - scale * u * u


IMPLICIT = {
    "dense": lambda leaves: operators.Dense(leaves[0]),
    "affine": lambda leaves: terms.Affine(
        operators.Dense(leaves[0]), leaves[1], scale=leaves[2]),
    "none": lambda leaves: None,
}


def leaves_of(kind):
    torch.manual_seed(5)
    matrix = (0.4 * random(3, 3) - torch.eye(3, dtype=torch.float64)).requires_grad_()
    if kind == "affine":
        return [matrix, random(3).requires_grad_(), Scale()]
    return [matrix]


def gradients(method, kind="dense", step_size=0.1, explicit=True, wanted=None, times=TIMES,
              **kwargs):
    """Result and gradients of everything, for a loss on every output."""
    leaves, rate = leaves_of(kind), Rate()
    u0, scale = random(2, 3).requires_grad_(), double(0.3).requires_grad_()
    weights = random(len(times), 2, 3)
    result, stats = imex_odeint(rate if explicit else None, IMPLICIT[kind](leaves), u0, times,
                                method=method, step_size=step_size, return_stats=True,
                                args=(scale,) if explicit else (), **kwargs)
    of = [u0, *((rate.weight, scale) if explicit else ())]
    of += [] if kind == "none" else [x.weight if isinstance(x, nn.Module) else x for x in leaves]
    return result.detach(), torch.autograd.grad((weights * result).sum(), of), stats


def assert_equal(found, expected, tolerance):
    """Each tensor agrees relative to the largest entry of the expected one."""
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        size = float(b.abs().max())
        assert a.shape == b.shape
        assert size > 1e-3, i
        assert float((a - b).abs().max()) / size <= tolerance, i


@every_method
@pytest.mark.parametrize("kind", IMPLICIT)
@pytest.mark.parametrize("step_size", [0.1, 0.2], ids=["two_steps_an_output", "one"])
def test_the_discrete_gradient_is_that_of_backprop(method, kind, step_size):
    found = gradients(method, kind, step_size)
    expected = gradients(method, kind, step_size, gradient="backprop")
    assert torch.equal(found[0], expected[0])
    assert_equal(found[1], expected[1], 1e-12)


@every_method
@pytest.mark.parametrize("kind", ["dense", "affine"])
def test_the_discrete_gradient_without_an_explicit_term_is_that_of_backprop(method, kind):
    found = gradients(method, kind, explicit=False)
    expected = gradients(method, kind, explicit=False, gradient="backprop")
    assert_equal(found[1], expected[1], 1e-12)


@every_method
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_the_gradient_of_the_first_few_steps_is_that_of_backprop(method, steps):
    t = TIMES[:steps + 1]
    found, expected = (gradients(method, "affine", 0.2, times=t, gradient=g)[1]
                       for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-12)


@every_method
@pytest.mark.parametrize("output", range(7))
def test_a_loss_on_one_output_alone_has_the_gradient_of_backprop(method, output):
    found = []
    for gradient in ("discrete", "backprop"):
        (matrix,), rate, u0 = leaves_of("dense"), Rate(), random(2, 3).requires_grad_()
        result = imex_odeint(rate, operators.Dense(matrix), u0, TIMES, method=method,
                             step_size=0.2, args=(0.3,), gradient=gradient)
        of = [u0, matrix, rate.weight] if output else [u0]
        found.append(torch.autograd.grad(result[output].square().sum(), of))
    assert_equal(*found, 1e-12)


@every_method
def test_the_gradient_against_time_is_that_of_backprop(method):
    t = TIMES.flip(0)
    found, expected = (gradients(method, "affine", times=t, gradient=g)[1]
                       for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-12)


@every_method
@pytest.mark.parametrize("solver", [solvers.GMRES(rtol=1e-14), solvers.Direct()],
                         ids=["gmres", "direct"])
def test_other_solvers_give_the_same_gradient(method, solver):
    found = gradients(method, solver=solver)
    assert_equal(found[1], gradients(method)[1], 1e-11)


def in_arguments(method, gradient="discrete"):
    """An integration as a function of everything."""
    def run(u0, weight, scale, matrix):
        return imex_odeint(lambda t, u, w, s: torch.sin(w * u.roll(1, -1) + t) - s * u * u,
                           operators.Dense(matrix), u0, TIMES[:5], method=method, step_size=0.2,
                           args=(weight, scale), gradient=gradient)

    torch.manual_seed(2)
    inputs = random(2), random(2), double(0.3), 0.5 * random(2, 2)
    return run, [x.requires_grad_() for x in inputs]


@every_method
@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_gradcheck_passes(method, gradient):
    run, inputs = in_arguments(method, gradient)
    assert gradcheck(run, inputs)


@pytest.mark.parametrize("method", ["sbdf2", "cnab2"])
def test_second_derivatives_of_backprop_pass_gradgradcheck(method):
    run, inputs = in_arguments(method, "backprop")
    assert gradgradcheck(run, inputs)


def test_a_second_derivative_of_the_discrete_mode_raises():
    run, inputs = in_arguments("sbdf2")
    (first,) = torch.autograd.grad(run(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match='use gradient="backprop" for second'):
        torch.autograd.grad(first.sum(), inputs[0])


@functools.cache
def without_checkpoints(method, kind):
    return gradients(method, kind)


@every_method
@pytest.mark.parametrize("kind", IMPLICIT)
@pytest.mark.parametrize("checkpoints", [1, 2, 3, "auto"])
def test_checkpoints_give_the_gradient_to_the_last_bit(method, kind, checkpoints):
    result, found, stats = gradients(method, kind, checkpoints=checkpoints)
    expected = without_checkpoints(method, kind)
    assert torch.equal(result, expected[0])
    assert all(map(torch.equal, found, expected[1]))
    assert stats.steps_recomputed > 0


@every_method
def test_checkpoints_repeat_the_random_numbers_of_the_explicit_term(method):
    class Dropout(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3, dtype=torch.float64)

        def forward(self, t, u):
            return nn.functional.dropout(torch.sin(self.linear(u)), 0.5)

    module, u0, found = Dropout(), random(4, 3), []
    for kwargs in ({"gradient": "backprop"}, {}, {"checkpoints": 2}):
        torch.manual_seed(3)
        result = imex_odeint(module, operators.ScaledIdentity(-0.5), u0, TIMES, method=method,
                             step_size=0.1, **kwargs)
        found.append(torch.autograd.grad(result.square().sum(), list(module.parameters())))
    assert_equal(found[1], found[0], 1e-12)
    assert all(map(torch.equal, found[2], found[1]))


@every_method
def test_what_needs_no_gradient_gets_none(method):
    u0, rate = random(2, 3).requires_grad_(), Rate().requires_grad_(False)
    matrix = -torch.eye(3, dtype=torch.float64)
    imex_odeint(rate, operators.Dense(matrix), u0, TIMES, method=method, step_size=0.2,
                args=(0.3,)).sum().backward()
    assert u0.grad is not None
    assert rate.weight.grad is None
    assert matrix.grad is None


@every_method
def test_gradients_in_float32_are_those_of_float64_to_rounding(method):
    run, inputs = in_arguments(method)
    expected = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    low = [x.detach().float().requires_grad_() for x in inputs]
    result = run(*low)
    assert result.dtype == torch.float32
    found = torch.autograd.grad(result.square().sum(), low)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@every_scheme
def test_a_stiff_forcing_in_an_affine_part_is_followed(scheme):
    part = terms.Affine(operators.ScaledIdentity(-1e6), lambda t: 1e6 * torch.cos(t))
    t = torch.linspace(0, 10, 101, dtype=torch.float64)
    result = imex_odeint(None, part, double([1.0]), t, method=scheme, step_size=0.1)
    torch.testing.assert_close(result[:, 0], torch.cos(t), rtol=0.0, atol=1e-2)


@every_scheme
def test_every_value_of_a_scale_is_a_set_up_and_a_constant_one_is_not(scheme):
    J = operators.Dense(Manufactured.J)
    found = []
    for scale in (lambda t: 2.0, lambda t: 1.0 + t):
        _, stats = imex_odeint(None, terms.Affine(J, scale=scale), double([1.0, 2.0, 3.0]),
                               times(0, 1), method=scheme, step_size=0.05, return_stats=True)
        found.append(stats.factorizations)
    assert found[0] == 2
    assert found[1] > 15


EDGES = torch.tensor([[0, 1, 2, 3, 0, 2, 1], [1, 2, 3, 0, 2, 0, 3]])


@every_method
@pytest.mark.parametrize("implicit", ["decay", "laplacian", "attention"])
def test_a_layer_runs_forward_and_backward_and_its_gradient_is_that_of_backprop(method, implicit):
    found = []
    for gradient in ("discrete", "backprop"):
        torch.manual_seed(4)
        layer = SINODEConv(3, 3, method=method, implicit=implicit, time=2.0, step_size=0.25,
                           gradient=gradient, solver=solvers.Direct()).double()
        x = random(4, 3).requires_grad_()
        out = layer(x, EDGES)
        assert out.shape == (4, 3)
        out.square().sum().backward()
        found.append([x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)])
        assert layer.stats.steps_accepted == 8
    assert len(found[0]) > 3
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every_method
def test_a_layer_in_float32_agrees_with_a_runge_kutta_scheme(method):
    results = []
    for chosen in (method, "ark436l2sa"):
        torch.manual_seed(4)
        layer = SINODEConv(3, 3, method=chosen, time=1.0, step_size=0.05)
        results.append(layer(torch.randn(4, 3), EDGES))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_a_layer_refuses_a_method_that_is_none():
    with pytest.raises(ValueError, match=r"\(got 'sbdf7'\); use .*sbdf2, sbdf3, sbdf4, cnab2"):
        SINODEConv(3, 3, method="sbdf7")


@every_scheme
def test_coefficients_are_scaled_so_that_the_first_is_1(scheme):
    assert scheme.a[0] == 1.0
    assert len(scheme.a) == len(scheme.b) + 1 == scheme.steps + 1
    thrice = dataclasses.replace(scheme, **{
        field: [3 * x for x in getattr(scheme, field)] for field in "abc"})
    for field in "abc":
        assert isinstance(getattr(thrice, field), tuple)
        assert getattr(thrice, field) == pytest.approx(getattr(scheme, field), rel=1e-15)


def test_the_coefficients_are_the_published_ones():
    assert SBDF2.a == pytest.approx((1, -4 / 3, 1 / 3))
    assert SBDF2.b == pytest.approx((4 / 3, -2 / 3))
    assert SBDF2.c == pytest.approx((2 / 3, 0))
    assert (CNAB2.a, CNAB2.b, CNAB2.c) == ((1, -1, 0), (1.5, -0.5), (0.5, 0.5))
    assert [x * 25 / 12 for x in SBDF4.a] == pytest.approx([25 / 12, -4, 3, -4 / 3, 1 / 4])
    assert [x * 25 / 12 for x in SBDF4.b] == pytest.approx([4, -6, 4, -1])
    assert {name: (s.steps, s.order, s.start.name) for name, s in MULTISTEP.items()} == {
        "sbdf2": (2, 2, "ars222"), "sbdf3": (3, 3, "ars443"), "sbdf4": (4, 4, "ark436l2sa"),
        "cnab2": (2, 2, "ars222")}


@every_scheme
def test_a_scheme_cannot_be_changed_and_says_where_it_comes_from(scheme):
    for field in ("order", "a", "start"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(scheme, field, 7)
    assert "doi:10." in scheme.reference
    assert MULTISTEP[scheme.name] is scheme


@every_scheme
def test_a_copied_or_pickled_scheme_integrates_the_same(scheme):
    expected = Manufactured().run(scheme, times(0, 1), step_size=0.1)
    for twin in (copy.copy(scheme), copy.deepcopy(scheme), pickle.loads(pickle.dumps(scheme)),
                 dataclasses.replace(scheme, name="mine")):
        for field in ("order", "a", "b", "c", "reference"):
            assert getattr(twin, field) == getattr(scheme, field)
        assert torch.equal(Manufactured().run(twin, times(0, 1), step_size=0.1), expected)


@every_scheme
def test_a_name_is_as_good_as_the_scheme(scheme):
    expected = Manufactured().run(scheme, times(0, 1), step_size=0.1)
    assert torch.equal(Manufactured().run(scheme.name, times(0, 1), step_size=0.1), expected)


def test_get_scheme_finds_names_and_aliases_and_hands_schemes_back():
    for name, scheme in {**MULTISTEP, **RUNGE_KUTTA}.items():
        assert get_scheme(name) is scheme
        assert get_scheme(scheme) is scheme
    for alias, name in ALIASES.items():
        assert get_scheme(alias) is RUNGE_KUTTA[name]


def test_an_unknown_name_is_refused_with_all_known_ones():
    message = r"an IMEXMultistep or an ExponentialTableau \(got 'bdf2'\); use imex_euler"
    with pytest.raises(ValueError, match=message) as raised:
        get_scheme("bdf2")
    assert all(name in str(raised.value) for name in (*RUNGE_KUTTA, *ALIASES, *MULTISTEP))


@pytest.mark.parametrize("method", [4, None, ["sbdf2"], IMEXMultistep])
def test_something_else_than_a_name_is_refused(method):
    with pytest.raises(TypeError, match="scheme's name, an IMEXTableau, an IMEXMultistep or an"):
        get_scheme(method)


GIVEN = {"name": "mine", "order": 2, "a": (3 / 2, -2, 1 / 2), "b": (2, -1), "c": (1, 0),
         "start": ARS222}


LENGTHS = r"s \+ 1 numbers a, s numbers b, 2 numbers c, and s of at least 2 "
LATE = IMEXTableau("late", 2, [[0, 0], [1, 0]], [[0.5, 0], [0, 0.5]], [0.5, 0.5], [0.5, 0.5])
IDLE = IMEXTableau("idle", 2, [[0, 0, 0], [0, 0, 0], [0, 1, 0]],
                   [[0, 0, 0], [0, 0.5, 0], [0, 0, 0.5]], [0, 0.5, 0.5], [0, 0.5, 0.5])


def test_the_scheme_that_the_wrong_ones_differ_from_is_right():
    scheme = IMEXMultistep(**GIVEN)
    assert (scheme.a, scheme.b, scheme.c) == (SBDF2.a, SBDF2.b, SBDF2.c)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"a": (1, -1)}, LENGTHS + r"\(got 2, 2 and 2\)"),
    ({"a": (1, -1), "b": (1,)}, LENGTHS + r"\(got 2, 1 and 2\)"),
    ({"b": (2, -1, 0)}, LENGTHS + r"\(got 3, 3 and 2\)"),
    ({"c": (1,)}, LENGTHS + r"\(got 3, 2 and 1\)"),
    ({"c": (1, 0, 0)}, LENGTHS + r"\(got 3, 2 and 3\)"),
    ({"a": (0, -2, 1 / 2)}, r"positive a\[0\] and c\[0\] \(got 0 and 1\)"),
    ({"a": (-3 / 2, 2, -1 / 2), "b": (-2, 1), "c": (-1, 0)},
     r"positive a\[0\] and c\[0\] \(got -1.5 and -1\)"),
    ({"c": (0, 1)}, r"positive a\[0\] and c\[0\] \(got 1.5 and 0\)"),
    ({"a": (math.nan, -2, 1 / 2)}, r"positive a\[0\] and c\[0\] \(got nan and 1\)"),
    ({"a": (3 / 2, -2, 1)}, r"order 2 \(got defects of .* and .* for t\^0\); correct"),
    ({"a": (math.inf, -2, 1 / 2)}, r"order 2 \(got defects of nan and nan for t\^0\)"),
    ({"b": (1, 0)}, r"order 2 \(got defects of 1.3e\+00 and 0.0e\+00 for t\^2\); correct"),
    ({"c": (1 / 2, 1 / 2)}, r"order 2 \(got defects of .* for t\^2\)"),
    ({"b": (2, -1 + 1e-9)}, r"order 2 \(got defects of .* for t\^1\); .* state a lower order"),
    ({"c": (1, 1e-9)}, r"order 2 \(got defects of .* for t\^1\)"),
    ({"b": (2, math.nan)}, r"order 2 \(got defects of nan and .* for t\^1\)"),
    ({"c": (1, math.nan)}, r"order 2 \(got defects of .* and nan for t\^1\)"),
    ({"order": 3, "start": ARS443}, r"order 3 \(got defects of .* for t\^3\)"),
    ({"start": ARS443}, r"a start of order 2 whose first stage is the state itself \(got IMEXTabl"),
    ({"start": RUNGE_KUTTA["ssp222"]}, r"a start .* the state itself \(got IMEXTableau\(ssp222"),
    ({"start": LATE}, r"a start .* the state itself \(got IMEXTableau\(late"),
    ({"start": IDLE}, r"a start .* the state itself \(got IMEXTableau\(idle"),
])
def test_what_is_no_such_scheme_is_refused_with_its_name(wrong, message):
    with pytest.raises(ValueError, match="IMEXMultistep 'mine' expects " + message):
        IMEXMultistep(**{**GIVEN, **wrong})


@every_scheme
@pytest.mark.parametrize("field", ["a", "b", "c"])
def test_one_wrong_digit_in_any_coefficient_is_refused(scheme, field):
    for i in range(len(getattr(scheme, field))):
        values = list(getattr(scheme, field))
        values[i] += 1e-9
        with pytest.raises(ValueError, match=rf"{scheme.name!r} expects order {scheme.order} "):
            dataclasses.replace(scheme, **{field: values})


@every_scheme
def test_a_scheme_that_claims_one_order_more_is_refused(scheme):
    with pytest.raises(ValueError, match=f"expects order {scheme.order + 1} "):
        dataclasses.replace(scheme, order=scheme.order + 1)


# BDF2 and CNAB mixed half and half, and a scheme of order 5.
MIXED = IMEXMultistep("mixed", 2, (5 / 4, -3 / 2, 1 / 4), (7 / 4, -3 / 4), (3 / 4, 1 / 4),
                      RUNGE_KUTTA["ark232"])


SBDF5 = IMEXMultistep("sbdf5", 5, (137 / 60, -5, 5, -10 / 3, 5 / 4, -1 / 5), (5, -10, 10, -5, 1),
                      (1, 0), RUNGE_KUTTA["ark548l2sa"])


@pytest.mark.parametrize("scheme", [MIXED, SBDF5], ids=["mixed", "sbdf5"])
def test_a_scheme_of_ones_own_reaches_its_order_and_has_the_gradient_of_backprop(scheme):
    errors = [Manufactured().error(scheme, n) for n in (40, 80, 160)]
    assert slope([40, 80, 160], errors) == pytest.approx(scheme.order, abs=0.25)
    found, expected = (gradients(scheme, "affine", gradient=g)[1] for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-12)
