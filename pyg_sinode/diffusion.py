"""What is a diffusion on a graph, and how is it split into an explicit and an implicit part?"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .attention import GRANDAttention, with_dimension
from .operators import Graph, LinearOperator, ScaledIdentity
from .sparse import Pattern, gather_rows, segment_sum, sparse_product


class DiffusionTerm(torch.nn.Module):
    r"""The explicit term :math:`G = \alpha (A(X) X - X) + \beta X_0 - J X` of a diffusion.

    Args:
        attention (GRANDAttention): The attention A(X).
        source (bool): Whether to add :math:`\beta X_0`.
        separate_alpha (bool): Whether the term -X has an alpha of its own.
    """

    beta: Parameter | None
    decay: Parameter | None

    def __init__(self, attention: GRANDAttention, *, source: bool, separate_alpha: bool) -> None:
        super().__init__()
        self.attention = attention
        # Of shape (1,): parameters without a dimension cannot be sharded (FSDP2).
        self.alpha = Parameter(torch.empty(1))
        self.register_parameter("beta", Parameter(torch.empty(1)) if source else None)
        self.register_parameter("decay", Parameter(torch.empty(1)) if separate_alpha else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets alpha to 1/2, beta to 0, and the attention."""
        self.attention.reset_parameters()
        for number in (self.alpha, self.beta, self.decay):
            if number is not None:
                torch.nn.init.zeros_(number)

    def decay_rate(self) -> Tensor:
        """The alpha of the term -X, in (0, 1), per unit of time."""
        return torch.sigmoid(self.alpha if self.decay is None else self.decay).squeeze(0)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        with_dimension(state_dict, prefix, ("alpha", "beta", "decay"))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, t: Tensor, u: Tensor, x0: Tensor, pattern: Pattern, weight: Tensor | None,
                left_out: Tensor | LinearOperator | None) -> Tensor:
        """The term at features u, without a linear part: coefficients of the edges, or all of J."""
        value = torch.sigmoid(self.alpha) * self.attention.coefficients(u, pattern, weight)
        if isinstance(left_out, Tensor):
            value = value - self.decay_rate() * left_out
        out = sparse_product(pattern, value, u)
        if isinstance(left_out, LinearOperator):
            out = out - self.decay_rate() * u - left_out.mv(u)
        return out if self.beta is None else torch.addcmul(out, self.beta, x0)


class SortedGraph(NamedTuple):
    """A graph sorted once, and the weights in its order."""

    pattern: Pattern
    weight: Tensor | None


class Split(NamedTuple):
    """The operator J, and what of it the explicit term has to leave out besides the decay."""

    operator: LinearOperator
    left_out: Tensor | LinearOperator | None


def _decay(term: DiffusionTerm, x: Tensor, graph: SortedGraph) -> Split:
    return Split(ScaledIdentity(-term.decay_rate()), None)


def _laplacian(term: DiffusionTerm, x: Tensor, graph: SortedGraph) -> Split:
    base, alpha = _symmetric_normalized(graph, x), term.decay_rate()
    # Similar to weights whose rows sum to one.
    bound = _finite(alpha)
    linear = Graph.of_pattern(graph.pattern, alpha * base, largest=bound, radius=bound)
    return Split(linear + ScaledIdentity(-alpha), base)


def _attention(term: DiffusionTerm, x: Tensor, graph: SortedGraph) -> Split:
    base, alpha = term.attention.coefficients(x, graph.pattern, graph.weight), term.decay_rate()
    linear = Graph.of_pattern(graph.pattern, alpha * base, largest=math.inf,
                              radius=_finite(alpha))  # rows, or columns, sum to one
    return Split(linear + ScaledIdentity(-alpha), base)


def _finite(alpha: Tensor) -> float | None:
    """The number, if it is one: the integrator says where it is not."""
    number = float(alpha.detach())
    return number if math.isfinite(number) else None


SPLITS = {"decay": _decay, "laplacian": _laplacian, "attention": _attention}


def sorted_weight(weight: Tensor | None, pattern: Pattern, loops: int, fill_value: float,
                  x: Tensor) -> Tensor | None:
    """The weights in the order of a pattern, with those of the self-loops that were added."""
    if weight is None:
        if fill_value == 1.0 or loops == 0:
            return None
        weight = x.new_ones(pattern.num_entries - loops)
    if loops:
        weight = torch.cat([weight, weight.new_full((loops,), fill_value)])
    return weight.index_select(0, pattern.perm)


def _symmetric_normalized(graph: SortedGraph, x: Tensor) -> Tensor:
    """The weights w_ji / sqrt(d_i d_j); its eigenvalues lie in [-1, 1] where it is symmetric."""
    p = graph.pattern
    weight = x.new_ones(p.num_entries) if graph.weight is None else graph.weight
    degree = segment_sum(p, weight)
    scale = torch.where(degree > 0, degree, 1.0).rsqrt()
    return weight * gather_rows(p, scale) * scale.index_select(0, p.col)
