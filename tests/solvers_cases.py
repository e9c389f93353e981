"""What do the tests of solvers share?"""

import pytest
import torch

from pyg_sinode.operators import (
    Graph,
    MatrixFree,
    ScaledIdentity,
    Shifted,
)
from pyg_sinode.solvers import CG, GMRES, BiCGStab

F32, F64 = torch.float32, torch.float64
RTOL = {F32: 1e-5, F64: 1e-10}


def randn(*shape, dtype=F64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=F64, generator=generator).to(dtype)


N = 12


def directed(dtype=F64, n=N):
    """A directed, weighted graph with a duplicate edge, a self-loop and an isolated last node."""
    generator = torch.Generator().manual_seed(1)
    ends = torch.randint(0, n - 1, (2, 4 * n), generator=generator)
    edge_index = torch.cat([ends, ends[:, :1], torch.tensor([[3], [3]])], dim=1)
    weight = 0.5 * randn(edge_index.size(1), seed=2, dtype=dtype)
    return Graph(edge_index, weight, n)


def normalised(n, dtype=F64, seed=3):
    """The normalised adjacency of a ring with chords, as edge_index and weight."""
    generator = torch.Generator().manual_seed(seed)
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    chords = torch.randint(0, n, (2, n), generator=generator)
    a = torch.zeros(n, n, dtype=F64)
    for row, col in torch.cat([ring, chords], dim=1).t().tolist():
        a[row, col] = a[col, row] = 1.0
    a += torch.eye(n, dtype=F64)
    root = a.sum(dim=1).rsqrt()
    edge_index = a.nonzero().t()
    return edge_index, (root[edge_index[0]] * root[edge_index[1]]).to(dtype)


def stochastic(dtype=F64, n=N, seed=8):
    """A directed graph whose rows sum to one: its eigenvalues lie in the unit disc."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, n, (2, 5 * n), generator=generator)
    weight = randn(5 * n, seed=seed).exp()
    total = torch.zeros(n, dtype=F64).index_add(0, edge_index[1], weight)
    weight = (weight / total[edge_index[1]]).to(dtype)
    return Graph(edge_index, weight, n, largest=torch.inf, radius=1.0)


def laplacian(c, n=N, dtype=F64):
    """I - c (A_hat - I), symmetric and positive definite for c > 0."""
    graph = Graph(*normalised(n, dtype), n, largest=1.0)
    return Shifted(graph + ScaledIdentity(-1.0), c)


def wave(dtype, skew=0.0):
    """Diffusion, and transport if skew, on a periodic grid that mixes two dimensions."""
    def rate(u):
        total = -4.0 * u
        for dim in (-1, -2):
            total = total + (1 + skew) * u.roll(1, dim) + (1 - skew) * u.roll(-1, dim)
        return total

    return Shifted(MatrixFree(rate, dim=(-2, -1)), 0.3)


def spd(n, dtype, condition=20.0, seed=4):
    q = torch.linalg.qr(randn(n, n, seed=seed)).Q
    values = torch.logspace(0, torch.log10(torch.tensor(condition)).item(), n, dtype=F64)
    matrix = q * values @ q.t()
    return (0.5 * (matrix + matrix.t())).to(dtype)


KRYLOV = [CG(), GMRES(), GMRES(restart=4), BiCGStab()]
dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
both_sides = pytest.mark.parametrize("transposed", [False, True], ids=["A", "A^T"])
krylov = pytest.mark.parametrize("solver", KRYLOV, ids=repr)


def as_matrix(operator, shape):
    """The whole map as one matrix in float64, with no notion of dims."""
    size = torch.Size(shape).numel()
    basis = torch.eye(size, dtype=F64).view(size, *shape)
    return torch.stack([operator.mv(e).reshape(-1) for e in basis], dim=1)


def norms(a, dims):
    a = a.double()
    return torch.linalg.vector_norm(a, dim=dims, keepdim=True) if dims else a.abs()
