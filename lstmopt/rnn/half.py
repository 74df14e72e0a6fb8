"""The model in f16, inputs and outputs as they are: strongly typed runtimes read the precision off it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import constant_value
from lstmopt.rnn.exact import KEPT, refuse_small, sizes_in_floats
from lstmopt.rnn.writer import free_name

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST = float(np.finfo(np.float16).max)

TYPED = {"Cast": "to", "RandomNormal": "dtype", "RandomUniform": "dtype", "EyeLike": "dtype"}
"""Operators that name a type."""


class Half(ir.passes.InPlacePass):
    """Makes every f32 tensor of a model f16, W, R, B of its layers among them.

    The model's inputs and outputs keep their types: a Cast stands after the ones, before the others.
    Sizes and indices that are computed in floats stay in f32.

    Raises:
        LstmoptError: a weight is beyond f16, an epsilon or a bound would be 0 in it, or sizes are data too.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        graph = model.graph
        inputs = [value for value in graph.inputs if value.dtype == FLOAT and not value.is_initializer()]
        outputs = [index for index, value in enumerate(graph.outputs) if value.dtype == FLOAT]
        sizes = sizes_in_floats(model)
        exact = set(sizes.values)
        for number, ((node, position), array) in enumerate(sizes.constants.items()):
            # A copy of its own: others may read the constant in f16.
            name = free_name(graph, f"size_operand_{number}")
            copy = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            copy.type, copy.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
            graph.register_initializer(copy)
            node.replace_input_with(position, copy)
            exact.add(copy)
        _convert(graph, exact)
        for value in inputs:
            value.type = ir.TensorType(FLOAT)
            _cast_input(graph, value)
        for index in outputs:
            graph.outputs[index] = _cast_output(graph, graph.outputs[index])
        return ir.passes.PassResult(model, True)


def check_half(model: ir.Model) -> None:
    """Refuses a model that cannot be computed in f16 throughout, without changing it.

    Raises:
        LstmoptError: a constant is beyond f16, an epsilon or a bound would be 0 in it, or sizes or indices
            are computed in floats.
    """
    sizes = sizes_in_floats(model)
    for node, _ in sizes.constants:
        raise LstmoptError(
            f"node {node.name or node.outputs[0].name}", "computes sizes or indices in floats", "use f32"
        )
    graphs = [model.graph]
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type.name == "GRAPH":
                graphs.append(attribute.as_graph())
        value = node.outputs[0] if node.op_type == "Constant" else None
        array = None if value is None else constant_value(value)
        if value is not None and array is not None and array.dtype == np.float32:
            _half(ir.Tensor(array), str(value.name), [value])
    for graph in graphs:
        for value in graph.initializers.values():
            if value.dtype == FLOAT and value.const_value is not None and value.uses():
                _half(value.const_value, str(value.name), [value])


def _convert(graph: ir.Graph, exact: set[ir.Value]) -> None:
    """Makes the tensors of a graph and of its subgraphs f16, but for the exact ones."""
    kept = exact | {
        node.inputs[position]
        for node in graph
        for position in KEPT.get(node.op_type, ())
        if position < len(node.inputs)
    }
    for value in graph.initializers.values():
        if value.dtype == FLOAT and value not in kept and value.const_value is not None:
            value.const_value = _half(value.const_value, str(value.name), [value])
    for value in (*graph.inputs, *graph.initializers.values()):
        if value.dtype == FLOAT and value not in kept:
            value.type = ir.TensorType(HALF)
    for node in graph:
        wanted = not kept & set(node.outputs)
        for name, attribute in list(node.attributes.items()):
            kind = attribute.type.name
            if kind == "GRAPH":
                _convert(attribute.as_graph(), exact)
            elif kind == "GRAPHS":
                for body in attribute.as_graphs():
                    _convert(body, exact)
            elif kind == "TENSOR" and wanted and attribute.as_tensor().dtype == FLOAT:
                where = str(node.outputs[0].name)
                node.attributes[name] = ir.AttrTensor(
                    name, _half(attribute.as_tensor(), where, list(node.outputs))
                )
            elif name in ("value_float", "value_floats") and node.op_type == "Constant" and wanted:
                del node.attributes[name]
                array = np.asarray(attribute.value, np.float32)
                node.attributes["value"] = ir.AttrTensor(
                    "value", _half(ir.Tensor(array), str(node.outputs[0].name), list(node.outputs))
                )
        if not exact & set(node.outputs):
            _retype(node)
        for value in node.outputs:
            if value.dtype == FLOAT and wanted:
                value.type = ir.TensorType(HALF)


def _retype(node: ir.Node) -> None:
    """Changes the type that an operator names."""
    name = TYPED.get(node.op_type)
    attribute = node.attributes.get(name) if name else None
    if attribute is not None and attribute.as_int() == FLOAT:
        node.attributes[str(name)] = ir.AttrInt64(str(name), HALF)
    elif attribute is None and node.op_type in ("RandomNormal", "RandomUniform", "ConstantOfShape"):
        if node.op_type == "ConstantOfShape" and "value" in node.attributes:
            return
        if node.op_type == "ConstantOfShape":  # zeros in f32 where it does not say
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(np.zeros(1, np.float16)))
        else:
            node.attributes["dtype"] = ir.AttrInt64("dtype", HALF)


def _half(tensor: ir.TensorProtocol, name: str, values: list[ir.Value]) -> ir.Tensor[Any]:
    array = tensor.numpy()
    finite = array[np.isfinite(array)]
    if finite.size and float(np.abs(finite).max()) > LARGEST:
        raise LstmoptError(
            f"tensor {name!r}", f"holds {np.abs(finite).max():.3g}, beyond f16's {LARGEST:.0f}", "use f32"
        )
    refuse_small(array, name, values)
    return ir.Tensor(np.asarray(array.astype(np.float16), order="C"), name=tensor.name)


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    """Lets everything read an input through a Cast to f16."""
    cast = ir.node("Cast", [value], {"to": HALF}, outputs=[ir.Value(name=f"{value.name}.f16")])
    made = cast.outputs[0]
    made.type, made.shape = ir.TensorType(HALF), value.shape
    value.replace_all_uses_with(made, replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    graph.insert_before(graph[0], cast)


def _cast_output(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Returns an output of the old name in f32, behind a Cast."""
    name = value.name
    cast = ir.node("Cast", [value], {"to": FLOAT}, outputs=[ir.Value(name=f"{name}.f32")])
    made = cast.outputs[0]
    made.type, made.shape = ir.TensorType(FLOAT), value.shape
    graph.append(cast)
    # Subgraphs may read it by its name: they go on reading the f16 one.
    value.name = f"{name}.f16"
    made.name = name
    return made
