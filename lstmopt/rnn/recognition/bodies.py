"""Scan and Loop nodes whose body is one step of a recurrent cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import Array, deciding_inputs
from lstmopt.rnn.recognition.building import Builder, rnn_node
from lstmopt.rnn.recognition.cells import Cell, find_cells
from lstmopt.rnn.recognition.reading import Frame, Reader
from lstmopt.rnn.recognition.regions import Constants, Region, Unfit
from lstmopt.rnn.recognition.tracing import origin
from lstmopt.rnn.weights import RnnWeights

MOST_STEPS = 64
"""Of a loop that is run through to see which steps of its input it reads."""

LENGTHS = (1, 65, 1000)
"""Of a sequence whose axis is dynamic, besides those next to the numbers that its loop counts with."""

LONGEST = 5000
"""Steps that are counted one by one."""

FAR = 1_000_000
"""Steps of a loop whose trip count is a number that is computed before it."""

BENDING = frozenset(
    {"Min", "Max", "Clip", "Where", "Mod", "ReduceMin", "ReduceMax", "ArgMin", "ArgMax", "TopK", "If"}
)
"""Operators by which a count can be another one beyond some length."""

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
            feeds[value] = self._outside(operand, call)
        scans = self.node.inputs[len(self.states) :]
        for value, axis, operand in zip(
            self.slices,
            self.axes("scan_input_axes", len(self.slices)),
            scans if not self.loop else (),
            strict=True,
        ):
            assert operand is not None
            feeds[value] = np.take(self._outside(operand, call), 0, axis=axis)
        if self.loop:
            feeds[self.graph.inputs[0]] = np.asarray(0, np.int64)
            feeds[self.graph.inputs[1]] = np.asarray(True)
        return feeds

    def _outside(self, value: ir.Value, call: Arrays) -> Array:
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
        sources = _loop_sources(frame, body, rest)
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
        sources.append(_source(outer, axes[index], directions[index] == 1, operand.features, body))
    return tuple(sources)


def _source(value: ir.Value, axis: int, reverse: bool, features: int, body: Body) -> Source:
    shape = body._outside(value, body.calls[0]).shape
    axis %= len(shape)
    rest = [size for place, size in enumerate(shape) if place != axis]
    if len(rest) < 2 or rest[-1] != features or axis == len(shape) - 1:
        raise Unfit("the input's features are not its last axis")
    return Source(value, axis, reverse, features)


def _loop_sources(frame: Frame, body: Body, counters: list[int]) -> tuple[Source, ...]:
    sources: list[Source] = []
    lengths: set[int] = set()
    for operand in frame.inputs:
        found: tuple[ir.Value, set[tuple[int, bool]]] | None = None
        for call in body.calls:
            steps = _run_counts(body, counters, call)
            region = _region([operand.value], body)
            outer = [v for v in region.inputs if v not in body.graph.inputs and _is_float(v)]
            if len(outer) != 1:
                raise Unfit("the cell's input is not a step of one sequence")
            _check_counts(region, body, outer[0])
            sequence = body._outside(outer[0], call)
            lengths.add(len(steps))
            pieces = [region.run({**call, **counts})[0] for counts in steps]
            fits = {
                (axis, reverse)
                for axis in range(sequence.ndim - 1)
                for reverse in (False, True)
                if sequence.shape[axis] == len(steps) and _are_steps(pieces, sequence, axis, reverse)
            }
            found = (outer[0], fits if found is None else found[1] & fits)
        if found is None or not found[1]:
            raise Unfit("the loop does not read its input from one end to the other")
        value, ways = found
        fixed = [way for way in ways if value.shape is not None and isinstance(value.shape[way[0]], int)]
        if len(ways) != 1 or (len(lengths) < 2 and not fixed):
            raise Unfit("it could not be seen whether the loop reads the whole of its input")
        ((axis, reverse),) = ways
        if not fixed:
            _check_lengths(operand.value, Source(value, axis, reverse, operand.features), body, counters)
        sources.append(_source(value, axis, reverse, operand.features, body))
    return tuple(sources)


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _are_steps(pieces: list[Array], sequence: Array, axis: int, reverse: bool) -> bool:
    steps = np.moveaxis(sequence, axis, 0)
    steps = steps[::-1] if reverse else steps
    return len({step.tobytes() for step in steps}) == len(steps) and all(
        piece.size == step.size and np.array_equal(piece.reshape(-1), step.reshape(-1).astype(piece.dtype))
        for piece, step in zip(pieces, steps, strict=True)
    )


def _region(values: list[ir.Value], body: Body) -> Region:
    try:
        return Region(values, set(body.graph.inputs), body.constants, body.opset)
    except LstmoptError as error:
        raise Unfit(error.fault) from error


def _check_counts(region: Region, body: Body, *allowed: ir.Value) -> None:
    """Refuses counts that depend on more than shapes: equal to a length by accident is not enough."""
    for value in region.inputs:
        if value not in allowed and value not in body.graph.inputs and deciding_inputs(value):
            raise Unfit("how often the loop runs depends on the inputs' values")


def _check_lengths(operand: ir.Value, source: Source, body: Body, counters: list[int]) -> None:
    """Refuses a loop unless it reads the whole of a sequence of any length.

    The counts are computed at many lengths, without the cell. What bends a count, such as Min, is refused.
    """
    node, graph = body.node, body.graph
    counted = [graph.outputs[0], *(body.results[index] for index in counters)]
    before = [v for v in (*node.inputs[:2], *(body.operands[index] for index in counters)) if v is not None]
    reads = _region([operand], body)
    before += [v for v in (*_region(counted, body).inputs, *reads.inputs) if v not in graph.inputs]
    outside = [v for v in dict.fromkeys(before) if v is not source.value and body.constants.of(v) is None]
    numbers, leaves = _counting([operand, *counted, *before], {source.value, *graph.inputs}, body.constants)
    try:
        region = Region(outside, leaves, body.constants, body.opset, outer=True) if outside else None
        following = {leaf: _follows(leaf, source) for leaf in leaves}
        first = body.calls[0]

        def call_of(length: int) -> dict[ir.Value, Array]:
            if region is None:
                return dict(first)
            feeds = {v: np.where(following[v], length, first[v]) for v in region.inputs if v in following}
            return {**first, **dict(zip(outside, region.run(feeds), strict=True))}

        for leaf in leaves:
            numbers |= {int(size) for size in first[leaf].reshape(-1)}
        near = {n + d for n in numbers for d in (-1, 0, 1) if 1 <= n + d < 2**31 - 2}
        going = origin(graph.outputs[0])
        always = body.constants.of(going)
        by_limit = going is graph.inputs[1] or (always is not None and bool(always.all()))
        if not by_limit and any(length > LONGEST for length in near):
            raise Unfit("the loop counts with numbers that are too large to follow")
        for length in sorted({*LENGTHS, *near, *([FAR] if by_limit else [LONGEST])}):
            call = call_of(length)
            limit = node.inputs[0]
            if by_limit and (limit is None or int(body._outside(limit, call).reshape(-1)[0]) != length):
                raise Unfit("the loop does not read the whole of a longer input")
            if length > LONGEST:
                continue
            steps = _run_counts(body, counters, call, LONGEST)
            if len(steps) != length:
                raise Unfit("the loop does not read the whole of a longer input")
            _check_reads(reads, source, call, steps)
    except (LstmoptError, KeyError) as error:
        raise Unfit("it could not be seen whether the loop reads the whole of its input") from error


def _check_reads(region: Region, source: Source, call: Arrays, steps: list[dict[ir.Value, Array]]) -> None:
    """Refuses a loop that reads another step than its own near the beginning, middle or end."""
    length = len(steps)
    shape = list(call[source.value].shape)
    shape[source.axis] = length
    sequence = np.random.default_rng(length).standard_normal(shape).astype(call[source.value].dtype)
    for step in sorted({0, 1, length // 2, length - 2, length - 1} & set(range(length))):
        piece = region.run({**call, source.value: sequence, **steps[step]})[0].reshape(-1)
        place = length - 1 - step if source.reverse else step
        expected = np.take(sequence, place, axis=source.axis).reshape(-1)
        if not np.array_equal(piece, expected.astype(piece.dtype)):
            raise Unfit("the loop does not read the whole of a longer input")


def _counting(
    values: list[ir.Value], ends: set[ir.Value], constants: Constants
) -> tuple[set[int], list[ir.Value]]:
    """Returns the whole numbers that values are computed with, and the shapes."""
    numbers: set[int] = set()
    leaves: dict[ir.Value, None] = {}
    seen, pending = set(values), list(values)
    while pending:
        value = pending.pop()
        array, node = constants.of(value), value.producer()
        if value in ends:
            continue
        if array is not None:
            if array.dtype.kind in "iuf" and array.size <= 16:
                numbers |= {int(n) for n in array.reshape(-1) if np.isfinite(n)}
        elif node is not None and node.op_type in ("Shape", "Size"):
            leaves[value] = None
        elif node is not None:
            if node.op_type in BENDING:
                raise Unfit(f"a {node.op_type} is in its count")
            new = {item for item in node.inputs if item is not None} - seen
            seen |= new
            pending += new
    return numbers, list(leaves)


def _follows(leaf: ir.Value, source: Source) -> Array:
    """Returns which entries of a Shape are the size of the sequence's axis."""
    node = leaf.producer()
    assert node is not None
    value = node.inputs[0]
    if value is None or value.shape is None or node.op_type != "Shape":
        return np.asarray(False)
    wanted = _axis_of(source.value, source.axis)
    begin = node.attributes["start"].as_int() if "start" in node.attributes else None
    end = node.attributes["end"].as_int() if "end" in node.attributes else None
    named = None if source.value.shape is None else source.value.shape[source.axis]
    name = None if named is None or isinstance(named, int) else named.value
    found = []
    for axis, size in enumerate(value.shape):
        same = name is not None and not isinstance(size, int) and size.value == name
        found.append(same or _axis_of(value, axis) == wanted)
    return np.asarray(found[begin:end], bool)


