"""How are functions f(J) of an operator approximated by polynomials of J?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checks import as_tensor
from .functions import OfNumbers, Uses
from .results import SolveError

if TYPE_CHECKING:
    from .base import LinearOperator

MAX_DEGREE = 2048
ROUNDING = 64 * 2.0**-52  # of values in double precision, relative to the largest one
AGREES = 1e-10  # the largest error of a series between its nodes, relative to the largest value
FEW = 40  # the degree up to which no check of symmetry would pay


class Bound:
    """A disc in which polynomials approximate functions of an operator; kept while J is the same.

    The eigenvalues alone say nothing of the error where J is not normal. So the disc is that of
    Gershgorin for the rows or for the columns, in which :math:`\\|J - c\\| \\le r` holds in the
    maximum norm or in the 1-norm. A smaller disc of the operator's own is used if J is symmetric,
    or if nothing else is known.

    Args:
        operator (LinearOperator): The operator.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.known: bool | None = None
        own = operator.disc()
        discs = [disc_of(each.gershgorin()) for each in (operator, operator.T)]
        others = [disc for disc in discs if disc is not None]
        safe = min(others, key=lambda disc: disc[1], default=None)
        use_own = own is not None and (
            safe is None or (own[1] < (1.0 - 1e-6) * safe[1] and self.symmetric()))
        self.disc = own if use_own else safe

    def symmetric(self) -> bool:
        """Whether J is symmetric, asked once."""
        if self.known is None:
            self.known = self.operator.symmetric()
        return self.known


def disc_of(bounds: tuple[Tensor | float, Tensor | float] | None) -> tuple[float, float] | None:
    """The centre and radius of a disc that holds all Gershgorin discs; None if none are known."""
    if bounds is None:
        return None
    d, others = (as_tensor(x).double() for x in bounds)
    if not (d + others).numel():
        return 0.0, 0.0
    low, high = float((d - others).min()), float((d + others).max())
    return (low + high) / 2, (high - low) / 2


