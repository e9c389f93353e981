"""Is G repeated as it was: its parameters, random numbers and buffers?"""

import weakref

import pytest
import torch
from adjoint_cases import TIMES, Rate, Tied, assert_equal, gradients_in_both_modes, random
from cases import SOLVERS, double
from torch import nn

from pyg_sinode import imex_odeint, operators
from pyg_sinode.schemes import RUNGE_KUTTA

every_scheme = pytest.mark.parametrize("method", RUNGE_KUTTA)


def with_unnamed(kind, late):
    """An explicit term that uses a tensor which it was not given."""
    leaf = double([1.5, -0.7]).requires_grad_()
    linear = nn.Linear(2, 2, dtype=torch.float64)
    uses = {
        "leaf": lambda u: leaf * u,
        "nonleaf": lambda u, made=2 * leaf: made * u,
        "module": lambda u: linear(u),
        "leaf_itself": lambda u: leaf,
        "nonleaf_itself": lambda u, made=2 * leaf: made,
        "in_a_list": lambda u, several=(leaf,): several[0] + u,
    }
    use = uses[kind]
    return lambda t, u: -u if late and t < 0.5 else use(u)


every_unnamed = pytest.mark.parametrize(
    "kind", ["leaf", "nonleaf", "module", "leaf_itself", "nonleaf_itself", "in_a_list"])


UNNAMED = r"another tensor of shape \(2(, 2)?,?\) that requires a gradient.* in args="
AT = torch.tensor([0.0, 1.0], dtype=torch.float64)


@every_unnamed
@pytest.mark.parametrize("requires_grad", [True, False], ids=["with_gradient", "nothing_else"])
def test_a_tensor_that_nobody_named_is_refused_at_the_first_evaluation(kind, requires_grad):
    calls, explicit = [], with_unnamed(kind, late=False)

    def counted(t, u):
        calls.append(t)
        return explicit(t, u)

    u0 = double([1.0, 2.0]).requires_grad_(requires_grad)
    with pytest.raises(ValueError, match=UNNAMED):
        imex_odeint(counted, None, u0, AT, step_size=0.1)
    assert len(calls) == 1


@every_unnamed
def test_a_tensor_used_only_later_is_refused_in_the_backward_pass(kind):
    u0 = double([1.0, 2.0]).requires_grad_()
    result = imex_odeint(with_unnamed(kind, late=True), None, u0, AT, step_size=0.1)
    with pytest.raises(ValueError, match=UNNAMED):
        result.sum().backward()
    assert u0.grad is None


@every_unnamed
def test_without_gradients_nobody_has_to_be_named(kind):
    explicit, u0 = with_unnamed(kind, late=False), double([1.0, 2.0])
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert imex_odeint(explicit, None, u0, AT, step_size=0.1).isfinite().all()
    assert imex_odeint(explicit, None, u0, AT, step_size=0.1, gradient="backprop").requires_grad


def test_a_method_of_a_module_is_a_function_and_its_parameters_are_unnamed():
    with pytest.raises(ValueError, match=r"explicit term a torch\.nn\.Module that holds it"):
        imex_odeint(Tied().forward, None, double([1.0, 2.0]), AT, step_size=0.1)


def test_a_frozen_tensor_need_not_be_named():
    frozen, u0 = double([1.5, -0.7]), double([1.0, 2.0]).requires_grad_()
    result = imex_odeint(lambda t, u: frozen * u, None, u0, AT, step_size=0.1)
    result[-1].sum().backward()
    torch.testing.assert_close(u0.grad, frozen.exp(), rtol=1e-3, atol=0.0)


def test_a_tensor_made_from_another_is_fine_in_args():
    leaf = double([1.5, -0.7]).requires_grad_()
    grads = []
    for gradient in ("discrete", "backprop"):
        result = imex_odeint(lambda t, u, w: torch.sin(w * u), None, double([1.0, 2.0]), AT,
                             step_size=0.1, args=(leaf.exp(),), gradient=gradient)
        grads.append(torch.autograd.grad(result.sum(), leaf))
    assert_equal(*grads, 1e-12)


def test_a_tensor_in_a_container_in_args_is_named_as_missing_rather_than_lost():
    leaf = double([1.5, -0.7]).requires_grad_()
    with pytest.raises(ValueError, match=UNNAMED):
        imex_odeint(lambda t, u, d: d["w"] * u, None, double([1.0, 2.0]), AT, step_size=0.1,
                    args=({"w": leaf},))


class Layer(nn.Module):
    """A module that integrates inside its forward pass."""

    def __init__(self, gradient="discrete"):
        super().__init__()
        self.rate, self.gradient = Rate(2), gradient
        self.matrix = nn.Parameter(double([[-1.0, 0.5], [0.2, -2.0]]))

    def forward(self, u0):
        return imex_odeint(self.rate, operators.Dense(self.matrix), u0, TIMES, method="ssp222",
                           step_size=0.05, args=(double(0.4),), gradient=self.gradient)


