"""A graph in the order in which it runs, with the values that each node may free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from lstmopt.bridge.frozen import Freezer
from lstmopt.bridge.node import Node, Op, Run
from lstmopt.bridge.ops import OPS
from lstmopt.rnn.constants import bodies_of
from lstmopt.rnn.trainable import is_frozen

LSTM_MOVERS = frozenset(
    {"Squeeze", "Unsqueeze", "Transpose", "Reshape", "Identity", "Dropout", "Flatten", "Cast"}
)
"""Operators between two LSTMs through which the second reads what was dropped behind the first."""

SCAN_WITHOUT_BATCH = 9
"""Since this opset Scan has no batch axis of its own."""

Env = dict[int, Tensor]


@dataclass(eq=False)
class Program:
    """Nodes of one graph or body in topological order.

    Attributes:
        inputs: slots of the graph's inputs.
        outputs: slots of the graph's outputs.
        steps: node, its function (None where it has bodies) and its bodies.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: list[tuple[Node, Op | None, Mapping[str, Program]]] = field(default_factory=list)

    def execute(self, env: Env) -> list[Tensor]:
        """Runs the nodes on ``env``, which holds inputs and constants, and returns the outputs."""
        for node, function, bodies in self.steps:
            inputs = [None if slot is None else env[slot] for slot in node.inputs]
            results: Any
            if function is None:
                results = _control(node, bodies, inputs, env)
            else:
                try:
                    results = function(node, *inputs)
                except (RuntimeError, LookupError, TypeError, ValueError) as error:
                    raise node.error(str(error).strip().splitlines()[0]) from error
            if isinstance(results, Tensor):
                results = (results,)
            for slot, result in zip(node.outputs, results, strict=False):
                if slot is not None:
                    env[slot] = result
                    if slot in node.run.wanted:
                        node.run.captured.setdefault(node.run.wanted[slot], []).append(result)
            del inputs, results
            for slot in node.release:
                env.pop(slot, None)
        return [env[slot] for slot in self.outputs]