class PolynomialFunctions:
    r"""Functions of an operator by polynomials, of as many products with J as their degree.

    They are Taylor series about the centre c of a disc of radius r that holds the eigenvalues,
    whose error is at most :math:`\sum_{m > M} |f_m|\, \|((J - c) / r)^m\|`, :math:`f_m` the
    coefficients for a disc of radius 1. If that takes more than 40 products and J is symmetric,
    they are Chebyshev series on the interval from c - r to c + r. Both end where the coefficients
    fall below the rounding error of the largest value of the function.

    Rounding errors of a product are those of its largest term, of at most the sum S of the
    coefficients' magnitudes: S = e^r for the exponential on a disc about 0. If S is above the
    square root of 1 / eps, each product is compared with its terms: if half of its digits are lost,
    that is an error.

    Args:
        operator (LinearOperator): The operator J.
        f (callable): Maps numbers to the values of the functions, along a new first dimension. Its
            attribute ``unit``, 1 if there is none, is a radius on which it varies.
        bound (Bound): A disc that holds the eigenvalues, and whether J is symmetric.
        like (Tensor): A state.

    Raises:
        ValueError: if the degree would exceed 2048.
        SolveError: in :meth:`add`, if rounding errors are too large beside a product.
    """

    carries, size = False, 0

    def __init__(self, operator: LinearOperator, f: OfNumbers, bound: Bound, like: Tensor) -> None:
        assert bound.disc is not None
        centre, radius = bound.disc
        if any(p.requires_grad for p in operator.tensors):
            # The derivative needs terms that the values of functions on a tiny disc do not.
            radius = max(radius, 0.5 * getattr(f, "unit", 1.0))
        self.operator, self.leaves = operator, tuple(operator.tensors)
        self.disc, self.chebyshev = (centre, radius), False
        eps = torch.finfo(like.dtype).eps
        found = _series(_taylor_nodes, f, centre, radius, eps)
        if (found is None or len(found) > FEW) and bound.symmetric():
            found, self.chebyshev = _series(_chebyshev_nodes, f, centre, radius, eps), True
        growth = [] if found is None else [
            math.fsum(map(abs, each)) for each in zip(*found, strict=True)]
        if found is None or max(growth, default=0.0) > 1e-3 * torch.finfo(like.dtype).max:
            raise ValueError(
                f"Expected functions of J that polynomials of degree {MAX_DEGREE} at most "
                f"approximate (got eigenvalues of J in a disc of centre {centre:.3g} and radius "
                f"{radius:.3g}); in an exponential scheme take smaller steps, or an "
                "implicit-explicit scheme, which solves linear systems instead.")
        self.series, self.products = found, len(found) - 1
        self.risks = {k: s for k, s in enumerate(growth) if s > eps**-0.5}

    def enter(self, x: Tensor) -> Tensor:
        """The state itself."""
        return x

    def leave(self, y: Tensor) -> Tensor:
        """The state itself."""
        return y

    def add(self, sums: list[Tensor | None], x: Tensor, uses: Uses) -> None:
        """See :class:`Functions`."""
        wanted = sorted({k for _, k in uses})
        largest: dict[int, Tensor] = {}  # the largest term, of functions that are at risk
        products = dict(zip(wanted, self._products(self.operator, x, wanted, largest), strict=True))
        for k, term in largest.items():
            self._check_rounding(products[k], x, float(term), self.risks[k])
        for place, k in uses:
            present = sums[place]
            sums[place] = (products[k].clone() if present is None else present.add_(products[k]))

    def _check_rounding(self, product: Tensor, x: Tensor, term: float, total: float) -> None:
        """Refuses a product of which rounding leaves less than half of the digits."""
        start = float(x.detach().abs().max())
        eps = torch.finfo(x.dtype).eps
        lost = eps * term + 2.0**-52 * total * start  # of the terms, and of their coefficients
        size = max(float(product.detach().abs().max()), start)
        if lost > eps**0.5 * size and math.isfinite(size):
            centre, radius = self.disc
            raise SolveError(
                f"A function of J by a polynomial has rounding errors of {lost:.1e} beside values "
                f"of {size:.1e}: the disc of centre {centre:.3g} and radius {radius:.3g} that is "
                "known to hold the eigenvalues of J times the step is too large for it. Take "
                "smaller steps, or an implicit-explicit scheme.",
                residual=lost, state=product.detach())

    def transposed(self) -> PolynomialFunctions:
        """See :class:`Functions`."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.operator = self.operator.T
        return other

    def add_vjp(self, grads: list[Tensor | None], x: Tensor, w: Sequence[Tensor | None],
                uses: Uses) -> None:
        """See :class:`Functions`; the products are made again with their graph."""
        chosen = [p for p in self.leaves if p.requires_grad]
        wanted = [(place, k) for place, k in uses if w[place] is not None]
        if not chosen or not wanted:
            return
        with torch.enable_grad():
            products = self._products(self.operator, x.detach(), [k for _, k in wanted])
        pairs = [(p, w[place]) for p, (place, _) in zip(products, wanted, strict=True)
                 if p.requires_grad]
        if not pairs:
            return
        found = torch.autograd.grad([p for p, _ in pairs], chosen, [v for _, v in pairs],
                                    allow_unused=True)
        rest = iter(found)
        for i, leaf in enumerate(self.leaves):
            new = next(rest) if leaf.requires_grad else None
            if new is not None:
                present = grads[i]
                grads[i] = new if present is None else present + new

    def _products(self, operator: LinearOperator, x: Tensor, wanted: Sequence[int],
                  largest: dict[int, Tensor] | None = None) -> list[Tensor]:
        """The products of the wanted functions with x, by one recurrence for all of them.

        The magnitude of the largest term of each function that is at risk goes into ``largest``.
        """
        centre, radius = self.disc
        factor = 1.0 / radius if radius else 0.0
        before, now = x, x
        sums = [x * self.series[0][k] for k in wanted]
        for m, coefficients in enumerate(self.series[1:], start=1):
            following = torch.sub(operator.mv(now), now, alpha=centre) * factor
            if self.chebyshev and m > 1:
                following = 2.0 * following - before
            before, now = now, following
            for i, k in enumerate(wanted):
                if coefficients[k] != 0.0:
                    sums[i] = torch.add(sums[i], now, alpha=coefficients[k])
                if largest is not None and k in self.risks:
                    term = abs(coefficients[k]) * now.detach().abs().max()
                    largest[k] = torch.maximum(largest[k], term) if k in largest else term
        return sums


def _series(nodes: Callable[[Tensor], Tensor], f: OfNumbers, centre: float, radius: float,
            eps: float) -> list[list[float]] | None:
    """The coefficients of all functions for each degree, as far as they matter; None if too many.

    Args:
        nodes (callable): Maps angles to the points of the unit disc where f is evaluated: a circle
            for a Taylor series, its real part for a Chebyshev series.
        f (callable): The functions.
        centre, radius (float): Those of the disc.
        eps (float): The relative rounding error.
    """
    points = 64
    while points <= 4 * MAX_DEGREE:
        angle = 2 * math.pi * torch.arange(points, dtype=torch.float64, device="cpu") / points
        values = f(centre + radius * nodes(angle)).detach()
        found = torch.fft.fft(values, dim=-1).real / points
        if nodes is _chebyshev_nodes:  # the second half mirrors the first
            found = 2.0 * found[:, :points // 2 + 1]
            found[:, 0] *= 0.5
        size, largest = found.abs(), values.abs().amax(dim=1)
        if not bool(largest.isfinite().all()):
            return None
        # Once a series has converged, its last coefficients are rounding errors of the values. In
        # the second half are those of negative powers, which only a pole within the disc makes.
        noise = size[:, points // 4:].amax(dim=1)
        found = found[:, :points // 4]
        size = size[:, :points // 4]
        if bool((noise <= ROUNDING * largest.max()).all()) and _agrees(
                found, f, nodes, centre, radius, points):
            floor = torch.maximum(4 * eps * largest, 4 * noise)
            matter = (size > floor.unsqueeze(1)).any(dim=0).nonzero()
            degree = int(matter[-1]) if len(matter) else 0
            coefficients: list[list[float]] = found[:, :degree + 1].t().tolist()
            return coefficients
        points *= 2
    return None


def _agrees(series: Tensor, f: OfNumbers, nodes: Callable[[Tensor], Tensor], centre: float,
            radius: float, points: int) -> bool:
    """Whether a series agrees with the functions halfway between its nodes.

    At the nodes a power m cannot be told from the power m - points.
    """
    half = math.pi / points
    angle = half + 2 * half * torch.arange(points, dtype=torch.float64, device="cpu")
    values = f(centre + radius * nodes(angle)).detach()
    m = torch.arange(series.size(1), dtype=torch.float64, device="cpu")
    turned = torch.polar(torch.ones_like(m), half * m) * series
    found = points * torch.fft.ifft(turned, n=points, dim=-1)
    if nodes is _chebyshev_nodes:
        found = found.real
    return bool(((found - values).abs() <= AGREES * values.abs().max()).all())


def _taylor_nodes(angle: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angle), angle)


def _chebyshev_nodes(angle: Tensor) -> Tensor:
    return angle.cos()
