"""If nodes whose condition is the same in every call: the branch that is taken becomes part of the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from lstmopt.rnn.constants import constant_value, deciding_inputs
from lstmopt.rnn.inlining import inline_branch, rename_apart
from lstmopt.rnn.layout import OPERATORS
from lstmopt.rnn.reader import B, P, R, W
from lstmopt.rnn.recognition.bounds import always
from lstmopt.rnn.recognition.regions import Constants
from lstmopt.rnn.writer import clear_unused, free_name, set_initializer

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
        return ir.passes.PassResult(model, clear_unused(model) or modified)


class TakenBranches(ir.passes.InPlacePass):
    """Puts the branch that is always taken in the place of its If, as long as there is one.

    A condition is the same in every call if it is constant, or if it depends on nothing but shapes and
    provably no size of at least 1 changes it: ranks, fixed sizes, and tests for empty tensors.

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
            constants = Constants(model)
            taken = [
                (node, branch)
                for node in model.graph.all_nodes()
                if node.op_type == "If" and (branch := _taken(node, constants)) is not None
            ]
            if not taken:
                break
            for node, branch in taken:
                inline_branch(node, branch)
            self.found += len(taken)
            rename_apart(model)
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, self.found > 0)


def _taken(node: ir.Node, constants: Constants) -> ir.Graph | None:
    condition = node.inputs[0]
    if condition is None or deciding_inputs(condition):
        return None  # of a shape that values decide, as that of NonZero, every size can come
    answer = always(condition, constants)
    return None if answer is None else node.attributes["then_branch" if answer else "else_branch"].as_graph()
