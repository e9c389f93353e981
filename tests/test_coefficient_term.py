"""Is G on Fourier coefficients the same term, with the same gradients, and used where it may be?"""

import pickle

import pytest
import torch
from grid_cases import F64
from torch import nn
from torch.autograd import gradcheck

from pyg_sinode import ExplicitTermError, grid, imex_odeint, operators
from pyg_sinode.grid import Advection, PeriodicGrid
from pyg_sinode.schemes import EXPONENTIAL

LINE, ODD = PeriodicGrid(16, 6.0), PeriodicGrid(15, 6.0)
PLANE = PeriodicGrid((9, 12), (6.0, 7.0))
EQUATIONS = {
    "kuramoto_sivashinsky": grid.kuramoto_sivashinsky(LINE),
    "kuramoto_sivashinsky, odd": grid.kuramoto_sivashinsky(ODD),
    "finite differences": grid.viscous_burgers(LINE, 0.1, discretization="finite_difference"),
    "viscous_burgers": grid.viscous_burgers(ODD, 0.1),
    "korteweg_de_vries": grid.korteweg_de_vries(LINE), "fisher_kpp": grid.fisher_kpp(LINE),
    "swift_hohenberg": grid.swift_hohenberg(PLANE, 0.1),
    "allen_cahn": grid.allen_cahn(PLANE, 0.1), "cahn_hilliard": grid.cahn_hilliard(PLANE, 0.3),
    "height": grid.kuramoto_sivashinsky_height(PLANE),
    "vector_burgers": grid.vector_burgers(PLANE, 0.1), "gray_scott": grid.gray_scott(PLANE),
    "navier_stokes": grid.navier_stokes(PLANE, 0.1, forcing=2),
    "volume": grid.allen_cahn(PeriodicGrid((4, 5, 6), (6.0, 6.0, 6.0)), 0.1),
}
every_equation = pytest.mark.parametrize("name", EQUATIONS)
TIMES = torch.tensor([0.0, 0.05, 0.1], dtype=F64)


def state(name, dtype=F64):
    torch.manual_seed(2)
    fields = (2,) if name in ("vector_burgers", "gray_scott") else ()
    return 0.4 * torch.randn(3, *fields, *EQUATIONS[name].explicit.grid.shape, dtype=F64).to(dtype)


class OnStates(nn.Module):
    """The same term as a module that has no other form."""

    def __init__(self, term):
        super().__init__()
        self.term = term

    def forward(self, t, u):
        return self.term(t, u)


def run(G, J, u0, leaves=(), **options):
    """The states, and the gradients at u0 and at the leaves."""
    u0 = u0.clone().requires_grad_()
    options = {"method": "etdrk4", "step_size": 0.01} | options
    u = imex_odeint(G, J, u0, TIMES.to(u0.dtype), **options)
    w = torch.linspace(-1, 1, u.numel(), dtype=u.dtype).view(u.shape)
    return u.detach(), torch.autograd.grad((u * w).sum(), [u0, *leaves])


def assert_close(found, expected, bound):
    assert float((found - expected).abs().max()) <= bound * float(expected.abs().max())


@pytest.mark.parametrize(("dtype", "bound"), [(F64, 1e-14), (torch.float32, 1e-5)])
@every_equation
def test_the_coefficients_of_a_term_are_those_of_its_value(name, dtype, bound):
    G, u = EQUATIONS[name].explicit, state(name, dtype)
    dims = G.grid.dims
    found = G.of_coefficients(0.0, torch.fft.rfftn(u, dim=dims))
    expected = torch.fft.rfftn(G(0.0, u), dim=dims)
    assert found.dtype == expected.dtype
    assert_close(found, expected, bound)


@every_equation
def test_states_and_gradients_are_those_of_the_term_on_states(name, monkeypatch):
    G, J, *_ = EQUATIONS[name]
    expected = run(OnStates(G), J, state(name))
    calls = []
    monkeypatch.setattr(torch.fft, "rfftn", counted(torch.fft.rfftn, calls))
    found = run(G, J, state(name))
    inside = len(calls)
    calls.clear()
    run(OnStates(G), J, state(name))
    assert inside < len(calls)
    assert_close(found[0], expected[0], 1e-13)
    assert_close(found[1][0], expected[1][0], 1e-12)


