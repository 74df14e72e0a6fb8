"""Sequences whose steps stand apart: selected from one value, or put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lstmopt.rnn.recognition.building import Builder
from lstmopt.rnn.recognition.regions import Constants, Operand


@dataclass(frozen=True)
class Selection:
    """One step of a value: where it is along which axis; of rank 2, or with ones at the axis.

    Attributes:
        source: the whole sequence.
        axis: of its steps.
        index: of this step; negative from the end.
    """

    source: ir.Value
    axis: int
    index: int


def selection(value: ir.Value, constants: Constants) -> Selection | None:
    """Returns which step of a sequence a value is, its axis taken away, or None."""
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Gather":
        index = constants.of(node.inputs[1])
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        if index is not None and index.ndim == 0 and node.inputs[0] is not None and axis in (0, 1):
            return Selection(node.inputs[0], axis, int(index))
        return None
    if node.op_type not in ("Squeeze", "Reshape") or node.inputs[0] is None:
        return None
    piece = node.inputs[0]
    found = _piece(piece, constants)
    if found is None or found.axis not in (0, 1):
        return None
    if node.op_type == "Squeeze":
        axes = (
            constants.of(node.inputs[1])
            if len(node.inputs) > 1
            else node.attributes["axes"].as_ints()
            if "axes" in node.attributes
            else None
        )
        return (
            found if axes is not None and [int(a) for a in axes] in ([found.axis], [found.axis - 3]) else None
        )
    return None


def _piece(value: ir.Value, constants: Constants) -> Selection | None:
    """Returns which step a value is that still has the axis, of size 1."""
    node = value.producer()
    if node is None or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    if node.op_type == "Split":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        size = None if source.shape is None or not 0 <= axis < len(source.shape) else source.shape[axis]
        index = value.index()
        if isinstance(size, int) and size == len(node.outputs) and index is not None:
            sizes = constants.of(node.inputs[1]) if len(node.inputs) > 1 else None
            given = [int(n) for n in sizes] if sizes is not None else [1] * size
            if "split" in node.attributes:
                given = list(node.attributes["split"].as_ints())
            return Selection(source, axis, index) if set(given) == {1} else None
        return None
    if node.op_type != "Slice":
        return None
    numbers: dict[str, list[int]] = {}
    for position, name in enumerate(("starts", "ends", "axes", "steps"), start=1):
        if name in node.attributes:
            numbers[name] = list(node.attributes[name].as_ints())
        elif position < len(node.inputs) and node.inputs[position] is not None:
            array = constants.of(node.inputs[position])
            if array is None:
                return None
            numbers[name] = [int(n) for n in array.reshape(-1)]
    if [len(part) for part in numbers.values()] != [1] * len(numbers) or numbers.get("steps", [1]) != [1]:
        return None
    if "starts" not in numbers or "axes" not in numbers:
        return None
    start, end = numbers["starts"][0], numbers["ends"][0]
    if end - start != 1 and not (start == -1 and end > 2**30):
        return None
    return Selection(source, numbers["axes"][0], start)


@dataclass(frozen=True)
class Steps:
    """The inputs of a chain as one sequence.

    Attributes:
        value: ``[sequence, batch, features]``.
        reverse: whether the chain runs from its end to its begin.
    """

    value: ir.Value
    reverse: bool


def whole(steps: Sequence[ir.Value], constants: Constants) -> tuple[ir.Value, int, bool] | None:
    """Returns the sequence whose steps, all of them, some values are; its axis; whether from the end."""
    found = [selection(value, constants) for value in steps]
    first = found[0]
    if first is None or any(
        item is None or item.source is not first.source or item.axis != first.axis for item in found
    ):
        return None
    shape = first.source.shape
    size = None if shape is None or len(shape) != 3 else shape[first.axis]
    if not isinstance(size, int) or size != len(steps):
        return None
    order = [item.index % size for item in found if item is not None]
    if order == list(range(size)):
        return first.source, first.axis, False
    return (first.source, first.axis, True) if order == list(range(size))[::-1] else None


def stacked(builder: Builder, operands: Sequence[Operand], constants: Constants) -> ir.Value:
    """Returns ``[sequence, batch, features]`` of steps in their order."""
    found = whole([operand.value for operand in operands], constants)
    if found is not None and not found[2]:
        return builder.transpose(found[0], (0, 1, 2) if found[1] == 0 else (1, 0, 2))
    steps = [
        builder.move("Unsqueeze", builder.flat(operand.value, operand.shape), [0]) for operand in operands
    ]
    return steps[0] if len(steps) == 1 else builder.add("Concat", steps, axis=0).outputs[0]


def joined(steps: Sequence[ir.Value], constants: Constants) -> tuple[ir.Value, int] | None:
    """Returns the value that a Concat makes of all steps in their order, and the new axis, or None."""
    for user, _ in steps[0].uses():
        if user.op_type != "Unsqueeze":
            continue
        for concat, _ in user.outputs[0].uses():
            if concat.op_type != "Concat" or len(concat.inputs) != len(steps):
                continue
            axis = concat.attributes["axis"].as_int()
            if all(
                part is not None and _unsqueezed(part, step, axis, constants)
                for part, step in zip(concat.inputs, steps, strict=True)
            ):
                return concat.outputs[0], axis
    return None


def _unsqueezed(part: ir.Value, step: ir.Value, axis: int, constants: Constants) -> bool:
    node = part.producer()
    if node is None or node.op_type != "Unsqueeze" or node.inputs[0] is not step or axis not in (0, 1):
        return False
    axes = node.attributes["axes"].as_ints() if "axes" in node.attributes else constants.of(node.inputs[1])
    return axes is not None and [int(a) for a in axes] in ([axis], [axis - 3])
