"""Does the module that all measurements share count, limit, time and name failures as it says?"""

import json
import math
import time

import measuring
import numpy as np
import pytest
import torch
from measuring import FAILURES, FOREIGN_FAILURES, DivergedError, TimeLimitError, Work

from pyg_sinode import imex_odeint
from pyg_sinode.operators import ScaledIdentity


def decay(t, u):
    return -u


# Counting


def test_evaluations_and_products_are_counted_of_tensors_and_of_arrays():
    work = Work()
    rhs = work.counted(decay)
    u = torch.ones(3, requires_grad=True)
    (rhs(0.5, u) + rhs(0.7, u)).sum().backward()
    assert (work.evaluations, work.vjps, work.t) == (2, 2, 0.7)
    torch.testing.assert_close(u.grad, torch.full((3,), -2.0))
    np.testing.assert_array_equal(rhs(0.9, np.ones(2)), -np.ones(2))
    assert (work.evaluations, work.vjps, work.t) == (3, 2, 0.9)


def test_evaluations_that_keep_no_graph_give_the_same_gradient_and_are_counted_once():
    def gradient(kept):
        work, calls = Work(), []
        u = x = torch.ones(3, requires_grad=True)
        rhs = work.counted(lambda t, u: calls.append(t) or torch.sin(u), kept=kept)
        for _ in range(4):
            u = u + 0.1 * rhs(0.0, u)
        u.sum().backward()
        assert (work.evaluations, work.vjps) == (4, 4)
        return x.grad, len(calls)

    kept, calls = gradient(math.inf)
    again, more = gradient(1)
    assert torch.equal(kept, again)
    assert (calls, more) == (4, 7)


def test_totals_add_what_solvers_have_counted_themselves():
    work = Work()
    _, stats = imex_odeint(decay, ScaledIdentity(-1.0), torch.ones(1), torch.tensor([0.0, 1.0]),
                           method="imex_rk2", step_size=0.25, return_stats=True)
    work.parts.append(stats)
    work.counted(decay)(0.0, torch.ones(1))
    total = work.totals()
    assert total["evaluations"] == stats.explicit_evaluations + 1 == 9
    assert total["solves"] == stats.linear_solves == 8
    assert total["factorizations"] == stats.factorizations
    assert total["vjps"] == total["jvps"] == 0


def test_an_evaluation_after_the_limit_is_refused_and_counted():
    work = Work(limit=0.0)
    with pytest.raises(TimeLimitError, match="longer than 0 s"):
        work.counted(decay)(0.0, torch.ones(1))
    assert work.evaluations == 1


def test_a_watched_state_that_is_not_finite_is_noticed():
    rhs, u = Work().counted(decay, watched=True), torch.tensor([math.nan])
    for t in range(31):
        rhs(t, u)
    with pytest.raises(DivergedError, match="not finite at t = 31"):
        rhs(31, u)


# Failures


def test_a_failure_is_named_in_a_line():
    assert measuring.reason(DivergedError("a loss of nan. Take a smaller step.")) == "a loss of nan"
    assert measuring.reason(ValueError("a\n  b. c")) == "ValueError: a b"
    assert not issubclass(ValueError, FAILURES)
    assert issubclass(ValueError, FOREIGN_FAILURES)


# Times and memory


def test_interleaved_jobs_take_turns_and_the_first_round_does_not_count():
    turns = []
    jobs = {"a": lambda: turns.append("a") or 1, "b": lambda: turns.append("b") or 2}
    timings = measuring.interleaved(jobs, 2)
    assert turns == ["a", "b"] * 3
    assert {name: len(x) for name, x in timings.seconds.items()} == {"a": 2, "b": 2}
    assert timings.results == {"a": 1, "b": 2}


