"""16-bit models, whose recurrent nodes ONNX Runtime does not run, in float32 behind the same interface."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lstmopt.rnn.layout import OPERATORS

NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
TYPE_ATTRIBUTES = frozenset({"to", "dtype", "stash_type", "output_dtype"})


def has_narrow_rnns(model: ir.Model) -> bool:
    """Whether a recurrent node's input or weights are 16-bit floats."""
    return any(
        value is not None and value.dtype in NARROW
        for node in model.graph.all_nodes()
        if node.op_type in OPERATORS and node.domain in ("", "ai.onnx")
        for value in (*node.inputs[:4], *node.outputs)
    )


class FullPrecision(ir.passes.InPlacePass):
    """Widens every 16-bit float to float32; inputs and outputs keep their types, between casts."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the main graph and its bodies."""
        for graph in model.graphs():
            for value in graph.initializers.values():
                if value.const_value is not None and value.const_value.dtype in NARROW:
                    value.const_value = _wide(value.const_value, str(value.name))
                    value.type = ir.TensorType(ir.DataType.FLOAT)
            if graph is not model.graph:
                for value in (*graph.inputs, *graph.outputs):
                    _widen(value)
        for node in list(model.graph.all_nodes()):
            for attribute in list(node.attributes.values()):
                if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in NARROW:
                    tensor = _wide(attribute.as_tensor(), attribute.as_tensor().name or "")
                    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)
                elif _names_narrow_type(attribute):
                    node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
        interface = [value for value in model.graph.inputs if not value.is_initializer()]
        narrow = {value: value.dtype for value in interface if value.dtype in NARROW}
        # What is handed on untouched, such as a state, stays as it is.
        handed_out = [
            (index, value)
            for index, value in enumerate(model.graph.outputs)
            if value.dtype in NARROW and value not in interface
        ]
        for node in model.graph.all_nodes():
            for value in node.outputs:
                if value.dtype in NARROW and not any(value is item for _, item in handed_out):
                    _widen(value)
        for value in narrow:
            uses = tuple(value.uses())
            cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
            for node, place in uses:
                node.replace_input_with(place, cast.outputs[0])
            model.graph.insert_before(model.graph[0], cast)
        for index, value in handed_out:
            _hand_out(model.graph, index, value)
        return ir.passes.PassResult(model, True)


def _names_narrow_type(attribute: ir.Attr) -> bool:
    known = attribute.name in TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT
    return known and attribute.as_int() in {int(kind) for kind in NARROW}


def _wide(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    return ir.Tensor(np.asarray(tensor.numpy()).astype(np.float32), name=name)


def _widen(value: ir.Value) -> None:
    if value.type is not None and value.dtype in NARROW:
        value.type = _wide_type(value.type)


def _wide_type(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    """Returns the type in float32; that of sequences and optional values stays one of these."""
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        return type(kind)(_wide_type(kind.elem_type))
    return ir.TensorType(ir.DataType.FLOAT)


def _hand_out(graph: ir.Graph, index: int, value: ir.Value) -> None:
    """Gives an output its narrow type back, under the same name."""
    name, kind, shape = value.name, value.type, value.shape
    assert value.dtype is not None
    cast = ir.node("Cast", [value], {"to": int(value.dtype)})
    made = cast.outputs[0]
    if value.producer() is not None:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    value.name = f"{name}.float"
    made.name, made.type, made.shape = name, kind, shape
    graph.append(cast)
    graph.outputs[index] = made
