"""What is one integration, and how is it run?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .controllers import Adaptive
from .explicit import ExplicitTerm
from .march import Callback, Marched, Method, Watch, adaptive_march, march
from .multistep import IMEXMultistep, Multistep
from .operators import Affine, LinearOperator
from .report import Stats
from .setups import Setups
from .stepper import Explicit, Inverses, RungeKutta, Solves
from .steps import Clock, Steps
from .tableau import IMEXTableau


@dataclass
class Problem:
    """Everything that an integration needs besides the tensors it is differentiated by.

    Attributes:
        scheme: The scheme.
        term: The explicit term, or None.
        implicit: The implicit part, or None.
        setups: The inverses of I - cJ, or None.
        times: The output times.
        clock: To what they are rounded.
        steps: The steps, for an adaptive integration filled on the way.
        control: The tolerances of an adaptive integration, else None.
        dense: Whether outputs are interpolated.
        checkpoints: How many states to keep, None for all stages.
        checkpoint_device: Where to keep them, None for where they are.
        callback, progress: See :class:`pyg_sinode.march.Watch`.
        stats: Filled on the way.
    """

    scheme: IMEXTableau | IMEXMultistep
    term: ExplicitTerm | None
    implicit: Affine | None
    setups: Setups | None
    times: list[float]
    clock: Clock
    steps: Steps
    control: Adaptive | None
    dense: bool
    checkpoints: int | Literal["auto"] | None
    checkpoint_device: torch.device | None
    callback: Callback | None
    progress: bool
    stats: Stats

    def method(self, explicit: Explicit | None, implicit: Affine | None,
               inverse: Inverses | None = None) -> RungeKutta | Multistep:
        """The method of this problem, with its own way to evaluate G or to solve."""
        if inverse is None:
            inverse = _no_setups if self.setups is None else self.setups.inverse
        solves = Solves(implicit, inverse, self.stats)
        if isinstance(self.scheme, IMEXMultistep):
            return Multistep(self.scheme, explicit, solves, self.stats)
        return RungeKutta(self.scheme, explicit, solves, self.stats,
                          embedded=self.control is not None, dense=self.dense)

    def run(self, method: RungeKutta | Multistep, u0: Tensor,
            keep: Callable[[Marched], None] | None = None,
            forget: Callable[[int], None] | None = None) -> Tensor:
        """The states at all output times.

        Args:
            method (RungeKutta or Multistep): That of :meth:`method`.
            u0 (Tensor): The initial state.
            keep (callable, optional): Called with every accepted step.
            forget (callable, optional): Called with the number of evaluations of G that count,
                when those after them do not.
        """
        outputs = [u0.clone()]  # a callback may know u0 itself
        watch = Watch(self.callback, self.progress, self.times, self.stats)
        try:
            for marched in self._march(method, u0, watch, forget):
                if keep is not None:
                    keep(marched)
                outputs.extend(_outputs(method, marched))
        finally:
            watch.close()
            if self.term is not None:
                self.term.memory.release()
        return torch.stack(outputs)

    def _march(self, method: RungeKutta | Multistep, u0: Tensor, watch: Watch,
               forget: Callable[[int], None] | None) -> Iterator[Marched]:
        if self.control is None:
            return march(method, self.steps, u0, watch)
        assert isinstance(method, RungeKutta)
        scheme = method

        def discard(number: int, known: int) -> None:
            if forget is not None:
                forget(scheme.evaluations_before(number) + known)

        return adaptive_march(scheme, self.control, self.times, self.clock, u0, dense=self.dense,
                              steps=self.steps, discard=discard, watch=watch)


def _outputs(method: Method, marched: Marched) -> list[Tensor]:
    """The outputs in a step."""
    end, found = marched.made.state[0], []
    for theta in marched.step.outputs:
        if theta == 1.0:
            found.append(end)
        else:
            assert isinstance(method, RungeKutta)
            found.append(method.interpolate(
                marched.step.h, theta, marched.before[0], marched.made))
    return found


def _no_setups(c: float, scale: Tensor | float) -> LinearOperator:
    raise RuntimeError("There is no implicit operator to invert.")
