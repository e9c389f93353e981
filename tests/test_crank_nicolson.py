"""Is the fully implicit baseline of second order and stable, and are its gradients its own?"""

import importlib.util
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch_geometric.nn import MessagePassing

from pyg_sinode import GRANDAttention, LinearSolveError, imex_odeint, operators

SCRIPT = Path(__file__).parents[1] / "examples" / "crank_nicolson.py"
TIGHT = {"rtol": 1e-13}


@pytest.fixture(scope="module", autouse=True)
def example():
    spec = importlib.util.spec_from_file_location("crank_nicolson", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def odeint(example):
    return example.crank_nicolson_odeint


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


class Rate(nn.Module):
    """Nonlinear, coupled along the last dimension, and dependent on time."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width, dtype=torch.float64))

    def forward(self, t, u, scale):
        return torch.sin(self.weight * u.roll(1, -1) + t) - scale * u * u


def relative(found, expected):
    return float((found - expected).detach().norm() / expected.detach().norm())


# The solution


def test_the_error_falls_with_the_square_of_the_step(odeint):
    rate, J, u0 = Rate(4), operators.Dense(0.5 * random(4, 4)), random(4)
    t = double([0.0, 1.0])

    def error(step_size):
        found = odeint(rate, J, u0, t, step_size=step_size, args=(0.3,))[-1]
        return float((found - exact).detach().norm())

    exact = imex_odeint(rate, J, u0, t, step_size=1e-2, method="ark548l2sa", args=(0.3,))[-1]
    sizes = [0.05, 0.025, 0.0125, 0.00625]
    errors = [math.log(error(h)) for h in sizes]
    slope = np.polyfit([math.log(h) for h in sizes], errors, 1)[0]
    assert 1.95 < slope < 2.05


def test_small_steps_give_the_solution_of_the_semi_implicit_schemes(odeint):
    rate, J, u0, t = Rate(4), operators.Dense(-random(4, 4)), random(2, 4), double([0.0, 0.3, 0.5])
    found = odeint(rate, J, u0, t, step_size=5e-3, args=(0.3,), dim=-1)
    assert relative(found, imex_odeint(rate, J, u0, t, step_size=1e-2, args=(0.3,))) < 3e-5


def test_a_stiff_decay_stays_bounded_where_an_explicit_step_would_blow_up(odeint):
    decay = operators.Diagonal(double([-1.0, -1e3, -1e6]))
    t = torch.linspace(0, 5, 51, dtype=torch.float64)
    found = odeint(None, decay, double([1.0, 1.0, 1.0]), t, step_size=0.1)
    assert float(found.abs().max()) <= 1.0 + 1e-9
    assert float(found[-1, 0]) == pytest.approx((0.95 / 1.05) ** 50, rel=1e-8)


def test_fast_rotations_keep_their_norm(odeint):
    J = operators.Dense(double([[0.0, 1e3], [-1e3, 0.0]]))
    found = odeint(None, J, double([0.6, 0.8]), torch.linspace(0, 10, 101), step_size=0.1)
    assert float((found.norm(dim=-1) - 1.0).abs().max()) < 1e-8


def test_a_stiff_forcing_is_followed_with_steps_that_change(odeint):
    def stiff(t, u):
        return 1e6 * (torch.cos(t) - u)

    t = double([0.0, 1e-4, 1.0, 1.05, 3.0])
    found = odeint(stiff, None, double([1.0]), t, step_size=0.05, rtol=1e-9)
    assert float((found[:, 0] - torch.cos(t)).abs().max()) < 1e-4


@pytest.mark.parametrize("times", [[0.0, 0.3, 0.5], [0.5, 0.2, -0.1]])
def test_without_one_of_the_terms_the_other_is_integrated(odeint, times):
    u0, M, t = random(3, 4), random(4, 4), double(times)
    by_operator = odeint(None, operators.Dense(M), u0, t, step_size=0.1, **TIGHT)
    by_function = odeint(lambda t, u: u @ M.T, None, u0, t, step_size=0.1, **TIGHT)
    assert relative(by_operator, by_function) < 1e-11
    assert torch.equal(odeint(None, None, u0, t, step_size=0.1), u0.expand(3, 3, 4))


def test_samples_as_systems_of_their_own_give_what_one_system_gives(odeint):
    rate, J, u0, t = Rate(4), operators.Dense(random(4, 4)), random(5, 4), double([0.0, 0.4])
    u0.requires_grad_()
    runs = [odeint(rate, J, u0, t, step_size=0.1, args=(0.3,), dim=dim, **TIGHT)
            for dim in (None, -1)]
    assert relative(*runs) < 1e-11
    assert relative(*(torch.autograd.grad(run[-1].sum(), u0)[0] for run in runs)) < 1e-11
    alone = odeint(rate, J, u0[:1], t, step_size=0.1, args=(0.3,), dim=-1, **TIGHT)
    assert relative(runs[1][:, :1], alone) < 1e-14  # whatever the others need


@pytest.mark.parametrize(("dtype", "times", "step_size", "steps"), [
    (torch.float32, [0.0, 0.2], 0.2, 1), (torch.float64, [0.0, 0.5, 1.2], 0.2, 7),
    (torch.float32, torch.linspace(0, 10, 51).tolist(), 0.2, 50),
    (torch.float64, [1.0, 0.0, -0.25], 0.5, 3)])
def test_equal_steps_land_on_the_output_times(odeint, dtype, times, step_size, steps):
    seen, t = [], torch.tensor(times, dtype=dtype)

    def rate(t, u):
        seen.append(float(t))
        return torch.cos(t) * torch.ones_like(u)

    u0 = torch.zeros(1, dtype=torch.float64)
    found = odeint(rate, None, u0, t, step_size=step_size)
    visited = sorted(set(seen), reverse=times[0] > times[-1])
    assert found.shape == (len(times), 1)
    assert len(visited) == steps + 1
    assert visited[0] == t[0]
    assert visited[-1] == pytest.approx(float(t[-1]), rel=1e-6)
    assert relative(found[-1], torch.sin(t[-1:].double()) - torch.sin(t[:1].double())) < 2e-2


def test_one_time_returns_the_initial_state(odeint):
    u0 = random(3).requires_grad_()
    found = odeint(lambda t, u: -u, None, u0, double([0.7]), step_size=0.1)
    assert torch.equal(found, u0[None])
    assert torch.equal(torch.autograd.grad(found.sum(), u0)[0], torch.ones_like(u0))


def test_a_state_in_equilibrium_stays_and_has_a_gradient(odeint):
    u0 = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    found = odeint(lambda t, u: -torch.sin(u), None, u0, double([0.0, 0.1, 0.3]), step_size=0.1)
    assert torch.equal(found, torch.zeros_like(found))
    (gradient,) = torch.autograd.grad(found[-1].sum(), u0)
    assert gradient.tolist() == pytest.approx([(0.95 / 1.05) ** 3] * 3, rel=1e-9)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_single_precision_reaches_its_tolerance(odeint, shape):
    u0 = torch.randn(shape)
    found = odeint(lambda t, u: torch.cos(u), None, u0, torch.tensor([0.0, 1.0]), step_size=0.1)
    exact = odeint(lambda t, u: torch.cos(u), None, u0.double(), double([0.0, 1.0]), step_size=0.1)
    assert found.dtype == torch.float32
    assert relative(found.double(), exact) < 1e-5


# Gradients


def dense_crank_nicolson(f, u, grid):
    """The states at all of a grid's times by Newton's method with dense Jacobians, all recorded."""
    states = [u]
    for t, s in itertools.pairwise(grid):
        before, c = states[-1], (s - t) / 2

        def residual(u, t=t, s=s, before=before, c=c):
            return u - before - c * (f(double(t), before) + f(double(s), u))

        u = before
        for _ in range(7):
            M = jacobian(residual, u, create_graph=True).reshape(u.numel(), u.numel())
            u = u - torch.linalg.solve(M, residual(u).flatten()).view_as(u)
        states.append(u)
    return torch.stack(states)


# The second grid has steps that grow and shrink by more than a factor of two.
@pytest.mark.parametrize("times", [[0.3, 0.5, 0.6], [0.0, 0.02, 0.2, 0.25], [0.4, 0.2, 0.1]])
@pytest.mark.parametrize("dim", [None, -1])
def test_gradients_are_those_of_plain_autograd_through_dense_newton_steps(odeint, times, dim):
    rate, u0, scale = Rate(3), random(2, 3).requires_grad_(), double(0.3).requires_grad_()
    matrix, factor = random(3, 3).requires_grad_(), double(0.7).requires_grad_()
    source = random(2, 3).requires_grad_()
    leaves = [u0, rate.weight, scale, matrix, factor, source]

    def explicit(t, u, scale, source):
        return rate(t, u, scale) + t * source

    class Explicit(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = rate

        def forward(self, t, u, scale, source):
            return explicit(t, u, scale, source)

    # A tensor that is no leaf, among the arguments and in the operator.
    J = operators.Dense(matrix.tanh()) * factor
    found = odeint(Explicit(), J, u0, double(times), step_size=0.1, dim=dim,
                   args=(scale, source * scale), **TIGHT)
    grid, outputs = times[:1], [0]
    for a, b in itertools.pairwise(times):
        steps = max(1, math.ceil(abs(b - a) / 0.1 - 1e-6))
        grid += [a + (b - a) * k / steps for k in range(1, steps + 1)]
        outputs.append(len(grid) - 1)
    expected = dense_crank_nicolson(
        lambda t, u: explicit(t, u, scale, source * scale) + factor * (u @ matrix.tanh().T),
        u0, grid)[outputs]
    assert relative(found, expected) < 1e-12
    weights = random(*expected.shape)  # a loss at every output time
    pairs = zip(torch.autograd.grad((weights * found).sum(), leaves),
                torch.autograd.grad((weights * expected).sum(), leaves), strict=True)
    assert max(relative(a, b) for a, b in pairs) < 1e-10


class Kuramoto(MessagePassing):
    """Coupled phases, by gather and scatter."""

    def __init__(self):
        super().__init__(aggr="add")
        self.coupling = nn.Parameter(double(0.8))

    def forward(self, t, u, edge_index):
        return self.coupling * self.propagate(edge_index, x=u)

    def message(self, x_i, x_j):
        return torch.sin(x_j - x_i)


def test_a_message_passing_module_has_exact_gradients(odeint):
    edge_index = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    u0, rate, t = random(4, 2).requires_grad_(), Kuramoto(), double([0.0, 0.1, 0.3])

    def solution(u0, coupling):
        with torch.no_grad():
            rate.coupling.copy_(coupling)
        return odeint(rate, None, u0, t, step_size=0.1, args=(edge_index,), **TIGHT)

    weights, h = random(3, 4, 2), 1e-5
    found = torch.autograd.grad((weights * solution(u0, double(0.8))).sum(), [u0, rate.coupling])
    direction, slope = random(4, 2), random(1)[0]
    plus, minus = ((weights * solution(u0 + s * direction, 0.8 + s * slope)).sum() for s in (h, -h))
    along = (found[0] * direction).sum() + found[1] * slope
    assert relative(along, (plus - minus) / (2 * h)) < 1e-8


class Diffusion(nn.Module):
    def __init__(self, fused):
        super().__init__()
        torch.manual_seed(1)
        self.attention = GRANDAttention(3, heads=1, normalizer="squareplus", fused=fused).double()

    def forward(self, t, u, edge_index):
        return 3.0 * (self.attention(u, edge_index) - u)


def test_the_fused_attention_which_has_no_forward_mode_gives_what_the_plain_one_gives(odeint):
    edge_index = torch.tensor([[0, 1, 2, 3, 0, 1], [1, 2, 3, 0, 2, 1]])
    u0, results = random(4, 3).requires_grad_(), []
    for fused in (True, False):
        rate = Diffusion(fused)
        found = odeint(rate, operators.ScaledIdentity(-1.0), u0, double([0.0, 0.5, 1.0]),
                       step_size=0.5, args=(edge_index,), **TIGHT)
        leaves = [u0, *rate.parameters()]
        results.append([found, *torch.autograd.grad(found.square().sum(), leaves)])
    sizes = [float(b.detach().norm()) for b in results[1]]
    errors = [float((a - b).detach().norm()) for a, b in zip(*results, strict=True)]
    assert max(errors) < 1e-11
    assert min(sizes[:2]) > 0.1


def saved_memory(found):
    """The addresses of what the graph of a result keeps."""
    kept, seen, stack = set(), set(), [found.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        saved += getattr(node, "saved_tensors", ())
        kept.update(x.data_ptr() for x in saved if isinstance(x, torch.Tensor) and x.dim() > 0)
        stack.extend(following for following, _ in node.next_functions)
    return kept


def test_only_one_state_is_kept_for_each_step(odeint):
    rate, u0 = Rate(50), random(50).requires_grad_()
    runs = [odeint(rate, None, u0, double([0.0, 0.1 * steps]), step_size=0.1, args=(0.3,))
            for steps in (3, 7)]
    sizes = [len(saved_memory(run)) for run in runs]
    assert sizes[0] >= 3
    assert sizes[1] - sizes[0] == 4


def test_a_gradient_that_would_be_lost_is_refused(odeint):
    weight = double(0.5).requires_grad_()
    u0 = random(3).requires_grad_()
    found = odeint(lambda t, u: weight * u, None, u0, double([0.0, 0.3]), step_size=0.1)
    with pytest.raises(ValueError, match="pass it, or the tensor made from it, in args="):
        found.sum().backward()
    with torch.no_grad():
        assert torch.equal(
            odeint(lambda t, u: weight * u, None, u0, double([0.0, 0.3]), step_size=0.1), found)


def test_a_second_derivative_is_refused(odeint):
    u0 = random(3).requires_grad_()
    found = odeint(lambda t, u: -u * u, None, u0, double([0.0, 0.3]), step_size=0.1)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(found.sum(), u0, create_graph=True)


# Work and failures


def test_work_is_counted_and_an_evaluation_at_the_end_of_a_step_serves_the_next(odeint):
    u0 = random(4).requires_grad_()
    rate = Rate(4)
    found, stats = odeint(rate, None, u0, double([0.0, 0.5]), step_size=0.1, args=(0.3,),
                          return_stats=True)
    forward = stats.newton_iterations
    assert forward >= 5
    assert stats.vjps == stats.linear_solves == forward
    assert stats.explicit_evaluations == 1 + 5 + forward
    assert stats.jvps >= stats.linear_iterations + forward  # each solve looks at its residual
    jvps, iterations = stats.jvps, stats.linear_iterations
    found[-1].sum().backward()
    assert stats.newton_iterations == forward
    assert stats.explicit_evaluations == 1 + 5 + forward + 5
    assert stats.linear_solves == forward + 5
    assert stats.jvps == jvps
    assert stats.vjps >= forward + 2 * 5 + stats.linear_iterations - iterations


def late_growth(t, u):
    return u * u * (t > 0.75)


def test_a_step_without_a_solution_is_an_error_that_says_where(example, odeint):
    # The step to time 1 would need u = 2.1 + u^2 / 4, which has no real solution.
    with pytest.raises(example.NewtonError, match=r"step 1, at time 0\.5 .*no iteration is left"
                       ) as caught:
        odeint(late_growth, None, double([2.1]), double([0.0, 2.0]), step_size=0.5, max_newton=6)
    error = caught.value
    assert (error.time, error.step, error.iterations) == (0.5, 1, 6)
    u = float(error.state)
    assert error.residual == pytest.approx(abs(2.1 - u + u * u / 4), rel=1e-12)
    assert 1.1 <= error.residual < 1.2  # the least that there is, at u = 2, is 1.1
    assert isinstance(error.__cause__, LinearSolveError)
    assert "step_size, or a larger max_newton or rtol" in str(error)


def test_a_rate_that_is_not_finite_is_an_error_with_the_last_finite_state(example, odeint):
    with pytest.raises(example.NewtonError, match="finite right-hand side") as caught:
        odeint(lambda t, u: -u / (t < 0.25), None, double([1.0]), double([0.0, 1.0]), step_size=0.1)
    assert (caught.value.step, caught.value.iterations) == (2, 0)
    assert float(caught.value.state) == pytest.approx((0.95 / 1.05) ** 2, rel=1e-9)


def test_more_iterations_before_a_restart_solve_what_few_do_not(example, odeint):
    identity, u0, t = torch.eye(64, dtype=torch.float64), random(3, 64), double([0.0, 0.1])
    M = 1e5 * (identity.roll(1, 0) + identity.roll(-1, 0) - 2.0 * identity)
    found = odeint(None, operators.Dense(M), u0, t, step_size=0.1, dim=-1, restart=64, **TIGHT)
    exact = torch.linalg.solve(identity - 0.05 * M, (identity + 0.05 * M) @ u0.T).T
    assert relative(found[-1], exact) < 1e-9
    with pytest.raises(example.NewtonError, match="GMRES"):
        odeint(None, operators.Dense(M), u0, t, step_size=0.1, dim=-1, restart=2)


def test_a_dimension_that_is_mixed_but_not_named_is_an_error(example, odeint):
    def mixing(t, u):
        return 2.0 * torch.sin(u.flip(0) + u.roll(1, -1))

    u0, t = random(2, 4), double([0.0, 0.5])
    odeint(mixing, None, u0, t, step_size=0.25)
    with pytest.raises(example.NewtonError, match="step 0"):
        odeint(mixing, None, u0, t, step_size=0.25, dim=-1)


@pytest.mark.parametrize(("times", "step_size"), [([0.0, 1.0], 0.0), ([0.0, 1.0], -0.1),
                                                  ([0.0, 1.0], math.nan), ([0.0, 0.0], 0.1)])
def test_steps_that_go_nowhere_are_refused(odeint, times, step_size):
    with pytest.raises(ValueError, match="step_size > 0 and no time twice"):
        odeint(lambda t, u: -u, None, random(2), double(times), step_size=step_size)
