"""Which arguments of a layer are valid, and over which times does it integrate?"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn.conv import MessagePassing

from .arguments import count_steps
from .attention import has_own_messages
from .operators.checks import check_real
from .precision import check_full
from .schemes import Scheme
from .sparse import Pattern


class Span(NamedTuple):
    """The output times of an integration, and the factor (rate) of the equation, None for 1."""

    times: Tensor
    rate: Tensor | None

    @property
    def end(self) -> float:
        """The last output time."""
        return float(self.times[-1])


def span_of(time: Any, x: Tensor, t: Tensor | None, batch: Tensor | None,
            end_times: Tensor | None) -> Span:
    """The times and the rate of a call of a layer, from its time, or from t, or from end_times."""
    if end_times is None:
        if batch is not None:
            raise ValueError("Expected batch only with end_times (got it alone): without, the "
                             "graphs of a batch are one graph.")
        return span_to(time, x) if t is None else Span(check_times(t), None)
    if t is not None:
        raise ValueError("Expected either t or end_times (got both).")
    return span_of_graphs(end_times, batch, x)


def reach(scheme: Scheme, time: Any, step_size: Any) -> int | None:
    """The largest number of nested evaluations of G up to a time; None for adaptive steps."""
    step_size, times = checked_step(step_size), span_to(time, None).times
    return None if step_size is None else scheme.chain(count_steps(times, step_size, scheme))


def span_to(time: Any, x: Tensor | None) -> Span:
    """The times 0 and ``time``; if x is given, a rate of value 1 carries the gradient to time."""
    trained = "; train its logarithm, or clamp it" if is_trained(time) else ""
    number = checked_number("time", time, "the layer integrates from 0 to time", trained)
    times = torch.tensor([0.0, number], dtype=torch.float64, device="cpu")
    if x is None or not is_trained(time):
        return Span(times, None)
    return Span(times, (time / time.detach()).reshape(()).to(x))


def span_of_graphs(end_times: Any, batch: Tensor | None, x: Tensor) -> Span:
    """The times 0 and the latest end time, with a rate of end time / latest for each node.

    All graphs then take the same steps, and each reaches its own end time.

    Args:
        end_times (Tensor): The terminal time of each graph.
        batch (Tensor, optional): The graph of each node.
        x (Tensor): The node features.

    Raises:
        ValueError, TypeError: if end_times or batch is invalid.
    """
    check_real(end_times, "end_times")
    if end_times.dim() != 1 or end_times.numel() == 0:
        raise ValueError("Expected end_times of shape (num_graphs,), one for each graph of batch "
                         f"(got {tuple(end_times.shape)}).")
    if not bool(((end_times >= 0) & end_times.isfinite()).all()):
        raise ValueError("Expected finite end_times of at least 0 (got "
                         f"{float(end_times.detach().min())} to "
                         f"{float(end_times.detach().max())}).")
    if batch is None:
        batch = torch.zeros(x.size(0), dtype=torch.long, device=x.device)
        if end_times.numel() > 1:
            raise ValueError(f"Expected batch, the graph of each node, with {end_times.numel()} "
                             "end_times (got none); pass data.batch.")
    if not isinstance(batch, Tensor) or batch.shape != x.shape[:1] or batch.dtype not in (
            torch.int64, torch.int32):
        got = (f"{tuple(batch.shape)} of {batch.dtype}" if isinstance(batch, Tensor)
               else type(batch).__name__)
        raise ValueError(f"Expected batch of shape ({x.size(0)},), the number of each node's graph "
                         f"(got {got}).")
    if batch.numel() and not 0 <= int(batch.min()) <= int(batch.max()) < end_times.numel():
        raise ValueError(f"Expected batch from 0 to {end_times.numel() - 1}, one of end_times for "
                         f"each graph (got {int(batch.min())} to {int(batch.max())}).")
    # The latest of the graphs that have nodes: others must not make the steps larger.
    own = end_times.to(batch.device).index_select(0, batch)
    latest = float((own if own.numel() else end_times).detach().max())
    if latest == 0.0:
        raise ValueError("Expected end_times of at least 0, not all of them 0 (got zeros).")
    times = torch.tensor([0.0, latest], dtype=torch.float64, device="cpu")
    return Span(times, (own / latest).to(x).view(-1, 1))


def check_apart(batch: Tensor | None, pattern: Pattern, weight: Tensor | None) -> None:
    """Refuses edges that join graphs of a batch, whose nodes would have different times."""
    if batch is None:
        return
    joins = batch.index_select(0, pattern.row) != batch.index_select(0, pattern.col)
    if bool((joins if weight is None else joins & (weight != 0)).any()):
        raise ValueError("Expected edges within each graph of batch where end_times are given (got "
                         "one that joins two graphs); look at batch.")


def check_times(t: Any) -> Tensor:
    """The output times t of a layer, checked: increasing from 0."""
    check_real(t, "t")
    if t.dim() != 1 or t.numel() == 0 or float(t.detach()[0]) != 0.0:
        got = tuple(t.shape) if t.dim() != 1 or t.numel() == 0 else float(t.detach()[0])
        raise ValueError("Expected t as a 1-D tensor of increasing times that starts at 0, where "
                         f"the features hold (got {got}).")
    if bool((t.detach().diff() <= 0).any()):
        raise ValueError("Expected t increasing (got times that are not); sort it and drop "
                         "repetitions.")
    result: Tensor = t
    return result


def is_trained(time: Any) -> bool:
    """Whether a time is a tensor that requires a gradient."""
    return isinstance(time, Tensor) and time.requires_grad


def checked_time(time: Any) -> float | Parameter:
    """The argument ``time`` of a layer, checked, as a float or a parameter."""
    if is_trained(time) and not isinstance(time, Parameter):
        raise ValueError("Expected time as a number or a torch.nn.Parameter (got a tensor that "
                         "requires a gradient and would not be saved); wrap it, or assign "
                         "conv.time before each call.")
    end = span_to(time, None).end
    return time if isinstance(time, Parameter) else end


def checked_number(name: str, value: Any, why: str, remedy: str = "") -> float:
    """The value as a float; raises a TypeError or ValueError unless it is positive and finite."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.detach().item()
    if isinstance(value, bool) or not isinstance(value, Real):
        got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"Expected {name} as one number (got {got}); {why}.")
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"Expected a positive, finite {name} (got {number}){remedy}.")
    return number


