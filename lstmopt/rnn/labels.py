"""Follows each hidden unit through a graph by running the graph on the units' numbers.

Every hidden unit of every direction of every layer has a code. A layer's output becomes a tensor of
codes, operators that move data are executed on the codes themselves, and so any order of transposes,
reshapes, slices and concatenations is followed exactly. 0 means "no unit".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.rnn.constants import constant_value, run_node
from lstmopt.rnn.reader import INITIAL_C, INITIAL_H, RnnLayer

if TYPE_CHECKING:
    import onnx_ir as ir

Codes = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Lane:
    """The hidden units of one direction of one layer; unit ``u`` has the code ``base + u``."""

    layer: str
    direction: int
    base: int
    size: int

    def codes(self) -> Codes:
        """Returns the units' codes, ``[size]``."""
        return np.arange(self.base, self.base + self.size, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Member:
    """A constant that has an axis of hidden units.

    Attributes:
        node: the node that reads it.
        position: which of the node's inputs it is.
        axis: the axis of units.
        codes: the units along that axis, or of the whole tensor where they differ on other axes.
        role: "consumer" (weights that read the units), "state" (a constant initial state) or "unit" (one
            number a unit, such as a bias or a scale).
    """

    node: ir.Node
    position: int
    axis: int
    codes: Codes
    role: str


@dataclass
class Flow:
    """What following the units has found.

    Attributes:
        lanes: all lanes, in order of their codes.
        labels: the codes of each value that has any, by the value.
        members: constants with an axis of units.
        movers: nodes that move units and may hold a hidden size in a constant operand.
        pins: why units cannot be removed: (codes, reason).
        inexact: units whose removal changes the function even where they are dead: (codes, reason).
        ties: pairs of codes that can only go together.
    """

    lanes: tuple[Lane, ...]
    labels: dict[ir.Value, Codes] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    movers: list[ir.Node] = field(default_factory=list)
    pins: list[tuple[Codes, str]] = field(default_factory=list)
    inexact: list[tuple[Codes, str]] = field(default_factory=list)
    ties: list[tuple[Codes, Codes]] = field(default_factory=list)

    def lane_of(self, codes: Codes) -> Codes:
        """Returns the number of each code's lane, -1 where there is no unit."""
        bases = np.array([lane.base for lane in self.lanes], dtype=np.int64)
        return np.asarray(np.searchsorted(bases, codes, side="right") - 1)

    def unit_axis(self, codes: Codes) -> int | None:
        """Returns the one axis along which units of the same lane follow each other, or None."""
        lanes = self.lane_of(codes)
        axes = [
            axis
            for axis in range(codes.ndim)
            if np.any(
                (np.diff(codes, axis=axis) != 0) & (np.diff(lanes, axis=axis) == 0) & _inner(lanes, axis)
            )
        ]
        return axes[0] if len(axes) == 1 else None

    def axis_codes(self, codes: Codes) -> tuple[int, Codes] | None:
        """Returns the unit axis and the codes along it, where they are the same on all other axes."""
        axis = self.unit_axis(codes)
        if axis is None:
            return None
        moved = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
        if moved.shape[1] == 0 or np.any(moved != moved[:, :1]):
            return None
        return axis, moved[:, 0]


def _inner(lanes: Codes, axis: int) -> npt.NDArray[np.bool_]:
    """Whether a position is of a lane, for the first of each neighbouring pair along an axis."""
    count = lanes.shape[axis] - 1
    return np.asarray(np.take(lanes, np.arange(max(count, 0)), axis=axis) >= 0)


Follower = Callable[["Walk", "ir.Node"], None]

MOVEMENT = frozenset(
    {
        "Cast", "Concat", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "Identity",
        "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
ELEMENTWISE = frozenset(
    {
        "Abs", "Add", "Ceil", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu",
        "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg",
        "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus",
        "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where",
    }
)  # fmt: skip
REDUCTIONS = frozenset(
    {
        "ArgMax", "ArgMin", "CumSum", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax",
        "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    }
)  # fmt: skip
SHAPE_READERS = frozenset({"Shape", "Size"})


class Walk:
    """One pass over a graph in topological order."""

    def __init__(self, graph: ir.Graph, layers: tuple[RnnLayer, ...], values: Mapping[str, Array]) -> None:
        self.graph = graph
        self.values = values
        self.layers = {layer.node: layer for layer in layers}
        base, lanes = 1, []
        for layer in layers:
            assert layer.weights is not None
            for direction in range(layer.weights.num_directions):
                lanes.append(Lane(layer.name, direction, base, layer.weights.hidden_size))
                base += layer.weights.hidden_size
        self.flow = Flow(tuple(lanes))
        self.labels = self.flow.labels

    def run(self) -> Flow:
        """Follows all units and returns what was found."""
        self._label_sources()
        for node in self.graph:
            self._initial_states(node)
            if node in self.layers:
                self._label_outputs(self.layers[node])
            if any(value in self.labels for value in node.inputs if value is not None):
                self._follow(node)
            self._implicit_uses(node)
        return self.flow

    def array(self, value: ir.Value | None) -> Array | None:
        """Returns what a value was when the graph ran, or its constant."""
        if value is None:
            return None
        found = self.values.get(str(value.name))
        return constant_value(value) if found is None else found

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Returns the shape that a value had when the graph ran."""
        array = self.array(value)
        return () if array is None else array.shape

    def pin(self, codes: Codes, reason: str) -> None:
        """Notes that these units cannot be removed."""
        self.flow.pins.append((np.unique(codes[codes > 0]), reason))

    def lanes(self, layer: RnnLayer) -> list[Lane]:
        """Returns the lanes of a layer."""
        return [lane for lane in self.flow.lanes if lane.layer == layer.name]

    def _state_codes(self, layer: RnnLayer, batch: int) -> Codes:
        codes = np.stack([lane.codes() for lane in self.lanes(layer)])
        return np.repeat(codes[:, None, :], batch, axis=1)

    def _label_outputs(self, layer: RnnLayer) -> None:
        for position in range(3):
            value = layer.output(position)
            if value is None:
                continue
            shape = self.shape(value)
            codes = self._state_codes(layer, shape[-2])
            self.labels[value] = np.repeat(codes[None], shape[0], axis=0) if position == 0 else codes

    def _label_sources(self) -> None:
        """Labels what the initial states come from: graph inputs, constants, tensors made to a shape."""
        for layer in self.layers.values():
            for position in (INITIAL_H, INITIAL_C):
                value = layer.input(position)
                if value is not None and constant_value(value) is None:
                    self._push_back(value, self._state_codes(layer, self.shape(value)[1]))

    def _push_back(self, value: ir.Value, codes: Codes) -> None:
        """Gives the sources of a value its codes, against the direction of the data."""
        node = value.producer()
        if value.is_graph_input():
            self._label(value, codes)
        elif node is None or value.graph is not self.graph:
            return
        elif node.op_type == "ConstantOfShape" or (node.op_type == "Expand" and self._made_along_units(node)):
            self._label(value, codes)
            if node not in self.flow.movers:
                self.flow.movers.append(node)
        elif node.op_type in MOVEMENT and node.op_type != "Pad" and value is node.outputs[0]:
            self._push_through(node, codes)

    def _push_through(self, node: ir.Node, codes: Codes) -> None:
        data = list(range(len(node.inputs))) if node.op_type == "Concat" else [0]
        inputs: list[Any] = [self.array(value) for value in node.inputs]
        begin = 1
        for position in data:
            shape = self.shape(node.inputs[position])  # type: ignore[arg-type]
            size = int(np.prod(shape))
            inputs[position] = np.arange(begin, begin + size, dtype=np.int64).reshape(shape)
            begin += size
        moved = [inputs[0]] if node.op_type in ("Cast", "Dropout", "Identity") else run_node(node, inputs)
        if moved is None or moved[0].shape != codes.shape:
            return
        source = np.zeros(begin, dtype=np.int64)
        source[moved[0]] = codes
        # An element that is read at several places belongs to all the units there.
        self.tie(source[moved[0]].reshape(-1), codes.reshape(-1))
        for position in data:
            value = node.inputs[position]
            assert value is not None
            mine = source[inputs[position]]
            if not np.any(mine > 0):
                continue
            if constant_value(value) is None:
                self._push_back(value, mine)
                continue
            axis = self.flow.unit_axis(mine)
            if axis is None:
                continue
            self._label(value, mine)
            if not any(member.node is node and member.position == position for member in self.flow.members):
                self.flow.members.append(Member(node, position, axis, self.labels[value], "state"))

    def _made_along_units(self, node: ir.Node) -> bool:
        """Whether an Expand repeats one number for all units."""
        data = node.inputs[0]
        assert data is not None
        before, after = self.shape(data), self.shape(node.outputs[0])
        return not before or before[-1] != after[-1]

    def _label(self, value: ir.Value, codes: Codes) -> None:
        """Adds codes to a source; units that claim one element go together."""
        known = self.labels.setdefault(value, np.zeros(codes.shape, dtype=np.int64))
        clash = (known > 0) & (codes > 0)
        self.tie(known[clash], codes[clash])
        self.labels[value] = np.where(known > 0, known, codes)

    def tie(self, one: Codes, other: Codes) -> None:
        """Notes that units go together, pair by pair."""
        differ = one != other
        if np.any(differ):
            pairs = np.unique(np.stack([one[differ], other[differ]], axis=1), axis=0)
            self.flow.ties.append((pairs[:, 0], pairs[:, 1]))

    def _initial_states(self, node: ir.Node) -> None:
        layer = self.layers.get(node)
        if layer is None:
            return
        for position in (INITIAL_H, INITIAL_C):
            value = layer.input(position)
            if value is None:
                continue
            mine = self._state_codes(layer, self.shape(value)[1])
            theirs = self.labels.get(value)
            if theirs is not None:
                if np.all(theirs > 0):
                    self.tie(theirs, mine)
                else:
                    self.pin(mine, f"its initial state {value.name} holds other things than hidden units")
            elif constant_value(value) is not None:
                self.flow.members.append(Member(node, position, 2, mine, "state"))
            else:
                self.pin(mine, f"its initial state {value.name} is computed by {_name(value.producer())}")

    def _implicit_uses(self, node: ir.Node) -> None:
        """Pins units that a subgraph reads from outside."""
        for output in node.outputs:
            codes = self.labels.get(output)
            if codes is not None:
                for user, _ in output.uses():
                    if user.graph is not self.graph:
                        self.pin(codes, f"they are read inside a subgraph, by {_name(user)}")

    def _follow(self, node: ir.Node) -> None:
        from lstmopt.rnn import followers

        if node.op_type in MOVEMENT:
            followers.movement(self, node)
        elif node.op_type in ELEMENTWISE:
            followers.elementwise(self, node)
        elif node.op_type in REDUCTIONS:
            followers.reduction(self, node)
        elif node.op_type in SHAPE_READERS:
            return
        elif node.op_type in followers.SPECIAL and node.domain in ("", "ai.onnx"):
            followers.SPECIAL[node.op_type](self, node)
        else:
            for value in node.inputs:
                if value is not None and value in self.labels:
                    self.pin(self.labels[value], f"they are read by {_name(node)}")


def _name(node: ir.Node | None) -> str:
    return "the graph" if node is None else f"{node.op_type} {node.name or ''}".strip()
