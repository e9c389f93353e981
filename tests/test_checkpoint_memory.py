"""Do checkpoints save memory, as their benchmark measures it?"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyg_sinode.checkpoints import advances

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "checkpoint_memory.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("checkpoint_memory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from checkpoint_memory import measure
print(json.dumps([measure(8192, 60, 5), measure(8192, 60, None)]))
"""


def test_the_benchmark_measures_a_saving_and_equal_gradients():
    pytest.importorskip("resource", reason="the benchmark reads the peak memory of a Unix process")
    # A process of its own, the small peak first: a peak can only rise.
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(SCRIPT.parent)], check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    few, full = json.loads(done.stdout)
    # 60 steps of four stages of 64 KiB are 15 MiB.
    assert full["mib"] > 8
    assert few["mib"] < 0.3 * full["mib"]
    assert (few["recomputed"], full["recomputed"]) == (advances(60, 5), 0)
    assert few["gradient"] == full["gradient"]


def test_the_settings_are_read_from_text(benchmark):
    assert [benchmark.read_checkpoints(text) for text in ("all", "auto", "20")] == [
        None, "auto", 20]


def test_the_gradient_of_the_benchmark_depends_on_its_parameters(benchmark):
    grad, stats, seconds = benchmark.gradient(32, 5, 2)
    assert grad.shape == torch.Size([32])
    assert float(grad.abs().max()) > 0
    assert stats.steps_accepted == 5
    assert seconds > 0
