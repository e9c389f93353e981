"""Are the gradients through a nonlinear implicit term exact, in memory of any kind?"""

import copy

import numpy as np
import pytest
import torch
from adjoint_cases import assert_equal
from cases import double, times
from nonlinear_cases import F64, RATES, Reaction, Wave, robertson
from torch import nn

from pyg_sinode import GRANDAttention, imex_odeint
from pyg_sinode.operators import BlockDiagonal, Diagonal, Graph
from pyg_sinode.schemes import MULTISTEP, RUNGE_KUTTA
from pyg_sinode.solvers import GMRES, Direct, Newton
from pyg_sinode.terms import Nonlinear

T = times(0, 0.3, 1)
IMEX = {**RUNGE_KUTTA, **MULTISTEP}
every_scheme = pytest.mark.parametrize("scheme", IMEX.values(), ids=IMEX)


class Problem:
    """G and H with parameters, an argument of H, and an initial state of four systems."""

    def __init__(self, width=3, **options):
        torch.manual_seed(3)
        self.explicit, self.reaction = Wave(width), Reaction(width)
        self.q = torch.rand(width, dtype=F64).requires_grad_()
        self.u0 = torch.randn(4, width, dtype=F64).requires_grad_()
        self.options = {"dims": -1} | options

    @property
    def tensors(self):
        return [self.u0, self.q, *self.explicit.parameters(), *self.reaction.parameters()]

    def implicit(self):
        return Nonlinear(self.reaction, self.q, **self.options)

    def states(self, **options):
        options = {"step_size": 0.1} | options
        if options["step_size"] is None:
            del options["step_size"]
        return imex_odeint(self.explicit, self.implicit(), self.u0, T, **options)

    def gradients(self, **options):
        return torch.autograd.grad(loss_of(self.states(**options)), self.tensors)


def loss_of(states):
    weights = torch.linspace(0.2, 1.7, states.numel(), dtype=F64).view_as(states)
    return (weights * states).sum() + states.square().sum()


def unrolled(problem, scheme, steps):
    """The states by the same scheme, each stage by Newton's method, all of it under autograd."""
    a, at = torch.tensor(scheme.a_explicit), torch.tensor(scheme.a_implicit)
    u, t, outputs = problem.u0, 0.0, [problem.u0]

    def H(t, u):
        return problem.reaction(t, u, problem.q)

    for start, h, n in steps:
        for k in range(n):
            t, g, f = start + k * h, [], []
            for i in range(scheme.stages):
                r = u + h * sum((a[i, j] * g[j] + at[i, j] * f[j] for j in range(i)), 0 * u)
                c, s = h * float(at[i, i]), double(t + h * scheme.c_implicit[i])
                U = r
                for _ in range(30 if c else 0):
                    J = torch.stack([torch.autograd.functional.jacobian(
                        lambda x, s=s: H(s, x), row, create_graph=True) for row in U])
                    left = U - r - c * H(s, U)
                    A = torch.eye(u.size(-1), dtype=F64) - c * J
                    U = U - torch.linalg.solve(A, left.unsqueeze(-1)).squeeze(-1)
                    if float(left.detach().abs().max()) < 1e-15:
                        break
                f.append((U - r) / c if c else H(s, U))
                g.append(problem.explicit(double(t + h * scheme.c_explicit[i]), U))
            b, bt = torch.tensor(scheme.b_explicit), torch.tensor(scheme.b_implicit)
            u = u + h * sum((b[j] * g[j] + bt[j] * f[j] for j in range(scheme.stages)), 0 * u)
        outputs.append(u)
    return torch.stack(outputs)


@pytest.mark.parametrize("scheme", RUNGE_KUTTA.values(), ids=RUNGE_KUTTA)
def test_gradients_are_those_of_unrolled_newton_in_every_scheme(scheme):
    problem = Problem()
    states = unrolled(problem, scheme, [(0.0, 0.15, 2), (0.3, 0.175, 4)])
    torch.testing.assert_close(problem.states(method=scheme, step_size=0.175), states, rtol=0,
                               atol=1e-12)
    expected = torch.autograd.grad(loss_of(states), problem.tensors)
    assert_equal(problem.gradients(method=scheme, step_size=0.175), expected, 1e-11)


