"""Graph rewrites: passes of `onnx_ir`, which see a model and nothing else; `rnn.rewriting` runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lstmopt.rnn.constants import constant_value
from lstmopt.rnn.reader import INITIAL_C, INITIAL_H, find_rnns
from lstmopt.rnn.writer import clear_unused, onnx_arrays, write_weights

CARRIERS = frozenset(
    {
        "Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that give zeros where they are given zeros."""


class DropZeroStates(ir.passes.InPlacePass):
    """Takes initial states from layers where they are zero anyway, and what computed them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        modified = False
        for layer in find_rnns(model):
            for position in (INITIAL_H, INITIAL_C):
                value = layer.input(position)
                if value is not None and _is_zero(value):
                    layer.node.replace_input_with(position, None)
                    modified = True
        return ir.passes.PassResult(model, clear_unused(model) or modified)


class FoldWeights(ir.passes.InPlacePass):
    """Turns layers' weights behind constant expressions into initializers."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        modified = False
        for layer in find_rnns(model):
            if not layer.supported or layer.weights is None:
                continue
            values = [layer.input(position) for position in onnx_arrays(layer.weights)]
            if any(value is not None and not value.is_initializer() for value in values):
                write_weights(model, layer, layer.weights)
                modified = True
        return ir.passes.PassResult(model, clear_unused(model) or modified)


class FixShapes(ir.passes.InPlacePass):
    """Fixes the sizes of dynamic axes.

    Args:
        shapes: the whole shape of each input, by name; an axis of the same name elsewhere gets its size.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self._shapes = shapes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        inputs = [value for value in model.graph.inputs if value.name in self._shapes]
        sizes: dict[str, int] = {}
        for value in inputs:
            for size, fixed in zip(value.shape or (), self._shapes[str(value.name)], strict=True):
                if not isinstance(size, int) and size.value:
                    sizes[size.value] = fixed
        modified = False
        for value in inputs:
            modified |= value.shape is None or value.shape.is_dynamic()
            value.shape = ir.Shape(self._shapes[str(value.name)])
        others = [value for value in model.graph.inputs if value not in inputs]
        computed = (value for node in model.graph for value in node.outputs)
        for value in (*others, *model.graph.outputs, *computed):
            for axis, size in enumerate(value.shape or ()):
                if value.shape is not None and not isinstance(size, int) and size.value in sizes:
                    value.shape[axis] = sizes[str(size.value)]
                    modified = True
        return ir.passes.PassResult(model, modified)


def _is_zero(value: ir.Value) -> bool:
    """Whether every element is zero, whatever the inputs are."""
    array = constant_value(value)
    if array is not None:
        return not np.any(array)
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not np.any(fill.as_tensor().numpy())
    if node.op_type == "Concat":
        return all(item is not None and _is_zero(item) for item in node.inputs)
    return node.op_type in CARRIERS and node.inputs[0] is not None and _is_zero(node.inputs[0])
