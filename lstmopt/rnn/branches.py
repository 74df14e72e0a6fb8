"""Takes the branch of an `If` that some calls take, for runtimes that compile one shape at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lstmopt.rnn.execution import Reference
from lstmopt.rnn.writer import free_name

Feeds = Mapping[str, npt.NDArray[Any]]


class SettleBranches(ir.passes.InPlacePass):
    """Inlines the branch that all of some calls take, where shapes and switches alone decide it.

    A switch is an input of one whole number or truth value, such as a sampling rate. An `If` that other
    values decide stays.

    Args:
        calls: whole inputs; the model is made for calls like these.

    Attributes:
        relied_on: values of the switches that decided something, by name.
    """

    def __init__(self, calls: Sequence[Feeds]) -> None:
        self._calls = calls
        self.relied_on: dict[str, int] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        modified = False
        while self._calls and (settled := self._settled(model)):
            for node, taken in settled.items():
                _inline(model.graph, node, "then_branch" if taken else "else_branch")
            RemoveUnusedNodesPass()(model)
            modified = True
        return ir.passes.PassResult(model, modified)

    def _settled(self, model: ir.Model) -> dict[ir.Node, bool]:
        """Returns the `If` nodes of the main graph that are decided, and how."""
        switches = {str(value.name) for value in model.graph.inputs if _is_switch(value)}
        found: dict[ir.Node, set[str]] = {}
        for node in model.graph:
            condition = node.inputs[0] if node.op_type == "If" else None
            if condition is not None and (by := _deciding(condition)) <= switches:
                found[node] = by
        if not found:
            return {}
        names = {node: str(node.inputs[0].name) for node in found if node.inputs[0] is not None}
        reference = Reference(model, list(names.values()))
        runs = [{**call, **reference.run(call)} for call in self._calls]
        decided = {}
        for node, by in found.items():
            values = {bool(np.all(run[names[node]])) for run in runs}
            given = [{int(call[name].item()) for call in self._calls} for name in sorted(by)]
            if len(values) == 1 and all(len(each) == 1 for each in given):
                decided[node] = values.pop()
                self.relied_on |= {name: each.pop() for name, each in zip(sorted(by), given, strict=True)}
        return decided


def _is_switch(value: ir.Value) -> bool:
    whole = value.dtype is not None and not value.dtype.is_floating_point()
    return whole and value.shape is not None and all(size == 1 for size in value.shape)


def _deciding(value: ir.Value) -> set[str]:
    """Returns the inputs whose values, not only shapes, a value depends on."""
    found: set[str] = set()
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        each = pending.pop()
        if each in seen:
            continue
        seen.add(each)
        producer = each.producer()
        if producer is None:
            if not each.is_initializer():
                found.add(str(each.name))
        elif producer.op_type not in ("Shape", "Size"):
            pending += [item for item in producer.inputs if item is not None]
            pending += [
                item
                for attribute in producer.attributes.values()
                if attribute.type.name == "GRAPH"
                for inner in attribute.as_graph().all_nodes()
                for item in inner.inputs
                if item is not None
            ]
    return found


def _inline(graph: ir.Graph, node: ir.Node, branch: str) -> None:
    """Puts the nodes of one branch in the place of an `If`."""
    body = node.attributes[branch].as_graph()
    nodes = list(body)
    for value in list(body.initializers.values()):
        body.initializers.pop(str(value.name))
        value.name = free_name(graph, str(value.name))
        graph.register_initializer(value)
    results = list(body.outputs)
    body.outputs.clear()
    body.remove(nodes)
    for inner in nodes:
        for value in inner.outputs:
            if value.name:
                value.name = free_name(graph, str(value.name))
        graph.insert_before(node, inner)
    for index, (before, after) in enumerate(zip(node.outputs, results, strict=True)):
        name = before.name
        if after.producer() not in nodes or before.is_graph_output():
            # The graph's own output keeps its name; what comes from outside the branch keeps its own.
            copy = ir.node("Identity", [after], outputs=[ir.Value(name=f"{name}.{index}")])
            graph.insert_before(node, copy)
            after = copy.outputs[0]
        after.type = after.type or before.type
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        if name and after.is_graph_output():
            before.name, after.name = f"{name}.settled", name
    graph.remove(node)
