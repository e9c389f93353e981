"""What is a diffusion on a graph, and how is it split into an explicit and an implicit part?"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn.inits import reset

from .attention import GRANDAttention, with_dimension
from .graph_input import SortedGraph
from .operators import Diagonal, Graph, LinearOperator, ScaledIdentity
from .operators.base import Sum
from .reaction import Reaction
from .sparse import Pattern, gather_rows, segment_sum, sparse_product
from .terms import Nonlinear


class Equation(NamedTuple):
    """What a layer integrates, for :func:`pyg_sinode.imex_odeint`.

    Attributes:
        explicit: The term G, called as ``explicit(t, u, *args)``.
        implicit: The operator J; with an implicit reaction a Nonlinear.
        u0: The features at time 0.
        args: The further arguments of G.
    """

    explicit: DiffusionTerm
    implicit: LinearOperator | Nonlinear
    u0: Tensor
    args: tuple[Any, ...]


class DiffusionTerm(torch.nn.Module):
    r"""The explicit term :math:`G = \alpha (A(X) X - X) + \beta X_0 + R(X) - J X` of a diffusion.

    Args:
        attention (GRANDAttention): The attention A(X).
        source (bool): Whether to add :math:`\beta X_0`.
        separate_alpha (bool): Whether the term -X has an alpha of its own.
        reaction (torch.nn.Module, optional): The reaction R. (default: :obj:`None`)
        implicit_reaction (bool): Whether to leave it to the implicit part.
            (default: :obj:`False`)
    """

    beta: Parameter | None
    decay: Parameter | None
    reaction: torch.nn.Module | None
    repulsion: Parameter | None
    implicit_reaction: bool = False  # of layers that were pickled whole by an earlier version

    def __init__(self, attention: GRANDAttention, *, source: bool, separate_alpha: bool,
                 reaction: torch.nn.Module | None = None, implicit_reaction: bool = False) -> None:
        super().__init__()
        self.attention = attention
        self.register_module("reaction", reaction)
        self.implicit_reaction = implicit_reaction
        repels = isinstance(reaction, Reaction) and reaction.kind == "acmp"
        self.register_parameter("repulsion", Parameter(torch.empty(1)) if repels else None)
        # Of shape (1,): parameters without a dimension cannot be sharded (FSDP2).
        self.alpha = Parameter(torch.empty(1))
        self.register_parameter("beta", Parameter(torch.empty(1)) if source else None)
        self.register_parameter("decay", Parameter(torch.empty(1)) if separate_alpha else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets alpha to 1/2, beta and the repulsion to 0, the attention and the reaction."""
        self.attention.reset_parameters()
        reset(self.reaction)
        for number in (self.alpha, self.beta, self.decay, self.repulsion):
            if number is not None:
                torch.nn.init.zeros_(number)

    def decay_rate(self) -> Tensor:
        """The alpha of the term -X, in (0, 1), per unit of time."""
        return torch.sigmoid(self.alpha if self.decay is None else self.decay).squeeze(0)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        with_dimension(state_dict, prefix, ("alpha", "beta", "decay"))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, t: Tensor, u: Tensor, x0: Tensor, left_out: Tensor | LinearOperator | None,
                rate: Tensor | None, pattern: Pattern, weight: Tensor | None,
                edge_attr: Tensor | None, mask: Tensor | None) -> Tensor:
        """The term at features u, without a linear part: coefficients of the edges, or all of J."""
        alpha = torch.sigmoid(self.alpha)
        matrix = self.attention.coefficients(u, pattern, weight, edge_attr)
        if mask is not None:
            matrix = matrix * mask
        value = alpha * matrix
        if self.repulsion is not None:
            value = value - alpha * self.repulsion * _shares(u, pattern, weight, mask)
        if isinstance(left_out, Tensor):
            value = value - self.decay_rate() * left_out
        out = sparse_product(pattern, value, u)
        if self.repulsion is not None:
            out = out + alpha * self.repulsion * u
        if isinstance(left_out, LinearOperator):
            out = out - self.decay_rate() * u - left_out.mv(u)
        if self.beta is not None:
            out = torch.addcmul(out, self.beta, x0)
        if self.reaction is not None and not self.implicit_reaction:
            own = t if rate is None else rate * t  # the time that the rate makes of it
            out = out + self._react(own, u, x0, pattern, matrix)
        return out if rate is None else out * rate

    def _react(self, t: Tensor, u: Tensor, x0: Tensor, pattern: Pattern, matrix: Tensor) -> Tensor:
        reaction = self.reaction
        assert reaction is not None
        if self.reacts_twice():
            assert isinstance(reaction, Reaction)
            sharp = u - sparse_product(pattern, matrix, u)
            return reaction.strength() * sparse_product(pattern, matrix, sharp)
        result: Tensor = reaction(t, u, x0)
        return result

    def reacts_twice(self) -> bool:
        """Whether an evaluation takes the attention twice, one in another."""
        return isinstance(self.reaction, Reaction) and self.reaction.kind == "blurring_sharpening"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._modules.setdefault("reaction", None)
        self._parameters.setdefault("repulsion", None)


