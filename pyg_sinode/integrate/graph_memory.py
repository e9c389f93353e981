"""Which autograd graphs of G are kept for the backward pass, and how large are they?

Each kept graph saves one evaluation of G. The size of a graph is determined from the saved tensors
of its nodes, not by hooks on saved tensors, which would hide in-place changes from PyTorch and
replace the user's hooks. Tensors that a custom ``autograd.Function`` stores as attributes of its
context are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..operators.checks import GraphParts, graph_parts, shares_memory
from ..transforms import recording

MEASURED = frozenset([0, *(4**k + 1 for k in range(1, 16))])  # evaluations whose graph is measured
_SHOWS_DATA = hasattr(torch._C._autograd.SavedTensor, "data")  # not in torch 2.4
_SAVED: dict[type, tuple[str, ...]] = {}  # attributes with saved tensors, by type of node


class KeptGraph:
    """A kept autograd graph of G, which counts towards the memory limit until it is released.

    Args:
        value (Tensor): The value of G, the root.
        u (Tensor): The copy of the state, a leaf.
        stand (sequence of Tensor): The other leaves: the tensors that G was evaluated with.
        memory (GraphMemory): The memory limit.
    """

    __slots__ = ("checked", "memory", "size", "stand", "u", "value")

    def __init__(self, value: Tensor, u: Tensor, stand: Sequence[Tensor], memory: GraphMemory
                 ) -> None:
        self.value, self.u, self.stand = value, u, stand
        self.checked = False  # whether all its leaves are known to receive gradients
        self.memory: GraphMemory | None = memory
        self.size = memory.size
        memory.used += self.size

    def release(self) -> None:
        """Subtracts the size of the graph from the used memory."""
        if self.memory is not None:
            self.memory.used -= self.size
            self.memory = None

    def __del__(self) -> None:
        self.release()


class GraphMemory:
    """The memory limit of kept graphs.

    Args:
        limit (int): The most bytes of kept graphs; 0 keeps none. Under hooks on saved tensors (of
            the user, or of ``torch.utils.checkpoint``) none are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = 0 if limit and _has_hooks() else limit
        self.used = self.size = self.count = 0

    def keep(self, value: Tensor, u: Tensor, stand: Sequence[Tensor],
             parts: GraphParts | None = None) -> KeptGraph | None:
        """The graph of a value, if the limit permits to keep it; else None.

        Args:
            value (Tensor): The value of G.
            u (Tensor): The copy of the state, a leaf.
            stand (sequence of Tensor): The other leaves.
            parts (GraphParts, optional): The parts of the graph, if known. (default: :obj:`None`)
        """
        if self.limit == 0 or not value.requires_grad:
            return None
        if self.count in MEASURED:  # few are measured, since most have the same size
            held = held_bytes(value, [u, *stand], parts)
            self.size = max(self.size, held, value.numel() * value.element_size())
        self.count += 1
        return None if self.used + self.size > self.limit else KeptGraph(value, u, stand, self)


def held_bytes(value: Tensor, ends: Sequence[Tensor], parts: GraphParts | None = None) -> int:
    """The bytes saved in a graph, each storage counted once, without the storages of its leaves."""
    known = {x.untyped_storage().data_ptr() for x in ends}
    total = 0
    for tensor in _saved((graph_parts(value) if parts is None else parts).nodes):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def _saved(nodes: Sequence[Any]) -> Iterator[Tensor]:
    """The dense tensors that the nodes of a graph have saved."""
    for node in nodes:
        for name in _names(node):
            found = _read(node, name) if _SHOWS_DATA else _unpack(node, name)
            if found is None:
                return
            yield from _all_dense(found)


def _read(node: Any, name: str) -> list[Any]:
    """What a node has saved; None for what hooks inside G have packed, whose unpacking may run G
    again."""
    return [getattr(x, "data", None) for x in _listed(getattr(node, name, None))]


def _unpack(node: Any, name: str) -> list[Any] | None:
    """The same for torch 2.4, which does not show what was packed; None if hooks have packed it.

    It is unpacked twice: what hooks have packed, such as a checkpoint inside G, is then not the
    same memory, and no more is unpacked.
    """
    saved = name.removeprefix("_raw")
    saved = saved if hasattr(type(node), saved) else saved[1:]
    try:
        first, again = (_listed(getattr(node, saved, None)) for _ in range(2))
    except Exception:  # changed in place, or a hook that failed: the backward pass says so
        return None
    pairs = zip(_all_dense(first), _all_dense(again), strict=True)
    return first if all(not x.numel() or shares_memory(x, y) for x, y in pairs) else None


def _all_dense(found: Sequence[Any]) -> list[Tensor]:
    return [part for x in found if isinstance(x, Tensor) for part in _dense(x)]


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _names(node: Any) -> tuple[str, ...]:
    kind = type(node)
    if kind not in _SAVED:
        _SAVED[kind] = tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))
    return _SAVED[kind]


def _dense(x: Tensor) -> Iterator[Tensor]:
    if x.layout == torch.strided:
        yield x
    elif x.layout == torch.sparse_csr:
        yield from (x.crow_indices(), x.col_indices(), x.values())
    elif x.layout == torch.sparse_coo:
        yield from (x._indices(), x._values())


def _has_hooks() -> bool:
    """Whether hooks on saved tensors are active."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top is not None:
        return top(False) is not None
    # In torch 2.4: a saved tensor that hooks have packed refuses others.
    with recording():
        x = torch.ones(1, requires_grad=True)
        node: Any = (x * x).grad_fn
    try:
        node._raw_saved_self.register_hooks(lambda y: y, lambda y: y)
    except RuntimeError:
        return True
    return False
