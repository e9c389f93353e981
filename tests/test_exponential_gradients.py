"""Are the gradients of exponential schemes exact, and what is refused?"""

import pytest
import torch
from adjoint_cases import STEP_SIZE, TIMES, Rate, assert_equal, random
from cases import OPERATORS, double
from test_functions import known
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode import SINODEConv, imex_odeint, operators, solvers, terms
from pyg_sinode.schemes import EXPONENTIAL

every_scheme = pytest.mark.parametrize("method", EXPONENTIAL)
CIRCULANT = operators.Circulant([1.0, -2.0, 1.0])


def gradients(case, method, leaves, **options):
    """The states and the gradients of the state, of G's parameter and argument, and of J."""
    torch.manual_seed(3)
    u0, scale = case.state().requires_grad_(), double(0.3).requires_grad_()
    rate = Rate(u0.size(-1))
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    u = imex_odeint(rate, case.build(*leaves), u0, TIMES, method=method, args=(scale,),
                    **({"step_size": STEP_SIZE} | options))
    w = torch.linspace(-1, 1, u.numel(), dtype=u.dtype).view(u.shape)
    return u.detach(), torch.autograd.grad((u * w).sum(), [u0, rate.weight, scale, *leaves])


@pytest.mark.parametrize(("place", "name"), list(enumerate(known)))
def test_gradients_equal_autograd_through_the_same_steps_for_every_operator(place, name):
    case, methods = OPERATORS[name], list(EXPONENTIAL)
    for method in methods[place % 2::2]:  # half of the schemes each
        found = gradients(case, method, case.leaves())
        plain = gradients(case, method, case.leaves(), gradient="backprop")
        assert_equal([found[0]], [plain[0]], 1e-13, method)
        assert_equal(found[1], plain[1], 1e-11, method)


@every_scheme
@pytest.mark.parametrize("name", ["stencil_in_two_dimensions", "dense", "laplacian"])
def test_the_gradient_is_the_same_to_the_last_bit_whatever_is_kept(method, name):
    case = OPERATORS[name]
    expected = gradients(case, method, case.leaves())
    for options in ({"graph_memory": 0}, {"checkpoints": 2}, {"checkpoints": "auto"},
                    {"checkpoints": 1, "graph_memory": 0}):
        found = gradients(case, method, case.leaves(), **options)
        assert torch.equal(found[0], expected[0])
        for a, b in zip(found[1], expected[1], strict=True):
            assert torch.equal(a, b), options


@pytest.mark.parametrize("method", [m for m, s in EXPONENTIAL.items() if s.embedded_order])
def test_gradients_of_adaptive_steps_are_those_of_the_steps_that_were_made(method):
    case = OPERATORS["stencil"]
    options = {"step_size": None, "rtol": 1e-3, "atol": 1e-3}
    found = gradients(case, method, case.leaves(), **options)
    plain = gradients(case, method, case.leaves(), gradient="backprop", **options)
    assert_equal(found[1], plain[1], 1e-11)
    again = gradients(case, method, case.leaves(), checkpoints="auto", **options)
    assert all(map(torch.equal, found[1], again[1]))


@every_scheme
def test_gradcheck_and_second_derivatives(method):
    def run(u0, stencil, gradient):
        return imex_odeint(lambda t, u: -u**3 + t, operators.Circulant(stencil), u0,
                           double([0.0, 0.2]), method=method, step_size=0.1, gradient=gradient)[-1]

    inputs = (random(2, 5).requires_grad_(), (random(3) / 2).requires_grad_())
    assert gradcheck(lambda *x: run(*x, "discrete"), inputs, fast_mode=True)
    assert gradgradcheck(lambda *x: run(*x, "backprop"), inputs, fast_mode=True)