def counted(function, calls):
    def wrapped(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("method", EXPONENTIAL)
@pytest.mark.parametrize("name", ["kuramoto_sivashinsky", "gray_scott"])
def test_the_gradient_is_the_same_to_the_last_bit_whatever_is_kept(name, method):
    G, J, *_ = EQUATIONS[name]
    expected = run(G, J, state(name), method=method)
    with torch.no_grad():
        plain = imex_odeint(G, J, state(name), TIMES, method=method, step_size=0.01)
    assert torch.equal(plain, expected[0])
    for options in ({"graph_memory": 0}, {"checkpoints": 2}, {"checkpoints": "auto"}):
        found = run(G, J, state(name), method=method, **options)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1][0], expected[1][0]), options
    plain = run(G, J, state(name), method=method, gradient="backprop")
    assert_close(expected[1][0], plain[1][0], 1e-12)


@pytest.mark.parametrize("name", ["kuramoto_sivashinsky", "navier_stokes"])
def test_adaptive_steps_are_those_of_the_term_on_states(name):
    G, J, *_ = EQUATIONS[name]
    options = {"method": "etdrk4s", "step_size": None, "rtol": 1e-5, "atol": 1e-6}
    found = run(G, J, state(name), **options)
    expected = run(OnStates(G), J, state(name), **options)
    assert_close(found[0], expected[0], 1e-11)
    assert_close(found[1][0], expected[1][0], 1e-10)


# Terms of the user's


class Stirred(nn.Module):
    """A trained term that depends on time: a(t) w * u^2 / 2, in both forms."""

    def __init__(self, of):
        super().__init__()
        self.grid, self.calls = of, []
        self.weight = nn.Parameter(torch.linspace(-1, 1, of.shape[0], dtype=F64))

    def forward(self, t, u):
        self.calls.append("states")
        return torch.cos(5 * t) * self.weight * u * u / 2

    def of_coefficients(self, t, c):
        self.calls.append("coefficients")
        assert t.dtype == F64
        u = torch.fft.irfft(c, self.grid.shape[0])
        return torch.fft.rfft(torch.cos(5 * t) * self.weight * u * u / 2)


class Overridden(Stirred):
    """A subclass that changes the term and does not say what it is on coefficients."""

    def forward(self, t, u):
        return 2 * super().forward(t, u)


def symbol_of(of):
    """The symbol of a diffusion, trained."""
    return torch.tensor(-(of.wavenumbers() ** 2)).mul(0.3).requires_grad_()


@pytest.mark.parametrize("method", ["etdrk2", "etdrk4s", "lawson4"])
@pytest.mark.parametrize("of", [LINE, ODD], ids=["even", "odd"])
def test_gradients_reach_the_parameters_of_the_term_and_of_j(of, method):
    G, symbol = Stirred(of), symbol_of(of)
    u0, leaves = torch.sin(of.points) + 0.1, [G.weight, symbol]
    found = run(G, operators.Circulant.from_symbol(symbol), u0, leaves, method=method)
    assert set(G.calls) == {"coefficients"}
    G.calls.clear()
    G.grid = None
    expected = run(G, operators.Circulant.from_symbol(symbol), u0, leaves, method=method)
    assert set(G.calls) == {"states"}
    assert_close(found[0], expected[0], 1e-13)
    for a, b in zip(found[1], expected[1], strict=True):
        assert_close(a, b, 1e-11)


def test_the_gradient_is_that_of_finite_differences():
    G, symbol = Stirred(ODD), symbol_of(ODD)

    def end(u0, symbol):
        J = operators.Circulant.from_symbol((symbol + symbol.flip(0).roll(1)) / 2)
        return imex_odeint(G, J, u0, TIMES[:2], method="etdrk4", step_size=0.025)[-1]

    u0 = torch.sin(ODD.points).requires_grad_()
    assert gradcheck(end, (u0, symbol), fast_mode=True)
    assert set(G.calls) == {"coefficients"}


