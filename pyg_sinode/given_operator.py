"""How does a layer use an implicit operator, or a function that makes one, of the user?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from .attention import check_choice
from .diffusion import SPLITS
from .graph_input import SortedGraph
from .operators import LinearOperator
from .operators.checks import graph_parts

Implicit = str | LinearOperator | Callable[[Tensor, Tensor | None, int], LinearOperator]


def check_implicit(implicit: Any) -> None:
    """Raises a TypeError or ValueError if the argument :obj:`implicit` of a layer is invalid."""
    if isinstance(implicit, str):
        check_choice("implicit", implicit, tuple(SPLITS))
    elif not (isinstance(implicit, LinearOperator) or callable(implicit)):
        raise TypeError(f"Expected implicit as one of {', '.join(SPLITS)}, a LinearOperator or "
                        f"a function that makes one (got {type(implicit).__name__}).")
    elif isinstance(implicit, LinearOperator):
        _check_leaves(implicit)


def given_operator(implicit: Implicit, parameters: Iterable[Tensor], graph: SortedGraph
                   ) -> LinearOperator:
    """The operator that the user gave, with the current parameters of the layer.

    They differ from those in the operator if ``torch.func.functional_call`` replaced them.

    Args:
        implicit (LinearOperator or callable): The argument of the layer.
        parameters (iterable of Tensor): The current values of the operator's parameters.
        graph (SortedGraph): The graph, from which the arguments of a function are taken.
    """
    if isinstance(implicit, LinearOperator):
        own, present = iter(parameters), implicit.tensors
        tensors = [next(own) if isinstance(p, Parameter) else p for p in present]
        same = all(a is b for a, b in zip(tensors, present, strict=True))
        return implicit if same else implicit.with_tensors(tensors)
    assert callable(implicit)
    p = graph.pattern
    operator = implicit(p.edge_index(), graph.weight, p.num_nodes)
    if not isinstance(operator, LinearOperator):
        raise TypeError(f"Expected the function implicit to return a LinearOperator (got "
                        f"{type(operator).__name__}).")
    return operator


def _check_leaves(operator: LinearOperator) -> None:
    """Refuses tensors computed from a parameter: they would not change when it is trained."""
    made = next((x for x in operator.tensors if not x.is_leaf
                 and any(isinstance(p, Parameter) for p in graph_parts(x).leaves)), None)
    if made is not None:
        raise ValueError(
            "Expected an implicit operator on parameters themselves (got one on a tensor of shape "
            f"{tuple(made.shape)} computed from one, which training would not change); pass a "
            "function implicit(edge_index, edge_weight, num_nodes) that makes the operator anew.")
