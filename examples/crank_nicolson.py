"""What does a fully implicit step cost? Crank-Nicolson by Newton-Krylov, with its discrete adjoint.

Crank and Nicolson, https://doi.org/10.1017/S0305004100023197 (1947); Newton-Krylov methods: Knoll
and Keyes, https://doi.org/10.1016/j.jcp.2003.08.010 (2004).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, grad

from pyg_sinode.integrate.clock import Clock, plan
from pyg_sinode.integrate.explicit import ExplicitTerm, check_ends
from pyg_sinode.operators import LinearOperator, LinearSolveError, MatrixFree, ScaledIdentity
from pyg_sinode.solvers import GMRES


@dataclass
class NewtonStats:
    """What an integration did; the backward pass goes on filling it."""

    explicit_evaluations: int = 0  # of G, and of J u with it
    jvps: int = 0
    vjps: int = 0  # in the forward pass one for each Newton iteration, which records its JVPs
    linear_solves: int = 0
    linear_iterations: int = 0
    newton_iterations: int = 0


class NewtonError(RuntimeError):
    """A step not solved: attributes time (at its start), step, iterations, residual, state."""

    def __init__(self, message: str, *found: Any) -> None:
        super().__init__(message)
        self.time, self.step, self.iterations, self.residual, self.state = found


class Problem:
    """The equation du/dt = f(t, u) = G(t, u) + J u, and how its steps are solved."""

    def __init__(self, explicit: Callable[..., Tensor] | None, implicit: LinearOperator | None,
                 u: Tensor, args: tuple[Any, ...], dim: int | Sequence[int] | None,
                 rtol: float | None, atol: float, max_newton: int, restart: int) -> None:
        self.term = ExplicitTerm(explicit or (lambda t, u: torch.zeros_like(u)), args)
        self.implicit = implicit or ScaledIdentity(0.0)
        self.implicit.check(u)
        self.tensors = [*self.term.tensors, *self.implicit.tensors]
        self.dims = tuple(range(-u.dim(), 0)) if dim is None else dim
        self.rtol = rtol or (1e-10 if u.dtype == torch.float64 else 1e-5)
        self.atol, self.max_newton, self.restart = atol, max_newton, restart
        self.floor, self.stats = 16 * torch.finfo(u.dtype).eps, NewtonStats()

    def z(self, t: float, c: float, u: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """z(u) = u - c f(t, u), and the copies of u and of the tensors where its graph ends."""
        self.stats.explicit_evaluations += 1
        split = len(self.term.tensors)
        copies = self.term.stand_ins(tensors[:split], self.term.tensors)
        f, u = self.term.with_graph(self.term.function.on(copies), t, u)
        own = [p.detach().requires_grad_(p.requires_grad) for p in tensors[split:]]
        with torch.enable_grad():
            return [u - c * (f + self.implicit.with_tensors(own).mv(u)), u, *copies, *own]

    def solve(self, y: Tensor, x: Tensor, b: Tensor, rtol: float, count: str) -> Tensor:
        """The solution s of (dy/dx)^T s = b, by products with the recorded graph of y(x)."""
        def vjp(v: Tensor) -> Tensor:
            setattr(self.stats, count, getattr(self.stats, count) + 1)
            return grad(y, x, v, retain_graph=True)[0]
        s, n, _ = GMRES(rtol, restart=self.restart).invert(MatrixFree(vjp, dim=self.dims)).solve(b)
        self.stats.linear_solves += 1
        self.stats.linear_iterations += 0 if n is None else int(n.max())
        return s


class Implicit(Function):
    """The solution u of z(u) = b by Newton's method; for the gradient it keeps nothing but u."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, where: tuple[int, float, float], u: Tensor, b: Tensor,
                *tensors: Tensor) -> Tensor:
        (step, t, h), stats, best = where, problem.stats, (float("inf"), u)
        for k in range(problem.max_newton + 1):
            z, x, *_ = problem.z(t + h, h / 2, u, tensors)
            r = b - z.detach()
            norm, of_u, of_b = (torch.linalg.vector_norm(a, dim=problem.dims, keepdim=True)
                                for a in (r, u, b))
            bound = torch.maximum(problem.rtol * of_u, problem.floor * of_b).clamp_min(problem.atol)
            unsolved = ~(norm <= bound)
            if not bool(unsolved.any()):
                break
            best = min(best, (float(norm.max()), u), key=lambda pair: pair[0])
            try:
                if k == problem.max_newton:
                    raise LinearSolveError("no iteration is left.")
                v = torch.zeros_like(z, requires_grad=True)
                (vjp,) = grad(z, x, v, create_graph=True)  # linear in v: its own VJP is the JVP
                u = u + problem.solve(vjp, v, torch.where(unsolved, r, 0.0), 1e-3, "jvps")
            except LinearSolveError as error:
                raise NewtonError(
                    f"Newton's method failed in step {step}, at time {t:.6g} (expected a residual "
                    f"within {bound.max():.1e}, got {best[0]:.1e}): {error} Take a smaller "
                    "step_size, or a larger max_newton or rtol.", t, step, k, *best) from error
            stats.newton_iterations, stats.vjps = stats.newton_iterations + 1, stats.vjps + 1
        ctx.problem, ctx.t, ctx.c = problem, t + h, h / 2
        ctx.save_for_backward(u, *tensors)
        return u

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("Expected no create_graph: a second derivative would be wrong.")
        problem, (u, *tensors) = ctx.problem, ctx.saved_tensors
        z, u, *copies = problem.z(ctx.t, ctx.c, u, tensors)
        check_ends(z, [u, *copies], ctx.t)
        to_b = problem.solve(z, u, grads[0], problem.rtol, "vjps")
        problem.stats.vjps += 1
        to_p = iter(grad(z, [*(p for p in copies if p.requires_grad), u], -to_b, allow_unused=True))
        return (None, None, None, to_b, *(next(to_p) if p.requires_grad else None for p in copies))