@every_scheme
def test_both_ways_to_gradients_agree_and_so_does_every_memory(scheme):
    problem = Problem()
    found = problem.gradients(method=scheme)
    assert_equal(found, problem.gradients(method=scheme, gradient="backprop"), 1e-11)
    for options in ({"checkpoints": 1}, {"checkpoints": 3}, {"graph_memory": 0},
                    {"checkpoints": 2, "graph_memory": 0}):
        for a, b in zip(problem.gradients(method=scheme, **options), found, strict=True):
            assert torch.equal(a, b), options


@pytest.mark.parametrize("method", ["ark324l2sa", "ark436l2sa", "ark548l2sa", "ark232"])
@pytest.mark.parametrize("checkpoints", [None, 2])
def test_adaptive_steps_have_the_gradients_of_the_steps_made(method, checkpoints):
    problem, options = Problem(), {"method": method, "step_size": None, "rtol": 1e-4}
    found = problem.gradients(**options, checkpoints=checkpoints)
    assert_equal(found, problem.gradients(**options, gradient="backprop"), 1e-11)


def test_gradients_are_those_of_finite_differences():
    problem, h = Problem(), 1e-6
    found = problem.gradients(method="ark436l2sa")
    for tensor, gradient in zip(problem.tensors, found, strict=True):
        direction = torch.randn_like(tensor)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor += sign * h * direction
                losses.append(float(loss_of(problem.states(method="ark436l2sa"))))
                tensor -= sign * h * direction
        slope = (losses[0] - losses[1]) / (2 * h)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("options", [
    {"dims": None}, {"newton": Newton(solver=Direct())}, {"newton": Newton(solver=GMRES())},
    {"dims": None, "newton": Newton(solver=GMRES(rtol=1e-13))},
    {"newton": Newton(line_search=False)}], ids=str)  # fmt: skip
@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_every_way_to_solve_has_the_gradients(options, gradient):
    expected = Problem().gradients()
    assert_equal(Problem(**options).gradients(gradient=gradient), expected, 1e-9)


WIDE = 70  # more than the rows that are made as dense blocks


@pytest.mark.filterwarnings("ignore:The jacobian of Nonlinear is off")
@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
@pytest.mark.parametrize("width", [3, WIDE])
def test_an_approximate_jacobian_has_the_exact_gradients(width, gradient):
    exact = Problem(width)

    def main_part(t, u):
        return Diagonal(-15 * u**2 - exact.q.detach())

    def with_blocks(t, u):
        return BlockDiagonal.jacobian(lambda x: exact.reaction(t, x, exact.q), u) * 1.3

    expected = exact.gradients()
    for jacobian in (main_part, with_blocks):
        found = Problem(width, jacobian=jacobian).gradients(gradient=gradient)
        assert_equal(found, expected, 1e-8)


def test_the_defect_of_the_gradient_falls_with_newton_s_tolerance():
    exact = Problem().gradients(method="ark324l2sa")
    tolerances, defects = [1e-3, 1e-5, 1e-7], []
    for rtol in tolerances:
        # A jacobian that is off by a fifth: linear convergence, which stops just within rtol.
        problem = Problem(newton=Newton(rtol=rtol))
        problem.options["jacobian"] = lambda t, u, p=problem: 0.8 * BlockDiagonal.jacobian(
            lambda x: p.reaction(t, x, p.q), u)
        found = problem.gradients(method="ark324l2sa")
        defects.append(max(float((a - b).abs().max() / b.abs().max())
                           for a, b in zip(found, exact, strict=True)))
    assert all(d <= 3 * rtol for d, rtol in zip(defects, tolerances, strict=True)), defects
    slope = np.polyfit(np.log(tolerances), np.log(defects), 1)[0]
    assert 0.7 < slope < 1.3, defects


