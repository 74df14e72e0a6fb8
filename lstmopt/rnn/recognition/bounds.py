"""What a value can be in any call: its least and its largest, where sizes alone decide it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lstmopt.rnn.constants import RANDOM_OPS, Array, has_graph, run_node
from lstmopt.rnn.recognition.regions import Constants

LARGEST = 2**31 - 1
"""Size of an axis."""

MOST = 2**62
"""Elements of a tensor."""

DEEPEST = 100
"""Nodes on a path from a condition to the sizes that decide it."""

TAKING = frozenset({"Gather", "Slice", "Squeeze", "Unsqueeze", "Identity", "Concat", "Reshape", "Cast"})
"""Operators that hand on entries of their first input, or all inputs' (Concat), as they are."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """The least and the largest that a value can be, element by element."""

    low: Array
    high: Array

    @property
    def fixed(self) -> bool:
        """Whether it can be one thing only."""
        return bool(np.array_equal(self.low, self.high))


Known = dict[ir.Value, Bounds | None]


def always(
    condition: ir.Value, constants: Constants, given: Mapping[ir.Value, Array] | None = None
) -> bool | None:
    """Returns what a condition is in every call without empty tensors, or None where that is not proved.

    Args:
        condition: of an If.
        constants: of the model, its shapes inferred.
        given: inputs of which only this value matters.
    """
    known: Known = {value: Bounds(array, array) for value, array in (given or {}).items()}
    bounds = _bounds(condition, constants, known, DEEPEST)
    if bounds is None:
        return None
    least, most = bool(np.all(bounds.low)), bool(np.all(bounds.high))
    return least if least == most else None


def settled(value: ir.Value, constants: Constants, given: Mapping[ir.Value, Bounds | None]) -> bool:
    """Whether a value is the same in every call in which some others are within bounds; False if not proved.

    Args:
        value: any.
        constants: of the model, its shapes inferred.
        given: bounds of some values that it depends on; None where they are unknown.
    """
    bounds = _bounds(value, constants, dict(given), DEEPEST)
    return bounds is not None and bounds.fixed


def of_sizes(value: ir.Value, sizes: Mapping[int, int]) -> Bounds | None:
    """Returns what a Shape or Size can give where some of its entries are known.

    Args:
        value: the output of one.
        sizes: entries by their place in it.
    """
    node = value.producer()
    bounds = None if node is None else _sizes(node)
    if bounds is None or not sizes:
        return bounds
    low, high = bounds.low.copy(), bounds.high.copy()
    for place, size in sizes.items():
        low[place] = high[place] = size
    return Bounds(low, high)


def _bounds(value: ir.Value, constants: Constants, known: Known, depth: int) -> Bounds | None:
    if value in known:
        return known[value]
    array, node = constants.of(value), value.producer()
    found: Bounds | None = None
    if array is not None:
        found = Bounds(array, array)
    elif node is None or depth == 0 or node.domain not in ("", "ai.onnx"):
        found = None
    elif node.op_type in ("Shape", "Size"):
        found = _sizes(node)
    elif node.op_type not in RANDOM_OPS and not has_graph(node):
        inputs = []
        for item in node.inputs:
            bounds = None if item is None else _bounds(item, constants, known, depth - 1)
            if item is not None and bounds is None:
                break
            inputs.append(bounds)
        else:
            found = _computed(node, inputs, node.outputs.index(value))
    if found is not None and not found.fixed and bool(np.any(found.low > found.high)):
        found = None
    known[value] = found
    return found


def _sizes(node: ir.Node) -> Bounds | None:
    """Returns what a Shape or Size can give."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if shape is None:
        return None
    sizes = [(size, size) if isinstance(size, int) else (1, LARGEST) for size in shape]
    if node.op_type == "Size":
        low, high = 1, 1
        for least, most in sizes:
            low, high = low * least, high * most
        return Bounds(np.asarray(min(low, MOST), np.int64), np.asarray(min(high, MOST), np.int64))
    begin = node.attributes["start"].as_int() if "start" in node.attributes else None
    end = node.attributes["end"].as_int() if "end" in node.attributes else None
    taken = np.asarray(sizes, np.int64).reshape(-1, 2)[begin:end]
    return Bounds(taken[:, 0], taken[:, 1])


def _computed(node: ir.Node, inputs: list[Bounds | None], place: int) -> Bounds | None:
    """Returns what an operator makes of its inputs; most are known for inputs that are fixed only."""
    given = [bounds for bounds in inputs if bounds is not None]
    if all(bounds.fixed for bounds in given):  # any operator does
        array = _run(node, [None if bounds is None else bounds.low for bounds in inputs], place)
        return None if array is None else Bounds(array, array)
    if node.op_type in TAKING:
        rest = () if node.op_type == "Concat" else given[1:]
        if not all(bounds.fixed for bounds in rest):
            return None
        low = _run(node, [None if bounds is None else bounds.low for bounds in inputs], place)
        high = _run(node, [None if bounds is None else bounds.high for bounds in inputs], place)
        if low is None or high is None:
            return None
        if node.op_type == "Cast" and low.dtype.kind not in "bf" and not np.array_equal(high, given[0].high):
            return None  # beyond what the type holds
        return Bounds(low, high)
    if node.op_type == "Not":
        return Bounds(~given[0].high, ~given[0].low)
    if len(given) != 2 or given[0].low.dtype != given[1].low.dtype:
        return None
    a, b = given
    match node.op_type:
        case "Less":
            return Bounds(a.high < b.low, a.low < b.high)
        case "LessOrEqual":
            return Bounds(a.high <= b.low, a.low <= b.high)
        case "Greater":
            return Bounds(a.low > b.high, a.high > b.low)
        case "GreaterOrEqual":
            return Bounds(a.low >= b.high, a.high >= b.low)
        case "Equal":
            one = (a.low == a.high) & (b.low == b.high) & (a.low == b.low)
            return Bounds(one, (a.low <= b.high) & (b.low <= a.high))
        case "And":
            return Bounds(a.low & b.low, a.high & b.high)
        case "Or":
            return Bounds(a.low | b.low, a.high | b.high)
    return None


def _run(node: ir.Node, inputs: list[Array | None], place: int) -> Array | None:
    outputs = run_node(node, inputs)
    return None if outputs is None or place >= len(outputs) else outputs[place]
