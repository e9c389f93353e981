"""Is the schedule the best there is, and are gradients by checkpoints the same to the last bit?"""

import functools
import math
from typing import ClassVar

import pytest
import torch

from pyg_sinode import imex_odeint, operators, solvers
from pyg_sinode.integrate.checkpoints import advances, backwards, first_sweep, split
from pyg_sinode.schemes import MULTISTEP, RUNGE_KUTTA

# The schedule


@functools.cache
def fewest_advances(steps, slots):
    """By dynamic programming over where to keep the next state."""
    if steps <= 1:
        return 0
    if slots == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest_advances(steps - m, slots - 1) + fewest_advances(m, slots)
               for m in range(1, steps))


class Reversal:
    """Runs the schedule on states that are step numbers, and watches it."""

    def __init__(self, steps, slots, kept=None):
        self.kept = [(0, 0)] if kept is None else kept
        self.advances, self.peak = 0, len(self.kept)
        self.order = list(backwards(steps, slots, self.kept, self.advance, self.record,
                                    self.pack, lambda state: state))

    def advance(self, number, state):
        assert number == state
        self.advances += 1
        return state + 1

    def record(self, number, state):
        assert number == state
        return number

    def pack(self, state):
        self.peak = max(self.peak, len(self.kept) + 1)
        return state


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 41])
def test_the_schedule_reverses_every_step_in_the_fewest_advances(steps, slots):
    run = Reversal(steps, slots)
    assert run.order == list(reversed(range(steps)))
    assert run.advances == advances(steps, slots) == fewest_advances(steps, slots)
    assert run.peak <= slots
    assert run.kept == []


def test_ten_thousand_steps_with_twenty_states_take_37976_advances():
    assert advances(10_000, 20) == 37_976
    assert Reversal(10_000, 20).advances == 37_976


@pytest.mark.parametrize("slots", [1, 2, 4, 20])
@pytest.mark.parametrize("steps", [1, 2, 30, 200])
def test_states_of_the_first_sweep_save_just_that_sweep(steps, slots):
    positions = first_sweep(steps, slots)
    assert len(positions) <= slots
    assert positions == sorted(set(positions))
    # The sweep ends before the last step, whose own stages are at hand then.
    run = Reversal(steps, slots, [(p, p) for p in positions])
    assert run.advances == advances(steps, slots) - max(positions[-1], 0)


def test_the_split_leaves_something_on_both_sides():
    for steps in range(2, 60):
        for slots in range(2, 8):
            assert 1 <= split(steps, slots) < steps


def test_the_formula_is_that_of_the_least_number_of_repetitions():
    for steps, slots in [(2, 1), (50, 3), (1771, 20), (1772, 20)]:
        r = next(r for r in range(steps) if math.comb(slots + r, r) >= steps)
        assert advances(steps, slots) == r * steps - math.comb(slots + r, r - 1)


# Gradients


