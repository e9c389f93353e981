"""What is a linear operator: which products, properties and inverses can it be asked for?"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..precision import without_autocast
from ..transforms import forward_mode_error, has_tangent
from .bounds import largest_of
from .checks import (
    as_float,
    check_number,
    check_tensors,
    foreign_leaf,
    is_array,
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
from .results import Entries, dense_matrix

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
    # The classes of sums, multiples and the like, which are operators too, in files that import
    # this one: each registers itself by a name.
    _composed: ClassVar[dict[str, Callable[..., LinearOperator]]] = {}

    def __init_subclass__(cls, composes: str | None = None, **kwargs: Any) -> None:
        """Registers a class of compositions; accepts the former names of methods, for one release.

        Args:
            composes (str, optional): The name of the composition that the class stands for.
        """
        super().__init_subclass__(**kwargs)
        if composes is not None:
            LinearOperator._composed[composes] = cls
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
        return self._composed["transpose"](self)

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

    def check_transposed(self, u: Tensor) -> None:
        """Refuses products whose transpose autograd does not give; before a product with it.

        Raises:
            ValueError: if a product does not follow its argument through autograd.
        """

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
        return None if d is None or is_array(d) else (as_float(d), 0.0)

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
        return None if d is None else self._composed["division"](1.0 - c * d)

    def inverse(self) -> LinearOperator | None:
        """The closed-form inverse of this operator itself; None if there is none."""
        return None

    def function(self, f: OfNumbers) -> LinearOperator:
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
        return self._composed["function"](self, f)

    def has_functions(self, like: Tensor) -> bool:
        """Whether functions of J can be computed for a state like ``like``."""
        return (self.diagonalized(like) is not None or self.matrix() is not None
                or self.disc() is not None
                or any(each.gershgorin() is not None for each in (self, self.T)))

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
        full = self.wide_spectrum(like, self.dims) if self.dims else None
        if full is None:
            return None
        last = self.dims[-1]
        if full.dim() >= -last:
            full = full.narrow(last, 0, min(full.size(last), like.size(last) // 2 + 1))
        return full, Fourier(self.dims, [like.size(d) for d in self.dims])

    def wide_spectrum(self, like: Tensor, dims: tuple[int, ...]) -> Tensor | None:
        """The :meth:`spectrum` for a state, in double precision."""
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
        return self._composed["sum"]([self, other])

    def __radd__(self, other: Any) -> LinearOperator:
        """So that ``sum`` adds operators, which starts with the number 0."""
        if isinstance(other, (int, float)) and other == 0:
            return self
        return self._composed["sum"]([self, other])

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self._composed["sum"]([self, -other])

    def __mul__(self, factor: float | Tensor) -> LinearOperator:
        return self._composed["multiple"](self, factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Tensor) -> LinearOperator:
        if not isinstance(divisor, Tensor):
            check_number(divisor, "the divisor of an operator")
            if divisor == 0:
                raise ValueError("Expected a divisor of an operator other than 0 (got 0).")
        elif divisor.numel() == 1 and not float(divisor.detach()):
            raise ValueError("Expected a divisor of an operator other than 0 (got 0).")
        return self._composed["multiple"](self, 1.0 / divisor)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return self._composed["product"]([self, other])

    def __neg__(self) -> LinearOperator:
        return self._composed["multiple"](self, -1.0)

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


def __getattr__(name: str) -> Any:
    """Gives compositions by their former place, where pickles of version 0.1 look for them."""
    for cls in LinearOperator._composed.values():
        if getattr(cls, "__name__", None) == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
