"""Branches that every call takes become part of the graph; those that a call can leave out do not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lstmopt.rnn.constants import deciding_inputs
from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.recognition.recognise import recognise
from lstmopt.rnn.writer import onnx_arrays
from tests.test_rnn_reader import random_weights
from tests.written_out import FLOAT, Draft


def branch(name: str, x: str, seed: int) -> onnx.GraphProto:
    """A layer whose weights are a constant expression inside the branch."""
    g = Draft(f"{name}_")
    arrays = onnx_arrays(random_weights(np.random.default_rng(seed)))
    names = [g.axes("Unsqueeze", g.const(arrays[k][0]), [0]) for k in (1, 2, 3)]
    # Both branches name this value alike, which ONNX allows.
    y = g("LSTM", x, *names, out="inner", hidden_size=4)
    out = g.axes("Squeeze", y, [1])
    info = helper.make_tensor_value_info(out, FLOAT, ["steps", "batch", 4])
    return helper.make_graph(g.nodes, name, [], [info], g.tensors)


def switched(condition: str, inputs: dict[str, int] | None = None) -> ir.Model:
    """x [steps, batch, 3] through one of two layers, and then through one of two again."""
    g = Draft()
    shape = g("Shape", "x")
    one = g.const(1, np.int64)

    def steps() -> str:
        return g("Gather", shape, g.const(0, np.int64))

    conditions = {
        "empty": lambda: g("Equal", g("Size", "x"), g.const(0, np.int64)),
        "rank": lambda: g("Equal", g("Size", shape), g.const(3, np.int64)),
        "features": lambda: g("Less", g("Gather", shape, g.const(2, np.int64)), g.const(5, np.int64)),
        "zeros": lambda: g("Equal", g("Size", g("NonZero", "x")), g.const(0, np.int64)),
        "constant": lambda: g("Cast", g("Sub", one, one), to=TensorProto.BOOL),
        "single": lambda: g("Equal", g("Gather", shape, one), one),
        "long": lambda: g("Greater", g("Gather", shape, g.const(0, np.int64)), g.const(900, np.int64)),
        "frames": lambda: g("Equal", g("Div", steps(), g.const(160, np.int64)), g.const(50, np.int64)),
        "twice": lambda: g("Equal", g("Mul", steps(), g.const(2, np.int64)), g.const(642, np.int64)),
        "odd": lambda: g("Equal", g("Mod", steps(), g.const(999, np.int64)), g.const(321, np.int64)),
        "exact": lambda: g("Equal", steps(), g.const(321, np.int64)),
        "band": lambda: g(
            "And", g("Greater", steps(), g.const(320, np.int64)), g("Less", steps(), g.const(322, np.int64))
        ),
        "positive": lambda: g("Not", g("Or", g("Less", steps(), one), g("Less", g("Size", "x"), one))),
        "some": lambda: g("Cast", steps(), to=TensorProto.BOOL),
        "input": lambda: "flag",
    }
    taken = conditions[condition]()
    for number in (0, 1):
        g.nodes.append(
            helper.make_node(
                "If", [taken], [f"y{number}"], name=f"if{number}",
                then_branch=branch(f"then{number}", "x", 2 * number),
                else_branch=branch(f"else{number}", "x", 2 * number + 1),
            )
        )  # fmt: skip
    g("Add", "y0", "y1", out="y")
    values = [helper.make_tensor_value_info("x", FLOAT, ["steps", "batch", 3])]
    if condition == "input":
        values.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    graph = helper.make_graph(
        g.nodes, "switched", values,
        [helper.make_tensor_value_info("y", FLOAT, ["steps", "batch", 4])], g.tensors,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


@pytest.mark.parametrize("condition", ["empty", "rank", "features", "constant", "positive", "some"])
def test_branches_that_every_call_takes_are_hoisted(condition: str) -> None:
    model = switched(condition)
    assert not any(layer.resizable for layer in find_rnns(model))
    found = recognise(model)
    assert found.layers == ("2 If of which one branch is always taken, unless inputs are empty",)
    layers = find_rnns(found.model)
    assert len(layers) == 2 and all(layer.resizable for layer in layers)
    assert not any(node.op_type == "If" for node in found.model.graph)
    onnx.checker.check_model(ir.to_proto(found.model), full_check=True)
    for seed, sizes in enumerate(({"steps": 1, "batch": 1}, {"steps": 5, "batch": 2})):
        feeds = example_inputs(model, seed, sizes)
        np.testing.assert_allclose(
            run_model(found.model, feeds)["y"], run_model(model, feeds)["y"], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(
    "condition",
    ["single", "long", "input", "zeros", "frames", "twice", "odd", "exact", "band"],
)
def test_branches_that_depend_on_the_call_stay(condition: str) -> None:
    model = switched(condition)
    found = recognise(model)
    assert found.model is model and not found.layers
    layers = find_rnns(model)
    assert len(layers) == 4 and all(layer.weights is not None for layer in layers)
    assert all("inside If" in layer.reason for layer in layers)


def test_the_axes_of_a_reduction_decide_a_shape() -> None:
    g = Draft(opset=18)
    g("Shape", g("ReduceSum", "x", g("Cast", "axes", to=TensorProto.INT64), keepdims=0), out="y")
    g("Shape", g("ReduceSum", "x", g.const([0], np.int64), keepdims=0), out="z")
    graph = helper.make_graph(
        g.nodes, "reduced",
        [helper.make_tensor_value_info(name, FLOAT, ["n"]) for name in ("x", "axes")],
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["k"]) for name in ("y", "z")], g.tensors,
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    y, z = model.graph.outputs
    assert deciding_inputs(y) == {"axes"} and not deciding_inputs(z)
