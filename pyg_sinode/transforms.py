"""Which of PyTorch's transformations of a function can this package not go through?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

REMEDY = ('use loss.backward() or torch.autograd.grad, or gradient="backprop" where there is no '
          "implicit part.")


def refuse_transforms(what: str, tensors: Iterable[Any], *, differentiable: bool) -> None:
    """Refuses ``torch.func`` and forward-mode differentiation where they would fail or be wrong.

    Args:
        what (str): What was called.
        tensors (iterable): What may carry a tangent; what is no tensor is passed over.
        differentiable (bool): Whether every operation has rules for both, as those of an explicit
            integration by plain backpropagation do.

    Raises:
        RuntimeError: naming the way out.
    """
    kinds = [each.key() for each in torch._C._functorch.get_interpreter_stack() or ()]
    if torch._C._functorch.TransformType.Vmap in kinds:
        raise RuntimeError(f"Expected {what} outside torch.func.vmap (got a call inside it); put "
                           "the batch into a dimension of the state, or the graphs into one Batch, "
                           "and call it once.")
    if kinds and not differentiable:
        raise RuntimeError(f"Expected {what} outside the transforms of torch.func (got a call "
                           f"inside grad, vjp, jvp or jacrev); {REMEDY}")
    if not differentiable and any(isinstance(x, Tensor) and has_tangent(x)
                                      for x in tensors):
        raise forward_mode_error(what)


def has_tangent(x: Tensor) -> bool:
    """Whether a tensor carries a tangent of forward-mode differentiation."""
    return forward_ad.unpack_dual(x).tangent is not None


def forward_mode_error(what: str) -> RuntimeError:
    """The error of forward-mode differentiation where there is no rule for it."""
    return RuntimeError(f"Expected {what} without forward-mode differentiation (got a tensor with "
                        f"a tangent, which would be lost); {REMEDY}")


def is_wrapped(x: Tensor) -> bool:
    """Whether a tensor is one of ``torch.func``, which has no memory of its own to look at."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)
