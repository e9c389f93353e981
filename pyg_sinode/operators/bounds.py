"""How large can the eigenvalues of an operator be, by its Gershgorin discs?"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def largest_of(bounds: tuple[Tensor | float, Tensor | float] | None) -> float:
    """The largest right end of the Gershgorin discs; infinite if they are not known."""
    if bounds is None:
        return math.inf
    d, others = bounds
    ends = d + others
    if not isinstance(ends, Tensor):
        return float(ends)
    if not ends.numel():
        return 0.0
    if not isinstance(others, Tensor) and others == 0.0:
        return float(ends.max())
    # Enlarged, so that it is an upper bound even if the sum was rounded down.
    return float((ends + rounding_of(d) + rounding_of(others)).max())


def rounding_of(x: Tensor | float) -> Tensor | float:
    """The size of a rounding error in numbers x."""
    if isinstance(x, Tensor):
        return torch.finfo(x.dtype).eps * x.abs()
    return 2.3e-16 * abs(x)
