"""When is the explicit term G evaluated on Fourier coefficients instead of states?

An exponential step on a periodic grid forms its sums of Fourier coefficients. A term that starts
and ends with a Fourier transform would transform each stage back and forth in vain: of the seven
transforms of an evaluation of a dealiased product, four are saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.functions import Fourier
from .explicit import ExplicitTerm
from .function_part import FunctionStore

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class CoefficientTerm(torch.nn.Module):
    """The explicit term as a function of Fourier coefficients.

    The result is replaced by the coefficients of its real part, unless the term has the attribute
    ``keeps_real``: states are real, and the step takes all coefficients for those of one.

    Args:
        term (torch.nn.Module): A term with a ``grid`` and a method ``of_coefficients(t, c)``, which
            returns ``torch.fft.rfftn`` of G(t, u) along the axes of the grid from that of u.
        fourier (Fourier): The transform.
    """

    def __init__(self, term: torch.nn.Module, fourier: Fourier) -> None:
        super().__init__()
        self.term, self.fourier = term, fourier
        self.keeps_real = getattr(term, "keeps_real", False) is True

    def forward(self, t: Tensor, c: Tensor) -> Tensor:
        """The coefficients of G(t, u)."""
        found: Tensor = self.term.of_coefficients(t, c)  # type: ignore[operator]
        if self.keeps_real or not isinstance(found, Tensor) or found.shape != c.shape:
            return found
        return self.fourier.forward(self.fourier.backward(found))


def on_coefficients(term: ExplicitTerm | None, functions: FunctionStore | None, u0: Tensor
                    ) -> ExplicitTerm | None:
    """The term on coefficients if it has that form and the scheme forms sums of them; else itself.

    It stays on states with further arguments, and where ``forward`` is overridden or watched by a
    hook.

    Args:
        term (ExplicitTerm, optional): The explicit term.
        functions (FunctionStore, optional): The functions of J of an exponential scheme.
        u0 (Tensor): The initial state.
    """
    if term is None or functions is None or not u0.numel():
        return term
    fn = term.function.fn
    if term.function.args or not isinstance(fn, torch.nn.Module) or not _is_own(fn):
        return term
    fourier, grid = functions.transform(u0), getattr(fn, "grid", None)
    if not isinstance(fourier, Fourier) or fourier.dims != getattr(grid, "dims", None) or (
            tuple(fourier.sizes) != getattr(grid, "shape", None)):
        return term
    check = getattr(fn, "check_state", None)
    if check is not None:
        check(u0)
    return ExplicitTerm(CoefficientTerm(fn, fourier), (), term.live, tangents=term.tangents,
                        fourier=fourier)


def _is_own(term: torch.nn.Module) -> bool:
    """Whether ``of_coefficients`` does what a call of the term does, as far as can be seen."""
    if not _has_both(term):
        return False
    parts = [m for m in term.modules() if hasattr(m, "of_coefficients")]
    return all(map(_has_both, parts)) and not any(map(_has_hooks, term.modules()))


def _has_both(term: torch.nn.Module) -> bool:
    """Whether the first class that defines one of the two methods defines the other one too."""
    if "forward" in vars(term) or type(term).__call__ is not torch.nn.Module.__call__:
        return False
    found = ({"forward", "of_coefficients"} & vars(each).keys() for each in type(term).__mro__)
    return len(next(filter(None, found), ())) == 2


def _has_hooks(module: torch.nn.Module) -> bool:
    shared = torch.nn.modules.module
    return any(getattr(module, name, None) or getattr(shared, f"_global{name}", None)
               for name in HOOKS)
