"""Runs an ONNX graph in float64, by the operators' reference implementations: what errors are against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
UNHEARD = ("sequence_lens", "clip", "activation_alpha", "activation_beta", "input_forget")
"""What the reference implementation of recurrent layers ignores."""


class DequantizeLinear(OpRun):
    """One scale for a whole tensor, in the opsets for which the package has no implementation."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, zero: Array | None = None, **ignored: Any) -> tuple[Array]:
        if scale.size != 1:
            raise NotImplementedError("DequantizeLinear with several scales in float64")
        whole = x.astype(np.float64)
        return ((whole if zero is None else whole - zero.astype(np.float64)) * scale.astype(np.float64),)


class Float64:
    """A graph with all its floating-point numbers in double precision.

    `DynamicQuantizeLSTM` becomes an LSTM with the weights that its whole numbers stand for: what it
    approximates, its inputs not rounded. Other quantised operators compute as they do.

    Args:
        path: the ONNX file.
    """

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        _widen(model.graph)
        self.floats = {
            value.name for value in model.graph.input if value.type.tensor_type.elem_type in FLOATS
        }
        self.outputs = [value.name for value in model.graph.output]
        self._run = ReferenceEvaluator(model, new_ops=[DequantizeLinear]).run

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns all outputs by name; floating-point inputs are widened."""
        wide = {
            name: array.astype(np.float64) if name in self.floats else array for name, array in feeds.items()
        }
        return dict(zip(self.outputs, map(np.asarray, self._run(None, wide)), strict=True))


def _widen(graph: GraphProto) -> None:
    """Widens constants, casts and layers of a graph and its subgraphs, in place."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        for body in _bodies(node):
            _widen(body)
        if node.op_type == "DynamicQuantizeLSTM":
            node = _dequantized(node, graph, tensors)
        if node.op_type in ("LSTM", "GRU", "RNN"):
            _check_layer(node)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    del graph.value_info[:]


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        )


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g


def _check_layer(node: NodeProto) -> None:
    """Checks that the reference implementation computes all that a layer asks for."""
    defaults = {"LSTM": [b"Sigmoid", b"Tanh", b"Tanh"], "GRU": [b"Sigmoid", b"Tanh"]}
    for attribute in node.attribute:
        if attribute.name in UNHEARD and helper.get_attribute_value(attribute) not in (0, 0.0, []):
            raise NotImplementedError(f"{node.name}: {attribute.name} in float64")
        if attribute.name == "activations":
            default = defaults[node.op_type]
            if list(attribute.strings) not in (default, 2 * default):
                raise NotImplementedError(f"{node.name}: activations in float64")
    if len(node.input) > 4 and node.input[4]:
        raise NotImplementedError(f"{node.name}: sequence lengths in float64")


def _dequantized(node: NodeProto, graph: GraphProto, tensors: Mapping[str, TensorProto]) -> NodeProto:
    """Returns an LSTM in the place of a `DynamicQuantizeLSTM`; its weights become initializers."""
    found = [numpy_helper.to_array(tensors[name]) if name in tensors else None for name in node.input]
    layer = helper.make_node("LSTM", node.input[:8], node.output, name=node.name)
    layer.attribute.extend(node.attribute)
    for index, scale, zero in ((1, 8, 9), (2, 10, 11)):
        whole, scales, zeros = found[index], found[scale], found[zero]
        assert whole is not None and scales is not None and zeros is not None

        def by_column(each: Array, count: int = len(whole)) -> Array:
            return each.astype(np.float64).reshape(count, 1, -1)

        # [directions, input, gates x units] with one scale a direction or a column
        weights = (whole.astype(np.float64) - by_column(zeros)) * by_column(scales)
        name = f"{node.name}.{index}.float64"
        graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(weights.transpose(0, 2, 1)), name)
        )
        layer.input[index] = name
    return layer
