"""Does the table of GRAND's accuracies train all of its networks, and go on where it was?"""

import json

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib, which is not installed")

import grand_table
from benchmark_commands import FOLDER, GRAND_COLUMNS, GRAND_MODELS
from cases import EDGES, NODES
from test_sparse import beta_notice_expected

from pyg_sinode import SINODE

pytestmark = pytest.mark.scripts


def test_every_column_has_settings():
    assert set(grand_table.SETTINGS) == set(grand_table.COLUMNS) == set(GRAND_COLUMNS)
    assert {"sinode", *grand_table.BASELINES} == set(GRAND_MODELS)


def small(once):
    torch.manual_seed(0)
    net = SINODE(5, 8, 3, heads=2, implicit="attention", time=2.0, step_size=0.05,
                 source=True)
    torch.nn.init.constant_(net.conv.term.beta, 0.3)
    return grand_table.Network(net, once).double()


@beta_notice_expected
@pytest.mark.parametrize("once", [False, True])
def test_sparse_features_give_what_dense_ones_give(once):
    x = torch.randn(NODES, 5, dtype=torch.float64).relu()
    model = small(once)
    torch.testing.assert_close(model(x.to_sparse_csr(), EDGES), model(x, EDGES))


def test_attention_once_is_the_linear_equation_of_the_initial_attention():
    x = torch.randn(NODES, 5, dtype=torch.float64)
    model = small(True)
    u = model.net.encoder(x)
    _, J, _, _ = model.conv.equation(u, EDGES)
    matrix, source = J.mv(torch.eye(NODES, dtype=torch.float64)), 0.3 * u
    # u' = M u + s is linear in (u, 1): its flow is an exponential.
    whole = torch.zeros(NODES + 1, NODES + 1, dtype=torch.float64)
    ends = []
    for channel in range(8):
        whole[:NODES, :NODES], whole[:NODES, NODES] = matrix, source[:, channel]
        start = torch.cat([u[:, channel], torch.ones(1, dtype=torch.float64)])
        ends.append((torch.matrix_exp(2.0 * whole) @ start)[:NODES])
    expected = torch.stack(ends, dim=1)
    torch.testing.assert_close(model.fixed(u, EDGES, None), expected, rtol=1e-3, atol=1e-3)
    model(x, EDGES).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_table_is_made_and_a_call_goes_on_where_it_was(
        planetoid, tmp_path, monkeypatch, capsys):
    words = ["grand_table", "--quick", "--root", str(planetoid.parent), "--out", str(tmp_path)]
    monkeypatch.setitem(grand_table.FOLDERS, "Cora", planetoid.name)
    FOLDER.main([*words, "--columns", "Cora"])
    first = capsys.readouterr().out
    assert "| Cora | 83.6, 82.3, 83.3 |" in first
    assert "2/2/2" in first
    runs = [json.loads(line) for line in (tmp_path / "grand_table.jsonl").read_text().splitlines()]
    assert [(r["model"], r["seed"]) for r in runs[1:]] == [
        (model, seed) for model in GRAND_MODELS for seed in (0, 1)]
    trained = []
    monkeypatch.setattr(grand_table, "train", lambda name, model, seed, args: (
        trained.append((name, model, seed)), {**runs[1], "column": name, "model": model,
                                              "seed": seed})[1])
    FOLDER.main([*words, "--columns", "Cora", "Cora, Planetoid's", "--models", "gcn"])
    assert trained == [("Cora, Planetoid's", "gcn", seed) for seed in (0, 1)]
    assert first.splitlines()[-1].split(" | ")[2] in capsys.readouterr().out
