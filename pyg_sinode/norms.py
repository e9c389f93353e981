r"""How is the error of a step reduced to one number?

A norm maps the error of a step, divided componentwise by its tolerance (see
:mod:`pyg_sinode.controllers`), to a 0-dim tensor. The step is accepted if that is at most 1. Any
such function can be passed as ``norm=`` of :func:`pyg_sinode.imex_odeint`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def maximum(x: Tensor) -> Tensor:
    r"""The maximum norm :math:`\max_i |x_i|`: no component's error exceeds its tolerance.

    Args:
        x (Tensor): The quotients of error and tolerance.

    Shapes:
        - **x:** any, dimensionless
        - **output:** :math:`()`
    """
    return x.abs().amax() if x.numel() else x.new_zeros(())


def rms(x: Tensor) -> Tensor:
    r"""The root mean square, :math:`\sqrt{\frac{1}{N} \sum_i x_i^2}`.

    The error of one component among N may be :math:`\sqrt{N}` times its tolerance, if the errors of
    the others are small: a single stiff component can become unstable without a rejected step.

    Args:
        x (Tensor): The quotients of error and tolerance.

    Shapes:
        - **x:** any, dimensionless
        - **output:** :math:`()`
    """
    return x.square().mean().sqrt() if x.numel() else x.new_zeros(())


class per_graph:  # noqa: N801 (a function that holds its batch)
    r"""The largest root mean square of the components of one graph.

    .. math::
        \max_b \sqrt{\mathrm{mean}_{i \in b} \, x_i^2}

    The accuracy of each graph then does not depend on how many graphs are in the batch.

    Args:
        batch (Tensor): The index of each node's graph, as in :class:`torch_geometric.data.Batch`.
        node_dim (int): The dimension of the nodes, counted from the end. (default: :obj:`-2`)

    Shapes:
        - **batch:** :math:`(|\mathcal{V}|)`
        - **x:** :math:`(*, |\mathcal{V}|, *)` with the nodes at :obj:`node_dim`, dimensionless
        - **output:** :math:`()`

    Raises:
        TypeError: if batch is not a tensor of integers.
        ValueError: if batch is not of shape (num_nodes,) or has a negative entry, or node_dim is
            not negative.
    """

    def __init__(self, batch: Tensor, *, node_dim: int = -2) -> None:
        if not isinstance(batch, Tensor) or batch.dtype not in (torch.int64, torch.int32):
            got = batch.dtype if isinstance(batch, Tensor) else type(batch).__name__
            raise TypeError(f"Expected batch as a tensor of integers in per_graph (got {got}); "
                            "pass data.batch.")
        if batch.dim() != 1 or (batch.numel() and int(batch.min()) < 0):
            raise ValueError(f"Expected batch of shape (num_nodes,) from 0 up in per_graph (got "
                             f"shape {tuple(batch.shape)}); pass data.batch.")
        if node_dim >= 0:
            raise ValueError(f"Expected node_dim counted from the end, such as -2 (got "
                             f"{node_dim}).")
        self.batch, self.node_dim = batch.long(), node_dim
        self.count = torch.bincount(self.batch)

    def __call__(self, x: Tensor) -> Tensor:
        """The norm of the quotients x of error and tolerance."""
        if x.dim() < -self.node_dim or x.size(self.node_dim) != self.batch.numel():
            raise ValueError(f"Expected a state with {self.batch.numel()} nodes along dimension "
                             f"{self.node_dim} in per_graph (got shape {tuple(x.shape)}).")
        if x.numel() == 0:
            return x.new_zeros(())
        squares = x.square().movedim(self.node_dim, 0).flatten(1).mean(dim=1)
        if self.batch.device != x.device:
            self.batch, self.count = self.batch.to(x.device), self.count.to(x.device)
        sums = squares.new_zeros(self.count.numel()).index_add_(0, self.batch, squares)
        return (sums / self.count.clamp(min=1)).amax().sqrt()

    def __repr__(self) -> str:
        return f"per_graph({self.count.numel()} graphs, node_dim={self.node_dim})"
