"""Does the example classify nodes, resume where it was killed, and do the splits agree on Cora?"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid

from pyg_sinode import SINODEConv

SCRIPT = Path(__file__).parents[1] / "examples" / "node_classification.py"
QUICK = ("--time", "2", "--heads", "2")


@pytest.fixture(scope="module")
def example():
    for name in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(name, reason=f"the example needs {name}, which is not installed")
    spec = importlib.util.spec_from_file_location("node_classification", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


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


def checkpoint(out, name="digits-decay", seed=0):
    return torch.load(out / f"{name}-{seed}.pt", weights_only=True)


def without_times(text):
    text = re.sub(r"training curves: .*", "", text)
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


# Runs


def test_the_script_runs_by_itself_prints_the_accuracy_and_draws_a_figure(example, tmp_path):
    command = [sys.executable, str(SCRIPT), "--epochs", "3", "--out", str(tmp_path / "new"), *QUICK]
    paths = [str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"test accuracy: ([\d.]+) \+- 0\.00 % over 1 seeds", done.stdout)
    assert found, done.stdout
    assert float(found[1]) > 15  # a guess is right in 10 %
    assert "per epoch: 2 steps, 4 evaluations, 4 vector-Jacobian products, 8 linear" in done.stdout
    figure = tmp_path / "new" / "digits-decay.png"
    assert f"training curves: {figure}" in done.stdout
    assert figure.read_bytes().startswith(b"\x89PNG\r\n")
    assert figure.stat().st_size > 10_000


def test_help_names_every_option_and_exits_with_zero(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in ("--dataset", "--root", "--model", "--implicit", "--method", "--time", "--runs",
                   "--step-size", "--epochs", "--patience", "--seed", "--device", "--out"):
        assert option in text


def test_a_resumed_run_gives_the_numbers_of_one_that_was_not_interrupted(run, tmp_path):
    at_once = run(tmp_path / "a", "--epochs", "4", *QUICK)
    first = run(tmp_path / "b", "--epochs", "2", *QUICK)
    assert checkpoint(tmp_path / "b")["run"]["epoch"] == 2
    resumed = run(tmp_path / "b", "--epochs", "4", *QUICK)
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
    assert checkpoint(tmp_path / "b")["run"]["epoch"] == 2
    monkeypatch.setattr(example, "train_epoch", real)
    assert without_times(run(tmp_path / "b", *options)) == without_times(at_once)
    assert_same_state(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))


def assert_same_state(a, b):
    assert len(a["run"]["curve"]) == a["run"]["epoch"]
    assert a["run"]["curve"] == b["run"]["curve"]
    assert a["model"].keys() == b["model"].keys()
    assert all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())


def test_a_checkpoint_of_other_settings_is_not_taken_up(run, tmp_path):
    options = ("--epochs", "2", "--time", "3", "--heads", "2")
    run(tmp_path / "a", "--epochs", "2", *QUICK)
    other = run(tmp_path / "a", *options).splitlines()
    (told,) = [line for line in other if "belongs to other settings" in line]
    assert "will be overwritten" in told
    other.remove(told)
    fresh = run(tmp_path / "b", *options)
    assert without_times("\n".join(other)).strip() == without_times(fresh).strip()


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
    assert (tmp_path / f"digits-{implicit}.png").stat().st_size > 10_000


def test_the_baseline_runs_in_the_same_loop_over_several_seeds(run, tmp_path):
    text = run(tmp_path, "--model", "gcn", "--epochs", "3", "--runs", "2", "--seed", "5")
    each = [float(a) for a in re.findall(r"seed [56]: test ([\d.]+) %", text)]
    assert len(each) == 2
    mean, spread = re.search(r"accuracy: ([\d.]+) \+- ([\d.]+) % over 2 seeds", text).groups()
    assert float(mean) == pytest.approx(np.mean(each), abs=0.01)
    assert float(spread) == pytest.approx(np.std(each, ddof=1), abs=0.02)
    assert "linear solves" not in text
    assert (tmp_path / "digits-gcn.png").exists()


def test_the_test_accuracy_is_that_of_the_best_validation_and_training_stops_after_it(
        run, example, tmp_path, monkeypatch):
    # Loss and accuracy of validation, accuracy of test; the third epoch wins by its loss.
    epochs = iter([(1.0, 0.5, 0.1), (0.9, 0.7, 0.2), (0.8, 0.7, 0.3), (0.8, 0.7, 0.4),
                   (0.5, 0.6, 0.5), (0.4, 0.6, 0.6), (0.3, 0.9, 0.7)])

    def scripted(model, data):
        loss, val, test = next(epochs)
        return [0.0, loss, 0.0], [1.0, val, test]

    monkeypatch.setattr(example, "evaluate", scripted)
    text = run(tmp_path, "--model", "gcn", "--epochs", "50", "--patience", "3")
    assert "seed 0: test 30.00 % at epoch 3 (validation 70.00 %), 6 epochs" in text


# Cora


@pytest.fixture(scope="module")
def cora(tmp_path_factory):
    data = os.environ.get("PYG_SINODE_DATA")
    if not data:
        pytest.skip("PYG_SINODE_DATA is not set: Cora's files are not at hand")
    root = tmp_path_factory.mktemp("planetoid")
    shutil.copytree(Path(data) / "planetoid" / "Cora" / "raw", root / "Cora" / "raw")
    return Planetoid(str(root), "Cora")[0]


def cora_layer(steps, **kwargs):
    """GRAND's published time on Cora, with a source, and attention that is far from uniform."""
    torch.manual_seed(0)
    conv = SINODEConv(1433, 16, heads=4, normalizer="squareplus", time=18.2948,
                      step_size=18.2948 / steps, **kwargs).double()
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
