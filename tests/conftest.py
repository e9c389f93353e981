"""What holds for every test: the number of threads, the same random numbers, warnings as errors.

One thread, or as many as the environment variable PYG_SINODE_TEST_THREADS says; on the CPU, or on
the device of the option --device. A test that is skipped for want of a package named in
PYG_SINODE_REQUIRE (torch_sparse,captum) fails.
"""

import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

with warnings.catch_warnings():
    # PyTorch Geometric takes a warning that is turned into an error for a broken torch_sparse.
    warnings.simplefilter("ignore")
    import torch_geometric  # noqa: F401

from on_device import OnDevice

torch.set_num_threads(int(os.environ.get("PYG_SINODE_TEST_THREADS", "1")))


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", metavar="DEVICE",
                     help="where the tests of operators, solvers, adjoint, attention and conv make "
                          "their tensors, see .ci/device (default: cpu)")


def pytest_configure(config):
    """Before the files of tests, which make tensors too, are imported."""
    if config.option.device != "cpu":
        torch.use_deterministic_algorithms(True)
        mode = OnDevice(config.option.device)
        mode.__enter__()
        config.add_cleanup(lambda: mode.__exit__(None, None, None))


@pytest.fixture(scope="session")
def device(request):
    """Where tests compute, for the few that say it themselves."""
    return torch.device(request.config.option.device)


@pytest.fixture
def on_the_cpu(device):
    """Skips what the package offers on the CPU alone."""
    if device.type != "cpu":
        pytest.skip(f"runs on the CPU alone, not on {device}")


def pytest_ignore_collect(collection_path, config):
    """A file whose tests all have the marker scripts is not even imported where they do not run."""
    if config.option.markexpr == "not scripts" and collection_path.suffix == ".py":
        return "\npytestmark = pytest.mark.scripts\n" in collection_path.read_text() or None
    return None


REQUIRED = [name for name in os.environ.get("PYG_SINODE_REQUIRE", "").split(",") if name]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    return refuse_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return refuse_skip(report)


def refuse_skip(report):
    """The report of a test, failed where it was skipped for want of a package that is required."""
    if report.outcome == "skipped":
        *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else [report.longrepr]
        if any(name in str(reason).replace("torch-sparse", "torch_sparse") for name in REQUIRED):
            report.outcome, report.longrepr = "failed", f"required, but {reason}"
    return report


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """One thread of PyTorch, for sums whose order must not change."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def planetoid(tmp_path_factory):
    """PyG's folder of Planetoid with the raw files of Cora, writable: PyG writes beside them."""
    raw = Path(os.environ.get("PYG_SINODE_DATA", "")) / "planetoid" / "Cora" / "raw"
    if not raw.is_dir():
        pytest.skip("needs Cora: set PYG_SINODE_DATA to a folder with planetoid/Cora/raw")
    root = tmp_path_factory.mktemp("planetoid")
    shutil.copytree(raw, root / "Cora" / "raw", copy_function=shutil.copyfile)
    return root