def test_backprop_can_be_differentiated_twice():
    reaction = Reaction(2)
    names = [name for name, _ in reaction.named_parameters()]

    def states(u0, q, w, *parameters):
        def H(t, u, q, *parameters):
            return torch.func.functional_call(
                reaction, dict(zip(names, parameters, strict=True)), (t, u, q))

        return imex_odeint(lambda t, u, w: torch.sin(w * u), Nonlinear(H, q, *parameters, dims=-1),
                           u0, times(0, 0.4), method="ark232", step_size=0.2, args=(w,),
                           gradient="backprop")[-1]

    inputs = [torch.randn(2, 2, dtype=F64), torch.rand(2, dtype=F64), torch.rand(2, dtype=F64),
              *(p.detach() for p in reaction.parameters())]
    inputs = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(states, inputs)
    assert torch.autograd.gradgradcheck(states, inputs)


def test_a_module_in_backprop_mode_can_be_differentiated_twice():
    problem = Problem()
    first = torch.autograd.grad(loss_of(problem.states(gradient="backprop")), problem.tensors,
                                create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), problem.tensors)
    h, directions = 1e-5, [torch.randn_like(x) for x in problem.tensors]
    sizes = []
    for sign in (1, -1):
        with torch.no_grad():
            for x, d in zip(problem.tensors, directions, strict=True):
                x += sign * h * d
        sizes.append(float(sum(g.square().sum() for g in problem.gradients())))
        with torch.no_grad():
            for x, d in zip(problem.tensors, directions, strict=True):
                x -= sign * h * d
    slope = (sizes[0] - sizes[1]) / (2 * h)
    found = sum(float((g * d).sum()) for g, d in zip(second, directions, strict=True))
    assert found == pytest.approx(slope, rel=1e-6)


def test_a_discrete_gradient_refuses_a_second_derivative():
    problem = Problem()
    first = torch.autograd.grad(loss_of(problem.states()), problem.tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="got a second"):
        torch.autograd.grad(first[0].sum(), problem.tensors)


def test_a_second_backward_pass_gives_the_same():
    problem = Problem()
    loss = loss_of(problem.states(checkpoints=2))
    first = torch.autograd.grad(loss, problem.tensors, retain_graph=True)
    for a, b in zip(torch.autograd.grad(loss, problem.tensors), first, strict=True):
        assert torch.equal(a, b)


def test_only_what_is_wanted_gets_a_gradient():
    problem = Problem()
    expected = problem.gradients()
    problem.reaction.rate.requires_grad_(False)
    problem.u0.requires_grad_(False)
    loss_of(problem.states()).backward()
    assert problem.reaction.rate.grad is None
    assert problem.u0.grad is None
    torch.testing.assert_close(problem.q.grad, expected[1])
    torch.testing.assert_close(problem.explicit.weight.grad, expected[2])


def test_a_fully_implicit_term_and_its_tensors_that_are_made_from_others():
    log_rates = RATES.log().requires_grad_()
    u0 = double([1.0, 0.0, 0.0])

    def final(log_rates):
        part = Nonlinear(robertson, log_rates.exp(), newton=Newton(rtol=1e-13))
        return imex_odeint(None, part, u0, times(0, 40.0), rtol=1e-6, atol=1e-12,
                           max_steps=1000)[-1]

    (gradient,) = torch.autograd.grad(final(log_rates)[2], log_rates)
    steps = 1e-5 * torch.eye(3, dtype=F64)
    slopes = [(final(log_rates.detach() + e)[2] - final(log_rates.detach() - e)[2]) / 2e-5
              for e in steps]
    torch.testing.assert_close(gradient, torch.stack(slopes), rtol=1e-3, atol=0)


