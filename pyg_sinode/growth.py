"""Does J make the state grow, as a graph Laplacian of the wrong sign does?"""

from __future__ import annotations

import torch
from torch import Tensor

from .operators import Graph, LinearOperator
from .warn import warn_caller

LARGE = 1e3  # a growth factor that is unlikely to be intended


def warn_of_growth(operator: LinearOperator, u0: Tensor, states: Tensor, *, forwards: bool) -> None:
    """Warns if the state has grown a lot and a graph operator J of unknown spectrum causes it.

    Args:
        operator (LinearOperator): The operator J.
        u0 (Tensor): The initial state.
        states (Tensor): The states at the output times.
        forwards (bool): Whether time increased.
    """
    if not _has_graph(operator) or not states.numel():
        return
    with torch.no_grad():
        if operator.disc() is None:
            _warn(operator, u0, states[-1], forwards=forwards)


def _has_graph(operator: LinearOperator) -> bool:
    return isinstance(operator, Graph) or any(map(_has_graph, operator.parts))


def _warn(operator: LinearOperator, u0: Tensor, u: Tensor, *, forwards: bool) -> None:
    before, after = float(u0.abs().max()), float(u.abs().max())
    if before == 0.0 or not after > LARGE * before:
        return
    u = u / after
    rate = float((u * operator.mv(u)).sum() / u.square().sum())
    if (rate if forwards else -rate) > 0:
        warn_caller(
            f"The state has grown from {before:.1e} to {after:.1e}, and J makes it grow at a rate "
            f"of {abs(rate):.3g} now: it is an operator on a graph with an eigenvalue of that "
            "sign. Is its sign right? A graph Laplacian L = D - A diffuses as J = -L.")
