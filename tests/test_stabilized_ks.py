"""Does the example of stabilised neural ODEs train every J, go on, and compare what it says?"""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky

pytestmark = pytest.mark.scripts

EXAMPLES = str(Path(__file__).parents[1] / "examples")
SMALL = ("--num-points", "32", "--trajectories", "2", "--duration", "20", "--lyapunov-times", "0.5",
         "--horizon", "0.1", "--epochs", "2", "--batches", "2", "--batch-size", "16", "--rank", "2")


@pytest.fixture(scope="module")
def example():
    for name in ("matplotlib", "torchdiffeq"):
        pytest.importorskip(name, reason=f"the examples need {name}, which is not installed")
    sys.path.insert(0, EXAMPLES)
    yield importlib.import_module("stabilized_ks")
    sys.path.remove(EXAMPLES)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder where the data of the tests are made once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def run(example, monkeypatch, capsys, tmp_path, data):
    """Runs the example in this process; returns what it printed."""
    def run_with(*arguments):
        monkeypatch.setattr(sys, "argv", ["stabilized_ks.py", "--out", str(tmp_path), "--root",
                                          str(data), *SMALL, *arguments])
        capsys.readouterr()
        example.main()
        return capsys.readouterr().out

    return run_with


def test_every_j_is_trained_compared_and_resumed(example, run, tmp_path):
    text = run("--seeds", "0")
    for kind in example.LINEAR:
        assert re.search(rf"^{kind} +0 +\S+ +\S+ +100%", text, re.MULTILINE), text
    (figure,) = tmp_path.glob("*.png")
    assert figure.stat().st_size > 10_000
    assert len(list(tmp_path.glob("*.pt"))) == 5
    again = run("--seeds", "0", "--linear", "circulant", "fixed")
    assert again.count("resumed from epoch 2 of") == 2
    row = re.compile(r"^circulant .*?%.*\d", re.MULTILINE)
    assert row.search(again)[0].split()[:7] == row.search(text)[0].split()[:7]


@pytest.mark.parametrize("kind", ["circulant", "low-rank", "full"])
def test_the_parameters_of_j_are_trained_and_stay_dissipative(example, kind):
    grid = PeriodicGrid(16, 22.0)
    J = example.make_linear(kind, grid, 2)
    model = example.Stabilized(torch.nn.Identity(), J)
    assert [p.shape for p in model.parameters()] == [x.shape for x in J.tensors]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-3).add_(1)
    assert float(example.symbol_of(J, 16).max()) < 0


def test_the_rates_of_the_known_j_are_those_of_the_equation(example):
    grid = PeriodicGrid(16, 22.0)
    k = np.abs(grid.wavenumbers()[:9])
    rates = example.symbol_of(kuramoto_sivashinsky(grid).implicit, 16)
    np.testing.assert_allclose(rates, k**2 - k**4, atol=1e-10)


def test_equal_statistics_have_no_distance_and_others_have_one(example):
    grid = PeriodicGrid(32, 22.0)
    states = 0.5 * kuramoto_sivashinsky(grid).initial(400, torch.Generator().manual_seed(0))
    own, other = (example.statistics(u, grid) for u in (states, 2 * states))
    assert example.divergence(own, own) == example.spectrum_error(own, own) == 0.0
    assert example.divergence(own, other) > 0.1
    assert example.spectrum_error(own, other) == pytest.approx(np.log10(4.0))
    assert other["rms"] == pytest.approx(2 * own["rms"])


def test_a_linear_part_that_there_is_not_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--linear", "cubic")
    assert "--linear: invalid choice: 'cubic'" in capsys.readouterr().err
