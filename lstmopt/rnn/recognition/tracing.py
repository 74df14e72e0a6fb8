"""Walks back from a gate to what it is an affine function of."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from lstmopt.rnn.constants import Array
from lstmopt.rnn.recognition.regions import Constants

ALIASES = frozenset({"Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Dropout"})
"""Operators after which the same numbers stand in the same order."""

WHOLE = 2**31 - 1
"""The end that exporters write of a slice that takes all there is."""

MOVES = ALIASES | {"Transpose", "Split", "Slice", "Gather", "Cast"}


def origin(value: ir.Value) -> ir.Value:
    """Returns the value whose numbers a value holds, whatever its shape."""
    node = value.producer()
    while node is not None and node.op_type in ALIASES and value is node.outputs[0]:
        assert node.inputs[0] is not None
        value = node.inputs[0]
        node = value.producer()
    return value


def activation(value: ir.Value | None, kind: str) -> ir.Node | None:
    """Returns the node whose output, or a part of it, a value is, where that is such an activation."""
    while value is not None:
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == kind:
            return node
        if node.op_type not in MOVES:
            return None
        value = node.inputs[0]
    return None


def selects_features(node: ir.Node, constants: Constants) -> bool:
    """Whether a Split, Slice or Gather takes parts of the last axis (of unknown rank: of axis -1)."""
    source = node.inputs[0]
    rank = None if source is None or source.shape is None else len(source.shape)
    if node.op_type == "Slice" and "axes" not in node.attributes and len(node.inputs) > 3:
        axes = _cut_axes([None if item is None else constants.of(item) for item in node.inputs[1:]])
    elif node.op_type == "Slice":
        axes = list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None
    else:
        axes = [node.attributes["axis"].as_int() if "axis" in node.attributes else 0]
    if axes is None or len(axes) != 1:
        return False
    return axes[0] == -1 or (rank is not None and axes[0] == rank - 1)


def _cut_axes(given: Sequence[Array | None]) -> list[int] | None:
    """Returns the axes of which a Slice takes a part, or None where its operands are not constant.

    Args:
        given: starts, ends, axes and, where there are any, steps.
    """
    known = [item.reshape(-1).tolist() for item in given if item is not None]
    if len(known) < max(3, len(given)):
        return None
    starts, ends, axes, *steps = known
    rows = zip(starts, ends, axes, *(steps or [[1] * len(axes)]), strict=True)
    return [axis for start, end, axis, step in rows if (start, step) != (0, 1) or end < WHOLE]


def leaves(value: ir.Value, stops: Collection[ir.Value], constants: Constants) -> dict[ir.Value, bool]:
    """Returns what a value is an affine function of, in the order of the walk.

    The walk goes through at most one product with a constant matrix, so that a layer before the cell
    stays a layer, and stops where a step of a sequence is selected.

    Args:
        value: a gate before its activation.
        stops: values (origins) at which to stop in any case.
        constants: of the model.

    Returns:
        For each of those values whether a product with a matrix lies between.
    """
    found: dict[ir.Value, bool] = {}
    _walk(value, False, stops, constants, found)
    return found


def _walk(
    value: ir.Value,
    multiplied: bool,
    stops: Collection[ir.Value],
    constants: Constants,
    found: dict[ir.Value, bool],
) -> None:
    if constants.of(value) is not None:
        return
    node = value.producer()
    if node is None or origin(value) in stops:
        found[value] = found.get(value, False) or multiplied
        return
    inputs = [item for item in node.inputs if item is not None]
    known = [constants.of(item) is not None for item in inputs]
    further: list[tuple[ir.Value, bool]] | None = None
    match node.op_type:
        case "Identity":
            further = [(inputs[0], multiplied)]
        case "Concat" if node.attributes["axis"].as_int() in _last(value):
            further = [(item, multiplied) for item in inputs]
        case _ if multiplied:
            further = None
        case "Add" | "Sub" | "Sum" | "Neg":
            further = [(item, False) for item in inputs]
        case "Mul" if any(known):
            further = [(item, False) for item in inputs]
        case "Div" if known[1]:
            further = [(inputs[0], False)]
        case "MatMul" if known[1]:
            further = [(inputs[0], True)]
        case "Gemm" if known[1] and not ("transA" in node.attributes and node.attributes["transA"].as_int()):
            further = [(inputs[0], True), *((item, False) for item in inputs[2:])]
        case "Split" | "Slice" | "Gather" if selects_features(node, constants) and all(known[1:]):
            further = [(inputs[0], False)]
        case "Squeeze" | "Unsqueeze" | "Reshape" | "Flatten" | "Transpose" | "Dropout" | "Cast":
            further = [(inputs[0], False)]
    if further is None:
        found[value] = found.get(value, False) or multiplied
        return
    for item, through in further:
        _walk(item, through, stops, constants, found)


def _last(value: ir.Value) -> tuple[int, ...]:
    return (-1,) if value.shape is None else (-1, len(value.shape) - 1)
