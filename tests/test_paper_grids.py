"""Do the paper's grid problems train every system alike, and count what the paper counts?"""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky

pytest.importorskip("matplotlib", reason="the table needs matplotlib, which is not installed")
pytest.importorskip("torchdiffeq", reason="the table needs torchdiffeq, which is not installed")

import grid_figures
import systems
import table2
from grid_learning import GridMLP
from measuring import DivergedError, TimeLimitError, Work
from paper_commands import FOLDER

pytestmark = pytest.mark.scripts

NAMES = ("rk4", "dopri5", "dopri5_adjoint", "explicit_adams", "implicit_adams", "crank_nicolson",
         "imex_rk2", "imex_rk3", "imex_rk4", "imex_rk5")


@pytest.fixture(scope="module")
def problems():
    return {name: replace(table2.resized(problem, num_points=32, batch_size=3), width=16)
            for name, problem in table2.PROBLEMS.items()}


@pytest.fixture
def trainer(problems):
    def made(problem, system, step=None, states=None):
        problem, system = problems[problem], table2.SYSTEMS[system]
        row = table2.Row(system.name, system, step or problem.step_size(system))
        args = argparse.Namespace(seed=0, lr=1e-3, limit=60.0, turn=1)
        return table2.Trainer(problem, row, waves(problem) if states is None else states, args)

    return made


def waves(problem):
    """Two trajectories of smooth states."""
    x = 2 * torch.pi * torch.arange(problem.num_points) / problem.num_points
    return 0.3 * torch.sin(x + 0.2 * torch.arange(10.0).view(2, 5, 1))


# The problems


@pytest.mark.parametrize("problem", ["ks-64", "ks-512", "burgers-512", "burgers-1024"])
def test_the_paper_s_counts_come_out_exactly(trainer, problem):
    place = list(table2.PROBLEMS).index(problem)
    compared = 0
    for system in ("rk4", "imex_rk2", "imex_rk3", "imex_rk4", "imex_rk5"):
        paper = table2.PAPER[system][place]
        if not paper.isdigit():
            continue
        one = trainer(problem, system)
        one.batch()
        assert table2.an_epoch(one.evaluations, one.problem.batches) == int(paper)
        compared += 1
    assert compared >= 4


def test_the_widths_and_points_are_the_paper_s():
    sizes = [(p.num_points, p.width) for p in table2.PROBLEMS.values()]
    assert sizes == [(64, 200), (512, 576), (512, 576), (1024, 1152)]


@pytest.mark.parametrize("system", ["rk4", "explicit_adams"])
@pytest.mark.parametrize("name", ["ks-64", "burgers-512"])
def test_a_system_is_stable_at_its_stable_step_and_not_at_a_quarter_more(problems, name,
                                                                         system):
    problem = problems[name]
    matrix = torch.eye(problem.num_points, dtype=torch.float64)
    fastest = float(torch.linalg.eigvals(problem.linear.mv(matrix)).real.min())
    z = fastest * problem.stable_step(table2.SYSTEMS[system])

    def growth(z):
        if system == "rk4":
            return abs(1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24)
        return max(abs(np.roots([1, -1 - 23 / 12 * z, 16 / 12 * z, -5 / 12 * z])))

    assert growth(z) < 1.0 < growth(1.25 * z)


# The training


@pytest.mark.parametrize("name", NAMES)
def test_every_system_has_the_gradient_of_the_equation(trainer, name):
    def gradient(system, step):
        one = trainer("ks-64", system, step)
        one.model.double()
        states = one.problem.batch(one.states.double(), 0, 0)
        one.gradient(states, torch.tensor([0.0, 0.04], dtype=torch.float64), Work())
        return torch.cat([p.grad.flatten() for p in one.model.parameters()])

    exact = gradient("rk4", 0.0005)
    # The adjoint ODE of dopri5 is solved to its tolerances.
    bound = 2e-3 if name == "dopri5_adjoint" else 2e-4
    assert float((gradient(name, 0.004) - exact).norm() / exact.norm()) < bound


def test_all_systems_start_with_the_same_weights_and_see_the_same_batches(
        trainer, monkeypatch):
    seen = []

    def loss(found, truth):
        seen.append(truth)
        return (found - truth).square().mean()

    monkeypatch.setattr(table2, "mean_square", loss)
    one, other = trainer("ks-64", "imex_rk2"), trainer("ks-64", "crank_nicolson")
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for _ in range(2):
        one.batch()
        other.batch()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("name", ["rk4", "dopri5", "dopri5_adjoint", "crank_nicolson"])
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_an_integration_ends_at_its_limit_in_either_pass(trainer, name, phase):
    one, work = trainer("burgers-512", name, 0.05), Work(0.0 if phase == "forward" else 60.0)
    equation, u = one.problem.split(one.model), one.states[0, :2]
    if phase == "forward":
        with pytest.raises(TimeLimitError, match="longer than"):
            one.row.system.integrate(equation, u, one.problem.t, 0.05, work)
        return
    states = one.row.system.integrate(equation, u, one.problem.t, 0.05, work)
    work.end = 0.0
    with pytest.raises(TimeLimitError, match="longer than"):
        states.sum().backward()


def test_the_evaluations_of_a_long_integration_follow_from_a_short_one(problems):
    for name, each in (("rk4", 4), ("explicit_adams", 1)):
        row = table2.Row(name, table2.SYSTEMS[name], 0.001)
        start = 0 if name == "rk4" else 6  # two steps of rk4
        assert table2.evaluations_of(problems["ks-64"], row) == 200 * each + start


