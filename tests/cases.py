"""Which operators and solvers must obey the laws? One line puts a new one under all of them.

And how is a stepper made for a test?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyg_sinode import Stats
from pyg_sinode.integrate.clock import Clock, steps_to_outputs
from pyg_sinode.integrate.explicit import Evaluated
from pyg_sinode.integrate.implicit import LinearPart, NoPart
from pyg_sinode.integrate.loop import loop
from pyg_sinode.integrate.runge_kutta import RungeKutta
from pyg_sinode.integrate.step_sizes import EqualSteps
from pyg_sinode.operators import (
    Banded,
    BlockDiagonal,
    Circulant,
    Dense,
    Diagonal,
    Dissipative,
    DissipativeCirculant,
    DissipativeGraph,
    Graph,
    LinearOperator,
    MatrixFree,
    Scaled,
    ScaledIdentity,
    Shifted,
    SineCosine,
)
from pyg_sinode.solvers import CG, GMRES, BiCGStab, Direct
from pyg_sinode.terms import Affine

# Directed, with a duplicate edge (0 -> 1), a self-loop (2 -> 2) and an isolated node (5).
EDGES = torch.tensor([[0, 0, 2, 1, 3, 4, 3, 1, 4], [1, 1, 2, 3, 0, 1, 4, 0, 3]])
# One direction of an undirected graph, with a duplicate, a self-loop and an isolated node too.
HALF = torch.tensor([[0, 1, 0, 3, 2, 2], [1, 2, 1, 4, 4, 2]])
NODES = 6

_generator = torch.Generator().manual_seed(1)


@dataclass(frozen=True)
class Case:
    """An operator under the laws.

    Args:
        build: Makes the operator from the leaves; I - cJ is well conditioned for c up to 0.5.
        data: The values of the leaves.
        shape: The state's.
    """

    build: Callable[..., LinearOperator]
    data: Sequence[Tensor]
    shape: tuple[int, ...]

    def leaves(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Fresh leaf tensors that require gradients."""
        return [nn.Parameter(value.to(dtype, copy=True)) for value in self.data]

    def operator(self, dtype: torch.dtype = torch.float64) -> LinearOperator:
        """The operator on fresh leaves."""
        return self.build(*self.leaves(dtype))

    def state(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """A random state."""
        return torch.randn(self.shape, dtype=torch.float64).to(dtype)


def numbers(*shape: int, low: float = -0.4, high: float = 0.4) -> Tensor:
    """Uniform numbers, the same in every run."""
    unit = torch.rand(shape, generator=_generator, dtype=torch.float64)
    return low + (high - low) * unit


def decays(*shape: int) -> Tensor:
    """Negative numbers, for diagonals."""
    return numbers(*shape, low=-1.0, high=-0.2)


def graph(weight: Tensor, dim: int = -2) -> Graph:
    """The directed graph of these cases."""
    return Graph(EDGES, weight, NODES, dim=dim)


def symmetric_graph(half: Tensor, dim: int = -2) -> Graph:
    """The undirected graph of these cases: both directions of an edge share one weight."""
    both = torch.cat([HALF, HALF.flip(0)], dim=1)
    return Graph(both, torch.cat([half, half]), NODES, dim=dim)


def symmetric_dense(half: Tensor) -> Dense:
    """A dense matrix that is symmetric to the last bit."""
    return Dense(half + half.t())


def banded(diagonals: Tensor, dim: int = -1) -> Banded:
    """A banded matrix that reaches further above the diagonal than below it."""
    return Banded(diagonals, (0, 2, -1), dim=dim)


def symmetric_banded(main: Tensor, half: Tensor) -> Banded:
    """A banded matrix whose two outer diagonals share their entries."""
    return Banded(torch.stack([F.pad(half, (1, 0)), main, F.pad(half, (0, 1))]), (-1, 0, 1))


def upwind(u: Tensor, speed: Tensor, decay: Tensor) -> Tensor:
    """A function that is linear and not symmetric, for MatrixFree."""
    return speed * (u.roll(1, -1) - u) + decay * u


def of_module(module: nn.Module, weight: Tensor, dim: int | tuple[int, ...] = -1) -> MatrixFree:
    """A module whose weight is the given parameter, or which is called with the given tensor."""
    if isinstance(weight, nn.Parameter):
        module.weight = weight
        return MatrixFree(module, dim=dim)
    return MatrixFree(module, dim=dim).with_tensors([weight])


def linear(weight: Tensor) -> MatrixFree:
    """A linear layer along the last dimension."""
    return of_module(nn.Linear(4, 4, bias=False), weight)


def conv(weight: Tensor) -> MatrixFree:
    """A periodic convolution that mixes channels and places."""
    module = nn.Conv1d(2, 2, 3, padding="same", padding_mode="circular", bias=False)
    return of_module(module, weight, dim=(-2, -1))


def of_symbol(real: Tensor, imag: Tensor, dim: int | tuple[int, ...] = -1) -> Circulant:
    """A Fourier multiplier: the even part of one tensor, and i times the odd part of another."""
    axes = tuple(range(real.dim()))

    def mirrored(x: Tensor) -> Tensor:
        return x.flip(axes).roll([1] * len(axes), axes)

    return Circulant.from_symbol(
        torch.complex(real + mirrored(real), imag - mirrored(imag)), dim=dim)


def dissipative(*tensors: Tensor, dim: int = -1) -> Dissipative:
    """A dissipative matrix of given tensors."""
    return Dissipative.from_tensors(*tensors, eps=0.1, dim=dim)


def symmetric_dissipative(b: Tensor) -> Dissipative:
    """A dissipative matrix without a skew part."""
    return dissipative(b + b.t(), b)


def dissipative_graph(numbers: Tensor, dim: int = -2) -> DissipativeGraph:
    """The diffusion on the directed graph of these cases."""
    return DissipativeGraph(EDGES, numbers, NODES, softplus=True, dim=dim)


def symmetric_diffusion(half: Tensor) -> DissipativeGraph:
    """The diffusion on the undirected graph of these cases."""
    both = torch.cat([HALF, HALF.flip(0)], dim=1)
    return DissipativeGraph(both, torch.cat([half, half]), NODES)


OPERATORS: dict[str, Case] = {
    "identity": Case(ScaledIdentity, [decays()], (6, 3)),
    "identity_float": Case(lambda: ScaledIdentity(-0.7), [], (6, 3)),
    "diagonal": Case(Diagonal, [decays(6, 3)], (6, 3)),
    "diagonal_of_rows": Case(Diagonal, [decays(6, 1)], (6, 3)),
    "diagonal_of_columns": Case(Diagonal, [decays(3)], (6, 3)),
    "dense": Case(Dense, [numbers(5, 5)], (2, 5)),
    "dense_on_rows": Case(partial(Dense, dim=-2), [numbers(5, 5)], (5, 3)),
    "dense_in_a_batch": Case(partial(Dense, dim=-2), [numbers(4, 4)], (2, 4, 3)),
    "dense_on_a_third_dimension": Case(partial(Dense, dim=-3), [numbers(4, 4)], (4, 2, 3)),
    "dense_symmetric": Case(symmetric_dense, [numbers(5, 5, low=-0.3, high=0.1)], (2, 5)),
    "graph": Case(graph, [numbers(9)], (6, 3)),
    "graph_on_the_last_dimension": Case(partial(graph, dim=-1), [numbers(9)], (2, 6)),
    "graph_in_a_batch": Case(graph, [numbers(9)], (2, 6, 2)),
    "graph_symmetric": Case(symmetric_graph, [numbers(6)], (6, 3)),
    "function": Case(partial(MatrixFree, upwind), [numbers(5, low=0.1), decays()], (3, 5)),
    "function_linear": Case(linear, [numbers(4, 4)], (3, 4)),
    "function_conv": Case(conv, [numbers(2, 2, 3, low=-0.2, high=0.2)], (3, 2, 5)),
    "function_transposed": Case(
        lambda *t: MatrixFree(upwind, *t).T, [numbers(5, low=0.1), decays()], (3, 5)
    ),
    "scaled_by_a_float": Case(lambda w: -0.8 * graph(w), [numbers(9)], (6, 3)),
    "scaled_by_a_tensor": Case(lambda s, m: Scaled(Dense(m), s), [decays(), numbers(5, 5)], (2, 5)),
    "scaled_diagonal": Case(lambda s, d: Diagonal(d) * s, [decays(), -decays(6, 3)], (6, 3)),
    "transposed_dense": Case(lambda m: Dense(m, dim=-2).T, [numbers(5, 5)], (5, 3)),
    "transposed_graph": Case(lambda w: graph(w).T, [numbers(9)], (6, 3)),
    "transposed_scaled": Case(lambda s, w: (s * graph(w)).T, [decays(), numbers(9)], (6, 3)),
    "graph_plus_dense": Case(
        lambda w, m: graph(w) + Dense(m, dim=-2), [numbers(9), numbers(6, 6) / 2], (6, 3)
    ),
    "graph_plus_diagonal": Case(
        lambda w, d: graph(w) + Diagonal(d), [numbers(9), decays(6, 3)], (6, 3)
    ),
    "graph_plus_identity": Case(
        lambda w, a: graph(w) + ScaledIdentity(a), [numbers(9), decays()], (6, 3)
    ),
    "graph_plus_dense_on_columns": Case(
        lambda w, m: graph(w) + Dense(m), [numbers(9), numbers(3, 3)], (6, 3)
    ),
    "laplacian": Case(
        lambda w, a: Scaled(symmetric_graph(w) + ScaledIdentity(-1.0), a),
        [numbers(6, low=0.1, high=0.3), -decays()],
        (6, 3),
    ),
    "dense_minus_identity": Case(
        lambda m, a: Dense(m) - ScaledIdentity(a), [numbers(5, 5), -decays()], (2, 5)
    ),
    "diagonal_plus_identity": Case(
        lambda d: ScaledIdentity(-0.1) + Diagonal(d) + ScaledIdentity(-0.2), [decays(6, 3)], (6, 3)
    ),
    "scaled_dense_plus_identity": Case(
        lambda s, m: s * (ScaledIdentity(-0.3) + Dense(m)), [-decays(), numbers(5, 5)], (2, 5)
    ),
    "banded": Case(banded, [numbers(3, 5)], (2, 5)),
    "banded_on_rows": Case(partial(banded, dim=-2), [numbers(3, 5)], (5, 3)),
    "banded_without_a_main_diagonal": Case(
        lambda d: Banded(d, (-2, 1), dim=-2), [numbers(2, 5)], (2, 5, 3)
    ),
    "banded_symmetric": Case(symmetric_banded, [decays(5), numbers(4)], (2, 5)),
    "transposed_banded": Case(lambda d: banded(d, dim=-2).T, [numbers(3, 5)], (5, 3)),
    "scaled_banded": Case(lambda s, d: Scaled(banded(d), s), [decays(), numbers(3, 5)], (2, 5)),
    "banded_plus_identity": Case(
        lambda d, a: banded(d) + ScaledIdentity(a), [numbers(3, 5), decays()], (3, 5)
    ),
    "blocks": Case(BlockDiagonal, [numbers(6, 3, 3)], (6, 3)),
    "blocks_on_rows": Case(partial(BlockDiagonal, dim=-2), [numbers(3, 4, 4)], (2, 4, 3)),
    "blocks_that_broadcast": Case(BlockDiagonal, [numbers(2, 1, 3, 3)], (2, 4, 3)),
    "blocks_of_two_dimensions": Case(
        partial(BlockDiagonal, dim=(-3, -1)), [numbers(2, 6, 6) / 2], (3, 2, 2)
    ),
    "block": Case(BlockDiagonal, [numbers(4, 4)], (3, 4)),
    "block_of_the_whole_state": Case(
        partial(BlockDiagonal, dim=(-2, -1)), [numbers(6, 6) / 2], (3, 2)
    ),
    "product_of_dense_and_graph": Case(
        lambda m, w: Dense(m, dim=-2) @ graph(w), [numbers(6, 6) / 2, numbers(9)], (6, 3)
    ),
    "product_on_two_dimensions": Case(
        lambda m, w: Dense(m) @ graph(w), [numbers(3, 3) / 2, numbers(9)], (6, 3)
    ),
    "diffusivity_of_each_column": Case(
        lambda d, m: Diagonal(d) @ Dense(m, dim=-2), [decays(3), numbers(5, 5)], (5, 3)
    ),
    "diffusivity_of_each_species": Case(
        lambda d, b: Diagonal(d) @ banded(b), [decays(2, 1), numbers(3, 5)], (2, 5)
    ),
    "product_with_a_varying_diagonal": Case(
        lambda d, m: (Diagonal(d) @ Dense(m)).T, [decays(5), numbers(5, 5)], (2, 5)
    ),
    "product_of_numbers_and_a_graph": Case(
        lambda a, d, w: ScaledIdentity(a) @ graph(w) @ Diagonal(d) - ScaledIdentity(0.5),
        [decays(), decays(3), numbers(9)], (6, 3)
    ),
    "graph_plus_blocks": Case(
        lambda w, b: graph(w) + BlockDiagonal(b), [numbers(9), numbers(6, 3, 3)], (6, 3)
    ),
    "stencil": Case(Circulant, [numbers(5)], (2, 6)),
    "stencil_on_rows_of_odd_number": Case(partial(Circulant, dim=-2), [numbers(3)], (7, 3)),
    "stencil_as_wide_as_the_grid": Case(Circulant, [numbers(5)], (5,)),
    "stencil_symmetric": Case(lambda h: Circulant(torch.cat([h, h[:1]])), [numbers(2)], (2, 6)),
    "stencil_of_numbers": Case(lambda: Circulant([0.3, -0.7, 0.1]), [], (2, 5)),
    "stencil_in_two_dimensions": Case(
        partial(Circulant, dim=(-2, -1)), [numbers(3, 3) / 4], (2, 4, 3)
    ),
    "stencil_on_dimensions_apart": Case(
        partial(Circulant, dim=(-3, -1)), [numbers(3, 3) / 4], (3, 2, 4)
    ),
    "stencil_in_three_dimensions": Case(
        partial(Circulant, dim=(-3, -2, -1)), [numbers(1, 3, 3) / 4], (2, 3, 4)
    ),
    "symbol": Case(of_symbol, [numbers(6) / 2, numbers(6) / 2], (2, 6)),
    "symbol_of_odd_size": Case(of_symbol, [numbers(5) / 2, numbers(5) / 2], (2, 5)),
    "symbol_real": Case(lambda s: Circulant.from_symbol(s + s.flip(0).roll(1)), [decays(6)], (6,)),
    "symbol_in_two_dimensions": Case(
        partial(of_symbol, dim=(-2, -1)), [numbers(4, 3) / 2, numbers(4, 3) / 2], (2, 4, 3)
    ),
    "symbol_of_numbers": Case(lambda: Circulant.from_symbol([0, -0.2, -0.9, -0.2]), [], (3, 4)),
    "stencil_transposed": Case(lambda s: Circulant(s).T, [numbers(5)], (2, 6)),
    "stencil_scaled": Case(lambda a, s: a * Circulant(s), [-decays(), numbers(3)], (2, 4)),
    "stencil_plus_identity": Case(
        lambda a, s: ScaledIdentity(a) + Circulant(s), [decays(), numbers(3)], (2, 4)
    ),
    "stencils_along_two_dimensions": Case(
        lambda a, b: Circulant(a, dim=-2) + Circulant(b), [numbers(3), numbers(5)], (2, 4, 6)
    ),
    "stencils_and_symbols_and_a_number": Case(
        lambda s, a, b: s * Circulant(a) + of_symbol(b, b) - ScaledIdentity(0.2),
        [decays(), numbers(3), numbers(6) / 4], (2, 6)
    ),
    "stencils_symmetric_of_two_dimensions_apart": Case(
        lambda h: Circulant(torch.cat([h, h[:1]]), dim=-3) + Circulant([0.2, -0.4, 0.2]),
        [numbers(2)], (4, 2, 3)
    ),
    "sines": Case(partial(SineCosine, kind="sine"), [decays(5)], (2, 5)),
    "cosines_on_rows": Case(partial(SineCosine, kind="cosine", dim=-2), [decays(6)], (6, 3)),
    "sines_on_one_of_two_dimensions_apart": Case(
        partial(SineCosine, kind=("sine", "cosine"), dim=(-3, -1)), [decays(3, 4)], (3, 2, 4)
    ),
    "cosines_in_three_dimensions": Case(
        partial(SineCosine, kind="cosine", dim=(-3, -2, -1)), [numbers(2, 3, 4)], (2, 3, 4)
    ),
    "sines_of_numbers": Case(lambda: SineCosine([-0.1, -0.4, -0.9], "sine"), [], (2, 3)),
    "sines_scaled_plus_identity": Case(
        lambda s, d, a: s * SineCosine(d, "sine") + ScaledIdentity(a),
        [-decays(), decays(5), decays()], (2, 5)
    ),
    "box_with_a_diffusivity_of_each_species": Case(
        lambda d, s: Diagonal(d) @ SineCosine(s, ("cosine", "sine"), dim=(-2, -1)),
        [-decays(2, 1, 1), decays(3, 4)], (2, 3, 4)
    ),
    "dissipative": Case(dissipative, [numbers(5, 5), numbers(5, 5)], (2, 5)),
    "dissipative_on_rows": Case(
        partial(dissipative, dim=-2), [numbers(5, 5), numbers(5, 2)], (2, 5, 3)
    ),
    "dissipative_symmetric": Case(symmetric_dissipative, [numbers(5, 5)], (2, 5)),
    "dissipative_of_low_rank": Case(
        dissipative, [numbers(7, 2), numbers(7, 2), numbers(7, 2)], (2, 7)
    ),
    "dissipative_of_low_rank_on_a_third_dimension": Case(
        partial(dissipative, dim=-3), [numbers(5, 1), numbers(5, 1), numbers(5, 2)], (5, 2, 3)
    ),
    "dissipative_of_a_rank_that_is_not_low": Case(
        dissipative, [numbers(4, 2), numbers(4, 2), numbers(4, 2)], (2, 4)
    ),
    "dissipative_of_low_rank_scaled_and_shifted": Case(
        lambda s, *t: s * dissipative(*t).T - ScaledIdentity(0.3),
        [-decays(), numbers(7, 2), numbers(7, 2), numbers(7, 2)], (2, 7)
    ),
    "dissipative_circulant": Case(
        DissipativeCirculant.from_tensors, [numbers(6), numbers(6)], (2, 6)
    ),
    "dissipative_circulant_symmetric": Case(
        DissipativeCirculant.from_tensors, [numbers(5)], (2, 5)
    ),
    "symbol_dissipative_in_two_dimensions": Case(
        partial(DissipativeCirculant.from_tensors, dim=(-3, -1), scale=0.5, conserve_mean=True),
        [numbers(4, 3), numbers(4, 3)], (4, 2, 3)
    ),
    "dissipative_circulant_plus_stencil": Case(
        lambda a, b, s: DissipativeCirculant.from_tensors(a, b).T + Circulant(s),
        [numbers(6), numbers(6), numbers(3)], (2, 6)
    ),
    "graph_dissipative": Case(dissipative_graph, [numbers(9, low=-2.0, high=0.0)], (6, 3)),
    "graph_dissipative_symmetric": Case(
        symmetric_diffusion, [numbers(6, low=0.1, high=0.4)], (6, 3)
    ),
    "graph_dissipative_transposed": Case(
        lambda w: (0.5 * dissipative_graph(w, -1)).T, [numbers(9, low=-2.0, high=0.0)], (2, 6)
    ),
    "stencil_plus_diagonal": Case(
        lambda d, s: Diagonal(d) + Circulant(s), [decays(4), numbers(3)], (2, 4)
    ),
}

SOLVERS = {
    "Direct": Direct(),
    "CG": CG(rtol=1e-13),
    "GMRES": GMRES(rtol=1e-13),
    "BiCGStab": BiCGStab(rtol=1e-13),
}


def fits(solver: str, case: Case) -> bool:
    """Whether a solver is meant for an operator."""
    operator = case.operator()
    if solver == "CG":
        return operator.symmetric()
    if solver == "Direct" and not operator.has_closed_inverse():
        dims = operator.dims
        return len(dims) == 1 and operator.to_coo(dims[0], case.shape[dims[0]]) is not None
    return True


def fitting_pairs() -> list[tuple[str, str]]:
    """The names of every operator with every solver that fits it."""
    return [
        (name, solver)
        for name, case in OPERATORS.items()
        for solver in SOLVERS
        if fits(solver, case)
    ]


def dense_matrix(
    operator: LinearOperator, shape: Sequence[int], dtype: torch.dtype = torch.float64
) -> Tensor:
    """The whole matrix of an operator on states of a shape, by its products with unit vectors."""
    size = torch.Size(shape).numel()
    units = torch.eye(size, dtype=dtype)
    return torch.stack([operator.mv(unit.view(shape)).reshape(size) for unit in units], dim=1)


def stepper_of(scheme, explicit, matrix, inverse=None, stats=None):
    """The Runge-Kutta method of a scheme, with a dense J and its LU unless told otherwise."""
    implicit = None if matrix is None else Dense(torch.as_tensor(matrix))

    def direct(c, scale):
        return Direct().invert(Shifted(implicit, c))

    return stepper_by(scheme, explicit, implicit, inverse or direct, stats or Stats())


def stepper_by(scheme, explicit, operator, inverse, stats):
    """The Runge-Kutta method of a scheme with its own way to solve."""
    def evaluate(t, u):
        return Evaluated(explicit(t, u), None)

    part = NoPart() if operator is None else LinearPart(Affine(operator), inverse, stats)
    return RungeKutta(scheme, None if explicit is None else evaluate, part, stats)


def accepted(stepper, times, step_size, u):
    """The equal steps from one output time to the next."""
    return loop(stepper, EqualSteps(steps_to_outputs(times, step_size, Clock(2.2e-16))), u)


def states(stepper, times, step_size, u):
    """The states after every step."""
    return [step.result.state.u for step in accepted(stepper, times, step_size, u)]


def double(values) -> Tensor:
    """Numbers as a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def times(*values: float) -> Tensor:
    """Output times in float64."""
    return double([float(value) for value in values])


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The order at which errors fall with the number of steps."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


class KnownSolution:
    """A solution in three components, its rate of change, and a term that couples them."""

    def solution(self, t: Tensor) -> Tensor:
        """The solution at a time, or at several."""
        return torch.stack([torch.sin(t), torch.cos(2 * t), torch.exp(-t / 2)], dim=-1)

    def rate(self, t: Tensor) -> Tensor:
        """Its derivative."""
        return torch.stack([torch.cos(t), -2 * torch.sin(2 * t), -torch.exp(-t / 2) / 2], dim=-1)

    def coupling(self, t: Tensor, u: Tensor) -> Tensor:
        """A nonlinear, time-dependent term."""
        x, y, z = u.unbind(-1)
        return torch.stack([y * z + torch.sin(t) * x, x * x - z, torch.sin(x * y)], dim=-1)
