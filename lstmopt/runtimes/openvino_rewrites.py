"""Rewrites that leave a model's function and keep OpenVINO (2026.4) from computing another one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import constant_value
from lstmopt.rnn.reader import X
from lstmopt.rnn.states import MOVERS
from lstmopt.rnn.writer import clear_unused, free_name

RECURRENT = ("LSTM", "GRU", "RNN")

LOOKERS = frozenset({"Shape", "Size"})
"""Readers that see no number of a tensor."""

CLIP_BY_INPUTS = 11
"""First opset whose `Clip` takes its bounds as inputs."""

CHOOSING = 9
"""First opset with `Where`."""


class OwnInputs(ir.passes.InPlacePass):
    """Gives each recurrent node that shares its input a `Clip` of its own before it, which changes nothing.

    OpenVINO transposes what such a node reads, merges equal transposes, and then makes a reshape of the one
    that stays, as the kernel can do without: everybody else reads wrong numbers wherever the batch is not 1.
    Two nodes, one each way, or a layer beside an attention are enough. An identity would be dropped, and
    clips with equal bounds be merged; the largest numbers bound nothing but infinity.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        shared = [node for node in model.graph.all_nodes() if shares_input(node)]
        for number, node in enumerate(shared):
            value = node.inputs[X]
            assert value is not None and node.graph is not None
            clip = _clip(value, number, model.graph.opset_imports[""])
            node.graph.insert_before(node, clip)
            node.replace_input_with(X, clip[-1].outputs[0])
        return ir.passes.PassResult(model, bool(shared))


def shares_input(node: ir.Node) -> bool:
    """Whether a recurrent node's input, or what that was moved from, has other readers."""
    if node.op_type not in RECURRENT:
        return False
    return any(len(_readers(value)) > 1 for value in _moved_from(node.inputs[X]))


def _readers(value: ir.Value) -> list[ir.Node]:
    return [node for node, _ in value.uses() if node.op_type not in LOOKERS]


def _moved_from(value: ir.Value | None) -> Iterator[ir.Value]:
    """Yields a value and those that it is a rearrangement of."""
    while value is not None:
        yield value
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in MOVERS else None


def _clip(value: ir.Value, number: int, opset: int) -> list[ir.Node]:
    kind = value.dtype if value.dtype is not None and value.dtype.is_floating_point() else ir.DataType.FLOAT
    high = np.finfo(kind.numpy()).max
    for _ in range(number):  # bounds of its own
        high = np.nextafter(high, high.dtype.type(0))
    output = ir.Value(name=f"{value.name}.own{number}", type=value.type, shape=value.shape)
    if opset < CLIP_BY_INPUTS:
        return [ir.node("Clip", [value], {"min": float(-high), "max": float(high)}, outputs=[output])]
    bounds = [
        ir.node(
            "Constant",
            [],
            {"value": ir.tensor(np.array(bound, high.dtype))},
            outputs=[ir.Value(name=f"{output.name}.{name}")],
        )
        for name, bound in (("min", -high), ("max", high))
    ]
    return [*bounds, ir.node("Clip", [value, *(node.outputs[0] for node in bounds)], outputs=[output])]


