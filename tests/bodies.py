"""Models whose recurrent layers lie in bodies: of an If on an input, of a Loop, of a Scan."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from lstmopt.rnn.cells import GRU, LSTM, CellSpec
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import onnx_arrays
from tests.written_out import FLOAT, Draft

INPUT, HIDDEN, CHUNK = 24, 32, 4


def _weights(seed: int, cell: CellSpec = LSTM) -> list[np.ndarray]:
    """W, R and B of a layer, as ONNX has them."""
    rng, gates = np.random.default_rng(seed), len(cell.gates)
    w, r, b = (
        (rng.standard_normal((1, *shape)) / np.sqrt(HIDDEN)).astype(np.float32)
        for shape in ((gates, HIDDEN, INPUT), (gates, HIDDEN, HIDDEN), (2, gates, HIDDEN))
    )
    return [array for _, array in sorted(onnx_arrays(RnnWeights(cell, "forward", w, r, b)).items())]


def _info(name: str, shape: list[int | str], kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(graph: onnx.GraphProto) -> ir.Model:
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def behind_if(shared: bool = False) -> ir.Model:
    """x [steps, batch, INPUT] through an LSTM where ``flag`` is true, through another where it is not.

    Args:
        shared: whether both have the same weights, which lie outside.
    """
    main = Draft()
    common = [main.const(array) for array in _weights(0)] if shared else []

    def branch(name: str, seed: int) -> onnx.GraphProto:
        g = Draft(f"{name}_")
        names = common or [g.const(array) for array in _weights(seed)]
        # Both branches name these alike, which ONNX allows.
        y = g("LSTM", "x", *names, out="inner", hidden_size=HIDDEN)
        out = g.axes("Squeeze", y, [1])
        return helper.make_graph(g.nodes, name, [], [_info(out, ["steps", "batch", HIDDEN])], g.tensors)

    node = helper.make_node(
        "If", ["flag"], ["y"], name="switch", then_branch=branch("yes", 0), else_branch=branch("no", 1)
    )
    inputs = [_info("x", ["steps", "batch", INPUT]), _info("flag", [], TensorProto.BOOL)]
    outputs = [_info("y", ["steps", "batch", HIDDEN])]
    return _model(helper.make_graph([node], "behind_if", inputs, outputs, main.tensors))


def in_loop(outer: bool = False) -> ir.Model:
    """x [chunks, CHUNK, batch, INPUT], chunk by chunk through a GRU that hands its state on.

    Args:
        outer: whether its weights lie outside the body.
    """
    main, g = Draft(), Draft("body_")
    weights = main if outer else g
    names = [weights.const(array) for array in _weights(2, GRU)]
    chunk = g("Gather", "x", "i", axis=0)
    g.nodes.append(
        helper.make_node(
            "GRU",
            [chunk, *names, "", "h_in"],
            ["y_in", "h_out"],
            name="gru",
            hidden_size=HIDDEN,
        )  # fmt: skip
    )
    keep, out = g("Identity", "keep_in"), g.axes("Squeeze", "y_in", [1])
    body = helper.make_graph(
        g.nodes, "body",
        [_info("i", [], TensorProto.INT64), _info("keep_in", [], TensorProto.BOOL),
         _info("h_in", [1, "batch", HIDDEN])],
        [_info(keep, [], TensorProto.BOOL), _info("h_out", [1, "batch", HIDDEN]),
         _info(out, [CHUNK, "batch", HIDDEN])],
        g.tensors,
    )  # fmt: skip
    count = main("Squeeze", main("Shape", "x", start=0, end=1))
    batch = main("Shape", "x", start=2, end=3)
    form = main("Concat", main.const([1], np.int64), batch, main.const([HIDDEN], np.int64), axis=0)
    zeros = main("ConstantOfShape", form)
    main.nodes.append(helper.make_node("Loop", [count, "", zeros], ["last", "y"], name="loop", body=body))
    outputs = [_info("y", ["chunks", CHUNK, "batch", HIDDEN])]
    inputs = [_info("x", ["chunks", CHUNK, "batch", INPUT])]
    return _model(helper.make_graph(main.nodes, "in_loop", inputs, outputs, main.tensors))


def in_scan(computed: bool = False) -> ir.Model:
    """x [chunks, CHUNK, batch, INPUT], each chunk alone through an LSTM.

    Args:
        computed: whether its weights are constant expressions.
    """
    main, g = Draft(), Draft("body_")
    names = [g.const(array) for array in _weights(3)]
    if computed:
        names = [g("Identity", name) for name in names]
    y = g("LSTM", "chunk", *names, out="inner", hidden_size=HIDDEN)
    out = g.axes("Squeeze", y, [1])
    body = helper.make_graph(
        g.nodes, "body", [_info("chunk", [CHUNK, "batch", INPUT])],
        [_info(out, [CHUNK, "batch", HIDDEN])], g.tensors,
    )  # fmt: skip
    main.nodes.append(helper.make_node("Scan", ["x"], ["y"], name="scan", body=body, num_scan_inputs=1))
    outputs = [_info("y", ["chunks", CHUNK, "batch", HIDDEN])]
    inputs = [_info("x", ["chunks", CHUNK, "batch", INPUT])]
    return _model(helper.make_graph(main.nodes, "in_scan", inputs, outputs, main.tensors))


def nested() -> ir.Model:
    """x [chunks, CHUNK, batch, INPUT], each chunk alone: a Scan in each branch of an If on ``flag``.

    The layers are a GRU, whose weights lie two bodies further out, and an LSTM, whose lie beside it.
    """
    main = Draft()
    outer = [main.const(array) for array in _weights(4, GRU)]

    def branch(name: str, cell: CellSpec) -> onnx.GraphProto:
        around, g = Draft(f"{name}_"), Draft(f"{name}_body_")
        names = outer if cell is GRU else [g.const(array) for array in _weights(5)]
        y = g(cell.kind, f"{name}_chunk", *names, out=f"{name}_inner", hidden_size=HIDDEN)
        out = g.axes("Squeeze", y, [1])
        body = helper.make_graph(
            g.nodes, f"{name}_body", [_info(f"{name}_chunk", [CHUNK, "batch", INPUT])],
            [_info(out, [CHUNK, "batch", HIDDEN])], g.tensors,
        )  # fmt: skip
        result = around("Scan", "x", body=body, num_scan_inputs=1)
        shape = ["chunks", CHUNK, "batch", HIDDEN]
        return helper.make_graph(around.nodes, name, [], [_info(result, shape)], around.tensors)

    node = helper.make_node(
        "If", ["flag"], ["y"], name="switch", then_branch=branch("yes", GRU), else_branch=branch("no", LSTM)
    )
    inputs = [_info("x", ["chunks", CHUNK, "batch", INPUT]), _info("flag", [], TensorProto.BOOL)]
    outputs = [_info("y", ["chunks", CHUNK, "batch", HIDDEN])]
    return _model(helper.make_graph([node], "nested", inputs, outputs, main.tensors))
