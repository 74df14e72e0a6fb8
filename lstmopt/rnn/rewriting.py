"""Runs graph rewrites: passes of `onnx_ir` that see a model and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lstmopt.errors import LstmoptError
from lstmopt.rnn.execution import first_line

if TYPE_CHECKING:
    import onnx_ir as ir


def rewrite(model: ir.Model, *passes: ir.passes.PassBase) -> ir.Model:
    """Returns a copy of a model after some passes; the model that was given is as it was.

    An in-place pass that is interrupted leaves a half-changed model: here it is the copy that is lost.

    Args:
        model: the graph.
        passes: in the order in which they run.

    Raises:
        LstmoptError: a pass has failed; the line names it.
    """
    result = model.clone()
    for item in passes:
        name = f"pass {type(item).__name__}"
        try:
            result = item(result).model
        except LstmoptError as error:
            raise LstmoptError(f"{name}, {error.where}", error.fault, error.mend) from error
        except Exception as error:  # a graph that nobody has thought of
            cause = error.__cause__ or error
            raise LstmoptError(
                name,
                f"failed on this graph ({type(cause).__name__}: {first_line(cause)})",
                "report the model",
            ) from error
    _keep_apart(result)
    return result


def _keep_apart(model: ir.Model) -> None:
    """Gives values of bodies other names than those of the graphs around them, which ONNX does not allow.

    `onnx_ir` names new values graph by graph.
    """
    graphs = list(model.graphs())
    if len(graphs) == 1:
        return
    every = {str(value.name) for graph in graphs for value in _made(graph)}
    _rename(model.graph, set(), every)


def _rename(graph: ir.Graph, around: set[str], every: set[str]) -> None:
    for value in list(_made(graph)):
        name, number = str(value.name), 0
        while name in around:
            number += 1
            candidate = f"{value.name}.inner{number}"
            name = name if candidate in every else candidate
        if name != value.name:
            value.name = name
            every.add(name)
    inside = around | {str(value.name) for value in _made(graph)}
    for node in graph:
        for body in bodies(node):
            _rename(body, inside, every)


def _made(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yields the values that a graph itself makes and that have a name."""
    for values in (graph.inputs, graph.initializers.values(), *(node.outputs for node in graph)):
        yield from (value for value in values if value.name)


def bodies(node: ir.Node) -> list[ir.Graph]:
    """Returns the graphs that a node holds: branches, the body of a loop."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        match attribute.type.name:
            case "GRAPH":
                found.append(attribute.as_graph())
            case "GRAPHS":
                found += attribute.as_graphs()
    return found