class Buffered(nn.Module):
    """A cubic decay with a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(double(1.0))
        self.register_buffer("factor", double(1.0))

    def forward(self, t, u):
        return -self.rate * self.factor * u**3


@pytest.mark.parametrize("method", ["implicit_euler", "ark324l2sa", "sbdf2"])
@pytest.mark.parametrize("options", [{}, {"checkpoints": 2}, {"gradient": "backprop"}], ids=str)
def test_buffers_are_those_of_the_forward_pass(method, options):
    def gradients(change):
        module, u0 = Buffered(), double([0.5, 1.0]).requires_grad_()
        u = imex_odeint(None, Nonlinear(module), u0, times(0, 1), method=method, step_size=0.1,
                        **options)[-1]
        change(module)
        return torch.autograd.grad(u.sum(), [u0, module.rate])

    expected = gradients(lambda module: None)
    changes = [lambda m: setattr(m, "factor", double(5.0))]
    if not options.get("gradient") or method == "implicit_euler":  # others have it in their graph
        changes.append(lambda m: m.factor.fill_(5.0))
    for change in changes:
        for a, b in zip(gradients(change), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dims", [(), None])
@pytest.mark.parametrize("change", [
    lambda m: m.train(), lambda m: setattr(m, "factor", double(2.0))], ids=["mode", "buffer"])
@pytest.mark.parametrize("when", ["before the first", "between"])
def test_second_derivatives_see_modes_and_buffers_of_the_forward_pass(dims, change, when):
    class Switched(Buffered):
        def forward(self, t, u):
            return super().forward(t, u) * (3.0 if self.training else 1.0)

    def second(change_at):
        module, u0 = Switched().eval(), double([0.5, 1.0]).requires_grad_()
        u = imex_odeint(None, Nonlinear(module, dims=dims), u0, times(0, 1), step_size=0.5,
                        gradient="backprop")[-1]
        if change_at == "before the first":
            change(module)
        g = torch.autograd.grad(u.sum(), [u0, module.rate], create_graph=True)
        if change_at == "between":
            change(module)
        return torch.autograd.grad(g[0].square().sum() + g[1] ** 2, [u0, module.rate])

    for a, b in zip(second(when), second("never"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0)


def test_tensors_that_hooks_save_elsewhere_get_their_gradients():
    problem = Problem()
    expected = problem.gradients()
    for gradient in ("discrete", "backprop"):
        with torch.autograd.graph.save_on_cpu():
            states = problem.states(gradient=gradient)
        found = torch.autograd.grad(loss_of(states), problem.tensors)
        assert_equal(found, expected, 1e-11)


@pytest.mark.parametrize("newton", [Newton(rtol=0.0, atol=1e-9), Newton(rtol=1e-17)], ids=repr)
def test_a_gradient_by_gmres_takes_the_tolerance_that_it_can_reach(newton):
    u0 = torch.rand(WIDE, dtype=F64).requires_grad_()
    found = []
    for newton_of in (newton, Newton()):
        part = Nonlinear(lambda t, u: -u**3 + u.roll(1, -1) - u, newton=newton_of)
        u = imex_odeint(None, part, u0, times(0, 1), step_size=0.1)[-1]
        found += torch.autograd.grad(u.square().sum(), u0)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-7)


def test_modes_and_parameters_are_those_of_the_forward_pass():
    class Switched(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(double(2.0))

        def forward(self, t, u):
            return -self.rate * u**3 if self.training else -u

    def run(evaluates, gradient):
        module, u0 = Switched(), double([0.5, 1.0]).requires_grad_()
        loss = imex_odeint(None, Nonlinear(module), u0, times(0, 1), step_size=0.1,
                           gradient=gradient)[-1].sum()
        if evaluates:
            module.eval()
        return torch.autograd.grad(loss, [u0, module.rate])

    for gradient in ("discrete", "backprop"):
        for a, b in zip(run(True, gradient), run(False, gradient), strict=True):
            assert torch.equal(a, b)


EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])


class Diffusion(nn.Module):
    """A(u) u - u with GRAND's attention on the graph."""

    def __init__(self):
        super().__init__()
        self.attention = GRANDAttention(2, heads=2, attention_channels=4).double()

    def forward(self, t, u):
        return self.attention(u, torch.cat([EDGES, EDGES.flip(0)], dim=1)) - u


