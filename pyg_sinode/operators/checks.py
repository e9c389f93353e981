"""Which tensors, numbers and dimensions does an operator accept?"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


def check_number(value: Any, name: str) -> None:
    """Raises a TypeError or ValueError unless a value is a finite real number."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"Expected {name} as a real number or a 0-dim tensor (got {value!r}).")
    if not math.isfinite(value):
        raise ValueError(f"Expected {name} to be finite (got {value}).")


def check_real(tensor: Any, name: str) -> None:
    """Raises a TypeError unless the argument is a tensor of a real floating dtype."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"Expected {name} as a tensor (got {type(tensor).__name__}); wrap it with "
                        "torch.as_tensor.")
    if not tensor.is_floating_point():
        raise TypeError(f"Expected {name} of a real floating dtype (got {tensor.dtype}); convert "
                        "it with .float() or .double(), a complex one into its real and imaginary "
                        "parts.")


def check_tensors(name: str, tensors: Sequence[Tensor], u: Tensor) -> None:
    """Refuses tensors of an operator that differ from u in dtype or device, or are not finite."""
    for tensor in tensors:
        if tensor.dtype != u.dtype:
            raise TypeError(f"Expected the tensors of {name} in the dtype of the state, {u.dtype} "
                            f"(got {tensor.dtype}); convert one of the two.")
        if tensor.device != u.device:
            raise ValueError(f"Expected the tensors of {name} on the device of the state, "
                             f"{u.device} (got {tensor.device}); move one of the two.")
        if not is_finite(tensor):
            raise ValueError(f"Expected finite tensors in {name} (got NaN or Inf in one of shape "
                             f"{tuple(tensor.shape)}); look where it was computed.")


def is_finite(x: Tensor) -> bool:
    """Whether all entries of a real tensor are finite."""
    if x.requires_grad:
        x = x.detach()
    # One pass in the usual case: a finite sum has finite terms. 50 times as fast as the other.
    return math.isfinite(float(x.sum())) or bool(x.isfinite().all())


def check_dims(name: str, dims: int | Sequence[int]) -> tuple[int, ...]:
    """The dimensions as a sorted tuple; raises a ValueError unless they are negative, distinct."""
    several = isinstance(dims, Iterable) and not isinstance(dims, str)
    given: tuple[Any, ...] = tuple(dims) if several else (dims,)  # type: ignore[arg-type]
    if not all(isinstance(d, numbers.Integral) for d in given):
        raise TypeError(f"Expected the dimensions of {name} as an int or several (got {dims!r}).")
    result = tuple(int(d) for d in given)
    if any(d >= 0 for d in result) or len(set(result)) != len(result):
        raise ValueError(f"Expected the dimensions of {name} counted from the end, such as -1 "
                         f"(got {dims}).")
    return tuple(sorted(result))


def check_dim(name: str, dim: int) -> tuple[int]:
    """The one dimension of an operator, as a tuple; see :func:`check_dims`."""
    single: Any = dim[0] if isinstance(dim, tuple) and len(dim) == 1 else dim
    if isinstance(single, bool) or not isinstance(single, numbers.Integral):
        raise TypeError(f"Expected the dimension of {name} as an int (got {dim!r}).")
    (result,) = check_dims(name, int(single))
    return (result,)


def powers_of_two(shape: Sequence[int], like: Tensor, generator: torch.Generator
                  ) -> Iterator[Tensor]:
    """Three tensors of 1, 2, 4 and 8 at random: most pairs of places differ in one of them.

    One pair in 64 does not. Larger powers would magnify the rounding errors of transforms that run
    over several places.
    """
    for _ in range(3):
        power = torch.randint(4, tuple(shape), generator=generator, device=generator.device)
        yield (torch.ones_like(power) << power).to(like)


def check_size(name: str, u: Tensor, dim: int, size: int) -> None:
    """Raises a ValueError if the length of a state along dim is not the size."""
    if u.dim() < -dim or u.size(dim) != size:
        raise ValueError(f"Expected a state of size {size} along dimension {dim} for {name} (got "
                         f"shape {tuple(u.shape)}).")


def fixed_array(values: Any, name: str) -> Any:
    """A read-only copy in float64, or complex128 if the numbers are complex."""
    array = np.array(values)
    if array.dtype.kind not in "iufc":
        raise TypeError(f"Expected numbers as the {name} (got dtype {array.dtype}).")
    array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"Expected finite numbers in the {name} (got NaN or Inf).")
    array.flags.writeable = False
    return array


def broadcasts(shape: Sequence[int], u: Tensor) -> bool:
    """Whether a tensor of that shape broadcasts to the shape of u."""
    return len(shape) <= u.dim() and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(u.shape), strict=False))


def along(vector: Tensor, dim: int) -> Tensor:
    """A vector shaped so that it broadcasts along dimension ``dim`` of a state."""
    return vector.view(-1, *([1] * (-dim - 1)))


def as_float(number: Tensor | float) -> float:
    """A number's value, with no gradient."""
    return float(number.detach()) if isinstance(number, Tensor) else float(number)


