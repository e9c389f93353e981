"""How do PyG's explainers work with a layer that passes no messages?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.explain.algorithm.utils import clear_masks
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import SparseTensor

from .attention import check_flow, has_own_messages, message_hooks
from .diffusion import DiffusionTerm
from .graph_input import with_loops_of
from .sparse import Pattern

# What the hooks of torch.nn.utils put in place of the parameters of the term and its attention.
COMPUTED = [f"{name}{ending}" for ending in ("_orig", "_g", "_v") for name in (
    "alpha", "beta", "decay", "repulsion", "amplitude", "length")]


def check_untouched(layer: MessagePassing, term: DiffusionTerm) -> None:
    """Refuses what acts on messages, since none are passed; hooks of explainers are supported."""
    attention = term.attention
    check_flow(layer.flow)
    check_flow(attention.flow)
    attention.check_options()
    if has_own_messages(attention):
        raise TypeError(f"Expected a GRANDAttention that passes messages as it does (got "
                        f"{type(attention).__name__}, which overrides how): the layer only asks "
                        "for its coefficients; override coefficients() and "
                        "coefficients_per_head().")
    found = next((name for name in COMPUTED if name in term._parameters
                  or name in attention._parameters), None)
    if found is not None:
        raise ValueError(f"Expected the own parameters of the term and its attention as they are "
                         f"(got {found}, which pruning or an older weight_norm put there): they "
                         "are read before the hook that computes them; use "
                         "torch.nn.utils.parametrize.")
    if "explain_message" in vars(layer):
        del layer.explain_message  # the layer must remain usable after the error
        clear_masks(layer)
        raise ValueError(f"Expected no explain_message set on {type(layer).__name__} (got one, as "
                         "GraphMaskExplainer sets it): it sends no messages; use GNNExplainer, "
                         "PGExplainer, CaptumExplainer or AttentionExplainer.")
    if any(not _is_explainers(hook) for module in (layer, attention)
           for registered in message_hooks(module) for hook in registered.values()):
        raise ValueError("Expected no hooks on messages, aggregation or edge updates in "
                         f"{type(layer).__name__} (got some, as to_hetero_with_bases registers "
                         "them): it sends no messages; weigh the edges with edge_weight, take a "
                         "layer for each relation, or data.to_homogeneous().")


def edge_mask(layer: MessagePassing, pattern: Pattern, loops: int, x: Tensor) -> Tensor | None:
    """The edge mask that an explainer has set on a layer; None if the layer is not explained.

    Args:
        layer (MessagePassing): The layer.
        pattern (Pattern): The sorted edges, the added self-loops among them.
        loops (int): The number of added self-loops, whose mask is 1.
        x (Tensor): The node features.

    Raises:
        ValueError: if the mask does not have one number per edge.
    """
    if not layer.explain:
        return None
    mask, count = layer._edge_mask, pattern.num_entries - loops
    if mask is None or mask.shape != (count,):
        got = None if mask is None else tuple(mask.shape)
        clear_masks(layer)  # the layer must remain usable after the error
        raise ValueError(f"Expected an edge mask of shape ({count},) where a layer is explained "
                         f"(got {got}); set it with set_masks(model, mask, edge_index), after "
                         "clear_masks(model).")
    mask = mask.to(x)
    return with_loops_of(mask.sigmoid() if layer._apply_sigmoid else mask, pattern, loops, 1.0)


def refuse_mask(layer: MessagePassing, implicit: Any) -> None:
    """Refuses to explain a layer with an operator of the user, on which a mask has no effect."""
    if layer.explain:
        clear_masks(layer)
        raise ValueError("Expected implicit as the name of a split in a layer that is explained "
                         f"(got {type(implicit).__name__}): an edge mask does not reach an "
                         "operator of your own; take the gradient at edge_weight instead, after "
                         "clear_masks(model), which takes the masks off other layers.")


def show_coefficients(layer: MessagePassing, pattern: Pattern, alpha: Tensor) -> None:
    """Calls the hooks by which an explainer collects attention coefficients."""
    alpha = as_gatconv(pattern, alpha, loops_last=False)[1] if is_watched(layer) else alpha
    for hook in list(layer._message_forward_hooks.values()):
        hook(layer, ({"alpha": alpha},), alpha)


def is_watched(layer: MessagePassing) -> bool:
    """Whether an explainer has registered hooks for the coefficients."""
    return bool(layer._message_forward_hooks)


def _is_explainers(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch_geometric.explain")


def as_gatconv(pattern: Pattern, alpha: Tensor, *, loops_last: bool) -> tuple[Tensor, Tensor]:
    """Edges and coefficients in the order of the given edges; optionally with self-loops last."""
    source, target = pattern.col.long(), pattern.row.long()
    place = torch.empty_like(source).scatter_(
        0, pattern.perm.long(), torch.arange(source.numel(), device=source.device))
    if loops_last:
        loop = (source == target)[place]
        own = place[loop]
        place = torch.cat([place[~loop], own[torch.sort(target[own], stable=True)[1]]])
    return torch.stack([source[place], target[place]]), alpha.index_select(0, place)


def with_coefficients(adjacency: Any, pattern: Pattern, alpha: Tensor, *, loops: bool) -> Any:
    """The attention weights that GATConv would return, in the format of the given graph."""
    if isinstance(adjacency, Tensor) and adjacency.layout == torch.strided:
        return as_gatconv(pattern, alpha, loops_last=loops)
    n, row, col = pattern.num_nodes, pattern.row.long(), pattern.col.long()
    order = torch.argsort(row * n + col, stable=True)
    row, col, alpha = row[order], col[order], alpha.index_select(0, order)
    if isinstance(adjacency, SparseTensor):
        return SparseTensor(row=row, col=col, value=alpha, sparse_sizes=(n, n), is_sorted=True)
    return _in_layout(adjacency.layout, row, col, alpha, n), alpha


def _in_layout(layout: torch.layout, row: Tensor, col: Tensor, alpha: Tensor, n: int) -> Tensor:
    """A sparse matrix with one vector per entry, in COO, CSR or CSC layout."""
    size = (n, n, alpha.size(1))
    if layout == torch.sparse_coo:
        return torch.sparse_coo_tensor(torch.stack([row, col]), alpha, size,
                                       check_invariants=True)
    if layout == torch.sparse_csr:
        pointer = torch._convert_indices_from_coo_to_csr(row, n)
        return torch.sparse_csr_tensor(pointer, col, alpha, size, check_invariants=True)
    order = torch.argsort(col, stable=True)
    pointer = torch._convert_indices_from_coo_to_csr(col[order], n)
    return torch.sparse_csc_tensor(pointer, row[order], alpha[order], size, check_invariants=True)
