"""Do the grid examples count, resume, stop when they diverge, and draw what they found?"""

import argparse
import importlib
import re
import sys

import pytest
import torch
from torch import nn

from pyg_sinode.grid import Advection, PeriodicGrid, kuramoto_sivashinsky

pytestmark = pytest.mark.scripts

NAMES = ("grid_learning", "grid_networks", "grid_options", "least_squares", "kuramoto_sivashinsky",
         "burgers")
F64 = torch.float64


@pytest.fixture(scope="module")
def examples():
    for name in ("matplotlib", "torchdiffeq"):
        pytest.importorskip(name, reason=f"the examples need {name}, which is not installed")
    return {name: importlib.import_module(name) for name in NAMES}


@pytest.fixture
def learning(examples):
    return examples["grid_learning"]


@pytest.fixture
def run(examples, monkeypatch, capsys, tmp_path):
    """Runs an example in this process; returns what it printed."""
    def run_with(name, *arguments, out=tmp_path / "runs", root=tmp_path / "data"):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--out", str(out), "--root", str(root),
                                          *arguments])
        capsys.readouterr()
        examples[name].main()
        return capsys.readouterr().out

    return run_with


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder where the data of the tests are made once."""
    return tmp_path_factory.mktemp("data")


SMALL_KS = ("--num-points", "32", "--trajectories", "2", "--duration", "20", "--lyapunov-times",
            "0.5")


# Whole runs


@pytest.mark.parametrize(("method", "count"), [("imex_rk2", 30), ("imex_rk3", 60),
                                               ("imex_rk4", 90), ("imex_rk5", 120)])
def test_an_epoch_of_15_batches_makes_two_to_eight_evaluations_a_batch(run, data, method, count):
    text = run("kuramoto_sivashinsky", *SMALL_KS, "--method", method, "--epochs", "2", "--window",
               "1", "--batch-size", "16", root=data)
    assert f"{count} evaluations of G, {count} vector-Jacobian products" in text
    assert "factorizations: 1 in all" in text


def test_the_gnn_learns_in_a_few_epochs_and_runs_on_another_grid(run, data, tmp_path):
    text = run("kuramoto_sivashinsky", *SMALL_KS, "--explicit", "gnn", "--epochs", "6",
               "--resolutions", "64", root=data)
    assert float(re.search(r"later times (\S+) after", text)[1]) < 1e-5
    assert float(re.search(r"on 64 points .* error (\S+),", text)[1]) < 1e-4
    assert text.count("bounded") == 2
    figures = list((tmp_path / "runs").glob("ks-32-gnn-etdrk4-*.png"))
    assert {path.stem.split("-horizon")[0] for path in figures} == {
        path.stem for path in (tmp_path / "runs").glob("*.pt")}
    assert len(figures) == 2
    assert min(path.stat().st_size for path in figures) > 10_000


def test_the_true_term_shows_how_far_the_scheme_goes(run, data, tmp_path):
    text = run("kuramoto_sivashinsky", *SMALL_KS, "--true-term", "--method", "etdrk4", "--dtype",
               "float64", "--step-size", "0.05", "--resolutions", "64", root=data)
    assert text.startswith("ks-32-true-etdrk4: one-step")
    assert float(re.search(r"later times (\S+)\n", text)[1]) < 1e-11
    # 32 points of data do not hold the finest waves of 64.
    assert float(re.search(r"on 64 points .* error (\S+),", text)[1]) < 1e-9
    assert not list((tmp_path / "runs").glob("*.pt"))
    text = run("kuramoto_sivashinsky", *SMALL_KS, "--true-term", "--explicit", "gnn", "--dtype",
               "float32", out=tmp_path / "float32", root=data)
    assert 1e-15 < float(re.search(r"later times (\S+)\n", text)[1]) < 1e-11
    assert len(list((tmp_path / "runs").glob("ks-32-true-etdrk4-*.png"))) == 2


@pytest.fixture
def burgers(examples, run, monkeypatch, data):
    """Runs the example on 5 short trajectories of 64 points."""
    maker = examples["burgers"].BurgersTurbulence

    def brief(*given, **named):
        return maker(*given, **named, duration=0.5)

    brief.viscosity, brief.step = maker.viscosity, maker.step
    monkeypatch.setattr(examples["burgers"], "BurgersTurbulence", brief)
    return lambda *words: run("burgers", "--num-points", "64", "--trajectories", "5", "--until",
                              "0.4", *words, root=data)


def errors(text, where="test trajectories"):
    """Those in percent at t = 0.1 and 0.5."""
    found = re.search(where + r", mean relative L2 error: (\S+) % at t = 0.1, (\S+) % at t = 0.5\n",
                      text)
    return [float(word) for word in found.groups()]


@pytest.mark.parametrize(("explicit", "words"), [
    ("mlp", ()), ("gnn", ("--rounds", "2", "--method", "imex_euler", "--optimizer", "adam",
                          "--dtype", "float32", "--window", "2", "--hidden", "16"))])
def test_burgers_runs_and_draws(burgers, tmp_path, explicit, words):
    text = burgers("--explicit", explicit, "--epochs", "3", "--batches", "3", "--batch-size", "4",
                   *words)
    # Two steps a save, windows of one save in the first epochs and then of more.
    steps = 3 * 2 * (2 if explicit == "gnn" else 3)
    assert f"{steps} evaluations of G, {steps} vector-Jacobian products" in text
    assert max(errors(text)) < 200
    (figure,) = (tmp_path / "runs").glob(f"burgers-64-{explicit}-imex_euler-*.png")
    assert figure.stat().st_size > 10_000


def test_a_flux_of_burgers_is_as_good_as_the_true_term(burgers, tmp_path):
    # 64 points do not hold the shocks: there a flux that is fitted to them is better.
    text = burgers("--explicit", "gnn", "--epochs", "8", "--batch-size", "8", "--resolutions",
                   "128")
    true = burgers("--true-term", "--method", "etdrk4", "--dtype", "float64")
    assert max(errors(text)) < 5 < min(errors(true)) < max(errors(true)) < 15
    assert max(errors(text, "on 128 points without training")) < 15
    assert len(list((tmp_path / "runs").glob("burgers-64-true-etdrk4-*.png"))) == 1


def test_the_mean_over_turns_is_for_the_perceptron(burgers, capsys):
    with pytest.raises(SystemExit):
        burgers("--explicit", "gnn", "--turns", "2")
    assert "--turns needs a perceptron" in capsys.readouterr().err


def test_the_mean_over_turns_commutes_with_them(examples):
    n, turns = 16, 4
    term = examples["grid_networks"].GridMLP(n, 8).double()
    mean = examples["grid_networks"].Averaged(term, n, turns)
    u = torch.randn(3, n, dtype=F64, generator=torch.Generator().manual_seed(0))
    # Every other shift is reflected, so that those by twice their distance are left.
    step = 2 * n // turns
    torch.testing.assert_close(mean(0.0, u.roll(step, -1)), mean(0.0, u).roll(step, -1))
    assert not torch.allclose(term(0.0, u.roll(step, -1)), term(0.0, u).roll(step, -1))
    torch.testing.assert_close(examples["grid_networks"].Averaged(term, n, 1)(0.0, u), term(0.0, u))
    truth = Advection(PeriodicGrid(n, 1.0))
    torch.testing.assert_close(examples["grid_networks"].Averaged(truth, n, turns)(0.0, u),
                               truth(0.0, u))


def test_the_fluxes_of_a_perceptron_conserve_the_mean(examples):
    term = examples["grid_networks"].FluxMLP(PeriodicGrid(16, 1.0), 8).double()
    u = torch.randn(3, 16, dtype=F64, generator=torch.Generator().manual_seed(0))
    rate = term(0.0, u).detach()
    assert rate.shape == u.shape
    assert float(rate.abs().max()) > 1e-3
    assert float(rate.mean(dim=-1).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["kuramoto_sivashinsky", "burgers"])
def test_a_perceptron_is_not_asked_for_another_grid(run, capsys, name):
    with pytest.raises(SystemExit):
        run(name, "--explicit", "mlp", "--resolutions", "128")
    assert "a perceptron knows one grid only" in capsys.readouterr().err


def test_how_the_rollouts_are_watched_does_not_train_anew(run, data):
    words = ("kuramoto_sivashinsky", *SMALL_KS, "--explicit", "gnn", "--epochs", "1")
    run(*words, root=data)
    text = run(*words, "--horizon", "0.1", "--resolutions", "64", root=data)
    assert "resumed from epoch 1 of" in text
    assert "within the horizon of 2 (0.1 Lyapunov times)" in text


@pytest.mark.parametrize("words", [
    ("--epochs", "0"), ("--batches", "0"), ("--batch-size", "-1"), ("--window", "0"), ("--lr", "0"),
    ("--step-size", "-0.1"), ("--num-points", "0"), ("--resolutions", "0"), ("--radius", "0"),
    ("--hidden", "-1"), ("--trajectories", "0"), ("--horizon", "0"), ("--duration", "nan")])
def test_a_number_that_makes_no_sense_is_refused_before_any_work(run, capsys, tmp_path, words):
    with pytest.raises(SystemExit) as stopped:
        run("kuramoto_sivashinsky", *words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [
    ("--explicit", "mlp", "--dtype", "float64"), ("--explicit", "gnn", "--dtype", "float32")])
def test_gauss_newton_is_for_few_parameters_in_float64(run, capsys, tmp_path, words):
    with pytest.raises(SystemExit) as stopped:
        run("kuramoto_sivashinsky", *words, "--optimizer", "gauss_newton")
    assert stopped.value.code == 2
    assert "needs --explicit gnn and --dtype float64" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [
    ("--explicit", "mlp", "--dtype", "float64"),
    ("--explicit", "gnn", "--optimizer", "lbfgs", "--dtype", "float32", "--method", "imex_rk4")])
def test_precision_and_optimizer_can_be_chosen_and_have_files_of_their_own(
        run, data, tmp_path, words):
    few = ("--epochs", "1", "--batches", "1", "--batch-size", "8", "--window", "1")
    run("kuramoto_sivashinsky", *SMALL_KS, *few, *words[:2], root=data)
    run("kuramoto_sivashinsky", *SMALL_KS, *few, *words, root=data)
    files = (tmp_path / "runs").glob("*.pt")
    dtypes = [next(iter(torch.load(path, weights_only=True)["model"].values())).dtype
              for path in files]
    assert set(dtypes) == {torch.float32, F64}


@pytest.mark.parametrize("name", ["kuramoto_sivashinsky", "burgers"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(run, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="Expected --out to be a folder to write to"):
        run(name, out=tmp_path / "file")
    assert not (tmp_path / "data").exists()


# Predictions


@pytest.fixture
def forecast(examples, tmp_path):
    """The examination of a term that is the true one times a factor, on short trajectories."""
    def examine(factor, horizon=1.0):
        module, grid = examples["kuramoto_sivashinsky"], PeriodicGrid(32, 22.0)
        G, J, initial = kuramoto_sivashinsky(grid)
        args = arguments(tmp_path, method="imex_rk4", horizon=horizon, lyapunov_times=0.1,
                         num_points=32, explicit="gnn", true_term=False)
        truth = examples["grid_learning"].rollout(args, G, J, initial(6), 120)[:, 10:]
        return args, module.examine(args, lambda t, u: factor * G(t, u), J, truth)

    return examine


def test_starts_that_outlast_the_horizon_are_counted_and_not_given_a_time(examples, forecast):
    module = examples["kuramoto_sivashinsky"]
    _, good = forecast(1.0)
    assert bool(good["time"].isinf().all())
    assert module.describe_times(good["time"], good["horizon"]) == (
        "20 % relative error after >= 22.0 units of time (>= 1.00 Lyapunov times), the median of "
        "6 starts, and >= 22.0 units of time (>= 1.00 Lyapunov times), the worst tenth; 6 never "
        "reached it within the horizon of 22 (1.0 Lyapunov times)")
    _, bad = forecast(0.5)
    assert bool(bad["time"].isfinite().all())
    text = module.describe_times(bad["time"], bad["horizon"])
    assert "0 never reached it" in text
    assert ">=" not in text
    mixed = torch.tensor([3.0, 8.0, torch.inf, 1.0])
    text = module.describe_times(mixed, 22.0)
    assert text.startswith("20 % relative error after 3.0 units")
    assert "1 never reached it" in text


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_figure_has_a_bar_for_them_and_a_difference_that_is_not_blank(
        examples, forecast, monkeypatch, tmp_path, factor):
    module, kept = examples["kuramoto_sivashinsky"], []
    monkeypatch.setattr(module.figures, "save", lambda figure, path: kept.append(figure))
    args, result = forecast(factor)
    run = examples["grid_learning"].Run(epoch=1, curve=[[1.0, 0.1, 0.2]])
    module.plot_forecast(args, tmp_path / "it.png", result, run)
    (figure,) = kept
    axes = {ax.get_title(): ax for ax in figure.axes}
    never = 6 if factor == 1.0 else 0
    (bars,) = (ax for title, ax in axes.items()
               if title == f"{never} of 6 starts never reached 20 % error")
    assert bars.patches[-1].get_height() == never
    truth, difference = (next(ax.images[0] for title, ax in axes.items() if title.startswith(name))
                         for name in ("truth", "difference"))
    largest = float(abs(difference.get_array()).max())
    assert difference.norm.vmax == pytest.approx(largest)
    assert difference.norm.vmin == -difference.norm.vmax
    assert truth.norm.vmax == 3.0
    assert any("prediction - truth" in ax.get_ylabel() for ax in figure.axes)
    module.plt.close(figure)


# Training


def arguments(out, **changed):
    values = {"out": out, "method": "imex_rk2", "step_size": 0.2, "optimizer": "adam", "lr": 2e-3,
              "epochs": 6, "batches": 2, "batch_size": 8, "window": 2, "seed": 0, "device": "cpu",
              "restart": False, "interval": 0.2, "dtype": "float32"}
    return argparse.Namespace(**{**values, **changed})


def training(learning, args, model=None):
    """A training on true trajectories of a few points; gives the model and the run."""
    equation = kuramoto_sivashinsky(PeriodicGrid(16, 22.0))
    states = equation.initial(4, torch.Generator().manual_seed(0))
    states = torch.stack([states * 0.9**k for k in range(6)], dim=1).to(getattr(torch, args.dtype))

    def draw(count, window, generator):
        start = torch.randint(6 - window, (count,), generator=generator)
        return torch.stack([states[i % 4, s : s + window + 1] for i, s in enumerate(start)])

    torch.manual_seed(0)
    model = learning.GridMLP(16, 8) if model is None else model
    run = learning.train(args, "test", model, equation.implicit, draw,
                         learning.difference, lambda _: 0.0)
    return model, run


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "gauss_newton"])
@pytest.mark.parametrize("killed", [2, 5])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(learning, tmp_path, monkeypatch,
                                                            optimizer, killed):
    def trained(folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.manual_seed(1)
        model, dtype = None, "float32"
        if optimizer == "gauss_newton":
            model, dtype = learning.GridFlux(PeriodicGrid(16, 22.0), 2).double(), "float64"
        return training(learning, arguments(tmp_path / folder, optimizer=optimizer, dtype=dtype),
                        model)

    whole, expected = trained("a")
    epoch = learning._epoch

    def interrupted(*given):
        if given[7] == killed:
            raise KeyboardInterrupt
        return epoch(*given)

    monkeypatch.setattr(learning, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained("b")
    monkeypatch.setattr(learning, "_epoch", epoch)
    resumed, run = trained("b")
    assert run.epoch == expected.epoch == 6
    assert [c[1] for c in run.curve] == [c[1] for c in expected.curve]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_setting_has_a_file_of_its_own_and_a_resumed_run_says_so(learning, tmp_path, capsys):
    _, slow = training(learning, arguments(tmp_path, epochs=3))
    for changed in ({"lr": 1e-3}, {"epochs": 4}, {"seed": 1}, {"batches": 3}, {"window": 1}):
        training(learning, arguments(tmp_path, **{"epochs": 3, **changed}))
    assert "resumed" not in capsys.readouterr().out
    files = list(tmp_path.iterdir())
    assert len(files) == 6
    _, again = training(learning, arguments(tmp_path, epochs=3))
    assert again == slow
    path = learning.make_checkpoint(arguments(tmp_path, epochs=3), "test").path
    assert capsys.readouterr().out == f"resumed from epoch 3 of {path}\n"
    assert sorted(tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize("batches", [1, 2, 9, 10, 19])
def test_the_learning_rate_grows_for_at_least_a_step_and_falls_to_nothing(learning, tmp_path,
                                                                          batches):
    # With 9 steps a tenth of the schedule ended where it began.
    args = arguments(tmp_path, epochs=1, batches=batches, window=1)
    optimizer, schedule = learning._make_optimizer(args, nn.Linear(1, 1), (0, 1), lower=False)
    rates = []
    for _ in range(batches):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(args.lr / 25)
    if batches > 1:
        assert max(rates) == pytest.approx(args.lr, rel=0.1)
        assert rates[1] == max(rates)
        assert schedule.get_last_lr()[0] < 1e-3 * args.lr


def test_a_training_of_nine_steps_a_phase_works(learning, tmp_path):
    _, run = training(learning, arguments(tmp_path, epochs=3, batches=9, window=2))
    assert run.epoch == 3
    _, run = training(learning, arguments(tmp_path, epochs=1, batches=9, window=2))
    assert run.epoch == 1


def test_windows_longer_than_the_trajectories_are_refused(learning):
    with pytest.raises(ValueError, match="more than --window states"):
        learning.windows(torch.zeros(2, 3, 8), 4, 3, torch.Generator())


class Explosive(nn.Module):
    """A term that turns infinite after some evaluations."""

    def __init__(self, after):
        super().__init__()
        self.weight, self.left = nn.Parameter(torch.zeros(())), after

    def forward(self, t, u):
        self.left -= 1
        return self.weight * u + (0.0 if self.left > 0 else torch.inf)


def test_a_diverging_training_stops_with_the_step_and_keeps_its_last_checkpoint(learning,
                                                                                 tmp_path):
    # Two batches of an epoch make 2 x 2 evaluations, whose graphs serve the backward pass.
    with pytest.raises(learning.DivergedError, match=r"epoch 3, batch 2\); the last checkpoint in "
                       r".* is of epoch 2. Take a smaller --lr"):
        training(learning, arguments(tmp_path, window=1), Explosive(after=4 + 4 + 3))
    (path,) = tmp_path.iterdir()
    state = torch.load(path, weights_only=True)
    assert state["run"]["epoch"] == 2
    assert bool(state["model"]["weight"].isfinite())


@pytest.mark.parametrize("method", ["imex_euler", "imex_rk3", "crank_nicolson", "rk4", "dopri5"])
def test_all_methods_integrate_the_same_equation_and_give_the_same_gradient(learning, method):
    grid = PeriodicGrid(16, 22.0)
    equation = kuramoto_sivashinsky(grid)
    u0 = 0.3 * equation.initial(2, torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 0.1], dtype=F64)

    def gradient(method, step_size, work):
        torch.manual_seed(0)
        term = learning.GridMLP(16, 8).double()
        learning.integrate(method, term, equation.implicit, u0, t, step_size,
                           work)[-1].square().sum().backward()
        return torch.cat([p.grad.flatten() for p in term.parameters()])

    work = learning.Work()
    step = 1e-4 if method == "imex_euler" else 1e-2 if method == "crank_nicolson" else 1e-3
    found, exact = gradient(method, step, work), gradient("imex_rk5", 5e-3, learning.Work())
    torch.testing.assert_close(found, exact, rtol=5e-3, atol=2e-4 * float(exact.abs().max()))
    assert work.totals()["evaluations"] > 0
    assert work.totals()["vjps"] > 0


# What is shared


def test_turned_windows_are_windows_of_the_same_equation(learning):
    term, generator = Advection(PeriodicGrid(16, 2.0)), torch.Generator().manual_seed(3)
    u = torch.randn(20, 16, dtype=F64)
    pairs = learning.turned(torch.stack([u, term(0.0, u)], dim=1), generator)
    torch.testing.assert_close(term(0.0, pairs[:, 0]), pairs[:, 1])
    assert not torch.equal(pairs[:, 0], u)


def test_a_rollout_is_infinite_from_where_it_stops_being_finite(learning, tmp_path):
    def growing(t, u):
        return 60.0 * u

    args = arguments(tmp_path, method="imex_euler")
    linear = kuramoto_sivashinsky(PeriodicGrid(16, 22.0)).implicit
    u0 = torch.ones(2, 16)
    u0[1] = 0.0
    states = learning.rollout(args, growing, linear, u0, 6)
    assert bool(states[0, :3].isfinite().all())
    assert bool(states[0, 4:].isinf().all())
    assert not states[1].any()
    assert learning.relative_error(states[:1, -1], torch.ones(1, 16)).item() == torch.inf


def test_the_spectrum_holds_the_energy_of_each_mode(learning):
    x = torch.arange(16, dtype=F64) * 2 * torch.pi / 16
    spectrum = learning.energy_spectrum(torch.stack([2 * torch.cos(3 * x), torch.sin(x)]))
    expected = torch.zeros(9, dtype=F64)
    expected[3], expected[1] = 0.5, 0.125
    torch.testing.assert_close(spectrum, expected)


def test_a_window_that_no_trajectory_holds_is_refused_before_the_training(run, data):
    with pytest.raises(SystemExit, match="Take a smaller --window or a longer time"):
        run("kuramoto_sivashinsky", *SMALL_KS, "--explicit", "gnn", "--epochs", "6", "--window",
            "5000", root=data)
