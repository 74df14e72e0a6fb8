"""Names of precisions that run layers and products as our sparse ops. The shell reads them: no imports."""

from __future__ import annotations

SPARSE = "sparse-"
"""How they begin; the rest is the name of a format of `lstmopt.sparsity.formats`."""

SPARSE_PRECISIONS = (f"{SPARSE}f32", f"{SPARSE}i16", f"{SPARSE}i8")
"""Those that are tried: each allows every format that is as exact."""


def is_sparse(precision: str) -> bool:
    """Whether a precision names sparse ops."""
    return precision.startswith(SPARSE)
