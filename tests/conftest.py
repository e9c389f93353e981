"""What holds for every test: the number of threads, the same random numbers, warnings as errors.

One thread, or as many as the environment variable PYG_SINODE_TEST_THREADS says.
"""

import os
import warnings

import pytest
import torch

with warnings.catch_warnings():
    # PyTorch Geometric takes a warning that is turned into an error for a broken torch_sparse.
    warnings.simplefilter("ignore")
    import torch_geometric  # noqa: F401

torch.set_num_threads(int(os.environ.get("PYG_SINODE_TEST_THREADS", "1")))


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
