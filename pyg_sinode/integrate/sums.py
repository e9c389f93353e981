"""How are weighted sums of tensors computed in as few passes over memory as possible?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Weighted = tuple[float, Tensor | None]


class Scaled(NamedTuple):
    """A tensor x times a number that is applied where it is used next; x is None for zero."""

    x: Tensor | None
    factor: float = 1.0


def combine(u: Tensor, h: float, a: Sequence[float], g: Sequence[Tensor | None],
            at: Sequence[float], k: Sequence[Scaled]) -> Tensor:
    """The sum u + h sum_j (a_j g_j + at_j k_j), without the terms with zero coefficients."""
    result = u  # only the first addition allocates a tensor; the others are in place
    for w, x in zip(a, g, strict=False):
        if w != 0.0 and x is not None:
            result = (torch.add(u, x, alpha=h * w) if result is u
                      else result.add_(x, alpha=h * w))
    for w, (x, factor) in zip(at, k, strict=False):
        if w != 0.0 and x is not None:
            result = (torch.add(u, x, alpha=h * w * factor) if result is u
                      else result.add_(x, alpha=h * w * factor))
    return result


def weighted(terms: Iterable[Weighted]) -> Scaled:
    """The sum of w_j x_j, with the first nonzero weight as its factor."""
    result: Tensor | None = None
    factor, own = 1.0, False  # only the first addition allocates a tensor; the others are in place
    for weight, x in terms:
        if weight == 0.0 or x is None:
            continue
        if result is None:
            result, factor = x, weight
        elif own:
            result = result.add_(x, alpha=weight / factor)
        else:
            result, own = torch.add(result, x, alpha=weight / factor), True
    return Scaled(result, factor)


def total(terms: Iterable[Weighted]) -> Tensor | None:
    """The sum of w_j x_j as a tensor; None if all terms are zero."""
    x, factor = weighted(terms)
    return x if x is None or factor == 1.0 else x * factor
