"""Whole models and single layers whose LSTMs are `SparseLSTMSequence`, for tables that compare formats."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from lstmopt.rnn.reader import INITIAL_C, INITIAL_H, SEQUENCE_LENS, X, find_rnns
from lstmopt.rnn.weights import RnnWeights
from lstmopt.runtimes import Deployment
from lstmopt.runtimes.ops import library, sparse_lstm_model
from lstmopt.runtimes.ops.nodes import DOMAIN, VERSION, constants_of, sparse_lstm
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
    """Returns a copy of a model in which every LSTM is our op, its weights in a format."""
    copy = model.clone()
    graph = copy.graph
    for layer in find_rnns(copy):
        weights, x = layer.weights, layer.input(X)
        assert weights is not None and x is not None and layer.supported
        node = sparse_lstm(
            weights, *packed(weights, name), x, lengths=layer.input(SEQUENCE_LENS),
            initial_h=layer.input(INITIAL_H), initial_c=layer.input(INITIAL_C), name=f"sparse.{layer.name}",
        )  # fmt: skip
        for constant in constants_of(node):
            graph.register_initializer(constant)
        old = layer.node
        for before, after in zip(old.outputs, node.outputs, strict=False):
            after.type, after.shape = before.type, before.shape
        graph.insert_before(old, node)
        for before, after in zip(old.outputs, node.outputs, strict=False):
            wanted = before.name
            before.replace_all_uses_with(after, replace_graph_outputs=True)
            before.name, after.name = f"{wanted}.dense", wanted
        graph.remove(old, safe=True)
    copy.opset_imports[DOMAIN] = VERSION
    return copy


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
