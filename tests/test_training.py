"""Do the examples' checkpoints, numbers of the command line and figures keep their promises?"""

import argparse
import errno
import importlib
import os
import resource
import sys
from pathlib import Path

import numpy as np
import options
import pytest
import torch
from test_sparse import beta_notice_expected

EXAMPLES = Path(__file__).parents[1] / "examples"
SETTINGS = {"lr": 0.1, "method": "imex_rk2"}


@pytest.fixture(scope="module")
def modules():
    pytest.importorskip("matplotlib", reason="the examples need matplotlib, which is not installed")
    sys.path.insert(0, str(EXAMPLES))
    yield {name: importlib.import_module(name) for name in ("training", "figures")}
    sys.path.remove(str(EXAMPLES))


@pytest.fixture
def training(modules):
    return modules["training"]


@pytest.fixture
def figures(modules):
    return modules["figures"]


@pytest.fixture
def checkpoint(training, tmp_path):
    return training.Checkpoint(tmp_path, "run", SETTINGS)


# Checkpoints


def test_what_was_saved_is_loaded_again_and_nothing_else_is_left(training, checkpoint, tmp_path):
    assert checkpoint.load() is None
    weights = torch.rand(3)
    checkpoint.save(weights=weights, curve=[1.0, 0.5])
    state = training.Checkpoint(tmp_path, "run", dict(reversed(SETTINGS.items()))).load()
    assert torch.equal(state["weights"], weights)
    assert state["curve"] == [1.0, 0.5]
    assert list(tmp_path.iterdir()) == [checkpoint.path]


