"""Which values of a graph are weights to train, and which are constants to hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from lstmopt.bridge.program import walk
from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import RANDOM_OPS, bodies_of, constant_value
from lstmopt.rnn.trainable import is_frozen

Array = npt.NDArray[Any]

TRAINABLE: Mapping[str, tuple[int, ...]] = {
    "LSTM": (1, 2, 3, 7), "GRU": (1, 2, 3), "RNN": (1, 2, 3), "MatMul": (0, 1), "Gemm": (0, 1, 2),
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Einsum": (0, 1), "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
    "RMSNormalization": (1,), "PRelu": (1,),
}  # fmt: skip
"""Inputs that hold weights, by operator; besides an embedding (Gather) and a bias behind a product (Add)."""

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})


def trained_values(model: ir.Model, names: Mapping[ir.Value, str]) -> dict[ir.Value, Array]:
    """Returns the values that hold weights, and what they are.

    A weight that is a constant expression is folded, unless the expression's source is a weight itself
    elsewhere (tied weights): then the expression is computed, and the source gets both gradients.
    """
    constant = _constant_values(model)
    places: dict[ir.Value, None] = {}
    for _, node in walk(model.graph):
        for value in _weight_operands(node, constant):
            if value in names and not value.is_graph_output():
                places.setdefault(value)
    direct = {value for value in places if value.const_value is not None}
    found: dict[ir.Value, Array] = {}
    for value in places:
        if value not in direct and direct & _sources(value):
            continue
        array = constant_value(value)
        if array is not None and (array.dtype.kind == "f" or array.dtype.name == "bfloat16") and array.size:
            found[value] = array
    return found


def _weight_operands(node: ir.Node, constant: frozenset[ir.Value]) -> list[ir.Value]:
    inputs = [value if value in constant else None for value in node.inputs]
    if node.op_type == "Add" and len(inputs) == 2:
        computed = [node.inputs[1 - side] for side in (0, 1) if inputs[side] is not None]
        producers = [value.producer() for value in computed if value is not None and value not in constant]
        positions: tuple[int, ...] = (
            (0, 1) if any(p is not None and p.op_type in PRODUCTS for p in producers) else ()
        )
    elif node.op_type == "Gather":
        table = inputs[0]
        positions = (0,) if table is not None and _rank(table) == 2 and node.inputs[1] not in constant else ()
    else:
        positions = TRAINABLE.get(node.op_type, ())
    if all(value is not None for value in inputs[:2]) and node.op_type in ("MatMul", "Gemm", "Add"):
        return []
    return [
        value for position in positions if position < len(inputs) and (value := inputs[position]) is not None
    ]


def _rank(value: ir.Value) -> int | None:
    if value.const_value is not None:
        return len(value.const_value.shape)
    return None if value.shape is None else len(value.shape)


def _constant_values(model: ir.Model) -> frozenset[ir.Value]:
    """Returns the values that no input can change."""
    found: set[ir.Value] = set()

    def visit(graph: ir.Graph) -> None:
        found.update(value for value in graph.initializers.values() if value.const_value is not None)
        for node in graph:
            bodies = bodies_of(node)
            if (
                not bodies
                and node.op_type not in RANDOM_OPS
                and all(value is None or value in found for value in node.inputs)
            ):
                found.update(node.outputs)
            for body in bodies.values():
                visit(body)

    visit(model.graph)
    return frozenset(found)


def _sources(value: ir.Value) -> set[ir.Value]:
    """Returns everything from which a constant expression is computed."""
    node = value.producer()
    found: set[ir.Value] = set()
    for item in () if node is None else node.inputs:
        if item is not None:
            found |= {item} | _sources(item)
    return found


def held_constants(model: ir.Model, trained: Mapping[ir.Value, Array]) -> dict[ir.Value, Array]:
    """Returns initializers and Constant nodes' values that are not trained, nor embedded in frozen nodes."""
    held: dict[ir.Value, Array] = {}

    def visit(graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            if (
                value not in trained
                and value.const_value is not None
                and (value.is_graph_output() or _used_here(value))
            ):
                held[value] = np.asarray(value.const_value.numpy())
        for node in graph:
            made = node.outputs[0] if node.op_type == "Constant" else None
            if made is not None and made not in trained and (made.is_graph_output() or _used_here(made)):
                array = constant_value(made)
                if array is None:
                    raise LstmoptError(
                        f"node {node.name}", "a constant that is not a tensor", "export the model again"
                    )
                held[made] = array
            for body in bodies_of(node).values():
                visit(body)

    visit(model.graph)
    return held


def _used_here(value: ir.Value) -> bool:
    """Whether anything but frozen nodes reads a constant."""
    return any(not is_frozen(node) for node, _ in value.uses())
