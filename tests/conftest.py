"""What holds for every test: one thread, the same random numbers, and warnings as errors."""

import warnings

import pytest
import torch

with warnings.catch_warnings():
    # PyTorch Geometric takes a warning that is turned into an error for a broken torch_sparse.
    warnings.simplefilter("ignore")
    import torch_geometric  # noqa: F401

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)
