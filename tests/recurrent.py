"""One recurrent node in ONNX, in every form that it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": ("h", "c"), "GRU": ("h",), "RNN": ("h",)}


def recurrent(
    kind: str = "LSTM",
    direction: str = "forward",
    *,
    hidden: int = 8,
    inputs: int = 4,
    lengths: bool = False,
    states: bool = False,
    peepholes: bool = False,
    bias: bool = True,
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """Inputs ``x``, perhaps ``lengths``, ``h_0``, ``c_0``; outputs ``y``, ``h_n``, of an LSTM ``c_n``."""
    rng = np.random.default_rng(0)
    directions = 2 if direction == "bidirectional" else 1
    rows = GATES[kind] * hidden
    shapes = {"W": (directions, rows, inputs), "R": (directions, rows, hidden)}
    if bias:
        shapes["B"] = (directions, 2 * rows)
    if peepholes:
        shapes["P"] = (directions, 3 * hidden)
    batch_first = attributes.get("layout") == 1
    state = ["batch", directions, hidden] if batch_first else [directions, "batch", hidden]
    outer = ["batch", "sequence"] if batch_first else ["sequence", "batch"]
    whole = [*outer, directions, hidden] if batch_first else ["sequence", directions, "batch", hidden]
    info = helper.make_tensor_value_info
    fed = [info("x", TensorProto.FLOAT, [*outer, inputs])]
    names = ["x", "W", "R", "B" if bias else "", "lengths" if lengths else ""]
    if lengths:
        fed.append(info("lengths", TensorProto.INT32, ["batch"]))
    for name in STATES[kind]:
        names.append(f"{name}_0" if states else "")
        if states:
            fed.append(info(f"{name}_0", TensorProto.FLOAT, state))
    names.append("P" if peepholes else "")
    while not names[-1]:
        names.pop()
    results = ["y", *(f"{name}_n" for name in STATES[kind])]
    outputs = [info("y", TensorProto.FLOAT, whole)]
    outputs += [info(name, TensorProto.FLOAT, state) for name in results[1:]]
    node = helper.make_node(
        kind, names, results, name="rnn", hidden_size=hidden, direction=direction, **attributes
    )
    tensors = [
        numpy_helper.from_array(rng.uniform(-0.5, 0.5, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    graph = helper.make_graph([node], "one", fed, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def feeds_of(model: onnx.ModelProto, sequence: int = 5) -> dict[str, np.ndarray]:
    """Random inputs of three sequences, of lengths from 1 to all steps."""
    rng = np.random.default_rng(1)
    sizes = {"sequence": sequence, "batch": 3}
    feeds = {}
    for value in model.graph.input:
        shape = [sizes.get(dim.dim_param, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    if "lengths" in feeds:
        feeds["lengths"] = np.array([sequence, 1, 3], np.int32)
    return feeds


def in_onnxruntime(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by name, every optimisation off."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))
