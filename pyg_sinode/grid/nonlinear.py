"""Which nonlinear terms do the equations have, and how are they evaluated?

Each term goes to Fourier coefficients once, to values on a finer grid where fields are multiplied,
and back, so that no product aliases. Its method ``of_coefficients`` is the same term for
coefficients, as :func:`torch.fft.rfftn` gives them: exponential schemes transform neither stages
nor values of G then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .axes import check_discretization
from .dealiased import Constant, Dealiased
from .periodic import PeriodicGrid, check_periodic


class Advection(torch.nn.Module):
    r"""The advection term :math:`G(u) = -u\, u_x = -(u^2 / 2)_x` on a one-dimensional grid.

    Args:
        grid (PeriodicGrid): The grid, of one dimension.
        discretization (str): :obj:`"spectral"`, dealiased by the 3/2 rule (Orszag 1971): the square
            is evaluated on a grid of 3/2 as many points; or :obj:`"finite_difference"`, the central
            difference of :math:`u^2 / 2`. (default: :obj:`"spectral"`)
    """

    keeps_real = True

    def __init__(self, grid: PeriodicGrid, *, discretization: str = "spectral") -> None:
        super().__init__()
        check_periodic(grid, 1)
        check_discretization(discretization)
        self.grid, self.discretization = grid, discretization
        self.derivative = grid.derivative(1, discretization=discretization)
        self.spectral = Polynomial(grid, {2: -0.5}, 1j * grid.wavenumbers())

    def forward(self, t: Tensor | float, u: Tensor) -> Tensor:
        """The term G(u); the time t has no influence.

        Shapes:
            - **u, output:** :math:`(*, n)`
        """
        if self.discretization == "spectral":
            change: Tensor = self.spectral(t, u)
            return change
        self.grid.check(u)
        return self.derivative.mv(-0.5 * u * u)

    def of_coefficients(self, t: Tensor | float, c: Tensor) -> Tensor:
        """The coefficients of G(u) from those of u."""
        if self.discretization == "spectral" and hasattr(self.spectral, "of_coefficients"):
            return self.spectral.of_coefficients(t, c)
        u = torch.fft.irfft(c, self.grid.shape[0])
        change: Tensor
        if self.discretization == "spectral":  # another module in its place
            change = torch.fft.rfft(self.spectral(t, u))
        else:
            change = torch.fft.rfft(-0.5 * u * u) * self.derivative.symbol(u)
        return change


class Polynomial(torch.nn.Module):
    r"""The term :math:`G(u) = D \sum_p a_p u^p`, dealiased, where D multiplies Fourier modes.

    Args:
        grid (PeriodicGrid): The grid.
        coefficients (dict): The factor :math:`a_p` for each power p.
        multiplier (array, optional): The symbol of D in the order of numpy's fftfreq, such as
            ``1j * grid.wavenumbers()`` of a derivative; D = 1 if None. (default: :obj:`None`)

    Raises:
        ValueError: if there is no power, one below 1, or a factor of zero.
        TypeError: if grid is not a PeriodicGrid.
    """

    keeps_real = True
    short: _OneDimension | None = None  # also of terms that an earlier version pickled

    def __init__(self, grid: PeriodicGrid, coefficients: Mapping[int, float],
                 multiplier: Any = None) -> None:
        super().__init__()
        check_periodic(grid)
        self.coefficients = dict(coefficients)
        if not self.coefficients or not all(p >= 1 and a for p, a in self.coefficients.items()):
            raise ValueError(f"Expected powers from 1 up, each with a factor other than zero (got "
                             f"{self.coefficients}).")
        self.degree = max(self.coefficients)
        self.grid, self.dealiased = grid, Dealiased(grid, self.degree)
        # The highest power is multiplied by its factor in Fourier space, where there are fewer
        # numbers than on the finer grid; the others are relative to it.
        factor = self.coefficients[self.degree]
        self.lower = {p: a / factor for p, a in self.coefficients.items() if p != self.degree}
        symbol = factor * np.asarray(1.0 if multiplier is None else multiplier)
        self.multiplier = self.dealiased.multiplier(symbol)
        if len(grid.shape) == 1 and self.degree <= 4 and self.dealiased.fine[0] >= grid.shape[0]:
            self.short = _OneDimension(self.dealiased, self.degree, symbol)

    def forward(self, t: Tensor | float, u: Tensor) -> Tensor:
        """The term G(u); the time t has no influence.

        Shapes:
            - **u, output:** :math:`(*, n)`, or with more axes of the grid at the end
        """
        total = self._sum(self.dealiased.values(self.dealiased.coefficients(u)), 1.0)
        return self.dealiased.state(self.dealiased.projection(total) * self.multiplier.like(u))

    def of_coefficients(self, t: Tensor | float, c: Tensor) -> Tensor:
        """The coefficients of G(u) from those of u."""
        d, short = self.dealiased, self.short
        if short is not None:
            return short.coefficients(self._sum(short.values(c), short.ratio))
        total = self._sum(d.values(d.narrowed(c)), 1.0)
        return d.widened(d.projection(total) * self.multiplier.like(c))

    def _sum(self, v: Tensor, ratio: float) -> Tensor:
        """The sum of the powers of v over a ratio, times the ratio to the highest power."""
        total = v**self.degree
        for p, a in self.lower.items():
            total = total + a * ratio ** (self.degree - p) * v**p
        return total


class _OneDimension:
    """The transforms of a product on coefficients with as few passes as can be, in one dimension.

    FFTs divide by the number of points on the way back, so that the values on the finer grid are r
    times those of the state, where r is the ratio of the numbers of points. The highest power p of
    them is multiplied by r^(1 - p) together with the symbol, which is zero at the Nyquist mode.

    Args:
        dealiased (Dealiased): The two grids.
        degree (int): The highest power.
        symbol (array): What the coefficients of the product are multiplied by.
    """

    def __init__(self, dealiased: Dealiased, degree: int, symbol: Any) -> None:
        (n,), (self.modes,), (self.fine,) = dealiased.grid.shape, dealiased.modes, dealiased.fine
        self.stored, self.ratio = n // 2 + 1, n / self.fine
        full = self.ratio ** (1 - degree) * np.broadcast_to(symbol, (n,))[:self.stored]
        if n % 2 == 0:
            full[-1] = 0.0
        self.symbol = Constant(full)

    def values(self, c: Tensor) -> Tensor:
        """The ratio times the field with coefficients c, on the finer grid."""
        field: Tensor = torch.fft.irfft(c.narrow(-1, 0, self.modes), self.fine)
        return field

    def coefficients(self, values: Tensor) -> Tensor:
        """The coefficients of a sum of powers of such values."""
        c: Tensor = torch.fft.rfft(values).narrow(-1, 0, self.stored)
        return c * self.symbol.like(c)


class SquaredGradient(torch.nn.Module):
    r"""The term :math:`G(u) = -\tfrac12 |\nabla u|^2`, dealiased.

    Args:
        grid (PeriodicGrid): The grid.
    """

    keeps_real = True

    def __init__(self, grid: PeriodicGrid) -> None:
        super().__init__()
        self.grid, self.dealiased = grid, Dealiased(grid, 2)
        self.gradient, self.axis = self.dealiased.gradient(), -len(grid.shape) - 1

    def forward(self, t: Tensor | float, u: Tensor) -> Tensor:
        """The term G(u); the time t has no influence.

        Shapes:
            - **u, output:** (\\*, \\*shape)
        """
        return self.dealiased.state(self._change(self.dealiased.coefficients(u)))

    def of_coefficients(self, t: Tensor | float, c: Tensor) -> Tensor:
        """The coefficients of G(u) from those of u."""
        return self.dealiased.widened(self._change(self.dealiased.narrowed(c)))

    def _change(self, c: Tensor) -> Tensor:
        slopes = self.dealiased.values(c.unsqueeze(self.axis) * self.gradient.like(c))
        return self.dealiased.projection(-0.5 * slopes.square().sum(dim=self.axis))


class VectorAdvection(torch.nn.Module):
    r"""The term :math:`G(u) = -(u \cdot \nabla) u` of a velocity, dealiased.

    Args:
        grid (PeriodicGrid): The grid; the velocity has a component for each of its axes.
    """

    keeps_real = True

    def __init__(self, grid: PeriodicGrid) -> None:
        super().__init__()
        self.grid, self.dealiased = grid, Dealiased(grid, 2)
        self.gradient, self.axes = self.dealiased.gradient(), len(grid.shape)

    def forward(self, t: Tensor | float, u: Tensor) -> Tensor:
        """The term G(u); the time t has no influence.

        Shapes:
            - **u, output:** (\\*, axes, \\*shape)
        """
        self.check_state(u)
        return self.dealiased.state(self._change(self.dealiased.coefficients(u)))

    def of_coefficients(self, t: Tensor | float, c: Tensor) -> Tensor:
        """The coefficients of G(u) from those of u."""
        return self.dealiased.widened(self._change(self.dealiased.narrowed(c)))

    def check_state(self, u: Tensor) -> None:
        """Raises a ValueError if a state has not a component for each axis of the grid."""
        at = -self.axes - 1
        if u.dim() < self.axes + 1 or u.size(at) != self.axes:
            raise ValueError(f"Expected a velocity of {self.axes} components, of shape (*, "
                             f"{self.axes}, *shape) (got {tuple(u.shape)}).")

    def _change(self, c: Tensor) -> Tensor:
        at = -self.axes - 1
        c = c.unsqueeze(at)  # (*, component, 1, *modes)
        every = torch.cat([c, c * self.gradient.like(c)], dim=at)
        values = self.dealiased.values(every)
        velocity, slopes = values.select(at, 0), values.narrow(at, 1, self.axes)
        return self.dealiased.projection(-(velocity.unsqueeze(at - 1) * slopes).sum(dim=at))


class Autocatalysis(torch.nn.Module):
    r"""The reaction :math:`(-u v^2 + F (1 - u),\; u v^2 - (F + k) v)` of two species, dealiased.

    Args:
        grid (PeriodicGrid): The grid.
        feed (float): The rate F at which u is fed and both are drained.
        kill (float): The rate k at which v decays.
    """

    keeps_real = True

    def __init__(self, grid: PeriodicGrid, feed: float, kill: float) -> None:
        super().__init__()
        self.grid, self.dealiased = grid, Dealiased(grid, 3)
        self.feed, self.kill, self.axis = feed, kill, -len(grid.shape) - 1

    def forward(self, t: Tensor | float, state: Tensor) -> Tensor:
        """The rates of change; the time t has no influence.

        Shapes:
            - **state, output:** (\\*, 2, \\*shape)
        """
        self.check_state(state)
        made = self.dealiased.state(self._made(self.dealiased.coefficients(state)))
        u, v = state.unbind(self.axis)
        return torch.stack([self.feed * (1.0 - u) - made, made - (self.feed + self.kill) * v],
                           dim=self.axis)

    def of_coefficients(self, t: Tensor | float, c: Tensor) -> Tensor:
        """The coefficients of the rates of change from those of the state."""
        made = self.dealiased.widened(self._made(self.dealiased.narrowed(c)))
        u, v = c.unbind(self.axis)
        one = self.dealiased.one(c)
        return torch.stack([self.feed * (one - u) - made, made - (self.feed + self.kill) * v],
                           dim=self.axis)

    def check_state(self, state: Tensor) -> None:
        """Raises a ValueError if a state has not two species."""
        if state.dim() < -self.axis or state.size(self.axis) != 2:
            raise ValueError(f"Expected a state of two species, of shape (*, 2, *shape) (got "
                             f"{tuple(state.shape)}).")

    def _made(self, c: Tensor) -> Tensor:
        u, v = self.dealiased.values(c).unbind(self.axis)
        return self.dealiased.projection(u * v * v)


class VorticityAdvection(torch.nn.Module):
    r"""The term :math:`G(w) = -u \cdot \nabla w + g` of a plane flow of vorticity w, dealiased.

    With the stream function :math:`\Delta \psi = -w` the velocity is :math:`u = (\psi_y, -\psi_x)`.
    Its advection is the curl of a divergence, which takes two products instead of the gradient of w
    (Basdevant 1983, J. Comput. Phys. 50, 209):

    .. math::
        u \cdot \nabla w = (\partial_x^2 - \partial_y^2)(u_1 u_2)
            + \partial_x \partial_y (u_2^2 - u_1^2)

    Args:
        grid (PeriodicGrid): The grid, of two dimensions: x and y.
        source (array, optional): The curl g of the forcing, with the grid's shape.
            (default: :obj:`None`)
    """

    keeps_real = True

    def __init__(self, grid: PeriodicGrid, source: Any = None) -> None:
        super().__init__()
        self.grid, self.dealiased = grid, Dealiased(grid, 2)
        kx, ky = np.meshgrid(grid.wavenumbers(0), grid.wavenumbers(1), indexing="ij")
        square = np.where(kx**2 + ky**2 == 0, np.inf, kx**2 + ky**2)
        self.to_velocity = Constant(np.stack([
            self.dealiased.multiplier(symbol).array
            for symbol in (1j * ky / square, -1j * kx / square)]))
        self.of_products = Constant(np.stack([
            self.dealiased.multiplier(symbol).array for symbol in (kx**2 - ky**2, kx * ky)]))
        self.source = None if source is None else Constant(source)
        self.of_source = None if source is None else Constant(np.fft.rfftn(
            np.broadcast_to(source, grid.shape)))

    def forward(self, t: Tensor | float, w: Tensor) -> Tensor:
        """The term G(w); the time t has no influence.

        Shapes:
            - **w, output:** (\\*, n_x, n_y)
        """
        change = self.dealiased.state(self._change(self.dealiased.coefficients(w)))
        return change if self.source is None else change + self.source.like(w)

    def of_coefficients(self, t: Tensor | float, c: Tensor) -> Tensor:
        """The coefficients of G(w) from those of w."""
        change = self.dealiased.widened(self._change(self.dealiased.narrowed(c)))
        return change if self.of_source is None else change + self.of_source.like(c)

    def _change(self, c: Tensor) -> Tensor:
        u1, u2 = self.dealiased.values(self._velocity(c)).unbind(-3)
        products = torch.stack([u1 * u2, (u2 - u1) * (u2 + u1)], dim=-3)
        return (self.dealiased.projection(products) * self.of_products.like(c)).sum(dim=-3)

    def velocity(self, w: Tensor) -> Tensor:
        """The velocity of a flow with vorticity w and no mean velocity.

        Shapes:
            - **w, output:** (\\*, n_x, n_y) and (\\*, 2, n_x, n_y)
        """
        return self.dealiased.state(self._velocity(self.dealiased.coefficients(w)))

    def _velocity(self, c: Tensor) -> Tensor:
        return c.unsqueeze(-3) * self.to_velocity.like(c)
