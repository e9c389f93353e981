"""Does the example of forecasting on a graph learn, go on, and draw its figure?"""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def forecasting():
    pytest.importorskip("matplotlib", reason="the examples need matplotlib, which is not installed")
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("graph_forecasting")
    sys.path.remove(str(EXAMPLES))
    del sys.modules["graph_forecasting"]


@pytest.fixture
def run(forecasting, monkeypatch, capsys, tmp_path):
    """Runs the example in this process; returns what it printed."""
    def run_with(*arguments):
        small = ["--nodes", "12", "--trajectories", "3", "--times", "6", "--channels", "8"]
        monkeypatch.setattr(sys, "argv", ["graph_forecasting.py", "--out", str(tmp_path), *small,
                                          *arguments])
        capsys.readouterr()
        forecasting.main()
        return capsys.readouterr().out

    return run_with


def errors(printed):
    return [float(x) for x in re.findall(r"([\d.]+) (?:up to|from there)", printed)]


def test_it_learns_and_an_interrupted_run_goes_on(run, tmp_path):
    untrained = errors(run("--epochs", "0"))
    first = errors(run("--epochs", "6", "--restart"))
    again = run("--epochs", "12")
    assert "goes on from epoch 6" in again
    assert errors(again)[0] < first[0] < untrained[0]
    whole = run("--epochs", "12", "--restart")
    assert errors(whole) == errors(again)
    assert (tmp_path / "graph-forecasting.png").stat().st_size > 10_000


def test_a_checkpoint_of_other_settings_is_not_used(run):
    run("--epochs", "1")
    assert "belongs to other settings" in run("--epochs", "1", "--missing", "0.5")


def test_the_data_are_a_diffusion_with_a_source(forecasting):
    args = forecasting.parse_arguments.__globals__["argparse"].Namespace(
        nodes=10, trajectories=3, missing=0.3)
    torch.manual_seed(0)
    t = torch.tensor([0.0, 1e-3], dtype=torch.float64)
    data, values = forecasting.make_data(args, t)
    neighbours = torch.zeros(data.num_nodes).index_add(
        0, data.edge_index[1], data.x[data.edge_index[0], 0])
    degree = torch.zeros(data.num_nodes).index_add(0, data.edge_index[1], torch.ones(
        data.num_edges))
    rate = 0.8 * (neighbours / degree - data.x[:, 0]) + torch.sin(
        2 * torch.pi * 0.4 * data.position[:, 0])
    torch.testing.assert_close((values[1] - values[0]) / 1e-3, rate, rtol=0, atol=5e-3)
