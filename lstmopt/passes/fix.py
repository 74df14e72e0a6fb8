"""Makes a model for one value or one shape of an input: a sampling rate, a mode, chunks of one length.

A layer behind an `If` that they decide is in the main graph afterwards, where it can be changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.passes.rewrites import FixShapes
from lstmopt.rnn.branches import SettleBranches
from lstmopt.rnn.constants import Array
from lstmopt.rnn.examples import dynamic_axes, example_inputs, given_sizes, real_inputs, sizes_for
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.proof import SHAPES, changed
from lstmopt.rnn.recognition.recognise import take_branches
from lstmopt.rnn.rewriting import rewrite

if TYPE_CHECKING:
    import onnx_ir as ir


def fix_inputs(
    model: ir.Model, values: Mapping[str, float], shapes: Mapping[str, Sequence[int]], where: str
) -> ir.Model:
    """Returns a copy without some inputs and dynamic axes, in which the branches that they decide are taken.

    Args:
        model: the graph, which stays as it is.
        values: for inputs that become constants, the value of all elements.
        shapes: for inputs that stay, the whole shape.
        where: the file, for messages.

    Raises:
        LstmoptError: there is no such input, it cannot hold the value or the shape, none is left, or the
            model does not compute the same.
    """
    import onnx_ir as ir

    given_sizes(model, shapes)
    fixed = rewrite(model, FixShapes(shapes)) if shapes else model.clone()
    for value in (value for node in fixed.graph.all_nodes() for value in node.outputs):
        if not value.is_graph_output():
            value.shape = None  # that of every call; it is inferred again
    inputs = {str(value.name): value for value in real_inputs(fixed)}
    constants: dict[str, Array] = {}
    for name, number in values.items():
        if name not in inputs:
            raise LstmoptError(where, f"has no input {name!r}", f"it has {', '.join(inputs)}")
        value = inputs[name]
        constants[name] = _constant(value, number, where)
        fixed.graph.inputs.remove(value)
        value.const_value = ir.tensor(constants[name], name=name)
        fixed.graph.register_initializer(value)
    if not real_inputs(fixed):
        raise LstmoptError(where, "would have no input left", "leave one to the caller")
    result = take_branches(fixed).model
    if not dynamic_axes(result):  # then shapes alone are the same in every call
        calls = [example_inputs(result, seed) for seed in range(2)]
        result = rewrite(result, SettleBranches(calls, switches=False))
    fault = _fault(model, result, constants)
    if fault:
        said = [f"{name}={number:g}" for name, number in values.items()]
        said += [f"{name}={'x'.join(map(str, shape))}" for name, shape in shapes.items()]
        raise LstmoptError(where, f"cannot be made for {', '.join(said)}: {fault}", "check value and shape")
    return result


def _constant(value: ir.Value, number: float, where: str) -> Array:
    """Returns what the input holds from now on."""
    if value.dtype is None or value.shape is None or not all(isinstance(s, int) for s in value.shape):
        raise LstmoptError(
            where, f"input {value.name} has no fixed size, and cannot be a constant", "export it with one"
        )
    array = np.full([int(size) for size in value.shape], number)  # type: ignore[arg-type]
    typed = array.astype(value.dtype.numpy())
    if typed.dtype.kind in "iub" and not np.array_equal(typed.astype(np.float64), array):
        raise LstmoptError(
            where, f"input {value.name} of type {value.dtype.name.lower()} cannot be {number:g}",
            "give a value of that type",
        )  # fmt: skip
    return typed


def _fault(model: ir.Model, fixed: ir.Model, constants: Mapping[str, Array]) -> str:
    """Returns what the model without the inputs computes otherwise than the model with them, or nothing."""
    reference = Reference(model, seeded=True)
    calls = []
    for seed, (batch, sequence) in enumerate(SHAPES):
        try:
            feeds = example_inputs(fixed, seed, sizes_for(fixed, batch, sequence))
            calls.append((feeds, reference.run({**feeds, **constants})))
        except LstmoptError:
            continue
    return changed(fixed, calls) if calls else "no inputs were found on which it runs with that value"
