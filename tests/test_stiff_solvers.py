"""Does the benchmark of stiff solvers solve what it says, and own up to what fails?"""

import argparse
import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the benchmark needs matplotlib, which is not installed")
pytest.importorskip("torchdiffeq", reason="the benchmark needs torchdiffeq, which is not installed")

import diffrax_kencarp
import exponential
import stiff_figure
import stiff_methods
import stiff_problems
import stiff_solvers
import torchfsm_etdrk
from benchmark_commands import FOLDER, PROBLEMS

pytestmark = pytest.mark.scripts


@pytest.fixture(scope="module")
def problems():
    with torch.no_grad():
        return {name: stiff_problems.make_problem(name, quick=True) for name in PROBLEMS}


def one_solver(name, values):
    """A solver of the benchmark, with other values of its setting."""
    (solver,) = (s for s in stiff_methods.make_solvers() if s.name == name)
    return solver._replace(values=lambda _: values)


@pytest.fixture
def measure():
    """The results of one solver on a problem."""
    def measured(problem, name, values, **limits):
        reference = stiff_solvers.Reference(problem.exact(problem.time), "exact", 0.0)
        args = argparse.Namespace(**{"repeats": 1, "time_limit": 60.0, "repeat_below": 10.0,
                                     **limits})
        with torch.no_grad():
            return stiff_solvers.measure(problem, reference, [one_solver(name, values)], args)

    return measured


# The problems


@pytest.mark.parametrize("name", PROBLEMS)
def test_pytorch_and_numpy_have_the_same_right_hand_side(problems, name):
    problem = problems[name]
    u = problem.u0 + 0.1 * torch.randn_like(problem.u0)
    found = problem.array_rhs()(0.0, u.numpy())
    expected = problem.rhs(0.0, u)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_jacobian_is_that_of_the_right_hand_side(problems, name):
    problem, rhs = problems[name], problems[name].array_rhs()
    u, eps = problem.u0.numpy(), 1e-5
    jacobian = problem.jacobian(0.0, u) if callable(problem.jacobian) else problem.jacobian
    for i in range(0, len(u), 5):
        v = np.zeros(len(u))
        v[i] = 1.0
        slope = (rhs(0.0, u + eps * v) - rhs(0.0, u - eps * v)) / (2 * eps)
        np.testing.assert_allclose(jacobian @ v, slope, rtol=1e-6, atol=1e-7 * np.abs(slope).max())


def test_the_exact_solution_starts_at_u0_and_satisfies_the_equation():
    problem, t, dt = stiff_problems.advection_diffusion(64), 0.3, 1e-3
    torch.testing.assert_close(problem.exact(0.0), problem.u0)
    at = {k: problem.exact(t + k * dt) for k in (-2, -1, 1, 2)}
    rate = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * dt)
    torch.testing.assert_close(rate, problem.rhs(t, problem.exact(t)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "least"), [("advection", 1e4), ("allen-cahn", 1e4),
                                             ("ks", 5e4)])
def test_the_problems_of_full_size_are_stiff(monkeypatch, name, least):
    monkeypatch.setattr(stiff_problems, "imex_odeint",
                        lambda G, J, u0, t, **_: torch.stack([u0, u0]))
    problem = stiff_problems.make_problem(name)
    assert problem.time * problem.stiffness() > least
    assert len(problem.u0) == (64 if name == "ks" else 512)


# The solvers


@pytest.mark.parametrize(("name", "values", "slope"), [
    ("ark436l2sa", (1e-4, 1e-6, 1e-8), 1.0), ("BDF", (1e-4, 1e-6, 1e-8), 1.0),
    ("ssp222, equal steps", (1 / 64, 1 / 128, 1 / 256), 2.0),
    ("sbdf2, equal steps", (1 / 128, 1 / 256, 1 / 512), 2.0),
    ("ark436l2sa, equal steps", (1 / 32, 1 / 64, 1 / 128), 4.0)])
