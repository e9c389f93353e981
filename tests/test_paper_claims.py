"""Do the measurements of the paper's claims measure what they say, and follow their numbers?"""

import argparse
import json

import pytest
import torch

pytest.importorskip("matplotlib", reason="the claims need matplotlib, which is not installed")
pytest.importorskip("torchdiffeq", reason="the claims need torchdiffeq, which is not installed")

import claims
from claims import finding, learned, memory, newton, nonstiff, setups
from measuring import FAILURES, Watched, Work
from paper_commands import FOLDER

pytestmark = pytest.mark.scripts


@pytest.fixture
def args():
    return argparse.Namespace(
        seed=0, repeats=1, points=32, learned_points=16, columns=2, targets=[1e-1],
        memory_steps=[10, 40], epochs=2, trajectories=4, newton_states=2, imex_states=2, limit=20.0)


# What is measured


def test_equal_steps_make_one_set_up_and_varied_ones_their_own(args):
    records = setups.varied(args).records
    count = {(r["solver"], r["steps"]): r["factorizations"] for r in records}
    # Of 20 the last 8 are still at hand in the backward pass: 12 are made again.
    assert count == {(name, kind): expected
                      for name in ("dense LU", "sparse LU", "FFT", "GMRES", "CG")
                      for kind, expected in (("equal", 1), ("varied", 32))}


def test_varied_steps_cover_the_same_time_in_different_sizes(args):
    case = setups.make_cases(args, 1)["FFT"]
    equal, varied = (times(case, 20) for times in (setups.equal_times, setups.varied_times))
    torch.testing.assert_close(equal[-1], varied[-1])
    assert len(varied.diff().unique()) == 20


def test_the_solvers_are_given_the_same_system(args):
    cases, u = setups.make_cases(args, 1), torch.randn(3, 32, dtype=torch.float64)
    torch.testing.assert_close(cases["dense LU"].operator.mv(u), cases["FFT"].operator.mv(u))


def test_live_tensors_are_counted_and_forgotten():
    with memory.TensorMemory() as seen:
        a = torch.zeros(1000, dtype=torch.float64)
        b = a.view(10, 100) + 1.0
        assert seen.alive == 16_000
        del a
        assert seen.alive == 8_000
        del b
    assert (seen.alive, seen.peak) == (0, 16_000)


def test_memory_counts_what_autograd_keeps():
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    with memory.TensorMemory() as seen:
        y = x.exp().exp().exp().sum()
        assert 24_000 <= seen.alive < 25_000
        y.backward()
        del y
        x.grad = None
        assert seen.alive < 1_000


def test_memory_is_that_of_the_checkpoints_whatever_the_steps(args):
    found = memory.steps(args)
    peak = {(r["gradient"], r["steps"]): r["peak"] for r in found.records}
    assert peak["10 checkpoints", 40] <= 1.2 * peak["10 checkpoints", 10]
    assert peak["all stages kept", 40] > 2.5 * peak["all stages kept", 10]


def test_memory_kept_does_not_grow_with_the_iterations(args):
    found = memory.iterations(args)
    assert found.verdict.holds
    kept = {r["solver"]: [] for r in found.records}
    for r in found.records:
        kept[r["solver"]].append((r["iterations"], r["kept"]))
    (few, less), (many, more) = kept["CG"]
    assert many > 2 * few
    assert less == more
    (few, less), (many, more) = kept["CG, autograd through it"]
    assert more > 4 * less


def test_the_gradient_of_a_learned_j_is_that_of_autograd(args):
    torch.manual_seed(0)
    grid = learned.PeriodicGrid(16, 1.0)
    term, stencil = learned.SquareNet(grid).double(), learned.LearnedStencil(grid).double()
    with torch.no_grad():
        stencil.conv.weight.copy_(torch.tensor([0.01, 0.05, -0.13, 0.04, 0.02]))
    assert learned.gradient_error(term, stencil, learned.make_states(args, grid)) < 1e-10


def test_training_lowers_the_loss_and_draws(args):
    found = learned.learned(args)
    (record,) = found.records
    assert record["losses"][-1] < record["losses"][0]
    assert record["gradient_error"] < 1e-10


def test_the_symbol_of_the_true_stencil_is_the_true_symbol():
    grid = learned.PeriodicGrid(16, 1.0)
    stencil = learned.LearnedStencil(grid).double()
    with torch.no_grad():
        stencil.conv.weight.copy_(learned.VISCOSITY * torch.tensor([0.0, 1.0, -2.0, 1.0, 0.0]))
    torch.testing.assert_close(learned.symbol(stencil, grid), learned.true_symbol(grid))


def test_a_step_of_newton_out_of_time_says_so(args):
    args.limit = 0.0
    record = newton.of_crank_nicolson(args, 0.2, 32, "float64")
    assert record["failure"] == "longer than 0 s"
    assert record["epoch"] is None


