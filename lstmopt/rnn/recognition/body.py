"""The body of a Scan or Loop, and what its inputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import Array
from lstmopt.rnn.recognition.regions import Constants, Region, Unfit

Arrays = Mapping[ir.Value, Array]


@dataclass(frozen=True, eq=False)
class Source:
    """A sequence outside that the body reads step by step.

    Attributes:
        value: outside.
        axis: of its steps.
        reverse: whether it is read from its end.
        features: of one step.
    """

    value: ir.Value
    axis: int
    reverse: bool
    features: int


class Body:
    """A Scan's or Loop's body with what its inputs are.

    Args:
        node: the Scan or Loop.
        constants: of the model.
        opset: of the model.
        calls: what the graph's own values were in some calls of the model.
    """

    def __init__(self, node: ir.Node, constants: Constants, opset: int, calls: Sequence[Arrays]) -> None:
        self.node, self.constants, self.opset, self.calls = node, constants, opset, calls
        self.graph: ir.Graph = node.attributes["body"].as_graph()
        self.loop = node.op_type == "Loop"
        inputs = [value for value in node.inputs]
        if self.loop:
            count = len(self.graph.inputs) - 2
            self.states = list(self.graph.inputs[2:])
            self.operands = inputs[2 : 2 + count]
            self.results = list(self.graph.outputs[1 : 1 + count])
            self.stacks = list(self.graph.outputs[1 + count :])
            self.slices: list[ir.Value] = []
        else:
            scans = node.attributes["num_scan_inputs"].as_int()
            count = len(inputs) - scans
            self.states, self.slices = list(self.graph.inputs[:count]), list(self.graph.inputs[count:])
            self.operands = inputs[:count]
            self.results, self.stacks = list(self.graph.outputs[:count]), list(self.graph.outputs[count:])
        if None in self.operands:
            raise Unfit("a state has no initial value")

    def axes(self, name: str, count: int) -> list[int]:
        """Returns a Scan's attribute for each of its sequences, zeros where it is absent."""
        given = self.node.attributes.get(name)
        return [0] * count if given is None else list(given.as_ints())

    def first_step(self, call: Arrays) -> dict[ir.Value, Array]:
        """Returns the body's inputs in the first step of a call."""
        feeds = dict(call)
        for value, operand in zip(self.states, self.operands, strict=True):
            assert operand is not None
            feeds[value] = self.outside(operand, call)
        scans = self.node.inputs[len(self.states) :]
        for value, axis, operand in zip(
            self.slices,
            self.axes("scan_input_axes", len(self.slices)),
            scans if not self.loop else (),
            strict=True,
        ):
            assert operand is not None
            feeds[value] = np.take(self.outside(operand, call), 0, axis=axis)
        if self.loop:
            feeds[self.graph.inputs[0]] = np.asarray(0, np.int64)
            feeds[self.graph.inputs[1]] = np.asarray(True)
        return feeds

    def outside(self, value: ir.Value, call: Arrays) -> Array:
        """Returns what a value outside of the body was in a call."""
        array = self.constants.of(value)
        if array is None:
            array = call.get(value)
        if array is None:
            raise Unfit(f"{value.name} was not seen")
        return array

    def shapes(self, values: list[ir.Value]) -> dict[ir.Value, tuple[int, ...]]:
        """Returns the shapes of values of the body in the first step of the first call."""
        try:
            region = Region(values, set(self.graph.inputs), self.constants, self.opset)
            arrays = region.run(self.first_step(self.calls[0]))
        except LstmoptError as error:
            raise Unfit(error.fault) from error
        return {value: array.shape for value, array in zip(values, arrays, strict=True)}


def source_of(value: ir.Value, axis: int, reverse: bool, features: int, body: Body) -> Source:
    """Returns a sequence of steps ``[batch, features]``, whatever else it has among its axes."""
    shape = body.outside(value, body.calls[0]).shape
    axis %= len(shape)
    rest = [size for place, size in enumerate(shape) if place != axis]
    if len(rest) < 2 or rest[-1] != features or axis == len(shape) - 1:
        raise Unfit("the input's features are not its last axis")
    return Source(value, axis, reverse, features)


def region_of(values: list[ir.Value], body: Body) -> Region:
    """Returns what some values of a body are computed by, from its inputs and values outside.

    Raises:
        Unfit: it cannot be run on its own.
    """
    try:
        return Region(values, set(body.graph.inputs), body.constants, body.opset)
    except LstmoptError as error:
        raise Unfit(error.fault) from error
