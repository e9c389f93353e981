"""Is G on Fourier coefficients the same term, with the same gradients, and used where it may be?"""

import pytest
import torch
from grid_cases import F64
from torch import nn
from torch.autograd import gradcheck

from pyg_sinode import grid, imex_odeint, operators
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


def on_states(G):
    """The same term as a function that has no other form."""
    return lambda t, u, *args: G(t, u, *args)


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
    expected = run(on_states(G), J, state(name))
    calls = []
    monkeypatch.setattr(torch.fft, "rfftn", counted(torch.fft.rfftn, calls))
    found = run(G, J, state(name))
    inside = len(calls)
    calls.clear()
    run(on_states(G), J, state(name))
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
    expected = run(on_states(G), J, state(name), **options)
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

    with pytest.raises(Exception, match="Expected the explicit term to return a tensor like"):
        calls_of(Wrong(LINE), LINE.derivative(2), torch.sin(LINE.points))