def test_attention_in_g_and_a_stiff_reaction_at_every_node_in_h():
    diffusion, rates = Diffusion(), torch.tensor([30.0, 5.0], dtype=F64).requires_grad_()
    u0 = torch.randn(6, 2, dtype=F64).requires_grad_()

    def react(t, u, rates):
        x, y = u.unbind(-1)
        return torch.stack([rates[0] * (y - x - x**3), rates[1] * (x - 2 * y)], dim=-1)

    found, tensors = {}, [u0, rates, *diffusion.parameters()]
    for gradient in ("discrete", "backprop"):
        states = imex_odeint(diffusion, Nonlinear(react, rates, dims=-1), u0, times(0, 0.5),
                             step_size=0.05, gradient=gradient)
        found[gradient] = torch.autograd.grad(loss_of(states), tensors)
    # Softmax does not see what is added to all scores of a node: the gradient there is rounding.
    used = [i for i, g in enumerate(found["backprop"]) if float(g.abs().max()) > 1e-8]
    assert len(used) >= 4
    assert_equal([found["discrete"][i] for i in used], [found["backprop"][i] for i in used], 1e-10)
    alone = imex_odeint(diffusion, Nonlinear(react, rates), u0, times(0, 0.5), step_size=0.05)
    torch.testing.assert_close(states, alone, rtol=0, atol=1e-11)


def test_diffusion_and_a_reaction_in_h():
    both_ways = torch.cat([EDGES, EDGES.flip(0)], dim=1)
    weight = torch.full((both_ways.size(1),), 40.0, dtype=F64).requires_grad_()
    rates = torch.tensor([30.0, 5.0], dtype=F64).requires_grad_()

    def react(u, rates):
        x, y = u.unbind(-1)
        return torch.stack([rates[0] * (y - x**3), rates[1] * (x - y)], dim=-1)

    def rate(t, u, weight, rates):
        graph = Graph(both_ways, weight, 6)
        return graph.mv(u) - graph.mv(torch.ones_like(u)) * u + react(u, rates)

    def derivative(t, u):
        graph = Graph(both_ways, weight.detach(), 6)
        diffusion = graph - Diagonal(graph.mv(torch.ones_like(u)))
        return diffusion + BlockDiagonal.jacobian(lambda x: react(x, rates.detach()), u)

    def mix(t, u):
        return torch.tanh(u.roll(1, 0))

    u0 = torch.randn(6, 2, dtype=F64).requires_grad_()
    found = {}
    for name, jacobian, newton in (("blocks", None, Newton()),
                                   ("sum", derivative, Newton(solver=None)),
                                   ("autograd", None, Newton(solver=GMRES()))):
        part = Nonlinear(rate, weight, rates, jacobian=jacobian, newton=newton)
        states, stats = imex_odeint(mix, part, u0, times(0, 0.5), step_size=0.05, return_stats=True)
        found[name] = torch.autograd.grad(loss_of(states), [u0, weight, rates])
        if name == "sum":  # block Jacobi leaves little to iterate
            assert stats.forward.linear_iterations < 12 * stats.forward.newton_iterations
    assert_equal(found["sum"], found["blocks"], 1e-8)
    assert_equal(found["autograd"], found["blocks"], 1e-8)


def test_copies_of_a_term_are_integrated_alike():
    problem = Problem()
    part = problem.implicit()
    for other in (copy.copy(part), copy.deepcopy(Nonlinear(problem.reaction, problem.q.detach(),
                                                           dims=-1))):
        found = imex_odeint(problem.explicit, other, problem.u0, T, step_size=0.1)
        assert torch.equal(found, problem.states())
