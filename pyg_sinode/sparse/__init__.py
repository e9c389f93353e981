"""How is a sparse matrix on a graph stored and multiplied?"""

from .edges import as_edges, check_range
from .pattern import Pattern, csr_matrix, take_beta_notice
from .products import (
    add_product,
    gather_rows,
    reduced,
    sampled_product,
    segment_sum,
    sparse_product,
)

__all__ = [
    "Pattern", "add_product", "as_edges", "check_range", "csr_matrix", "gather_rows",
    "reduced", "sampled_product", "segment_sum", "sparse_product", "take_beta_notice",
]
