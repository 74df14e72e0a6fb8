"""What each operator does with hidden units: hands them on, ends their way, or pins them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmopt.rnn.constants import constant_value, opset_of, run_node
from lstmopt.rnn.labels import Codes, Member, Walk
from lstmopt.rnn.reader import W, X

if TYPE_CHECKING:
    import onnx_ir as ir


def movement(walk: Walk, node: ir.Node) -> None:
    """Runs an operator that moves data on the codes themselves."""
    if node.op_type in ("Cast", "Dropout", "Identity"):
        walk.labels[node.outputs[0]] = walk.labels[node.inputs[0]]  # type: ignore[index]
        return
    inputs: list[Any] = []
    for position, value in enumerate(node.inputs):
        data = position == 0 or node.op_type == "Concat"
        if value is None:
            inputs.append(None)
        elif data:
            codes = walk.labels.get(value)
            inputs.append(np.zeros(walk.shape(value), dtype=np.int64) if codes is None else codes)
        elif value in walk.labels:
            walk.pin(walk.labels[value], f"they are an operand of {_name(node)}")
            return
        else:
            array = walk.array(value)
            # Pad's value is of the data's type: codes are padded with "no unit".
            inputs.append(np.zeros((), np.int64) if node.op_type == "Pad" and position == 2 else array)
    if (
        node.op_type == "Pad"
        and node.attributes.get("mode")
        and node.attributes["mode"].as_string() != "constant"
    ):
        _pin_inputs(walk, node)
        return
    outputs = run_node(node, inputs)
    if outputs is None:
        _pin_inputs(walk, node)
        return
    for value, codes in zip(node.outputs, outputs, strict=False):
        if np.any(codes > 0):
            walk.labels[value] = codes
    walk.flow.movers.append(node)


def elementwise(walk: Walk, node: ir.Node) -> None:
    """Combines the codes of the operands, broadcast to the output's shape."""
    shape = np.broadcast_shapes(*(walk.shape(value) for value in node.inputs if value is not None))
    combined = np.zeros(shape, dtype=np.int64)
    for value in node.inputs:
        if value is None or value not in walk.labels:
            continue
        codes = np.broadcast_to(walk.labels[value], shape)
        both = (combined > 0) & (codes > 0)
        walk.tie(combined[both], codes[both])
        combined = np.where(combined > 0, combined, codes)
    along = walk.flow.axis_codes(combined)
    for position, value in enumerate(node.inputs):
        if value is None:
            continue
        own = np.broadcast_to(walk.labels.get(value, np.zeros((), np.int64)), shape)
        if np.array_equal(own > 0, combined > 0) and (value in walk.labels):
            continue
        if along is None:
            array = walk.array(value)
            if array is None or array.size != 1:
                walk.pin(combined, f"{_name(node)} combines them with {value.name} along several axes")
                return
            continue
        axis, codes = along
        axis -= len(shape) - len(walk.shape(value))
        if axis < 0 or walk.shape(value)[axis] == 1:
            continue
        if constant_value(value) is None or value in walk.labels:
            walk.pin(
                combined, f"{_name(node)} combines them with {value.name}, which has other features there"
            )
            return
        walk.flow.members.append(Member(node, position, axis, codes, "unit"))
    walk.labels[node.outputs[0]] = combined


def reduction(walk: Walk, node: ir.Node) -> None:
    """Hands units on where other axes than theirs are reduced."""
    value = node.inputs[0]
    assert value is not None
    codes = walk.labels.get(value)
    if codes is None:
        _pin_inputs(walk, node)
        return
    axis = walk.flow.unit_axis(codes)
    reduced = _axes(node, codes.ndim)
    if axis is None or reduced is None or axis in reduced or node.op_type.startswith("Arg"):
        _pin_inputs(walk, node)
        return
    if node.op_type == "CumSum":
        walk.labels[node.outputs[0]] = codes
        return
    keep = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
    first, last = codes.min(axis=tuple(reduced), keepdims=True), codes.max(axis=tuple(reduced), keepdims=True)
    if np.any(first != last):
        _pin_inputs(walk, node)
        return
    walk.labels[node.outputs[0]] = first if keep else np.squeeze(first, axis=tuple(reduced))


def _axes(node: ir.Node, rank: int) -> list[int] | None:
    """Returns the axes that a reduction runs over, not negative, or None where they are not constant."""
    if node.op_type.startswith("Arg"):
        axes = [node.attributes["axis"].as_int()] if "axis" in node.attributes else [0]
    elif "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant_value(node.inputs[1])
        if array is None:
            return None
        axes = [int(axis) for axis in array.reshape(-1)]
    else:
        axes = list(range(rank))
    return [axis % rank for axis in axes]


def softmax(walk: Walk, node: ir.Node) -> None:
    """Hands units on where the softmax runs over another axis."""
    codes = walk.labels[node.inputs[0]]  # type: ignore[index]
    old_form = opset_of(node) < 13  # it then flattens from the axis on
    default = 1 if old_form else -1
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else default
    unit = walk.flow.unit_axis(codes)
    if unit is None or unit == axis % codes.ndim or (old_form and unit >= axis % codes.ndim):
        _pin_inputs(walk, node)
        return
    walk.labels[node.outputs[0]] = codes


