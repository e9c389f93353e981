"""Do the benchmarks beside torchdiffeq train the same network, and say what does not arrive?"""

import json

import pytest
import torch

pytest.importorskip("torchdiffeq", reason="they need torchdiffeq, which is not installed")

import beside_others
import by_others
import tolerance
from benchmark_commands import ADAPTIVE, FOLDER, OTHERS
from cases import EDGES, NODES

from pyg_sinode import SINODE

pytestmark = pytest.mark.scripts


def test_the_names_to_choose_from_are_those_of_the_scripts():
    assert {name for systems in beside_others.SYSTEMS.values() for name in systems} == set(OTHERS)
    assert tuple(tolerance.SYSTEMS) == ADAPTIVE


# The same network


def network(system="imex", attention="fused"):
    """GRAND's network for Cora on a small graph, by a system; the weights are always the same."""
    chosen = beside_others.SYSTEMS["cora"][system]
    torch.manual_seed(3)
    net = SINODE.grand("Cora", 5, 3, implicit=chosen.implicit).double()
    torch.nn.init.constant_(net.conv.term.beta, 0.2)
    return by_others.Network(net, chosen.solve, attention)


@pytest.mark.parametrize("attention", ["fused", "plain"])
def test_both_attentions_are_the_same_g(attention):
    model, u = network(attention=attention), torch.randn(NODES, 80, dtype=torch.float64)
    G, J, args = model.equation(u, EDGES)
    value = G(torch.zeros(()), u, *args) + J.mv(u)
    G, J, args = network().equation(u, EDGES)
    torch.testing.assert_close(value, G(torch.zeros(()), u, *args) + J.mv(u), rtol=0, atol=1e-13)


@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize("system", beside_others.SYSTEMS["cora"])
def test_every_solver_gives_the_scores_of_the_layer_and_reaches_every_parameter(system, attention):
    if (system, attention) == ("imex-attention", "plain"):
        pytest.skip("its J is the fused attention")
    x = torch.randn(NODES, 5, dtype=torch.float64)
    expected = network().net.eval()(x, EDGES).detach()
    model = network(system, attention).eval()
    found = model(x, EDGES).detach()
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.1
    model.train()(x, EDGES).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.work.totals()["evaluations"] >= 2 * 6


def test_the_exact_solution_is_approached_by_all_of_them():
    x = torch.randn(NODES, 5, dtype=torch.float64)
    fine = [by_others.Network(network().net, solve).eval()(x, EDGES) for solve in (
        beside_others.equal("imex_rk4", 40),
        lambda *args: by_others.rk4(*args, steps=80),
        lambda *args: by_others.dopri5(*args, rtol=1e-8, atol=1e-8))]
    for found in fine[1:]:
        torch.testing.assert_close(found, fine[0], rtol=1e-4, atol=1e-4)


# The runs


@pytest.fixture
def arguments(tmp_path):
    def parsed(*words):
        return FOLDER.parse(["beside_others", "--root", str(tmp_path), "--out", str(tmp_path),
                             "--batch-size", "8", "--duration", "8", *words])

    return parsed


def test_cora_is_trained_alike_by_all(planetoid, arguments):
    args = arguments("--root", str(planetoid), "--epochs", "2")
    runs = [beside_others.train(beside_others.Case("cora", *which, 0), args) for which in (
        ("imex-large", "fused"), ("imex-large", "plain"), ("rk4", "fused"))]
    losses = torch.tensor([[point[1] for point in run["curve"]] for run in runs])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=2e-2, atol=0)
    assert [run["evaluations"] for run in runs] == [14, 14, 28]
    assert not any(run["arrived"] for run in runs)


def test_a_call_goes_on_where_it_was_and_prints_a_row_for_each(arguments, monkeypatch, capsys):
    words = ("--problems", "ks-64", "--seeds", "0", "--epochs", "2")
    made = []
    monkeypatch.setattr(beside_others, "in_its_own_process", lambda case, args: (
        made.append(case), json.loads(json.dumps(beside_others.train(case, args))))[1])
    beside_others.run(arguments(*words, "--systems", "imex"))
    beside_others.run(arguments(*words, "--systems", "imex", "imex-rk4"))
    assert [case.system for case in made] == ["imex", "imex-rk4"]
    printed = capsys.readouterr().out
    assert "| imex_rk4, 1 step | - | 0 of 1 |" in printed
    assert "not after 2 epochs, best " in printed
    beside_others.run(arguments(*words[:-1], "3", "--systems", "imex"))
    assert len(made) == 3  # other settings are another training


def test_a_training_in_a_process_of_its_own_that_takes_too_long_says_so(arguments):
    args = arguments("--limit", "0.01")
    beside_others.trajectories(args)
    found = beside_others.in_its_own_process(beside_others.Case("ks-64", "rk4", "-", 0), args)
    assert not found["arrived"]
    assert found["failure"] == "longer than 0.01 s"
    assert found["curve"] == []
    assert found["mib"] > 0
    assert beside_others.described(found) == "longer than 0.01 s after 0 epochs"


def run_of(seed, ends, arrived, score=0.8):
    return {"problem": "cora", "seed": seed, "arrived": arrived, "seconds": ends[-1], "mib": 10.0,
            "curve": [(end, 1.0, score) for end in ends], "failure": None, "evaluations": 4}


def test_ratios_are_of_the_seeds_that_both_have():
    base = {0: run_of(0, [1.0, 2.0], True), 1: run_of(1, [1.0], False)}
    runs = {0: run_of(0, [3.0, 6.0], True), 1: run_of(1, [5.0], True)}
    row = beside_others.cells("x", "fused", runs, base)
    assert row == ["x", "fused", "2 of 2", "1.5", "5.5", "3", "4", "4", "10", ""]
    row = beside_others.cells("x", "fused", base, base)
    assert row[2:7] == ["1 of 2", "2", "2", "1", "1"]
    assert row[-1] == "not after 1 epoch, best 0.8"


def test_the_targets_are_reached_from_their_own_sides():
    assert beside_others.Cora.arrived(0.82)
    assert not beside_others.Cora.arrived(0.819)
    assert beside_others.KS.arrived(1e-3)
    assert not beside_others.KS.arrived(1.1e-3)


# The tolerance


def test_tolerances_are_compared_and_a_finished_seed_is_not_trained_again(
        planetoid, tmp_path, monkeypatch, capsys):
    words = ["tolerance", "--root", str(planetoid), "--out", str(tmp_path), "--epochs", "1",
             "--systems", "decay", "dopri5", "--rtol", "1e-1", "1e-3", "--seeds", "0"]
    FOLDER.main(words)
    first = capsys.readouterr().out
    rows = [line.split(" | ") for line in first.splitlines() if "| 0." in line]
    assert [row[0] for row in rows] == ["| decay"] * 2 + ["| dopri5"] * 2
    evaluations = [int(row[3]) for row in rows]
    assert evaluations[0] < evaluations[1]
    for row in rows[:2]:
        assert int(row[3]) == 6 * int(row[2]) + 3
    monkeypatch.setattr(tolerance, "Trainer", None)
    FOLDER.main(words)
    assert capsys.readouterr().out == first
