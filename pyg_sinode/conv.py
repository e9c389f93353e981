"""How does SINODEConv build an explicit term and an implicit operator from a graph?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter, ParameterList
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear

from .arguments import check_options
from .attention import GRANDAttention, check_choice, check_flow
from .controllers import Controller
from .diffusion import DiffusionTerm, Equation, Split, split, times_rate
from .explain import (
    check_untouched,
    edge_mask,
    is_watched,
    refuse_mask,
    show_coefficients,
    with_coefficients,
)
from .given_operator import Implicit, check_implicit, given_operator
from .graph_cache import GraphCache
from .graph_input import GraphInput, SortedGraph
from .integrate.loop import Callback
from .integrate.report import Stats
from .layer_input import (
    check_apart,
    check_channels,
    check_features,
    check_fill_value,
    check_gcn,
    check_probability,
    check_returned,
    check_unknown,
    checked_step,
    checked_time,
    reach,
    refuse_own_messages,
    span_of,
)
from .odeint import Checkpoints, LinearSolver, Norm, imex_odeint
from .operators import LinearOperator
from .precision import full_precision, widened
from .reaction import as_reaction, implicit_part
from .schemes import Scheme, get_scheme
from .terms import Nonlinear
from .transforms import refuse_scripting, refuse_tracing, refuse_transforms, uncompiled


class SINODEConv(MessagePassing):
    r"""The semi-implicit neural diffusion operator from the `"Semi-Implicit Neural Ordinary
    Differential Equations" <https://arxiv.org/abs/2412.11301>`_ paper, on the diffusion of `"GRAND:
    Graph Neural Diffusion" <https://arxiv.org/abs/2106.10934>`_.

    .. math::
        \frac{d\mathbf{X}}{dt} = \alpha \left( \mathbf{A}(\mathbf{X}) \mathbf{X} - \mathbf{X}
        \right) + \beta \mathbf{X}_0 + R(\mathbf{X}) = G(\mathbf{X}) + J \mathbf{X}, \quad
        \mathbf{X}(0) = \mathbf{X}_0, \quad \mathbf{X}^{\prime} = \mathbf{X}(T)

    where :math:`\mathbf{A}(\mathbf{X})` is the attention matrix of :class:`GRANDAttention`, and
    :math:`\alpha` in (0, 1) and :math:`\beta` are learned numbers; the source :math:`\beta
    \mathbf{X}_0` and the reaction R are there if asked for. The linear part J is integrated
    implicitly and the rest G explicitly; every choice of J integrates the same equation.

    The attributes :obj:`time`, :obj:`step_size`, :obj:`method`, :obj:`solver` and the other options
    of the integration may be changed after training. The attribute :obj:`stats` holds the
    :class:`pyg_sinode.Stats` of the last forward pass and of its backward pass.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive it from the first
            input. If it is -1 or differs from :obj:`out_channels`, a linear map is applied first.
        out_channels (int): Size of each output sample.
        heads (int): Number of attention heads, which are averaged. (default: :obj:`1`)
        attention (str, optional): The attention score: :obj:`score` of :class:`GRANDAttention`. If
            None, :obj:`"cosine"`, whose bound makes layers overfit less; with :obj:`edge_dim`,
            :obj:`"scaled_dot"`. (default: :obj:`None`)
        attention_channels (int, optional): Width of queries and keys, all heads together; if None,
            :obj:`out_channels` rounded up to a multiple of :obj:`heads`, and at least 2 for each
            head. (default: :obj:`None`)
        edge_dim (int, optional): Size of the edge attributes, which then enter the attention score,
            see :class:`GRANDAttention`. (default: :obj:`None`)
        normalizer (str): :obj:`"softmax"` or :obj:`"squareplus"`. (default: :obj:`"squareplus"`)
        stochastic (str): :obj:`"row"` or :obj:`"column"`. (default: :obj:`"row"`)
        dropout (float): Probability of dropping an edge (self-loops are kept) in training. One draw
            per forward pass serves all evaluations of G and J; the coefficients are normalised over
            the edges that remain. (default: :obj:`0.0`)
        implicit (str, LinearOperator or callable): The linear part J: :obj:`"decay"`,
            :math:`-\alpha I`; :obj:`"laplacian"`, :math:`\alpha (\hat{\mathbf{D}}^{-1/2}
            \hat{\mathbf{A}} \hat{\mathbf{D}}^{-1/2} - I)`; :obj:`"attention"`,
            :math:`\alpha (\mathbf{A}(\mathbf{X}_0) - I)`; an operator; or a function
            ``(edge_index, edge_weight, num_nodes) -> LinearOperator``. (default: :obj:`"decay"`)
        time (float or Parameter): The terminal time T. A parameter is trained; its gradient holds
            the number of steps fixed: the loss jumps where it changes. (default: :obj:`4.0`)
        step_size (float, optional): The largest step size, of equal steps. If None, the steps are
            adaptive: use a stiffly accurate :obj:`method`, such as :obj:`"imex_rk4"`.
            (default: :obj:`1.0`)
        method (str or Scheme): The scheme. (default: :obj:`"imex_rk2"`)
        solver (optional): The linear solver; if None, :func:`pyg_sinode.solvers.default` chooses
            it for the operator. (default: :obj:`None`)
        gradient (str): :obj:`"discrete"` or :obj:`"backprop"`, see
            :func:`pyg_sinode.imex_odeint`. (default: :obj:`"discrete"`)
        graph_memory (int): The most bytes of autograd graphs that this layer keeps for the backward
            pass, see :func:`pyg_sinode.imex_odeint`. (default: 1 GiB)
        checkpoints (int or str, optional): How many states to keep for the backward pass instead of
            all stages, see :func:`pyg_sinode.imex_odeint`. (default: :obj:`None`)
        rtol, atol, norm, controller, max_steps (optional): Options of adaptive steps, as in
            :func:`pyg_sinode.imex_odeint`; only with :obj:`step_size=None`. (default: :obj:`None`)
        dense (bool): Whether to interpolate at the output times :obj:`t` of a call, instead of
            ending a step at each. (default: :obj:`False`)
        callback (callable, optional): Called as ``callback(t, x)`` after each accepted step; the
            integration ends at t if it returns True. (default: :obj:`None`)
        progress (bool): Whether to show a progress bar. (default: :obj:`False`)
        source (bool): Whether to add :math:`\beta \mathbf{X}_0`. (default: :obj:`False`)
        separate_alpha (bool): Whether the terms :math:`\mathbf{A}(\mathbf{X}) \mathbf{X}` and
            :math:`-\mathbf{X}` have an :math:`\alpha` each, as in the paper's code.
            (default: :obj:`False`)
        reaction (str or torch.nn.Module, optional): The reaction R(X): a name listed in
            :class:`pyg_sinode.reaction.Reaction`, or a module called as ``reaction(t, x, x0)`` that
            treats each node separately; t is a 0-dim tensor, or of shape (N, 1) with
            :obj:`end_times`. (default: :obj:`None`)
        implicit_reaction (bool): Whether to integrate the reaction implicitly, by Newton's method;
            for stiff reactions. (default: :obj:`False`)
        add_self_loops (bool): Whether to add a self-loop to each node that has none.
            (default: :obj:`True`)
        fill_value (float): The weight of the added self-loops. (default: :obj:`1.0`)
        bias (bool): Whether the output and the linear map have an additive bias.
            (default: :obj:`True`)
        residual (bool): Whether to add a linear map of the input to the output, as in
            :class:`torch_geometric.nn.conv.GATConv`. (default: :obj:`False`)
        improved, cached, normalize (bool): As in :class:`torch_geometric.nn.conv.GCNConv`:
            :obj:`improved` sets :obj:`fill_value=2`; :obj:`cached` has no effect, since the last
            graph is always kept; :obj:`normalize` must be True.
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    A call with the same :obj:`edge_index` tensor as the last one does not sort its edges again. The
    output of a node depends on the nodes up to :attr:`num_hops` edges away, or on all nodes, not on
    one hop a layer: do not use ``trim_to_layer`` or layer-wise inference. Stacked layers add hops.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F_{in})`, edge indices
          :math:`(2, |\mathcal{E}|)` or sparse matrix :math:`(|\mathcal{V}|, |\mathcal{V}|)`, edge
          weights :math:`(|\mathcal{E}|)` *(optional)*, edge attributes
          :math:`(|\mathcal{E}|, D)` *(with edge_dim)*; all dimensionless
        - **output:** node features :math:`(|\mathcal{V}|, F_{out})`, or
          :math:`(T, |\mathcal{V}|, F_{out})` with :obj:`t`; with
          :obj:`return_attention_weights` also
          :math:`((2, |\mathcal{E}^{\prime}|), (|\mathcal{E}^{\prime}|, H))`

    Raises:
        ValueError, TypeError: if an argument is invalid.
        NonFiniteStateError, LinearSolveError: if the integration fails.
    """

    # Defaults for layers that an earlier version pickled without these attributes.
    graph_memory: int = 2**30
    checkpoints: Checkpoints | None = None
    rtol: float | None = None
    atol: float | None = None
    controller: Controller | None = None
    max_steps: int | None = None
    norm: Norm | None = None
    callback: Callback | None = None
    dense: bool = False
    progress: bool = False
    dropout: float = 0.0

    def __init__(
        self, in_channels: int, out_channels: int, heads: int = 1, *,
        attention: str | None = None, attention_channels: int | None = None,
        edge_dim: int | None = None, normalizer: str = "squareplus", stochastic: str = "row",
        dropout: float = 0.0, implicit: Implicit = "decay", time: float | Tensor = 4.0,
        step_size: float | None = 1.0, method: str | Scheme = "imex_rk2",
        solver: LinearSolver | None = None, gradient: str = "discrete",
        graph_memory: int = 2**30, checkpoints: Checkpoints | None = None,
        rtol: float | None = None, atol: float | None = None, norm: Norm | None = None,
        controller: Controller | None = None, max_steps: int | None = None, dense: bool = False,
        callback: Callback | None = None, progress: bool = False, source: bool = False,
        separate_alpha: bool = False, reaction: str | torch.nn.Module | None = None,
        implicit_reaction: bool = False, add_self_loops: bool | None = True,
        fill_value: float = 1.0, bias: bool = True, residual: bool = False,
        improved: bool = False, cached: bool = False, normalize: bool = True, **kwargs: Any,
    ) -> None:
        check_unknown(type(self).__name__, kwargs)
        refuse_own_messages(self, SINODEConv)
        kwargs.setdefault("aggr", "add")
        check_choice("aggr", kwargs["aggr"], ("add", "sum"))
        super().__init__(**kwargs)
        check_flow(self.flow)
        get_scheme(method)
        check_options(solver, gradient, graph_memory, checkpoints)
        checked_step(step_size)
        check_channels(in_channels, heads)
        check_probability("dropout", dropout)
        fill_value = check_gcn(normalize, improved, fill_value)
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.implicit, self.step_size, self.method = implicit, step_size, method
        self.time = checked_time(time)
        self.solver, self.gradient, self.dropout = solver, gradient, dropout
        self.graph_memory, self.checkpoints = graph_memory, checkpoints
        self.rtol, self.atol, self.norm = rtol, atol, norm
        self.controller, self.max_steps = controller, max_steps
        self.dense, self.callback, self.progress = dense, callback, progress
        self.add_self_loops, self.fill_value = add_self_loops is not False, fill_value
        self.stats: Stats | None = None
        self._cache = GraphCache()
        self.lin = None if in_channels == out_channels else Linear(
            in_channels, out_channels, bias=bias)
        self.res = Linear(in_channels, out_channels, bias=False,
                          weight_initializer="glorot") if residual else None
        self.register_parameter("bias", Parameter(torch.empty(out_channels)) if bias else None)
        if attention_channels is None and heads > 0:
            attention_channels = max(-(-out_channels // heads), 2) * heads
        if attention is None:
            attention = "cosine" if edge_dim is None else "scaled_dot"
        self.term = DiffusionTerm(
            GRANDAttention(out_channels, heads, attention_channels, score=attention,
                           normalizer=normalizer, stochastic=stochastic, edge_dim=edge_dim),
            source=source, separate_alpha=separate_alpha,
            reaction=as_reaction(reaction, out_channels, implicit=implicit_reaction),
            implicit_reaction=implicit_reaction)
        # Explainers act on this layer alone. The property setter would store a bound method.
        self.term.attention._explain = False
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        """Registers the parameters of an implicit operator with the layer."""
        if name == "implicit":
            check_implicit(value)
            for known in ("implicit_parameters", "implicit"):
                self._modules.pop(known, None)
            if isinstance(value, LinearOperator):
                own = [p for p in value.tensors if isinstance(p, Parameter)]
                super().__setattr__("implicit_parameters", ParameterList(own))
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Resets all learnable parameters but :obj:`time` and those of a given operator."""
        super().reset_parameters()
        for lin in (self.lin, self.res):
            if lin is not None:
                lin.reset_parameters()
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)
        self.term.reset_parameters()

    @uncompiled
    def forward(
        self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None,
        return_attention_weights: bool | None = None, *, edge_attr: Tensor | None = None,
        t: Tensor | None = None, batch: Tensor | None = None, end_times: Tensor | None = None,
    ) -> Any:
        """The node features at the terminal time.

        Args:
            x (Tensor): The node features; they may be sparse if a linear map follows.
            edge_index (Tensor or SparseTensor): The graph.
            edge_weight (Tensor, optional): The edge weights, at least zero.
            return_attention_weights (bool, optional): If True, also returns the attention
                coefficients per head at the terminal time, in the form and order of
                :class:`torch_geometric.nn.conv.GATConv`.
            edge_attr (Tensor, optional): The edge attributes, with :obj:`edge_dim`.
            t (Tensor, optional): Output times, used instead of :obj:`time`. They increase from 0,
                where the output is the input after the linear map.
            batch (Tensor, optional): The graph of each node, with :obj:`end_times`.
            end_times (Tensor, optional): The terminal time of each graph of a batch, used instead
                of :obj:`time`; all graphs are integrated with the same steps.
        """
        self.stats = None
        check_returned(return_attention_weights)
        x = self._checked(x)
        span = span_of(self.time, x, t, batch, end_times)
        with full_precision(x.device):
            equation, graph = self._equation(x, edge_index, edge_weight, edge_attr, span.rate)
            check_apart(batch, graph.pattern, graph.weight)
            flow = self._integrate(equation, span.times)
            out = self._output(x, flow if t is not None else flow[-1])
            if not (return_attention_weights or is_watched(self)):
                return out
            alpha = self.term.attention.coefficients_per_head(flow[-1], *graph[:3])
            show_coefficients(self, graph.pattern, alpha)
            if not return_attention_weights:
                return out
            return out, with_coefficients(edge_index, graph.pattern, alpha,
                                          loops=self.add_self_loops)

    @uncompiled
    def equation(self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None, *,
                 edge_attr: Tensor | None = None) -> Equation:
        """The equation of the layer, to be integrated by :func:`pyg_sinode.imex_odeint`.

        .. code-block:: python

            G, J, u0, args = conv.equation(x, edge_index)
            u = imex_odeint(G, J, u0, t, args=args, step_size=0.1)

        It uses the current parameters, one draw of :obj:`dropout` and the mask of an explainer. It
        does not contain the bias and the residual of the output.

        Args:
            x, edge_index, edge_weight, edge_attr: As in :meth:`forward`.

        Returns:
            The explicit term G, the implicit operator J, the features at time 0 and G's arguments.
        """
        x = self._checked(x)
        with full_precision(x.device):
            return self._equation(x, edge_index, edge_weight, edge_attr, None)[0]

    def _checked(self, x: Any) -> Tensor:
        refuse_tracing(type(self).__name__)
        refuse_transforms(type(self).__name__, [x])
        check_untouched(self, self.term)
        x = widened(x)
        check_features(x, self.in_channels if self.lin is None else self.lin.in_channels,
                       self.term.alpha)
        if self.lin is None and x.layout != torch.strided:
            raise TypeError(f"Expected dense features where in_channels is out_channels (got "
                            f"{x.layout}): they are the state itself; use x.to_dense().")
        result: Tensor = x
        return result

    @property
    def num_hops(self) -> int | None:
        """The radius of the receptive field, the largest distance in edges that a node sees.

        Sample that many hops, as in ``NeighborLoader(data, [-1] * conv.num_hops)``, for the result
        of the whole graph, in a call without :obj:`t` and :obj:`end_times`. It is None if J is
        :obj:`"laplacian"`, :obj:`"attention"` or another operator that acts along the nodes, since
        the linear solve couples all nodes; if the attention is column-stochastic, since it depends
        on edges out of a node's neighbours, which are not sampled; and if the steps are adaptive,
        since their number is not known beforehand.
        """
        term, implicit = self.term, self.implicit
        local = implicit == "decay" or (isinstance(implicit, LinearOperator)
                                        and -2 not in implicit.dims)
        if not local or term.attention.stochastic == "column":
            return None
        hops = reach(get_scheme(self.method), self.time, self.step_size)
        return hops if hops is None or not term.reacts_twice() else 2 * hops

    def _equation(self, x: Tensor, edge_index: Any, edge_weight: Tensor | None,
                  edge_attr: Tensor | None, rate: Tensor | None) -> tuple[Equation, SortedGraph]:
        x = x if self.lin is None else self.lin(x)
        graph = self._graph(x, edge_index, edge_weight, edge_attr)
        parts = self._split(x, graph, rate)
        args = (x, parts.left_out, rate, *graph)
        implicit: LinearOperator | Nonlinear = parts.operator
        if self.term.implicit_reaction:
            if self.term.reaction is None:
                raise ValueError("Expected a reaction where term.implicit_reaction is set (got "
                                 "None); pass both to the constructor.")
            implicit = implicit_part(self.term.reaction, parts.operator, x, rate, self.solver)
        return Equation(self.term, implicit, x, args), graph

    def _integrate(self, equation: Equation, times: Tensor) -> Tensor:
        G, J, u0, args = equation
        flow, self.stats = imex_odeint(
            G, J, u0, times, method=self.method, step_size=checked_step(self.step_size),
            rtol=self.rtol, atol=self.atol, norm=self.norm, controller=self.controller,
            max_steps=self.max_steps,
            solver=None if self.term.implicit_reaction else self.solver, gradient=self.gradient,
            graph_memory=self.graph_memory, checkpoints=self.checkpoints, dense=self.dense,
            callback=self.callback, progress=self.progress, return_stats=True, args=args)
        return flow

    def _output(self, x: Tensor, flow: Tensor) -> Tensor:
        if self.res is not None:
            flow = flow + self.res(x)
        return flow if self.bias is None else flow + self.bias

    def _graph(self, x: Tensor, adjacency: Any, edge_weight: Tensor | None,
               edge_attr: Tensor | None) -> SortedGraph:
        check_probability("dropout", self.dropout)
        check_fill_value(self.fill_value)
        given = GraphInput(self._cache, self.term.attention, self.add_self_loops is not False,
                           self.fill_value, self.dropout if self.training else 0.0)
        graph, loops = given.sort(x, adjacency, edge_weight, edge_attr)
        return graph._replace(mask=edge_mask(self, graph.pattern, loops, x))

    def _split(self, x: Tensor, graph: SortedGraph, rate: Tensor | None) -> Split:
        if isinstance(self.implicit, str):
            return split(self.implicit, self.term, x, graph, rate)
        refuse_mask(self, self.implicit)
        own = getattr(self, "implicit_parameters", ())
        operator = given_operator(self.implicit, own, graph)
        return Split(times_rate(operator, rate), operator)

    def __prepare_scriptable__(self) -> None:
        refuse_scripting(type(self).__name__)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_cache"} | {"stats": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._cache = GraphCache()  # not shared: the copy is called with other graphs
        self._parameters.setdefault("bias", None)
        if "res" not in self.__dict__:
            self._modules.setdefault("res", None)

    _version = 2  # 1: without the output bias

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str,
                              local_metadata: dict[str, Any], *args: Any) -> None:
        if self.bias is not None and local_metadata.get("version") == 1:
            state_dict.setdefault(f"{prefix}bias", torch.zeros_like(self.bias))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        implicit = self.implicit if isinstance(self.implicit, str) else type(self.implicit).__name__
        time = self.time.detach().item() if isinstance(self.time, Tensor) else self.time
        method = self.method if isinstance(self.method, str) else get_scheme(self.method).name
        return (f"{type(self).__name__}({self.in_channels}, {self.out_channels}, "
                f"heads={self.heads}, implicit={implicit}, time={time:g}, "
                f"method={method})")