def _axis_of(value: ir.Value, axis: int) -> tuple[ir.Value, int]:
    """Returns the value and axis that an axis has its size from, through what only moves it."""
    while (node := value.producer()) is not None and node.op_type in ("Identity", "Cast", "Transpose"):
        if node.inputs[0] is None:
            break
        if node.op_type == "Transpose":
            if "perm" not in node.attributes:
                break
            axis = node.attributes["perm"].as_ints()[axis]
        value = node.inputs[0]
    return value, axis


def _run_counts(
    body: Body, counters: list[int], call: Arrays, longest: int = MOST_STEPS
) -> list[dict[ir.Value, Array]]:
    """Returns the loop's counts in every step of a call: what the body is given beside its cell's states."""
    for outer in (*body.node.inputs[:2], *(body.operands[index] for index in counters)):
        if outer is not None and deciding_inputs(outer):
            raise Unfit("how often the loop runs depends on the inputs' values")
    limit = body.node.inputs[0]
    most = longest + 1 if limit is None else int(body._outside(limit, call).reshape(-1)[0])
    start = body.node.inputs[1]
    going = start is None or bool(body._outside(start, call).reshape(-1)[0])
    counts: dict[ir.Value, Array] = {}
    for index in counters:
        operand = body.operands[index]
        assert operand is not None
        counts[body.states[index]] = body._outside(operand, call)
    values = [body.graph.outputs[0], *(body.results[index] for index in counters)]
    region = _region(values, body)
    inside = {body.graph.inputs[0], body.graph.inputs[1], *counts}
    if any(value in body.graph.inputs and value not in inside for value in region.inputs):
        raise Unfit("how often the loop runs depends on the inputs' values")
    _check_counts(region, body)
    steps: list[dict[ir.Value, Array]] = []
    while going and len(steps) < most:
        if len(steps) > longest:
            raise Unfit("the loop runs on")
        given = {
            **counts,
            body.graph.inputs[0]: np.asarray(len(steps), np.int64),
            body.graph.inputs[1]: np.asarray(True),
        }
        steps.append(given)
        results = region.run({**call, **given})
        going = bool(results[0].reshape(-1)[0])
        counts = {body.states[index]: array for index, array in zip(counters, results[1:], strict=True)}
    return steps


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
        builder.replace(value, builder.transpose(y, (0, 1, 2) if axis == 0 else (1, 0, 2)))
    for number, value in layer.last:
        if value.uses() or value.is_graph_output():
            flat = builder.move("Squeeze", made.last[number], [0])
            builder.replace(value, builder.shaped(flat, layer.frame.new[number].shape))
