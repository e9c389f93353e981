"""Are gradients those of the scheme, of the parameters in force, and never silently missing?"""

import functools
import itertools
import weakref

import pytest
import torch
from cases import OPERATORS, SOLVERS, dense_matrix, double, fitting_pairs
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from pyg_sinode import imex_odeint, operators, solvers
from pyg_sinode.schemes import RUNGE_KUTTA

every_scheme = pytest.mark.parametrize("method", RUNGE_KUTTA)
every_operator = pytest.mark.parametrize("name", OPERATORS)
every_pair = pytest.mark.parametrize(("name", "solver"), fitting_pairs())
every_gradient = pytest.mark.parametrize("gradient", ["discrete", "backprop"])
# Two steps of different sizes, and an output after each.
TIMES, STEP_SIZE = torch.tensor([0.3, 0.5, 0.6], dtype=torch.float64), 0.2
STEPS = {"Direct": 2, "CG": 1, "GMRES": 1, "BiCGStab": 1}  # the loop does not know its solver


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def assert_equal(found, expected, tolerance, what=""):
    """Each tensor agrees relative to the largest entry of the expected one."""
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        size = float(b.detach().abs().max())
        assert size > 0, (what, i)
        error = float((a - b).detach().abs().max()) / size
        assert error <= tolerance, f"{what}: relative error {error:.1e} in gradient {i}"


# Every scheme, operator and solver


