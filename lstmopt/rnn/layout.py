"""Rewrites recurrent nodes of ONNX's batch-first layout into the layout that every runtime takes."""

from __future__ import annotations

import onnx_ir as ir

from lstmopt.rnn.reader import INITIAL_C, INITIAL_H, X, Y

OPERATORS = frozenset({"LSTM", "GRU", "RNN"})

SWAPPED = (1, 0, 2)
"""Of X, the initial and the last states: its own inverse."""

Y_BATCH_FIRST = (2, 0, 1, 3)
"""From ``[sequence, directions, batch, hidden]``."""


def is_batch_first(node: ir.Node) -> bool:
    """Whether a node is recurrent and has layout 1."""
    layout = node.attributes.get("layout")
    known = node.op_type in OPERATORS and node.domain in ("", "ai.onnx")
    return known and layout is not None and layout.as_int() == 1


class TimeFirst(ir.passes.InPlacePass):
    """Gives recurrent nodes layout 0, between transpositions: the graph computes the same.

    ONNX Runtime refuses layout 1, and TensorRT's parser reads it as 0 without a word.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every node of layout 1, those in subgraphs included."""
        nodes = [node for node in model.graph.all_nodes() if is_batch_first(node)]
        for node in nodes:
            _turn(node)
        return ir.passes.PassResult(model, bool(nodes))


def _turn(node: ir.Node) -> None:
    graph = node.graph
    assert graph is not None
    del node.attributes["layout"]
    for position in (X, INITIAL_H, INITIAL_C):
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is not None:
            turned = ir.node("Transpose", [value], {"perm": SWAPPED})
            graph.insert_before(node, turned)
            node.replace_input_with(position, turned.outputs[0])
    for position, value in enumerate(node.outputs):
        if not value.name:
            continue
        turned = ir.node("Transpose", [value], {"perm": Y_BATCH_FIRST if position == Y else SWAPPED})
        # Readers, and the graph's own output, see the same name, type and shape as before.
        made, name = turned.outputs[0], value.name
        made.type, made.shape, value.shape = value.type, value.shape, None
        value.replace_all_uses_with(made, replace_graph_outputs=True)
        turned.replace_input_with(0, value)
        graph.insert_after(node, turned)
        value.name = f"{name}.time_first"
        made.name = name
