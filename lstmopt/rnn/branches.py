"""Takes the branch of an `If` that some calls take, for runtimes that compile one shape at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lstmopt.rnn.constants import deciding_inputs
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.inlining import inline_branch, rename_apart

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
    """

    def __init__(self, calls: Sequence[Feeds], switches: bool = True) -> None:
        self._calls = calls
        self._switches = switches
        self.relied_on: dict[str, int] = {}

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
