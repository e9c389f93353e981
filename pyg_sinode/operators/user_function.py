"""Which functions f of numbers may a user give for an operator f(J)?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import lost_gradient
from .functions import OfNumbers


def only(f: OfNumbers) -> OneFunction:
    """A user's function as the only one of several."""
    return OneFunctionOfMatrices(f) if hasattr(f, "of_matrix") else OneFunction(f)


class OneFunction:
    """A user's function of numbers, whose values are checked.

    Args:
        f (callable): The function.
    """

    def __init__(self, f: Any) -> None:
        self.f = f

    def __call__(self, z: Tensor) -> Tensor:
        """The values at numbers z, along a new first dimension."""
        with torch.enable_grad():
            alone = self.f(z.detach())
        if not isinstance(alone, Tensor) or alone.shape != z.shape:
            got = tuple(alone.shape) if isinstance(alone, Tensor) else type(alone).__name__
            raise ValueError(f"Expected a function of numbers that maps a tensor to one of its "
                             f"shape, {tuple(z.shape)} (got {got}).")
        if alone.requires_grad:
            raise lost_gradient("the function f(J) to use only its argument", alone,
                                "multiply or add operators instead, as (J * factor).function(f).")
        _check_values(self.f, z.detach(), alone)
        value = self.f(z)
        if z.is_complex() and not value.is_complex():
            value = value.to(z.dtype)
        whole: Tensor = value.real if value.is_complex() and not z.is_complex() else value
        return whole.unsqueeze(0)


class OneFunctionOfMatrices(OneFunction):
    """A user's function of numbers and of matrices."""

    def of_matrix(self, matrix: Tensor) -> Tensor:
        """The function of a matrix, along a new first dimension."""
        found: Tensor = self.f.of_matrix(matrix)
        return found.unsqueeze(0)


def _check_values(f: OfNumbers, z: Tensor, values: Tensor) -> None:
    """Refuses values that are not finite, and those that belong to no real matrix."""
    if not bool(values.isfinite().all()):
        raise ValueError("Expected finite values of f at the eigenvalues of J, or on the disc that "
                         "holds them (got NaN or Inf); f has a pole or is not defined there.")
    turned = f(z.conj()).resolve_conj() if z.is_complex() else values
    off = (turned - values.conj()).abs()
    if off.numel() and float(off.max()) > 1e-8 * float(values.abs().max()):
        raise ValueError("Expected a function f whose value at the conjugate of z is the conjugate "
                         f"of f(z) (got a difference of {float(off.max()):.1e}): f(J) u would not "
                         "be real.")


def no_functions(operator: object) -> ValueError:
    """The error for an operator whose functions f(J) cannot be computed."""
    return ValueError(
        f"Expected an operator whose functions f(J) are known (got {type(operator).__name__}): a "
        "pointwise one, a Circulant, a Dense, or one with a disc that holds its eigenvalues, such "
        "as a Graph; or take an implicit-explicit scheme, which needs products and solves only.")