def matmul(walk: Walk, node: ir.Node) -> None:
    """Ends the way of units that are multiplied with constant weights; hands on those of other axes."""
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None and right is not None
    if left in walk.labels and right in walk.labels:
        _pin_inputs(walk, node)
        return
    data, other, position = (left, right, 1) if left in walk.labels else (right, left, 0)
    codes = walk.labels[data]
    along = walk.flow.axis_codes(codes)
    rank = len(walk.shape(other))
    contracted = codes.ndim - 1 if position == 1 else max(codes.ndim - 2, 0)
    if along is None:
        _pin_inputs(walk, node)
    elif along[0] == contracted:
        if constant_value(other) is None:
            walk.pin(codes, f"{_name(node)} multiplies them with {other.name}, which is not constant")
            return
        axis = (max(rank - 2, 0)) if position == 1 else rank - 1
        walk.flow.members.append(Member(node, position, axis, along[1], "consumer"))
    else:
        shape = walk.shape(node.outputs[0])
        axis = along[0] + len(shape) - codes.ndim if rank > 1 else along[0]
        walk.labels[node.outputs[0]] = _spread(along[1], axis, shape)


def _spread(codes: Codes, axis: int, shape: tuple[int, ...]) -> Codes:
    """Returns a tensor of that shape with the codes along one axis."""
    form = [1] * len(shape)
    form[axis] = len(codes)
    return np.array(np.broadcast_to(codes.reshape(form), shape))


def gemm(walk: Walk, node: ir.Node) -> None:
    """Ends the way of units in Gemm's first operand; its bias has none of their axis."""
    data, weights = node.inputs[0], node.inputs[1]
    assert data is not None and weights is not None
    others = [value for value in node.inputs[1:] if value is not None and value in walk.labels]
    along = walk.flow.axis_codes(walk.labels[data]) if data in walk.labels else None
    contracted = 0 if _int(node, "transA", 0) else 1
    if others or along is None or along[0] != contracted or constant_value(weights) is None:
        _pin_inputs(walk, node)
        return
    axis = 1 if _int(node, "transB", 0) else 0
    walk.flow.members.append(Member(node, 1, axis, along[1], "consumer"))


def conv(walk: Walk, node: ir.Node) -> None:
    """Ends the way of units that are a convolution's channels; a depthwise one hands them on."""
    data, weights = node.inputs[0], node.inputs[1]
    assert data is not None and weights is not None
    along = walk.flow.axis_codes(walk.labels[data]) if data in walk.labels else None
    kernel = constant_value(weights)
    if along is None or along[0] != 1 or kernel is None:
        _pin_inputs(walk, node)
        return
    groups = _int(node, "group", 1)
    if groups == 1:
        walk.flow.members.append(Member(node, 1, 1, along[1], "consumer"))
        return
    # Grouped and depthwise convolutions hold the number of channels in an attribute as well.
    _pin_inputs(walk, node)


def batch_normalization(walk: Walk, node: ir.Node) -> None:
    """Hands units on; scale, bias, mean and variance have one number each."""
    data = node.inputs[0]
    assert data is not None
    along = walk.flow.axis_codes(walk.labels[data]) if data in walk.labels else None
    if along is None or along[0] != 1 or any(constant_value(value) is None for value in node.inputs[1:5]):
        _pin_inputs(walk, node)
        return
    for position in range(1, 5):
        walk.flow.members.append(Member(node, position, 0, along[1], "unit"))
    walk.labels[node.outputs[0]] = walk.labels[data]


def layer_normalization(walk: Walk, node: ir.Node) -> None:
    """Hands units on; over their own axis even a dead unit takes part in the statistics."""
    data = node.inputs[0]
    assert data is not None
    codes = walk.labels.get(data)
    along = None if codes is None else walk.flow.axis_codes(codes)
    if (
        codes is None
        or along is None
        or any(value in walk.labels for value in node.inputs[1:] if value is not None)
    ):
        _pin_inputs(walk, node)
        return
    first = _int(node, "axis", -1) % codes.ndim
    if along[0] >= first:
        walk.flow.inexact.append(
            (np.unique(codes[codes > 0]), f"{_name(node)} takes its statistics over them")
        )
        for position in range(1, len(node.inputs)):
            value = node.inputs[position]
            if value is not None:
                if constant_value(value) is None:
                    _pin_inputs(walk, node)
                    return
                walk.flow.members.append(Member(node, position, along[0] - first, along[1], "unit"))
    walk.labels[node.outputs[0]] = codes


def recurrent(walk: Walk, node: ir.Node) -> None:
    """Ends the way of units that a recurrent layer reads as its input."""
    for position, value in enumerate(node.inputs):
        if value is None or value not in walk.labels:
            continue
        codes = walk.labels[value]
        if position == X:
            along = walk.flow.axis_codes(codes)
            if along is None or along[0] != 2 or constant_value(node.inputs[W]) is None:
                walk.pin(codes, f"they reach {_name(node)} in a form that is not followed")
            elif node not in walk.layers:
                walk.flow.members.append(Member(node, W, 2, along[1], "consumer"))
        elif node not in walk.layers:
            walk.pin(codes, f"they are a state of {_name(node)}")


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _pin_inputs(walk: Walk, node: ir.Node) -> None:
    for value in node.inputs:
        if value is not None and value in walk.labels:
            walk.pin(walk.labels[value], f"they are read by {_name(node)}")


def _name(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or ''}".strip()


SPECIAL: Mapping[str, Callable[[Walk, ir.Node], None]] = {
    "BatchNormalization": batch_normalization,
    "Conv": conv,
    "GRU": recurrent,
    "Gemm": gemm,
    "LSTM": recurrent,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": softmax,
    "MatMul": matmul,
    "RNN": recurrent,
    "Softmax": softmax,
}
