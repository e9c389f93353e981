"""Do tests with --device have their tensors on it, and leave the package's where it puts them?"""

import pytest
import torch
from on_device import OnDevice, WaitsForDevice
from torch import nn

from pyg_sinode import GRANDAttention, SINODEConv
from pyg_sinode.grid import PeriodicGrid


@pytest.fixture
def elsewhere():
    """The device "meta", which every PyTorch has; its tensors have no values."""
    with OnDevice("meta"):
        yield


@pytest.mark.usefixtures("elsewhere")
def test_what_a_test_makes_is_on_the_device():
    generator = torch.Generator().manual_seed(0)
    made = [torch.ones(2), torch.randn(2, generator=generator), torch.tensor([1.0]),
            torch.eye(2), nn.Parameter(torch.zeros(2))]
    assert {t.device.type for t in made} == {"meta"}
    leaf = torch.zeros(2, requires_grad=True)
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert not torch.zeros(2).requires_grad
    assert torch.zeros(2, device="cpu").is_cpu


@pytest.mark.usefixtures("elsewhere")
def test_parameters_of_modules_are_there_too():
    for module in (nn.Linear(2, 3), GRANDAttention(4), SINODEConv(3, 4, reaction="fisher")):
        assert {p.device.type for p in module.parameters()} == {"meta"}


@pytest.mark.usefixtures("elsewhere")
def test_what_the_package_makes_in_a_call_is_left_where_the_package_puts_it():
    assert PeriodicGrid(4, 1.0).points.is_cpu


def test_what_is_made_of_tensors_keeps_its_gradient():
    values = torch.ones(2, requires_grad=True)
    with OnDevice("cpu"):
        matrix = torch.sparse_coo_tensor([[0, 1], [1, 0]], values, (2, 2), check_invariants=True)
    matrix.to_dense().sum().backward()
    assert values.grad.tolist() == [1.0, 1.0]


def test_random_numbers_are_those_of_the_cpu():
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    with OnDevice("cpu"):
        assert torch.equal(torch.randn(4), expected)


def test_a_number_that_is_read_makes_the_host_wait():
    u = torch.ones(3)
    with WaitsForDevice() as waits:
        u * 2
        assert waits.count == 0
        float(u.sum())
    assert waits.count == 1
