"""Which equations of one field are there? Most take grids of one, two or three dimensions."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..operators import Circulant
from ..operators.checks import check_number
from .axes import check_discretization
from .equation import Equation, check_positive
from .initial import few_waves, smooth_noise, turbulent
from .nonlinear import Advection, Polynomial, SquaredGradient
from .periodic import DIFFERENCES, PeriodicGrid, check_periodic


def kuramoto_sivashinsky(grid: PeriodicGrid, *, discretization: str = "spectral") -> Equation:
    r"""The Kuramoto-Sivashinsky equation :math:`u_t = -u u_x - u_{xx} - u_{xxxx}`, periodic.

    It is chaotic for L = 22 (the largest Lyapunov exponent is about 0.05 per unit of time, the
    Lyapunov time about 22). The mean of u is conserved. Good values: n = 64 and step sizes up to
    0.2 (0.1 with imex_euler, 0.05 with ark232, 0.02 with ars122); an explicit scheme would need
    :math:`2.8 / k_{max}^4`.

    Args:
        grid (PeriodicGrid): The grid, of one dimension.
        discretization (str): :obj:`"spectral"`, or :obj:`"finite_difference"`: the stencils (1, -2,
            1) and (1, -4, 6, -4, 1) of the `"Semi-Implicit Neural Ordinary Differential Equations"
            <https://arxiv.org/abs/2412.11301>`_ paper. (default: :obj:`"spectral"`)

    Raises:
        ValueError: if the grid has more than one dimension or fewer points than the stencil.
        TypeError: if grid is not a PeriodicGrid.
    """
    check_periodic(grid, 1)
    return Equation(Advection(grid, discretization=discretization),
                    _combined(grid, {2: -1.0, 4: -1.0}, discretization),
                    partial(few_waves, grid))


def viscous_burgers(grid: PeriodicGrid, viscosity: float, *,
                    discretization: str = "spectral") -> Equation:
    r"""The viscous Burgers equation :math:`u_t = -u u_x + \nu u_{xx}`, periodic.

    The mean of u is conserved, and the mean of its square never grows. Shocks have a width of
    :math:`4 \nu / \Delta u`, which the grid must resolve. Good values: L = 1, :math:`\nu = 8 \cdot
    10^{-4}`, n = 1024. The initial states have Fourier coefficients of random phase and of
    magnitude :math:`|\hat u_k| = \sqrt{2 E(k)}`, with the energy spectrum :math:`E(k) = \frac{2
    k^4}{3 \sqrt{\pi} k_0^5} e^{-(k / k_0)^2}` at the wavenumbers :math:`k = 2 \pi m / L` and
    :math:`k_0 = 10` per unit of length, as in San and Maulik (2018), `"Neural network closures for
    nonlinear model order reduction" <https://arxiv.org/abs/1705.08532>`_. For L = 1 their root mean
    square is 0.40, and shocks form at a time of about 0.15.

    Args:
        grid (PeriodicGrid): The grid, of one dimension.
        viscosity (float): The viscosity :math:`\nu`, an area per unit of time.
        discretization (str): :obj:`"spectral"` or :obj:`"finite_difference"`.
            (default: :obj:`"spectral"`)

    Raises:
        ValueError: if the viscosity is not positive, or the grid has more than one dimension.
        TypeError: if grid is not a PeriodicGrid.
    """
    check_periodic(grid, 1)
    check_positive(viscosity, "viscosity")
    return Equation(Advection(grid, discretization=discretization),
                    _combined(grid, {2: viscosity}, discretization),
                    partial(turbulent, grid))


def kuramoto_sivashinsky_height(grid: PeriodicGrid) -> Equation:
    r"""The Kuramoto-Sivashinsky equation of a height, in one to three dimensions, periodic.

    .. math::
        u_t = -\tfrac12 |\nabla u|^2 - \Delta u - \Delta^2 u

    This is the integral form: in one dimension :math:`u_x` obeys :func:`kuramoto_sivashinsky`. The
    mean of u falls, by :math:`\tfrac12 \overline{|\nabla u|^2}` per unit of time. Good values: n =
    64 along each axis, L = 32 and step sizes up to 0.2. The initial states are smooth, of root mean
    square 1. Of the plane: Kalogirou, Keaveny and Papageorgiou (2015), `"An in-depth numerical
    study of the two-dimensional Kuramoto-Sivashinsky equation"
    <https://doi.org/10.1098/rspa.2014.0932>`_.

    Args:
        grid (PeriodicGrid): The grid.

    Raises:
        TypeError: if grid is not a PeriodicGrid.
    """
    check_periodic(grid)
    k2 = grid.squared_wavenumbers()
    return Equation(SquaredGradient(grid), Circulant.from_symbol(k2 - k2**2, dim=grid.dims),
                    partial(smooth_noise, grid, wavelength=8.0, rms=1.0))


def korteweg_de_vries(grid: PeriodicGrid) -> Equation:
    r"""The Korteweg-de Vries equation :math:`u_t = -6 u u_x - u_{xxx}`, periodic.

    A soliton of speed c is :math:`u = \tfrac{c}{2} \operatorname{sech}^2(\tfrac{\sqrt c}{2} (x - c
    t))`. The mean of u, of :math:`u^2` and of :math:`u^3 - u_x^2 / 2` are conserved by the
    equation; by the steps the first exactly, the others to the accuracy of the step. Good values:
    n = 128, L = 30, c up to 4 and steps of 0.005 with ark436l2sa: the explicit term bears a step of
    about :math:`4 / (6\, u_{max}\, k_{max})`. The initial states are smooth, of root mean square
    0.5 and mean 0. Source: Korteweg and de Vries (1895), `doi:10.1080/14786449508620739
    <https://doi.org/10.1080/14786449508620739>`_, in the scaling of Gardner, Greene, Kruskal and
    Miura (1967), `doi:10.1103/PhysRevLett.19.1095 <https://doi.org/10.1103/PhysRevLett.19.1095>`_.

    Args:
        grid (PeriodicGrid): The grid, of one dimension.

    Raises:
        ValueError: if the grid has more than one dimension.
        TypeError: if grid is not a PeriodicGrid.
    """
    check_periodic(grid, 1)
    return Equation(Polynomial(grid, {2: -3.0}, 1j * grid.wavenumbers()), -grid.derivative(3),
                    partial(smooth_noise, grid, wavelength=grid.length[0] / 4, rms=0.5))


def allen_cahn(grid: PeriodicGrid, width: float = 0.05) -> Equation:
    r"""The Allen-Cahn equation :math:`u_t = \varepsilon^2 \Delta u + u - u^3`, periodic.

    Phases u = 1 and u = -1 meet in fronts of the profile :math:`\tanh(d / (\sqrt 2\,
    \varepsilon))`, which the grid must resolve: at least 2 points in :math:`\varepsilon`. The
    energy, the mean of :math:`\tfrac{\varepsilon^2}{2} |\nabla u|^2 + \tfrac14 (1 - u^2)^2`, never
    grows. Good values: L = 2, :math:`\varepsilon` = 0.05, n = 128 along each axis, step sizes up to
    0.2. The initial states are smooth, of root mean square 0.5. Source: Allen and Cahn (1979),
    `doi:10.1016/0001-6160(79)90196-2 <https://doi.org/10.1016/0001-6160(79)90196-2>`_.

    Args:
        grid (PeriodicGrid): The grid, of one to three dimensions.
        width (float): The width :math:`\varepsilon` of fronts, a length. (default: :obj:`0.05`)

    Raises:
        ValueError: if the width is not positive.
        TypeError: if grid is not a PeriodicGrid.
    """
    check_periodic(grid)
    check_positive(width, "width")
    symbol = 1.0 - width**2 * grid.squared_wavenumbers()
    return Equation(Polynomial(grid, {3: -1.0}), Circulant.from_symbol(symbol, dim=grid.dims),
                    partial(smooth_noise, grid, wavelength=8 * width, rms=0.5))


def fisher_kpp(grid: PeriodicGrid, diffusivity: float = 1.0, rate: float = 1.0) -> Equation:
    r"""The Fisher-KPP equation :math:`u_t = D \Delta u + r u (1 - u)`, periodic.

    A population u = 1 invades u = 0 at a speed of at least :math:`2 \sqrt{r D}`. The state 0 is
    unstable; negative values of u run away. Good values: D = r = 1, L = 100, n = 256 along each
    axis, step sizes up to 0.2. The initial states are smooth, of mean 0.5 and root mean square
    deviation 0.1. Sources: Fisher (1937), `doi:10.1111/j.1469-1809.1937.tb02153.x
    <https://doi.org/10.1111/j.1469-1809.1937.tb02153.x>`_; a front in closed form, of speed
    :math:`\tfrac{5}{\sqrt 6} \sqrt{r D}`: Ablowitz and Zeppetella (1979),
    `doi:10.1007/BF02462380 <https://doi.org/10.1007/BF02462380>`_.

    Args:
        grid (PeriodicGrid): The grid, of one to three dimensions.
        diffusivity (float): The diffusivity D, an area per unit of time. (default: :obj:`1.0`)
        rate (float): The rate of growth r, per unit of time. (default: :obj:`1.0`)

    Raises:
        ValueError: if the diffusivity or the rate is not positive.
        TypeError: if grid is not a PeriodicGrid.
    """
    check_periodic(grid)
    check_positive(diffusivity, "diffusivity")
    check_positive(rate, "rate")
    symbol = rate - diffusivity * grid.squared_wavenumbers()
    return Equation(Polynomial(grid, {2: -rate}), Circulant.from_symbol(symbol, dim=grid.dims),
                    partial(smooth_noise, grid, wavelength=8 * (diffusivity / rate) ** 0.5,
                            rms=0.1, mean=0.5))


def swift_hohenberg(grid: PeriodicGrid, r: float = 0.3, quadratic: float = 0.0) -> Equation:
    r"""The Swift-Hohenberg equation :math:`u_t = r u - (1 + \Delta)^2 u + b u^2 - u^3`, periodic.

    For r > 0 waves of length :math:`2 \pi` grow to stripes, or with b to hexagons. The energy, the
    mean of :math:`-\tfrac r2 u^2 + \tfrac12 ((1 + \Delta) u)^2 - \tfrac b3 u^3 + \tfrac14 u^4`,
    never grows. Good values: L a multiple of :math:`2 \pi`, 8 points along each wave, r = 0.3, step
    sizes up to 0.5. The initial states are smooth, of root mean square 0.1. Source: Swift and
    Hohenberg (1977), `doi:10.1103/PhysRevA.15.319 <https://doi.org/10.1103/PhysRevA.15.319>`_.

    Args:
        grid (PeriodicGrid): The grid, of one to three dimensions.
        r (float): The distance from the onset of the pattern, per unit of time.
            (default: :obj:`0.3`)
        quadratic (float): The factor b. (default: :obj:`0.0`)

    Raises:
        ValueError: if a number is not finite.
        TypeError: if grid is not a PeriodicGrid.
    """
    check_periodic(grid)
    check_number(r, "r")
    check_number(quadratic, "quadratic")
    symbol = r - (1.0 - grid.squared_wavenumbers()) ** 2
    powers = {2: quadratic, 3: -1.0} if quadratic else {3: -1.0}
    return Equation(Polynomial(grid, powers), Circulant.from_symbol(symbol, dim=grid.dims),
                    partial(smooth_noise, grid, wavelength=4.0, rms=0.1))


def cahn_hilliard(grid: PeriodicGrid, width: float = 0.05) -> Equation:
    r"""The Cahn-Hilliard equation :math:`u_t = \Delta (u^3 - u - \varepsilon^2 \Delta u)`.

    A periodic mixture separates into phases near u = 1 and u = -1. The mean of u is conserved, and
    the energy of :func:`allen_cahn` never grows. The equation is split as

    .. math::
        J = \tfrac12 \Delta - \varepsilon^2 \Delta^2, \qquad
        G(u) = \Delta (u^3 - \tfrac32 u)

    so that J damps every wave and the derivative of G is :math:`-\tfrac32 \Delta` where the phases
    are mixed and :math:`\tfrac32 \Delta` where they are pure: with another share of the Laplacian
    in J one of them is larger. The idea is that of Eyre (1998), `doi:10.1557/PROC-529-39
    <https://doi.org/10.1557/PROC-529-39>`_. Good values: L = 2, :math:`\varepsilon` = 0.05 and n =
    128 along each axis; step sizes up to :math:`0.4\, \varepsilon^2` = 0.001. The initial states
    are smooth, of mean 0 and root mean square 0.1. Source: Cahn and Hilliard (1958),
    `doi:10.1063/1.1744102 <https://doi.org/10.1063/1.1744102>`_.

    Args:
        grid (PeriodicGrid): The grid, of one to three dimensions.
        width (float): The width :math:`\varepsilon` of interfaces, a length.
            (default: :obj:`0.05`)

    Raises:
        ValueError: if the width is not positive.
        TypeError: if grid is not a PeriodicGrid.
    """
    check_periodic(grid)
    check_positive(width, "width")
    k2 = grid.squared_wavenumbers()
    return Equation(Polynomial(grid, {1: -1.5, 3: 1.0}, -k2),
                    Circulant.from_symbol(-0.5 * k2 - width**2 * k2**2, dim=grid.dims),
                    partial(smooth_noise, grid, wavelength=8 * width, rms=0.1))


def _combined(grid: PeriodicGrid, factors: dict[int, float], discretization: str) -> Circulant:
    """The linear combination of derivatives, ``factors[p]`` times that of order p."""
    check_discretization(discretization)
    if discretization == "spectral":
        k = grid.wavenumbers()
        return Circulant.from_symbol(sum(a * ((1j * k) ** p).real for p, a in factors.items()))
    width = max(len(DIFFERENCES[p]) for p in factors)
    stencil = np.zeros(width)
    for p, a in factors.items():
        inner = (width - len(DIFFERENCES[p])) // 2
        stencil[inner : width - inner] += a * np.array(DIFFERENCES[p]) / grid.spacing[0] ** p
    return Circulant(stencil, size=grid.shape[0])
