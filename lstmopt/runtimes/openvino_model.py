"""A model as OpenVINO reads it rightly: recurrent nodes that it misreads or refuses become `Scan`.

Its LSTM, GRU and RNN (2026.4) leave out peepholes, coupled gates and the second direction's own activations,
and compute the padding of shorter sequences like the rest, all without an error; so does what it makes of
ONNX Runtime's int8 LSTM, which becomes an LSTM of floats. Faults that lie in how nodes meet are in
`openvino_rewrites`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from lstmopt.errors import LstmoptError
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import QUANTISED_LSTM, SEQUENCE_LENS, RnnLayer, find_rnns
from lstmopt.rnn.recognition.quantised import FloatLayers
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.scan import AsScan, is_special
from lstmopt.runtimes.openvino_rewrites import (
    RECURRENT,
    FloatWeights,
    OwnInputs,
    PlainSlopes,
    dequantises_constant,
    has_flat_slopes,
    shares_input,
)

T = TypeVar("T")

PEEPHOLES = 7
"""Place of P among an LSTM's inputs."""

TOLD = frozenset({"activations", "activation_alpha", "activation_beta", "input_forget"})

READ_RIGHTLY = frozenset({"Sigmoid", "Tanh", "Relu"})


def is_misread(layer: RnnLayer) -> bool:
    """Whether OpenVINO computes something else for a layer, or refuses it."""
    weights = layer.weights
    if weights is None:
        return False
    return (
        is_special(weights, READ_RIGHTLY)
        or (weights.p is not None and bool(np.any(weights.p)))
        or layer.input(SEQUENCE_LENS) is not None
    )


def read_rightly(model_file: Path, graph: Any, read: Callable[[Path], T]) -> T:
    """Returns what a reader makes of a file, or of a copy without what it would misread.

    Args:
        model_file: the model.
        graph: of the file, as ONNX's own.
        read: reads a file; it may be gone afterwards.

    Raises:
        LstmoptError: a node that would be misread cannot be rewritten.
    """
    faults = (_may_be_misread, _is_int8, shares_input, has_flat_slopes, dequantises_constant)
    nodes = ir.from_proto(graph).all_nodes()
    if not any(is_fault(node) for node in nodes for is_fault in faults):
        return read(model_file)
    model = load_model(model_file)
    if any(map(_is_int8, model.graph.all_nodes())):
        model = rewrite(model, FloatLayers(products=False))
    readable = {layer.node for layer in find_rnns(model) if layer.weights is not None}
    for node in model.graph.all_nodes():
        if node not in readable and (_may_be_misread(node) or _is_int8(node)):
            raise LstmoptError(
                f"{model_file}, {node.name or node.op_type}",
                f"OpenVINO computes something else for this {node.op_type}"
                + ("" if node.op_type == "RNN" else ", and its weights are computed"),
                "use --runtime onnxruntime",
            )
    with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder:
        copy = Path(folder) / model_file.name
        save_model(rewrite(model, AsScan(is_misread), OwnInputs(), PlainSlopes(), FloatWeights()), copy)
        return read(copy)


def _is_int8(node: ir.Node) -> bool:
    return node.op_type == QUANTISED_LSTM


def _may_be_misread(node: ir.Node) -> bool:
    """Whether a recurrent node has anything that OpenVINO may misread, before its weights are read."""
    if node.op_type not in RECURRENT:
        return False
    there = {place for place, value in enumerate(node.inputs) if value is not None}
    if node.op_type == "RNN":
        told = node.attributes.get("activations")
        return SEQUENCE_LENS in there or (told is not None and len(set(told.as_strings())) > 1)
    return bool(TOLD & set(node.attributes) or there & {SEQUENCE_LENS, PEEPHOLES})
