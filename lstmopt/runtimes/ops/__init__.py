"""The native ops `SparseLSTMSequence` and `SparseMatMul` (domain ``lstmopt``): libraries and nodes.

`kernels/`, `openvino/`, `onnxruntime/` are their C++ sources; what they compute is in ``docs/ops.md``.
"""

from __future__ import annotations

from lstmopt.runtimes.ops.libraries import ABSENT, NAMES, absent, available, digest, library
from lstmopt.runtimes.ops.nodes import DOMAIN, VERSION, sparse_layer, sparse_layer_model, sparse_matmul

__all__ = [
    "ABSENT",
    "DOMAIN",
    "NAMES",
    "VERSION",
    "absent",
    "available",
    "digest",
    "library",
    "sparse_layer",
    "sparse_layer_model",
    "sparse_matmul",
]
