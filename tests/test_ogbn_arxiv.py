"""Does the example read OGB's files, train on generated graphs, in samples too, and resume?"""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ogbn_arxiv_cases import SCRIPT, ignore_torch_sparse, load_example, needs_sampler

pytestmark = pytest.mark.scripts

# pandas 3 hands OGB arrays that it must not write to, and it does not.
ignore_read_only = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")


@pytest.fixture(scope="module")
def example():
    return load_example()


@pytest.fixture
def run(example, monkeypatch, capsys):
    """Runs the example in this process; returns what it printed."""
    def run_with(out, *arguments, nodes=300):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--generated", str(nodes), "--out", str(out),
                                          "--device", "cpu", *arguments])
        capsys.readouterr()
        example.main()
        return capsys.readouterr().out

    return run_with


def file_of(out, name="generated-arxiv-grand-decay", seed=0, ending=".pt"):
    (path,) = out.glob(f"{name}-seed{seed}-*{ending}")
    return path


def checkpoint(out, *name):
    return torch.load(file_of(out, *name), weights_only=True)


def curve(out, *name):
    return np.array([[row[key] for key in ("loss", "train", "val", "test")]
                     for row in checkpoint(out, *name)["history"]])


def assert_same_state(a, b, name):
    np.testing.assert_array_equal(curve(a, name), curve(b, name))
    first, second = (checkpoint(out, name)["model"] for out in (a, b))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


# OGB's files


def save_with_ogb(folder, monkeypatch):
    """A data set of 60 nodes as OGB's own tool writes it, in binary files."""
    from ogb.io import DatasetSaver

    random = np.random.default_rng(0)
    (folder / "mapping").mkdir()
    (folder / "mapping" / "README.md").write_text("none")
    monkeypatch.chdir(folder)
    saver = DatasetSaver("ogbn-arxiv", is_hetero=False, version=1, root=str(folder / "made"))
    saver.save_graph_list([{
        "edge_index": random.integers(0, 60, (2, 200)), "num_nodes": 60,
        "node_feat": random.normal(size=(60, 8)).astype(np.float32)}])
    saver.save_target_labels(np.arange(60).reshape(-1, 1) % 40)
    split = np.split(random.permutation(60), [30, 40])
    saver.save_split(dict(zip(("train", "valid", "test"), split, strict=True)), "time")
    saver.copy_mapping_dir(str(folder / "mapping"))
    saver.save_task_info("multiclass classification", "acc", 40)
    return saver.get_meta_dict()


def as_text(meta_dict):
    """The same data set in the form in which OGB distributes ogbn-arxiv: tables of text."""
    folder = Path(meta_dict["dir_path"])
    raw, split = folder / "raw", folder / "split" / "time"
    graph = np.load(raw / "data.npz")
    tables = {"edge": graph["edge_index"].T, "node-feat": graph["node_feat"],
              "node-label": np.load(raw / "node-label.npz")["node_label"],
              "num-node-list": graph["num_nodes_list"], "num-edge-list": graph["num_edges_list"]}
    for name, table in tables.items():
        np.savetxt(raw / f"{name}.csv.gz", table, delimiter=",",
                   fmt="%.9g" if name == "node-feat" else "%d")
    with torch.serialization.safe_globals(load_example().STORED_BINARY):
        index = torch.load(split / "split_dict.pt", weights_only=True)
    for name, nodes in index.items():
        np.savetxt(split / f"{name}.csv.gz", nodes, fmt="%d")
    (split / "split_dict.pt").unlink()
    return meta_dict | {"binary": "False"}


@pytest.fixture(params=["binary", "text"])
def stored(request, example, tmp_path, monkeypatch):
    meta_dict = save_with_ogb(tmp_path, monkeypatch)
    return meta_dict if request.param == "binary" else as_text(meta_dict)


