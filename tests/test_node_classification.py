"""Does the example classify nodes, resume where it was killed, and do the splits agree on Cora?"""

import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_geometric.datasets
from torch_geometric.data import Data

from pyg_sinode import SINODEConv

pytestmark = pytest.mark.scripts

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "node_classification.py"
QUICK = ("--time", "2", "--heads", "2")


@pytest.fixture(scope="module")
def example():
    for name in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(name, reason=f"the example needs {name}, which is not installed")
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("node_classification")
    sys.path.remove(str(EXAMPLES))
    del sys.modules["node_classification"]


@pytest.fixture(scope="module")
def digits(example):
    return example.load_data("digits", root="unused")


@pytest.fixture
def run(example, digits, monkeypatch, capsys):
    """Runs the example in this process; returns what it printed."""
    monkeypatch.setattr(example, "load_data", lambda name, root: digits)

    def run_with(out, *arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(out), *arguments])
        capsys.readouterr()
        example.main()
        return capsys.readouterr().out

    return run_with


def file_of(out, name="digits-decay", seed=0, ending=".pt"):
    (path,) = out.glob(f"{name}-seed{seed}-*{ending}")
    return path


def checkpoint(out, *name):
    return torch.load(file_of(out, *name), weights_only=True)


def without_times(text):
    text = re.sub(r"training curves: .*|resumed from .*\n", "", text)
    return re.sub(r"[\d.]+ s per training epoch|[\d.]+ % of the time", "", text)


# Data


def test_digits_are_a_symmetric_graph_without_self_loops(digits):
    assert digits.x.size() == (1797, 64)
    assert digits.x.dtype == torch.float32
    assert (float(digits.x.min()), float(digits.x.max())) == (0.0, 1.0)
    assert digits.y.bincount().min() > 170
    assert digits.is_undirected()
    assert not digits.has_self_loops()
    assert digits.edge_index.size(1) == digits.coalesce().edge_index.size(1)
    degree = digits.edge_index[0].bincount(minlength=1797)
    assert int(degree.min()) >= 5
    # Neighbours are mostly of one class, or there would be nothing to diffuse.
    source, target = digits.y[digits.edge_index]
    assert float((source == target).float().mean()) > 0.9


def masks_of(data):
    return [data.train_mask, data.val_mask, data.test_mask]


def test_the_split_of_digits_is_disjoint_and_has_the_same_number_of_each_class(example, digits):
    split = example.with_split(digits, "digits", seed=0)
    masks = torch.stack(masks_of(split)).long()
    assert bool((masks.sum(dim=0) == 1).all())
    for mask in masks[:2]:
        assert digits.y[mask.bool()].bincount().tolist() == [10] * 10
    assert "train_mask" not in digits


@pytest.mark.parametrize(("name", "developed"), [("Photo", 1500), ("CoauthorCS", 5000)])
def test_the_random_split_is_of_the_largest_component_and_holds_the_rest_for_testing(
        example, digits, name, developed):
    lonely = Data(x=torch.cat([digits.x, digits.x[:2]]), y=torch.cat([digits.y, digits.y[:2]]),
                  edge_index=digits.edge_index)
    split = example.with_split(lonely, name, seed=0)
    masks = torch.stack(masks_of(split)).long()
    assert split.num_nodes < len(lonely.x) - 1
    assert bool((masks.sum(dim=0) == 1).all())
    assert split.y[split.train_mask].bincount().tolist() == [20] * 10
    assert int(masks[:2].sum()) == min(developed, split.num_nodes)
    same = example.with_split(lonely, "Cora", seed=0, split="random")
    assert torch.equal(same.train_mask, split.train_mask)


def test_each_seed_has_a_split_of_its_own_and_always_the_same(example, digits):
    splits = [masks_of(example.with_split(digits, "digits", seed)) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*splits[:2], strict=True))
    common = int((splits[0][0] & splits[2][0]).sum())
    assert common < 30  # of 100; 6 are expected


