"""Which reaction terms can be added to a diffusion?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .operators import Diagonal, LinearOperator
from .solvers import Newton
from .terms import Nonlinear


class Rate(NamedTuple):
    """A function that acts on each feature separately, and its derivative."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


# Choi et al., "GREAD: Graph Neural Reaction-Diffusion Networks" (ICML 2023, arXiv:2211.14208), and
# for acmp Wang et al., "ACMP: Allen-Cahn Message Passing" (ICLR 2023, arXiv:2206.05437).
_ALLEN_CAHN = Rate(lambda u: u * (1 - u * u), lambda u: 1 - 3 * u * u)
POINTWISE: dict[str, Rate] = {
    "fisher": Rate(lambda u: u * (1 - u), lambda u: 1 - 2 * u),
    "allen_cahn": _ALLEN_CAHN,
    "zeldovich": Rate(lambda u: u * u * (1 - u), lambda u: u * (2 - 3 * u)),
    "acmp": _ALLEN_CAHN,
}
REACTIONS = (*POINTWISE, "source", "blurring_sharpening")


class Reaction(torch.nn.Module):
    r"""A reaction term :math:`\gamma \odot r(X)`, with a learned strength in (0, 1) per channel.

    ============================  ================================================
    :obj:`"fisher"`               :math:`r = X \odot (1 - X)`
    :obj:`"allen_cahn"`           :math:`r = X \odot (1 - X \odot X)`
    :obj:`"zeldovich"`            :math:`r = X \odot X \odot (1 - X)`
    :obj:`"source"`               :math:`r = X_0`
    :obj:`"blurring_sharpening"`  :math:`r = A (X - A X)`, with the attention A
    :obj:`"acmp"`                 as allen_cahn, and neighbours repel each other
    ============================  ================================================

    The reactions are from the `"GREAD: Graph Neural Reaction-Diffusion Networks"
    <https://arxiv.org/abs/2211.14208>`_ paper, the last one from `"ACMP: Allen-Cahn Message Passing
    with Attractive and Repulsive Forces for Graph Neural Networks"
    <https://arxiv.org/abs/2206.05437>`_. With :obj:`"fisher"`, negative features decrease without
    bound.

    Args:
        kind (str): A name in the first column of the table.
        channels (int): Number of channels of the features.
    """

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.weight = Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets all strengths to 0.12."""
        torch.nn.init.constant_(self.weight, -2.0)

    def strength(self) -> Tensor:
        """The strength of each channel, of shape (channels,), per unit of time."""
        return torch.sigmoid(self.weight)

    def forward(self, t: Tensor, u: Tensor, x0: Tensor) -> Tensor:
        """The reaction term of a :obj:`kind` that needs no edges.

        Args:
            t (Tensor): The time, which has no influence.
            u (Tensor): The features, of shape (num_nodes, channels).
            x0 (Tensor): The features at time 0, for :obj:`"source"`.
        """
        return self.strength() * (x0 if self.kind == "source" else POINTWISE[self.kind].value(u))

    def slope(self, u: Tensor) -> Tensor:
        """The derivative of the reaction term with respect to each feature, in the shape of u."""
        return self.strength() * POINTWISE[self.kind].slope(u)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind})"


def as_reaction(reaction: Any, channels: int, *, implicit: bool) -> torch.nn.Module | None:
    """The module of a layer's argument :obj:`reaction`, or None; raises a ValueError if invalid."""
    if isinstance(reaction, str) and reaction in REACTIONS:
        reaction = Reaction(reaction, channels)
    elif not (reaction is None or isinstance(reaction, torch.nn.Module)):
        raise ValueError(f"Expected reaction as one of {', '.join(REACTIONS)}, a module called as "
                         f"reaction(t, x, x0), or None (got {reaction!r}).")
    if implicit and (reaction is None or (isinstance(reaction, Reaction)
                                          and reaction.kind not in POINTWISE)):
        raise ValueError(f"Expected implicit_reaction only with a module or one of "
                         f"{', '.join(POINTWISE)} (got {reaction!r}).")
    result: torch.nn.Module | None = reaction
    return result


class ImplicitReaction(torch.nn.Module):
    """The implicit term J u + R(t, u) of a diffusion with a stiff reaction.

    Args:
        reaction (torch.nn.Module): The reaction R.
    """

    def __init__(self, reaction: torch.nn.Module) -> None:
        super().__init__()
        self.reaction = reaction

    def forward(self, t: Tensor, u: Tensor, x0: Tensor, rate: Tensor | None,
                J: LinearOperator) -> Tensor:
        """The implicit term at time t and features u, times the rate if there is one."""
        value: Tensor = self.reaction(t if rate is None else rate * t, u, x0)
        return J.mv(u) + (value if rate is None else rate * value)


def implicit_part(reaction: torch.nn.Module, J: LinearOperator, x0: Tensor, rate: Tensor | None,
                  solver: Any) -> Nonlinear:
    """The nonlinear implicit term J u + R(t, u).

    If J is a decay it is separate equations: one for each feature with a :class:`Reaction`, one for
    each node with a module of the user.

    Raises:
        ValueError: if a module of the user is combined with a J that acts along the nodes.
    """
    newton = None if solver is None else Newton(solver=solver)
    H, args = ImplicitReaction(reaction), (x0, rate, J)
    if not isinstance(reaction, Reaction):
        if J.dims:
            raise ValueError('Expected implicit="decay" with implicit_reaction and a module of '
                             f"your own (got {J!r}): node by node its equations are small, and "
                             "the graph would join them.")
        return Nonlinear(H, *args, dims=-1, newton=newton)

    @torch.no_grad()
    def jacobian(t: Tensor, u: Tensor) -> LinearOperator:
        slope = reaction.slope(u)
        return J + Diagonal(slope if rate is None else rate * slope)

    return Nonlinear(H, *args, dims=None if J.dims else (), jacobian=jacobian, newton=newton)
