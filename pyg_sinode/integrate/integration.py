"""Which data define an integration, and how is it run?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..controllers import Adaptive
from ..schemes import ExponentialTableau, IMEXTableau, Scheme
from ..terms import Affine, Nonlinear
from .clock import Clock
from .explicit import Explicit, ExplicitTerm
from .exponential import Exponential
from .function_part import FunctionPart, FunctionStore
from .implicit import Factorizations, ImplicitPart, LinearPart, NoPart
from .loop import AcceptedStep, Callback, Method, Watch, loop
from .multistep import Multistep
from .nonlinear import NewtonPart
from .report import Stats
from .runge_kutta import RungeKutta
from .step_sizes import AdaptiveSteps, EqualSteps, StepSizes
from .steps import Steps

STAGE_TOLERANCE = 1e-2  # the tolerance of a stage, relative to the tolerance of a step


@dataclass
class Integration:
    """The data of an integration, without the tensors with respect to which it is differentiated.

    Attributes:
        scheme: The scheme.
        term: The explicit term, or None.
        implicit: The implicit term, or None.
        factorizations: The inverses of I - cJ; None if there is no J.
        functions: The functions of hJ of an exponential scheme; None for other schemes.
        times: The output times.
        clock: The rounding units of the output times.
        steps: The steps; those of an adaptive integration are appended when accepted.
        control: The tolerances and limits of an adaptive integration; None for equal steps.
        dense: Whether outputs are interpolated.
        graph_memory: The most bytes of kept autograd graphs of G.
        checkpoints: The number of states to keep; None to keep all stages.
        checkpoint_device: The device on which to keep them; None for that of the state.
        callback, progress: See :class:`pyg_sinode.integrate.loop.Watch`.
        stats: The statistics, updated.
    """

    scheme: Scheme
    term: ExplicitTerm | None
    implicit: Affine | Nonlinear | None
    factorizations: Factorizations | None
    functions: FunctionStore | None
    times: list[float]
    clock: Clock
    steps: Steps
    control: Adaptive | None
    dense: bool
    graph_memory: int
    checkpoints: int | Literal["auto"] | None
    checkpoint_device: torch.device | None
    callback: Callback | None
    progress: bool
    stats: Stats

    def part(self, term: Affine | Nonlinear | None, u0: Tensor, *, differentiates: bool = False
             ) -> ImplicitPart | FunctionPart:
        """The implicit part of a term, which is :attr:`implicit`, perhaps with other tensors.

        Args:
            term (Affine or Nonlinear, optional): The term.
            u0 (Tensor): The initial state.
            differentiates (bool): Whether the discrete adjoint differentiates it.
                (default: :obj:`False`)
        """
        if isinstance(self.scheme, ExponentialTableau):
            assert self.functions is not None
            operator = term.operator if isinstance(term, Affine) else self.functions.operator
            wanted = differentiates and any(p.requires_grad for p in operator.tensors)
            return FunctionPart(operator, self.functions, differentiates=wanted)
        if isinstance(term, Nonlinear):
            return NewtonPart(term, self.allowed, u0, self.stats)
        if term is None or self.factorizations is None:
            return NoPart()
        return LinearPart(term, self.factorizations.inverse, self.stats)

    @property
    def allowed(self) -> Callable[[Tensor], Tensor] | None:
        """A function from a state to the error allowed in a stage; None with equal steps."""
        control = self.control
        if control is None:
            return None
        return lambda u: STAGE_TOLERANCE * (control.atol + control.rtol * u.abs())

    def method(self, explicit: Explicit | None, part: ImplicitPart | FunctionPart) -> Method:
        """The method of the scheme for a way to evaluate G and an implicit part."""
        if isinstance(part, FunctionPart):
            assert isinstance(self.scheme, ExponentialTableau)
            return Exponential(self.scheme, explicit, part, self.stats,
                               embedded=self.control is not None,
                               fourier=None if self.term is None else self.term.fourier)
        assert not isinstance(self.scheme, ExponentialTableau)
        if isinstance(self.scheme, IMEXTableau):
            return RungeKutta(self.scheme, explicit, part, self.stats,
                              embedded=self.control is not None, dense=self.dense)
        return Multistep(self.scheme, explicit, part, self.stats)

    def run(self, method: Method, u0: Tensor,
            keep: Callable[[AcceptedStep], None] | None = None) -> Tensor:
        """The states at all output times.

        Args:
            method (Method): The method, as returned by :meth:`method`.
            u0 (Tensor): The initial state.
            keep (callable, optional): Called with each accepted step. (default: :obj:`None`)
        """
        outputs = [u0.clone()]  # a copy, since G, a solver or a callback may change u0
        watch = Watch(self.callback, self.progress, self.times, self.stats)
        try:
            for accepted in loop(method, self._sizes(method, u0), u0, watch):
                if keep is not None:
                    keep(accepted)
                outputs.extend(_outputs(method, accepted))
        finally:
            watch.close()
            if self.term is not None:
                self.term.memory.release()
        return torch.stack(outputs)

    def _sizes(self, method: Method, u0: Tensor) -> StepSizes:
        if self.control is None:
            return EqualSteps(self.steps)
        assert isinstance(method, (RungeKutta, Exponential))
        return AdaptiveSteps(method, self.control, self.times, self.clock, u0, dense=self.dense,
                             steps=self.steps)


def _outputs(method: Method, accepted: AcceptedStep) -> list[Tensor]:
    """The states at the output times within a step."""
    end, found = accepted.result.state.u, []
    for theta in accepted.step.outputs:
        if theta == 1.0:
            found.append(end)
        else:
            assert isinstance(method, RungeKutta)
            found.append(method.interpolate(
                accepted.step.h, theta, accepted.before, accepted.result))
    return found