def test_the_public_split_of_planetoid_stays(example):
    names = ("train_mask", "val_mask", "test_mask")
    masks = {name: torch.arange(5) == i for i, name in enumerate(names)}
    split = example.with_split(Data(x=torch.ones(5, 1), **masks), "Cora", seed=3)
    assert all(torch.equal(split[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize("splits", [10, 20])  # of the heterophilous graphs, and of WikiCS
def test_of_several_published_splits_each_seed_has_its_own(example, splits):
    several = torch.rand(6, splits) < 0.5
    data = Data(x=torch.ones(6, 1), train_mask=several, val_mask=~several,
                test_mask=torch.arange(6) > 3)
    for seed in (0, 3, splits + 3):
        found = example.with_split(data, "WikiCS", seed)
        assert torch.equal(found.train_mask, several[:, seed % splits])
        assert torch.equal(found.val_mask, ~several[:, seed % splits])
        assert torch.equal(found.test_mask, data.test_mask)
    assert data.train_mask.dim() == 2


def test_every_data_set_is_one_of_pyg_with_the_options_that_it_takes(example):
    assert set(example.SETTINGS) == {"digits", *example.SOURCES}
    for kind, options in example.SOURCES.values():
        signature = inspect.signature(getattr(torch_geometric.datasets, kind))
        signature.bind("root", **options)


def test_a_data_set_is_read_from_its_folder(example, monkeypatch):
    asked = []

    def fake(root, **options):
        asked.append((root, options))
        return [Data(x=torch.zeros(2, 1))]

    monkeypatch.setattr(torch_geometric.datasets, "HeterophilousGraphDataset", fake)
    assert example.load_data("Questions", "there").num_nodes == 2
    assert asked == [("there", {"name": "Questions"})]


# Runs


def test_the_script_runs_by_itself_prints_the_accuracy_and_draws_a_figure(example, tmp_path):
    command = [sys.executable, str(SCRIPT), "--epochs", "3", "--out", str(tmp_path / "new"), *QUICK]
    paths = [str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"test accuracy: ([\d.]+) \+- 0\.00 % over 1 seed;", done.stdout)
    assert found, done.stdout
    assert float(found[1]) > 15  # a guess is right in 10 %
    assert "per epoch: 2 steps, 4 evaluations, 4 vector-Jacobian products, 8 linear" in done.stdout
    figure = file_of(tmp_path / "new", ending=".png")
    assert figure.stem == file_of(tmp_path / "new").stem + "-3epochs"
    assert f"training curves: {figure}" in done.stdout
    assert figure.read_bytes().startswith(b"\x89PNG\r\n")
    assert figure.stat().st_size > 10_000


def test_help_names_every_option_and_exits_with_zero(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in ("--dataset", "--root", "--model", "--implicit", "--method", "--time", "--runs",
                   "--step-size", "--epochs", "--patience", "--seed", "--device", "--out",
                   "--evaluate-every", "examples:\n  python examples/node_classification.py"):
        assert option in text
    assert "None" not in text


def test_a_resumed_run_gives_the_numbers_of_one_that_was_not_interrupted(run, tmp_path):
    at_once = run(tmp_path / "a", "--epochs", "4", *QUICK)
    first = run(tmp_path / "b", "--epochs", "2", *QUICK)
    assert len(checkpoint(tmp_path / "b")["history"]) == 2
    resumed = run(tmp_path / "b", "--epochs", "4", *QUICK)
    assert f"resumed from epoch 2 of {file_of(tmp_path / 'b')}\n" in resumed
    assert without_times(resumed) == without_times(at_once)
    assert without_times(resumed) != without_times(first)
    assert_same_state(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))


def test_a_killed_run_goes_on_from_its_last_checkpoint(run, example, tmp_path, monkeypatch):
    at_once = run(tmp_path / "a", "--epochs", "5", *QUICK)
    trained, real = [], example.train_epoch

    def killed(*args):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(real(*args))
        return trained[-1]

    monkeypatch.setattr(example, "train_epoch", killed)
    options = ("--epochs", "5", "--checkpoint-every", "2", *QUICK)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", *options)
    assert len(checkpoint(tmp_path / "b")["history"]) == 2
    monkeypatch.setattr(example, "train_epoch", real)
    assert without_times(run(tmp_path / "b", *options)) == without_times(at_once)
    assert_same_state(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))


def assert_same_state(a, b):
    def untimed(state):
        return [{k: v for k, v in row.items() if k not in ("seconds", "stats")}
                for row in state["history"]]

    assert untimed(a) == untimed(b)
    assert a["model"].keys() == b["model"].keys()
    assert all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())
    assert all(torch.equal(x, y) for x, y in zip(a["random"], b["random"], strict=True))


def test_each_setting_has_a_file_of_its_own_which_no_other_takes_up_or_overwrites(
        run, example, tmp_path, monkeypatch):
    options = ("--epochs", "2", "--time", "3", "--heads", "2")
    run(tmp_path / "a", "--epochs", "2", *QUICK)
    before = file_of(tmp_path / "a").read_bytes()
    other = run(tmp_path / "a", *options)
    assert "resumed" not in other
    assert without_times(other) == without_times(run(tmp_path / "b", *options))
    # A learning rate that only the table of the settings names.
    preset = example.SETTINGS["digits"]
    monkeypatch.setitem(example.SETTINGS, "digits", dataclasses.replace(preset, lr=0.05))
    faster = run(tmp_path / "a", *options)
    assert "resumed" not in faster
    assert without_times(faster) != without_times(other)
    files = list((tmp_path / "a").glob("*.pt"))
    assert len(files) == 3
    assert before in [path.read_bytes() for path in files]
    assert len(list((tmp_path / "a").glob("*.png"))) == 3


def test_a_shorter_run_beside_the_file_of_a_longer_one_reports_its_own_end(run, tmp_path):
    short = run(tmp_path / "a", "--epochs", "2", *QUICK)
    run(tmp_path / "b", "--epochs", "4", *QUICK)
    before = file_of(tmp_path / "b").read_bytes()
    again = run(tmp_path / "b", "--epochs", "2", *QUICK)
    assert "resumed from epoch 4" in again
    assert ", 2 epochs, " in again
    assert without_times(again) == without_times(short)
    assert file_of(tmp_path / "b").read_bytes() == before


def test_a_broken_checkpoint_is_named_with_the_remedy(run, tmp_path):
    run(tmp_path, "--epochs", "2", *QUICK)
    path = file_of(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "--epochs", "3", *QUICK)
    assert str(path) in str(stopped.value)
    assert "--restart" in str(stopped.value)
    assert ", 3 epochs, " in run(tmp_path, "--epochs", "3", "--restart", *QUICK)


@pytest.mark.parametrize("words", [
    ("--epochs", "0"), ("--runs", "0"), ("--checkpoint-every", "0"), ("--patience", "-1"),
    ("--evaluate-every", "0"), ("--step-size", "0"), ("--time", "nan"), ("--graph-memory", "-1"),
    ("--heads", "1.5"), ("--checkpoints", "0"), ("--rtol", "0"), ("--device", "abacus"),
    ("--epochs", "3", "--evaluate-every", "4"), ("--follow", "0"),
    ("--follow", "3", "--model", "gcn"), ("--solver-rtol", "0.01"),
    ("--solver-rtol", "0.01", "--implicit", "attention", "--model", "gcn")])
def test_a_number_that_makes_no_sense_is_refused_before_any_work(run, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "new", *words)
    assert stopped.value.code == 2
    assert words[0 if "gcn" in words else -2] in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(
        run, example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "load_data", lambda name, root: pytest.fail("it went to work"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"Expected --out to be a folder to write to .*file/runs"):
        run(tmp_path / "file" / "runs")


def test_a_finished_run_is_read_again_and_made_again_when_told_to(
        run, example, tmp_path, monkeypatch):
    trained, real = [], example.train_epoch

    def counted(*args):
        trained.append(real(*args))
        return trained[-1]

    monkeypatch.setattr(example, "train_epoch", counted)
    texts = [run(tmp_path, "--epochs", "2", *more, *QUICK) for more in ((), (), ("--restart",))]
    assert len(trained) == 4  # none in the second run
    assert len({without_times(text) for text in texts}) == 1


@pytest.mark.parametrize("implicit", ["laplacian", "attention"])
def test_the_other_splits_report_their_linear_iterations(run, implicit, tmp_path):
    text = run(tmp_path, "--epochs", "2", "--implicit", implicit, *QUICK)
    found = re.search(r"8 linear solves of ([\d.]+) iterations, (\d+) % of the time", text)
    assert float(found[1]) >= 1.0
    assert 0 < int(found[2]) < 100
    assert file_of(tmp_path, f"digits-{implicit}", ending=".png").stat().st_size > 10_000


def test_the_baseline_runs_in_the_same_loop_over_several_seeds(run, tmp_path):
    text = run(tmp_path, "--model", "gcn", "--epochs", "3", "--runs", "2", "--seed", "5")
    each = [float(a) for a in re.findall(r"seed [56]: test ([\d.]+) %", text)]
    assert len(each) == 2
    mean, spread = re.search(r"accuracy: ([\d.]+) \+- ([\d.]+) % over 2 seeds", text).groups()
    assert float(mean) == pytest.approx(np.mean(each), abs=0.01)
    assert float(spread) == pytest.approx(np.std(each, ddof=1), abs=0.02)
    assert "linear solves" not in text
    assert file_of(tmp_path, "digits-gcn", 5, "-and-1-more-3epochs.png").exists()


# Loss and accuracy of validation, accuracy of test; the third epoch wins by its loss.
SCRIPT_OF_EPOCHS = ((1.0, 0.5, 0.1), (0.9, 0.7, 0.2), (0.8, 0.7, 0.3), (0.8, 0.7, 0.4),
                    (0.5, 0.6, 0.5), (0.4, 0.6, 0.6), (0.3, 0.9, 0.7), (0.3, 0.1, 0.8))


@pytest.fixture
def scripted(example, monkeypatch):
    """Starts the script of the epochs; gives the evaluations that were made."""
    made = []

    def evaluate(model, data, follow):
        loss, val, test = SCRIPT_OF_EPOCHS[len(made)]
        made.append(val)
        return {"train": 1.0, "val": val, "test": test, "val_loss": loss}

    monkeypatch.setattr(example, "evaluate", evaluate)
    return made


def test_the_test_accuracy_is_that_of_the_best_validation_and_training_stops_after_it(
        run, scripted, tmp_path):
    text = run(tmp_path, "--model", "gcn", "--epochs", "50", "--patience", "3")
    assert "seed 0: test 30.00 % at epoch 3 (validation 70.00 %), 6 epochs" in text
    again = run(tmp_path, "--model", "gcn", "--epochs", "50", "--patience", "3")
    assert "resumed from epoch 6" in again
    assert len(scripted) == 6


def test_a_run_stops_where_its_own_patience_ends_whatever_lies_in_the_folder(
        run, scripted, tmp_path):
    longer = run(tmp_path, "--model", "gcn", "--epochs", "8", "--patience", "50")
    assert "test 70.00 % at epoch 7" in longer
    assert len(scripted) == 8
    text = run(tmp_path, "--model", "gcn", "--epochs", "50", "--patience", "3")
    assert "seed 0: test 30.00 % at epoch 3 (validation 70.00 %), 6 epochs" in text
    assert "test 70.00 % at epoch 7" in run(tmp_path, "--model", "gcn", "--epochs", "8")
    assert len(scripted) == 8  # none of the two trained


def test_accuracies_can_be_evaluated_more_rarely(run, scripted, tmp_path):
    text = run(tmp_path, "--model", "gcn", "--epochs", "8", "--evaluate-every", "3")
    assert len(scripted) == 2  # after epochs 3 and 6
    assert "test 20.00 % at epoch 6 (validation 70.00 %), 8 epochs" in text


def test_the_flow_is_followed_and_the_time_of_the_best_validation_accuracy_kept(
        example, run, digits, tmp_path):
    text = run(tmp_path, *QUICK, "--epochs", "3", "--follow", "3")
    assert re.search(r"at epoch \d, time [\d.]+ \(validation", text)
    torch.manual_seed(0)
    split = example.with_split(digits, "digits", 0)
    model = example.make_model(example.parse_arguments([*QUICK]),
                               dataclasses.replace(example.SETTINGS["digits"], time=2.0), split)
    found = example.evaluate(model, split, 3.0)
    by_time = []
    for k in range(1, 13):
        with torch.no_grad():
            out = model(split.x, split.edge_index, t=torch.tensor([0.0, 0.5 * k]))[-1]
        by_time.append(example.measured(out, split)["val"])
    assert found["val"] == pytest.approx(max(by_time), abs=0.011)
    assert found["val"] >= example.evaluate(model, split)["val"] - 0.011
    assert found["terminal"] == example.evaluate(model, split)


def test_linear_solves_take_the_tolerance_that_was_given(run, tmp_path):
    words = (*QUICK, "--epochs", "2", "--implicit", "attention")
    exact, loose = (run(tmp_path, *words, *more) for more in ((), ("--solver-rtol", "0.1")))
    few, many = (float(re.search(r"solves of ([\d.]+) iterations", text)[1])
                 for text in (loose, exact))
    assert few < many - 1


# Cora


@pytest.fixture(scope="module")
def cora(planetoid):
    return torch_geometric.datasets.Planetoid(str(planetoid), "Cora")[0]


def cora_layer(steps, **kwargs):
    """GRAND's published time on Cora, with a source, and attention that is far from uniform."""
    torch.manual_seed(0)
    conv = SINODEConv(1433, 16, heads=4, normalizer="squareplus", time=18.2948,
                      step_size=18.2948 / steps, source=True, attention="scaled_dot",
                      **kwargs).double()
    with torch.no_grad():
        conv.term.beta.fill_(0.1)
        for parameter in conv.term.attention.parameters():
            parameter.mul_(4.0)
    return conv


def test_an_epoch_on_cora_takes_two_evaluations_a_step_and_as_many_products(cora):
    conv = SINODEConv(1433, 80, heads=8, attention_channels=128, normalizer="squareplus",
                      time=18.2948, step_size=1.0, method="ssp222")
    conv(cora.x, cora.edge_index).square().mean().backward()
    stats = conv.stats
    assert (stats.steps_accepted, stats.explicit_evaluations, stats.explicit_vjps) == (19, 38, 38)


@pytest.fixture(scope="module")
def cora_solution(cora):
    with torch.no_grad():
        return cora_layer(60, method="ark436l2sa")(cora.x.double(), cora.edge_index)


def test_the_solution_on_cora_has_converged(cora, cora_solution):
    with torch.no_grad():
        half = cora_layer(30, method="ark436l2sa")(cora.x.double(), cora.edge_index)
    assert float((half - cora_solution).norm() / cora_solution.norm()) < 1e-5


# Measured at 3, 7 and 19 steps: laplacian 0.11, 0.035, 0.0073; attention 0.055, 0.011, 0.0016.
@pytest.mark.parametrize(("implicit", "errors"), [
    ("laplacian", {3: 0.16, 7: 0.05, 19: 0.011}), ("attention", {3: 0.08, 7: 0.017, 19: 0.0025})])
def test_few_steps_of_the_other_splits_come_near_the_solution_on_cora(
        cora, cora_solution, implicit, errors):
    for steps, bound in errors.items():
        with torch.no_grad():
            found = cora_layer(steps, implicit=implicit)(cora.x.double(), cora.edge_index)
        assert float((found - cora_solution).norm() / cora_solution.norm()) < bound, steps
