"""Whole models and single layers whose LSTMs are `SparseLSTMSequence`, for tables that compare formats."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from lstmopt.passes.sparse_ops import SparseOps, sparse_places
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.weights import RnnWeights
from lstmopt.runtimes import Deployment
from lstmopt.runtimes.ops import library, sparse_lstm_model
from lstmopt.sparsity.formats import format_named

SETTINGS = {
    "openvino": {"INFERENCE_PRECISION_HINT": "f32"},
    "onnxruntime": {"session.intra_op.allow_spinning": "0"},
}


def packed(weights: RnnWeights, name: str) -> tuple[list[bytes], list[bytes]]:
    """Returns W and R in a format, one a direction each."""
    w, r = ([format_named(name).pack(each) for each in matrix] for matrix in weights.matrices)
    return w, r


def with_sparse_lstms(model: ir.Model, name: str) -> ir.Model:
    """Returns a copy of a model in which every sparse LSTM is our op, its weights in a format."""
    formats = {place.name: name for place in sparse_places(model) if place.layer is not None}
    return rewrite(model, SparseOps(formats))


def sparse_layer(weights: RnnWeights, name: str, steps: int, batch: int = 1) -> ir.Model:
    """Returns a bare layer in a format, of fixed shapes."""
    return sparse_lstm_model(weights, *packed(weights, name), sequence=steps, batch=batch)


def deployed(model: ir.Model, file: Path, runtime: str = "onnxruntime") -> Deployment:
    """Writes a model that holds our ops, for a runtime with their library."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, file)
    return Deployment(
        runtime=runtime, file=file, precision="f32", settings=SETTINGS[runtime], libraries=(library(runtime),)
    )