def test_gradients_reach_the_tensors_that_functional_call_puts_in_place():
    u0, leaves = random(3, 2), [double([0.3, -0.2]).requires_grad_(), random(2, 2).requires_grad_()]
    layer = Layer()
    named = {"rate.weight": leaves[0].exp(), "matrix": leaves[1].tanh()}
    result = torch.func.functional_call(layer, named, (u0,))
    found = torch.autograd.grad(result.square().sum(), leaves)

    result = imex_odeint(lambda t, u, a, w: Rate.forward(Holder(w), t, u, a),
                         operators.Dense(leaves[1].tanh()), u0, TIMES, method="ssp222",
                         step_size=0.05, args=(double(0.4), leaves[0].exp()), gradient="backprop")
    assert_equal(found, torch.autograd.grad(result.square().sum(), leaves), 1e-12)
    assert all(p.grad is None for p in layer.parameters())


class Holder:
    """Something with a weight."""

    def __init__(self, weight):
        self.weight = weight


def test_functional_call_in_training_leaves_the_layers_own_parameters_alone():
    layer, u0 = Layer(), random(3, 2)
    fast = {n: p - 0.1 for n, p in layer.named_parameters()}
    torch.func.functional_call(layer, fast, (u0,)).sum().backward()
    found = [p.grad for p in layer.parameters()]
    moved = Layer()
    with torch.no_grad():
        for p in moved.parameters():
            p.sub_(0.1)
    moved(u0).sum().backward()
    assert_equal(found, [p.grad for p in moved.parameters()], 1e-12)


def test_a_weight_swapped_between_the_passes_changes_nothing():
    u0, layers = random(3, 2), (Layer(), Layer())
    results = [layer(u0).square().sum() for layer in layers]
    old = layers[0].rate.weight
    new = layers[0].rate.weight = nn.Parameter(double([7.0, 7.0]))
    for result in results:
        result.backward()
    assert torch.equal(old.grad, layers[1].rate.weight.grad)
    assert new.grad is None
    assert layers[0].rate.weight is new


@pytest.mark.parametrize("which", ["weight", "matrix", "argument", "u0"])
def test_a_change_in_place_between_the_passes_is_an_error(which):
    argument, u0 = double(0.4).requires_grad_(), random(3, 2).requires_grad_()
    layer = Layer()
    result = imex_odeint(layer.rate, operators.Dense(layer.matrix), u0, TIMES, method="ssp222",
                         step_size=0.05, args=(argument,))
    changed = {"weight": layer.rate.weight, "matrix": layer.matrix, "argument": argument, "u0": u0}
    with torch.no_grad():
        changed[which].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


class Dropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(2, 2, dtype=torch.float64), nn.Dropout(0.5)

    def forward(self, t, u, *args):
        return self.dropout(torch.sin(self.linear(u)))


@pytest.mark.parametrize("operator", [None, operators.ScaledIdentity(-1.0)])
def test_the_masks_of_dropout_are_the_same_in_the_backward_pass(operator):
    module, u0 = Dropout(), random(4, 2)
    for method in RUNGE_KUTTA:
        found, expected = gradients_in_both_modes(module, u0, method=method, operator=operator)
        assert_equal(found, expected, 1e-12, method)
    other, _ = gradients_in_both_modes(module, u0, seed=6, method=method, operator=operator)
    assert not torch.allclose(other[0], expected[0])


@every_scheme
def test_random_arguments_keep_their_masks_where_the_state_is_not_used(method):
    # The chain from stage to stage is cut here: some stages have no gradient to pass on.
    weight = random(4, 2).requires_grad_()
    found, expected = gradients_in_both_modes(OfArguments(), random(4, 2), method=method,
                                              args=(weight,))
    assert_equal(found, expected, 1e-12)


class OfArguments(nn.Module):
    def forward(self, t, u, weight):
        return torch.cos(t) * nn.functional.dropout(weight, 0.5) ** 2


def test_the_backward_pass_leaves_the_global_random_state_as_it_was():
    module, u0 = Dropout(), random(4, 2)
    result = imex_odeint(module, None, u0, TIMES, step_size=0.05)
    torch.rand(7)
    before = torch.get_rng_state()
    result.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_forward_pass_draws_what_plain_evaluations_draw():
    states = []
    for gradient in ("discrete", "backprop"):
        torch.manual_seed(1)
        imex_odeint(Dropout(), None, random(4, 2), TIMES, step_size=0.05, gradient=gradient)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


class BatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, dtype=torch.float64)

    def forward(self, t, u):
        return torch.sin(self.norm(u) + t)


