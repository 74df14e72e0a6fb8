"""Scan and Loop nodes whose body is one step of a recurrent cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from lstmopt.rnn.recognition.body import Arrays, Body, Source, source_of
from lstmopt.rnn.recognition.building import Builder, rnn_node
from lstmopt.rnn.recognition.cells import Cell, find_cells
from lstmopt.rnn.recognition.loops import loop_sources
from lstmopt.rnn.recognition.reading import Frame, Reader
from lstmopt.rnn.recognition.regions import Constants, Unfit
from lstmopt.rnn.recognition.tracing import origin
from lstmopt.rnn.weights import RnnWeights


@dataclass(frozen=True, eq=False)
class BodyLayer:
    """A node with a body that is proved to be a layer.

    Attributes:
        node: the Scan or Loop.
        frame: the cell in its body.
        weights: float64.
        sources: one an input of the cell.
        initial: initial states outside, in the order of the cell's.
        last: outputs of the node with the last states, by the number of the state.
        stacks: outputs that hold all h: the value, the axis of steps, whether newest first.
    """

    node: ir.Node
    frame: Frame
    weights: RnnWeights
    sources: tuple[Source, ...]
    initial: tuple[ir.Value, ...]
    last: tuple[tuple[int, ir.Value], ...]
    stacks: tuple[tuple[ir.Value, int, bool], ...]

    @property
    def title(self) -> str:
        """What it is, in words."""
        kind, units = self.weights.cell.kind, self.weights.hidden_size
        return f"{kind} of {units} units in the body of a {self.node.op_type}"


def read_body(node: ir.Node, constants: Constants, opset: int, calls: Sequence[Arrays]) -> BodyLayer | None:
    """Returns a Scan or Loop as a layer, or None where nothing in its body looks like a cell.

    Raises:
        Unfit: it holds a cell, and more than that.
    """
    body = Body(node, constants, opset, calls)
    fault: Unfit | None = None
    for cell in find_cells(body.graph, constants):
        try:
            return _layer(cell, body)
        except Unfit as error:
            fault = fault or error
    if fault is not None:
        raise fault
    return None


def _layer(cell: Cell, body: Body) -> BodyLayer:
    reader = Reader(body.constants, body.opset, body.shapes)
    numbers = [_state_of(new, body) for new in cell.states]
    carried = cell.before[-1]
    if carried is None or origin(carried) is not body.states[numbers[-1]]:
        raise Unfit("its state is not carried as it is")
    h = body.states[numbers[0]]
    if cell.h_before is not None and cell.h_before is not h:
        raise Unfit("its state is not carried as it is")
    rest = [index for index in range(len(body.states)) if index not in numbers]
    grouped = reader.leaves(cell)
    if h not in grouped:
        raise Unfit("its hidden state is not carried as it is")
    frame = reader.frame(cell, h)
    weights = reader.weights(frame)
    reader.prove(frame, weights, 0)
    if body.loop:
        sources = loop_sources(frame, body, rest)
    else:
        if rest:
            raise Unfit("more states are carried than the cell's")
        sources = _scan_sources(frame, body)
    if len({source.reverse for source in sources}) != 1:
        raise Unfit("its inputs are read in both directions")
    stacks = []
    axes = [0] * len(body.stacks) if body.loop else body.axes("scan_output_axes", len(body.stacks))
    newest = [0] * len(body.stacks) if body.loop else body.axes("scan_output_directions", len(body.stacks))
    outputs = body.node.outputs[len(body.states) :]
    for inner, value, axis, direction in zip(body.stacks, outputs, axes, newest, strict=False):
        if not value.uses() and not value.is_graph_output():
            continue
        if origin(inner) is not cell.states[0]:
            raise Unfit("something else than its hidden state is collected")
        if len(body.shapes([inner])[inner]) != 2 or axis not in (0, 1):
            raise Unfit("its hidden state is collected in another form")
        stacks.append((value, axis, direction == 1))
    for index in rest:
        if body.node.outputs[index].uses() or body.node.outputs[index].is_graph_output():
            raise Unfit("a count of the loop is read after it")
    initial = []
    for number, new in zip(numbers, frame.new, strict=True):
        operand = body.operands[number]
        assert operand is not None
        array = body.constants.of(operand)
        zero = array is not None and not np.any(array)
        shape = body.first_step(body.calls[0])[body.states[number]].shape
        if not zero and shape[-1] != new.features:
            raise Unfit("an initial state of another size")
        if not zero and int(np.prod(shape)) != new.batch * new.features:
            raise Unfit("initial states for another batch")
        initial.append(operand)
    for number, new in zip(numbers, frame.new, strict=True):
        result = body.results[number]
        if body.shapes([result])[result] != new.shape:
            raise Unfit("its state is carried in another form")
    last = tuple((k, body.node.outputs[number]) for k, number in enumerate(numbers))
    return BodyLayer(body.node, frame, weights, sources, tuple(initial), last, tuple(stacks))


def _state_of(new: ir.Value, body: Body) -> int:
    found = [index for index, value in enumerate(body.results) if origin(value) is new]
    if len(found) != 1:
        raise Unfit("its state is not carried as it is")
    return found[0]


def _scan_sources(frame: Frame, body: Body) -> tuple[Source, ...]:
    axes = body.axes("scan_input_axes", len(body.slices))
    directions = body.axes("scan_input_directions", len(body.slices))
    sources = []
    for operand in frame.inputs:
        inner = origin(operand.value)
        if inner not in body.slices:
            raise Unfit("the cell's input is computed inside the body")
        index = body.slices.index(inner)
        outer = body.node.inputs[len(body.states) + index]
        assert outer is not None
        sources.append(source_of(outer, axes[index], directions[index] == 1, operand.features, body))
    return tuple(sources)


def rewrite_body(layer: BodyLayer, builder: Builder, constants: Constants, name: str) -> None:
    """Puts one recurrent node in the place of a Scan or Loop."""
    parts = []
    for source in layer.sources:
        rank = len(layer.frame.inputs[0].shape) + 1 if source.value.shape is None else len(source.value.shape)
        order = [source.axis, *(axis for axis in range(rank) if axis != source.axis)]
        moved = builder.transpose(source.value, order)
        parts.append(moved if rank == 3 else builder.reshape(moved, [0, -1, source.features]))
    x = parts[0] if len(parts) == 1 else builder.add("Concat", parts, axis=2).outputs[0]
    hidden = layer.weights.hidden_size
    initial: list[ir.Value | None] = []
    for value in layer.initial:
        array = constants.of(value)
        zero = array is not None and not np.any(array)
        initial.append(None if zero else builder.reshape(value, [1, -1, hidden]))
    reverse = layer.sources[0].reverse
    weights = replace(layer.weights, direction="reverse" if reverse else "forward")
    made = rnn_node(builder, weights, x, initial, name, builder.graph)
    for value, axis, newest_first in layer.stacks:
        y = made.y if newest_first == reverse else builder.slice(made.y, 0, -1, -(2**31), -1)
        sequence = layer.sources[0]
        steps = None if sequence.value.shape is None else sequence.value.shape[sequence.axis]
        known = isinstance(steps, int) or (steps is not None and steps.value)
        if value.shape is not None and not value.is_graph_output() and known:
            value.shape[axis] = steps  # a loop behind this one may count the steps of either
        builder.replace(value, builder.transpose(y, (0, 1, 2) if axis == 0 else (1, 0, 2)))
    for number, value in layer.last:
        if value.uses() or value.is_graph_output():
            flat = builder.move("Squeeze", made.last[number], [0])
            builder.replace(value, builder.shaped(flat, layer.frame.new[number].shape))