def test_errors_fall_with_the_setting_at_the_expected_slope(measure, name, values, slope):
    errors = [r.error for r in measure(stiff_problems.advection_diffusion(64), name, values)]
    found = math.log(errors[0] / errors[-1]) / math.log(values[0] / values[-1])
    assert found == pytest.approx(slope, rel=0.2)


def test_the_calls_that_are_counted_are_those_that_the_solvers_report(measure):
    problem = stiff_problems.advection_diffusion(32)
    for name, value, key in (("ark548l2sa", 1e-5, "explicit_evaluations"), ("Radau", 1e-5, "nfev"),
                             ("sbdf2, equal steps", 1 / 64, "explicit_evaluations")):
        (result,) = measure(problem, name, (value,))
        assert result.evaluations == result.counts[key] > 10


def test_each_run_makes_its_own_inverses(measure):
    problem = stiff_problems.advection_diffusion(32)
    first, second = (measure(problem, "ssp222, equal steps", (0.05,))[0] for _ in range(2))
    assert first.counts["factorizations"] == second.counts["factorizations"] == 1


# Failures


@pytest.mark.parametrize(("name", "value", "words"), [
    ("implicit_adams, order 12", 0.05, "Functional iteration did not converge (at t = "),
    ("sbdf2, equal steps", 0.05, "relative error"), ("sbdf2, equal steps", 1e-3, None)])
def test_a_run_that_diverges_is_a_failure_with_its_reason(measure, name, value, words):
    (result,) = measure(stiff_problems.advection_diffusion(64, viscosity=1e-3), name, (value,))
    if words is None:
        assert result.failure is None
        assert result.error < 0.1
        return
    assert words in result.failure
    assert result.error is None
    assert stiff_solvers.cells(result)[0] == f"failed: {result.failure}"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_result_that_is_not_finite_is_a_failure(measure, monkeypatch, value):
    monkeypatch.setattr(stiff_methods.torchdiffeq, "odeint", lambda f, u0, t, **_: value * u0[None])
    (result,) = measure(stiff_problems.advection_diffusion(32), "dopri5", (1e-3,))
    assert result.failure == "the result is not finite"
    assert result.error is None


def test_a_scipy_run_that_gives_up_is_a_failure_with_its_message(measure, monkeypatch):
    problem = stiff_problems.advection_diffusion(32)
    monkeypatch.setattr(stiff_methods, "solve_ivp", lambda *_, **__: argparse.Namespace(
        success=False, message="Required step size is less than spacing between numbers."))
    (result,) = measure(problem, "BDF", (1e-3,))
    assert result.failure.startswith("RuntimeError: Required step size is less than spacing")


def test_after_a_run_out_of_time_the_finer_settings_are_left_out(measure):
    problem = stiff_problems.advection_diffusion(32)
    first, second = measure(problem, "BDF", (1e-3, 1e-4), time_limit=1e-9, repeats=2)
    assert first.failure.startswith("longer than 1e-09 s (at t = 0 of 1, after 1 evaluations")
    assert second.failure == "not run: longer than the limit of 1e-09 s already with 1.0e-03"
    assert len(first.seconds) == 1
    assert not second.seconds


def test_slow_runs_are_not_repeated(measure):
    problem = stiff_problems.advection_diffusion(32)
    for below, count in ((0.0, 1), (60.0, 3)):
        (result,) = measure(problem, "BDF", (1e-3,), repeats=3, repeat_below=below)
        assert len(result.seconds) == count


# The whole