class Counter(nn.Module):
    """Depends on how often it was evaluated."""

    def __init__(self, in_place):
        super().__init__()
        self.weight, self.in_place = nn.Parameter(double([0.3, -0.8])), in_place
        self.register_buffer("count", double(0.0))

    def forward(self, t, u):
        result = torch.sin(self.weight * u * (1 + self.count.clone()))
        if self.in_place:
            self.count += 1
        else:
            self.count = self.count + 1
        return result


class CountsSometimes(nn.Module):
    """Changes its buffer in some evaluations, and uses it in all."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(double([0.3, -0.8]))
        self.register_buffer("count", double(0.0))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, t, u):
        if round(float(t) / 0.1, 6).is_integer():
            self.count += 1
        return torch.sin(self.weight * u * (1 + self.count.clone()))


class SpectralNorm(nn.Module):
    def __init__(self):
        super().__init__()
        linear = nn.Linear(2, 2, dtype=torch.float64)
        self.linear = nn.utils.parametrizations.spectral_norm(linear, n_power_iterations=1)

    def forward(self, t, u):
        return torch.sin(self.linear(u) + t)


BUFFERED = {
    "batch_norm": BatchNorm,
    "counter_in_place": lambda: Counter(in_place=True),
    "counter_assigned": lambda: Counter(in_place=False),
    "counts_sometimes": CountsSometimes,
    "spectral_norm": SpectralNorm,
}


every_buffered = pytest.mark.parametrize("make", BUFFERED.values(), ids=BUFFERED)


def buffers_of(module):
    return {name: b.clone() for name, b in module.named_buffers()}


def run_buffered(make, gradient, backward_passes=1):
    """Gradients and buffers after a run with backward passes over one graph."""
    torch.manual_seed(2)
    module, u0 = make(), random(5, 2).requires_grad_()
    result = imex_odeint(module, operators.ScaledIdentity(-1.0), u0, TIMES, method="ars222",
                         step_size=0.1, gradient=gradient)
    forward = buffers_of(module)
    for _ in range(backward_passes):
        found = torch.autograd.grad(result.square().sum(), [u0, *module.parameters()],
                                    retain_graph=True)
    return found, forward, buffers_of(module)


@every_buffered
def test_gradients_of_a_module_with_buffers_equal_those_of_backprop(make):
    found, expected = (run_buffered(make, g)[0] for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-12)


@every_buffered
def test_a_second_backward_pass_finds_the_buffers_of_the_forward_pass_again(make):
    once, twice = (run_buffered(make, "discrete", n)[0] for n in (1, 2))
    assert_equal(twice, once, 0.0)


@every_buffered
def test_buffers_are_updated_by_the_forward_pass_once_and_not_by_the_backward_pass(make):
    _, forward, after = run_buffered(make, "discrete")
    _, expected, _ = run_buffered(make, "backprop")
    start = buffers_of(make())
    assert any(not torch.equal(start[name], forward[name]) for name in start)
    for name, buffer in expected.items():
        assert torch.equal(forward[name], buffer), name
        assert torch.equal(after[name], buffer), name


def test_batch_norm_counts_each_evaluation_once():
    _, _, after = run_buffered(BatchNorm, "discrete")
    assert after["norm.num_batches_tracked"] == 3 * 2


class WithConstant(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(double([0.3, -0.8]))
        self.register_buffer("constant", double([2.0, 3.0]))

    def forward(self, t, u):
        return torch.sin(self.weight * self.constant * u)


@pytest.mark.parametrize("change", ["in_place", "assigned"])
def test_a_buffer_set_to_something_else_between_the_passes_changes_nothing(change):
    u0, modules = random(3, 2), (WithConstant(), WithConstant())
    results = [imex_odeint(m, None, u0, TIMES, step_size=0.1).sum() for m in modules]
    if change == "in_place":
        modules[0].constant.mul_(5)
    else:
        modules[0].constant = double([10.0, 15.0])
    for result in results:
        result.backward()
    assert torch.equal(modules[0].weight.grad, modules[1].weight.grad)
    assert modules[0].constant.tolist() == [10.0, 15.0]


@pytest.mark.parametrize(("gradient", "memory", "kept"), [
    ("discrete", 0, False), ("discrete", 2**30, True), ("backprop", 0, True)])
def test_the_discrete_mode_keeps_graphs_of_the_explicit_term_if_it_may(gradient, memory, kept):
    made = []

    def explicit(t, u):
        inner = 2 * u
        made.append(weakref.ref(inner))
        return torch.sin(inner)  # saves its argument for the backward pass

    u0 = random(3).requires_grad_()
    result = imex_odeint(explicit, None, u0, TIMES, method="ars222", step_size=0.05,
                         gradient=gradient, graph_memory=memory)
    assert len(made) == 12
    assert all((ref() is not None) == kept for ref in made)
    result.sum().backward()
    assert all(ref() is None for ref in made)


def test_the_discrete_mode_keeps_one_tensor_a_stage_whatever_the_solver_does():
    sizes = {}
    for solver in ("Direct", "GMRES"):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x,
                                                      lambda x: x):
            u0 = random(3, 5).requires_grad_()
            imex_odeint(None, operators.Dense(0.2 * random(5, 5)), u0, TIMES, method="ssp222",
                        step_size=0.05, solver=SOLVERS[solver])
        sizes[solver] = sum(x.numel() for x in kept if x.shape == u0.shape)
    assert sizes["Direct"] == sizes["GMRES"] == (1 + 2 * 6) * 15


def test_what_the_discrete_mode_keeps_is_freed_with_its_result():
    stages = []

    def explicit(t, u):
        stages.append(weakref.ref(u))
        return torch.sin(u)

    result = imex_odeint(explicit, None, random(3).requires_grad_(), TIMES, method="ssp222",
                         step_size=0.05)
    del result
    assert all(ref() is None for ref in stages)  # by reference counts, without the collector


class Reused(torch.autograd.Function):
    """p sin(u), whose backward writes the gradient of p into the same memory each time."""

    memory = double([[0.0] * 3] * 5)

    @staticmethod
    def forward(ctx, p, u):
        ctx.save_for_backward(p, u)
        return p * u.sin()

    @staticmethod
    def backward(ctx, g):
        p, u = ctx.saved_tensors
        return Reused.memory.copy_(g * u.sin()), g * p * u.cos()


@pytest.mark.parametrize("rows", [1, 5], ids=["large_state", "small_state"])
@pytest.mark.parametrize("method", ["imex_euler", "ark324l2sa", "sbdf2", "etdrk4"])
def test_a_backward_that_reuses_the_memory_of_its_gradients_loses_none(method, rows):
    def run(product):
        def G(t, u, p):
            return product(p, u[:1].expand(5, 3)).sum(0, keepdim=True).expand(u.shape)

        u = imex_odeint(G, operators.ScaledIdentity(-1.0), u0, AT, args=(p,), method=method,
                        step_size=0.1)
        return torch.autograd.grad(u.square().sum(), p)[0]

    generator = torch.Generator().manual_seed(0)
    p, u0 = (torch.randn(n, 3, dtype=torch.float64, generator=generator)
             for n in (5, 30 if rows == 1 else 1))
    p.requires_grad_()
    torch.testing.assert_close(run(Reused.apply), run(lambda p, u: p * u.sin()), rtol=1e-12,
                               atol=1e-12)


def test_small_gradients_of_small_steps_do_not_underflow():
    def run(dtype, gradient):
        p = torch.ones(200, dtype=dtype, requires_grad=True)
        u0 = torch.ones(1, 2, dtype=dtype, requires_grad=True)
        t = torch.tensor([0.0, 1e-8], dtype=dtype)
        u = imex_odeint(lambda t, u, p: u.sin() * p.mean() / 1e-9, operators.ScaledIdentity(-1e9),
                        u0, t, args=(p,), method="ark324l2sa", step_size=1e-9, gradient=gradient)
        return torch.autograd.grad((u[-1] * 1e-35).sum(), (u0, p))

    found, expected = run(torch.float32, "discrete"), run(torch.float64, "backprop")
    for x, y in zip(found, expected, strict=True):
        assert float(((x.double() - y) / y).abs().max()) < 1e-5


class AllReused(torch.autograd.Function):
    """p sin(u), whose value and gradients are in the same memory each time."""

    value, to_p, to_u = (torch.zeros(4, 4, dtype=torch.float64) for _ in range(3))

    @staticmethod
    def forward(ctx, p, u):
        ctx.save_for_backward(p.clone(), u.clone())
        return AllReused.value.copy_(p * u.sin()).detach()

    @staticmethod
    def backward(ctx, g):
        p, u = ctx.saved_tensors
        return AllReused.to_p.copy_(g * u.sin()), AllReused.to_u.copy_(g * p * u.cos())


@pytest.mark.parametrize("implicit", [None, operators.ScaledIdentity(-1.0)], ids=["none", "decay"])
@pytest.mark.parametrize("method", ["ars222", "ark324l2sa", "sbdf2", "etdrk4"])
def test_a_term_of_which_all_results_reuse_their_memory_has_the_right_gradients(method, implicit):
    def run(product):
        u = imex_odeint(lambda t, u, p: product(p, u), implicit, u0, AT, args=(p,), method=method,
                        step_size=0.1)
        return torch.autograd.grad(u.square().sum(), (u0, p))

    generator = torch.Generator().manual_seed(0)
    u0, p = (torch.randn(4, 4, dtype=torch.float64, generator=generator).requires_grad_()
             for _ in range(2))
    assert_equal(run(AllReused.apply), run(lambda p, u: p * u.sin()), 1e-12)
