"""Rewrites constants of data movement that hold a hidden size: shapes, bounds of slices, sizes of splits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import constant_value
from lstmopt.rnn.labels import Codes
from lstmopt.rnn.plan import NEW, Plan
from lstmopt.rnn.writer import free_name, replace_constant

if TYPE_CHECKING:
    import onnx_ir as ir


def rewrite_mover(model: ir.Model, node: ir.Node, plan: Plan) -> None:
    """Makes a node that moves units fit the new sizes, in place.

    Raises:
        LstmoptError: it moves them in a way that is not followed.
    """
    labels = plan.analysis.flow.labels
    match node.op_type:
        case "Reshape" | "Expand" | "ConstantOfShape" if node.outputs[0] in labels:
            resized = plan.size_along(labels[node.outputs[0]])
            if resized is not None:
                _rewrite_shape(model, node, resized[0], resized[1], labels[node.outputs[0]].shape)
        case "Slice" | "Gather" | "Split" | "Pad":
            data = node.inputs[0]
            if data not in labels:
                return
            axis = plan.analysis.flow.unit_axis(labels[data])
            if axis is not None:
                _REWRITES[node.op_type](model, node, plan, labels[data], axis)


def _rewrite_shape(model: ir.Model, node: ir.Node, axis: int, size: int, old: tuple[int, ...]) -> None:
    """Puts a new size into a shape operand: a constant, or one constant piece of a Concat."""
    if old[axis] == size:
        return
    place = 0 if node.op_type == "ConstantOfShape" else 1
    operand = node.inputs[place]
    shape = constant_value(operand)
    if shape is not None:
        if node.op_type == "Expand":
            axis -= len(old) - len(shape)
        if axis >= 0 and int(shape[axis]) == old[axis]:
            new = shape.copy()
            new[axis] = size
            replace_constant(model, node, place, new)
        return
    producer = None if operand is None else operand.producer()
    while producer is not None and producer.op_type in ("Cast", "Identity"):
        operand = producer.inputs[0]
        producer = None if operand is None else operand.producer()
    if producer is None or producer.op_type != "Concat" or operand is None:
        return  # computed from real shapes: it follows by itself
    if len(operand.uses()) > 1:
        producer = _own_copy(model, producer, node, place)
    position = 0
    for index, piece in enumerate(producer.inputs):
        value = constant_value(piece)
        length = 1 if value is None else len(value)
        if (
            value is not None
            and position <= axis < position + length
            and int(value[axis - position]) == old[axis]
        ):
            new = value.copy()
            new[axis - position] = size
            replace_constant(model, producer, index, new)
        position += length


def _own_copy(model: ir.Model, producer: ir.Node, reader: ir.Node, place: int) -> ir.Node:
    """Gives one reader a copy of a shared Concat of a shape, so that the others keep theirs."""
    import onnx_ir as ir

    output = ir.Value(name=free_name(model.graph, f"{reader.name or reader.op_type}.shape"))
    copy = ir.Node("", "Concat", list(producer.inputs), list(producer.attributes.values()), outputs=[output])
    copy.name = output.name
    model.graph.insert_before(reader, copy)
    reader.replace_input_with(place, output)
    return copy


def _line(codes: Codes, axis: int) -> Codes:
    """Returns the codes along an axis.

    Raises:
        LstmoptError: they differ on other axes.
    """
    lines = np.unique(np.moveaxis(codes, axis, -1).reshape(-1, codes.shape[axis]), axis=0)
    if len(lines) != 1:
        raise LstmoptError(
            "resize", "units of several layers are cut from one tensor", "leave their sizes as they are"
        )
    return np.asarray(lines[0])


def _rewrite_slice(model: ir.Model, node: ir.Node, plan: Plan, codes: Codes, axis: int) -> None:
    old_form = len(node.inputs) < 3  # before opset 10 the bounds are attributes
    if old_form:
        starts, ends, axes = (
            np.array(node.attributes[name].as_ints(), np.int64) if name in node.attributes else None
            for name in ("starts", "ends", "axes")
        )
    else:
        starts, ends = constant_value(node.inputs[1]), constant_value(node.inputs[2])
        axes = constant_value(node.inputs[3]) if len(node.inputs) > 3 else None
    steps = constant_value(node.inputs[4]) if len(node.inputs) > 4 else None
    count = codes.ndim if starts is None else len(starts)
    order = list(range(count)) if axes is None else [int(item) % codes.ndim for item in axes]
    if axis not in order:
        return
    if starts is None or ends is None:
        raise LstmoptError(
            f"Slice {node.name}", "cuts hidden units at computed places", "leave their size as it is"
        )
    index, size = order.index(axis), codes.shape[axis]
    step = 1 if steps is None else int(steps[index])
    begin, end = slice(int(starts[index]), int(ends[index]), step).indices(size)[:2]
    if (begin, end, step) == (0, size, 1):
        # All of it, as where layers lie side by side on another axis: it stays all of it.
        new_ends = ends.copy()
        new_ends[index] = np.iinfo(ends.dtype).max
        _set_bounds(model, node, starts, new_ends)
        return
    line = _line(codes, axis)
    positions = plan.positions(line)
    if len(positions) == len(line) and NEW not in positions:
        return
    if step != 1:
        raise LstmoptError(
            f"Slice {node.name}", f"takes hidden units in steps of {step}", "leave their size as it is"
        )
    new_starts, new_ends = starts.copy(), ends.copy()
    new_starts[index], new_ends[index] = len(plan.positions(line[:begin])), len(plan.positions(line[:end]))
    _set_bounds(model, node, new_starts, new_ends)


def _set_bounds(model: ir.Model, node: ir.Node, starts: npt.NDArray[Any], ends: npt.NDArray[Any]) -> None:
    """Gives a Slice other bounds, where it has them: as attributes before opset 10, as inputs since."""
    import onnx_ir as ir

    for position, (name, bounds) in enumerate((("starts", starts), ("ends", ends)), start=1):
        if len(node.inputs) < 3:
            node.attributes[name] = ir.AttrInt64s(name, [int(bound) for bound in bounds])
        else:
            replace_constant(model, node, position, bounds)


def _rewrite_gather(model: ir.Model, node: ir.Node, plan: Plan, codes: Codes, axis: int) -> None:
    along = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if along % codes.ndim != axis:
        return
    indices = constant_value(node.inputs[1])
    line = _line(codes, axis)
    positions = plan.positions(line)
    if np.array_equal(positions, np.arange(len(line))):
        return
    if indices is None or indices.ndim != 1 or NEW in positions:
        raise LstmoptError(f"Gather {node.name}", "picks single hidden units", "leave their size as it is")
    places = {int(old): new for new, old in enumerate(positions)}
    kept = [places[int(i) % len(line)] for i in indices if int(i) % len(line) in places]
    replace_constant(model, node, 1, np.array(kept, dtype=indices.dtype))


def _rewrite_split(model: ir.Model, node: ir.Node, plan: Plan, codes: Codes, axis: int) -> None:
    import onnx_ir as ir

    along = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if along % codes.ndim != axis:
        return
    line = _line(codes, axis)
    labels = plan.analysis.flow.labels
    old = [labels[output].shape[axis] if output in labels else None for output in node.outputs]
    explicit = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
    if explicit is None and "split" in node.attributes:
        explicit = np.array(node.attributes["split"].as_ints(), dtype=np.int64)
    if explicit is None:
        if None in old:
            raise LstmoptError(
                f"Split {node.name}", "cuts hidden units without sizes", "leave their size as it is"
            )
        explicit = np.array(old, dtype=np.int64)
    bounds = np.concatenate([[0], np.cumsum(explicit)])
    new = [len(plan.positions(line[a:b])) for a, b in zip(bounds, bounds[1:], strict=False)]
    if "split" in node.attributes:
        node.attributes["split"] = ir.AttrInt64s("split", new)
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        replace_constant(model, node, 1, np.array(new, dtype=np.int64))
    elif len(set(new)) != 1:
        raise LstmoptError(
            f"Split {node.name}", "would get unequal parts", "give those layers one hidden size"
        )


def _rewrite_pad(model: ir.Model, node: ir.Node, plan: Plan, codes: Codes, axis: int) -> None:
    if "pads" in node.attributes:
        pads: npt.NDArray[Any] | None = np.array(node.attributes["pads"].as_ints())
    else:
        pads = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
    # What is padded on is no unit, and stays; what is cut off would have to be counted anew.
    if pads is None or len(node.inputs) > 3 or min(pads[axis], pads[axis + codes.ndim]) < 0:
        raise LstmoptError(f"Pad {node.name}", "cuts hidden units off", "leave their size as it is")


_REWRITES = {
    "Gather": _rewrite_gather,
    "Pad": _rewrite_pad,
    "Slice": _rewrite_slice,
    "Split": _rewrite_split,
}
