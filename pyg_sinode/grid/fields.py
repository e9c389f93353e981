"""Which equations of several fields, or of a flow, are there?"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..operators import Circulant, Diagonal
from .equation import Equation, check_not_negative, check_positive
from .initial import seeded_square, smooth_noise
from .nonlinear import Autocatalysis, VectorAdvection, VorticityAdvection
from .periodic import PeriodicGrid, check_periodic


def vector_burgers(grid: PeriodicGrid, viscosity: float) -> Equation:
    r"""The Burgers equation of a velocity, :math:`u_t = -(u \cdot \nabla) u + \nu \Delta u`.

    The velocity has a component for each axis of the periodic grid, so that a state has the shape
    (\*, 2, n, n) in the plane; in one dimension, (\*, 1, n), it is :func:`viscous_burgers`. If u is
    a gradient it stays one, and :math:`u = -2 \nu \nabla \varphi / \varphi` with :math:`\varphi_t =
    \nu \Delta \varphi` (Hopf 1950, Cole 1951). Shocks have a width of :math:`4 \nu / \Delta u`,
    which the grid must resolve. Good values: L = 1, :math:`\nu` = 0.005, n = 128 along each axis,
    step sizes up to 0.005. The initial states are smooth, each component of root mean square 0.5.
    Source: Burgers (1948), `doi:10.1016/S0065-2156(08)70100-5
    <https://doi.org/10.1016/S0065-2156(08)70100-5>`_.

    Args:
        grid (PeriodicGrid): The grid, of one to three dimensions.
        viscosity (float): The viscosity :math:`\nu`, an area per unit of time.

    Raises:
        ValueError: if the viscosity is not positive.
        TypeError: if grid is not a PeriodicGrid.
    """
    check_periodic(grid)
    check_positive(viscosity, "viscosity")
    symbol = -viscosity * grid.squared_wavenumbers()
    return Equation(VectorAdvection(grid), Circulant.from_symbol(symbol, dim=grid.dims),
                    partial(smooth_noise, grid, wavelength=max(grid.length) / 2, rms=0.5,
                            fields=(len(grid.shape),)))


def gray_scott(grid: PeriodicGrid, feed: float = 0.04, kill: float = 0.06,
               diffusivity: Tensor | Sequence[float] = (2e-5, 1e-5)) -> Equation:
    r"""The Gray-Scott model of two species u and v, periodic.

    .. math::
        u_t = D_u \Delta u - u v^2 + F (1 - u), \qquad v_t = D_v \Delta v + u v^2 - (F + k) v

    A state has the shape (\*, 2, \*shape), u first. Good values: L = 2.5, n = 256 along each axis,
    step sizes up to 2; F = 0.04 and k = 0.06 give a growing maze, other numbers spots that divide,
    waves or chaos: Pearson (1993), `"Complex patterns in a simple system"
    <https://doi.org/10.1126/science.261.5118.189>`_. The initial states are his: (1, 0), but
    (1/2, 1/4) in a central square, with 1 % of noise.

    Args:
        grid (PeriodicGrid): The grid, of one to three dimensions.
        feed (float): The rate F at which u is fed, per unit of time. (default: :obj:`0.04`)
        kill (float): The rate k at which v decays, per unit of time. (default: :obj:`0.06`)
        diffusivity (Tensor or sequence of float): The two diffusivities, areas per unit of time.
            Numbers serve states in float64; a tensor of shape (2,) those of its dtype and device,
            and receives gradients. (default: :obj:`(2e-5, 1e-5)`)

    Raises:
        ValueError: if a rate is negative, or there are not two positive diffusivities.
        TypeError: if grid is not a PeriodicGrid.
    """
    check_periodic(grid)
    check_not_negative(feed, "feed")
    check_not_negative(kill, "kill")
    d = torch.as_tensor(diffusivity, dtype=None if isinstance(diffusivity, Tensor)
                        else torch.float64)
    if d.shape != (2,) or not bool((d > 0).all()):
        raise ValueError(f"Expected two positive diffusivities, those of u and v (got "
                         f"{diffusivity}).")
    of_each = Diagonal(d.view(2, *[1] * len(grid.shape)))
    return Equation(Autocatalysis(grid, feed, kill), of_each @ grid.laplacian(),
                    partial(seeded_square, grid))


def navier_stokes(grid: PeriodicGrid, viscosity: float, *, drag: float = 0.0,
                  forcing: float = 0.0, forcing_waves: int = 4) -> Equation:
    r"""The Navier-Stokes equations of a plane, incompressible flow in vorticity form, periodic.

    .. math::
        w_t = -u \cdot \nabla w + \nu \Delta w - \mu w - A \kappa \cos(\kappa y), \qquad
        u = (\psi_y, -\psi_x), \quad \Delta \psi = -w

    with the Kolmogorov forcing :math:`A \sin(\kappa y)` along x, the first axis, :math:`\kappa = 2
    \pi m / L_y`, where m is :obj:`forcing_waves`. The mean velocity is zero. Without forcing energy
    and enstrophy never grow; in all cases

    .. math::
        \tfrac{d}{dt} \tfrac12 \overline{|u|^2} = -\nu \overline{w^2} - \mu \overline{|u|^2}
            + A\, \overline{u_1 \sin(\kappa y)} .

    Good values: L = 2 pi, n = 64 along each axis, :math:`\nu` = 0.01, :math:`\mu` = 0.1, A = 1, m =
    4, step sizes up to half the spacing divided by the largest :math:`|u_1| + |u_2|`, which is
    about 0.015. The initial states are smooth, with waves longer than L / 4 and a root mean square
    vorticity of 2. Sources: Meshalkin and Sinai (1961), `doi:10.1016/0021-8928(62)90149-1
    <https://doi.org/10.1016/0021-8928(62)90149-1>`_; with drag, for learned solvers: Kochkov et al.
    (2021), `"Machine learning-accelerated computational fluid dynamics"
    <https://arxiv.org/abs/2102.01010>`_.

    Args:
        grid (PeriodicGrid): The grid, of two dimensions: x and y.
        viscosity (float): The viscosity :math:`\nu`, an area per unit of time.
        drag (float): The rate :math:`\mu` of a linear drag, per unit of time.
            (default: :obj:`0.0`)
        forcing (float): The amplitude A of the forcing, an acceleration. (default: :obj:`0.0`)
        forcing_waves (int): The number m of waves of the forcing along y. (default: :obj:`4`)

    Raises:
        ValueError: if the viscosity is not positive, the drag is negative, the grid does not hold
            the waves of the forcing, or it has not two dimensions.
        TypeError: if grid is not a PeriodicGrid, or the number of waves is not an integer.
    """
    check_periodic(grid, 2)
    check_positive(viscosity, "viscosity")
    check_not_negative(drag, "drag")
    check_not_negative(forcing, "forcing")
    waves = operator.index(forcing_waves)
    if forcing and not 1 <= waves < (grid.shape[1] + 1) // 2:
        raise ValueError(f"Expected forcing_waves from 1 to {(grid.shape[1] - 1) // 2} on this "
                         f"grid (got {waves}).")
    k = 2 * math.pi * waves / grid.length[1]
    y = np.arange(grid.shape[1]) * grid.spacing[1]
    source = np.broadcast_to(-forcing * k * np.cos(k * y), grid.shape) if forcing else None
    symbol = -viscosity * grid.squared_wavenumbers() - drag
    return Equation(VorticityAdvection(grid, source), Circulant.from_symbol(symbol, dim=grid.dims),
                    partial(smooth_noise, grid, wavelength=max(grid.length) / 4, rms=2.0))
