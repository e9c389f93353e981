"""Do the examples of Cora and of learned coefficients run, go on, and refuse what is wrong?"""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.scripts

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ("--nodes", "24", "--trajectories", "3", "--times", "2")


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("matplotlib", reason="the examples need matplotlib, which is not installed")
    return pytest.importorskip("learn_diffusion")


@pytest.fixture(autouse=True)
def same_dtype():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def run(example, monkeypatch, capsys, tmp_path):
    """Runs the example in this process; returns what it printed."""
    def run_with(*arguments):
        monkeypatch.setattr(sys, "argv", ["learn_diffusion.py", "--out", str(tmp_path), *SMALL,
                                          *arguments])
        capsys.readouterr()
        example.main()
        return capsys.readouterr().out

    return run_with


def problem_of(example, monkeypatch, tmp_path, *arguments):
    monkeypatch.setattr(sys, "argv", ["learn_diffusion.py", "--out", str(tmp_path), *SMALL,
                                      *arguments])
    args = example.parse_arguments()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(args.seed)
    make = example.grid_problem if args.on == "grid" else example.graph_problem
    return args, make(args)


@pytest.mark.parametrize(("on", "rtol"), [("grid", None), ("graph", None), ("grid", "1e-7")])
def test_the_gradient_is_that_of_finite_differences(example, monkeypatch, tmp_path, on, rtol):
    args, problem = problem_of(example, monkeypatch, tmp_path, "--on", on,
                               *(("--rtol", rtol) if rtol else ()))
    parameters = list(problem.medium.parameters())
    with torch.no_grad():
        for p in parameters:
            p.add_(0.1 * torch.randn_like(p))

    def loss():
        return 0.5 * example.residuals(args, problem).square().mean()

    directions = [torch.randn_like(p) for p in parameters]
    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    ends, eps = [], 1e-5
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=sign * eps)
            ends.append(loss())
    # Adaptive steps count as constants: there the difference is of the size of the tolerance.
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * eps), atol=0.0,
                               rtol=1e-4 if rtol else 1e-7)


def fitted(example, monkeypatch, tmp_path, *arguments):
    """Fits without error bars and figure; the curve and the parameters."""
    args, problem = problem_of(example, monkeypatch, tmp_path, *arguments)
    run = example.fit(args, problem, example.checkpoint_of(args))
    return run.curve, problem.medium.state_dict()


@pytest.mark.parametrize("on", ["grid", "graph"])
def test_an_interrupted_fit_goes_on_to_the_last_bit(example, monkeypatch, tmp_path, capsys, on):
    def fit(*arguments):
        return fitted(example, monkeypatch, tmp_path, "--on", on, *arguments)

    whole, parameters = fit("--iterations", "6")
    fit("--iterations", "3", "--restart")
    assert "resumed" not in capsys.readouterr().out
    curve, again = fit("--iterations", "6")
    assert "resumed from iteration 3 " in capsys.readouterr().out
    shorter, at_three = fit("--iterations", "3")  # beside the file of a longer run
    assert shorter == whole[:3]
    assert any(not torch.equal(value, again[name]) for name, value in at_three.items())
    assert len(curve) == 6
    assert curve == whole
    for name, value in parameters.items():
        assert torch.equal(value, again[name])


def test_kappa_is_recovered_and_the_figure_written(run, tmp_path):
    printed = run("--iterations", "25", "--trajectories", "8", "--interval", "0.1")
    error, largest = map(float, re.search(r"error ([\d.]+)% .*, ([\d.]+)% at", printed).groups())
    assert error < 20.0  # 200 % at first
    assert largest < 60.0
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_the_true_medium_leaves_nothing_but_the_noise(example, monkeypatch, tmp_path):
    args, problem = problem_of(example, monkeypatch, tmp_path, "--on", "graph", "--noise", "0.01")
    medium = problem.medium
    monkeypatch.setattr(medium, "log_coefficient", lambda: problem.log_true)
    medium.reaction = problem.true_reaction
    count = problem.data[1:problem.seen].numel()
    misfit = example.residuals(args, problem)[:count].detach()
    assert float(misfit.square().mean()) == pytest.approx(1.0, abs=0.3)


def test_the_operator_conserves_and_is_symmetric(example, monkeypatch, tmp_path):
    for on in ("grid", "graph"):
        _, problem = problem_of(example, monkeypatch, tmp_path, "--on", on)
        matrix = problem.medium.operator().mv(torch.eye(24)).detach()
        torch.testing.assert_close(matrix, matrix.T)
        assert float(matrix.sum(dim=0).abs().max()) < 1e-10 * float(matrix.abs().max())
        assert float(torch.linalg.eigvalsh(matrix).max()) < 1e-10 * float(matrix.abs().max())


def test_other_settings_have_a_file_of_their_own(example, monkeypatch, tmp_path, capsys):
    for seed in "01":
        fitted(example, monkeypatch, tmp_path, "--iterations", "1", "--seed", seed)
    assert "resumed" not in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.pt"))) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "altered"])
def test_a_damaged_checkpoint_is_named_with_a_remedy(example, monkeypatch, tmp_path, damage):
    fitted(example, monkeypatch, tmp_path, "--iterations", "1")
    (path,) = tmp_path.glob("*.pt")
    if damage == "foreign":
        torch.save({"model": {}}, path)
    elif damage == "altered":  # a number of the weights, where torch.load would not notice
        content = bytearray(path.read_bytes())
        at = content.index(b"/data/0") + 200
        content[at:at + 8] = bytes(255 - byte for byte in content[at:at + 8])
        path.write_bytes(content)
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 500])
    with pytest.raises(SystemExit, match="--restart") as found:
        fitted(example, monkeypatch, tmp_path, "--iterations", "2")
    assert str(path) in str(found.value)
    curve, _ = fitted(example, monkeypatch, tmp_path, "--iterations", "1", "--restart")
    assert len(curve) == 1


@pytest.mark.parametrize(("arguments", "message"), [
    (("--iterations", "0"), "--iterations: expected a whole number of at least 1 (got '0')"),
    (("--nodes", "9"), "--nodes: expected at least 16 (got 9)"),
    (("--step-size", "0"), "--step-size: expected a finite number above 0 (got '0')"),
    (("--noise", "-1"), "--noise: expected a finite number of at least 0 (got '-1')"),
    (("--out", "/dev/null/x"), "Expected --out to be a folder to write to (got /dev/null/x"),
])
def test_a_wrong_argument_is_refused_before_any_work(example, monkeypatch, capsys, arguments,
                                                     message):
    monkeypatch.setattr(sys, "argv", ["learn_diffusion.py", *arguments])
    with pytest.raises(SystemExit) as found:
        example.parse_arguments()
    assert message in capsys.readouterr().err + str(found.value)


def test_cora_is_trained_in_a_few_epochs(planetoid, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cora.py", "--root", str(planetoid), "--epochs", "16"])
    runpy.run_path(str(EXAMPLES / "cora.py"), run_name="__main__")
    accuracy = re.search(r"test accuracy ([\d.]+)%", capsys.readouterr().out)
    assert float(accuracy.group(1)) > 50.0


def test_cora_refuses_to_train_for_no_epoch(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cora.py", "--epochs", "0"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / "cora.py"), run_name="__main__")
    assert "--epochs expects at least 1 (got 0)" in capsys.readouterr().err