@pytest.mark.parametrize("changed", [{"lr": 0.2}, {"method": "ars222"}, {"more": 1}, {"lr": "0.1"}])
def test_every_setting_has_a_file_of_its_own(training, checkpoint, tmp_path, changed):
    checkpoint.save(epoch=1)
    other = training.Checkpoint(tmp_path, "run", SETTINGS | changed)
    assert other.load() is None
    other.save(epoch=2)
    assert checkpoint.load()["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["FORMAT", "version"])
def test_another_format_or_version_has_another_file(training, checkpoint, monkeypatch, name):
    owner = training if name == "FORMAT" else training.pyg_sinode
    monkeypatch.setattr(owner, "FORMAT" if name == "FORMAT" else "__version__", "another")
    assert training.Checkpoint(checkpoint.path.parent, "run", SETTINGS).path != checkpoint.path


def foreign(path):
    torch.save({"settings": "others", "epoch": 3}, path)


BROKEN = {"empty": lambda path: path.write_bytes(b""),
          "truncated": lambda path: path.write_bytes(path.read_bytes()[:-500]),
          "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
          "text": lambda path: path.write_text("a note, not weights"),
          "foreign": foreign, "a tensor": lambda path: torch.save(torch.ones(2), path)}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_not_a_checkpoint_of_the_run_is_named_with_what_to_do(
        training, checkpoint, tmp_path, kind):
    checkpoint.save(weights=torch.rand(100))
    BROKEN[kind](checkpoint.path)
    before = checkpoint.path.read_bytes()
    with pytest.raises(training.CheckpointError) as raised:
        checkpoint.load()
    text = str(raised.value)
    assert text.startswith(f"Expected {checkpoint.path} to be a whole checkpoint of this run (got ")
    assert "--restart" in text
    assert "\n" not in text
    assert checkpoint.path.read_bytes() == before  # left for its owner to look at
    again = training.Checkpoint(tmp_path, "run", SETTINGS, restart=True)
    assert again.load() is None
    again.save(epoch=1)
    assert checkpoint.load()["epoch"] == 1


def test_weights_of_another_shape_or_missing_ones_are_refused_by_the_name_of_the_file(
        training, checkpoint):
    checkpoint.save(model=torch.nn.Linear(2, 3).state_dict())
    for parts in ({"model": torch.nn.Linear(3, 2)}, {"optimizer": torch.nn.Linear(2, 3)}):
        with pytest.raises(training.CheckpointError, match=checkpoint.path.name):
            checkpoint.restore(checkpoint.load(), **parts)


@pytest.fixture
def small_files():
    """No file may grow beyond a thousand bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size=1000: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_names_the_file_and_leaves_the_last_checkpoint_and_no_other(
        training, checkpoint, tmp_path, small_files):
    checkpoint.save(epoch=1)
    small_files()
    with pytest.raises(training.CheckpointError) as raised:
        checkpoint.save(epoch=2, weights=torch.rand(10_000))
    small_files(resource.RLIM_INFINITY)
    assert str(checkpoint.path) in str(raised.value)
    assert os.strerror(errno.EFBIG) in str(raised.value)
    assert list(tmp_path.iterdir()) == [checkpoint.path]
    assert checkpoint.load()["epoch"] == 1


def test_an_interrupted_write_leaves_no_file_behind(checkpoint, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(epoch=1)
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_tells_values_shapes_and_types_apart(training):
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    ones = [x, x + torch.eye(2), x.view(4), x.double(), x.to_sparse(), (2 * x).to_sparse()]
    assert len({training.fingerprint(one) for one in ones}) == len(ones)
    assert training.fingerprint(x, x) != training.fingerprint(x)
    assert training.fingerprint(x.clone()) == training.fingerprint(x)
    assert training.fingerprint(x.t().contiguous().t()) == training.fingerprint(x)


@beta_notice_expected
def test_the_fingerprint_of_sparse_features_does_not_depend_on_their_form(training):
    x = torch.eye(3)[:, :2]
    assert training.fingerprint(x.to_sparse_csr()) == training.fingerprint(x.to_sparse_coo())
    assert training.fingerprint(x.to_sparse_csr()) != training.fingerprint(2 * x.to_sparse_csr())


def test_random_numbers_go_on_where_they_were(training):
    device = torch.device("cpu")
    states, first = training.random_state(device), torch.rand(3)
    torch.rand(5)
    training.set_random_state(states, device)
    assert torch.equal(torch.rand(3), first)


# When a run ends


def rows(*accuracies):
    return [{} if a is None else {"val": a, "val_loss": 1.0} for a in accuracies]


@pytest.mark.parametrize(("accuracies", "patience", "end"), [
    ((0.1, 0.2, 0.3), 2, 9), ((0.3, 0.2, 0.1), 2, 3), ((0.3, 0.2, 0.4, 0.1, 0.2, 0.3), 2, 5),
    ((None, 0.3, None, None, 0.2, 0.5), 2, 5), ((None, None, None), 2, 9), ((), 1, 9),
    ((0.5,) * 12, 20, 9)])
def test_a_run_ends_after_its_patience_at_an_evaluation_or_its_epochs(
        training, accuracies, patience, end):
    assert training.end_of(rows(*accuracies), 9, patience) == end
    if end < 9:  # what comes after does not matter
        assert training.end_of(rows(*accuracies, 0.9, 0.9), 9, patience) == end


def test_of_equal_accuracies_the_smaller_loss_and_then_the_first_wins(training):
    history = [{"val": 0.5, "val_loss": 2.0}, {}, {"val": 0.5, "val_loss": 1.0},
               {"val": 0.5, "val_loss": 1.0}, {"val": 0.4, "val_loss": 0.1}]
    assert training.best_of(history) == (3, history[2])
    assert training.best_of([{"val": 0.5}, {"val": 0.5}])[0] == 1


# The command line


@pytest.mark.parametrize(("kind", "good", "bad"), [
    ("positive_int", {"1": 1, "20": 20}, ("0", "-3", "1.5", "x", "")),
    ("non_negative_int", {"0": 0, "7": 7}, ("-1", "0.0", "inf")),
    ("positive_float", {"1e-3": 1e-3, "2": 2.0}, ("0", "-1", "nan", "inf", "x")),
    ("non_negative_float", {"0": 0.0, "0.5": 0.5}, ("-1e-9", "nan", "inf")),
    ("share", {"0": 0.0, "0.9": 0.9}, ("1", "-0.1", "nan")),
    ("device_name", {"cpu": "cpu"}, ("abacus", ""))])
def test_numbers_of_the_command_line_are_what_they_should_be(training, kind, good, bad):
    convert = getattr(training if kind == "device_name" else options, kind)
    for text, value in good.items():
        assert convert(text) == value
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=r"expected a .* \(got "):
            convert(text)


def test_help_has_the_examples_and_the_defaults_that_are_set(training):
    parser = options.make_parser("It does.", "it.py --lr 1")
    parser.add_argument("--lr", type=options.positive_float, default=0.5, help="rate")
    parser.add_argument("--method", help="scheme")
    options.add_files(parser)
    text = parser.format_help()
    assert "rate (default: 0.5)" in text
    assert "None" not in text
    assert "False" not in text
    assert text.endswith("examples:\n  python examples/it.py --lr 1\n")


def test_the_output_folder_is_made_and_a_place_that_cannot_be_one_is_named(training, tmp_path):
    folder = options.output_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(SystemExit, match=rf"\(got {path}: .*\). Name another"):
            options.output_folder(path)


def test_a_folder_that_is_read_only_is_refused(training, monkeypatch, tmp_path):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    # Whoever runs the tests may be allowed to write anywhere.
    monkeypatch.setattr(options.tempfile, "TemporaryFile", refuse)
    with pytest.raises(SystemExit, match="Permission denied"):
        options.output_folder(tmp_path)


SCRIPTS = {"node_classification": "sklearn", "kuramoto_sivashinsky": "torchdiffeq",
           "burgers": "torchdiffeq", "graph_forecasting": "matplotlib",
           "stiff_kinetics": "matplotlib", "ogbn_arxiv": "ogb"}


@pytest.fixture(params=SCRIPTS)
def script(request, modules):
    needed = SCRIPTS[request.param]
    pytest.importorskip(needed, reason=f"the example needs {needed}, which is not installed")
    yield importlib.import_module(request.param)
    sys.modules.pop(request.param, None)


def parse(script, monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *words])
    with pytest.raises(SystemExit) as stopped:
        script.parse_arguments()
    return stopped.value.code, *capsys.readouterr()


def test_every_script_has_help_with_groups_and_examples(script, monkeypatch, capsys):
    code, printed, _ = parse(script, monkeypatch, capsys, "--help")
    assert code == 0
    assert f"examples:\n  python examples/{script.__name__}.py" in printed
    assert "\nfiles:\n" in printed
    assert "None" not in printed


def test_every_script_refuses_to_train_for_no_epochs(script, monkeypatch, capsys):
    option = "--iterations" if script.__name__ == "stiff_kinetics" else "--epochs"
    code, _, told = parse(script, monkeypatch, capsys, option, "0")
    assert code == 2
    assert f"argument {option}: expected a whole number of at least 1 (got '0')" in told


# Figures


def test_counts_have_their_plural(figures):
    assert [figures.plural(n, "seed") for n in (0, 1, 2)] == ["0 seeds", "1 seed", "2 seeds"]
    assert figures.plural(3, "trajectory", "trajectories") == "3 trajectories"


def test_the_lines_of_a_figure_differ_without_colour(figures):
    cycle = figures.plt.rcParams["axes.prop_cycle"].by_key()
    grey = [float(np.dot(figures.matplotlib.colors.to_rgb(c), (0.299, 0.587, 0.114)))
            for c in cycle["color"]]
    lines = list(zip(grey, cycle["linestyle"], strict=True))
    for i, (a, style) in enumerate(lines):
        for b, other in lines[:i]:
            assert style != other or abs(a - b) > 0.05


def test_a_field_has_a_symmetric_scale_of_its_own(figures):
    _, (first, second) = figures.plt.subplots(1, 2)
    field = np.array([[0.0, -0.02], [0.01, np.inf]])
    image = figures.show_field(first, field, (0, 1, 0, 1))
    assert (image.norm.vmin, image.norm.vmax) == (-0.02, 0.02)
    image = figures.show_field(second, field, (0, 1, 0, 1), decades=2)
    assert (image.norm.vmin, image.norm.vmax, image.norm.linthresh) == (-0.02, 0.02, 1e-3)
    assert image.norm(0.01) - image.norm(0.0) > 0.3  # small values are seen as well
    figures.color_bar(image, second, "difference")
    figures.plt.close("all")


def test_a_nought_field_can_be_drawn_too(figures):
    _, ax = figures.plt.subplots()
    image = figures.show_field(ax, np.zeros((2, 3)), (0, 1, 0, 1), decades=3)
    figures.color_bar(image, ax, "nothing")
    assert image.norm.vmax == 1.0
    figures.plt.close("all")


def test_one_epoch_is_a_marker_and_less_than_a_decade_has_numbers(figures):
    figure, (first, second) = figures.plt.subplots(1, 2)
    figures.plot_losses(first, {"training": [0.3]})
    assert first.lines[0].get_marker() == "o"
    figures.plot_losses(second, {"training": list(np.linspace(0.9, 0.4, 50))})
    assert second.lines[0].get_marker() == "None"
    figure.canvas.draw()
    for ax in (first, second):
        low, high = ax.get_ylim()
        labels = [text.get_text() for at, text in zip(ax.get_yticks(), ax.get_yticklabels(),
                                                      strict=True) if low <= at <= high]
        assert len(labels) >= 2
        assert all(float(label) > 0 for label in labels)
    figures.plt.close("all")
