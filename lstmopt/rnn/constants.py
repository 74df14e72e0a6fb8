"""Evaluates constant expressions: weights that an exporter wrote as Unsqueeze(Concat(Slice(...)))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

Array = npt.NDArray[Any]

RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def constant_value(value: ir.Value | None) -> Array | None:
    """Returns the array of a value that no input of the graph can change, else None.

    Args:
        value: an initializer, or the output of a node whose inputs are constant in the same sense.
    """
    if value is None or not _is_constant(value):
        return None
    return evaluate(value, {})


def _is_constant(value: ir.Value) -> bool:
    """Whether nothing that a caller feeds is behind a value: no recursion, since graphs are deep."""
    seen, pending = {value}, [value]
    while pending:
        item = pending.pop()
        if item.const_value is not None:
            continue
        node = item.producer()
        if node is None or node.op_type in RANDOM_OPS or has_graph(node):
            return False
        new = {other for other in node.inputs if other is not None} - seen
        seen |= new
        pending += new
    return True


def evaluate(value: ir.Value, known: dict[ir.Value, Array | None]) -> Array | None:
    """Returns a constant value's array, else None; ``known`` keeps what was evaluated on the way."""
    if value in known:
        return known[value]
    known[value] = None  # a cycle cannot be: this stands until the value is known
    if value.const_value is not None:
        known[value] = np.asarray(value.const_value.numpy())
        return known[value]
    node = value.producer()
    if node is None or node.op_type in RANDOM_OPS or has_graph(node):
        return None
    inputs = [None if item is None else evaluate(item, known) for item in node.inputs]
    if any(array is None and item is not None for array, item in zip(inputs, node.inputs, strict=True)):
        return None
    outputs = run_node(node, inputs)
    if outputs is None:
        return None
    for output, array in zip(node.outputs, outputs, strict=False):
        known[output] = array
    return known[value]


def has_graph(node: ir.Node) -> bool:
    """Whether a node has bodies."""
    return any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values())


def bodies_of(node: ir.Node) -> dict[str, ir.Graph]:
    """Returns a node's bodies by the attribute's name; of an If whose condition is constant the taken one."""
    bodies: dict[str, ir.Graph] = {
        name: attribute.value for name, attribute in node.attributes.items() if attribute.type.name == "GRAPH"
    }
    condition = constant_value(node.inputs[0]) if node.op_type == "If" and bodies else None
    if condition is None:
        return bodies
    taken = "then_branch" if bool(condition.all()) else "else_branch"
    return {taken: bodies[taken]}


def opset_of(node: ir.Node) -> int:
    """Returns the version of a node's operator set, its graph's; 17 where neither says, as in bodies."""
    given = node.graph.opset_imports.get(node.domain) if node.graph is not None else None
    return node.version or given or 17


def run_node(node: ir.Node, inputs: list[Array | None]) -> list[Array] | None:
    """Returns a node's outputs by the reference implementation of its operator.

    Args:
        node: a node without subgraphs.
        inputs: one array an input; None where the optional input is absent.

    Returns:
        One array an output, or None where neither the reference implementation nor ONNX Runtime has the
        operator.
    """
    import onnx
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    names = [f"in{index}" if array is not None else "" for index, array in enumerate(inputs)]
    del proto.input[:]
    proto.input.extend(names)
    outputs = [name or f"unused{index}" for index, name in enumerate(proto.output)]
    del proto.output[:]
    proto.output.extend(outputs)
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in zip(names, inputs, strict=True)
            if array is not None
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    opsets = [onnx.helper.make_opsetid(node.domain, opset_of(node))]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    try:
        results = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # noqa: BLE001 - the reference implementation raises anything for what it lacks
        return _run_in_onnxruntime(model, feeds)
    return [np.asarray(result) for result in results]


def _run_in_onnxruntime(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array] | None:
    """Returns the outputs of a node that the reference lacks, such as DequantizeLinear before opset 19."""
    import onnx_ir as ir

    from lstmopt.rnn.execution import Reference  # which asks here what is random

    try:
        return [*Reference(ir.from_proto(model)).run(feeds).values()]
    except LstmoptError:
        return None


DATA_SHAPED = frozenset({"NonZero", "Compress", "Unique", "NonMaxSuppression", "Range", "If", "Loop", "Scan"})
"""Operators whose output has a shape that the values of any of their inputs may decide."""

SIZED_BY = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Pad": (1, 3), "TopK": (1,),
    "Slice": (1, 2, 3, 4), "Resize": (1, 2, 3), "Upsample": (1,), "OneHot": (1,), "Squeeze": (1,),
    "Unsqueeze": (1,), "Split": (1,), "CenterCropPad": (1,), "Col2Im": (1, 2), "MaxUnpool": (2,),
    "STFT": (1, 3), "DFT": (1, 2), "HannWindow": (0,), "HammingWindow": (0,), "BlackmanWindow": (0,),
    "SplitToSequence": (1,), "SequenceAt": (1,), "SequenceErase": (1,), "SequenceInsert": (2,),
}  # fmt: skip
"""Inputs whose values, not shapes, decide an output's shape, by operator; of others shapes alone do.

And a reduction's axes, which are its second input.
"""


def deciding_inputs(value: ir.Value) -> set[str]:
    """Returns the inputs of the graph whose values, not only shapes, a value depends on."""
    found: set[str] = set()
    seen: set[tuple[int, bool]] = set()
    pending = [(value, True)]
    while pending:
        each, by_value = pending.pop()
        if (id(each), by_value) in seen:
            continue
        seen.add((id(each), by_value))
        producer = each.producer()
        if producer is None:
            if by_value and not each.is_initializer():
                found.add(str(each.name))
            continue
        kind = producer.op_type
        if by_value:
            whole = kind not in ("Shape", "Size")
            pending += [(item, whole) for item in producer.inputs if item is not None]
        else:
            known = producer.domain in ("", "ai.onnx")
            if kind in DATA_SHAPED or not known:
                sized: Sequence[int] = range(len(producer.inputs))
            else:
                sized = (1,) if kind.startswith("Reduce") else SIZED_BY.get(kind, ())
            pending += [
                (item, index in sized) for index, item in enumerate(producer.inputs) if item is not None
            ]
        pending += [
            (item, True)
            for attribute in producer.attributes.values()
            if attribute.type.name == "GRAPH"
            for inner in attribute.as_graph().all_nodes()
            for item in inner.inputs
            if item is not None
        ]
    return found