def _control(
    node: Node, bodies: Mapping[str, Program], inputs: list[Tensor | None], env: Env
) -> list[Tensor]:
    if node.op == "If":
        condition = inputs[0]
        assert condition is not None
        return bodies["then_branch" if bool(condition.all()) else "else_branch"].execute(env)
    body = bodies["body"]
    if node.op == "Scan":
        return _scan(node, body, inputs, env)
    trips, keep, *carried = inputs
    count = 0
    scans: list[list[Tensor]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    while (trips is None or count < int(trips)) and (keep is None or bool(keep)):
        feeds = [torch.tensor(count), torch.tensor(True), *carried]
        env.update({slot: value for slot, value in zip(body.inputs, feeds, strict=True) if value is not None})
        keep, *results = body.execute(env)
        carried = list(results[: len(carried)])
        for scan, value in zip(scans, results[len(carried) :], strict=True):
            scan.append(value)
        count += 1
    if not all(scans):
        raise node.error("a loop that runs no step has outputs of unknown shape")
    return [value for value in carried if value is not None] + [torch.stack(scan) for scan in scans]


def _scan(node: Node, body: Program, inputs: list[Tensor | None], env: Env) -> list[Tensor]:
    """Runs a body along axes of its last inputs; what it gives beside its states is stacked."""
    if node.opset < SCAN_WITHOUT_BATCH:
        raise node.error("is of an old form")
    count = node.get("num_scan_inputs")
    states, scanned = inputs[: len(inputs) - count], [value for value in inputs[-count:] if value is not None]
    axes = node.get("scan_input_axes") or (0,) * count
    backward = node.get("scan_input_directions") or (0,) * count
    rows = [value.unbind(axis) for value, axis in zip(scanned, axes, strict=True)]
    rows = [row[::-1] if back else row for row, back in zip(rows, backward, strict=True)]
    outputs: list[list[Tensor]] = [[] for _ in range(len(body.outputs) - len(states))]
    for step in zip(*rows, strict=True):
        feeds = [*states, *step]
        env.update({slot: value for slot, value in zip(body.inputs, feeds, strict=True) if value is not None})
        results = body.execute(env)
        states = list(results[: len(states)])
        for output, value in zip(outputs, results[len(states) :], strict=True):
            output.append(value)
    if not all(outputs):
        raise node.error("a scan of no steps has outputs of unknown shape")
    axes = node.get("scan_output_axes") or (0,) * len(outputs)
    turned = node.get("scan_output_directions") or (0,) * len(outputs)
    stacked = [
        torch.stack(output[::-1] if back else output, axis)
        for output, axis, back in zip(outputs, axes, turned, strict=True)
    ]
    return [*(value for value in states if value is not None), *stacked]


def node_name(node: ir.Node) -> str:
    """Returns a node's name, or its first output's."""
    return str(node.name or next((value.name for value in node.outputs if value.name), node.op_type))


def walk(graph: ir.Graph) -> Iterator[tuple[ir.Graph, ir.Node]]:
    """Yields every node with its graph, bodies after the node that has them."""
    for node in graph:
        yield graph, node
        for body in bodies_of(node).values():
            yield from walk(body)


def named_values(model: ir.Model) -> dict[str, ir.Value]:
    """Returns every value of a model by a name that is unique.

    Bodies may repeat a name; its second value is called ``name#2``, and so on in the order of `walk`.
    """
    found: dict[str, ir.Value] = {}
    seen: dict[str, int] = {}

    def add(value: ir.Value) -> None:
        if not value.name:
            return
        seen[value.name] = seen.get(value.name, 0) + 1
        found[value.name if seen[value.name] == 1 else f"{value.name}#{seen[value.name]}"] = value

    def visit(graph: ir.Graph) -> None:
        for value in graph.inputs:
            add(value)
        for value in graph.initializers.values():
            if not value.is_graph_input():
                add(value)
        for node in graph:
            for value in node.outputs:
                add(value)
            for body in bodies_of(node).values():
                visit(body)

    visit(model.graph)
    return found


def value_names(model: ir.Model) -> dict[ir.Value, str]:
    """Returns the name of every value, see `named_values`."""
    return {value: name for name, value in named_values(model).items()}


class Slots:
    """Numbers the values of a model."""

    def __init__(self) -> None:
        self._slots: dict[ir.Value, int] = {}

    def of(self, value: ir.Value) -> int:
        """Returns a value's number."""
        return self._slots.setdefault(value, len(self._slots))


def compile_graph(
    graph: ir.Graph,
    slots: Slots,
    run: Run,
    opset: int,
    constants: frozenset[ir.Value],
    freeze: Freezer,
) -> Program:
    """Returns the program of a graph.

    Args:
        graph: the graph or body.
        slots: numbers of the values, shared by all bodies.
        run: what all nodes share.
        opset: version of the operator set.
        constants: values that are not computed but held by the module; what only they need is left out.
        freeze: makes a function of a node that the bridge does not have.

    Raises:
        LstmoptError: an operator can neither be trained through nor be frozen.
    """
    nodes = _needed(graph, constants, freeze)
    program = Program(
        tuple(slots.of(value) for value in graph.inputs), tuple(slots.of(value) for value in graph.outputs)
    )
    kept = {slots.of(value) for value in (*constants, *graph.outputs)}
    last: dict[int, int] = {}
    own: set[int] = {slots.of(value) for value in graph.inputs}
    for index, node in enumerate(nodes):
        own.update(slots.of(value) for value in node.outputs if value.name)
        for value in _reads(node, freeze):
            last[slots.of(value)] = index
    frees: dict[int, list[int]] = {}
    for slot, index in last.items():
        if slot in own and slot not in kept:
            frees.setdefault(index, []).append(slot)
    for index, node in enumerate(nodes):
        bodies = {
            name: compile_graph(body, slots, run, opset, constants, freeze)
            for name, body in bodies_of(node).items()
        }
        function = freeze(node) if is_frozen(node) else OPS.get(node.op_type)
        made = _node(node, freeze.operands(node), slots, run, opset, tuple(frees.get(index, ())))
        program.steps.append((made, function, bodies))
    return program


def _node(
    node: ir.Node,
    operands: list[ir.Value | None],
    slots: Slots,
    run: Run,
    opset: int,
    release: tuple[int, ...],
) -> Node:
    return Node(
        op=node.op_type,
        name=node_name(node),
        opset=opset,
        attributes={
            name: _attribute(attribute)
            for name, attribute in node.attributes.items()
            if attribute.type.name != "GRAPH"
        },
        inputs=tuple(None if value is None else slots.of(value) for value in operands),
        outputs=tuple(slots.of(value) if value.name else None for value in node.outputs),
        run=run,
        release=release,
        drop_input=node.op_type in ("LSTM", "GRU") and not _behind_lstm(node.inputs[0]),
    )


def _attribute(attribute: ir.Attr) -> Any:
    if attribute.type.name == "TENSOR":
        return attribute.value.numpy()
    if attribute.type.name in ("INTS", "FLOATS", "STRINGS"):
        return tuple(attribute.value)
    return attribute.value


def _behind_lstm(value: ir.Value | None) -> bool:
    """Whether a value is an LSTM's output moved, which is dropped already."""
    while value is not None:
        node = value.producer()
        if node is None:
            return False
        if node.op_type in ("LSTM", "GRU"):
            return True
        if node.op_type == "Concat":
            return all(_behind_lstm(item) for item in node.inputs)
        if node.op_type not in LSTM_MOVERS:
            return False
        value = node.inputs[0]
    return False


def _reads(node: ir.Node, freeze: Freezer) -> list[ir.Value]:
    """Returns what a node is fed, its bodies included."""
    found = [value for value in freeze.operands(node) if value is not None]
    for body in bodies_of(node).values():
        for inner in body:
            found += _reads(inner, freeze)
        found += list(body.outputs)
    return found


def _needed(graph: ir.Graph, constants: frozenset[ir.Value], freeze: Freezer) -> list[ir.Node]:
    """Returns the nodes on which the outputs depend, in order (bodies are read whole)."""
    wanted = {value for value in graph.outputs if value not in constants}
    needed: list[ir.Node] = []
    for node in reversed(list(graph)):
        if any(value in wanted and value not in constants for value in node.outputs):
            needed.append(node)
            wanted.update(value for value in _reads(node, freeze) if value not in constants)
    return needed[::-1]