def test_a_quick_run_writes_figures_data_and_tables(capsys, tmp_path):
    FOLDER.main(["stiff_solvers", "--quick", "--repeats", "1", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    lines = (tmp_path / "stiff-solvers.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[0]["environment"]["settings"]["quick"]
    references = [r for r in records[1:] if r["kind"] == "reference"]
    assert [r["problem"] for r in references] == list(PROBLEMS)
    assert all(0 < r["difference"] < 1e-10 for r in references)
    runs = [r for r in records[1:] if r["kind"] == "run"]
    assert {r["solver"] for r in runs} == {s.name for s in stiff_methods.make_solvers()}
    assert all((r["error"] is None) == (r["failure"] is not None) for r in runs)
    assert any(r["failure"] for r in runs)
    assert text.count("failed: ") == sum(r["failure"] is not None for r in runs)
    assert sum(line.startswith("| ") for line in text.splitlines()) == len(runs) + 2 * len(PROBLEMS)
    for name in PROBLEMS:
        assert (tmp_path / f"stiff-{name}.png").stat().st_size > 10_000


def test_a_quick_run_of_exponential_schemes_writes_a_figure_data_and_tables(capsys, tmp_path):
    FOLDER.main(["exponential", "--quick", "--repeats", "1", "--problems", "ks-64", "kdv",
                 "--out", str(tmp_path)])
    lines = (tmp_path / "exponential.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines][1:]
    runs = [r for r in records if r["kind"] == "run"]
    assert {r["problem"] for r in runs} == {"ks-64", "kdv"}
    wanted = set(exponential.STYLES)
    assert {r["solver"] for r in runs} == (
        wanted if diffrax_kencarp.is_installed() else wanted - {"KenCarp4"})
    assert [r["states"] for r in records if r["kind"] == "bare"] == [1, 1, 256, 256]
    rows = [(r["target"], r["method"]) for r in records if r["kind"] == "batch"]
    assert rows == [(x, m) for x in exponential.TARGETS for m in ("etdrk4", "sbdf4")]
    assert all(r["ratio"] > 0 for r in records if r["kind"] == "bare")
    assert (tmp_path / "exponential.png").stat().st_size > 10_000
    text = capsys.readouterr().out
    assert "package over by hand" in text
    beside = [r for r in records if r["kind"] == "torchfsm"]
    assert len(beside) == torchfsm_etdrk.is_installed()
    assert all(r["ratio"] > 0 and r["difference"] < 1e-8 for r in beside)
    assert beside or "TorchFSM is not installed: it is left out" in text


def test_the_soliton_has_its_right_hand_side_its_jacobian_and_its_speed():
    problem = stiff_problems.korteweg_de_vries(128)
    u0 = problem.u0.numpy()
    rhs = problem.array_rhs()
    torch.testing.assert_close(torch.from_numpy(rhs(0.0, u0)), problem.rhs(0.0, problem.u0),
                               rtol=1e-10, atol=1e-10)
    rate = (problem.exact(1e-4) - problem.exact(-1e-4)) / 2e-4
    torch.testing.assert_close(torch.from_numpy(rhs(0.0, u0)), rate, rtol=0, atol=0.02)
    v = 1e-6 * np.sin(np.arange(128.0))
    change = (rhs(0.0, u0 + v) - rhs(0.0, u0 - v)) / 2
    np.testing.assert_allclose(problem.jacobian(0.0, u0) @ v, change, rtol=0,
                               atol=1e-7 * abs(change).max())


def test_no_two_solvers_look_alike():
    names = {s.name for s in stiff_methods.make_solvers()}
    assert set(stiff_figure.STYLES) == names
    assert len({style[:2] + style[3:] for style in stiff_figure.STYLES.values()}) == len(names)


@pytest.mark.parametrize("name", FOLDER.names)
def test_every_benchmark_says_what_it_measures_and_what_it_writes(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        FOLDER.parse([name, "--help"])
    text = capsys.readouterr().out
    assert f"usage: python examples/benchmarks {name}" in text
    assert "Time: " in text
    assert "rites" in text.split("Time: ")[1]
    assert f"python examples/benchmarks {name}" in text.split("Time: ")[1]


@pytest.mark.parametrize("words", [["--repeats", "0"], ["--time-limit", "0"]])
def test_settings_that_measure_nothing_are_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        FOLDER.parse(["stiff_solvers", *words])
    assert words[0] in capsys.readouterr().err