def test_a_second_backward_pass_gives_the_same_gradient():
    case = OPERATORS["dense"]
    u0, leaves = case.state().requires_grad_(), case.leaves()
    u = imex_odeint(lambda t, u: torch.sin(u), case.build(*leaves), u0, TIMES, method="etdrk3",
                    step_size=STEP_SIZE)
    first = torch.autograd.grad(u.square().sum(), [u0, *leaves], retain_graph=True)
    second = torch.autograd.grad(u.square().sum(), [u0, *leaves])
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_weights_that_begin_at_zero_receive_their_gradient(gradient):
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    found = []
    for method in ("etdrk4", "ark548l2sa"):
        w = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        J = operators.Graph(edges, w, 4)
        u = imex_odeint(lambda t, u: torch.sin(u), J, torch.arange(1.0, 5.0).double().unsqueeze(1),
                        double([0.0, 1.0]), method=method, step_size=0.05, gradient=gradient)
        found.append(torch.autograd.grad(u[-1].square().sum(), w)[0])
    assert found[1].abs().min() > 0.1
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_the_tensors_of_j_receive_zeros_from_an_empty_state():
    d = torch.ones(5, dtype=torch.float64, requires_grad=True)
    u0 = torch.ones(0, 5, dtype=torch.float64, requires_grad=True)
    u = imex_odeint(None, operators.Diagonal(d), u0, TIMES, method="etdrk2", step_size=STEP_SIZE)
    assert torch.equal(torch.autograd.grad(u.sum(), d)[0], torch.zeros_like(d))


def test_output_times_receive_a_gradient():
    u0 = random(2, 5)

    def run(t):
        return imex_odeint(lambda t, u: -u**3 + t, CIRCULANT, u0, t, method="etdrk4",
                           step_size=0.2)

    assert gradcheck(run, (double([0.0, 0.3, 0.45]).requires_grad_(),))


@pytest.mark.parametrize("implicit", ["decay", "laplacian", "attention"])
def test_a_layer_trains_with_an_exponential_scheme(implicit):
    torch.manual_seed(0)
    edges = torch.tensor([[0, 1, 2, 3, 1, 0], [1, 2, 3, 0, 0, 2]])
    conv, fine = (SINODEConv(4, 4, implicit=implicit, time=1.0, method=method,
                             step_size=h).double()
                  for method, h in (("etdrk4s", 0.25), ("ark436l2sa", 0.05)))
    fine.load_state_dict(conv.state_dict())
    x = random(4, 4).requires_grad_()
    found, expected = (each(x, edges) for each in (conv, fine))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), [x, *c.parameters()])
             for y, c in ((found, conv), (expected, fine))]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# What is refused


def refused(implicit, message, **options):
    with pytest.raises(ValueError, match=message):
        imex_odeint(lambda t, u: u, implicit, torch.ones(2, 5, dtype=torch.float64),
                    double([0.0, 1.0]), **({"method": "etdrk4", "step_size": 0.1} | options))


def test_implicit_parts_without_functions_are_refused_with_the_remedy():
    refused(terms.Nonlinear(lambda t, u: -u**3),
            r"Expected an operator J or None with etdrk4 \(got a Nonlinear\): .* take an implicit")
    refused(terms.Affine(CIRCULANT, lambda t: torch.ones(5, dtype=torch.float64)),
            r"\(got an Affine with a forcing f\(t\)\): add a forcing to the explicit term")
    refused(terms.Affine(CIRCULANT, scale=lambda t: 1 + t),
            r"\(got an Affine with a scale a\(t\)\).*a J that varies in time, take an implicit")
    refused(operators.MatrixFree(lambda u: -u),
            r"whose functions f\(J\) are known \(got MatrixFree\): .*implicit-explicit scheme")


def test_a_solver_is_refused_since_nothing_is_solved():
    refused(CIRCULANT, r"Expected no solver with etdrk4 \(got CG\(.*solves no linear systems",
            solver=solvers.CG())


def test_interpolation_and_adaptive_steps_without_coefficients_are_refused():
    refused(CIRCULANT, "a scheme with an interpolant for dense=True", dense=True)
    refused(CIRCULANT, "a scheme with an embedded pair", method="etd1", step_size=None)
