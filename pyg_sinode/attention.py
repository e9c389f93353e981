"""How does graph neural diffusion (GRAND) weigh the neighbours of a node?"""

from __future__ import annotations

import math
from functools import lru_cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import is_lazy
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.typing import OptTensor
from torch_geometric.utils import scatter

from .coefficients import exp_above, normalized, normalized_mean, squareplus, without_removed
from .directions import directions
from .operators.checks import check_real, is_finite
from .precision import SHORT, check_full, full_precision, widened, without_autocast
from .sparse import (
    Pattern,
    as_edges,
    check_range,
    gather_rows,
    sampled_product,
    sparse_product,
)
from .transforms import refuse_scripting, refuse_tracing, refuse_transforms

SCORES = ("scaled_dot", "cosine", "pearson", "exp_kernel")
NORMALIZERS = ("softmax", "squareplus")
STOCHASTIC = ("row", "column")
MESSAGE_HOOKS = [  # the attributes in which MessagePassing registers its hooks
    f"_{what}_forward{when}_hooks" for when in ("_pre", "")
    for what in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")]


class GRANDAttention(MessagePassing):
    r"""The attention diffusion operator from the `"GRAND: Graph Neural Diffusion"
    <https://arxiv.org/abs/2106.10934>`_ paper.

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \to i} \Big( \frac{1}{H} \sum_{h=1}^{H} a^h_{ji} \Big)
        \mathbf{x}_j, \quad
        a^h_{ji} = \frac{w_{ji}\, \phi(s^h_{ji})}{\sum_{k \to i} w_{ki}\, \phi(s^h_{ki})}

    where :math:`\phi` is the exponential or squareplus, :math:`s^h_{ji}` the score of the query of
    node i and the key of node j, and :math:`w_{ji}` the edge weight. The weight multiplies before
    the normalisation; a weight of zero removes the edge.

    The edges are sorted once, the scores are computed by a sampled dense-dense product and the sum
    by a sparse product, so that no tensor of edges by channels is formed. Message passing with
    gather and scatter gives the same values; it is used with hooks, with the masks of explainers
    and under ``torch.compile``.

    Args:
        in_channels (int): Size of each input sample.
        heads (int): Number of heads, which are averaged. (default: :obj:`1`)
        attention_channels (int, optional): Width of queries and keys, all heads together;
            :obj:`in_channels` if None. (default: :obj:`None`)
        score (str): The score of a query and a key: :obj:`"scaled_dot"`, their inner product over
            the square root of the width of a head; :obj:`"cosine"`; :obj:`"pearson"`, their
            correlation; or :obj:`"exp_kernel"`, the squared exponential of their distance, with a
            learned amplitude and length. (default: :obj:`"scaled_dot"`)
        normalizer (str): :obj:`"softmax"` or :obj:`"squareplus"`,
            :math:`\phi(s) = (s + \sqrt{s^2 + 4}) / 2`. (default: :obj:`"softmax"`)
        stochastic (str): Which coefficients sum to one: :obj:`"row"`, those of the edges into each
            node, as in GAT; :obj:`"column"`, those of the edges out of each node.
            (default: :obj:`"row"`)
        fused (bool): Whether to use sparse products; if False, messages are gathered and scattered.
            (default: :obj:`True`)
        edge_dim (int, optional): Size of the edge attributes: a linear map of them is added to the
            keys, :math:`s^h_{ji} = \langle \mathbf{q}^h_i, \mathbf{k}^h_j + \mathbf{W}^h_e
            \mathbf{e}_{ji} \rangle / \sqrt{d}` as in
            :class:`torch_geometric.nn.conv.TransformerConv`; only with :obj:`"scaled_dot"`.
            (default: :obj:`None`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F)`, edge indices
          :math:`(2, |\mathcal{E}|)` or sparse :math:`(|\mathcal{V}|, |\mathcal{V}|)`, edge weights
          :math:`(|\mathcal{E}|)` *(optional)*, edge attributes :math:`(|\mathcal{E}|, D)`
          *(with edge_dim)*
        - **output:** node features :math:`(|\mathcal{V}|, F)`, in the unit of the input

    Raises:
        ValueError: if an option is not one of those listed, or :obj:`attention_channels` is not a
            multiple of :obj:`heads`.
    """

    edge_dim: int | None = None  # for layers that an earlier version pickled without it

    def __init__(self, in_channels: int, heads: int = 1, attention_channels: int | None = None, *,
                 score: str = "scaled_dot", normalizer: str = "softmax", stochastic: str = "row",
                 fused: bool = True, edge_dim: int | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("aggr", "add")
        check_choice("aggr", kwargs["aggr"], ("add", "sum"))
        super().__init__(node_dim=0, **kwargs)
        check_flow(self.flow)
        width = in_channels if attention_channels is None else attention_channels
        self.score, self.normalizer, self.stochastic = score, normalizer, stochastic
        self.check_options()
        if heads < 1 or width < 1 or width % heads != 0:
            raise ValueError(f"Expected attention_channels to be a multiple of heads (got {width} "
                             f"and {heads}); set attention_channels, which is in_channels if None.")
        if score in ("cosine", "pearson") and width == heads:
            raise ValueError(f"Expected at least two attention_channels for each head with "
                             f"{score!r} (got {width} for {heads} heads): a single number has no "
                             "direction, and its gradient is zero.")
        self.in_channels = self.out_channels = in_channels
        self.heads, self.attention_channels = heads, width
        self.fused, self.edge_dim = fused, edge_dim
        self.lin_query = ScoreLinear(in_channels, width, weight_initializer="glorot")
        self.lin_key = ScoreLinear(in_channels, width, weight_initializer="glorot")
        if edge_dim is not None:
            _check_edge_dim(edge_dim, score)
            self.lin_edge = Linear(edge_dim, width, bias=False, weight_initializer="glorot")
        if score == "exp_kernel":
            # Of shape (1,): parameters without a dimension cannot be sharded (FSDP2).
            self.amplitude, self.length = Parameter(torch.empty(1)), Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets all learnable parameters."""
        super().reset_parameters()
        for lin in (self.lin_query, self.lin_key):
            lin.reset_parameters()
        if self.edge_dim is not None:
            self.lin_edge.reset_parameters()
        if self.score == "exp_kernel":
            torch.nn.init.ones_(self.amplitude)
            torch.nn.init.ones_(self.length)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        with_dimension(state_dict, prefix, ("amplitude", "length"))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None,
                edge_attr: Tensor | None = None) -> Tensor:
        """The attention-weighted sum over the neighbours of each node.

        Args:
            x (Tensor): The node features.
            edge_index (Tensor or SparseTensor): The graph.
            edge_weight (Tensor, optional): The edge weights, at least zero.
            edge_attr (Tensor, optional): The edge attributes, if :obj:`edge_dim` is set.
        """
        if torch.compiler.is_compiling():
            return self._compiled(x, edge_index, edge_weight, edge_attr)
        refuse_tracing(type(self).__name__)
        refuse_transforms(type(self).__name__, [x])
        check_flow(self.flow)
        self.check_options()
        x = widened(x)
        row, col, weight, known = as_edges(edge_index, edge_weight)
        self._check_features(x)
        weight = None if weight is None else check_weight(weight, x)
        check_range(row, col, x.size(0), known)
        edge_attr = self.check_edge_attr(edge_attr, row.numel(), x)
        with full_precision(x.device):
            return self._sum(x, row, col, weight, edge_attr)

    def _sum(self, x: Tensor, row: Tensor, col: Tensor, weight: Tensor | None,
             edge_attr: Tensor | None) -> Tensor:
        # Hooks, masks and overridden methods of a subclass act on messages: pass some.
        if self.fused and not (self.explain or message_hooks(self) or has_own_messages(self)):
            pattern = Pattern(row, col, x.size(0), checked=True)
            weight, edge_attr = (None if y is None else y.index_select(0, pattern.perm)
                                 for y in (weight, edge_attr))
            return sparse_product(pattern, self.coefficients(x, pattern, weight, edge_attr), x)
        return self._plain(x, torch.stack([col, row]), weight, edge_attr)

    def _compiled(self, x: Tensor, edge_index: Any, weight: Tensor | None,
                  edge_attr: Tensor | None) -> Tensor:
        """Message passing without checks of values, which ``torch.compile`` cannot trace."""
        if not isinstance(edge_index, Tensor):
            raise TypeError("Expected an edge_index in a GRANDAttention that is compiled (got "
                            f"{type(edge_index).__name__}).")
        edge_attr = self.check_edge_attr(edge_attr, edge_index.size(1), x)
        return self._plain(x, edge_index, None if weight is None else weight.to(x.dtype), edge_attr)

    def __prepare_scriptable__(self) -> None:
        refuse_scripting(type(self).__name__)

    def check_options(self) -> None:
        """Raises a ValueError if an option was changed to one that does not exist."""
        check_choice("attention score", self.score, SCORES)
        check_choice("normalizer", self.normalizer, NORMALIZERS)
        check_choice("stochastic", self.stochastic, STOCHASTIC)

    def check_edge_attr(self, edge_attr: Any, num_edges: int, x: Tensor) -> Tensor | None:
        """The edge attributes in the dtype of the features x, checked for :obj:`num_edges` edges.

        Raises:
            ValueError: if :obj:`edge_attr` does not fit :obj:`edge_dim`, the edges or the device.
        """
        if self.edge_dim is None and edge_attr is None:
            return None
        if self.edge_dim is None:
            raise ValueError("Expected no edge_attr in a layer without edge_dim (got some); set "
                             "edge_dim to their number, or pass weights as edge_weight.")
        if edge_attr is None:
            raise ValueError(f"Expected edge_attr of shape ({num_edges}, {self.edge_dim}) in a "
                             "layer with edge_dim (got none).")
        check_real(edge_attr, "edge_attr")
        edge_attr = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
        if edge_attr.shape != (num_edges, self.edge_dim):
            raise ValueError(f"Expected edge_attr of shape ({num_edges}, {self.edge_dim}) (got "
                             f"{tuple(edge_attr.shape)}).")
        if edge_attr.device != x.device:
            raise ValueError(f"Expected edge_attr on the device of the features, {x.device} (got "
                             f"{edge_attr.device}); move one of the two.")
        result: Tensor = edge_attr.to(x.dtype)
        if not torch.compiler.is_compiling() and not is_finite(result):
            raise ValueError(f"Expected finite edge_attr in {x.dtype} (got NaN or Inf); look where "
                             "they were computed.")
        return result

    def _check_features(self, x: Any) -> None:
        check_full("the parameters of the layer", self.lin_query.weight.dtype)
        if not isinstance(x, Tensor) or x.dim() != 2 or self.in_channels not in (-1, x.size(1)):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"Expected node features of shape (num_nodes, {self.in_channels}) "
                             f"(got {got}).")
        if x.dtype != self.lin_query.weight.dtype:
            raise TypeError(f"Expected features in the dtype of the layer, "
                            f"{self.lin_query.weight.dtype} (got {x.dtype}); convert one of the "
                            "two.")

    @without_autocast
    def coefficients(self, x: Tensor, pattern: Pattern, weight: Tensor | None = None,
                     edge_attr: Tensor | None = None) -> Tensor:
        r"""The coefficients :math:`\frac{1}{H} \sum_h a^h_{ji}`, averaged over the heads.

        Args:
            x (Tensor): The node features.
            pattern (Pattern): The sorted edges.
            weight (Tensor, optional): The edge weights, in the order of the pattern.
            edge_attr (Tensor, optional): The edge attributes, in the order of the pattern.

        Shapes:
            - **x:** :math:`(|\mathcal{V}|, F)`
            - **weight:** :math:`(|\mathcal{E}|)`
            - **edge_attr:** :math:`(|\mathcal{E}|, D)`
            - **output:** :math:`(|\mathcal{E}|)`, in the order of the pattern, dimensionless
        """
        return normalized_mean(self._sampled_scores(x, pattern, edge_attr), pattern, weight,
                               self.normalizer, self.stochastic == "column")

    @without_autocast
    def coefficients_per_head(self, x: Tensor, pattern: Pattern, weight: Tensor | None = None,
                              edge_attr: Tensor | None = None) -> Tensor:
        r"""The coefficients :math:`a^h_{ji}` of each head, of shape :math:`(|\mathcal{E}|, H)`.

        The arguments are those of :meth:`coefficients`.
        """
        return normalized(self._sampled_scores(x, pattern, edge_attr), pattern, weight,
                          self.normalizer, self.stochastic == "column").t()

    def _sampled_scores(self, x: Tensor, pattern: Pattern, edge_attr: Tensor | None) -> Tensor:
        """The scores of the entries of a pattern, (H, E)."""
        x = x.to(self.lin_query.weight.dtype) if x.dtype in SHORT else x  # 16 bits, by autocast
        query, key = self._embed(x)
        products = sampled_product(pattern, query, key)
        if edge_attr is not None:
            products = products + self._edge_products(query, pattern, edge_attr)
        return self._scores(products)

    def _edge_products(self, query: Tensor, pattern: Pattern, edge_attr: Tensor) -> Tensor:
        """The products <q_i, W_e e_ji>, (H, E), as <W_e^T q_i, e_ji>: D is small beside a width."""
        if not isinstance(self.lin_edge, Linear) or self.lin_edge.bias is not None:
            edge: Tensor = self.lin_edge(edge_attr).view(-1, *query.shape[1:])  # any module
            return (query.index_select(0, pattern.row) * edge).sum(dim=-1).t()
        # The transposed weight, by a call, so that hooks, as of pruning, act.
        weight = self.lin_edge(torch.eye(edge_attr.size(1), dtype=query.dtype,
                                         device=query.device)).view(-1, *query.shape[1:])
        turned = torch.einsum("nhd,khd->hkn", query, weight)
        rows = gather_rows(pattern, turned.flatten(0, 1)).view(*turned.shape[:2], -1)
        return (rows * edge_attr.t()).sum(dim=1)

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys per head, (N, H, D), such that every score is a function of q . k."""
        shape = (x.size(0), self.heads, self.attention_channels // self.heads)
        query, key = self.lin_query(x).view(shape), self.lin_key(x).view(shape)
        if self.score == "pearson":
            query = query - query.mean(dim=-1, keepdim=True)
            key = key - key.mean(dim=-1, keepdim=True)
        if self.score in ("cosine", "pearson"):
            return directions(query), directions(key)
        if self.score == "exp_kernel":
            # |q - k|^2 = (q, |q|^2, 1) . (-2 k, 1, |k|^2)
            q2, k2 = (y.square().sum(dim=-1, keepdim=True) for y in (query, key))
            one = torch.ones_like(q2)
            return torch.cat([query, q2, one], dim=-1), torch.cat([-2.0 * key, one, k2], dim=-1)
        return query, key

    def _scores(self, products: Tensor) -> Tensor:
        if self.score == "scaled_dot":
            # In place: the products are a new tensor that nothing else uses.
            return products.mul_(1.0 / math.sqrt(self.attention_channels // self.heads))
        if self.score == "exp_kernel":
            distance = products.clamp(min=0.0)
            return self.amplitude.square() * torch.exp(-distance / (2.0 * self.length.square()))
        return products

    def _plain(self, x: Tensor, edge_index: Tensor, weight: Tensor | None,
               edge_attr: Tensor | None = None) -> Tensor:
        query, key = self._embed(x)
        edge = None
        if self.edge_dim is not None:
            edge = self.lin_edge(edge_attr).view(-1, *key.shape[1:])
        # edge_updater_type: (query: Tensor, key: Tensor, edge: OptTensor)
        scores = self._scores(self.edge_updater(edge_index, query=query, key=key, edge=edge))
        index = edge_index[1] if self.stochastic == "row" else edge_index[0]
        if self.normalizer == "squareplus":
            positive = squareplus(scores)
        else:
            kept = scores if weight is None else without_removed(scores, weight.unsqueeze(-1))
            top = scatter(kept.detach(), index, dim=0, dim_size=x.size(0), reduce="max")
            positive = exp_above(scores, top[index])
        if weight is not None:
            positive = positive * weight.unsqueeze(-1)
        total = scatter(positive, index, dim=0, dim_size=x.size(0), reduce="sum")
        alpha = positive / torch.where(total > 0, total, 1.0)[index]
        # propagate_type: (x: Tensor, alpha: Tensor)
        result: Tensor = self.propagate(edge_index, x=x, alpha=alpha.mean(dim=-1, keepdim=True))
        return result

    def edge_update(self, query_i: Tensor, key_j: Tensor,  # noqa: D102
                    edge: OptTensor) -> Tensor:
        return (query_i * (key_j if edge is None else key_j + edge)).sum(dim=-1)

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:  # noqa: D102
        return alpha * x_j

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, heads={self.heads})"


class ScoreLinear(Linear):
    """A linear map whose weights are initialised to a tenth of their usual size.

    The initial scores are then nearly equal, so that the attention starts as the mean over the
    neighbours; GRAND initialises the weights with the constant 1e-5. With the usual size, the test
    accuracy of two layers on Cora is lower by one to two percentage points.
    """

    def reset_parameters(self) -> None:
        """Resets all learnable parameters."""
        super().reset_parameters()
        if not is_lazy(self.weight):
            with torch.no_grad():
                self.weight.mul_(0.1)


def message_hooks(module: MessagePassing) -> list[dict[int, Any]]:
    """The hooks on message passing that are registered with a layer."""
    own = vars(module)
    return [own[name] for name in MESSAGE_HOOKS if own.get(name)]


def has_own_messages(module: MessagePassing, base: Any = GRANDAttention) -> bool:
    """Whether the class of a layer overrides message passing of a base class."""
    kind: Any = type(module)
    return _overrides(kind, base)


@lru_cache(maxsize=256)
def _overrides(kind: Any, base: Any) -> bool:
    names = ("message", "aggregate", "update", "message_and_aggregate", "edge_update")
    return any(getattr(kind, name) is not getattr(base, name) for name in names) or any(
        _is_written(each, name) for each in kind.__mro__ if not issubclass(base, each)
        for name in ("propagate", "edge_updater"))


def _is_written(kind: type, name: str) -> bool:
    """Whether a class has a method of its own: PyG puts generated ones into all that are used."""
    own = vars(kind).get(f"_orig_{name}", vars(kind).get(name))
    return getattr(own, "__qualname__", "") == f"{kind.__qualname__}.{name}"


def with_dimension(state_dict: dict[str, Any], prefix: str, names: tuple[str, ...]) -> None:
    """Reshapes the named 0-dim parameters of older checkpoints to (1,), in place."""
    for name in names:
        value = state_dict.get(prefix + name)
        if isinstance(value, Tensor) and value.dim() == 0:
            state_dict[prefix + name] = value.view(1)


def check_weight(weight: Tensor, x: Tensor) -> Tensor:
    """The edge weights in the dtype of x; refuses any but one finite number >= 0 per edge."""
    if weight.dim() != 1:
        raise ValueError(f"Expected one weight per edge (got shape {tuple(weight.shape)}).")
    if not weight.is_floating_point():
        raise TypeError(f"Expected edge_weight of a real floating dtype (got {weight.dtype}); "
                        "convert it with .float() or .double().")
    weight = weight.to(x.dtype)
    if weight.numel() and not (bool((weight >= 0).all()) and bool(weight.isfinite().all())):
        raise ValueError(f"Expected finite edge weights of at least 0 (got {float(weight.min())} "
                         f"to {float(weight.max())}).")
    return weight


def _check_edge_dim(edge_dim: Any, score: str) -> None:
    if isinstance(edge_dim, bool) or not isinstance(edge_dim, Integral) or edge_dim < 1:
        raise ValueError(f"Expected edge_dim as a positive int or None (got {edge_dim!r}).")
    if score != "scaled_dot":
        raise ValueError("Expected edge_dim only with the attention score scaled_dot, to whose "
                         f"keys the attributes are added (got {score!r}).")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a ValueError if a value is not one of the choices."""
    if value not in choices:
        raise ValueError(f"Expected {name} to be one of {', '.join(choices)} (got {value!r}).")


def check_flow(flow: str) -> None:
    """Raises a ValueError for the reversed flow, which would transpose the matrix of the graph."""
    if flow != "source_to_target":
        raise ValueError(f'Expected flow="source_to_target" (got {flow!r}); turn the edges with '
                         "edge_index.flip(0) instead.")
