"""Loops that carry what never changes, as tf2onnx carries weights: the body reads it from outside."""

from __future__ import annotations

import onnx_ir as ir

COUNT, GOING = 0, 1
"""Positions of a Loop's and of its body's first inputs; what is carried comes behind them."""


class LeanLoops(ir.passes.InPlacePass):
    """Takes out of every Loop of the main graph what each step hands on as it is.

    The result is the same: a value that no step changes is what came in.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        found = [node for node in model.graph if node.op_type == "Loop" and node.domain in ("", "ai.onnx")]
        done = [_lean(node, model.graph) for node in found]
        return ir.passes.PassResult(model, any(done))


def _lean(node: ir.Node, graph: ir.Graph) -> bool:
    body = node.attributes["body"].as_graph()
    first = GOING + 1
    fixed = [
        place
        for place in range(len(body.inputs) - first)
        if _handed_on(body.outputs[1 + place]) is body.inputs[first + place]
        and node.inputs[first + place] is not None
    ]
    if not fixed:
        return False
    for place in reversed(fixed):
        inner, outer, after = body.inputs[first + place], node.inputs[first + place], node.outputs[place]
        assert outer is not None
        del body.outputs[1 + place]
        inner.replace_all_uses_with(outer, replace_graph_outputs=True)
        del body.inputs[first + place]
        if after.is_graph_output():  # it keeps its name
            copy, name = ir.node("Identity", [outer]), after.name
            made = copy.outputs[0]
            made.type, made.shape = after.type, after.shape
            graph.insert_before(node, copy)
            after.replace_all_uses_with(made, replace_graph_outputs=True)
            after.name, made.name = f"{name}.carried", name
        else:
            after.replace_all_uses_with(outer)
    kept = [place for place in range(len(node.outputs)) if place not in fixed]
    inputs = [value for place, value in enumerate(node.inputs) if place - first not in fixed]
    lean = ir.Node("", "Loop", inputs, list(node.attributes.values()), num_outputs=len(kept), name=node.name)
    for value, place in zip(lean.outputs, kept, strict=True):
        old = node.outputs[place]
        value.name, value.type, value.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [lean], [node.outputs[place] for place in kept], lean.outputs
    )
    return True


def _handed_on(value: ir.Value) -> ir.Value:
    """Returns what a value is, shape and all."""
    while (node := value.producer()) is not None and node.op_type == "Identity":
        assert node.inputs[0] is not None
        value = node.inputs[0]
    return value
