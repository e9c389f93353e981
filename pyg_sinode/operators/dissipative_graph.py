"""Which matrix on a graph is dissipative whatever its parameters are?"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sparse import Pattern, as_edges, check_range, sampled_product
from .checks import check_dim, check_real
from .graph import Graph


class DissipativeGraph(Graph):
    r"""The diffusion on a weighted graph, J = A - diag(A 1) with weights of at least zero.

    .. math::
        (J u)_i = \sum_{j \to i} w_{ji} (u_j - u_i), \qquad w_{ji} \ge 0

    It is the negative of the graph Laplacian. Every row sums to zero and has no negative entry off
    the diagonal, so that solutions of :math:`\dot u = J u` contract in the maximum norm: the
    largest component does not grow, since there all :math:`u_j - u_i \le 0`. Where the weights are
    symmetric they contract in the 2-norm too: :math:`u^T J u = -\frac{1}{2} \sum_{j \to i} w_{ji}
    (u_j - u_i)^2`. A-stable Runge-Kutta steps of any size keep the second; the first only those
    of the implicit Euler method (``imex_euler``) do, whose :math:`(I - cJ)^{-1}` has nonnegative
    entries with rows that sum to one.

    Args:
        adjacency (Tensor or SparseTensor): As of :class:`Graph`. Self-loops have no effect.
        edge_weight (Tensor, optional): One number per edge, ones if None; receives gradients.
            (default: :obj:`None`)
        num_nodes (int, optional): As of :class:`Graph`. (default: :obj:`None`)
        softplus (bool): Whether the weights are the softplus of the numbers, which may then be any:
            a :class:`torch.nn.Parameter`, or the output of a network of the edges. If not, the
            numbers are the weights. (default: :obj:`False`)
        dim (int): The node dimension of the state, negative. (default: :obj:`-2`)

    Shapes:
        - **adjacency:** :math:`(2, |\mathcal{E}|)` or sparse
          :math:`(|\mathcal{V}|, |\mathcal{V}|)`
        - **edge_weight:** :math:`(|\mathcal{E}|)`, per unit of time
        - **u:** :math:`(*, |\mathcal{V}|, *)` with the nodes at :obj:`dim`

    Raises:
        ValueError: if a weight is negative, an index is out of range, or a shape does not fit.
        TypeError: if a dtype does not fit.
    """

    def __init__(self, adjacency: Any, edge_weight: Tensor | None = None,
                 num_nodes: int | None = None, *, softplus: bool = False, dim: int = -2) -> None:
        row, col, numbers, known = as_edges(adjacency, edge_weight)
        if numbers is None:
            numbers = torch.ones(row.numel(), device=row.device)
        check_real(numbers, "edge_weight")
        num_nodes = check_range(row, col, num_nodes, known)
        if numbers.shape != row.shape:
            raise ValueError(f"Expected one number for each of the {row.numel()} edges of "
                             f"DissipativeGraph (got shape {tuple(numbers.shape)}).")
        nodes = torch.arange(num_nodes, device=row.device)
        self.pattern = Pattern(torch.cat([row, nodes]), torch.cat([col, nodes]), num_nodes,
                               checked=True)
        self.target, self.loop, self.softplus = row, row == col, softplus
        self.tensors, self.dims = (numbers,), check_dim("DissipativeGraph", dim)
        self.largest, self.radius, self.ordered = 0.0, None, False
        self._check_weights()

    @property
    def weight(self) -> Tensor:
        """The weight of each edge, in the order in which the edges were given; 0 of self-loops."""
        numbers = self.tensors[0]
        if self.softplus:
            numbers = F.softplus(numbers, threshold=40.0)
        return torch.where(self.loop, 0.0, numbers)

    @property
    def value(self) -> Tensor:
        """The entries of J in the order of the pattern."""
        weight = self.weight
        degree = weight.new_zeros(self.pattern.num_nodes).index_add(0, self.target, weight)
        return torch.cat([weight, -degree]).index_select(0, self.pattern.perm)

    def with_tensors(self, tensors: Sequence[Tensor]) -> DissipativeGraph:
        other = copy.copy(self)
        other.tensors = tuple(tensors)
        return other

    def vjp(self, u: Tensor, w: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        if not any(wanted):
            return [None]
        n, columns = self.pattern.num_nodes, math.prod(u.shape) // max(1, self.pattern.num_nodes)
        a, b = (x.detach().movedim(self.dims[0], 0).reshape(n, columns) for x in (w, u))
        found = sampled_product(self.pattern, a, b)
        found = torch.empty_like(found).scatter_(0, self.pattern.perm.long(), found)
        own, diagonal = found.split([self.target.numel(), self.pattern.num_nodes])
        own = torch.where(self.loop, 0.0, own - diagonal.index_select(0, self.target))
        return [own * self.tensors[0].detach().sigmoid() if self.softplus else own]

    def check(self, u: Tensor) -> None:
        super().check(u)
        self._check_weights()

    def _check_weights(self) -> None:
        if self.softplus:
            return
        negative = self.tensors[0].detach() < 0
        if bool(negative.any()):
            raise ValueError(
                "Expected weights of at least 0 in DissipativeGraph (got "
                f"{float(self.tensors[0].detach().min()):.1e}); softplus=True takes any numbers, "
                "and Graph any weights.")

    def disc(self) -> tuple[float, float]:
        """Gershgorin's: the discs of all rows touch zero from the left."""
        value = self.value.detach()
        most = float(value.abs().max()) * (1.0 + 1e-6) if value.numel() else 0.0
        return -most, most

    def __repr__(self) -> str:
        return (f"{type(self).__name__}(num_nodes={self.pattern.num_nodes}, "
                f"num_edges={self.target.numel()})")