class Term(torch.nn.Module):
    """A small nonlinear term that depends on time."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 3), *layers).double()

    def forward(self, t, u, shift):
        return torch.tanh(self.layers(u)) * torch.cos(t) + shift


def solution_and_gradients(term=None, times=5, **options):
    torch.manual_seed(0)
    if term is None:
        term = Term()
    matrix = (torch.randn(3, 3).double() - 3 * torch.eye(3).double()).requires_grad_()
    u0 = torch.randn(4, 3).double().requires_grad_()
    shift = torch.randn(3).double().requires_grad_()
    t = torch.linspace(0, 1.2, times).double()
    weight = torch.randn(times, 4, 3).double()
    torch.manual_seed(1)
    u, stats = imex_odeint(term, operators.Dense(matrix), u0, t, args=(shift,),
                           return_stats=True, **options)
    leaves = [u0, matrix, shift, *term.parameters()]
    return u.detach(), torch.autograd.grad((weight[:len(u)] * u).sum(), leaves), stats


def assert_same_bits(options, checkpoints, make=lambda: None):
    expected = solution_and_gradients(make(), **options)
    got = solution_and_gradients(make(), checkpoints=checkpoints, **options)
    assert torch.equal(expected[0], got[0])
    assert all(map(torch.equal, expected[1], got[1]))
    assert expected[2].steps_recomputed == 0
    return got[2]


def slots_of(checkpoints, steps):
    return math.ceil(math.sqrt(steps)) if checkpoints == "auto" else checkpoints


every_number = pytest.mark.parametrize("checkpoints", [1, 3, 100, "auto"])
every_method = pytest.mark.parametrize("method", [*RUNGE_KUTTA, *MULTISTEP])


@every_number
@every_method
def test_gradients_are_the_same_to_the_last_bit_and_no_step_is_made_again_in_vain(
        method, checkpoints):
    stats = assert_same_bits({"method": method, "step_size": 0.1}, checkpoints)
    assert stats.steps_accepted == 12
    assert stats.steps_recomputed == advances(12, slots_of(checkpoints, 12))


@every_number
@pytest.mark.parametrize("method", ["ark436l2sa", "ark324l2sa"])
def test_adaptive_steps_take_one_sweep_more(method, checkpoints):
    stats = assert_same_bits({"method": method, "rtol": 1e-4, "atol": 1e-4}, checkpoints)
    n = stats.steps_accepted
    # The last step's stages are kept, so that its repetition and the way to it are saved.
    assert n > 5
    assert stats.steps_recomputed == advances(n - 1, slots_of(checkpoints, n)) + n - 1


@every_number
@pytest.mark.parametrize("options", [{"step_size": 0.17}, {"rtol": 1e-4}], ids=["equal", "adapted"])
def test_interpolated_outputs_too(options, checkpoints):
    assert_same_bits({"method": "ark436l2sa", "dense": True, "times": 9, **options}, checkpoints)


@pytest.mark.parametrize("checkpoints", [1, 3, "auto"])
@pytest.mark.parametrize("options", [{"step_size": 0.1}, {"rtol": 1e-4, "method": "ark324l2sa"}])
def test_a_run_that_a_callback_stopped_too(options, checkpoints):
    stats = assert_same_bits({**options, "callback": lambda t, u: t > 0.7}, checkpoints)
    assert 0.7 < stats.stopped_at < 1.1


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(3)],
                         ids=["dropout", "batch_norm"])
@pytest.mark.parametrize("checkpoints", [1, 3])
def test_random_numbers_and_buffers_are_those_of_the_forward_pass(layer, checkpoints):
    def make():
        torch.manual_seed(2)
        return Term(layer.__class__(*([0.5] if isinstance(layer, torch.nn.Dropout) else [3])))

    assert_same_bits({"step_size": 0.1}, checkpoints, make)


class FromGuess(solvers.Inverse):
    """Two steps of Richardson's iteration, by a class that does not say that it is iterative."""

    def solve(self, b, guess=None):
        x = b if guess is None else guess
        for _ in range(2):
            x = x + b - self.operator.mv(x)
        return operators.Solution(x)

    def transpose(self):
        return FromGuess(self.operator.T)


class Richardson:
    def invert(self, operator):
        return FromGuess(operator)


ITERATIVE = {"GMRES": solvers.GMRES(), "BiCGStab": solvers.BiCGStab(), "default": None,
             "of one's own": Richardson()}


@pytest.mark.parametrize("solver", ITERATIVE.values(), ids=ITERATIVE)
@pytest.mark.parametrize("options", [
    {"step_size": 0.07}, {"step_size": 0.07, "method": "crank_nicolson"},
    {"step_size": 0.07, "method": "sbdf4"}, {"rtol": 1e-2, "method": "ark232"}], ids=str)
