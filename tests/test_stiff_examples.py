"""Does the example of stiff kinetics learn its rates and go on, and does the benchmark run?"""

import math
import re
import sys

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib, which is not installed")

import stiff_kinetics
import stiff_reactions
from benchmark_commands import FOLDER, REACTION_PARTS

pytestmark = pytest.mark.scripts


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the example of kinetics in this process; returns what it printed."""
    integrate = stiff_kinetics.integrate
    # The data too at no tighter tolerance: at 1e-9 they take most of the time.
    monkeypatch.setattr(stiff_kinetics, "integrate", lambda kinetics, u0, t, rtol: integrate(
        kinetics, u0, t, max(rtol, 1e-5)))

    def run_with(*arguments):
        monkeypatch.setattr(sys, "argv", ["stiff_kinetics.py", "--out", str(tmp_path), "--rtol",
                                          "1e-4", "--trajectories", "1", "--times", "8",
                                          "--noise", "0", *arguments])
        capsys.readouterr()
        stiff_kinetics.main()
        return capsys.readouterr().out

    return run_with


def errors(printed):
    return [float(x) for x in re.findall(r"([\d.]+)% \|", printed)]


def test_the_rates_are_learned_from_a_wrong_start_and_a_longer_run_goes_on(run, tmp_path):
    first = run("--iterations", "1", "--wrong", "3")
    assert "1 iteration" in first
    assert max(errors(first)) > 1.0
    (path,) = tmp_path.glob("stiff-kinetics-*.pt")
    second = run("--wrong", "3")
    assert f"resumed from iteration 1 of {path}\n" in second
    assert max(errors(second)) < 1.0
    assert len(list(tmp_path.glob(f"{path.stem}-*iterations.png"))) == 2


def untimed(printed):
    return re.sub(r" in \d+ s; figure: .*|resumed from .*\n", "", printed)


def test_each_setting_has_a_file_of_its_own_and_a_resumed_run_ends_as_one_at_once(run, tmp_path):
    words = ("--times", "3", "--rtol", "1e-2", "--iterations")
    assert "resumed" not in run(*words, "1", "--wrong", "1.1")
    first = run(*words, "1", "--wrong", "1.2")
    assert "resumed" not in first
    assert len(list(tmp_path.glob("*.pt"))) == 2
    resumed = run(*words, "2", "--wrong", "1.2")
    assert "resumed from iteration 1" in resumed
    shorter = run(*words, "1", "--wrong", "1.2")  # beside the file of a longer run
    assert untimed(shorter) == untimed(first)
    whole = run(*words, "2", "--wrong", "1.2", "--restart")
    assert "resumed" not in whole
    assert untimed(whole) == untimed(resumed)


def test_a_fit_has_converged_when_its_loss_hardly_falls():
    converged = stiff_kinetics.converged
    for losses, done in (([1.0], False), ([1.0, 0.5], False), ([1.0, 0.5, 0.5 - 1e-7], True)):
        assert converged([{"loss": loss} for loss in losses]) == done


def test_the_loss_is_zero_at_the_data_and_does_not_mind_what_is_not_there():
    states = torch.rand(4, 2, 3, dtype=torch.float64)
    states[2, 0, 1] = 0.0
    assert float(stiff_kinetics.loss_of(states, states)) == 0.0
    found = float(stiff_kinetics.loss_of(1.1 * states, states))
    assert found == pytest.approx(17 / 18 * math.log(1.1) ** 2)


def test_the_benchmark_measures_every_part(monkeypatch, capsys):
    assert tuple(stiff_reactions.PARTS) == REACTION_PARTS
    equations = {"Robertson": (*stiff_reactions.EQUATIONS["Robertson"][:2], 1.0)}
    monkeypatch.setattr(stiff_reactions, "EQUATIONS", equations)
    FOLDER.main(["stiff_reactions", "--systems", "3", "--points", "64", "--repeats", "1"])
    printed = capsys.readouterr().out
    for name in ("ark436l2sa", "Radau", "| 3 |", "H, autograd", "H, closed", "| G |"):
        assert name in printed
    worst = [float(x) for x in re.findall(r"\| (\d\.\de-\d\d) \|", printed)]
    assert len(worst) == 8
    assert max(worst) < 1e-4
