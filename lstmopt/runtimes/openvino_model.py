"""A model as OpenVINO reads it rightly: recurrent nodes that it misreads or refuses become `Scan`.

Its LSTM and GRU (2026.4) leave out peepholes, coupled gates and the second direction's own activations, and
compute the padding of shorter sequences like the rest, all without an error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import SEQUENCE_LENS, RnnLayer, find_rnns
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.scan import AsScan

T = TypeVar("T")

RECURRENT = ("LSTM", "GRU")
PEEPHOLES = 7
"""Place of P among an LSTM's inputs."""

READ_RIGHTLY = frozenset({"Sigmoid", "Tanh", "Relu"})


def is_misread(layer: RnnLayer) -> bool:
    """Whether OpenVINO computes something else for a layer, or refuses it."""
    weights = layer.weights
    if weights is None:
        return False
    each = len(weights.cell.activations)
    first, other = weights.activations[:each], weights.activations[each : 2 * each]
    return (
        weights.input_forget
        or (weights.p is not None and bool(np.any(weights.p)))
        or layer.input(SEQUENCE_LENS) is not None
        or bool(weights.activation_alpha or weights.activation_beta)
        or not set(weights.activations) <= READ_RIGHTLY
        or (weights.num_directions == 2 and first != other)
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
    if not any(map(_is_special, _nodes(graph))):
        return read(model_file)
    model = load_model(model_file)
    readable = {layer.node for layer in find_rnns(model) if layer.weights is not None}
    for node in model.graph.all_nodes():
        if node.op_type in RECURRENT and node not in readable and _is_special(node):
            raise LstmoptError(
                f"{model_file}, {node.name or node.op_type}",
                f"OpenVINO computes something else for this {node.op_type}, and its weights are computed",
                "use --runtime onnxruntime",
            )
    with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder:
        copy = Path(folder) / model_file.name
        save_model(rewrite(model, AsScan(is_misread)), copy)
        return read(copy)


def _nodes(graph: Any) -> Iterator[Any]:
    """Yields the nodes of an ONNX graph and of its bodies."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _is_special(node: Any) -> bool:
    """Whether a node, of ONNX's or of onnx_ir's classes, has anything that may be misread."""
    if node.op_type not in RECURRENT:
        return False
    names, inputs = (
        (node.attributes, node.inputs)
        if hasattr(node, "attributes")
        else ([item.name for item in node.attribute], [name or None for name in node.input])
    )
    there = {place for place, value in enumerate(inputs) if value is not None}
    told = {"activations", "activation_alpha", "activation_beta", "input_forget"}
    return bool(told & set(names) or there & {SEQUENCE_LENS, PEEPHOLES})