class Rate(nn.Module):
    """A nonlinear, coupled, time-dependent term with a parameter and an argument."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width, dtype=torch.float64))

    def forward(self, t, u, scale):
        return torch.sin(self.weight * u.roll(1, -1) + t) - scale * u * u


class Setting:
    """An operator case with everything that a gradient should reach, the same at each call."""

    def __init__(self, name):
        self.case = OPERATORS[name]
        torch.manual_seed(3)
        self.u0 = self.case.state().requires_grad_()
        self.rate = Rate(self.case.shape[-1])
        self.scale = double(0.3).requires_grad_()
        self.leaves = self.case.leaves()
        self.loss_weights = random(len(TIMES), *self.case.shape)  # a loss on every output time
        self.operator = self.case.build(*self.leaves)

    def gradients(self, result):
        wanted = [self.u0, self.rate.weight, self.scale, *self.leaves]
        loss = (self.loss_weights[:len(result)] * result).sum()
        return torch.autograd.grad(loss, wanted)


def plain_steps(scheme, rate, M, u, times):
    """The scheme as it is written, with dense solves, for autograd to differentiate."""
    outputs, shape, identity = [u], u.shape, torch.eye(M.size(0), dtype=M.dtype)
    for start, end in itertools.pairwise(times.tolist()):
        h, g, k = end - start, [], []
        for i, c in enumerate(scheme.c_explicit.tolist()):
            r = u.flatten()
            for j in range(i):
                r = r + h * scheme.a_explicit[i, j] * g[j] + h * scheme.a_implicit[i, j] * k[j]
            U = torch.linalg.solve(identity - h * scheme.a_implicit[i, i] * M, r)
            g.append(rate(start + c * h, U.view(shape)).flatten())
            k.append(M @ U)
        rise = sum(b * x for b, x in zip(scheme.b_explicit, g, strict=True))
        rise = rise + sum(b * x for b, x in zip(scheme.b_implicit, k, strict=True))
        u = u + h * rise.view(shape)
        outputs.append(u)
    return torch.stack(outputs)


@functools.cache
def expected_of(name, method, steps):
    """Result and gradients by plain autograd, for all solvers."""
    s = Setting(name)
    M = dense_matrix(s.operator, s.case.shape)
    result = plain_steps(RUNGE_KUTTA[method], lambda t, u: s.rate(t, u, s.scale), M, s.u0,
                         TIMES[:steps + 1])
    return result.detach(), s.gradients(result)


def found_by(name, method, solver, gradient):
    s = Setting(name)
    times = TIMES[:STEPS.get(solver, 2) + 1]
    result = imex_odeint(s.rate, s.operator, s.u0, times, method=method, step_size=STEP_SIZE,
                         solver=SOLVERS[solver], args=(s.scale,), gradient=gradient)
    return result.detach(), s.gradients(result)


def schemes_of_pairs():
    """Shares the schemes out among the solvers of each operator, another way for each operator."""
    pairs, result = fitting_pairs(), []
    for number, name in enumerate(OPERATORS):
        solvers_of = [solver for other, solver in pairs if other == name]
        for place, solver in enumerate(solvers_of):
            first, step = (place + number) % len(solvers_of), len(solvers_of)
            result.append((name, solver, list(RUNGE_KUTTA)[first::step]))
    return result


def test_every_scheme_is_tested_with_every_operator_and_with_every_solver():
    assert [(name, solver) for name, solver, _ in schemes_of_pairs()] == fitting_pairs()
    for column in (0, 1):
        met = {}
        for *pair, methods in schemes_of_pairs():
            met.setdefault(pair[column], set()).update(methods)
        assert all(m == set(RUNGE_KUTTA) for m in met.values())


@pytest.mark.parametrize(("name", "solver", "methods"), schemes_of_pairs())
def test_gradients_equal_autograd_through_the_same_steps_for_every_scheme(name, solver, methods):
    for method in methods:
        found, same = (found_by(name, method, solver, g) for g in ("discrete", "backprop"))
        plain = expected_of(name, method, STEPS.get(solver, 2))
        assert torch.equal(found[0], same[0]), method
        assert_equal([found[0]], [plain[0]], 1e-11, method)
        assert_equal(found[1], same[1], 1e-10, f"{method} against backprop")
        assert_equal(found[1], plain[1], 1e-10, f"{method} against dense steps")


@every_operator
def test_gradcheck_passes_with_every_operator(name):
    s = Setting(name)

    def run(u0, scale, weight, *leaves):
        def explicit(t, u, scale, weight):
            return torch.sin(weight * u.roll(1, -1) + t) - scale * u * u

        return imex_odeint(explicit, s.case.build(*leaves), u0, TIMES, method="ark232",
                           step_size=STEP_SIZE, solver=None if closed else SOLVERS["GMRES"],
                           args=(scale, weight))

    closed = s.operator.has_closed_inverse()
    inputs = (s.u0, s.scale, s.rate.weight, *s.leaves)
    assert gradcheck(run, inputs, fast_mode=True)


# Derivatives of gradients


def undirected(weights):
    ends = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 2]])
    edges = torch.cat([ends, ends.flip(0)], dim=1)
    return operators.Graph(edges, torch.cat([weights, weights]), 4)


SECOND = {
    "dense": (operators.Dense, (2, 2), (3, 2), None),
    "graph_by_cg": (undirected, (4,), (4, 2), solvers.CG(rtol=1e-13)),
    "graph_by_gmres": (undirected, (4,), (4, 2), solvers.GMRES(rtol=1e-13)),
    "graph_by_direct": (undirected, (4,), (4, 2), solvers.Direct()),
    "diagonal": (operators.Diagonal, (2,), (3, 2), None),
    "explicit_only": (lambda w: None, (1,), (3, 2), None),
}


def second(kind, gradient):
    """A small integration as a function of its state, parameter and coefficients; and these."""
    build, size, shape, solver = SECOND[kind]

    def run(u0, weight, coefficients):
        return imex_odeint(lambda t, u, w: torch.sin(w * u.flip(-1) + t), build(coefficients), u0,
                           TIMES[:2], method="ars222", step_size=STEP_SIZE, solver=solver,
                           args=(weight,), gradient=gradient)

    inputs = random(*shape), random(2), 0.3 * random(*size)
    return run, [x.requires_grad_() for x in inputs]


@pytest.mark.parametrize("kind", SECOND)
def test_second_derivatives_of_backprop_pass_gradgradcheck(kind):
    run, inputs = second(kind, "backprop")
    if kind == "explicit_only":
        assert gradgradcheck(lambda u0, w: run(u0, w, inputs[2]), inputs[:2])
    else:
        assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("kind", SECOND)
def test_create_graph_with_a_first_derivative_alone_works_in_the_discrete_mode(kind):
    run, inputs = second(kind, "discrete")
    wanted = inputs[:2] if kind == "explicit_only" else inputs
    loss = run(*inputs).square().sum()
    plain = torch.autograd.grad(loss, wanted, retain_graph=True)
    assert_equal(torch.autograd.grad(loss, wanted, create_graph=True), plain, 0.0)


@pytest.mark.parametrize("kind", SECOND)
def test_a_second_derivative_of_the_discrete_mode_raises_and_names_backprop(kind):
    run, inputs = second(kind, "discrete")
    for i in range(2 if kind == "explicit_only" else 3):
        loss = run(*inputs).square().sum()
        (first,) = torch.autograd.grad(loss, inputs[i], create_graph=True)
        for j in range(2 if kind == "explicit_only" else 3):
            with pytest.raises(RuntimeError, match='use gradient="backprop" for second deriv'):
                torch.autograd.grad(first.square().sum(), inputs[j], retain_graph=True)


# Subsets, outputs and repetitions


def small(gradient="discrete", method="ark232", **given):
    """An integration of an explicit term with a parameter, an argument and a matrix."""
    values = {"u0": double([[0.5, -1.0], [2.0, 0.3]]), "weight": double([1.5, -0.7]),
              "scale": double(0.4), "matrix": double([[-1.0, 0.5], [0.2, -2.0]])} | given
    rate = Rate(2)
    rate.weight = nn.Parameter(values["weight"].detach(), values["weight"].requires_grad)
    values["weight"] = rate.weight
    result = imex_odeint(rate, operators.Dense(values["matrix"]), values["u0"], TIMES,
                         method=method, step_size=0.05, args=(values["scale"],), gradient=gradient)
    return result, values


NAMES = ("u0", "weight", "scale", "matrix")


def small_gradients(wanted, gradient="discrete"):
    _, values = small()
    given = {n: values[n].detach().requires_grad_(n in wanted) for n in NAMES}
    result, values = small(gradient, **given)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    loss = (result * weights).sum()
    return dict(zip(wanted, torch.autograd.grad(loss, [values[n] for n in wanted]), strict=True))


@pytest.mark.parametrize("wanted", [c for n in (1, 2, 3) for c in itertools.combinations(NAMES, n)],
                         ids="-".join)
def test_a_subset_of_the_gradients_is_the_same_as_in_all_of_them(wanted):
    everything = small_gradients(NAMES, "backprop")
    assert_equal(list(small_gradients(wanted).values()), [everything[n] for n in wanted], 1e-12)


@every_gradient
def test_what_needs_no_gradient_gets_none_and_no_graph_is_made_without_need(gradient):
    result, _ = small(gradient)  # the parameter requires none either
    assert not result.requires_grad
    with torch.no_grad():
        result, values = small(gradient, u0=double([[0.5, -1.0]]).requires_grad_())
        assert not result.requires_grad
    result, values = small(gradient, u0=double([[0.5, -1.0]]).requires_grad_())
    result.sum().backward()
    assert values["u0"].grad is not None
    assert all(values[n].grad is None for n in NAMES[1:])


def test_the_result_is_the_same_with_and_without_gradients():
    expected, _ = small()
    for gradient in ("discrete", "backprop"):
        result, _ = small(gradient, u0=double([[0.5, -1.0], [2.0, 0.3]]).requires_grad_())
        assert torch.equal(result, expected)


@pytest.mark.parametrize("output", [0, 1, 2])
def test_a_loss_on_one_output_time_reaches_only_what_comes_before(output):
    found, expected = [], []
    for gradient, results in (("discrete", found), ("backprop", expected)):
        u0 = double([[0.5, -1.0], [2.0, 0.3]]).requires_grad_()
        result, _ = small(gradient, u0=u0)
        results.extend(torch.autograd.grad(result[output].square().sum(), u0))
    assert_equal(found, expected, 1e-12)
    if output == 0:
        torch.testing.assert_close(found[0], 2 * u0)


def test_gradients_in_float32_are_those_of_float64_to_rounding():
    expected = small_gradients(("u0", "scale", "matrix"))
    _, values = small()
    given = {n: values[n].detach().float().requires_grad_(n != "weight") for n in NAMES}
    result, values = small(**given)
    assert result.dtype == torch.float32
    loss = (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum()
    found = torch.autograd.grad(loss, [values[n] for n in expected])
    assert_equal([g.double() for g in found], list(expected.values()), 1e-5)


def test_two_backward_passes_over_a_kept_graph_agree():
    u0 = double([[0.5, -1.0], [2.0, 0.3]]).requires_grad_()
    result, values = small(u0=u0, matrix=double([[-1.0, 0.5], [0.2, -2.0]]).requires_grad_())
    wanted = [u0, values["matrix"]]
    first = torch.autograd.grad(result.sum(), wanted, retain_graph=True)
    second = torch.autograd.grad(result.sum(), wanted)
    assert_equal(second, first, 0.0)


def test_one_tensor_in_several_places_gets_the_sum_of_its_gradients():
    def run(u0, scale, matrix, gradient):
        return imex_odeint(lambda t, u, x0, a, M: torch.sin(u @ M) + a * x0,
                           a_times_dense(scale, matrix), u0, TIMES, method="ssp222",
                           step_size=0.05, args=(u0, scale, matrix), gradient=gradient)

    def a_times_dense(scale, matrix):
        return operators.Scaled(operators.Dense(matrix), scale) + operators.Dense(matrix).T

    values = [x.requires_grad_() for x in (random(3, 2), double(0.3), 0.5 * random(2, 2))]
    found, expected = (torch.autograd.grad(run(*values, g).square().sum(), values)
                       for g in ("discrete", "backprop"))
    assert_equal(found, expected, 1e-12)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Linear(2, 2, dtype=torch.float64) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, t, u):
        return torch.tanh(self.second(torch.sin(self.first(u))))


def test_a_parameter_that_two_layers_share_gets_the_gradient_of_both():
    module, u0 = Tied(), random(3, 2)
    found, expected = gradients_in_both_modes(module, u0)
    assert_equal(found, expected, 1e-12)


def gradients_in_both_modes(module, u0, seed=5, method="ars222", operator=None, args=()):
    """The gradients of a module's parameters, from copies that begin in the same state."""
    results, state = [], {k: v.clone() for k, v in module.state_dict().items()}
    for gradient in ("discrete", "backprop"):
        module.load_state_dict(state)
        torch.manual_seed(seed)
        result = imex_odeint(module, operator, u0, TIMES, method=method, step_size=0.1, args=args,
                             gradient=gradient)
        wanted = [*module.parameters(), *(a for a in args if a.requires_grad)]
        results.append(torch.autograd.grad(result.square().sum(), wanted))
    return results


# A tensor that nobody named


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


# The parameters in force


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


# Random state


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


# Buffers


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


# Memory


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
