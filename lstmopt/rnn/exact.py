"""What f16 would falsify: sizes that are computed in floats, and constants that would become 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import Array, constant_value

FLOAT = ir.DataType.FLOAT

KEPT = {"Resize": (1, 2), "Upsample": (1,), "QuantizeLinear": (1,), "DequantizeLinear": (1,)}
"""Inputs that ONNX wants in f32 whatever the rest is."""

FEW = 16
"""Entries of a constant up to which each of them may be a bound or an epsilon."""

PRODUCTS = frozenset({"LSTM", "GRU", "RNN", "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Gather"})
"""Operators whose weights may have entries that become 0."""

CARRIERS = frozenset(
    {"Identity", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Concat", "Slice", "Expand", "Split"}
)
"""Operators that hand constants on."""

FIRST = CARRIERS - {"Concat"} | {
    "Gather", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Tile", "Cast",
}  # fmt: skip
"""Arithmetic of which the first input alone holds numbers."""

ALL = frozenset(
    {
        "Concat", "Add", "Sub", "Mul", "Div", "Floor", "Ceil", "Round", "Neg", "Abs", "Min", "Max", "Sqrt",
        "Pow", "Mod", "Sign", "Reciprocal", "Clip",
    }
)  # fmt: skip
"""Arithmetic of which all inputs hold numbers."""

COMPARISONS = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"})


def refuse_small(array: Array, name: str, values: list[ir.Value]) -> None:
    """Refuses a constant of few entries that f16 turns into 0, unless products alone read it.

    Args:
        array: what it holds.
        name: of the constant, for the message.
        values: the constant.

    Raises:
        LstmoptError: it is refused.
    """
    gone = (array != 0) & (array.astype(np.float16) == 0) & np.isfinite(array)
    if array.size > FEW or not gone.any():
        return
    pending, seen = list(values), set(values)
    while pending:
        for use in pending.pop().uses():
            if use.node.op_type in CARRIERS:
                new = [value for value in use.node.outputs if value not in seen]
                seen.update(new)
                pending += new
            elif use.node.op_type not in PRODUCTS and use.idx not in KEPT.get(use.node.op_type, ()):
                first = float(array[gone].flat[0])
                raise LstmoptError(
                    f"constant {name!r}",
                    f"holds {first:.3g}, which is 0 in f16 ({use.node.op_type} reads it)",
                    "use f32",
                )


def _data(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """Yields the inputs that hold numbers to compute with, and their positions."""
    for position, value in enumerate(node.inputs):
        if value is not None and (position == 0 or node.op_type not in FIRST):
            yield position, value


@dataclass
class Sizes:
    """Numbers that are computed in floats from integers and become integers again.

    Attributes:
        values: floats that have to stay in f32.
        constants: the constants among the operands, by node and position.
    """

    values: set[ir.Value] = field(default_factory=set)
    constants: dict[tuple[ir.Node, int], Array] = field(default_factory=dict)


def sizes_in_floats(model: ir.Model) -> Sizes:
    """Returns what has to stay in f32: what leads from integers to integers, shapes or comparisons alone.

    Raises:
        LstmoptError: such a number is combined with data, or is data as well.
    """
    found, whole = Sizes(), _from_integers(model)
    nodes: list[ir.Node] = []
    for cast in model.graph.all_nodes():
        if cast.op_type != "Cast" or cast.attributes["to"].as_int() != FLOAT or cast.outputs[0] not in whole:
            continue
        if constant_value(cast.outputs[0]) is not None:
            continue
        region = _region(cast.outputs[0], whole)
        if region.certain and (region.data or region.foreign):
            raise LstmoptError(
                f"node {cast.name or cast.outputs[0].name}",
                "makes floats of which sizes or indices are computed, and data as well: f16 would round them",
                "use f32",
            )
        if (region.certain or region.compared) and not region.data and not region.foreign:
            found.values |= region.values
            nodes += region.nodes
    for node in dict.fromkeys(nodes):
        for position, value in _data(node):
            if value in found.values:
                continue
            array = constant_value(value)
            if array is None:
                raise LstmoptError(
                    f"node {node.name or node.outputs[0].name}", "mixes sizes with data in f16", "use f32"
                )
            found.constants[node, position] = array
    return found


@dataclass
class _Region:
    """What is computed from one Cast: `certain`, integers or shapes of it; `foreign`, with other floats."""

    values: set[ir.Value] = field(default_factory=set)
    nodes: list[ir.Node] = field(default_factory=list)
    certain: bool = False
    compared: bool = False
    data: bool = False
    foreign: bool = False


def _region(start: ir.Value, whole: set[ir.Value]) -> _Region:
    region, pending = _Region({start}), [start]
    while pending:
        value = pending.pop()
        region.data |= value.is_graph_output()
        for use in value.uses():
            node = use.node
            if use.idx in KEPT.get(node.op_type, ()):
                region.certain = True
                continue
            if node.op_type == "Cast" and _is_whole(ir.DataType(node.attributes["to"].as_int())):
                region.certain = True
                continue
            if node.op_type not in ALL | FIRST | COMPARISONS:
                region.data = True
                continue
            region.nodes.append(node)
            others = (other for _, other in _data(node))
            region.foreign |= any(other not in whole and constant_value(other) is None for other in others)
            if node.op_type in COMPARISONS:
                region.compared = True
                continue
            new = [output for output in node.outputs if output not in region.values]
            region.values.update(new)
            pending += new
    return region


def _from_integers(model: ir.Model) -> set[ir.Value]:
    """Returns the values that are integers, or computed from integers and constants alone."""
    found = {value for value in model.graph.inputs if _is_whole(value.dtype)}
    for node in model.graph.all_nodes():
        arithmetic = node.op_type in ALL | FIRST
        data = [value for _, value in _data(node)] if arithmetic else []
        computed = any(value in found for value in data) and all(
            value in found or constant_value(value) is not None for value in data
        )
        for value in node.outputs:
            if computed or _is_whole(value.dtype) or node.op_type in ("Shape", "Size"):
                found.add(value)
        if node.op_type == "Cast" and _is_whole(ir.DataType(node.attributes["to"].as_int())):
            found.add(node.outputs[0])
    return found


def _is_whole(dtype: ir.DataType | None) -> bool:
    return dtype is not None and (dtype == ir.DataType.BOOL or dtype.is_integer())
