"""Is the flux of the grid examples its formula, on every grid?"""

import pytest
import torch

from pyg_sinode.grid import Advection, PeriodicGrid, kuramoto_sivashinsky

pytest.importorskip("torchdiffeq", reason="the examples need it")

import grid_learning as learning

pytestmark = pytest.mark.scripts


def flux_by_hand(term, u, spacing):
    """The formula of the flux, with rolls of the whole state."""
    r = term.radius
    z = torch.stack([u.roll(-o, -1) for o in range(1 - r, r + 1)], dim=-1)
    flux = z @ term.linear + torch.einsum("...a,ab,...b->...", z, term.bilinear, z)
    if term.hidden:
        more, gate = term.lin2(term.lin1(z).tanh()).unbind(-1)
        flux = flux + more - 0.5 * gate.sigmoid() * (z[..., r] - z[..., r - 1])
    return (flux.roll(1, -1) - flux) / spacing


@pytest.mark.parametrize("radius", [1, 3])
@pytest.mark.parametrize("hidden", [0, 5])
def test_the_flux_is_its_formula(radius, hidden):
    grid, u = PeriodicGrid(12, 3.0), torch.randn(4, 12)
    term = learning.GridFlux(grid, radius, hidden)
    torch.testing.assert_close(term(0.0, u), flux_by_hand(term, u, 0.25))
    assert term(0.0, u).sum(dim=-1).abs().max() < 1e-4
    torch.testing.assert_close(term(0.0, u.roll(5, -1)), term(0.0, u).roll(5, -1))
    twice = learning.GridFlux(grid, radius, hidden, rounds=2, scale=0.5)
    twice.load_state_dict(term.state_dict())
    once = u + flux_by_hand(term, u, 1.0)
    expected = (once + flux_by_hand(term, once, 1.0) - u) / 0.5
    torch.testing.assert_close(twice(0.0, u), expected, rtol=1e-4, atol=1e-5)


def test_a_flux_on_a_grid_twice_as_fine_takes_every_other_node():
    coarse, fine = PeriodicGrid(12, 3.0), PeriodicGrid(24, 3.0)
    term, u = learning.GridFlux(coarse, 2, 3), torch.randn(4, 24)
    other = term.on(fine, stride=2)
    torch.testing.assert_close(other(0.0, u)[:, ::2], term(0.0, u[:, ::2]))
    assert torch.equal(term.on(fine).linear, term.linear)


def test_a_flux_can_be_the_true_term():
    grid = PeriodicGrid(64, 22.0)
    term = learning.GridFlux(grid, 1).double()
    with torch.no_grad():
        term.linear.zero_()
        term.bilinear.copy_(torch.eye(2) / 4)  # the mean of u^2 / 2 on both sides
    u = kuramoto_sivashinsky(grid).initial(2)
    expected = Advection(grid, discretization="finite_difference")(0.0, u)
    torch.testing.assert_close(term(0.0, u), expected)
