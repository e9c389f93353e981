"""How do the tensors of an operator become the parameters of a module?"""

from __future__ import annotations

from typing import Any

from torch import nn

from .operators import LinearOperator


class LearnedOperator(nn.Module):
    r"""The tensors of an operator as the parameters of a module, which gives the operator of them.

    So they are found by :meth:`~torch.nn.Module.parameters`, saved in the state dict, converted by
    ``.double()``, and replaced by :func:`torch.func.functional_call`, while the operator that an
    integration gets is always that of the parameters in force:

    .. code-block:: python

        class StabilizedODE(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.G = GridMLP()
                self.J = LearnedOperator(operators.Dissipative(64, rank=8))

            def forward(self, u0, t):
                return imex_odeint(self.G, self.J(), u0, t, step_size=0.2)

    Indices, such as the edges of a graph, stay on their device.

    Args:
        operator (LinearOperator): The operator, with at least one tensor; its tensors are copied.

    Raises:
        TypeError: if it is not a LinearOperator.
        ValueError: if it holds no tensor.
    """

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__()
        if not isinstance(operator, LinearOperator):
            raise TypeError(f"Expected a LinearOperator in LearnedOperator (got "
                            f"{type(operator).__name__}); operators.Dense holds a matrix.")
        if not operator.tensors:
            raise ValueError(f"Expected an operator with tensors to learn (got {operator!r}); give "
                             "its numbers as a tensor.")
        self.weights = nn.ParameterList([t.detach().clone() for t in operator.tensors])
        self.template = operator.with_tensors([t.detach() for t in operator.tensors])

    def forward(self, *args: Any) -> LinearOperator:
        """The operator of the parameters in force; arguments are ignored.

        A layer calls it with its graph, as ``SINODEConv(..., implicit=LearnedOperator(J))``.
        """
        return self.template.with_tensors(list(self.weights))

    def extra_repr(self) -> str:
        """The operator."""
        return repr(self.template)
