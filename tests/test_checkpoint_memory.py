"""Does the benchmark of checkpoints measure what it says?"""

import importlib.util
from pathlib import Path

import pytest
import torch

from pyg_sinode.integrate.checkpoints import advances

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "checkpoint_memory.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("checkpoint_memory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_are_measured_with_equal_gradients(benchmark):
    pytest.importorskip("resource", reason="the benchmark reads the peak memory of a Unix process")
    few, full = benchmark.measure(64, 30, 5), benchmark.measure(64, 30, None)
    assert (few["recomputed"], full["recomputed"]) == (advances(30, 5), 0)
    assert few["gradient"] == full["gradient"]
    assert few["mib"] >= 0
    assert (few["steps"], full["steps"]) == (30, 30)


def test_the_settings_are_read_from_text(benchmark):
    assert [benchmark.read_checkpoints(text) for text in ("all", "auto", "20")] == [
        None, "auto", 20]


def test_the_gradient_of_the_benchmark_depends_on_its_parameters(benchmark):
    grad, stats, seconds = benchmark.gradient(32, 5, 2)
    assert grad.shape == torch.Size([32])
    assert float(grad.abs().max()) > 0
    assert stats.steps_accepted == 5
    assert seconds > 0