def test_ratios_are_medians_of_the_ratios_of_rounds():
    timings = measuring.Timings({"a": [2.0, 9.0, 4.0], "b": [1.0, 1.0, 4.0], "c": [1.0, 2.0, 4.0]},
                                {})
    assert timings.ratio("a", "b") == 2.0
    assert timings.ratio("a", "b", "c") == 1.0
    assert timings.median("a") == 4.0
    assert timings.best("a") == 2.0


def test_the_tensors_that_a_job_holds_at_once_are_counted():
    kept = []

    def job():
        one = torch.zeros(1000)
        two = one + 1.0
        del one
        kept.append(two * two + two)  # a product, then the sum beside it

    assert measuring.peak_of_tensors(job) == 3 * 4000
    assert measuring.peak_of_tensors(lambda: None) == 0


def test_the_peak_memory_of_a_job_is_seen():
    def job():
        block = torch.ones(16 * 2**20)  # 64 MiB
        time.sleep(0.05)
        return block

    assert 60 < measuring.peak_memory(job) < 90


def test_a_job_that_fails_ends_the_thread_that_watches_it():
    def job():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        measuring.peak_memory(job)


# Records and tables


def test_a_record_begins_with_the_machine_and_the_settings(tmp_path):
    import argparse

    record = measuring.Record(tmp_path / "new" / "a.jsonl", argparse.Namespace(out=tmp_path, n=3))
    record.add(x=1.5, path=tmp_path)
    first, second = map(json.loads, (tmp_path / "new" / "a.jsonl").read_text().splitlines())
    assert first["environment"]["settings"] == {"out": str(tmp_path), "n": 3}
    assert first["environment"]["torch"].startswith(torch.__version__.split("+")[0])
    assert first["environment"]["threads"] == torch.get_num_threads()
    assert second == {"x": 1.5, "path": str(tmp_path)}


def test_the_record_of_an_earlier_run_is_kept_beside_the_new_one(tmp_path):
    import argparse

    for n in (1, 2):
        measuring.Record(tmp_path / "a.jsonl", argparse.Namespace()).add(n=n)
    for name, n in (("a.before.jsonl", 1), ("a.jsonl", 2)):
        assert json.loads((tmp_path / name).read_text().splitlines()[1]) == {"n": n}


def test_the_lines_of_a_record_count_where_the_settings_that_shape_them_are_the_same(tmp_path):
    import argparse

    path = tmp_path / "a.jsonl"
    args = argparse.Namespace(out=tmp_path, epochs=2, seeds=[0])
    assert measuring.finished(path, args, {"seeds"}) == []
    measuring.Record(path, args).add(n=1)
    same, other = (argparse.Namespace(out="elsewhere", epochs=epochs, seeds=[0, 1])
                   for epochs in (2, 3))
    assert measuring.finished(path, same, {"seeds"}) == [{"n": 1}]
    assert measuring.finished(path, same, set()) == measuring.finished(path, other, {"seeds"}) == []


def test_the_largest_resident_set_can_be_forgotten():
    torch.ones(16 * 2**20)  # 64 MiB, freed at once
    before = measuring.largest_resident()
    measuring.forget_peak()
    assert measuring.largest_resident() <= before
    assert measuring.largest_resident() >= measuring.resident() - 2**20


def test_a_package_that_is_not_installed_has_no_version():
    assert measuring.version("no-such-package") is None


def test_a_table_is_printed_as_its_rows_come(capsys):
    def rows():
        yield 1, "x"
        assert "| 1 | x |" in capsys.readouterr().out
        yield 2, "y"

    measuring.print_table(["a", "b"], rows())
    assert measuring.markdown(["a"], [[1]]) == "| a |\n| --- |\n| 1 |"


@pytest.mark.parametrize(("value", "text"), [
    (None, "-"), (math.nan, "-"), (12.0, "12"), (1234.56, "1235"), (0.012345, "0.0123"),
    (4.4921e7, "4.49e+07")])
def test_numbers_are_written_for_people(value, text):
    assert measuring.number(value) == text
