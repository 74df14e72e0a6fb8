"""The ops' nodes in a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.rnn.weights import RnnWeights

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "lstmopt"
VERSION = 1

Array = npt.NDArray[Any]


def sparse_layer(
    weights: RnnWeights,
    w: Sequence[bytes],
    r: Sequence[bytes],
    x: ir.Value,
    *,
    lengths: ir.Value | None = None,
    initial: Sequence[ir.Value | None] = (),
    name: str = "rnn",
    threads: int = 1,
) -> ir.Node:
    """Returns a `SparseLSTMSequence` or `SparseGRUSequence` with the inputs and outputs of ONNX's operator.

    Args:
        weights: all of the layer but W and R.
        w: packed input weights, one a direction.
        r: packed recurrent weights, one a direction; see `lstmopt.sparsity.formats.layers`.
        x: the input, ``[steps, batch, input]``.
        lengths: ``sequence_lens``.
        initial: ``initial_h`` and of an LSTM ``initial_c``, ``[directions, batch, hidden]``.
        name: of the node; its constants are named after it.
        threads: tasks that a step is divided into.

    The constants among its inputs are not registered as the graph's initializers yet: `constants_of`
    returns them.
    """
    import onnx_ir as ir

    directions, hidden = weights.num_directions, weights.hidden_size
    if len(w) != directions or len(r) != directions:
        raise ValueError(f"expected packed weights of {directions} directions")
    b = None if weights.b is None else weights.b.reshape(directions, -1)
    p = None if weights.p is None else weights.p.reshape(directions, -1)
    states = [*initial, *[None] * len(weights.cell.states)][: len(weights.cell.states)]
    inputs: list[ir.Value | None] = [
        x,
        _constant(f"{name}.W", _bytes(w)),
        _constant(f"{name}.R", _bytes(r)),
        None if b is None else _constant(f"{name}.B", np.asarray(b, np.float32)),
        lengths,
        *states,
        None if p is None else _constant(f"{name}.P", np.asarray(p, np.float32)),
    ]
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": weights.direction}
    if not weights.has_default_activations:
        attributes["activations"] = " ".join(weights.activations)
    for key in ("activation_alpha", "activation_beta"):
        if getattr(weights, key):
            attributes[key] = list(getattr(weights, key))
    if weights.clip is not None:
        attributes["clip"] = weights.clip
    if weights.input_forget:
        attributes["input_forget"] = 1
    if weights.reset_after:
        attributes["linear_before_reset"] = 1
    if threads > 1:
        attributes["threads"] = threads
    kind, outputs = f"Sparse{weights.cell.kind}Sequence", 1 + len(weights.cell.states)
    return ir.node(kind, inputs, attributes, domain=DOMAIN, num_outputs=outputs, name=name)


def sparse_matmul(
    w: bytes, x: ir.Value, *, bias: Array | None = None, name: str = "product", threads: int = 1
) -> ir.Node:
    """Returns a `SparseMatMul`: ``Y [..., units] = X [..., columns] . W' + bias``.

    Args:
        w: the packed matrix.
        x: the input.
        bias: ``[units]``.
        name: of the node; its constants are named after it.
        threads: tasks that a call is divided into.
    """
    import onnx_ir as ir

    inputs = [x, _constant(f"{name}.W", _bytes([w]))]
    if bias is not None:
        inputs.append(_constant(f"{name}.B", np.asarray(bias, np.float32)))
    attributes = {"threads": threads} if threads > 1 else {}
    return ir.node("SparseMatMul", inputs, attributes, domain=DOMAIN, num_outputs=1, name=name)


def constants_of(node: ir.Node) -> list[ir.Value]:
    """Returns the constants of a node of ours, for its graph to register."""
    made = (value for value in node.inputs if value is not None and value.graph is None)
    return [value for value in made if value.const_value is not None]


def sparse_layer_model(
    weights: RnnWeights,
    w: Sequence[bytes],
    r: Sequence[bytes],
    *,
    sequence: int | None = None,
    batch: int | None = None,
    states: bool = False,
    lengths: bool = False,
    threads: int = 1,
) -> ir.Model:
    """Returns a model of one bare layer, as `lstmopt.rnn.writer.rnn_model` does of a dense one.

    Args:
        weights: all of the layer but W and R.
        w: packed input weights, one a direction.
        r: packed recurrent weights, one a direction.
        sequence: fixed number of steps; dynamic where None.
        batch: fixed batch; dynamic where None.
        states: whether ``h_0`` and of an LSTM ``c_0`` are inputs, ``h_n`` and ``c_n`` outputs.
        lengths: whether ``lengths`` is an input.
        threads: see `sparse_layer`.
    """
    import onnx_ir as ir

    steps: int | str = sequence or "sequence"
    rows: int | str = batch or "batch"
    directions, hidden = weights.num_directions, weights.hidden_size

    def value(name: str, shape: Sequence[int | str], dtype: ir.DataType) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

    number = ir.DataType.FLOAT
    x = value("x", [steps, rows, weights.input_size], number)
    kinds = weights.cell.states
    state = [value(f"{kind}_0", [directions, rows, hidden], number) for kind in kinds] if states else []
    ends = value("lengths", [rows], ir.DataType.INT32) if lengths else None
    node = sparse_layer(weights, w, r, x, lengths=ends, initial=state, threads=threads)
    shapes = ([steps, directions, rows, hidden], *[[directions, rows, hidden]] * len(kinds))
    for output, name, shape in zip(
        node.outputs, ("y", *[f"{kind}_n" for kind in kinds]), shapes, strict=True
    ):
        output.name, output.shape, output.type = name, ir.Shape(shape), ir.TensorType(number)
    inputs = [x, *([ends] if ends is not None else []), *state]
    graph = ir.Graph(
        inputs,
        node.outputs if states else node.outputs[:1],
        nodes=[node],
        initializers=constants_of(node),
        opset_imports={"": 17, DOMAIN: VERSION},
        name="rnn",
    )
    return ir.Model(graph, ir_version=8)


def _bytes(blobs: Sequence[bytes]) -> Array:
    return np.frombuffer(b"".join(blobs), dtype=np.uint8)


def _constant(name: str, array: Array) -> ir.Value:
    import onnx_ir as ir

    tensor = ir.Tensor(array, name=name)
    return ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
    )
