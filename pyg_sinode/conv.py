"""How does a graph become an explicit term and an implicit operator, and a layer of the two?"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter, ParameterList
from torch_geometric.explain.algorithm.utils import clear_masks
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear

from .attention import (
    GRANDAttention,
    check_choice,
    check_flow,
    check_weight,
    message_hooks,
)
from .controllers import Controller
from .diffusion import SPLITS, DiffusionTerm, SortedGraph, Split, sorted_weight
from .graph_cache import GraphCache
from .integrate.report import Stats
from .odeint import Checkpoints, LinearSolver, imex_odeint
from .operators import LinearOperator
from .operators.checks import check_real, leaves
from .precision import check_full, full_precision, widened
from .schemes import IMEXMultistep, IMEXTableau, get_scheme
from .sparse import as_edges
from .transforms import refuse_transforms

Implicit = str | LinearOperator | Callable[[Tensor, Tensor | None, int], LinearOperator]


class SINODEConv(MessagePassing):
    r"""The semi-implicit neural diffusion operator from the `"Semi-Implicit Neural Ordinary
    Differential Equations" <https://arxiv.org/abs/2412.11301>`_ paper, on the diffusion of `"GRAND:
    Graph Neural Diffusion" <https://arxiv.org/abs/2106.10934>`_.

    .. math::
        \frac{d\mathbf{X}}{dt} = \alpha \left( \mathbf{A}(\mathbf{X}) \mathbf{X} - \mathbf{X}
        \right) + \beta \mathbf{X}_0 = G(\mathbf{X}) + J \mathbf{X}, \quad
        \mathbf{X}(0) = \mathbf{X}_0, \quad \mathbf{X}^{\prime} = \mathbf{X}(T)

    with :math:`\mathbf{A}(\mathbf{X})` the attention of :class:`GRANDAttention`, :math:`\alpha` in
    (0, 1) and :math:`\beta` learned numbers. The linear part J is integrated implicitly and the
    rest G explicitly; every choice of J integrates the same equation.

    How it is integrated may be changed after training: :obj:`time`, :obj:`step_size`,
    :obj:`method`, :obj:`solver` and what else goes to the integrator. :obj:`stats` holds what the
    last forward and its backward pass did.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive it from the first
            input. Where it is -1 or differs from :obj:`out_channels`, a linear map comes first.
        out_channels (int): Size of each output sample.
        heads (int): Number of attention heads, which are averaged. (default: :obj:`1`)
        attention (str): The score, see :class:`GRANDAttention`. (default: :obj:`"scaled_dot"`)
        attention_channels (int, optional): Width of queries and keys; :obj:`out_channels` if None.
            (default: :obj:`None`)
        normalizer (str): :obj:`"softmax"` or :obj:`"squareplus"`. (default: :obj:`"softmax"`)
        stochastic (str): :obj:`"row"` or :obj:`"column"`. (default: :obj:`"row"`)
        implicit (str, LinearOperator or callable): The linear part J: :obj:`"decay"`,
            :math:`-\alpha I`; :obj:`"laplacian"`, :math:`\alpha (\hat{\mathbf{D}}^{-1/2}
            \hat{\mathbf{A}} \hat{\mathbf{D}}^{-1/2} - I)`; :obj:`"attention"`,
            :math:`\alpha (\mathbf{A}(\mathbf{X}_0) - I)`; an operator; or a function
            ``(edge_index, edge_weight, num_nodes) -> LinearOperator``. (default: :obj:`"decay"`)
        time (float): The terminal time T. (default: :obj:`1.0`)
        step_size (float, optional): The largest step; adaptive steps if None, for which a stiffly
            accurate method such as :obj:`"imex_rk4"` suits. (default: :obj:`1.0`)
        method (str, IMEXTableau or IMEXMultistep): The scheme. (default: :obj:`"imex_rk2"`)
        solver (optional): The linear solver, chosen by the operator if None.
            (default: :obj:`None`)
        gradient (str): :obj:`"discrete"` or :obj:`"backprop"`, see
            :func:`pyg_sinode.imex_odeint`. (default: :obj:`"discrete"`)
        graph_memory (int): The bytes that graphs of this layer may hold for the backward pass, see
            :func:`pyg_sinode.imex_odeint`. (default: 1 GiB)
        checkpoints (int or str, optional): How many states to keep for it instead of all stages.
            (default: :obj:`None`)
        rtol, atol, controller, max_steps (optional): Of adaptive steps, only with
            :obj:`step_size=None`. (default: :obj:`None`)
        source (bool): Whether to add :math:`\beta \mathbf{X}_0`. (default: :obj:`True`)
        separate_alpha (bool): Whether the terms :math:`\mathbf{A}(\mathbf{X}) \mathbf{X}` and
            :math:`-\mathbf{X}` have an :math:`\alpha` each, as in the paper's code.
            (default: :obj:`False`)
        add_self_loops (bool): Whether to add a self-loop to each node that has none.
            (default: :obj:`True`)
        fill_value (float): The weight of the added self-loops. (default: :obj:`1.0`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    The edges of the :obj:`edge_index` of the last call stay sorted while that tensor lives.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F_{in})`, edge indices
          :math:`(2, |\mathcal{E}|)` or sparse matrix :math:`(|\mathcal{V}|, |\mathcal{V}|)`, edge
          weights :math:`(|\mathcal{E}|)` *(optional)*, dimensionless
        - **output:** node features :math:`(|\mathcal{V}|, F_{out})`; with
          :obj:`return_attention_weights` also
          :math:`((2, |\mathcal{E}^{\prime}|), (|\mathcal{E}^{\prime}|, H))`

    Raises:
        ValueError, TypeError: if an argument does not fit.
        NonFiniteStateError, LinearSolveError: from the integration.
    """

    # Layers that were pickled whole by an earlier version have none of their own.
    graph_memory: int = 2**30
    checkpoints: Checkpoints | None = None
    rtol: float | None = None
    atol: float | None = None
    controller: Controller | None = None
    max_steps: int | None = None

    def __init__(
        self, in_channels: int, out_channels: int, heads: int = 1, *,
        attention: str = "scaled_dot", attention_channels: int | None = None,
        normalizer: str = "softmax", stochastic: str = "row", implicit: Implicit = "decay",
        time: float = 1.0, step_size: float | None = 1.0,
        method: str | IMEXTableau | IMEXMultistep = "imex_rk2",
        solver: LinearSolver | None = None, gradient: str = "discrete",
        graph_memory: int = 2**30, checkpoints: Checkpoints | None = None,
        rtol: float | None = None, atol: float | None = None,
        controller: Controller | None = None, max_steps: int | None = None, source: bool = True,
        separate_alpha: bool = False, add_self_loops: bool = True, fill_value: float = 1.0,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("aggr", "add")
        check_choice("aggr", kwargs["aggr"], ("add", "sum"))
        super().__init__(**kwargs)
        check_flow(self.flow)
        if isinstance(implicit, str):
            check_choice("implicit", implicit, tuple(SPLITS))
        elif not (isinstance(implicit, LinearOperator) or callable(implicit)):
            raise TypeError(f"Expected implicit as one of {', '.join(SPLITS)}, a LinearOperator or "
                            f"a function that makes one (got {type(implicit).__name__}).")
        get_scheme(method)
        time, step_size = _checked_time(time, step_size)
        _check_channels(in_channels)
        if not (math.isfinite(fill_value) and fill_value >= 0):
            raise ValueError(f"Expected a fill_value of at least 0 (got {fill_value}).")
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.implicit, self.time, self.step_size, self.method = implicit, time, step_size, method
        self.solver, self.gradient = solver, gradient
        self.graph_memory, self.checkpoints = graph_memory, checkpoints
        self.rtol, self.atol, self.controller, self.max_steps = rtol, atol, controller, max_steps
        self.add_self_loops, self.fill_value = add_self_loops, fill_value
        self.stats: Stats | None = None
        self._cache = GraphCache()
        self.lin = None if in_channels == out_channels else Linear(in_channels, out_channels)
        self.term = DiffusionTerm(
            GRANDAttention(out_channels, heads, attention_channels, score=attention,
                           normalizer=normalizer, stochastic=stochastic),
            source=source, separate_alpha=separate_alpha)
        if isinstance(implicit, LinearOperator):
            _check_leaves(implicit)
            own = [p for p in implicit.tensors if isinstance(p, Parameter)]
            self.implicit_parameters = ParameterList(own)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets all learnable parameters, except those of an operator that was handed in."""
        super().reset_parameters()
        if self.lin is not None:
            self.lin.reset_parameters()
        self.term.reset_parameters()

    def forward(
        self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """The features at the terminal time.

        Args:
            x (Tensor): The node features.
            edge_index (Tensor or SparseTensor): The graph.
            edge_weight (Tensor, optional): The edge weights, at least zero.
            return_attention_weights (bool, optional): If True, also returns the edges with their
                self-loops and the attention coefficients per head at the terminal time.
        """
        refuse_transforms(type(self).__name__, [x])
        self._check_untouched()
        x = widened(x)
        self._check_features(x)
        with full_precision(x.device):
            return self._flow(x, edge_index, edge_weight, return_attention_weights)

    def _flow(self, x: Tensor, edge_index: Any, edge_weight: Tensor | None,
              return_attention_weights: bool | None
              ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        time, step_size = _checked_time(self.time, self.step_size)
        if self.lin is not None:
            x = self.lin(x)
        graph = self._graph(x, edge_index, edge_weight)
        split = self._split(x, graph)
        times = torch.tensor([0.0, time], dtype=torch.float64)
        out, self.stats = imex_odeint(
            self.term, split.operator, x, times, method=self.method, step_size=step_size,
            rtol=self.rtol, atol=self.atol, controller=self.controller, max_steps=self.max_steps,
            solver=self.solver, gradient=self.gradient, graph_memory=self.graph_memory,
            checkpoints=self.checkpoints, return_stats=True,
            args=(x, graph.pattern, graph.weight, split.left_out))
        if return_attention_weights:
            p = graph.pattern
            alpha = self.term.attention.coefficients_per_head(out[-1], p, graph.weight)
            return out[-1], (p.edge_index(), alpha)
        return out[-1]

    def _check_features(self, x: Any) -> None:
        width = self.in_channels if self.lin is None else self.lin.in_channels
        check_features(x, width, self.term.alpha)

    def _check_untouched(self) -> None:
        """Refuses what acts on messages, of which there are none: hooks, masks, another flow."""
        attention = self.term.attention
        check_flow(self.flow)
        check_flow(attention.flow)
        if self.explain or attention.explain:
            clear_masks(self)  # the layer is to be of use after the refusal
            raise ValueError("Expected explain=False (got True): edge masks do not reach the "
                             "attention; take the gradient with respect to edge_weight instead.")
        hooks = message_hooks(self) + message_hooks(attention)
        if hooks:
            _drop_explainers(hooks)
            raise ValueError("Expected no hooks on messages, aggregation or edge updates in "
                             f"{type(self).__name__} (got some, as to_hetero_with_bases registers "
                             "them): it sends no messages; weigh the edges with edge_weight, or "
                             "use to_hetero or a layer for each relation.")

    def _graph(self, x: Tensor, adjacency: Any, edge_weight: Tensor | None) -> SortedGraph:
        if edge_weight is not None:
            check_real(edge_weight, "edge_weight")
        row, col, weight, known = as_edges(adjacency, edge_weight)
        for name, own in (("the graph", row), ("edge_weight", weight)):
            if own is not None and own.device != x.device:
                raise ValueError(f"Expected {name} on the device of the features, {x.device} (got "
                                 f"{own.device}); move one of the two.")
        pattern, loops = self._cache.pattern(adjacency, row, col, x.size(0), known,
                                             loops=self.add_self_loops)
        if weight is not None:
            weight = check_weight(weight, x)
        return SortedGraph(pattern, sorted_weight(weight, pattern, loops, self.fill_value, x))

    def _split(self, x: Tensor, graph: SortedGraph) -> Split:
        if isinstance(self.implicit, str):
            return SPLITS[self.implicit](self.term, x, graph)
        operator = self._given_operator(graph)
        return Split(operator, operator)

    def _given_operator(self, graph: SortedGraph) -> LinearOperator:
        if isinstance(self.implicit, LinearOperator):
            # The parameters in force: functional_call, among others, swaps those of the module.
            own, present = iter(self.implicit_parameters), self.implicit.tensors
            tensors = [next(own) if isinstance(p, Parameter) else p for p in present]
            same = all(a is b for a, b in zip(tensors, present, strict=True))
            return self.implicit if same else self.implicit.with_tensors(tensors)
        assert callable(self.implicit)
        p = graph.pattern
        operator = self.implicit(p.edge_index(), graph.weight, p.num_nodes)
        if not isinstance(operator, LinearOperator):
            raise TypeError(f"Expected the function implicit to return a LinearOperator (got "
                            f"{type(operator).__name__}).")
        return operator

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_cache"} | {"stats": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._cache = GraphCache()  # of its own: a copy sees other graphs

    def __repr__(self) -> str:
        return (f"{type(self).__name__}({self.in_channels}, {self.out_channels}, "
                f"heads={self.heads})")


def check_features(x: Any, channels: int, parameter: Tensor) -> None:
    """Refuses features that do not fit the channels, dtype and device of a layer."""
    check_full("the parameters of the layer", parameter.dtype)
    if isinstance(x, (tuple, list)):
        raise ValueError("Expected one tensor of node features (got a tuple): a flow has one set "
                         "of nodes; bipartite graphs are not supported.")
    check_real(x, "x")
    if x.dim() != 2:
        raise ValueError(f"Expected node features of shape (num_nodes, channels) (got "
                         f"{tuple(x.shape)}); put several graphs into one Batch.")
    if channels > 0 and x.size(1) != channels:
        raise ValueError(f"Expected {channels} input channels (got {x.size(1)}); in_channels=-1 "
                         "takes them from the first input.")
    if x.dtype != parameter.dtype:
        raise TypeError(f"Expected features in the dtype of the layer, {parameter.dtype} (got "
                        f"{x.dtype}); convert one of the two.")
    if x.device != parameter.device:
        raise ValueError(f"Expected features on the device of the layer, {parameter.device} (got "
                         f"{x.device}); move one of the two.")


def _drop_explainers(hooks: list[dict[int, Any]]) -> None:
    """Removes the hooks of explainers, which leave them where the model refuses to run."""
    for registered in hooks:
        for key, hook in list(registered.items()):
            if getattr(hook, "__module__", "").startswith("torch_geometric.explain"):
                del registered[key]


def _check_leaves(operator: LinearOperator) -> None:
    """Refuses what was computed from a parameter: it would not follow when that is trained."""
    made = next((x for x in operator.tensors if not x.is_leaf
                 and any(isinstance(p, Parameter) for p in leaves(x))), None)
    if made is not None:
        raise ValueError(
            "Expected an implicit operator on parameters themselves (got one on a tensor of shape "
            f"{tuple(made.shape)} computed from one, which training would not change); pass a "
            "function implicit(edge_index, edge_weight, num_nodes) that makes the operator anew.")


def _check_channels(in_channels: Any) -> None:
    if isinstance(in_channels, bool) or not isinstance(in_channels, Integral):
        raise TypeError(f"Expected in_channels as one int (got {in_channels!r}): a flow has one "
                        "set of nodes, bipartite graphs are not supported.")


def _checked_time(time: Any, step_size: Any) -> tuple[float, float | None]:
    """The time and the step size as numbers; refuses what is none, or not positive and finite."""
    return (_checked("time", time, "the layer integrates from 0 to time"),
            None if step_size is None else _checked(
                "step_size", step_size, "None makes the steps adaptive"))


def _checked(name: str, value: Any, why: str) -> float:
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"Expected {name} without requires_grad (got one that requires a "
                         "gradient): no gradient reaches it; pass a number.")
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"Expected {name} as one number (got {got}); {why}.")
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"Expected a positive, finite {name} (got {number}).")
    return number
