"""Does the Gauss-Newton method of the grid examples find what a flux was, and take no bad step?"""

import argparse

import pytest
import torch
from torch import nn

from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky

pytest.importorskip("torchdiffeq", reason="the examples need it")

import grid_learning as learning
from least_squares import CHANGE, LevenbergMarquardt

pytestmark = pytest.mark.scripts

F64 = torch.float64


def test_gauss_newton_finds_the_flux_that_made_the_states(tmp_path):
    grid = PeriodicGrid(32, 22.0)
    _, J, initial = kuramoto_sivashinsky(grid)
    torch.manual_seed(0)
    true, term = (learning.GridFlux(grid, 2).double() for _ in range(2))
    with torch.no_grad():
        true.bilinear.add_(torch.eye(4) / 8)
    args = argparse.Namespace(
        out=tmp_path, restart=False, optimizer="gauss_newton", method="etdrk4", step_size=0.2,
        interval=0.2, epochs=8, batch_size=30, window=1, seed=0, device="cpu")
    states = learning.rollout(args, true, J, initial(3, torch.Generator().manual_seed(0)), 20)

    def draw(count, window, generator):
        return learning.windows(states, count, window, generator)

    run = learning.train(args, "test", term, J, draw, learning.difference, lambda _: 0.0)
    assert run.curve[-1][1] < 1e-22 < run.curve[0][1]
    # Only the symmetric part of the products' coefficients has an effect.
    torch.testing.assert_close(*(m.bilinear + m.bilinear.t() for m in (term, true)),
                               rtol=1e-5, atol=1e-6)
    assert (run.work["vjps"], run.work["evaluations"] % 4) == (0, 0)


def test_gauss_newton_takes_no_step_that_fails_or_is_worse():
    tried = []
    p = nn.Parameter(torch.tensor([2.0, 5.0], dtype=F64))
    optimizer = LevenbergMarquardt([p], (FloatingPointError,))

    def closure():  # the whole step leads below p = 0
        tried.append(float(p[0].detach()))
        if tried[-1] < 0.1:
            raise FloatingPointError
        return torch.stack([p[0].detach() ** 0.75, 0 * p[1].detach()])

    first = optimizer.step(closure)
    assert float(first) == pytest.approx(2**1.5 / 2)
    assert min(tried) < 0.1 <= float(p.detach()[0]) < 2.0
    assert float(p.detach()[1]) == 5.0  # which has no effect
    p.data[0] = 0.1 + 2 * CHANGE
    optimizer.step(closure)
    assert float(p.detach()[0]) == 0.1 + 2 * CHANGE  # even half the step leads below 0.1