class Split(NamedTuple):
    """The operator J, and what of it the explicit term has to leave out besides the decay."""

    operator: LinearOperator
    left_out: Tensor | LinearOperator | None


def split(kind: str, term: DiffusionTerm, x: Tensor, graph: SortedGraph, rate: Tensor | None
          ) -> Split:
    """The split of a kind, with J times the rate: a number, or one for each node, (N, 1)."""
    strength = term.decay_rate()
    if rate is not None:
        strength = strength * rate
    decay = ScaledIdentity(-strength) if strength.dim() == 0 else Diagonal(-strength)
    base = SPLITS[kind](term, x, graph)
    if base is None:
        return Split(decay, None)
    if graph.mask is not None:
        base = base * graph.mask
    top = _most(strength)
    # Weights from 0 up whose rows or columns sum to one, or that are similar to such; a mask
    # multiplies them. The discs of slower nodes lie in that of the fastest.
    radius = None if top is None else top * _most_of_mask(graph.mask)
    each = strength if strength.dim() == 0 else gather_rows(graph.pattern, strength.view(-1))
    linear = Graph.of_pattern(graph.pattern, each * base, radius=radius,
                              largest=math.inf if kind == "attention" else radius)
    if strength.dim() == 0 or top is None or radius is None:
        return Split(linear + decay, base)
    return Split(Sum([linear, decay], disc=(-top, radius)), base)


def times_rate(operator: LinearOperator, rate: Tensor | None) -> LinearOperator:
    """An operator times a rate: a number, or one for each node, (N, 1)."""
    if rate is None:
        return operator
    return rate * operator if rate.dim() == 0 else Diagonal(rate) @ operator


def _shares(u: Tensor, pattern: Pattern, weight: Tensor | None, mask: Tensor | None) -> Tensor:
    """What each edge repels with: its share of the weights into its node."""
    weight = u.new_ones(pattern.num_entries) if weight is None else weight
    total = segment_sum(pattern, weight)
    shares = weight / gather_rows(pattern, total.masked_fill(total == 0, 1.0))
    return shares if mask is None else shares * mask


def _decay(term: DiffusionTerm, x: Tensor, graph: SortedGraph) -> None:
    return None


def _laplacian(term: DiffusionTerm, x: Tensor, graph: SortedGraph) -> Tensor:
    """The weights w_ji / sqrt(d_i d_j); its eigenvalues lie in [-1, 1] where it is symmetric."""
    p = graph.pattern
    weight = x.new_ones(p.num_entries) if graph.weight is None else graph.weight
    degree = segment_sum(p, weight)
    scale = torch.where(degree > 0, degree, 1.0).rsqrt()
    return weight * gather_rows(p, scale) * scale.index_select(0, p.col)


def _attention(term: DiffusionTerm, x: Tensor, graph: SortedGraph) -> Tensor:
    return term.attention.coefficients(x, *graph[:3])


# The matrix A of J = alpha (A - I), None for zero.
SPLITS = {"decay": _decay, "laplacian": _laplacian, "attention": _attention}


def _most(strength: Tensor) -> float | None:
    """The largest, if it is a finite number: the integrator says where it is not."""
    number = float(strength.detach().max()) if strength.numel() else 0.0
    return number if math.isfinite(number) else None


def _most_of_mask(mask: Tensor | None) -> float:
    """By how much a mask may stretch the disc of the eigenvalues."""
    if mask is None or not mask.numel():
        return 1.0
    return max(1.0, float(mask.detach().abs().max()))
