"""How are functions of a matrix computed and differentiated?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .functions import OfNumbers
from .results import LinearSolveError


def functions_of_matrix(matrix: Tensor, f: Any) -> Tensor:
    """The functions of a matrix, along a new first dimension.

    Args:
        matrix (Tensor): A square matrix.
        f (callable): Maps numbers to the values of the functions. If it has a method ``of_matrix``,
            that is used instead of the eigenvalues.
    """
    wide = matrix.double()
    if hasattr(f, "of_matrix"):
        found: Tensor = f.of_matrix(wide)
    else:
        found = _ByEigenvectors.apply(wide, f, torch.finfo(matrix.dtype).eps)
    return found.to(matrix.dtype)


class _ByEigenvectors(torch.autograd.Function):
    """Functions of a matrix by its eigenvectors, with the gradient of Daleckii and Krein.

    Autograd through the eigenvectors would divide by zero where eigenvalues are equal. Source:
    Higham, Functions of Matrices (2008), theorem 3.11.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, f: OfNumbers, eps: float) -> Tensor:
        if torch.equal(matrix, matrix.t()):
            values, vectors = torch.linalg.eigh(matrix)
            right = vectors.t()
        else:
            values, vectors = torch.linalg.eig(matrix)
            condition = float(torch.linalg.cond(vectors))
            if not condition * 2.3e-16 < eps**0.5:
                raise LinearSolveError(
                    f"A function of this Dense matrix cannot be computed by its eigenvectors, "
                    f"whose condition is {condition:.1e}. Give f a method of_matrix(M) for a "
                    "tensor of functions of a matrix.")
            right = torch.linalg.inv(vectors)
        ctx.f = f
        ctx.save_for_backward(values, vectors, right)
        product: Tensor = (vectors * f(values).to(vectors.dtype).unsqueeze(-2)) @ right
        return product.real

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, vectors, right = ctx.saved_tensors
        slopes = _divided_differences(ctx.f, values)
        inner = vectors.mH @ grads[0].to(vectors.dtype) @ right.mH
        whole: Tensor = right.mH @ (slopes.conj() * inner) @ vectors.mH
        return whole.sum(dim=0).real, None, None


def _divided_differences(f: OfNumbers, z: Tensor) -> Tensor:
    """The numbers (f(z_i) - f(z_j)) / (z_i - z_j), and f' where two are nearly equal."""
    rows, columns = z.unsqueeze(1), z.unsqueeze(0)
    apart = rows - columns
    size = 1.0 + z.abs()
    near = apart.abs() <= 1e-5 * torch.maximum(size.unsqueeze(1), size.unsqueeze(0))
    middle = ((rows + columns) / 2).detach().requires_grad_()
    with torch.enable_grad():
        # The gradient of a complex function is the conjugate of its derivative.
        derivative = torch.stack([
            torch.autograd.grad(each, middle, torch.ones_like(each), retain_graph=True)[0].conj()
            for each in f(middle)])
    values = f(z)
    quotient = (values.unsqueeze(2) - values.unsqueeze(1)) / torch.where(
        near, torch.ones_like(apart), apart)
    return torch.where(near, derivative, quotient)
