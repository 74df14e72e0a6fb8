"""Puts the nodes of an If's branch in the place of the If."""

from __future__ import annotations

import onnx_ir as ir

from lstmopt.rnn.rewriting import bodies


def inline_branch(node: ir.Node, branch: ir.Graph) -> None:
    """Moves a branch's nodes before its If, whose outputs become copies of the branch's."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for value in list(branch.initializers.values()):
        del branch.initializers[str(value.name)]
        if str(value.name) in graph.initializers:
            value.name = f"{value.name}.{node.name or node.outputs[0].name}"
        graph.register_initializer(value)
    results = list(branch.outputs)
    branch.outputs.clear()
    other = next(g for a in node.attributes.values() if (g := a.as_graph()) is not branch)
    # What the other branch read or handed on from outside would count as used there.
    for left in (other, *(graph for inner in other.all_nodes() for graph in bodies(inner))):
        left.outputs.clear()
    for inner in list(other.all_nodes()):
        for position in range(len(inner.inputs)):
            inner.replace_input_with(position, None)
    for inner in list(branch):
        branch.remove(inner)
        graph.insert_before(node, inner)
    for old, new in zip(node.outputs, results, strict=True):
        copy = ir.node("Identity", [new])
        made, name = copy.outputs[0], old.name
        made.type, made.shape = old.type or new.type, new.shape
        graph.insert_before(node, copy)
        old.replace_all_uses_with(made, replace_graph_outputs=True)
        old.name, made.name = f"{name}.of_if", name
    graph.remove(node, safe=True)


def rename_apart(model: ir.Model) -> None:
    """Gives values that came from different branches different names."""
    interface = {value for graph in model.graphs() for value in (*graph.inputs, *graph.outputs)}
    made = [value for node in model.graph.all_nodes() for value in node.outputs if value.name]
    held = [value for graph in model.graphs() for value in graph.initializers.values()]
    used = {str(value.name) for value in (*interface, *held)}
    every = used | {str(value.name) for value in made}
    for value in made:
        name, number = str(value.name), 0
        if value in interface:
            continue
        while name in used:
            number += 1
            candidate = f"{value.name}.{number}"
            name = candidate if candidate not in every else name
        value.name = name
        used.add(name)
        every.add(name)
    names: set[str] = set()
    for node in model.graph.all_nodes():
        name, number = node.name or "", 0
        while name and name in names:
            number += 1
            name = f"{node.name}.{number}"
        node.name = name
        names.add(name)