def calls_of(G, J, u0, **options):
    G.calls.clear()
    imex_odeint(G, J, u0, TIMES, **({"method": "etdrk4", "step_size": 0.05} | options))
    return set(G.calls)


def test_it_is_used_where_the_term_is_its_own_and_the_grid_that_of_j():
    G, J, u0 = Stirred(LINE), LINE.derivative(2), torch.sin(LINE.points)
    assert calls_of(G, J, u0) == {"coefficients"}
    assert calls_of(G, J, u0, method="ark436l2sa") == {"states"}
    assert calls_of(G, None, u0) == {"states"}
    assert calls_of(G, operators.Dense(torch.eye(16, dtype=F64)), u0) == {"states"}
    square = u0.expand(16, 16).clone()
    assert calls_of(G, operators.Circulant([1.0, -2.0, 1.0], dim=-2), square) == {"states"}
    assert calls_of(Overridden(LINE), J, u0) == {"states"}
    assert calls_of(G, J, u0[None][:0]) == {"states"}  # no state at all


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_a_term_are_called(kind):
    G, seen = Stirred(LINE), []
    handle = getattr(G, kind)(lambda *_: seen.append(1))
    assert calls_of(G, LINE.derivative(2), torch.sin(LINE.points)) == {"states"}
    assert seen
    handle.remove()
    assert calls_of(G, LINE.derivative(2), torch.sin(LINE.points)) == {"coefficients"}
    outer = Advection(LINE)
    outer.spectral.register_forward_hook(lambda *_: seen.append(2))
    imex_odeint(outer, LINE.derivative(2), torch.sin(LINE.points), TIMES, method="etd1",
                step_size=0.05)
    assert 2 in seen


def test_a_forward_that_was_replaced_is_called():
    G = Stirred(LINE)
    G.forward = lambda t, u: 0 * u
    u = imex_odeint(G, LINE.derivative(2), torch.sin(LINE.points), TIMES, method="etd1",
                    step_size=0.05)
    expected = imex_odeint(None, LINE.derivative(2), torch.sin(LINE.points), TIMES, method="etd1",
                           step_size=0.05)
    assert torch.equal(u, expected)


def test_further_arguments_leave_the_term_on_states():
    class Scaled(Stirred):
        def forward(self, t, u, scale):
            self.calls.append("states")
            return scale * u

        def of_coefficients(self, t, c):
            raise AssertionError

    assert calls_of(Scaled(LINE), LINE.derivative(2), torch.sin(LINE.points),
                    args=(torch.tensor(0.5),)) == {"states"}


def test_a_wrong_form_on_coefficients_is_refused():
    class Wrong(Stirred):
        def forward(self, t, u):
            return u

        def of_coefficients(self, t, c):
            return torch.fft.irfft(c, 16)

    with pytest.raises(ExplicitTermError, match="state in of_coefficients, "):
        calls_of(Wrong(LINE), LINE.derivative(2), torch.sin(LINE.points))


@pytest.mark.parametrize(("name", "message"), [
    ("gray_scott", r"two species, .* \(got \(3, 9, 12\)\)"),
    ("vector_burgers", r"velocity of 2 components, .* \(got \(3, 9, 12\)\)")])
def test_a_state_of_another_shape_is_refused_in_its_own_terms(name, message):
    G = EQUATIONS[name].explicit
    with pytest.raises(ValueError, match=message):
        imex_odeint(G, PLANE.laplacian(), torch.zeros(3, *PLANE.shape, dtype=F64), TIMES,
                    method="etdrk4", step_size=0.05)


# What is not as it should be stays right


class Modes(nn.Module):
    """A layer that multiplies modes, whose result on coefficients is not that of a real field."""

    def __init__(self, of, weight):
        super().__init__()
        self.grid, self.weight = of, nn.Parameter(weight)

    def forward(self, t, u):
        dims = self.grid.dims
        c = self.of_coefficients(t, torch.fft.rfftn(u, dim=dims))
        return torch.fft.irfftn(c, s=self.grid.shape, dim=dims)

    def of_coefficients(self, t, c):
        return self.weight * c


