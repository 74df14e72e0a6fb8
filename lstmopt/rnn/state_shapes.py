"""Keeps the shapes of state inputs and outputs when the units behind them are fewer.

The kept units are gathered from a state's input, and spread over its output with zeros where a unit is
gone: what a call gives can be fed to the next one, and callers see the shapes that they know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.rnn.labels import Codes
from lstmopt.rnn.plan import NEW, Indices, Plan
from lstmopt.rnn.writer import free_name, set_initializer

if TYPE_CHECKING:
    import onnx_ir as ir

Sizes = tuple[int, ...]
Shapes = Mapping[str, "ir.Shape | None"]

PADS_ARE_INPUTS = 11
"""Since this opset Pad takes its amounts as an input."""


def state_shapes(model: ir.Model, plan: Plan) -> dict[str, ir.Shape | None]:
    """Returns the shapes of the inputs and outputs that a plan changes, by name; call it before the plan."""
    found = {}
    for value in (*model.graph.inputs, *model.graph.outputs):
        codes = plan.analysis.flow.labels.get(value)
        resized = None if codes is None else plan.size_along(codes)
        if codes is not None and resized is not None and resized[1] != codes.shape[resized[0]]:
            found[str(value.name)] = None if value.shape is None else value.shape.copy()
    return found


def keep_state_shapes(model: ir.Model, plan: Plan, before: Shapes) -> None:
    """Gives state inputs and outputs the shapes back that they had before a plan, in place.

    Args:
        model: the graph after the plan was carried out.
        plan: what was kept of each layer.
        before: what `state_shapes` returned.

    Raises:
        LstmoptError: the caller's states have no room for added units, or an axis that tells units apart
            has no fixed size.
    """
    labels = plan.analysis.flow.labels
    first = model.graph[0]
    for value in [value for value in model.graph.inputs if str(value.name) in before]:
        uses = list(value.uses())
        kept = _Change(model, plan, lambda node: model.graph.insert_before(first, node), gathered).of(
            value, labels[value]
        )
        for node, position in uses:
            node.replace_input_with(position, kept)
        value.shape = before[str(value.name)]
    for index, value in enumerate(list(model.graph.outputs)):
        name = str(value.name)
        if name in before:
            value.name = free_name(model.graph, f"{name}.kept")
            whole = _Change(model, plan, model.graph.append, spread).of(value, labels[value])
            whole.name, whole.shape, whole.type = name, before[name], value.type
            value.shape = None
            model.graph.outputs[index] = whole


@dataclass(frozen=True)
class _Change:
    """Changes the unit axis of a value by new nodes.

    Attributes:
        model: the graph.
        plan: what was kept.
        place: puts a node into the graph.
        line: changes a value of which all lines along the axis are of the same units.
    """

    model: ir.Model
    plan: Plan
    place: Callable[[ir.Node], None]
    line: Callable[[_Change, ir.Value, int, Indices, Sizes], ir.Value]

    def of(self, value: ir.Value, codes: Codes) -> ir.Value:
        """Returns the changed value, made piece by piece where other axes tell units apart."""
        axis = self.plan.analysis.flow.unit_axis(codes)
        assert axis is not None
        return self._along(value, codes, axis, list(value.shape or [None] * codes.ndim))

    def _along(self, value: ir.Value, codes: Codes, axis: int, sizes: list[Any]) -> ir.Value:
        split = next(
            (a for a in range(codes.ndim) if a != axis and np.any(codes != np.take(codes, [0], axis=a))), None
        )
        if split is None:
            line = np.moveaxis(codes, axis, -1).reshape(-1, codes.shape[axis])[0]
            positions = self.plan.positions(line)
            if np.any(positions == NEW):
                raise LstmoptError(
                    f"state {value.name}", "has no room for added units in the shape that is to be kept",
                    "only smaller sizes are possible",
                )  # fmt: skip
            return self.line(self, value, axis, positions, codes.shape)
        if not isinstance(sizes[split], int):
            raise LstmoptError(
                f"state {value.name}",
                f"holds units of several layers along axis {split}, which has no fixed size",
                "export it with that axis fixed, or do not keep the states' shapes",
            )  # fmt: skip
        pieces = [
            self._along(
                self.node("Gather", value, [row], split), np.take(codes, [row], axis=split), axis, sizes
            )
            for row in range(codes.shape[split])
        ]
        return self.node("Concat", pieces, None, split)

    def node(
        self, kind: str, value: ir.Value | list[ir.Value], operand: Any = None, axis: int | None = None
    ) -> ir.Value:
        """Places a node of some values, an integer operand and an axis; returns its output."""
        import onnx_ir as ir

        values = value if isinstance(value, list) else [value]
        name = free_name(self.model.graph, f"{values[0].name}.{kind.lower()}")
        output = ir.Value(name=name, type=values[0].type)
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        if kind == "Pad" and self.model.opset_imports.get("", 17) < PADS_ARE_INPUTS:
            attributes, operand = [ir.AttrInt64s("pads", operand)], None
        node = ir.Node("", kind, values, attributes, outputs=[output], name=name)
        self.place(node)
        if operand is not None:
            indices = np.asarray(operand, dtype=np.int64)
            set_initializer(self.model.graph, node, 1, f"{name}.indices", indices)
        return output


def gathered(
    change: _Change, value: ir.Value, axis: int, positions: Indices, shape: tuple[int, ...]
) -> ir.Value:
    """Takes the kept units."""
    del shape
    return change.node("Gather", value, positions, axis)


def spread(
    change: _Change, value: ir.Value, axis: int, positions: Indices, shape: tuple[int, ...]
) -> ir.Value:
    """Puts the kept units where they were, and a zero, which is padded behind them, everywhere else."""
    pads = [0] * (2 * len(shape))
    pads[len(shape) + axis] = 1
    sources = np.full(shape[axis], len(positions), dtype=np.int64)
    sources[positions] = np.arange(len(positions))
    return change.node("Gather", change.node("Pad", value, pads), sources, axis)
