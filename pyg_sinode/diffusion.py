"""How is a diffusion on a graph split into an explicit and an implicit term?"""

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
from .operators.sums import Sum
from .reaction import Reaction
from .sparse import Pattern, gather_rows, segment_sum, sparse_product
from .terms import Nonlinear


class Equation(NamedTuple):
    """The equation of a layer, as arguments of :func:`pyg_sinode.imex_odeint`.

    Attributes:
        explicit (DiffusionTerm): The explicit term G, called as ``explicit(t, u, *args)``.
        implicit (LinearOperator or Nonlinear): The operator J; with an implicit reaction, the
            nonlinear term.
        u0 (Tensor): The features at time 0.
        args (tuple): The further arguments of G.
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
        separate_alpha (bool): Whether the terms :math:`A(X) X` and :math:`-X` have an
            :math:`\alpha` each.
        reaction (torch.nn.Module, optional): The reaction R. (default: :obj:`None`)
        implicit_reaction (bool): Whether R belongs to the implicit term and is left out here.
            (default: :obj:`False`)
    """

    beta: Parameter | None
    decay: Parameter | None
    reaction: torch.nn.Module | None
    repulsion: Parameter | None
    implicit_reaction: bool = False  # for layers that an earlier version pickled without it

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
        """Resets alpha to 1/2, beta and the repulsion to 0, and the attention and the reaction."""
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
        """The explicit term.

        Args:
            t (Tensor): The time.
            u (Tensor): The node features at that time.
            x0 (Tensor): The node features at time 0.
            left_out (Tensor, LinearOperator or None): The part of J to subtract besides the decay:
                edge coefficients that :meth:`decay_rate` multiplies, or the whole operator J.
            rate (Tensor, optional): A factor of the whole equation, 0-dim or of shape (N, 1).
            pattern (Pattern): The sorted edges.
            weight, edge_attr, mask (Tensor, optional): Weights, attributes and mask of the edges,
                in the order of the pattern.
        """
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
            own = t if rate is None else rate * t  # the time of the equation without the rate
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
        """Whether one evaluation applies the attention matrix twice, which adds a hop."""
        return isinstance(self.reaction, Reaction) and self.reaction.kind == "blurring_sharpening"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._modules.setdefault("reaction", None)
        self._parameters.setdefault("repulsion", None)


class Split(NamedTuple):
    """The operator J, and the part of it besides the decay that G must subtract."""

    operator: LinearOperator
    left_out: Tensor | LinearOperator | None


def split(kind: str, term: DiffusionTerm, x: Tensor, graph: SortedGraph, rate: Tensor | None
          ) -> Split:
    """The split of a diffusion by the name of its implicit operator.

    Args:
        kind (str): A key of :obj:`SPLITS`.
        term (DiffusionTerm): The explicit term.
        x (Tensor): The node features at time 0.
        graph (SortedGraph): The graph.
        rate (Tensor, optional): A factor of J, 0-dim or of shape (N, 1).
    """
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
    # The matrix is nonnegative with row or column sums of one, or similar to such a matrix, so that
    # its spectral radius is 1; a mask multiplies it. With rates, the largest one bounds the disc.
    radius = None if top is None else top * _most_of_mask(graph.mask)
    each = strength if strength.dim() == 0 else gather_rows(graph.pattern, strength.view(-1))
    linear = Graph.of_pattern(graph.pattern, each * base, radius=radius,
                              largest=math.inf if kind == "attention" else radius)
    if strength.dim() == 0 or top is None or radius is None:
        return Split(linear + decay, base)
    return Split(Sum([linear, decay], disc=(-top, radius)), base)


def times_rate(operator: LinearOperator, rate: Tensor | None) -> LinearOperator:
    """An operator times a rate, 0-dim or of shape (N, 1); the operator itself if None."""
    if rate is None:
        return operator
    return rate * operator if rate.dim() == 0 else Diagonal(rate) @ operator


def _shares(u: Tensor, pattern: Pattern, weight: Tensor | None, mask: Tensor | None) -> Tensor:
    """The repulsion coefficients: the weight of each edge over the sum of weights into its node."""
    weight = u.new_ones(pattern.num_entries) if weight is None else weight
    total = segment_sum(pattern, weight)
    shares = weight / gather_rows(pattern, total.masked_fill(total == 0, 1.0))
    return shares if mask is None else shares * mask


def _decay(term: DiffusionTerm, x: Tensor, graph: SortedGraph) -> None:
    return None


def _laplacian(term: DiffusionTerm, x: Tensor, graph: SortedGraph) -> Tensor:
    """The weights w_ji / sqrt(d_i d_j); the eigenvalues lie in [-1, 1] for symmetric weights."""
    p = graph.pattern
    weight = x.new_ones(p.num_entries) if graph.weight is None else graph.weight
    degree = segment_sum(p, weight)
    scale = torch.where(degree > 0, degree, 1.0).rsqrt()
    return weight * gather_rows(p, scale) * scale.index_select(0, p.col)


def _attention(term: DiffusionTerm, x: Tensor, graph: SortedGraph) -> Tensor:
    return term.attention.coefficients(x, *graph[:3])


# Functions that give the entries of the matrix A in J = alpha (A - I); None stands for A = 0.
SPLITS = {"decay": _decay, "laplacian": _laplacian, "attention": _attention}


def _most(strength: Tensor) -> float | None:
    """The largest strength; None if it is not finite, for which the integrator raises an error."""
    number = float(strength.detach().max()) if strength.numel() else 0.0
    return number if math.isfinite(number) else None


def _most_of_mask(mask: Tensor | None) -> float:
    """The factor, at least 1, by which a mask may increase the spectral radius."""
    if mask is None or not mask.numel():
        return 1.0
    return max(1.0, float(mask.detach().abs().max()))
