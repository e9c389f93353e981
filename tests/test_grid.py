"""Are derivatives, edges and interpolation of periodic grids right?"""

import math

import numpy as np
import pytest
import torch
from cases import dense_matrix
from grid_cases import F64, KINDS, close, slope, wave
from torch_geometric.data import Batch, Data
from torch_geometric.nn import MessagePassing

from pyg_sinode.grid import (
    DIFFERENCES,
    PeriodicGrid,
    resample,
)
from pyg_sinode.operators import Circulant

GRIDS = [PeriodicGrid(7, 2.0), PeriodicGrid((5, 6), (1.0, 3.0)), PeriodicGrid((3, 4, 5), 2.0)]


def band_limited(n, waves, count=3):
    """Random states of mean 1 to 4 that hold the first waves only."""
    return 1 + torch.arange(count, dtype=F64)[:, None] + sum(
        torch.randn(count, 1, dtype=F64) * wave(PeriodicGrid(n, 1.0), m, phase)
        for m in range(1, waves + 1) for phase in (0.0, 1.0))


def test_points_start_at_zero_and_leave_out_the_right_end():
    grid = PeriodicGrid(4, 2)
    close(grid.points, torch.tensor([0.0, 0.5, 1.0, 1.5], dtype=F64), 0)
    assert (grid.shape, grid.length, grid.spacing) == ((4,), (2.0,), (0.5,))
    assert (grid.num_nodes, grid.dims) == (4, (-1,))


@pytest.mark.parametrize("grid", GRIDS[1:])
def test_points_of_several_axes_have_their_coordinates_last(grid):
    axes = len(grid.shape)
    assert grid.points.shape == (*grid.shape, axes)
    assert grid.num_nodes == math.prod(grid.shape)
    assert grid.dims == tuple(range(-axes, 0))
    at = tuple(n - 1 for n in grid.shape)
    expected = [length - h for length, h in zip(grid.length, grid.spacing, strict=True)]
    close(grid.points[at], torch.tensor(expected, dtype=F64))


def test_one_length_serves_all_axes_and_equal_grids_are_equal():
    grid = PeriodicGrid((3, 4), 2)
    assert grid.length == (2.0, 2.0)
    assert len({grid, PeriodicGrid([3, 4], [2.0, 2.0]), PeriodicGrid(torch.Size([3, 4]), 2.0)}) == 1


def test_numbers_of_numpy_and_torch_make_the_same_grid():
    assert PeriodicGrid(np.int64(8), np.float32(2.0)) == PeriodicGrid(8, 2.0)
    assert PeriodicGrid((np.int32(3), 4), torch.tensor(2.0)) == PeriodicGrid((3, 4), 2.0)
    assert PeriodicGrid((3, 4), np.array([1.0, 2.0])) == PeriodicGrid((3, 4), (1.0, 2.0))