def test_guesses_of_iterative_solvers_are_those_of_the_forward_pass(solver, options):
    found = []
    for checkpoints in (None, 1, 3):
        torch.manual_seed(0)
        w = (0.3 * torch.randn(6, 6) - torch.eye(6)).requires_grad_()
        J = operators.MatrixFree(lambda u, w: u @ w.T, w)
        u = imex_odeint(lambda t, u: torch.sin(u), J, torch.randn(3, 6), torch.tensor([0.0, 1.0]),
                        solver=solver, checkpoints=checkpoints, **options)
        found.append([u.detach(), *torch.autograd.grad(u[-1].square().sum(), w)])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_a_second_backward_pass_over_a_kept_graph_starts_from_the_initial_state():
    u0 = torch.randn(4, 3).double().requires_grad_()
    u, stats = imex_odeint(
        lambda t, u: torch.sin(u), operators.ScaledIdentity(-1.0), u0, torch.tensor([0.0, 1.2]),
        step_size=0.1, checkpoints=3, return_stats=True)
    (first,) = torch.autograd.grad(u[-1].sum(), u0, retain_graph=True)
    assert stats.steps_recomputed == advances(12, 3)
    (second,) = torch.autograd.grad(u[-1].sum(), u0)
    assert torch.equal(first, second)
    assert stats.steps_recomputed == advances(12, 3) + advances(11, 3) + 11


def test_evaluations_of_steps_made_again_are_counted():
    _, _, stats = solution_and_gradients(method="ark324l2sa", step_size=0.1, checkpoints=2)
    assert stats.explicit_evaluations == 4 * (12 + stats.steps_recomputed)
    assert stats.explicit_vjps == 4 * 12


def bytes_kept(checkpoints):
    """What the forward pass of 1000 steps keeps for the backward pass."""
    u0 = torch.linspace(0, 1, 256, dtype=torch.float64).requires_grad_()
    u = imex_odeint(lambda t, u: torch.sin(u), operators.ScaledIdentity(-1.0), u0,
                    torch.tensor([0.0, 1.0]), step_size=1e-3, checkpoints=checkpoints)
    saved = {x.data_ptr(): x.numel() * x.element_size() for x in u.grad_fn.saved_tensors}
    states = [x for _, state in u.grad_fn.kept.states for x in state
              if isinstance(x, torch.Tensor)]
    assert len(states) <= 19
    return sum(saved.values()) + sum(x.numel() * x.element_size() for x in states)


def test_twenty_states_take_less_than_a_hundredth_of_what_all_stages_of_1000_steps_take():
    full, few = bytes_kept(None), bytes_kept(20)
    assert full >= 1000 * 4 * 256 * 8
    assert few < 0.01 * full


class Moved(torch.Tensor):
    """A tensor that counts how it is moved to another device and back."""

    moves: ClassVar = []

    def to(self, *args, **kwargs):
        Moved.moves.append(args)
        return super().to(*args, **kwargs)


def test_states_are_kept_on_the_device_asked_for_and_brought_back():
    u0 = torch.randn(4, 3).double().as_subclass(Moved).requires_grad_()
    Moved.moves.clear()
    u = imex_odeint(lambda t, u: torch.sin(u), operators.ScaledIdentity(-1.0), u0,
                    torch.tensor([0.0, 1.2]), step_size=0.1, checkpoints=3,
                    checkpoint_device="cpu")
    out = [m for m in Moved.moves if m == (torch.device("cpu"),)]
    assert len(out) == len(first_sweep(12, 3)) - 1
    u[-1].sum().backward()
    assert u0.grad.isfinite().all()
    assert len(Moved.moves) > len(out)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"checkpoints": 0}, ValueError, r'as an int of at least 1, "auto" or None \(got 0\)'),
    ({"checkpoints": -3}, ValueError, "checkpoints as an int of at least 1"),
    ({"checkpoints": 2.0}, ValueError, "checkpoints as an int of at least 1"),
    ({"checkpoints": True}, ValueError, "checkpoints as an int of at least 1"),
    ({"checkpoints": "all"}, ValueError, r"\(got 'all'\)"),
    ({"checkpoints": 3, "gradient": "backprop"}, ValueError, 'gradient="discrete" with check'),
    ({"checkpoint_device": "cpu"}, ValueError, "checkpoint_device only with checkpoints"),
])
def test_what_does_not_fit_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        imex_odeint(None, operators.ScaledIdentity(-1.0), torch.ones(2), torch.tensor([0.0, 1.0]),
                    step_size=0.1, **options)
