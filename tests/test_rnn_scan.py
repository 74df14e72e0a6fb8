"""Recurrent nodes as Scan, f16, and settled branches compute what ONNX Runtime computes of the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmopt.errors import LstmoptError
from lstmopt.rnn.branches import SettleBranches
from lstmopt.rnn.half import Half
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.scan import AsScan
from tests.recurrent import feeds_of, in_onnxruntime, recurrent

FORMS: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (kind, direction, {"lengths": lengths, "states": states, "clip": 0.3})
        for kind in ("LSTM", "GRU")
        for direction in ("forward", "reverse", "bidirectional")
        for lengths in (False, True)
        for states in (False, True)
    ),
    ("LSTM", "bidirectional", {"peepholes": True, "lengths": True, "states": True}),
    ("LSTM", "bidirectional", {"input_forget": 1, "states": True}),
    ("LSTM", "forward", {"bias": False, "opset": 11}),
    ("GRU", "bidirectional", {"linear_before_reset": 1, "states": True, "opset": 20}),
    ("GRU", "forward", {"linear_before_reset": 1, "bias": False}),
    *(
        ("LSTM", "bidirectional", given | {"activations": ["Sigmoid", name, "Tanh", "Sigmoid", "Tanh", name]})
        for name, given in (
            ("Relu", {}), ("Softsign", {}), ("Softplus", {}), ("HardSigmoid", {}), ("LeakyRelu", {}),
            ("Elu", {}), ("ThresholdedRelu", {}),
            ("Affine", {"activation_alpha": [0.3, 0.5], "activation_beta": [0.1, 0.2]}),
            ("ScaledTanh", {"activation_alpha": [0.3, 0.5], "activation_beta": [0.7, 0.9]}),
            ("HardSigmoid", {"activation_alpha": [0.3, 0.5], "activation_beta": [0.1, 0.2]}),
            ("ThresholdedRelu", {"activation_alpha": [0.1, 0.2]}),
            ("LeakyRelu", {"activation_alpha": [0.1, 0.2]}),
        )
    ),
]  # fmt: skip


def named(form: tuple[str, str, dict[str, Any]]) -> str:
    kind, direction, rest = form
    return f"{kind} {direction} {rest}"


@pytest.mark.parametrize("form", FORMS, ids=named)
def test_a_scan_computes_what_the_node_does(form: tuple[str, str, dict[str, Any]]) -> None:
    kind, direction, rest = form
    model = recurrent(kind, direction, **rest)
    proto = ir.to_proto(rewrite(ir.from_proto(model), AsScan(lambda layer: True)))
    onnx.checker.check_model(proto)
    assert {node.op_type for node in proto.graph.node} & {"LSTM", "GRU"} == set()
    calls = [feeds_of(model)]
    if rest.get("lengths"):
        calls.append({**calls[0], "lengths": np.array([0, 5, 3], np.int32)})
    for feeds in calls:
        expected, got = in_onnxruntime(model, feeds), in_onnxruntime(proto, feeds)
        assert list(got) == list(expected)
        for name, array in expected.items():
            assert got[name].shape == array.shape and np.abs(got[name] - array).max() < 1e-5


def test_an_opset_without_range_is_refused() -> None:
    model = ir.from_proto(recurrent(clip=0.3, opset=9))
    with pytest.raises(LstmoptError, match="opset 9"):
        rewrite(model, AsScan(lambda layer: True))


def test_half_keeps_the_interface_and_casts_inside() -> None:
    model = recurrent("LSTM", "bidirectional", states=True, lengths=True)
    proto = ir.to_proto(rewrite(ir.from_proto(model), Half()))
    onnx.checker.check_model(proto)
    for before, after in ((model.graph.input, proto.graph.input), (model.graph.output, proto.graph.output)):
        assert [(v.name, v.type) for v in before] == [(v.name, v.type) for v in after]
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert set(kinds.values()) == {TensorProto.FLOAT16} and len(kinds) == 3
    feeds = feeds_of(model)
    expected, got = in_onnxruntime(model, feeds), in_onnxruntime(proto, feeds)
    for name, array in expected.items():
        error = np.abs(got[name] - array).max()
        assert got[name].dtype == np.float32 and 0 < error < 2e-3


def test_half_refuses_what_is_beyond_it() -> None:
    model = recurrent()
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights.flat[3] = 1e6
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "W"))
    with pytest.raises(LstmoptError, match="'W': holds 1e\\+06, beyond f16"):
        rewrite(ir.from_proto(model), Half())


def branching(condition: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """``y = x + 1`` where ``yes``, else ``x - 1``; both branches name their values alike."""
    node, info = helper.make_node, helper.make_tensor_value_info

    def branch(op: str) -> onnx.GraphProto:
        one = numpy_helper.from_array(np.ones(1, np.float32), "one")
        made = node(op, ["x", "one"], ["inner"])
        return helper.make_graph([made], op, [], [info("inner", TensorProto.FLOAT, None)], [one])

    chosen = node("If", ["yes"], ["y"], then_branch=branch("Add"), else_branch=branch("Sub"))
    graph = helper.make_graph(
        [*condition, chosen],
        "branching",
        [info("x", TensorProto.FLOAT, ["n"]), *inputs],
        [info("y", TensorProto.FLOAT, ["n"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def const(name: str, array: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(array)))


def settled(
    model: onnx.ModelProto, calls: list[dict[str, np.ndarray]]
) -> tuple[onnx.ModelProto, dict[str, int]]:
    item = SettleBranches(calls)
    return ir.to_proto(rewrite(ir.from_proto(model), item)), item.relied_on


def shapes_of(model: onnx.ModelProto, calls: list[dict[str, np.ndarray]]) -> list[str]:
    item = SettleBranches(calls)
    rewrite(ir.from_proto(model), item)
    return item.shaped


@pytest.mark.parametrize("size", [3, 4])
def test_a_branch_that_a_shape_decides_is_taken(size: int) -> None:
    node = helper.make_node
    model = branching(
        [node("Size", ["x"], ["size"]), const("three", 3), node("Equal", ["size", "three"], ["yes"])], []
    )
    feeds = {"x": np.arange(size, dtype=np.float32)}
    proto, switches = settled(model, [feeds])
    assert not switches and "If" not in {item.op_type for item in proto.graph.node}
    np.testing.assert_array_equal(in_onnxruntime(proto, feeds)["y"], in_onnxruntime(model, feeds)["y"])
    both = [{"x": np.zeros(n, np.float32)} for n in (3, 4)]
    assert "If" in {item.op_type for item in settled(model, both)[0].graph.node}


def test_a_switch_is_relied_on_and_a_value_is_not() -> None:
    node, info = helper.make_node, helper.make_tensor_value_info
    rate = info("rate", TensorProto.INT64, [])
    switch = branching([const("k", 16000), node("Equal", ["rate", "k"], ["yes"])], [rate])
    feeds = {"x": np.zeros(2, np.float32), "rate": np.array(8000)}
    proto, relied = settled(switch, [feeds])
    assert relied == {"rate": 8000} and "If" not in {item.op_type for item in proto.graph.node}
    assert [value.name for value in proto.graph.input] == ["x", "rate"]
    np.testing.assert_array_equal(in_onnxruntime(proto, feeds)["y"], [-1, -1])
    value = branching([const("k", np.float32(0)), node("ReduceMax", ["x"], ["top"], keepdims=0),
                       node("Greater", ["top", "k"], ["yes"])], [])  # fmt: skip
    proto, relied = settled(value, [{"x": np.zeros(2, np.float32)}])
    assert not relied and "If" in {item.op_type for item in proto.graph.node}


def test_it_is_known_where_other_shapes_might_decide_otherwise() -> None:
    node, info = helper.make_node, helper.make_tensor_value_info
    size = [node("Size", ["x"], ["size"]), const("k", 3), node("Greater", ["size", "k"], ["long"])]
    rate = [const("r", 16000), node("Equal", ["rate", "r"], ["fast"])]
    given = [info("rate", TensorProto.INT64, [])]
    feeds = [{"x": np.zeros(5, np.float32), "rate": np.array(16000)}]
    named = [node("Identity", ["long"], ["yes"])]
    assert shapes_of(branching([*size, *named], []), [{"x": feeds[0]["x"]}]) == ["y"]
    assert shapes_of(branching([*rate, node("Identity", ["fast"], ["yes"])], given), feeds) == []
    for kind, expected in (("And", ["y"]), ("Or", [])):
        both = branching([*size, *rate, node(kind, ["long", "fast"], ["yes"])], given)
        assert shapes_of(both, feeds) == expected
    # What squeezes an axis of one takes no other size.
    shape = [node("Shape", ["x"], ["shape"]), const("at", [0]), node("Gather", ["shape", "at"], ["n"]),
             const("one_", [1]), node("Equal", ["n", "one_"], ["yes"])]  # fmt: skip
    squeezed = branching(shape, [])
    (chosen,) = (item for item in squeezed.graph.node if item.op_type == "If")
    squeeze = [const("axes", [0]), node("Squeeze", ["x", "axes"], ["inner"])]
    for attribute in chosen.attribute:
        if attribute.name == "then_branch":
            del attribute.g.node[:]
            attribute.g.node.extend(squeeze)
    squeezed.graph.output[0].type.tensor_type.ClearField("shape")
    assert shapes_of(squeezed, [{"x": np.zeros(1, np.float32)}]) == []
    assert shapes_of(squeezed, [{"x": np.zeros(2, np.float32)}]) == ["y"]
    fixed = branching([*size, *named], [])
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    assert shapes_of(fixed, [{"x": feeds[0]["x"]}]) == []


def resampled(more: list[onnx.NodeProto], **constants: Any) -> onnx.ModelProto:
    """The first half of the steps, their number computed in floats, with operators behind it."""
    node, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["t"]),
        node("Cast", ["t"], ["tf"], to=TensorProto.FLOAT),
        node("Div", ["tf", "two"], ["h"]),
        node("Floor", ["h"], ["hf"]),
        node("Cast", ["hf"], ["hi"], to=TensorProto.INT64),
        node("Unsqueeze", ["hi", "axis"], ["hu"]),
        node("Slice", ["x", "axis", "hu", "axis"], ["z"]),
        *more,
    ]
    held = {"zero": np.int64(0), "two": np.float32(2), "axis": np.array([0]), **constants}
    graph = helper.make_graph(
        nodes,
        "resampled",
        [info("x", TensorProto.FLOAT, ["steps", 2])],
        [info("y", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("steps", [5, 4099, 70000])
def test_half_leaves_sizes_that_are_computed_in_floats(steps: int) -> None:
    model = resampled([helper.make_node("Div", ["z", "two"], ["y"])])  # data reads the constant as well
    half = ir.to_proto(rewrite(ir.from_proto(model), Half()))
    onnx.checker.check_model(half, full_check=True)
    feeds = {"x": np.random.default_rng(0).standard_normal((steps, 2)).astype(np.float32)}
    got, expected = in_onnxruntime(half, feeds)["y"], in_onnxruntime(model, feeds)["y"]
    assert got.shape == expected.shape == (steps // 2, 2)
    assert 0 < np.abs(got - expected).max() < 2e-3


def test_half_refuses_sizes_that_are_data_too() -> None:
    model = resampled([helper.make_node("Mul", ["z", "hf"], ["y"])])
    with pytest.raises(LstmoptError, match="sizes or indices are computed, and data as well.*use f32"):
        rewrite(ir.from_proto(model), Half())


@pytest.mark.parametrize(
    ("value", "refused"), [(1e-8, True), ([0.0, -2e-9], True), (1e-7, False), (0.0, False)]
)
def test_half_refuses_constants_that_would_be_0(value: Any, refused: bool) -> None:
    model = resampled([helper.make_node("Add", ["z", "eps"], ["y"])], eps=np.array(value, np.float32))
    if refused:
        with pytest.raises(LstmoptError, match="'eps': holds .*, which is 0 in f16 .Add reads it.; use f32"):
            rewrite(ir.from_proto(model), Half())
    else:
        rewrite(ir.from_proto(model), Half())


def test_half_rounds_small_weights_away() -> None:
    model = resampled(
        [helper.make_node("MatMul", ["z", "w"], ["y"])], w=np.array([[1e-9, 1], [1, 1]], np.float32)
    )
    rewrite(ir.from_proto(model), Half())
