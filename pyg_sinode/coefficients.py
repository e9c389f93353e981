"""How are attention scores normalised to coefficients, and what is the gradient of that?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .sparse import Pattern, gather_rows, reduced, segment_sum


def normalized(scores: Tensor, pattern: Pattern, weight: Tensor | None, normalizer: str,
               columns: bool) -> Tensor:
    r"""The coefficients :math:`a^h_e = w_e\, \phi(s^h_e) / \sum_{e'} w_{e'} \phi(s^h_{e'})`.

    Args:
        scores (Tensor): The scores s, in the order of the pattern.
        pattern (Pattern): The sorted edges.
        weight (Tensor, optional): The edge weights w, at least 0; ones if None.
        normalizer (str): The positive function :math:`\phi`: :obj:`"softmax"` (the exponential) or
            :obj:`"squareplus"`.
        columns (bool): Whether the sum is over the edges out of a node instead of those into it.

    Shapes:
        - **scores, output:** :math:`(H, |\mathcal{E}|)`, dimensionless
        - **weight:** :math:`(|\mathcal{E}|)`
    """
    positive = _positive(scores, pattern, weight, normalizer, columns)
    if weight is None:
        return positive / gather_rows(pattern, segment_sum(pattern, positive, columns), columns)
    positive = positive * weight
    total = segment_sum(pattern, positive, columns)
    return positive / gather_rows(pattern, total.masked_fill(total == 0, 1.0), columns)


def normalized_mean(scores: Tensor, pattern: Pattern, weight: Tensor | None, normalizer: str,
                    columns: bool) -> Tensor:
    r"""The mean over heads of :func:`normalized`, with its gradient in closed form.

    Let :math:`r = \phi(s) / \sum w \phi(s)`, let g be the gradient with respect to the mean, and
    :math:`c = \frac{1}{H} \sum w r g`, a sum over the edges normalised together with edge e. The
    gradients with respect to the scores and to the weights are

    .. math::
        w r \left( \frac{g}{H} - c \right) \frac{\phi^{\prime}(s)}{\phi(s)}, \quad
        \sum_h r \left( \frac{g}{H} - c \right).

    The backward pass needs two numbers for each edge and head, s and r. The arguments are those of
    :func:`normalized`.
    """
    result: Tensor = _NormalizedMean.apply(scores, weight, pattern, normalizer, columns)
    return result


def squareplus(s: Tensor) -> Tensor:
    r"""The positive function :math:`(s + \sqrt{s^2 + 4}) / 2`, without cancellation for s < 0.

    From the `"Squareplus: A Softplus-Like Algebraic Rectifier"
    <https://arxiv.org/abs/2112.11687>`_ paper.
    """
    result: Tensor = _SquarePlus.apply(s)
    return result


def without_removed(scores: Tensor, weight: Tensor) -> Tensor:
    """The scores, minus infinity at edges of weight zero: a maximum over these leaves them out.

    The exponentials of the other edges could underflow relative to the score of a removed edge.
    """
    return scores.detach().masked_fill(weight == 0, -math.inf)


def exp_above(scores: Tensor, top: Tensor) -> Tensor:
    """The exponentials of the scores less the maximum of their group.

    The exponent is limited, since a removed edge may have a score above that maximum and the
    gradient of its weight must be finite.
    """
    return torch.exp((scores - top.masked_fill(top == -math.inf, 0.0)).clamp(max=60.0))


def _positive(scores: Tensor, pattern: Pattern, weight: Tensor | None, normalizer: str,
              columns: bool) -> Tensor:
    """phi of the scores; for softmax, of the scores less the maximum of those summed with each."""
    if normalizer == "squareplus":
        return squareplus(scores)
    kept = scores if weight is None else without_removed(scores, weight)
    top = _spread(pattern, reduced("max", pattern, kept.detach(), columns), columns)
    return torch.exp(scores - top) if weight is None else exp_above(scores, top)


def _spread(pattern: Pattern, z: Tensor, columns: bool) -> Tensor:
    """The value of each entry's row, or column; without a gradient."""
    return z.index_select(-1, pattern.col if columns else pattern.row)


class _NormalizedMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor | None, pattern: Pattern, normalizer: str,
                columns: bool) -> Tensor:
        ctx.how = pattern, normalizer, columns
        ratio = _positive(scores, pattern, weight, normalizer, columns)
        total = reduced("sum", pattern, ratio if weight is None else ratio * weight, columns)
        if weight is not None:
            total.masked_fill_(total == 0, 1.0)
        ratio /= _spread(pattern, total, columns)
        ctx.save_for_backward(scores, weight, ratio)
        return (ratio if weight is None else ratio * weight).mean(dim=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (scores, weight, ratio) = grads, ctx.saved_tensors
        pattern, normalizer, columns = ctx.how
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # create_graph=True: the gradient will be differentiated
            return (*_composed_gradient(scores, weight, g, ctx.how, wanted), None, None, None)
        r_g = ratio * (g / scores.size(0))
        c = reduced("sum", pattern, r_g if weight is None else r_g * weight, columns)
        r_g.addcmul_(ratio, _spread(pattern, c, columns), value=-1.0)
        to_weight = r_g.sum(dim=0) if wanted[1] else None
        if weight is not None:
            r_g *= weight
        if normalizer == "squareplus":
            r_g /= torch.hypot(scores, scores.new_full((), 2.0))
        return (r_g if wanted[0] else None), to_weight, None, None, None


def _composed_gradient(scores: Tensor, weight: Tensor | None, g: Tensor, how: Any,
                       wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients, composed of operations that autograd can differentiate."""
    # Views, so that the gradient at the scores is separate where they depend on the weights.
    scores, weight = scores.view_as(scores), None if weight is None else weight.view_as(weight)
    mean = normalized(scores, how[0], weight, *how[1:]).mean(dim=0)
    inputs = [x for x, w in zip((scores, weight), wanted, strict=True) if w and x is not None]
    found = iter(torch.autograd.grad(mean, inputs, g, create_graph=True))
    return [next(found) if w else None for w in wanted]


class _SquarePlus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor) -> Tensor:
        # max(s, 0) + 1 / (|s| / 2 + sqrt(1 + s^2 / 4)): without cancellation and overflow.
        half = s.abs().mul_(0.5)
        value = torch.hypot(half, s.new_ones(())).add_(half).reciprocal_().add_(s.clamp(min=0.0))
        ctx.save_for_backward(value)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (value,) = ctx.saved_tensors
        gradient: Tensor = grads[0] * (value / (value + value.reciprocal()))
        return gradient
