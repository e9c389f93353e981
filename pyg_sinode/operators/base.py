"""What is a linear operator, and how are operators added, scaled, multiplied and transposed?"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..precision import without_autocast
from ..sparse import take_beta_notice
from ..transforms import forward_mode_error, has_tangent
from .checks import (
    along,
    as_float,
    check_number,
    check_real,
    check_tensors,
    detached,
    foreign_leaf,
    lost_gradient,
)
from .flat import diagonal_blocks
from .functions import (
    DiagonalFunctions,
    Fourier,
    Functions,
    MatrixFunctions,
    OfNumbers,
    Transform,
)
from .matrix_functions import functions_of_matrix
from .polynomials import Bound, PolynomialFunctions
from .results import Entries, LinearSolveError, dense_matrix, equals_transpose
from .user_function import no_functions, only

Self = TypeVar("Self", bound="LinearOperator")
_RENAMED = {"entries": "to_coo", "pointwise": "as_diagonal"}


class LinearOperator:
    r"""Base class of the real linear operators :math:`u \mapsto J u` along :obj:`dims` of a state.

    Each index of the other dimensions of :math:`u` is a right-hand side of its own. A subclass
    implements :meth:`mv` and :attr:`tensors`; :meth:`transpose` is by autograd unless overridden.
    The other methods report what is known (a closed inverse, the entries); override those you can.

    Attributes:
        dims (tuple of int): The dimensions that J mixes, negative; empty if it acts pointwise.
        tensors (tuple of Tensor): The tensors that J depends on; they receive gradients.
    """

    dims: tuple[int, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    generation: int = 0  # how often reset() was called

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Accepts the former names of methods, for one release."""
        super().__init_subclass__(**kwargs)
        _with_old_names(cls)

    def mv(self, u: Tensor) -> Tensor:
        """The product J u, differentiable in u and in :attr:`tensors`."""
        raise NotImplementedError

    def add_product(self, out: Tensor, u: Tensor, alpha: float) -> None:
        """Adds alpha J u to ``out`` in place, without a gradient; used by iterative solvers."""
        out.add_(self.mv(u), alpha=alpha)

    @without_autocast
    def vjp(self, u: Tensor, w: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of <w, J u> with respect to the ``wanted`` ones of :attr:`tensors`."""
        own = [p.detach().requires_grad_(want)
               for p, want in zip(self.tensors, wanted, strict=True)]
        chosen = [p for p in own if p.requires_grad]
        if not chosen:
            return [None] * len(own)
        with torch.enable_grad():
            product = self.with_tensors(own).mv(u.detach())
        if not product.requires_grad:  # a function that does not use its tensors
            return [None] * len(own)
        refuse_foreign(self, product, own)
        found = iter(torch.autograd.grad(product, chosen, w, allow_unused=True))
        return [next(found) if p.requires_grad else None for p in own]

    def transpose(self) -> LinearOperator:
        """The operator of the transposed matrix, which shares the tensors."""
        return Transposed(self)

    @property
    def T(self) -> LinearOperator:
        """The transposed operator."""
        return self.transpose()

    def with_tensors(self: Self, tensors: Sequence[Tensor]) -> Self:
        """A copy of the operator with other ``tensors``, in the order of :attr:`tensors`."""
        other = copy.copy(self)
        other.tensors = tuple(tensors)
        return other

    def check(self, u: Tensor) -> None:
        """Raises a ValueError or TypeError if the operator does not fit a state u."""
        check_tensors(type(self).__name__, self.tensors, u)

    def check_named(self, u: Tensor) -> None:
        """Refuses a J u that depends on a tensor missing in :attr:`tensors`, which has no gradient.

        Raises:
            ValueError: if there is such a tensor that requires a gradient.
        """
        if self.is_foreign():  # the package's own operators list theirs; MatrixFree overrides this
            self._check_product(u)
        for part in self.parts:
            part.check_named(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        """The operators that this one is composed of; empty if there are none."""
        return ()

    def is_foreign(self) -> bool:
        """Whether the class is defined outside this package, so that its product is checked."""
        return type(self).__module__.partition(".")[0] != __name__.partition(".")[0]

    def _check_product(self, u: Tensor) -> None:
        own = [p.detach().requires_grad_(p.requires_grad) for p in self.tensors]
        try:
            copied = self.with_tensors(own)
        except AttributeError as error:
            raise TypeError(f"Expected {type(self).__name__} to put other tensors in place of its "
                            f"own (got: {error}); give it the method with_tensors.") from error
        if type(copied) is not type(self):
            raise TypeError(f"Expected {type(self).__name__}.with_tensors to give another "
                            f"{type(self).__name__} (got {type(copied).__name__}); start from "
                            "copy.copy(self).")
        with torch.enable_grad():
            product = copied.mv(u.detach())
        refuse_foreign(self, product, own)
        if has_tangent(product):
            raise forward_mode_error(f"the product of {type(self).__name__}")

    def symmetric(self) -> bool:
        """Whether J is known to equal its transpose, by construction or by a check."""
        return False

    def largest_eigenvalue(self) -> float:
        """An upper bound on the eigenvalues of a symmetric J; infinite if none is known."""
        return largest_of(self.gershgorin())

    def disc(self) -> tuple[float, float] | None:
        """Centre (real) and radius of a disc that holds all eigenvalues; None if none is known."""
        d = self.as_diagonal()
        return None if d is None or _is_array(d) else (as_float(d), 0.0)

    def gershgorin(self) -> tuple[Tensor | float, Tensor | float] | None:
        """The diagonal of J and each row's sum of off-diagonal magnitudes; None if unknown.

        Both broadcast against the state. The second is an upper bound where entries cancel.
        """
        return None

    def size_along(self, dim: int) -> int | None:
        """The length that a state must have along ``dim``; None if J does not determine it."""
        return None

    def as_diagonal(self) -> Tensor | float | None:
        """The d of a pointwise operator J u = d * u; None if J is not pointwise."""
        return None

    def diagonal(self, u: Tensor) -> Tensor | None:
        """The diagonal of J, broadcastable against u; None if unknown."""
        return None

    def to_coo(self, dim: int, size: int) -> Entries | None:
        """The entries of J as one matrix along ``dim``, of length ``size``; None if unknown."""
        return None

    def blocks(self, u: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        """The diagonal blocks of J along ``dims``, one for each other index; None if unknown.

        They are a tensor of shape ``(*, n, n)``, where ``*`` broadcasts against the dimensions of
        u other than ``dims``.
        """
        if not set(dims).isdisjoint(self.dims):
            entries = self.to_coo(dims[0], u.size(dims[0])) if dims == self.dims else None
            return None if entries is None else dense_matrix(entries, u.size(dims[0]), u)
        d = self.diagonal(u)
        return None if d is None else diagonal_blocks(d, u, dims)

    def has_closed_inverse(self) -> bool:
        """Whether :meth:`resolvent` gives the inverse of I - cJ without iteration."""
        return self.as_diagonal() is not None

    def resolvent(self, c: float) -> LinearOperator | None:
        """The closed-form inverse of I - cJ for a number c; None if there is none."""
        d = self.as_diagonal()
        return None if d is None else Reciprocal(1.0 - c * d)

    def inverse(self) -> LinearOperator | None:
        """The closed-form inverse of this operator itself; None if there is none."""
        return None

    def function(self, f: OfNumbers) -> FunctionOf:
        r"""The operator f(J) for a function f of numbers; that of a resolvent is 1 / (1 - c z).

        Operators with known eigenvalues (pointwise ones, convolutions, those of boxes) give it to
        rounding, :class:`Dense` by its eigenvectors; others, whose eigenvalues lie in a known disc,
        by a polynomial of J.

        Args:
            f (callable): Maps tensors of real or complex numbers in double precision to values of
                the same shape; :math:`f(\bar z)` must be the conjugate of f(z). If it has a method
                ``of_matrix``, that gives the function of a dense matrix.

        Raises:
            TypeError: if f cannot be called.
        """
        if not callable(f):
            raise TypeError(f"Expected a function of a tensor of numbers (got {type(f).__name__}).")
        return FunctionOf(self, f)

    def has_functions(self, like: Tensor) -> bool:
        """Whether functions of J can be computed for a state like ``like``."""
        return (self.diagonalized(like) is not None or self.matrix() is not None
                or self.disc() is not None or self.gershgorin() is not None)

    def functions(self, f: Any, like: Tensor, bound: Bound | None = None) -> Functions | None:
        """Several functions of J for a state like ``like``; None if they cannot be computed.

        Args:
            f (callable): Maps numbers to the values of the functions, along a new first dimension.
            like (Tensor): The state.
            bound (Bound, optional): The disc for polynomials of J, if known. (default: :obj:`None`)
        """
        if not like.numel():
            return DiagonalFunctions(f(like.new_zeros((), dtype=torch.float64)), like)
        found = self.diagonalized(like)
        if found is not None:
            return DiagonalFunctions(f(found[0]), like, found[1])
        matrix = self.matrix()
        if matrix is not None:
            return MatrixFunctions(functions_of_matrix(matrix, f), self.dims[0])
        bound = Bound(self) if bound is None else bound
        return None if bound.disc is None else PolynomialFunctions(self, f, bound, like)

    def diagonalized(self, like: Tensor) -> tuple[Tensor, Transform | None] | None:
        """The eigenvalues of J and the transform in which it multiplies by them; None if unknown.

        Args:
            like (Tensor): A state.

        Returns:
            The eigenvalues in double precision, differentiable, broadcastable against transformed
            states; and the transform, None if J multiplies the state itself.
        """
        d = self.as_diagonal()
        if d is not None:  # which has no gradient
            return self.mv(like.new_ones(d.shape if isinstance(d, Tensor) else ())).double(), None
        full = self._wide_spectrum(like, self.dims) if self.dims else None
        if full is None:
            return None
        last = self.dims[-1]
        if full.dim() >= -last:
            full = full.narrow(last, 0, min(full.size(last), like.size(last) // 2 + 1))
        return full, Fourier(self.dims, [like.size(d) for d in self.dims])

    def _wide_spectrum(self, like: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        wide = self.with_tensors([p.double() for p in self.tensors])
        return wide.spectrum({d: like.size(d) for d in dims})

    def matrix(self) -> Tensor | None:
        """The differentiable matrix of an operator along one dimension; None if not at hand."""
        return None

    @property
    def is_uniform(self) -> bool:
        """Whether all right-hand sides have the same matrix along dims; False if not known."""
        return False

    def is_convolution(self) -> bool:
        """Whether J is a convolution on a periodic grid along its dims."""
        return False

    def spectrum(self, sizes: dict[int, int]) -> Tensor | None:
        """The eigenvalues of a convolution, broadcastable against a state's Fourier transform.

        Args:
            sizes (dict): The length of each dimension.
        """
        return None

    def resolvent_of(self, whole: LinearOperator, c: float) -> LinearOperator | None:
        """The closed-form inverse of I - c ``whole``, where this is one of its convolutions."""
        return None

    def reset(self) -> None:
        """Discards the cached factorizations of the operator: the next solve makes new ones."""
        self.generation = self.generation + 1

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum([self, other])

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return Sum([self, Scaled(other, -1.0)])

    def __mul__(self, factor: float | Tensor) -> LinearOperator:
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Tensor) -> LinearOperator:
        if not isinstance(divisor, Tensor):
            check_number(divisor, "the divisor of an operator")
            if divisor == 0:
                raise ValueError("Expected a divisor of an operator other than 0 (got 0).")
        elif divisor.numel() == 1 and not float(divisor.detach()):
            raise ValueError("Expected a divisor of an operator other than 0 (got 0).")
        return Scaled(self, 1.0 / divisor)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return Product([self, other])

    def __neg__(self) -> LinearOperator:
        return Scaled(self, -1.0)

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(t.shape)) for t in self.tensors)
        return f"{type(self).__name__}({shapes})"


def _with_old_names(cls: type[LinearOperator]) -> None:
    for old, new in _RENAMED.items():
        if new in vars(cls):
            if old not in vars(cls):
                setattr(cls, old, _renamed(old, new, vars(cls)[new]))
        elif old in vars(cls):
            warnings.warn(f"{cls.__name__}.{old} is now {new}.", DeprecationWarning, stacklevel=3)
            setattr(cls, new, vars(cls)[old])


def _renamed(old: str, new: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def by_old_name(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"{old} of an operator is now {new}.", DeprecationWarning, stacklevel=2)
        return method(*args, **kwargs)
    return by_old_name


_with_old_names(LinearOperator)


def refuse_foreign(operator: LinearOperator, product: Tensor, named: Sequence[Tensor]) -> None:
    """Refuses a product that depends on a leaf tensor which the operator does not list."""
    lost = foreign_leaf(product, named)
    if lost is not None:
        raise lost_gradient(
            f"the product of {type(operator).__name__} to use only its own tensors", lost,
            "hand it in, as MatrixFree(fn, tensor) with fn(u, tensor), use a torch.nn.Module that "
            "holds it, or name it in the operator's tensors and take it from there.")


def largest_of(bounds: tuple[Tensor | float, Tensor | float] | None) -> float:
    """The largest right end of the Gershgorin discs; infinite if they are not known."""
    if bounds is None:
        return math.inf
    d, others = bounds
    ends = d + others
    if not isinstance(ends, Tensor):
        return float(ends)
    if not ends.numel():
        return 0.0
    if not isinstance(others, Tensor) and others == 0.0:
        return float(ends.max())
    # Enlarged, so that it is an upper bound even if the sum was rounded down.
    return float((ends + rounding_of(d) + rounding_of(others)).max())


def rounding_of(x: Tensor | float) -> Tensor | float:
    """The size of a rounding error in numbers x."""
    if isinstance(x, Tensor):
        return torch.finfo(x.dtype).eps * x.abs()
    return 2.3e-16 * abs(x)


class FunctionOf(LinearOperator):
    """A function f(J) of an operator, computed anew for each product.

    Args:
        operator (LinearOperator): The operator J.
        f (callable): The function, of tensors of numbers.
    """

    def __init__(self, operator: LinearOperator, f: OfNumbers) -> None:
        self.operator, self.f, self.dims = operator, f, operator.dims

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.operator.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> FunctionOf:
        return FunctionOf(self.operator.with_tensors(tensors), self.f)

    @without_autocast
    def mv(self, u: Tensor) -> Tensor:
        functions = self.operator.functions(only(self.f), u)
        if functions is None:
            raise no_functions(self.operator)
        sums: list[Tensor | None] = [None]
        functions.add(sums, functions.enter(u), [(0, 0)])
        assert sums[0] is not None
        return functions.leave(sums[0])

    def transpose(self) -> FunctionOf:
        return FunctionOf(self.operator.T, self.f)

    def diagonalized(self, like: Tensor) -> tuple[Tensor, Transform | None] | None:
        inner = self.operator.diagonalized(like)
        return None if inner is None else (only(self.f)(inner[0])[0], inner[1])

    def matrix(self) -> Tensor | None:
        inner = self.operator.matrix()
        return None if inner is None else functions_of_matrix(inner, only(self.f))[0]

    def check(self, u: Tensor) -> None:
        self.operator.check(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return (self.operator,)

    def symmetric(self) -> bool:
        return self.operator.symmetric()

    def size_along(self, dim: int) -> int | None:
        return self.operator.size_along(dim)

    def __repr__(self) -> str:
        return f"f({self.operator!r})"


class Transposed(LinearOperator):
    """The transpose of an operator, with products by autograd.

    Args:
        operator (LinearOperator): The operator to transpose.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.operator, self.dims = operator, operator.dims

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.operator.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> Transposed:
        other = copy.copy(self)  # keeps a subclass
        other.operator = self.operator.with_tensors(tensors)
        return other

    def vjp(self, u: Tensor, w: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        return self.operator.vjp(w, u, wanted)  # <w, J^T u> = <u, J w>

    @without_autocast
    def mv(self, u: Tensor) -> Tensor:
        # J is linear, so that J^T u is the vector-Jacobian product of J at any point, here zero.
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            zero = torch.zeros_like(u, requires_grad=True)
            product = self.operator.mv(zero)
            if not product.requires_grad:  # a function that does not use its argument
                return torch.zeros_like(u)
            (result,) = torch.autograd.grad(
                product, zero, u, create_graph=graph, materialize_grads=True)
        return result

    def transpose(self) -> LinearOperator:
        return self.operator

    def check(self, u: Tensor) -> None:
        self.operator.check(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return (self.operator,)

    def symmetric(self) -> bool:
        return self.operator.symmetric()

    def disc(self) -> tuple[float, float] | None:
        return self.operator.disc()

    def largest_eigenvalue(self) -> float:
        return self.operator.largest_eigenvalue()

    def gershgorin(self) -> tuple[Tensor | float, Tensor | float] | None:
        return self.operator.gershgorin() if self.operator.symmetric() else None

    def size_along(self, dim: int) -> int | None:
        return self.operator.size_along(dim)

    def diagonal(self, u: Tensor) -> Tensor | None:
        return self.operator.diagonal(u)

    def to_coo(self, dim: int, size: int) -> Entries | None:
        e = self.operator.to_coo(dim, size)
        return None if e is None else Entries(e.col, e.row, e.value)

    def blocks(self, u: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        blocks = self.operator.blocks(u, dims)
        return None if blocks is None else blocks.mT

    def matrix(self) -> Tensor | None:
        matrix = self.operator.matrix()
        return None if matrix is None else matrix.mT

    def has_functions(self, like: Tensor) -> bool:
        return self.operator.has_functions(like)

    def functions(self, f: Any, like: Tensor, bound: Bound | None = None) -> Functions | None:
        found = self.operator.functions(f, like)
        return None if found is None else found.transposed()


class Scaled(LinearOperator):
    r"""A multiple :math:`s J` of an operator.

    Args:
        operator (LinearOperator): The operator J.
        factor (float or Tensor): The number s; a 0-dim tensor receives gradients.
    """

    def __init__(self, operator: LinearOperator, factor: float | Tensor) -> None:
        if isinstance(factor, Tensor):
            check_real(factor, "factor")
            if factor.dim() != 0:
                raise ValueError(f"Expected a number or a 0-dim tensor as the factor of an "
                                 f"operator (got shape {tuple(factor.shape)}); use a Diagonal.")
        else:
            check_number(factor, "the factor of an operator")
        self.operator, self.factor, self.dims = operator, factor, operator.dims

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        own = (self.factor,) if isinstance(self.factor, Tensor) else ()
        return own + self.operator.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> Scaled:
        other = copy.copy(self)
        if isinstance(self.factor, Tensor):
            other.factor, tensors = tensors[0], tensors[1:]
        other.operator = self.operator.with_tensors(tensors)
        return other

    def mv(self, u: Tensor) -> Tensor:
        return self.operator.mv(u) * self.factor

    def transpose(self) -> Scaled:
        return Scaled(self.operator.T, self.factor)

    def check(self, u: Tensor) -> None:
        check_tensors(type(self).__name__, self.tensors, u)
        self.operator.check(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return (self.operator,)

    def symmetric(self) -> bool:
        return self.operator.symmetric()

    def disc(self) -> tuple[float, float] | None:
        own, s = self.operator.disc(), as_float(self.factor)
        return None if own is None else (s * own[0], abs(s) * own[1])

    def largest_eigenvalue(self) -> float:
        s = as_float(self.factor)
        if s > 0:
            return s * self.operator.largest_eigenvalue()
        return 0.0 if s == 0 else largest_of(self.gershgorin())

    def gershgorin(self) -> tuple[Tensor | float, Tensor | float] | None:
        bounds, s = self.operator.gershgorin(), as_float(self.factor)
        return None if bounds is None else (s * bounds[0], abs(s) * bounds[1])

    def size_along(self, dim: int) -> int | None:
        return self.operator.size_along(dim)

    def as_diagonal(self) -> Tensor | float | None:
        d = self.operator.as_diagonal()
        return None if d is None else d * detached(self.factor)

    def diagonal(self, u: Tensor) -> Tensor | None:
        d = self.operator.diagonal(u)
        return None if d is None else d * detached(self.factor)

    def to_coo(self, dim: int, size: int) -> Entries | None:
        e = self.operator.to_coo(dim, size)
        return None if e is None else Entries(e.row, e.col, e.value * detached(self.factor))

    def blocks(self, u: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        blocks = self.operator.blocks(u, dims)
        return None if blocks is None else blocks * detached(self.factor)

    @property
    def is_uniform(self) -> bool:
        return self.operator.is_uniform

    def has_closed_inverse(self) -> bool:
        return self.operator.has_closed_inverse()

    def resolvent(self, c: float) -> LinearOperator | None:
        return self.operator.resolvent(c * as_float(self.factor))

    def is_convolution(self) -> bool:
        return self.operator.is_convolution()

    def spectrum(self, sizes: dict[int, int]) -> Tensor | None:
        inner = self.operator.spectrum(sizes)
        return None if inner is None else _combined(torch.mul, inner, self.factor)

    def diagonalized(self, like: Tensor) -> tuple[Tensor, Transform | None] | None:
        inner = self.operator.diagonalized(like)
        return None if inner is None else (
            _combined(torch.mul, inner[0], self.factor), inner[1])

    def matrix(self) -> Tensor | None:
        inner = self.operator.matrix()
        return None if inner is None else inner * self.factor

    def resolvent_of(self, whole: LinearOperator, c: float) -> LinearOperator | None:
        return self.operator.resolvent_of(whole, c)


class Sum(LinearOperator):
    r"""The sum :math:`J_1 + J_2 + \ldots` of operators.

    Args:
        terms (sequence of LinearOperator): The operators to add; sums among them are flattened.
        disc (tuple of float, optional): Centre (real) and radius of a disc that is known to hold
            all eigenvalues. (default: :obj:`None`)
    """

    known_disc: tuple[float, float] | None = None  # for sums pickled by an earlier version

    def __init__(self, terms: Sequence[LinearOperator],
                 disc: tuple[float, float] | None = None) -> None:
        flat: list[LinearOperator] = []
        if not terms:
            raise ValueError("Expected at least one operator in a sum (got none); use "
                             "ScaledIdentity(0.0).")
        for term in terms:
            if not isinstance(term, LinearOperator):
                raise TypeError(f"Expected linear operators in a sum (got {type(term).__name__}); "
                                "write ScaledIdentity(alpha) for a multiple of the identity.")
            flat.extend(term.terms if isinstance(term, Sum) else [term])
        self.terms: tuple[LinearOperator, ...] = tuple(flat)
        self.dims = tuple(sorted({d for term in flat for d in term.dims}))
        self.known_disc = disc

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(t for term in self.terms for t in term.tensors)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Sum:
        other = copy.copy(self)
        other.terms = tuple(_with_all(self.terms, tensors))
        return other

    def mv(self, u: Tensor) -> Tensor:
        total = self.terms[0].mv(u)
        for term in self.terms[1:]:
            total = total + term.mv(u)
        return total

    def vjp(self, u: Tensor, w: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for term in self.terms:
            start = len(found)
            found += term.vjp(u, w, wanted[start:start + len(term.tensors)])
        return found

    def transpose(self) -> Sum:
        return Sum([term.T for term in self.terms], self.known_disc)

    def check(self, u: Tensor) -> None:
        for term in self.terms:
            term.check(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return self.terms

    def symmetric(self) -> bool:
        others = sum(not term.symmetric() for term in self.terms)
        if others < 2:  # one nonsymmetric term makes the sum nonsymmetric
            return others == 0
        size = self.size_along(self.dims[0]) if len(self.dims) == 1 else None
        entries = None if size is None else self.to_coo(self.dims[0], size)
        return entries is not None and size is not None and equals_transpose(entries, size)

    def disc(self) -> tuple[float, float] | None:
        if self.known_disc is not None:
            return self.known_disc
        known = [disc for disc in (term.disc() for term in self.terms) if disc is not None]
        # Multiples of the identity shift eigenvalues; those of two other terms do not simply add.
        others = sum(term.as_diagonal() is None for term in self.terms)
        if len(known) < len(self.terms) or others > 1:
            return None
        return sum(center for center, _ in known), max(radius for _, radius in known)

    def largest_eigenvalue(self) -> float:
        # A symmetric sum may have nonsymmetric terms, whose bounds mean nothing.
        mixing = [term for term in self.terms if term.as_diagonal() is None]
        own = math.inf
        if len(mixing) < 2 or all(term.symmetric() for term in mixing):
            own = sum(term.largest_eigenvalue() for term in self.terms)
        # The row sums of the whole may give a sharper bound; it is not needed if own <= 0.
        return own if own <= 0.0 else min(own, largest_of(self.gershgorin()))

    def gershgorin(self) -> tuple[Tensor | float, Tensor | float] | None:
        diagonal: Tensor | float = 0.0
        others: Tensor | float = 0.0
        for term in self.terms:
            bounds = term.gershgorin()
            if bounds is None:
                return None
            # Diagonals may cancel: their rounding errors are added to the radii.
            diagonal, others = diagonal + bounds[0], others + bounds[1] + rounding_of(bounds[0])
        return diagonal, others

    def size_along(self, dim: int) -> int | None:
        sizes = (term.size_along(dim) for term in self.terms)
        return next((size for size in sizes if size is not None), None)

    def as_diagonal(self) -> Tensor | float | None:
        total: Tensor | float = 0.0
        for term in self.terms:
            d = term.as_diagonal()
            if d is None:
                return None
            total = total + d
        return total

    def diagonal(self, u: Tensor) -> Tensor | None:
        total: Tensor | None = None
        for term in self.terms:
            d = term.diagonal(u)
            if d is None:
                return None
            total = d if total is None else total + d
        return total

    def to_coo(self, dim: int, size: int) -> Entries | None:
        parts = [term.to_coo(dim, size) for term in self.terms]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        # Entries of fixed numbers are in float64 on the host, those of tensors like the state.
        like = next((part.value for term, part in zip(self.terms, known, strict=True)
                     if term.tensors), known[0].value)
        return Entries(torch.cat([part.row.to(like.device) for part in known]),
                       torch.cat([part.col.to(like.device) for part in known]),
                       torch.cat([part.value.to(like) for part in known]))

    def blocks(self, u: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        parts = [term.blocks(u, dims) for term in self.terms]
        known = [part for part in parts if part is not None]
        return sum(known[1:], known[0]) if len(known) == len(parts) else None

    def _split(self) -> tuple[float, list[LinearOperator]]:
        """The multiple of the identity in the sum, and the other terms."""
        number, others = 0.0, []
        for term in self.terms:
            d = term.as_diagonal()
            if d is None or (isinstance(d, Tensor) and d.dim() > 0):
                others.append(term)
            else:
                number += as_float(d)
        return number, others

    def spectrum(self, sizes: dict[int, int]) -> Tensor | None:
        parts = [term.spectrum(sizes) for term in self.terms]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return reduce(partial(_combined, torch.add), known)

    def diagonalized(self, like: Tensor) -> tuple[Tensor, Transform | None] | None:
        return super().diagonalized(like) or _beside_one(self.terms, like, self.dims, torch.add)

    def matrix(self) -> Tensor | None:
        parts = [term.matrix() for term in self.terms]
        known = [part for part in parts if part is not None]
        if not known or len(self.dims) != 1:
            return None
        total = sum(known[1:], known[0])
        for term, part in zip(self.terms, parts, strict=True):
            if part is None and not _is_number(term.as_diagonal()):
                return None
            if part is None:
                number = term.mv(total.new_ones(()))
                total = total + number * torch.eye(total.size(0)).to(total)
        return total

    @property
    def is_uniform(self) -> bool:
        return all(term.is_uniform or _is_number(term.as_diagonal()) for term in self.terms)

    def has_closed_inverse(self) -> bool:
        if self.as_diagonal() is not None:
            return True
        others = [t for t in self.terms if t.as_diagonal() is None or _is_array(t.as_diagonal())]
        if len(others) == 1:
            return others[0].has_closed_inverse()
        return all(term.is_convolution() for term in others)

    def resolvent(self, c: float) -> LinearOperator | None:
        if self.as_diagonal() is not None:
            return super().resolvent(c)
        # I - c (a I + J) = (1 - c a) (I - c / (1 - c a) J)
        number, others = self._split()
        if len(others) > 1 and self.has_closed_inverse():
            return others[0].resolvent_of(self, c)
        rest = 1.0 - c * number
        if len(others) != 1 or rest == 0.0:
            return None
        inner = others[0].resolvent(c / rest)
        return None if inner is None else Scaled(inner, 1.0 / rest)

    def __repr__(self) -> str:
        return " + ".join(repr(term) for term in self.terms)


class Product(LinearOperator):
    r"""The product :math:`J_1 J_2 \ldots` of operators, the last of which acts first.

    :math:`I - cJ` has a closed inverse if all factors are convolutions on one periodic grid, or if
    one factor has a closed inverse and the others are diagonals that are constant along its dims
    (a diffusivity per species, for example): then one inverse for each distinct value is used.

    Args:
        factors (sequence of LinearOperator): The operators; products among them are flattened.
    """

    def __init__(self, factors: Sequence[LinearOperator]) -> None:
        flat: list[LinearOperator] = []
        if not factors:
            raise ValueError("Expected at least one operator in a product (got none); use "
                             "ScaledIdentity(1.0).")
        for factor in factors:
            if not isinstance(factor, LinearOperator):
                raise TypeError(f"Expected linear operators in a product (got "
                                f"{type(factor).__name__}); J.mv(u) is the product with a state.")
            flat.extend(factor.factors if isinstance(factor, Product) else [factor])
        self.factors: tuple[LinearOperator, ...] = tuple(flat)
        self.dims = tuple(sorted({d for factor in flat for d in factor.dims}))

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(t for factor in self.factors for t in factor.tensors)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Product:
        other = copy.copy(self)
        other.factors = tuple(_with_all(self.factors, tensors))
        return other

    def mv(self, u: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            u = factor.mv(u)
        return u

    def transpose(self) -> Product:
        return Product([factor.T for factor in reversed(self.factors)])

    def check(self, u: Tensor) -> None:
        for factor in self.factors:
            factor.check(u)

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return self.factors

    def size_along(self, dim: int) -> int | None:
        sizes = (factor.size_along(dim) for factor in self.factors)
        return next((size for size in sizes if size is not None), None)

    def symmetric(self) -> bool:
        # Factors that commute: convolutions, or an operator and diagonals constant along its dims.
        return all(factor.symmetric() for factor in self.factors) and self.has_closed_inverse()

    def as_diagonal(self) -> Tensor | float | None:
        found: Tensor | float = 1.0
        for factor in self.factors:
            d = factor.as_diagonal()
            if d is None:
                return None
            found = found * d
        return found

    def diagonal(self, u: Tensor) -> Tensor | None:
        mixed = [d for factor in self.factors for d in factor.dims]
        if len(set(mixed)) == len(mixed):  # the factors commute, and their diagonals multiply
            own = [factor.diagonal(u) for factor in self.factors]
            known = [d for d in own if d is not None]
            return math.prod(known[1:], start=known[0]) if len(known) == len(own) else None
        entries = self.to_coo(self.dims[0], u.size(self.dims[0]))
        if entries is None:
            return None
        on = entries.row == entries.col
        sums = entries.value.new_zeros(u.size(self.dims[0])).index_add(
            0, entries.row[on], entries.value[on])
        return along(sums, self.dims[0])

    def to_coo(self, dim: int, size: int) -> Entries | None:
        parts = [factor.to_coo(dim, size) for factor in self.factors]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        like = next((part.value for factor, part in zip(self.factors, known, strict=True)
                     if factor.tensors), known[0].value)
        whole: Tensor | None = None
        take_beta_notice()  # torch.sparse.mm uses CSR internally
        for part in known:
            own = torch.sparse_coo_tensor(
                torch.stack([part.row, part.col]), part.value.detach(), (size, size),
                check_invariants=False).to(like)
            whole = own if whole is None else torch.sparse.mm(whole, own)
        assert whole is not None
        whole = whole.coalesce()
        row, col = whole.indices()
        return Entries(row, col, whole.values())

    def blocks(self, u: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        mixed = [d for factor in self.factors for d in factor.dims if d not in dims]
        parts = [factor.blocks(u, dims) for factor in self.factors]
        known = [part for part in parts if part is not None]
        # If two factors mix one outside dimension, blocks of the product are no products of blocks.
        if len(known) < len(parts) or len(set(mixed)) < len(mixed):
            return super().blocks(u, dims)
        found = known[0]
        for part in known[1:]:
            found = found @ part
        return found

    def disc(self) -> tuple[float, float] | None:
        found = _one_beside(self.factors)
        if found is None or not _is_number(found[1]):
            return super().disc()
        own, s = found[0].disc(), as_float(found[1])
        return None if own is None else (s * own[0], abs(s) * own[1])

    def gershgorin(self) -> tuple[Tensor | float, Tensor | float] | None:
        found = _one_beside(self.factors)
        if found is None or not _is_number(found[1]):
            return None
        bounds, s = found[0].gershgorin(), as_float(found[1])
        return None if bounds is None else (s * bounds[0], abs(s) * bounds[1])

    def matrix(self) -> Tensor | None:
        if len(self.dims) != 1:
            return None
        total: Tensor | None = None
        for factor in self.factors:
            own = factor.matrix()
            if own is None:
                return None
            total = own if total is None else total @ own
        return total

    def diagonalized(self, like: Tensor) -> tuple[Tensor, Transform | None] | None:
        return super().diagonalized(like) or _beside_one(self.factors, like, self.dims, torch.mul)

    def is_convolution(self) -> bool:
        return all(factor.is_convolution() or _is_number(factor.as_diagonal())
                   for factor in self.factors) and self.as_diagonal() is None

    def spectrum(self, sizes: dict[int, int]) -> Tensor | None:
        found: Tensor | None = None
        for factor in self.factors:
            own = factor.spectrum(sizes)
            if own is None:
                return None
            found = own if found is None else _combined(torch.mul, found, own)
        return found

    def has_closed_inverse(self) -> bool:
        if self.as_diagonal() is not None or self.is_convolution():
            return True
        found = _one_beside(self.factors)
        return found is not None and found[0].is_uniform and found[0].has_closed_inverse() and (
            _varies(found[1], found[0].dims) is not None)

    @property
    def is_uniform(self) -> bool:
        return all(factor.is_uniform or _is_number(factor.as_diagonal())
                   for factor in self.factors)

    def resolvent(self, c: float) -> LinearOperator | None:
        if self.as_diagonal() is not None:
            return super().resolvent(c)
        if self.is_convolution():
            return self.resolvent_of(self, c)
        found = _one_beside(self.factors)
        if found is None or not self.has_closed_inverse():
            return None
        inner, d = found
        number = torch.as_tensor(d)
        dim, values = _varies(d, inner.dims), number.reshape(-1)
        assert dim is not None
        if not bool(number.isfinite().all()):
            raise ValueError("Expected finite numbers in the diagonals of a product (got NaN or "
                             "Inf).")
        inverses: dict[float, LinearOperator] = {}
        for value in values.tolist():
            own = inverses.get(value) or inner.resolvent(c * value)
            if own is None:
                return None
            inverses[value] = own
        if not inverses:  # an empty state
            return inner.resolvent(c)
        return Each(inverses, values.tolist(), dim)

    def resolvent_of(self, whole: LinearOperator, c: float) -> LinearOperator | None:
        first = next(f for f in self.factors if f.is_convolution())
        return first.resolvent_of(whole, c)

    def __repr__(self) -> str:
        return " @ ".join(repr(factor) for factor in self.factors)


class Each(LinearOperator):
    """A different operator for each index of a dimension outside their dims.

    Args:
        operators (dict): The operators, by number.
        numbers (list of float): The number of each index along the dimension, or one for all.
        dim (int): The dimension, negative.
    """

    def __init__(self, operators: dict[float, LinearOperator], numbers: list[float],
                 dim: int) -> None:
        self.operators, self.numbers, self.dim = operators, numbers, dim
        self.dims = next(iter(operators.values())).dims

    def mv(self, u: Tensor) -> Tensor:
        if len(self.numbers) == 1:
            return self.operators[self.numbers[0]].mv(u)
        if u.dim() < -self.dim or u.size(self.dim) != len(self.numbers):
            raise ValueError(f"Expected a state of length {len(self.numbers)} along dimension "
                             f"{self.dim}, where each place has a number of its own (got shape "
                             f"{tuple(u.shape)}).")
        out = torch.empty_like(u)
        for number, operator in self.operators.items():
            own = [i for i, n in enumerate(self.numbers) if n == number]
            at = torch.tensor(own, device=u.device)
            out.index_copy_(self.dim, at, operator.mv(u.index_select(self.dim, at)))
        return out

    def transpose(self) -> Each:
        turned = {number: operator.T for number, operator in self.operators.items()}
        return Each(turned, self.numbers, self.dim)


class Reciprocal(LinearOperator):
    """Division by a divisor, a number or a tensor, which must not be zero to rounding."""

    def __init__(self, divisor: Tensor | float) -> None:
        if isinstance(divisor, Tensor):
            small = divisor.detach().abs().min() if divisor.numel() else math.inf
        else:
            small = abs(divisor)
        eps = torch.finfo(divisor.dtype).eps if isinstance(divisor, Tensor) else 2.3e-16
        if not float(small) > 4 * eps:
            raise LinearSolveError(
                f"I - cJ is singular to rounding: its smallest diagonal entry is {float(small):.1e}"
                " in magnitude. Keep J negative (a decay), or change the step size.")
        self.divisor = divisor

    def mv(self, u: Tensor) -> Tensor:
        return u / self.divisor

    def transpose(self) -> Reciprocal:
        return self


def _is_array(d: Tensor | float | None) -> bool:
    return isinstance(d, Tensor) and d.dim() > 0


def _is_number(d: Tensor | float | None) -> bool:
    return d is not None and not _is_array(d)


def _with_all(operators: Sequence[LinearOperator], tensors: Sequence[Tensor]
              ) -> list[LinearOperator]:
    """Copies of the operators with other tensors, taken in order."""
    found, rest = [], list(tensors)
    for operator in operators:
        n = len(operator.tensors)
        found.append(operator.with_tensors(rest[:n]))
        rest = rest[n:]
    return found


def _one_beside(factors: Sequence[LinearOperator]
                ) -> tuple[LinearOperator, Tensor | float] | None:
    """The only non-diagonal factor and the product of the diagonal ones; None if not only one."""
    others, d = [], 1.0
    for factor in factors:
        own = factor.as_diagonal()
        if own is None:
            others.append(factor)
        else:
            d = d * own  # type: ignore[assignment]
    return (others[0], d) if len(others) == 1 else None


def _beside_one(parts: Sequence[LinearOperator], like: Tensor, dims: tuple[int, ...],
                combine: Callable[[Tensor, Tensor], Tensor]
                ) -> tuple[Tensor, Transform | None] | None:
    """The eigenvalues of one operator, combined with those that are constant along its dims."""
    mixing = [part for part in parts if part.dims]
    found = mixing[0].diagonalized(like) if len(mixing) == 1 else None
    if found is None:
        return None
    values = found[0]
    for part in parts:
        if part is not mixing[0]:
            own = part._wide_spectrum(like, dims)
            if own is None:
                return None
            values = _combined(combine, values, own)
    return values, found[1]


def _combined(combine: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor | float
              ) -> Tensor:
    """Two spectra combined; those of fixed numbers are on the host, others where the state is."""
    if not isinstance(b, Tensor):
        b = torch.tensor(b, dtype=torch.float64)
    if a.device != b.device:
        a, b = (a, b.to(a.device)) if b.device.type == "cpu" else (a.to(b.device), b)
    return combine(a, b)


def _varies(d: Tensor | float, dims: tuple[int, ...]) -> int | None:
    """The only dimension along which d varies, or -1 if none; None if several, or one of dims."""
    if not isinstance(d, Tensor):
        return -1
    varying = [at - d.dim() for at, length in enumerate(d.shape) if length != 1]
    if len(varying) > 1 or (varying and varying[0] in dims):
        return None
    return varying[0] if varying else -1