def test_a_window_of_few_steps_estimates_an_epoch(trainer):
    about = table2.estimated(trainer("ks-64", "rk4"), 800)
    assert about is not None
    assert about > 0


# The command


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs the command on a tiny problem, of which the data are made once."""
    root = tmp_path_factory.mktemp("data")

    def run(out, *more):
        FOLDER.main(["table2", "--problems", "burgers-512", "--points", "32", "--batch-size", "4",
                     "--trajectories", "5", "--duration", "0.3", "--turn", "1", "--epochs", "1",
                     "--budget", "1000", "--root", str(root), "--out", str(out), *more])
        first, *lines = map(json.loads, (out / "table2.jsonl").read_text().splitlines())
        return first["environment"], {x["system"]: x for x in lines if "system" in x}

    return run


def test_a_system_that_fails_is_recorded_and_the_others_go_on(
        command, tmp_path, monkeypatch):
    calls = []

    def fails_at_last(*args):
        calls.append(args)
        if len(calls) > 2:
            raise DivergedError("the state is not finite")
        return table2.SYSTEMS["imex_rk3"].run(*args)

    monkeypatch.setitem(table2.SYSTEMS, "crank_nicolson",
                        replace(table2.SYSTEMS["crank_nicolson"], run=fails_at_last))
    environment, found = command(tmp_path, "--systems", "crank_nicolson", "imex_rk2", "imex_rk3")
    assert environment["settings"]["seed"] == 0
    assert found["crank_nicolson"]["failure"] == "batch 3: the state is not finite"
    assert found["crank_nicolson"]["turns"] == 2
    assert found["imex_rk2"]["failure"] is None
    assert found["imex_rk2"]["turns"] > 2
    assert found["imex_rk2"]["evaluations"] == 152
    assert found["imex_rk2"]["ratio"] == 1.0
    text = (tmp_path / "table2.md").read_text()
    assert "batch 3: the state is not finite" in text
    assert "| burgers-512 | seconds of crank_nicolson / imex_rk3, an epoch | 3.4 |" in text
    for name in ("loss", "prediction"):
        figure = (tmp_path / f"table2-burgers-512-{name}.png").read_bytes()
        assert figure.startswith(b"\x89PNG")


def test_what_was_ended_has_its_count_from_the_steps(command, tmp_path):
    _, found = command(tmp_path, "--systems", "rk4", "--limit", "1e-3")
    assert found["rk4"]["failure"].startswith("batch 1: longer than")
    assert found["rk4"]["about"]
    assert found["rk4"]["evaluations"] == 15200
    assert found["rk4"]["seconds"] > 0


def test_a_finished_problem_is_measured_again_only_with_other_settings(
        command, tmp_path, monkeypatch):
    _, found = command(tmp_path, "--systems", "imex_rk2")
    runs = []

    def counted(*args):
        runs.append(args)
        return list(found.values())

    monkeypatch.setattr(table2, "run_problem", counted)
    monkeypatch.setattr(table2, "plot_losses", lambda *_: None)
    assert command(tmp_path, "--systems", "imex_rk2")[1] == found
    assert not runs
    command(tmp_path, "--systems", "imex_rk2", "--lr", "1e-3")
    command(tmp_path, "--systems", "imex_rk2", "--lr", "1e-3", "--restart")
    assert len(runs) == 2


def test_crank_nicolson_refuses_steps_whose_residual_is_rounding():
    problem, system = table2.PROBLEMS["ks-512"], table2.SYSTEMS["crank_nicolson"]
    u0 = torch.zeros(1, 512)
    with pytest.raises(DivergedError, match=r"rounding of h/2 J u in torch.float32"):
        system.integrate(problem.split(problem.model(0)), u0, problem.t, 0.2)


def test_crank_nicolson_takes_no_more_than_newton_with_one_fixed_tolerance():
    # A plain Newton-GMRES, each linear solve to 1e-3, took 43 evaluations of G + J u and 1230
    # products with its derivative in the forward pass, 1869 of all kinds with the backward pass.
    J, initial = kuramoto_sivashinsky(PeriodicGrid(64, 22.0))[1:]
    u0 = initial(16, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    term = GridMLP(64, 200).double()
    work = Work()
    states = systems.SYSTEMS["crank_nicolson"].integrate(
        systems.Equation(term, J, (), -1), u0.requires_grad_(),
        torch.tensor([0.0, 2.0], dtype=torch.float64), 0.2, work)
    forward = work.totals()
    states[-1].square().mean().backward()
    total = work.totals()
    assert forward["evaluations"] + forward["jvps"] + forward["vjps"] <= 1273
    assert total["evaluations"] + total["jvps"] + total["vjps"] <= 1869
    fine = systems.SYSTEMS["imex_rk5"].integrate(
        systems.Equation(term, J, (), -1), u0.detach(),
        torch.tensor([0.0, 2.0], dtype=torch.float64), 0.02).detach()
    error = float((states[-1].detach() - fine[-1]).norm() / fine[-1].norm())
    assert error < 0.05


def test_predictions_are_compared_over_the_time_that_all_truths_have(trainer, monkeypatch,
                                                                     tmp_path):
    one, lengths = trainer("ks-64", "imex_rk2"), []

    def rollout(problem, row, model, truth):
        lengths.append(truth.size(1))
        return truth

    monkeypatch.setattr(grid_figures, "rollout", rollout)
    truths = {"long": waves(one.problem)[:1], "short": waves(one.problem)[1:, :4]}
    table2.plot_rollout(tmp_path / "a.png", one.problem, one.row, one.model, truths, 0)
    assert lengths == [4, 4]
    assert (tmp_path / "a.png").exists()
