"""Does the example of forecasting on a graph learn, go on, and draw its figure?"""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.scripts

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


def test_it_learns_and_draws_a_figure_beside_its_checkpoint(run, tmp_path):
    short, long = (errors(run("--epochs", count)) for count in ("1", "12"))
    assert long[0] < short[0]
    figures, files = (sorted(path.stem for path in tmp_path.glob(f"graph-forecasting-decay-*{end}"))
                      for end in (".png", ".pt"))
    assert figures == files
    assert len(files) == 2
    assert min(path.stat().st_size for path in tmp_path.glob("*.png")) > 10_000


def test_a_killed_run_goes_on_to_the_last_bit_where_one_at_once_comes(
        run, forecasting, tmp_path, monkeypatch):
    words, real, trained = ("--epochs", "8", "--checkpoint-every", "2"), forecasting.train_epoch, []

    def killed(*args):
        if len(trained) == 5:
            raise KeyboardInterrupt
        trained.append(real(*args))
        return trained[-1]

    run(*words)
    (path,) = tmp_path.glob("*.pt")
    whole = torch.load(path, weights_only=True)
    monkeypatch.setattr(forecasting, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*words, "--restart")
    assert len(torch.load(path, weights_only=True)["curve"]) == 4
    monkeypatch.setattr(forecasting, "train_epoch", real)
    assert f"resumed from epoch 4 of {path}\n" in run(*words)
    again = torch.load(path, weights_only=True)
    assert again["curve"] == whole["curve"]
    assert all(torch.equal(again["model"][name], value) for name, value in whole["model"].items())
    assert list(tmp_path.glob("*.pt")) == [path]


def test_each_setting_has_a_file_of_its_own(run, tmp_path):
    for words in ((), ("--missing", "0.5"), ("--step-size", "0.4"), ("--epochs", "2")):
        assert "resumed" not in run("--epochs", "1", *words)
    assert len(list(tmp_path.glob("*.pt"))) == 4
    assert "resumed from epoch 2" in run("--epochs", "2")


@pytest.mark.parametrize("words", [
    ("--epochs", "0"), ("--missing", "1"), ("--times", "1"), ("--nodes", "4"),
    ("--trajectories", "0"), ("--channels", "-1"), ("--step-size", "0"),
    ("--checkpoint-every", "0")])
def test_a_number_that_makes_no_sense_is_refused_before_any_work(run, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_trajectories_leave_one_to_test_on(run):
    assert "error on 1 unseen trajectory, as" in run("--epochs", "1", "--trajectories", "2")


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
