"""How is a function or module called with other tensors than its own?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import foreign_leaf
from .replaced import is_replacing


class Function:
    """A function or module with fixed further arguments, whose tensors can be replaced.

    The tensors are, in this order, those among the arguments and in operators among them, and the
    current parameters of a module.

    Args:
        fn (callable or torch.nn.Module): Called as ``fn(*inputs, *args)``.
        args (tuple): The further arguments. (default: :obj:`()`)
    """

    def __init__(self, fn: Callable[..., Any], args: Sequence[Any] = ()) -> None:
        self.fn, self.args = fn, tuple(args)
        self.module = fn if isinstance(fn, torch.nn.Module) else None
        self.put: tuple[Tensor, ...] | None = None  # the tensors that replace its own
        self.named: dict[str, Tensor] = {}  # parameters and buffers to replace at each call
        self.buffers: dict[str, Tensor] = {}  # those of them that are copied before each call

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that a call uses."""
        return self.own if self.put is None else self.put

    @property
    def own(self) -> tuple[Tensor, ...]:
        """The tensors of the arguments, then the current parameters of a module."""
        return (*self.given, *(() if self.module is None else self.module.parameters()))

    @property
    def given(self) -> list[Tensor]:
        """The tensors of the arguments."""
        return [x for arg in self.args for x in _tensors(arg)]

    def on(self, tensors: Sequence[Tensor], buffers: dict[str, Tensor] | None = None,
           present: Sequence[Tensor] | None = None) -> Function:
        """The same function with other tensors.

        Args:
            tensors (sequence of Tensor): The tensors, in the order of :attr:`tensors`.
            buffers (dict, optional): Buffers of the module by name, copied at each call; if None,
                those of this function. (default: :obj:`None`)
            present (sequence of Tensor, optional): The value of :attr:`own`, if known.
                (default: :obj:`None`)
        """
        rest, args = list(tensors), []
        for arg in self.args:
            count = len(_tensors(arg))
            args.append(_with_tensors(arg, rest[:count]))
            del rest[:count]
        other = Function(self.fn, args)
        other.put = tuple(tensors)
        if self.module is not None:
            own = (self.own if present is None else present)[len(tensors) - len(rest):]
            if len(own) != len(rest) or is_replacing() or any(
                    a is not b for a, b in zip(own, rest, strict=True)):
                names = [name for name, _ in self.module.named_parameters()]
                other.named = dict(zip(names, rest, strict=True))
            other.buffers = self.buffers if buffers is None else buffers
            other.named |= other.buffers
        return other

    def __call__(self, *inputs: Any) -> Any:
        """The value, computed with :attr:`tensors`."""
        if self.module is None or not self.named:
            return self.fn(*inputs, *self.args)
        named = {name: x.clone() if name in self.buffers else x for name, x in self.named.items()}
        return torch.func.functional_call(self.module, named, (*inputs, *self.args))

    def detached(self) -> Function:
        """The same function with detached copies of its tensors, the leaves of its graphs."""
        return self.on([p.detach().requires_grad_(p.requires_grad) for p in self.tensors])

    def lost(self, value: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor | None:
        """A leaf that a value depends on but that is neither an input nor in :attr:`tensors`."""
        return foreign_leaf(value, [*inputs, *self.tensors])


def _tensors(arg: Any) -> tuple[Tensor, ...]:
    if isinstance(arg, Tensor):
        return (arg,)
    return tuple(arg.tensors) if hasattr(arg, "with_tensors") else ()


def _with_tensors(arg: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(arg, Tensor):
        return tensors[0]
    return arg.with_tensors(tensors) if hasattr(arg, "with_tensors") else arg
