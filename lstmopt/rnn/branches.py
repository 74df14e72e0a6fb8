"""Takes the branch of an `If` that some calls take, for runtimes that compile one shape at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from lstmopt.rnn.constants import Array, constant_value, deciding_inputs
from lstmopt.rnn.examples import dynamic_axes
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.inlining import inline_branch, rename_apart
from lstmopt.rnn.recognition.bounds import always
from lstmopt.rnn.recognition.regions import Constants

Feeds = Mapping[str, npt.NDArray[Any]]


class SettleBranches(ir.passes.InPlacePass):
    """Inlines the branch that all of some calls take, where shapes and switches alone decide it.

    A switch is an input of one whole number or truth value, such as a sampling rate. An `If` that other
    values decide stays.

    Args:
        calls: whole inputs; the model is made for calls like these.
        switches: whether switches may decide too, and not shapes alone.

    Attributes:
        relied_on: values of the switches that decided something, by name.
        shaped: names of the `If` nodes that other shapes might decide otherwise.
    """

    def __init__(self, calls: Sequence[Feeds], switches: bool = True) -> None:
        self._calls = calls
        self._switches = switches
        self.relied_on: dict[str, int] = {}
        self.shaped: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        modified = False
        while self._calls and (settled := self._settled(model)):
            for node, taken in settled.items():
                branch = node.attributes["then_branch" if taken else "else_branch"].as_graph()
                inline_branch(node, branch)
            rename_apart(model)
            RemoveUnusedNodesPass()(model)
            modified = True
        return ir.passes.PassResult(model, modified)

    def _settled(self, model: ir.Model) -> dict[ir.Node, bool]:
        """Returns the `If` nodes of the main graph that are decided, and how."""
        switches = {str(v.name) for v in model.graph.inputs if self._switches and _is_switch(v)}
        found: dict[ir.Node, set[str]] = {}
        for node in model.graph:
            condition = node.inputs[0] if node.op_type == "If" else None
            if condition is not None and (by := deciding_inputs(condition)) <= switches:
                found[node] = by
        if not found:
            return {}
        names = {node: str(node.inputs[0].name) for node in found if node.inputs[0] is not None}
        reference = Reference(model, list(names.values()))
        runs = [{**call, **reference.run(call)} for call in self._calls]
        decided: dict[ir.Node, bool] = {}
        inputs: dict[ir.Node, dict[str, Array]] = {}
        for node, by in found.items():
            values = {bool(np.all(run[names[node]])) for run in runs}
            given = [{int(call[name].item()) for call in self._calls} for name in sorted(by)]
            if len(values) == 1 and all(len(each) == 1 for each in given):
                decided[node] = values.pop()
                inputs[node] = {name: np.asarray(self._calls[0][name]) for name in by}
                self.relied_on |= {name: each.pop() for name, each in zip(sorted(by), given, strict=True)}
        if dynamic_axes(model):
            self.shaped += _shaped(model, inputs, decided)
        return decided


def _shaped(
    model: ir.Model, inputs: Mapping[ir.Node, Mapping[str, Array]], decided: Mapping[ir.Node, bool]
) -> list[str]:
    """Returns the names of `If` nodes that are not decided by some inputs' values alone.

    Args:
        model: their graph, which stays as it is.
        inputs: the nodes, each with the inputs that have these values.
        decided: whether their condition is true.
    """
    places = {index: node for index, node in enumerate(model.graph) if node in inputs}
    copy = model.clone()
    twins = {places[index]: node for index, node in enumerate(copy.graph) if index in places}
    ShapeInferencePass()(copy)
    copy.graph.sort()
    constants = Constants(copy)
    values = {str(value.name): value for value in copy.graph.inputs}
    names = []
    for node, twin in twins.items():
        given = {values[name]: array for name, array in inputs[node].items()}
        condition = twin.inputs[0]
        decisive = condition is not None and always(condition, constants, given) is not None
        if not decisive and not (decided[node] and _fails_elsewhere(node)):
            names.append(str(node.name or node.outputs[0].name))
    return names


def _fails_elsewhere(node: ir.Node) -> bool:
    """Whether an `If` squeezes an axis where its size is one: what is squeezed then takes no other size.

    So PyTorch exports ``squeeze(axis)``.
    """
    equal = _source(node, "Equal")
    gather = None if equal is None else _source(equal, "Gather")
    shape = None if gather is None else _source(gather, "Shape")
    if equal is None or gather is None or shape is None:
        return False
    if {"start", "end"} & set(shape.attributes):
        return False
    one, axis = constant_value(equal.inputs[1]), constant_value(gather.inputs[1])
    if one is None or axis is None or one.size != 1 or one.item() != 1 or axis.size != 1:
        return False
    branch = node.attributes["then_branch"].as_graph()
    return any(_squeezes(item, shape.inputs[0], int(axis.item())) for item in branch)


def _source(node: ir.Node, kind: str) -> ir.Node | None:
    """Returns what makes a node's first input, where it is of some kind."""
    producer = None if node.inputs[0] is None else node.inputs[0].producer()
    return producer if producer is not None and producer.op_type == kind else None


def _squeezes(node: ir.Node, value: ir.Value | None, axis: int) -> bool:
    if node.op_type != "Squeeze" or node.domain not in ("", "ai.onnx") or node.inputs[0] is not value:
        return False
    if "axes" in node.attributes:
        return axis in node.attributes["axes"].as_ints()
    axes = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
    return axes is not None and axis in axes


def _is_switch(value: ir.Value) -> bool:
    whole = value.dtype is not None and not value.dtype.is_floating_point()
    return whole and value.shape is not None and all(size == 1 for size in value.shape)