@ignore_read_only
def test_a_data_set_that_ogb_wrote_is_read_with_its_labels_split_and_edges_both_ways(
        example, stored):
    data = example.load_ogb("unused", stored)
    again = example.load_ogb("unused", stored)  # now from the file that the first call wrote
    raw = np.load(Path(stored["dir_path"]) / "raw" / "data.npz")
    for found in (data, again):
        torch.testing.assert_close(found.x, torch.from_numpy(raw["node_feat"]))
        assert found.y.tolist() == [i % 40 for i in range(60)]
        assert (found.num_classes, found.is_undirected()) == (40, True)
        edges = {tuple(edge) for edge in raw["edge_index"].T.tolist()}
        edges |= {edge[::-1] for edge in edges}
        assert {tuple(edge) for edge in found.edge_index.t().tolist()} == edges
        masks = torch.stack([found.train_mask, found.val_mask, found.test_mask])
        assert masks.sum(dim=1).tolist() == [30, 10, 20]
        assert bool((masks.sum(dim=0) == 1).all())


@ignore_read_only
def test_without_the_classes_ogb_cannot_read_its_own_file_and_none_of_them_is_idle(
        example, stored, monkeypatch):
    name = "STORED_BINARY" if stored["binary"] == "True" else "STORED"
    known, before = getattr(example, name), torch.serialization.get_safe_globals()
    needed = [kind for kind in known if kind not in before]
    for left_out in (known, *([kind] for kind in needed)):
        monkeypatch.setattr(example, name, [kind for kind in known if kind not in left_out])
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            example.load_ogb("unused", stored)
    monkeypatch.setattr(example, name, known)
    example.load_ogb("unused", stored)
    assert set(torch.serialization.get_safe_globals()) == set(before)  # allowed only meanwhile


def test_the_generated_graph_has_the_ratios_of_the_real_one(example):
    data = example.generate(20_000)
    assert data.is_undirected()
    assert not data.has_self_loops()
    assert data.num_edges / 2 / 20_000 == pytest.approx(1_166_243 / 169_343, rel=0.05)
    degree = data.edge_index[0].bincount(minlength=20_000).double()
    assert float(degree.max()) > 50 * float(degree.mean())  # of the real one: 13161 and 13.7
    masks = torch.stack([data.train_mask, data.val_mask, data.test_mask])
    assert bool((masks.sum(dim=0) == 1).all())
    shares = masks.double().mean(dim=1).tolist()
    assert shares == pytest.approx([0.537, 0.176, 0.287], abs=0.01)
    assert int(data.y.bincount(minlength=40).min()) > 100
    assert torch.equal(data.edge_index, example.generate(20_000).edge_index)
    assert not torch.equal(data.y, example.generate(20_000, seed=1).y)


# Runs


def command(*launcher):
    paths = [str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, *launcher], env=environment, capture_output=True,
                          text=True, check=False)


def test_the_script_runs_by_itself_prints_the_accuracy_and_draws_a_figure(example, tmp_path):
    done = command(str(SCRIPT), "--generated", "300", "--epochs", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.search(r"test accuracy: [\d.]+ \+- 0\.00 % over 1 seed\n", done.stdout), done.stdout
    assert re.search(r"300 nodes, \d+ directed edges, 128 features, 40 classes", done.stdout)
    figure = file_of(tmp_path, ending=".png")
    assert f"training curves: {figure}" in done.stdout
    assert figure.stat().st_size > 10_000


@pytest.mark.parametrize("preset", ["grand", "source"])
def test_a_resumed_run_gives_the_numbers_of_one_that_was_not_interrupted(run, tmp_path, preset):
    name = f"generated-arxiv-{preset}-decay"
    run(tmp_path / "a", "--epochs", "4", "--preset", preset)
    run(tmp_path / "b", "--epochs", "2", "--preset", preset)
    path = file_of(tmp_path / "b", name)
    assert len(curve(tmp_path / "b", name)) == 2
    text = run(tmp_path / "b", "--epochs", "4", "--preset", preset)
    assert f"resumed from epoch 2 of {path}\n" in text
    assert_same_state(tmp_path / "a", tmp_path / "b", name)
    shorter = run(tmp_path / "b", "--epochs", "2", "--preset", preset)
    assert ", 2 epochs, " in shorter
    assert len(curve(tmp_path / "b", name)) == 4


def test_mixed_precision_changes_little_and_several_seeds_learn_more_than_chance(run, tmp_path):
    text = run(tmp_path / "a", "--epochs", "15", "--bf16", "--runs", "2", nodes=1000)
    assert "over 2 seeds" in text
    run(tmp_path / "b", "--epochs", "15", nodes=1000)
    short, full = curve(tmp_path / "a"), curve(tmp_path / "b")
    losses = [short[:, 0], full[:, 0]]
    assert losses[0][0] != losses[1][0]  # another precision indeed
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.01)
    model = checkpoint(tmp_path / "a")["model"]
    assert {p.dtype for p in model.values()} == {torch.float32, torch.int64}
    assert min(c[c[:, 2].argmax(), 3] for c in (short, full)) > 0.2  # a guess is right in 2.5 %