@pytest.mark.parametrize("grid", GRIDS)
def test_wavenumbers_are_whole_waves_per_length_along_each_axis(grid):
    for axis, (n, length) in enumerate(zip(grid.shape, grid.length, strict=True)):
        waves = grid.wavenumbers(axis) * length / (2 * math.pi)
        whole = [m if m < (n + 1) // 2 else m - n for m in range(n)]
        np.testing.assert_allclose(waves, whole, atol=1e-14)


@pytest.mark.parametrize("n", [11, 12])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6])
def test_spectral_derivatives_of_every_wave_are_exact(order, n):
    grid = PeriodicGrid(n, 3.0)
    derivative = grid.derivative(order)
    for m in range((n + 1) // 2):
        k = 2 * math.pi * m / 3.0
        expected = k**order * wave(grid, m, 0.3 + order * math.pi / 2)
        close(derivative.mv(wave(grid, m)), expected, 1e-12 * max(1.0, (math.pi * n / 3) ** order))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_highest_wave_of_an_even_grid_has_even_derivatives_only(order):
    grid = PeriodicGrid(8, 2 * math.pi)
    highest = wave(grid, 4, 0.0)
    expected = 0 * highest if order % 2 else (-1) ** (order // 2) * 4.0**order * highest
    close(grid.derivative(order).mv(highest), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_derivative_along_an_axis_leaves_the_other_axes_alone(axis, kind):
    grid, u = PeriodicGrid((6, 9), (2.0, 3.0)), torch.randn(2, 6, 9, dtype=F64)
    n, length = (6, 2.0) if axis == 0 else (9, 3.0)
    line = PeriodicGrid(n, length).derivative(1, discretization=kind)
    expected = line.mv(u.mT).mT if axis == 0 else line.mv(u)
    close(grid.derivative(1, axis, discretization=kind).mv(u), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_the_laplacian_is_the_sum_of_second_derivatives_and_has_a_closed_inverse(grid, kind):
    J = grid.laplacian(discretization=kind)
    terms = [grid.derivative(2, axis, discretization=kind) for axis in range(len(grid.shape))]
    u = torch.randn(2, *grid.shape, dtype=F64)
    expected = sum(term.mv(u) for term in terms)
    close(J.mv(u), expected, 1e-13 * float(expected.abs().max()))
    assert J.has_closed_inverse()
    assert J.symmetric()
    x = J.resolvent(0.1).mv(u)
    close(x - 0.1 * J.mv(x), u, 1e-13)


def test_derivatives_along_the_axes_of_a_box_are_those_of_its_waves():
    grid = PeriodicGrid((8, 9, 10), 2 * math.pi)
    x, y, z = grid.points.unbind(-1)
    u = torch.sin(2 * x) * torch.cos(3 * y) * torch.sin(z)
    close(grid.derivative(2, 0).mv(u), -4 * u)
    close(grid.derivative(1, 1).mv(u), -3 * torch.sin(2 * x) * torch.sin(3 * y) * torch.sin(z))
    close(grid.derivative(1, 2).mv(u), torch.sin(2 * x) * torch.cos(3 * y) * torch.cos(z))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_finite_differences_are_of_second_order(order):
    sizes, errors = (64, 128, 256), []
    for n in sizes:
        grid = PeriodicGrid(n, 2 * math.pi)
        u = grid.points.sin().exp()
        exact = grid.derivative(order).mv(u)
        got = grid.derivative(order, discretization="finite_difference").mv(u)
        errors.append((got - exact).abs().max().item())
    assert slope(errors, sizes) == pytest.approx(2.0, abs=0.05)


def test_the_stencils_are_those_on_paper():
    assert DIFFERENCES[2] == (1, -2, 1)
    assert DIFFERENCES[4] == (1, -4, 6, -4, 1)
    grid, h = PeriodicGrid(7, 3.5), 0.5
    one = torch.eye(7, dtype=F64)
    second = (one.roll(1, 0) - 2 * one + one.roll(-1, 0)) / h**2
    close(dense_matrix(grid.derivative(2, discretization="finite_difference"), (7,)), second)
    fourth = (one.roll(2, 0) - 4 * one.roll(1, 0) + 6 * one - 4 * one.roll(-1, 0)
              + one.roll(-2, 0)) / h**4
    close(dense_matrix(grid.derivative(4, discretization="finite_difference"), (7,)), fourth)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_constant_has_no_derivative_at_all(dtype, order, kind):
    derivative = PeriodicGrid(512, 22.0).derivative(order, discretization=kind)
    assert derivative.mv(torch.full((2, 512), 0.7, dtype=dtype)).abs().max() == 0


@pytest.mark.parametrize(("grid", "radius"), [(GRIDS[0], 1), (GRIDS[0], 3), (GRIDS[1], 1),
                                              (GRIDS[1], 2), (GRIDS[2], 1)])
def test_the_source_of_an_edge_lies_its_offset_ahead_of_the_target(grid, radius):
    source, target = grid.edge_index(radius)
    offset = grid.edge_offset(radius)
    at = np.stack(np.unravel_index(target.numpy(), grid.shape), axis=-1)
    ahead = (at + offset.numpy()) % np.array(grid.shape)
    assert (source.numpy() == np.ravel_multi_index(tuple(ahead.T), grid.shape)).all()
    neighbours = (2 * radius + 1) ** len(grid.shape) - 1
    assert (target.bincount() == neighbours).all()
    assert (target.diff() >= 0).all()
    assert offset.abs().max() == radius
    assert len(torch.stack([source, target]).unique(dim=1).t()) == grid.num_nodes * neighbours


class WeightedSum(MessagePassing):
    """The sum of the neighbours' features with one weight for each edge."""

    def forward(self, x, edge_index, weight):
        return self.propagate(edge_index, x=x, weight=weight)

    def message(self, x_j, weight):
        return weight.unsqueeze(-1) * x_j


@pytest.mark.parametrize(("grid", "radius"), [(GRIDS[0], 1), (GRIDS[0], 2), (GRIDS[1], 1),
                                              (GRIDS[2], 1)])
def test_message_passing_with_weights_by_offset_is_the_product_of_the_stencil(grid, radius):
    axes = len(grid.shape)
    stencil = torch.randn([2 * radius + 1] * axes, dtype=F64)
    stencil[(radius,) * axes] = 0.0  # no edge leads from a node to itself
    u = torch.randn(2, *grid.shape, dtype=F64)
    data = grid.to_data(u, radius)
    weight = stencil[tuple((grid.edge_offset(radius) + radius).t())]
    summed = WeightedSum(aggr="add")(data.x, data.edge_index, weight)
    got = grid.to_state(Data(x=summed))
    close(got, Circulant(stencil, dim=grid.dims).mv(u))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_state_survives_the_way_through_a_graph(grid, dtype):
    u = torch.randn(2, *grid.shape, dtype=dtype)
    for state in (u, u[:1], u[0]):
        data = grid.to_data(state)
        back = grid.to_state(data)
        assert torch.equal(back, state.view(-1, *grid.shape))
        assert back.dtype == data.x.dtype == data.pos.dtype == data.edge_attr.dtype == dtype
        assert data.x.shape == (grid.num_nodes, len(back))
        data.validate(raise_on_error=True)


def test_nodes_are_numbered_with_the_last_axis_fastest():
    grid = PeriodicGrid((3, 4), 1.0)
    x = grid.to_data(torch.arange(12.0).view(3, 4)).x
    assert x.view(-1).tolist() == list(range(12))


@pytest.mark.parametrize("grid", GRIDS)
def test_edge_attributes_are_the_vectors_from_target_to_source(grid):
    data = grid.to_data(torch.zeros(grid.shape, dtype=F64))
    close(data.edge_attr, grid.edge_offset() * torch.tensor(grid.spacing, dtype=F64))
    source, target = data.edge_index
    box = torch.tensor(grid.length, dtype=F64)
    off = (data.pos[source] - data.pos[target] - data.edge_attr) / box
    close(off, off.round())


@pytest.mark.parametrize("grid", GRIDS)
def test_a_batch_of_graphs_becomes_a_batch_of_states(grid):
    u = torch.randn(3, 2, *grid.shape)
    batch = Batch.from_data_list([grid.to_data(state) for state in u])
    assert torch.equal(grid.to_state(batch), u)
    one = Batch.from_data_list([grid.to_data(u[0])])
    assert torch.equal(grid.to_state(one), u[:1])


def test_gradients_flow_through_graphs():
    grid, u = PeriodicGrid((3, 4), 1.0), torch.randn(2, 3, 4, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: grid.to_state(grid.to_data(u)).sin(), (u,))


@pytest.mark.parametrize("n", [9, 10])
@pytest.mark.parametrize("to", [9, 10, 17, 32])
def test_resampling_waves_that_both_grids_hold_is_exact(n, to):
    torch.manual_seed(1)
    u = band_limited(n, 4)
    torch.manual_seed(1)
    expected = band_limited(to, 4)
    got = resample(u, to)
    close(got, expected)
    close(got.mean(-1), u.mean(-1))
    close(resample(got, n), u)


@pytest.mark.parametrize("to", [1, 4, 5, 9, 16])
def test_resampling_keeps_the_mean_and_drops_what_a_grid_cannot_hold(to):
    u = torch.randn(3, 8, dtype=F64)
    got = resample(u, to)
    close(got.mean(-1), u.mean(-1))
    kept = min((to - 1) // 2, 3)
    before, after = torch.fft.rfft(u) / 8, torch.fft.rfft(got) / to
    close(after[:, : kept + 1], before[:, : kept + 1])
    assert not (after[:, kept + 1 :].abs() > 1e-15).any()
    assert resample(u.float(), to).dtype == torch.float32
