"""Which steps of a sequence a Loop reads, and whether it does so in calls of any size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import Array, deciding_inputs
from lstmopt.rnn.recognition.body import Arrays, Body, Source, region_of, source_of
from lstmopt.rnn.recognition.bounds import always, of_sizes, settled
from lstmopt.rnn.recognition.reading import Frame
from lstmopt.rnn.recognition.regions import Constants, Region, Unfit
from lstmopt.rnn.recognition.tracing import origin

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

COMPARING = frozenset(
    {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not", "Sign"}
)
"""Operators by which it can be another one at some length, where they are of sizes and not of the step."""


def loop_sources(frame: Frame, body: Body, counters: list[int]) -> tuple[Source, ...]:
    """Returns the sequences that a Loop reads from one end to the other, in calls of any size but empty ones.

    Args:
        frame: the cell in its body.
        body: the Loop's.
        counters: numbers of the states that are not the cell's.

    Raises:
        Unfit: it does not, or it could not be seen.
    """
    start = body.node.inputs[1]
    if start is not None and body.constants.of(start) is None and not always(start, body.constants):
        raise Unfit("whether the loop begins depends on the inputs")
    sources: list[Source] = []
    lengths: set[int] = set()
    for operand in frame.inputs:
        found: tuple[ir.Value, set[tuple[int, bool]]] | None = None
        for call in body.calls:
            steps = _run_counts(body, counters, call)
            region = region_of([operand.value], body)
            outer = [v for v in region.inputs if v not in body.graph.inputs and _is_float(v)]
            if len(outer) != 1:
                raise Unfit("the cell's input is not a step of one sequence")
            _check_counts(region, body, outer[0])
            sequence = body.outside(outer[0], call)
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
        source = Source(value, axis, reverse, operand.features)
        _check_sizes(operand.value, source, body, counters)
        if not fixed:
            _check_lengths(operand.value, source, body, counters)
        sources.append(source_of(value, axis, reverse, operand.features, body))
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


def _check_counts(region: Region, body: Body, *allowed: ir.Value) -> None:
    """Refuses counts that depend on more than shapes: equal to a length by accident is not enough."""
    for value in region.inputs:
        if value not in allowed and value not in body.graph.inputs and deciding_inputs(value):
            raise Unfit("how often the loop runs depends on the inputs' values")


def _counted(body: Body, counters: list[int]) -> tuple[list[ir.Value], list[ir.Value]]:
    """Returns what a step counts with: going on and the counters inside; the limit and the first counters."""
    inside = [body.graph.outputs[0], *(body.results[index] for index in counters)]
    limit = body.node.inputs[0]
    outside = [v for v in (limit, *(body.operands[index] for index in counters)) if v is not None]
    return inside, outside


def _check_sizes(operand: ir.Value, source: Source, body: Body, counters: list[int]) -> None:
    """Refuses a loop that counts with other sizes than its sequence's: they differ from call to call."""
    inside, outside = _counted(body, counters)
    ends = {source.value, *body.graph.inputs}
    values = [operand, *inside, *outside]
    _, leaves, _ = _counting(values, ends, body.constants)
    size = body.outside(source.value, body.calls[0]).shape[source.axis]
    given = {}
    for leaf in leaves:
        own = {int(place): size for place in np.flatnonzero(_follows(leaf, source))}
        given[leaf] = of_sizes(leaf, own)
    moving: dict[ir.Value, bool] = {}
    seen, pending = set(values), list(values)
    while pending:
        value = pending.pop()
        if value in ends or body.constants.of(value) is not None:
            continue
        if not _moves(value, ends, moving):
            if not settled(value, body.constants, given):
                raise Unfit("the loop counts with other sizes than that of the sequence")
            continue
        node = value.producer()
        assert node is not None
        # The second input of a Reshape says in which shape numbers stand, and not which or how many.
        inputs = node.inputs[:1] if node.op_type == "Reshape" else node.inputs
        new = {item for item in inputs if item is not None} - seen
        seen |= new
        pending += new


def _moves(value: ir.Value, ends: set[ir.Value], known: dict[ir.Value, bool]) -> bool:
    """Whether a value depends on the step, or on numbers of the sequence and not on its sizes alone."""
    if value in ends:
        return True
    if value not in known:
        node = value.producer()
        known[value] = (
            node is not None
            and node.op_type not in ("Shape", "Size")
            and any(_moves(item, ends, known) for item in node.inputs if item is not None)
        )
    return known[value]


def _check_lengths(operand: ir.Value, source: Source, body: Body, counters: list[int]) -> None:
    """Refuses a loop unless it reads the whole of a sequence of any length.

    The counts are computed at many lengths, without the cell. What bends a count, such as Min, is refused.
    """
    node, graph = body.node, body.graph
    counted, before = _counted(body, counters)
    reads = region_of([operand], body)
    before += [v for v in (*region_of(counted, body).inputs, *reads.inputs) if v not in graph.inputs]
    outside = [v for v in dict.fromkeys(before) if v is not source.value and body.constants.of(v) is None]
    ends = {source.value, *graph.inputs}
    numbers, leaves, nodes = _counting([operand, *counted, *before], ends, body.constants)
    moving: dict[ir.Value, bool] = {}
    for item in nodes:
        bends = item.op_type in BENDING or (
            item.op_type in COMPARING
            and not _moves(item.outputs[0], ends, moving)
            and not settled(item.outputs[0], body.constants, {})
        )
        if bends:
            raise Unfit(f"a {item.op_type} is in its count")
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
        constant = body.constants.of(going)
        by_limit = going is graph.inputs[1] or (constant is not None and bool(constant.all()))
        if not by_limit and any(length > LONGEST for length in near):
            raise Unfit("the loop counts with numbers that are too large to follow")
        for length in sorted({*LENGTHS, *near, *([FAR] if by_limit else [LONGEST])}):
            call = call_of(length)
            limit = node.inputs[0]
            if by_limit and (limit is None or int(body.outside(limit, call).reshape(-1)[0]) != length):
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
) -> tuple[set[int], list[ir.Value], list[ir.Node]]:
    """Returns the whole numbers that values are computed with, the shapes, and the nodes."""
    numbers: set[int] = set()
    nodes: dict[ir.Node, None] = {}
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
            nodes[node] = None
            new = {item for item in node.inputs if item is not None} - seen
            seen |= new
            pending += new
    return numbers, list(leaves), list(nodes)


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
    most = longest + 1 if limit is None else int(body.outside(limit, call).reshape(-1)[0])
    start = body.node.inputs[1]
    going = start is None or bool(body.outside(start, call).reshape(-1)[0])
    counts: dict[ir.Value, Array] = {}
    for index in counters:
        operand = body.operands[index]
        assert operand is not None
        counts[body.states[index]] = body.outside(operand, call)
    values = [body.graph.outputs[0], *(body.results[index] for index in counters)]
    region = region_of(values, body)
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
