"""Do checkpoints save memory, as their benchmark measures it?"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "checkpoint_memory.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("checkpoint_memory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_measures_a_saving_and_equal_gradients():
    pytest.importorskip("resource", reason="the benchmark reads the peak memory of a Unix process")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--points", "8192", "--steps", "60", "--checkpoints", "all",
         "5"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gradients are equal to the last bit" in done.stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in done.stdout.splitlines() if line.startswith("|")][2:]
    (_, full, again, _, _), (kept, small, recomputed, formula, _) = rows
    # 60 steps of four stages of 64 KiB are 15 MiB.
    assert float(full) > 10
    assert float(small) < 0.3 * float(full)
    assert (again, kept) == ("0", "5")
    assert recomputed == formula


def test_the_settings_are_read_from_text(benchmark):
    assert [benchmark.read_checkpoints(text) for text in ("all", "auto", "20")] == [
        None, "auto", 20]


def test_the_gradient_of_the_benchmark_depends_on_its_parameters(benchmark):
    grad, stats, seconds = benchmark.gradient(32, 5, 2)
    assert grad.shape == torch.Size([32])
    assert float(grad.abs().max()) > 0
    assert stats.steps_accepted == 5
    assert seconds > 0