def is_array(d: Tensor | float | None) -> bool:
    """Whether it is a tensor with dimensions."""
    return isinstance(d, Tensor) and d.dim() > 0


def is_number(d: Tensor | float | None) -> bool:
    """Whether it is a number or a tensor without dimensions."""
    return d is not None and not is_array(d)


def as_tensor(number: Tensor | float) -> Tensor:
    """A number as a tensor, in double precision whatever the default dtype; a tensor as it is."""
    return number if isinstance(number, Tensor) else torch.tensor(number, dtype=torch.float64)


def detached(number: Tensor | float) -> Tensor | float:
    """A number or tensor with no gradient."""
    return number.detach() if isinstance(number, Tensor) else number


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two nonempty tensors share a storage."""
    return a.numel() > 0 and b.numel() > 0 and (
        a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())


def same(copy: Tensor, tensor: Tensor) -> bool:
    """Whether two tensors agree in shape, dtype, device and every entry."""
    return (copy.shape == tensor.shape and copy.dtype == tensor.dtype
            and copy.device == tensor.device and torch.equal(copy, tensor))


def foreign_leaf(value: Tensor, named: Sequence[Tensor]) -> Tensor | None:
    """A leaf of a value's autograd graph that requires a gradient and is not in ``named``."""
    return outside(graph_parts(value).leaves, named)


def outside(leaves: Sequence[Tensor], named: Sequence[Tensor]) -> Tensor | None:
    """One of the leaves that is not in ``named``."""
    if not leaves:
        return None
    allowed = set(map(id, named))
    return next((leaf for leaf in leaves if id(leaf) not in allowed), None)


def lost_gradient(expected: str, lost: Tensor, remedy: str, when: str = "") -> ValueError:
    """The error for a value that depends on a tensor which would receive no gradient."""
    return ValueError(
        f"Expected {expected} (got{when} another tensor of shape {tuple(lost.shape)} that requires "
        f"a gradient, which would be lost); {remedy}")


class GraphParts(NamedTuple):
    """The leaves of an autograd graph that require a gradient, and its other nodes."""

    leaves: list[Tensor]
    nodes: list[Any]


def graph_parts(value: Tensor) -> GraphParts:
    """The parts of a value's autograd graph; the value itself if it is a leaf."""
    found: list[Tensor] = []
    if value.grad_fn is None:
        return GraphParts([value] if value.requires_grad else found, [])
    # Runs for every graph that is differentiated, so it is written for speed.
    inner: list[Any] = []
    stack, seen = [value.grad_fn], {value.grad_fn}
    while stack:
        node = stack.pop()
        if type(node) is _END:
            found.append(node.variable)  # type: ignore[attr-defined]
            continue
        inner.append(node)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return GraphParts(found, inner)


def _end_of_graphs() -> Any:
    """The type of the autograd nodes of leaves, for which torch has no public name."""
    with torch.inference_mode(False), torch.enable_grad():
        root: Any = torch.zeros((), requires_grad=True).view(())
    return type(root.grad_fn.next_functions[0][0])


_END = _end_of_graphs()
