r"""How are the errors of all components of a step summed up in one number?

A norm takes the quotients of error and scale, in the shape of the state, and gives a 0-dim tensor;
a step is accepted where that is at most 1. Any function of that kind serves as ``norm=``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def maximum(x: Tensor) -> Tensor:
    r"""The largest magnitude, :math:`\max_i |x_i|`: no component's error exceeds its tolerance.

    Shapes:
        - **x:** any, dimensionless
        - **output:** :math:`()`
    """
    return x.abs().amax() if x.numel() else x.new_zeros(())


def rms(x: Tensor) -> Tensor:
    r"""The root mean square, :math:`\sqrt{\frac{1}{N} \sum_i x_i^2}`.

    One component among N may exceed its tolerance :math:`\sqrt{N}`-fold: among many quiet ones, a
    stiff one can blow up.

    Shapes:
        - **x:** any, dimensionless
        - **output:** :math:`()`
    """
    return x.square().mean().sqrt() if x.numel() else x.new_zeros(())


class per_graph:  # noqa: N801 (a function that remembers its batch)
    r"""The largest root mean square of one graph's components.

    .. math::
        \max_b \sqrt{\mathrm{mean}_{i \in b} \, x_i^2}

    However many graphs a batch has, each is integrated as exactly as it would be alone.

    Args:
        batch (Tensor): The graph of each node, as in :class:`torch_geometric.data.Batch`.
        node_dim (int): The dimension of the nodes, counted from the end. (default: :obj:`-2`)

    Shapes:
        - **batch:** :math:`(|\mathcal{V}|)`
        - **x:** :math:`(*, |\mathcal{V}|, *)` with the nodes at :obj:`node_dim`, dimensionless
        - **output:** :math:`()`

    Raises:
        TypeError: if batch does not hold integers.
        ValueError: if it is not one graph per node, or node_dim is not counted from the end.
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
        """The norm of quotients x."""
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
