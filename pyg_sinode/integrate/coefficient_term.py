"""When is the explicit term G evaluated on Fourier coefficients instead of states?

An exponential step on a periodic grid forms its sums of Fourier coefficients. A term that starts
and ends with a Fourier transform would transform each stage back and forth in vain: of the seven
transforms of an evaluation of a dealiased product, four are saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..operators.functions import Fourier, Transform

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class CoefficientTerm(torch.nn.Module):
    """The explicit term as a function of Fourier coefficients.

    Args:
        term (torch.nn.Module): A term with a ``grid`` and a method ``of_coefficients(t, c)``, which
            returns ``torch.fft.rfftn`` of G(t, u) along the axes of the grid from that of u.
    """

    def __init__(self, term: torch.nn.Module) -> None:
        super().__init__()
        self.term = term

    def forward(self, t: Tensor, c: Tensor) -> Tensor:
        """The coefficients of G(t, u)."""
        found: Tensor = self.term.of_coefficients(t, c)  # type: ignore[operator]
        return found


def coefficient_term(explicit: Any, args: tuple[Any, ...], transform: Transform | None
                     ) -> CoefficientTerm | None:
    """The term on coefficients; None if it has no such form, or not for that transform.

    It has none for further arguments, nor where ``forward`` is overridden or watched by a hook.

    Args:
        explicit (callable): The explicit term.
        args (tuple): Its further arguments.
        transform (Transform, optional): The transform in which J is a multiplication.
    """
    if args or not isinstance(transform, Fourier) or not isinstance(explicit, torch.nn.Module):
        return None
    if not _is_own(explicit) or any(_has_hooks(m) for m in explicit.modules()):
        return None
    grid: Any = getattr(explicit, "grid", None)
    fits = grid is not None and transform.dims == grid.dims and (
        tuple(transform.sizes) == grid.shape)
    return CoefficientTerm(explicit) if fits else None


def _is_own(term: torch.nn.Module) -> bool:
    """Whether the class that defines ``forward`` also says what it is on coefficients."""
    if "forward" in vars(term):
        return False
    for each in type(term).__mro__:
        if "forward" in vars(each) or "of_coefficients" in vars(each):
            return "forward" in vars(each) and "of_coefficients" in vars(each)
    return False


def _has_hooks(module: torch.nn.Module) -> bool:
    shared = torch.nn.modules.module
    return any(getattr(module, name, None) or getattr(shared, f"_global{name}", None)
               for name in HOOKS)
