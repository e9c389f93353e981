"""Which of PyTorch's transformations of a function can this package not go through?"""

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
        what (str): What was called.
        tensors (iterable): What may carry a tangent; what is no tensor is passed over.
        differentiable (bool): Whether every operation has rules for both, as those of an explicit
            integration by plain backpropagation do. (default: :obj:`False`)
        remedy (str): What to do instead. (default: :obj:`REMEDY`)

    Raises:
        RuntimeError: naming the way out.
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
    """Refuses ``torch.jit.script``, by the method ``__prepare_scriptable__`` that it calls."""
    raise RuntimeError(f"Expected {what} outside torch.jit.script (got a call of it): its steps "
                       "and solves are Python; use torch.compile around the model, which leaves "
                       "them as they are.")


def refuse_tracing(what: str) -> None:
    """Refuses ``torch.jit.trace`` and ``torch.export``, which would freeze the steps of one graph.

    Raises:
        RuntimeError: naming the way out.
    """
    exporting = getattr(torch.compiler, "is_exporting", bool)  # from torch 2.7 on
    tracing = torch._C._get_tracing_state() is not None
    kind = "torch.export" if exporting() else "torch.jit.trace" if tracing else None
    if kind is not None:
        raise RuntimeError(f"Expected {what} outside {kind} (got a call inside it): its steps and "
                           "solves are Python; use torch.compile around the model, which leaves "
                           "them as they are.")


def uncompiled(fn: F) -> F:
    """Makes ``torch.compile`` leave a function as it is: a graph break before and after it."""
    reason = "the steps and solves of pyg_sinode are Python; compile what lies around them"
    known = "reason" in inspect.signature(torch.compiler.disable).parameters  # from torch 2.7 on
    result: F = torch.compiler.disable(fn, **({"reason": reason} if known else {}))
    return result


def of_batch(error: RuntimeError) -> RuntimeError:
    """What to raise in the place of PyTorch's error where it has no rule for a batch of gradients.

    ``jacobian(vectorize=True)`` and ``is_grads_batched=True`` ask for several at once.
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
    """A region in which values carry tangents, inside an ``autograd.Function`` too."""
    enabled = getattr(forward_ad, "_set_fwd_grad_enabled", None)
    active = getattr(forward_ad, "_current_level", -1) >= 0
    return enabled(True) if active and enabled is not None else nullcontext()


@contextmanager
def recording() -> Iterator[None]:
    """A region in which graphs are recorded, inside of inference mode too."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def forward_mode_error(what: str, remedy: str = WITHOUT_IMPLICIT) -> RuntimeError:
    """The error of forward-mode differentiation where there is no rule for it."""
    return RuntimeError(f"Expected {what} without forward-mode differentiation (got a tensor with "
                        f"a tangent, which would be lost); {remedy}.")


def is_wrapped(x: Tensor) -> bool:
    """Whether a tensor is one of ``torch.func``, which has no memory of its own to look at."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)