@pytest.mark.parametrize("method", ["etd1", "etdrk4"])
@pytest.mark.parametrize("of", [LINE, PeriodicGrid((4, 6), (6.0, 7.0))], ids=["line", "plane"])
def test_coefficients_of_no_real_field_act_as_on_states(of, method):
    torch.manual_seed(5)
    u0 = 1 + torch.randn(of.shape, dtype=F64)
    G = Modes(of, torch.randn(torch.fft.rfftn(u0).shape, dtype=torch.complex128))
    options = {"leaves": [G.weight], "method": method}
    found = run(G, of.laplacian(), u0, **options)
    expected = run(OnStates(G), of.laplacian(), u0, **options)
    assert_close(found[0], expected[0], 1e-13)
    for a, b in zip(found[1], expected[1], strict=True):
        assert_close(a, b, 1e-11)


class Doubled(grid.Polynomial):
    """A polynomial whose subclass changes it on states only."""

    def forward(self, t, u):
        return 2 * super().forward(t, u)


class Called(grid.Polynomial):
    """A polynomial whose call is changed."""

    def __call__(self, t, u):
        return 2 * super().__call__(t, u)


def within(module):
    """The advection with another module for its polynomial."""
    outer = Advection(LINE)
    outer.spectral = module
    return outer


@pytest.mark.parametrize("make", [
    lambda: Doubled(LINE, {2: 1.0}), lambda: Called(LINE, {2: 1.0}),
    lambda: within(Doubled(LINE, {2: 1.0})), lambda: within(Called(LINE, {2: 1.0})),
    lambda: within(OnlyState())])
def test_a_term_that_was_changed_in_part_is_the_changed_one(make):
    G, u0 = make(), torch.sin(LINE.points)
    assert_close(run(G, LINE.derivative(2), u0)[0],
                 run(OnStates(G), LINE.derivative(2), u0)[0], 1e-13)


class OnlyState(nn.Module):
    """A module of the state, or of time and state."""

    def forward(self, *arguments):
        return arguments[-1] ** 2


def test_something_else_by_the_name_of_a_grid_leaves_the_term_on_states():
    for other in (LINE.points, "16 points", (16,), None):
        G = Stirred(LINE)
        G.grid = other
        assert calls_of(G, LINE.derivative(2), torch.sin(LINE.points)) == {"states"}


class InTurn(Stirred):
    """A term that writes its values into memory of its own, six times in turn."""

    def __init__(self, of):
        super().__init__(of)
        self.memory = [torch.zeros(of.shape[0] // 2 + 1, dtype=torch.complex128) for _ in range(6)]

    def forward(self, t, u):
        return torch.sin(u)

    def of_coefficients(self, t, c):
        self.memory = [*self.memory[1:], self.memory[0]]
        with torch.no_grad():
            self.memory[0].copy_(torch.fft.rfft(torch.sin(torch.fft.irfft(c, self.grid.shape[0]))))
        return self.memory[0]


def test_memory_that_a_term_uses_again_does_not_change_the_gradient_of_j():
    G, symbol, u0 = InTurn(LINE), symbol_of(LINE), torch.cos(LINE.points)
    found = run(G, operators.Circulant.from_symbol(symbol), u0, [symbol])
    expected = run(lambda t, u: torch.sin(u).detach(), operators.Circulant.from_symbol(symbol), u0,
                   [symbol])
    assert_close(found[1][1], expected[1][1], 1e-12)


@pytest.mark.parametrize("degree", [1, 4, 5, 40])
def test_powers_of_any_degree_are_those_on_states_in_float32(degree):
    G = grid.Polynomial(PeriodicGrid(12, 6.0), {degree: -1.0})
    u0 = torch.linspace(-1, 1, 12).cos()
    c = G.of_coefficients(0.0, torch.fft.rfft(u0))
    assert_close(c, torch.fft.rfft(G(0.0, u0)), 1e-5)


def test_a_polynomial_that_an_earlier_version_pickled_has_a_form_on_coefficients():
    G, u0 = Advection(LINE), torch.sin(LINE.points)
    expected = run(G, LINE.derivative(2), u0)[0]
    del G.spectral.short, G.spectral.grid
    again = pickle.loads(pickle.dumps(G))
    assert_close(run(again, LINE.derivative(2), u0)[0], expected, 1e-13)
