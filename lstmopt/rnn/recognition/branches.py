"""If nodes whose condition is the same in every call: the branch that is taken becomes part of the graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import RANDOM_OPS, Array, constant_value, deciding_inputs, has_graph
from lstmopt.rnn.inlining import inline_branch, rename_apart
from lstmopt.rnn.layout import OPERATORS
from lstmopt.rnn.reader import B, P, R, W
from lstmopt.rnn.recognition.regions import Constants, Region, Unfit
from lstmopt.rnn.writer import free_name, set_initializer

SIZES = (1, 2, 3, 4, 5, 7, 8, 16, 31, 64, 100, 127, 500, 1000, 10_000, 100_000)
"""Of dynamic axes, in the calls that are thought of; besides them, the condition's own numbers."""

MIXED = 8
"""Calls in which every dynamic axis has a random one of those sizes."""

ROUNDS = 8
"""What is folded tells the shapes on which more conditions depend."""


class FoldedWeights(ir.passes.InPlacePass):
    """Makes initializers of recurrent weights that are constant expressions, those in bodies included."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        modified = False
        for node in [n for n in model.graph.all_nodes() if n.op_type in OPERATORS]:
            for position in (W, R, B, P):
                value = node.inputs[position] if position < len(node.inputs) else None
                array = None if value is None or value.is_initializer() else constant_value(value)
                if array is not None:
                    name = free_name(model.graph, f"{node.name or node.outputs[0].name}.{position}")
                    set_initializer(model.graph, node, position, name, np.ascontiguousarray(array))
                    modified = True
        return ir.passes.PassResult(model, RemoveUnusedNodesPass()(model).modified or modified)


class TakenBranches(ir.passes.InPlacePass):
    """Puts the branch that is always taken in the place of its If, as long as there is one.

    A condition is the same in every call if it is constant, or if it depends on nothing but shapes and
    no size of at least 1 changes it: ranks, and tests for empty tensors.

    Attributes:
        found: how many were folded.
    """

    def __init__(self) -> None:
        self.found = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the main graph and its bodies."""
        for _ in range(ROUNDS):
            ShapeInferencePass()(model)
            model.graph.sort()
            constants, opset = Constants(model), model.opset_imports.get("", 17)
            taken = [
                (node, branch)
                for node in model.graph.all_nodes()
                if node.op_type == "If" and (branch := _taken(node, constants, opset)) is not None
            ]
            if not taken:
                break
            for node, branch in taken:
                inline_branch(node, branch)
            self.found += len(taken)
            rename_apart(model)
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, self.found > 0)


def _taken(node: ir.Node, constants: Constants, opset: int) -> ir.Graph | None:
    condition = node.inputs[0]
    leaves = None if condition is None else _shape_nodes(condition, constants)
    if condition is None or leaves is None or deciding_inputs(condition):
        return None  # the last: of a shape that values decide, as that of NonZero, every size can come
    numbers: list[int] = []
    constant = constants.of(condition)
    if constant is not None:
        answers = {bool(constant.all())}
    else:
        try:
            region = Region([condition], {leaf.outputs[0] for leaf in leaves}, constants, opset, outer=True)
            numbers = _numbers(condition, constants)
            calls = _calls(leaves, [*SIZES, *numbers])
            answers = {bool(region.run(shapes)[0].all()) for shapes in calls}
        except (Unfit, LstmoptError):
            return None
    if len(answers) != 1:
        return None
    return node.attributes["then_branch" if answers.pop() else "else_branch"].as_graph()


def _shape_nodes(condition: ir.Value, constants: Constants) -> list[ir.Node] | None:
    """Returns the Shape and Size nodes on which alone a condition depends, or None."""
    found: dict[ir.Node, None] = {}
    seen, pending = {condition}, [condition]
    while pending:
        value = pending.pop()
        node = value.producer()
        if value.const_value is not None:
            continue
        if (
            node is None
            or node.op_type in RANDOM_OPS
            or has_graph(node)
            or node.domain not in ("", "ai.onnx")
        ):
            return None
        if node.op_type in ("Shape", "Size"):
            if node.inputs[0] is None or node.inputs[0].shape is None:
                return None
            found[node] = None
            continue
        new = {item for item in node.inputs if item is not None} - seen
        seen |= new
        pending += new
    return list(found)


def _numbers(condition: ir.Value, constants: Constants) -> list[int]:
    """Returns the whole numbers in a condition's expression, and their neighbours."""
    found: set[int] = set()
    seen, pending = {condition}, [condition]
    while pending:
        value = pending.pop()
        array, node = constants.of(value), value.producer()
        if array is not None:
            numbers = [int(n) for n in array.reshape(-1)[:16]] if array.dtype.kind in "if" else []
            found.update(n + d for n in numbers for d in (-1, 0, 1) if 1 <= n + d < 2**31)
        elif node is not None and node.op_type not in ("Shape", "Size"):
            new = {item for item in node.inputs if item is not None} - seen
            seen |= new
            pending += new
    return sorted(found)


def _calls(leaves: list[ir.Node], sizes: list[int]) -> Iterator[dict[ir.Value, Array]]:
    """Yields what Shape and Size nodes give in calls of many sizes; one where every size is fixed."""
    dynamic = any(
        not isinstance(size, int)
        for node in leaves
        if node.inputs[0] is not None
        for size in node.inputs[0].shape or ()
    )
    rng = np.random.default_rng(0)
    choices = [[size] for size in sizes] + [sizes] * MIXED if dynamic else [[1]]
    for choice in choices:
        yield {node.outputs[0]: _result(node, choice, rng) for node in leaves}


def _result(node: ir.Node, choice: list[int], rng: np.random.Generator) -> Array:
    value = node.inputs[0]
    assert value is not None and value.shape is not None
    shape = [size if isinstance(size, int) else int(rng.choice(choice)) for size in value.shape]
    if node.op_type == "Size":
        return np.asarray(int(np.prod([float(size) for size in shape])) if shape else 1, np.int64)
    begin = node.attributes["start"].as_int() if "start" in node.attributes else None
    end = node.attributes["end"].as_int() if "end" in node.attributes else None
    return np.asarray(shape[begin:end], np.int64)