class PlainSlopes(ir.passes.InPlacePass):
    """Writes out `PRelu` with slopes of one axis, which OpenVINO takes for those of axis 1 and not the last.

    As a choice: sums of `Relu` are recognised and become what they were.

    Raises:
        LstmoptError: an opset without `Where`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        opset = model.graph.opset_imports[""]
        found = [node for node in model.graph.all_nodes() if has_flat_slopes(node)]
        for node in found:
            if opset < CHOOSING:
                raise LstmoptError(
                    node.name or "PRelu",
                    f"OpenVINO misreads its slopes, and opset {opset} has no other form",
                    f"export with opset {CHOOSING} or newer",
                )
            x, slope = node.inputs
            assert node.graph is not None
            kind = np.float32 if x is None or x.dtype is None else x.dtype.numpy()
            zero = ir.node("Constant", [], {"value": ir.tensor(np.array(0, kind))})
            below = ir.node("Less", [x, zero.outputs[0]])
            steep = ir.node("Mul", [slope, x])
            either = ir.node("Where", [below.outputs[0], steep.outputs[0], x])
            made = [zero, below, steep, either]
            for place, each in enumerate(made):
                each.outputs[0].name = f"{node.outputs[0].name}.prelu{place}"
            new, old = either.outputs[0], node.outputs[0]
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_nodes_and_values(node.graph, node, [node], made, [old], [new])
        return ir.passes.PassResult(model, bool(found))


def has_flat_slopes(node: ir.Node) -> bool:
    """Whether a node is a `PRelu` whose slopes have one axis, of more than one number as far as is known."""
    if node.op_type != "PRelu" or node.domain not in ("", "ai.onnx"):
        return False
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    return shape is None or (len(shape) == 1 and shape[0] != 1)


class FloatWeights(ir.passes.InPlacePass):
    """Puts floats in the place of constants that `DequantizeLinear` makes for no product of integers.

    OpenVINO rounds what such weights are multiplied with to 8 bits, in f32 too, and takes scales along a sum
    for those of the columns where a product has few rows.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        modified = False
        for node in [node for node in model.graph.all_nodes() if dequantises_constant(node)]:
            output = node.outputs[0]
            floats = None if _for_integers(node) else constant_value(output)
            if floats is None or output.is_graph_output():
                continue
            tensor = ir.Tensor(floats, name=free_name(model.graph, f"{output.name}.floats"))
            value = ir.Value(
                name=tensor.name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
            )
            model.graph.register_initializer(value)
            output.replace_all_uses_with(value)
            modified = True
        if modified:
            clear_unused(model)
        return ir.passes.PassResult(model, modified)


def dequantises_constant(node: ir.Node) -> bool:
    """Whether a node makes floats of constant integers; their numbers need not be there."""
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
        return False
    maker = node.inputs[0].producer()
    return node.inputs[0].is_initializer() or (maker is not None and maker.op_type == "Constant")


def _for_integers(node: ir.Node) -> bool:
    """Whether all that reads such floats are products of integers, with scales that they can take out."""
    whole, scale = node.inputs[0], node.inputs[1]
    sizes = None if scale is None else scale.shape
    if whole is None or whole.shape is None or sizes is None or "block_size" in node.attributes:
        return False
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    along = None if all(size == 1 for size in sizes) else axis % len(whole.shape)
    return all(
        position == 1
        and user.op_type in ("MatMul", "Gemm", "Conv")
        and _is_rounded(user.inputs[0])
        and at in (None, _columns(user, len(whole.shape)))
        for user, position, at in _read_by(node.outputs[0], along)
    )


def _read_by(value: ir.Value, along: int | None) -> Iterator[tuple[ir.Node, int, int | None]]:
    """Yields the readers of a value, through transpositions, and the axis of its scales there."""
    for user, position in value.uses():
        if user.op_type == "Transpose":
            order = user.attributes["perm"].as_ints() if "perm" in user.attributes else None
            rank = len(order) if order is not None else len(value.shape or ())
            places = list(order if order is not None else range(rank)[::-1])
            yield from _read_by(user.outputs[0], None if along is None else places.index(along))
        else:
            yield user, position, along


def _is_rounded(value: ir.Value | None) -> bool:
    """Whether a value holds integers times a scale, as floats."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            return True
        if node.op_type not in MOVERS | {"Relu", "MaxPool"}:
            return False
        value = node.inputs[0]
    return False


def _columns(node: ir.Node, rank: int) -> int:
    """Returns the axis of a product's weights over which it does not sum."""
    turned = "transB" in node.attributes and node.attributes["transB"].as_int()
    return 0 if node.op_type == "Conv" or turned else rank - 1