def crank_nicolson_odeint(
    explicit: Callable[..., Tensor] | None, implicit: LinearOperator | None, u0: Tensor, t: Tensor,
    *, step_size: float, args: tuple[Any, ...] = (), dim: int | Sequence[int] | None = None,
    rtol: float | None = None, atol: float = 0.0, max_newton: int = 20, restart: int = 30,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, NewtonStats]:
    """Integrates by u_{n+1} = u_n + h/2 (f(t_n, u_n) + f(t_{n+1}, u_{n+1})), f = G(t, u) + J u.

    As imex_odeint, for a deterministic G. Here dim are the dimensions that f mixes, from the end
    (default: all); each index of the others is a system of its own, solved where its residual is
    at most max(rtol |u|, atol), or rounding. The transposed systems have rtol too, and all have
    restart, the iterations between restarts of GMRES, of which a stiff f may need more.
    """
    if not (step_size > 0 and len(set(t.tolist())) == len(t)):
        raise ValueError(f"Expected step_size > 0 and no time twice (got {step_size}, {t}).")
    problem = Problem(explicit, implicit, u0, args, dim, rtol, atol, max_newton, restart)
    u, b, outputs, n, last = u0, u0, [u0], 0, 0.0
    for start, h, steps in plan(t.tolist(), step_size, Clock(torch.finfo(t.dtype).eps)):
        for k in range(steps):
            if abs(h) > 2 * abs(last):  # at the start, or else b's residual would grow with h
                problem.stats.explicit_evaluations += 1
                f = problem.term.plain(start + k * h, u).value + problem.implicit.mv(u)
                b = u + h / 2 * f
            else:  # u - b is h/2 f of the step before
                b = u + h / last * (u - b)
            u = Implicit.apply(problem, (n, start + k * h, h), u.detach(), b, *problem.tensors)
            n, last = n + 1, h
        outputs.append(u)
    return (torch.stack(outputs), problem.stats) if return_stats else torch.stack(outputs)