def test_each_setting_has_a_file_of_its_own(run, tmp_path):
    for options in ({"nodes": 200}, {}):
        assert "resumed" not in run(tmp_path, "--epochs", "1", **options)
    assert "resumed" not in run(tmp_path, "--epochs", "1", "--step-size", "2")
    assert len(list(tmp_path.glob("generated-arxiv-grand-decay-seed0-*.pt"))) == 3
    assert "resumed from epoch 1" in run(tmp_path, "--epochs", "1")


@pytest.mark.parametrize("words", [
    ("--epochs", "0"), ("--runs", "0"), ("--checkpoint-every", "0"), ("--batch-size", "0"),
    ("--generated", "-5"), ("--step-size", "0"), ("--num-neighbors", "0")])
def test_a_number_that_makes_no_sense_is_refused_before_any_work(run, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "new", *words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@needs_sampler
@ignore_torch_sparse
@pytest.mark.parametrize("more", [(), ("--bf16",), ("--num-neighbors", "5", "1")])
def test_sampled_training_learns_and_resumes(run, tmp_path, more):
    options = ("--batch-size", "200", "--preset", "source", "--step-size", "3", *more)
    name = "generated-arxiv-source-decay"
    run(tmp_path / "a", "--epochs", "6", *options, nodes=600)
    run(tmp_path / "b", "--epochs", "3", *options, nodes=600)
    run(tmp_path / "b", "--epochs", "6", *options, nodes=600)
    assert_same_state(tmp_path / "a", tmp_path / "b", name)
    assert curve(tmp_path / "a", name)[:, 3].max() > 0.1


@needs_sampler
@ignore_torch_sparse
def test_a_batch_of_all_nodes_with_all_neighbours_is_a_step_on_the_whole_graph(run, tmp_path):
    options = ("--preset", "source", "--epochs", "3", "--checkpoint-every", "1")
    run(tmp_path / "a", *options)
    run(tmp_path / "b", *options, "--batch-size", "300", "--num-neighbors", "-1")
    name = "generated-arxiv-source-decay"
    a, b = (curve(tmp_path / k, name) for k in "ab")
    np.testing.assert_allclose(a[:, 0], b[:, 0], rtol=1e-4)


@needs_sampler
def test_two_processes_under_torchrun_take_the_steps_of_one_and_one_of_them_writes(run, tmp_path):
    options = ("--preset", "source", "--epochs", "3")
    run(tmp_path / "a", *options)
    done = command("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                   str(SCRIPT), "--generated", "300", *options, "--batch-size", "300",
                   "--num-neighbors", "-1", "--ddp", "--device", "cpu",
                   "--out", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cpu" in done.stdout
    assert done.stdout.count("test accuracy") == 1
    name = "generated-arxiv-source-decay"
    a, b = (curve(tmp_path / k, name) for k in "ab")
    np.testing.assert_allclose(a[:, 0], b[:, 0], rtol=1e-4)


def test_processes_without_torchrun_or_batches_are_refused_with_a_hint(run, tmp_path, capsys):
    for options, hint in ((("--ddp",), "needs --batch-size"),
                          (("--ddp", "--batch-size", "9"), "needs torchrun")):
        with pytest.raises(SystemExit):
            run(tmp_path, *options)
        assert hint in capsys.readouterr().err


@needs_sampler
def test_more_processes_than_training_nodes_are_refused(example):
    args = example.parse_arguments(["--generated", "50", "--batch-size", "4"])
    data = example.generate(50)
    data.train_mask = torch.zeros(50, dtype=torch.bool)
    with pytest.raises(SystemExit, match="more than there are training nodes"):
        example.make_loader(args, example.make_model(args, data), data)
