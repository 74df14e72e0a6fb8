"""Models whose sparse LSTMs are `SparseLSTMSequence`, all in one format, for tables that compare formats."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from lstmopt.passes.sparse_ops import SparseOps, sparse_places
from lstmopt.precision import SPARSE
from lstmopt.rnn.files import save_model
from lstmopt.rnn.rewriting import rewrite
from lstmopt.runtimes import Deployment
from lstmopt.runtimes import runtime as find_runtime


def with_sparse_lstms(model: ir.Model, name: str) -> ir.Model:
    """Returns a copy of a model in which every sparse LSTM is our op, its weights in a format."""
    formats = {place.name: name for place in sparse_places(model) if place.layer is not None}
    return rewrite(model, SparseOps(formats))


def deployed(model: ir.Model, name: str, file: Path, runtime: str = "onnxruntime") -> Deployment:
    """Writes a model that holds our ops in a format, and what a runtime loads of it beside."""
    save_model(model, file)
    return find_runtime(runtime).build(file, f"{SPARSE}{name}", file.with_name(f"{SPARSE}{file.stem}"))
