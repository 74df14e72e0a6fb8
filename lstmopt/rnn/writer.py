"""Writes `RnnWeights` back into a graph, or as a model of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.rnn.reader import B, P, R, RnnLayer, W
from lstmopt.rnn.weights import FloatArray, RnnWeights

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]


def onnx_arrays(weights: RnnWeights) -> dict[int, FloatArray]:
    """Returns W and R, ``[directions, gates * hidden, ...]``, B and P by ONNX's input position."""
    directions, gates, hidden, inputs = weights.w.shape
    arrays: dict[int, FloatArray] = {
        W: weights.w.reshape(directions, gates * hidden, inputs),
        R: weights.r.reshape(directions, gates * hidden, hidden),
    }
    if weights.b is not None:
        arrays[B] = weights.b.reshape(directions, 2 * gates * hidden)
    if weights.p is not None:
        arrays[P] = weights.p.reshape(directions, len(weights.cell.peepholes) * hidden)
    return arrays


def write_weights(model: ir.Model, layer: RnnLayer, weights: RnnWeights) -> None:
    """Gives a layer of a model new weights, in place.

    They become initializers of the layer's own: an initializer or a constant expression that other
    nodes use as well stays as it is for them.

    Args:
        model: the model that holds the layer; callers pass a copy of theirs.
        layer: a layer that `find_rnns` found in this model.
        weights: of any hidden and input size; the caller keeps the rest of the graph fitting.
    """
    import onnx_ir as ir

    for position, array in onnx_arrays(weights).items():
        name = _own_name(model.graph, layer.input(position), f"{layer.name}.{'XWRB___P'[position]}")
        set_initializer(model.graph, layer.node, position, name, np.ascontiguousarray(array))
    layer.node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", weights.hidden_size)


def _own_name(graph: ir.Graph, value: ir.Value | None, wanted: str) -> str:
    """Returns the name of an initializer of the main graph that one node reads, or else a new one."""
    mine = value is not None and value.is_initializer() and value.graph is graph
    if value is None or not mine or len(value.uses()) > 1 or value.is_graph_output():
        return free_name(graph, wanted)
    return str(value.name)


def set_initializer(graph: ir.Graph, node: ir.Node, position: int, name: str, array: Array) -> None:
    """Makes a node's input an initializer of that name and value, replacing one of the same name."""
    import onnx_ir as ir

    tensor = ir.Tensor(array, name=name)
    existing = graph.initializers.get(name)
    if existing is not None:
        existing.const_value = tensor
        existing.shape = ir.Shape(array.shape)
        node.replace_input_with(position, existing)
        return
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    if position >= len(node.inputs):
        node.resize_inputs(position + 1)
    node.replace_input_with(position, value)


def clear_unused(model: ir.Model) -> bool:
    """Removes nodes and initializers that nothing reads, in bodies too; tells whether there were any."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    modified = RemoveUnusedNodesPass()(model).modified
    for body in model.graph.subgraphs():
        kept = {*body.inputs, *body.outputs}
        for name, value in list(body.initializers.items()):
            if not value.uses() and value not in kept:  # the pass clears those of the main graph alone
                body.initializers.pop(name)
                modified = True
    return modified


def replace_constant(model: ir.Model, node: ir.Node, position: int, array: Array) -> None:
    """Gives one input of one node another constant; other readers of the old one keep it."""
    name = _own_name(model.graph, node.inputs[position], f"{node.name or node.op_type}.{position}")
    set_initializer(model.graph, node, position, name, np.ascontiguousarray(array))


def free_name(graph: ir.Graph, wanted: str) -> str:
    """Returns a name that nothing in the graph or in its bodies has yet."""
    taken = set()
    for each in (graph, *graph.subgraphs()):
        taken |= {value.name for value in each.inputs} | set(each.initializers)
        taken |= {output.name for node in each for output in node.outputs}
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def rnn_model(
    weights: RnnWeights,
    *,
    sequence: int | None = None,
    batch: int | None = None,
    states: bool = False,
    opset: int = 17,
) -> ir.Model:
    """Returns a model of one bare layer.

    Its input is ``x [sequence, batch, input]``, its output ``y [sequence, directions, batch, hidden]``.

    Args:
        weights: the layer's weights.
        sequence: fixed number of steps; dynamic where None.
        batch: fixed batch; dynamic where None.
        states: whether ``h_0``, ``c_0`` are inputs and ``h_n``, ``c_n`` outputs,
            ``[directions, batch, hidden]``.
        opset: of the ONNX file.
    """
    import onnx
    import onnx_ir as ir

    element = onnx.helper.np_dtype_to_tensor_dtype(weights.w.dtype)
    steps: int | str = sequence or "sequence"
    rows: int | str = batch or "batch"
    directions, hidden = weights.num_directions, weights.hidden_size
    arrays = {"XWRB___P"[position]: array for position, array in onnx_arrays(weights).items()}
    info = onnx.helper.make_tensor_value_info
    inputs = [info("x", element, [steps, rows, weights.input_size])]
    outputs = [info("y", element, [steps, directions, rows, hidden])]
    names = ["x", "W", "R", "B" if "B" in arrays else "", ""]
    results = ["y"]
    if states:
        inputs += [info(f"{kind}_0", element, [directions, rows, hidden]) for kind in weights.cell.states]
        outputs += [info(f"{kind}_n", element, [directions, rows, hidden]) for kind in weights.cell.states]
        results += [f"{kind}_n" for kind in weights.cell.states]
    names += [f"{kind}_0" if states else "" for kind in weights.cell.states]
    names.append("P" if "P" in arrays else "")
    while not names[-1]:
        names.pop()
    attributes: dict[str, object] = {"hidden_size": hidden, "direction": weights.direction}
    for name in ("activations", "activation_alpha", "activation_beta"):
        if getattr(weights, name):
            attributes[name] = list(getattr(weights, name))
    if weights.clip is not None:
        attributes["clip"] = weights.clip
    if weights.input_forget:
        attributes["input_forget"] = 1
    if weights.reset_after:
        attributes["linear_before_reset"] = 1
    node = onnx.helper.make_node(weights.cell.kind, names, results, name="rnn", **attributes)
    tensors = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()
    ]
    graph = onnx.helper.make_graph([node], "rnn", inputs, outputs, tensors)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    model: ir.Model = ir.from_proto(proto)
    return model