def test_a_time_limit_is_seen_inside_a_linear_solve(args):
    term, _, u0 = newton.make_problem(args, 2, "float64")
    work = Work(100.0)
    x = u0.requires_grad_()
    z = Watched(term, work)(torch.tensor(0.0), x)
    v = torch.zeros_like(z, requires_grad=True)
    (vjp,) = torch.autograd.grad(z, x, v, create_graph=True)
    torch.autograd.grad(vjp, v, torch.ones_like(x), retain_graph=True)
    work.end = 0.0
    with pytest.raises(FAILURES, match="longer than 100 s"):
        torch.autograd.grad(vjp, v, torch.ones_like(x))


# Verdicts follow the numbers


@pytest.mark.parametrize(("alone", "holds"), [(10.0, True), (5.1, False)])
def test_growth_holds_where_a_step_alone_costs_more(alone, holds):
    verdict = setups.judge_growth({1: {1: alone, 20: 5.0}, 8: {1: 20.0, 20: 5.0}})
    assert verdict.holds is holds
    assert f"{alone / 5.0:.2f} times (1 state)" in verdict.reason


@pytest.mark.parametrize(("dense", "gmres", "holds"), [(3.0, 1.0, True), (1.0, 1.0, False),
                                                       (3.0, 1.5, False)])
def test_varied_holds_where_lu_slows_and_krylov_does_not(dense, gmres, holds):
    ratios = {"dense LU": dense, "sparse LU": 1.5, "GMRES": gmres, "CG": 1.0}
    assert setups.judge_varied(ratios).holds is holds


@pytest.mark.parametrize(("evaluations", "ms", "holds"), [(100, 5.0, True), (300, 5.0, False),
                                                          (100, 50.0, False)])
def test_nonstiff_holds_where_explicit_solvers_need_no_more(evaluations, ms, holds):
    records = [{"target": 1e-3, "system": "rk4", "evaluations": evaluations, "ms": ms},
               {"target": 1e-3, "system": "imex_rk4", "evaluations": 120, "ms": 8.0}]
    assert nonstiff.judge_nonstiff(records).holds is holds


@pytest.mark.parametrize(("peak", "holds"), [(1.0, True), (9.0, False)])
def test_memory_holds_where_it_does_not_grow(peak, holds):
    records = [{"gradient": name, "steps": steps, "peak": 1.0 if steps == 10 else peak}
               for name in ("all stages kept", "10 checkpoints") for steps in (10, 1000)]
    assert memory.judge_steps(records).holds is holds
    records = [{"solver": name, "iterations": n, "kept": 1.0 if n == 5 else peak, "peak": 1.0}
               for name in ("GMRES", "CG") for n in (5, 50)]
    assert memory.judge_iterations(records).holds is holds


@pytest.mark.parametrize(("symbol", "gradient", "holds"), [
    (1e-3, 1e-12, True), (0.5, 1e-12, False), (1e-3, 0.1, False)])
def test_learned_holds_where_symbol_and_gradient_are_right(symbol, gradient, holds):
    assert learned.judge_learned(symbol, gradient).holds is holds


@pytest.mark.parametrize(("large", "small", "epoch", "holds"), [
    ("stalled", None, 5000.0, True), (None, None, 5000.0, False), ("stalled", "stalled", 1, False),
    ("stalled", None, 10.0, False)])
def test_newton_holds_where_large_steps_fail_and_small_ones_are_slow(large, small, epoch,
                                                                     holds):
    records = [{"solver": "crank_nicolson", "restart": 30, "dtype": "float64", "step": step,
                "failure": failure, "epoch": epoch if failure is None else None}
               for step, failure in ((0.2, large), (0.02, small))]
    records += [{"solver": "imex_rk2", "restart": None, "step": 0.2, "failure": None, "epoch": 0.5},
                {**records[0], "restart": 512, "failure": None, "epoch": 77.0}]
    verdict = newton.judge_newton(records)
    assert verdict.holds is holds
    assert "at 0.2 a restart of 512 works in float64, about 77 s an epoch" in verdict.reason


def test_a_section_says_what_the_verdict_says():
    for holds, words in ((True, "Here reproduced: 3 of 4."), (False, "Here not reproduced: 3 of")):
        found = finding.Finding("it is so", finding.Verdict(holds, "3 of 4"), ["| a |"], [])
        assert words in found.section("name")


# The whole


def test_a_small_run_writes_data_tables_and_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(setups, "STEPS", (1, 3))
    FOLDER.main([
        "claims", "--quick", "--out", str(tmp_path), "--points", "32", "--learned-points", "16",
        "--repeats", "1", "--columns", "2", "--targets", "1e-1", "--memory-steps", "10", "20",
        "--epochs", "4", "--trajectories", "4", "--imex-states", "2"])
    lines = [json.loads(x) for x in (tmp_path / "claims.jsonl").read_text().splitlines()]
    assert lines[0]["environment"]["settings"]["points"] == 32
    verdicts = {line["claim"]: line["holds"] for line in lines[1:] if "holds" in line}
    assert list(verdicts) == list(claims.CLAIMS)
    text = (tmp_path / "claims.md").read_text()
    for name, holds in verdicts.items():
        title = text.split(f"**{name}.**")[1].split("\n")[0]
        assert ("Here not reproduced" in title) is not holds
    assert (tmp_path / "claims-learned.png").stat().st_size > 10_000