def checked_step(step_size: Any) -> float | None:
    """The step size as a float, or None; raises an error if it is invalid."""
    if step_size is None:
        return None
    if is_trained(step_size):
        raise ValueError("Expected step_size without requires_grad (got one that requires a "
                         "gradient): no gradient reaches it; pass a number.")
    return checked_number("step_size", step_size, "None makes the steps adaptive")


def check_channels(in_channels: Any, heads: Any) -> None:
    """Raises a TypeError if in_channels or heads is not an int."""
    if isinstance(in_channels, bool) or not isinstance(in_channels, Integral):
        raise TypeError(f"Expected in_channels as one int (got {in_channels!r}): a flow has one "
                        "set of nodes, bipartite graphs are not supported.")
    if isinstance(heads, bool) or not isinstance(heads, Integral):
        raise TypeError(f"Expected heads as an int (got {heads!r}); it is the third argument, as "
                        "in GATConv: pass those of GCNConv by name.")


def check_returned(return_attention_weights: Any) -> None:
    """Raises a TypeError unless it is a bool or None: a tensor was meant for another argument."""
    if not (return_attention_weights is None or isinstance(return_attention_weights, bool)):
        raise TypeError("Expected return_attention_weights as a bool (got "
                        f"{type(return_attention_weights).__name__}); edge_attr=, t= and "
                        "end_times= are given by name.")


def check_unknown(name: str, kwargs: Iterable[str]) -> None:
    """Raises a TypeError for keyword arguments that MessagePassing does not have."""
    known = [p for p in inspect.signature(MessagePassing.__init__).parameters if p != "self"]
    unknown = [key for key in kwargs if key not in known]
    if unknown:
        raise TypeError(f"Expected arguments of {name}, or those of MessagePassing, "
                        f"{', '.join(known)} (got {', '.join(unknown)}).")


def check_gcn(normalize: bool, improved: bool, fill_value: float) -> float:
    """The weight of added self-loops; raises a ValueError for options of GCNConv without meaning.
    """
    if not normalize:
        raise ValueError("Expected normalize=True (got False): attention coefficients always sum "
                         "to one; edge_weight multiplies them before that.")
    if improved and fill_value != 1.0:
        raise ValueError(f"Expected either improved, which is fill_value=2, or a fill_value (got "
                         f"both, {fill_value}).")
    check_fill_value(fill_value)
    return 2.0 if improved else fill_value


def check_fill_value(fill_value: Any) -> None:
    """Raises a ValueError unless the weight of added self-loops is a number of at least 0."""
    if not (isinstance(fill_value, Real) and math.isfinite(fill_value)
            and float(fill_value) >= 0):
        raise ValueError(f"Expected a fill_value of at least 0 (got {fill_value}): the weight of "
                         "the added self-loops is a number.")


def refuse_own_messages(layer: MessagePassing, base: type[MessagePassing]) -> None:
    """Refuses a subclass that overrides message passing but not the forward pass of its base."""
    if has_own_messages(layer, MessagePassing) and type(layer).forward is base.forward:
        raise TypeError(f"Expected a subclass without messages of its own (got "
                        f"{type(layer).__name__}, which overrides how they are passed): a flow "
                        "passes none; give the attention a subclass with other coefficients(), or "
                        "integrate a term of your own by imex_odeint.")


def check_probability(name: str, p: Any) -> None:
    """Raises a ValueError unless p is a number in [0, 1)."""
    if isinstance(p, bool) or not isinstance(p, Real) or not (
            0.0 <= float(p) < 1.0):
        raise ValueError(f"Expected {name} in [0, 1) (got {p}).")


def check_features(x: Any, channels: int, parameter: Tensor) -> None:
    """Refuses node features that do not fit the channels, dtype and device of a layer."""
    check_full("the parameters of the layer", parameter.dtype)
    if isinstance(x, (tuple, list)):
        raise ValueError("Expected one tensor of node features (got a tuple): a flow has one set "
                         "of nodes; bipartite graphs are not supported, data.to_homogeneous() "
                         "makes one graph of a heterogeneous one.")
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
