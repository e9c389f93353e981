"""Which of PyTorch's function transformations are not supported, and how are they refused?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])
REMEDY = "use loss.backward() or torch.autograd.grad"
WITHOUT_IMPLICIT = REMEDY + ', or gradient="backprop" where there is no implicit part'


def refuse_transforms(what: str, tensors: Iterable[Any], *, differentiable: bool = False,
                      remedy: str = REMEDY) -> None:
    """Refuses ``torch.func`` and forward-mode differentiation where they would fail or be wrong.

    Args:
        what (str): The name of the called object, for the message.
        tensors (iterable): The inputs that may carry a tangent; objects other than tensors are
            ignored.
        differentiable (bool): Whether every operation supports both transformations, as in an
            explicit integration with ``gradient="backprop"``. (default: :obj:`False`)
        remedy (str): What to do instead, for the message. (default: :obj:`REMEDY`)

    Raises:
        RuntimeError: if a transformation is active that is not supported.
    """
    kinds = [each.key() for each in torch._C._functorch.get_interpreter_stack() or ()]
    if torch._C._functorch.TransformType.Vmap in kinds:
        raise RuntimeError(f"Expected {what} outside torch.func.vmap (got a call inside it); put "
                           "the batch into a dimension of the state, or the graphs into one Batch, "
                           f"and call it once; for derivatives {REMEDY}.")
    if kinds and not differentiable:
        raise RuntimeError(f"Expected {what} outside the transforms of torch.func (got a call "
                           f"inside grad, vjp, jvp or jacrev); {remedy}.")
    if not differentiable and any(isinstance(x, Tensor) and has_tangent(x) for x in tensors):
        raise forward_mode_error(what, remedy)


def refuse_scripting(what: str) -> None:
    """Raises the error for ``torch.jit.script``, which calls ``__prepare_scriptable__``."""
    raise RuntimeError(f"Expected {what} outside torch.jit.script (got a call of it): its steps "
                       "and solves are Python; use torch.compile around the model, which leaves "
                       "them as they are.")


def refuse_tracing(what: str) -> None:
    """Refuses ``torch.jit.trace`` and ``torch.export``: both record the steps for one input only.

    Raises:
        RuntimeError: if one of them is active.
    """
    exporting = getattr(torch.compiler, "is_exporting", bool)  # from torch 2.7 on
    tracing = torch._C._get_tracing_state() is not None
    kind = "torch.export" if exporting() else "torch.jit.trace" if tracing else None
    if kind is not None:
        raise RuntimeError(f"Expected {what} outside {kind} (got a call inside it): its steps and "
                           "solves are Python; use torch.compile around the model, which leaves "
                           "them as they are.")


def uncompiled(fn: F) -> F:
    """Excludes a function from ``torch.compile``, with a graph break before and after it."""
    reason = "the steps and solves of pyg_sinode are Python; compile what lies around them"
    known = "reason" in inspect.signature(torch.compiler.disable).parameters  # from torch 2.7 on
    result: F = torch.compiler.disable(fn, **({"reason": reason} if known else {}))
    return result


def of_batch(error: RuntimeError) -> RuntimeError:
    """A clearer error for PyTorch's error about a missing batching rule; any other error as it is.

    ``jacobian(vectorize=True)`` and ``is_grads_batched=True`` compute a batch of gradients.
    """
    if "Batching rule" not in str(error) and "is_contiguous" not in str(error):
        return error
    return RuntimeError("Expected one gradient at a time (got a batch of them, as of jacobian with "
                        "vectorize=True or of is_grads_batched=True): sparse products and "
                        "iterative solves have no rule for it; leave that out.")


def has_tangent(x: Tensor) -> bool:
    """Whether a tensor carries a tangent of forward-mode differentiation."""
    active = getattr(forward_ad, "_current_level", 0) >= 0
    return active and forward_ad.unpack_dual(x).tangent is not None


def seeing_tangents() -> AbstractContextManager[Any]:
    """A context in which forward-mode tangents propagate, also in an ``autograd.Function``."""
    enabled = getattr(forward_ad, "_set_fwd_grad_enabled", None)
    active = getattr(forward_ad, "_current_level", -1) >= 0
    return enabled(True) if active and enabled is not None else nullcontext()


@contextmanager
def recording() -> Iterator[None]:
    """A context in which autograd records graphs, also within inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def forward_mode_error(what: str, remedy: str = WITHOUT_IMPLICIT) -> RuntimeError:
    """The error for forward-mode differentiation where it is not supported."""
    return RuntimeError(f"Expected {what} without forward-mode differentiation (got a tensor with "
                        f"a tangent, which would be lost); {remedy}.")


def numbers(x: Tensor) -> list[float]:
    """The entries of a vector, within ``torch.func`` too, where torch 2.4 has no ``tolist``."""
    if torch._C._functorch.get_interpreter_stack() is None:
        return list(x.tolist())
    return [float(entry) for entry in x]


def is_wrapped(x: Tensor) -> bool:
    """Whether a tensor is a ``torch.func`` wrapper, which has no accessible storage."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)
