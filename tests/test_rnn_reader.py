"""Weights are read from whatever expression an exporter left, and written back bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lstmopt.errors import LstmoptError
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.reader import find_rnns, require_rnns
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model, write_weights
from tests.graphs import Builder, Drawn, feeds_for, lstm_graphs, weight_input

SETTINGS = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def random_weights(
    rng: np.random.Generator,
    hidden: int = 4,
    inputs: int = 3,
    direction: str = "forward",
    dtype=np.float32,
    **extra,
) -> RnnWeights:
    dirs = 2 if direction == "bidirectional" else 1

    def floats(*shape: int) -> np.ndarray:
        return (0.5 * rng.standard_normal(shape)).astype(dtype)

    return RnnWeights(
        LSTM, direction, floats(dirs, 4, hidden, inputs), floats(dirs, 4, hidden, hidden),
        floats(dirs, 2, 4, hidden), floats(dirs, 3, hidden), **extra,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["initializer", "constant", "sliced", "folded"])
@pytest.mark.parametrize("dirs", [1, 2])
def test_weights_behind_expressions_are_read_exactly(form: str, dirs: int) -> None:
    b = Builder(17, np.random.default_rng(0))
    w, r = b.floats(dirs, 16, 3), b.floats(dirs, 16, 4)
    x = b.input("x", TensorProto.FLOAT, ["sequence", "batch", 3])
    names = [x, weight_input(b, w, form), weight_input(b, r, form)]
    b.nodes.append(
        helper.make_node("LSTM", names, ["y"], name="l", hidden_size=4,
                         direction="forward" if dirs == 1 else "bidirectional")
    )  # fmt: skip
    b.output("out", "y", ["sequence", dirs, "batch", 4])
    (layer,) = find_rnns(ir.from_proto(b.proto()))
    assert layer.supported and layer.where == "main"
    np.testing.assert_array_equal(layer.weights.w, w.reshape(dirs, 4, 4, 3))
    np.testing.assert_array_equal(layer.weights.r, r.reshape(dirs, 4, 4, 4))
    assert layer.weights.b is None and layer.weights.p is None


@settings(max_examples=40, **SETTINGS)
@given(lstm_graphs())
def test_writing_weights_back_changes_nothing(drawn: Drawn) -> None:
    copy = drawn.model.clone()
    layers = find_rnns(copy)
    for layer in layers:
        write_weights(copy, layer, layer.weights)
    for before, after in zip(find_rnns(drawn.model), find_rnns(copy), strict=True):
        for name in ("w", "r", "b", "p"):
            one, other = getattr(before.weights, name), getattr(after.weights, name)
            assert (one is None) == (other is None)
            assert one is None or one.tobytes() == other.tobytes()
    feeds = feeds_for(copy, 4, 2, 0)
    expected, got = run_model(drawn.model, feeds), run_model(copy, feeds)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


@settings(max_examples=25, **SETTINGS)
@given(
    st.sampled_from(["forward", "reverse", "bidirectional"]), st.integers(1, 7), st.integers(1, 5),
    st.sampled_from([np.float32, np.float64]), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_a_bare_layer_holds_its_weights(direction, hidden, inputs, dtype, states, seed) -> None:
    weights = random_weights(np.random.default_rng(seed), hidden, inputs, direction, dtype)
    model = rnn_model(weights, states=states)
    onnx.checker.check_model(ir.to_proto(model))
    (layer,) = find_rnns(model)
    for name in ("w", "r", "b", "p"):
        assert getattr(layer.weights, name).tobytes() == getattr(weights, name).tobytes()
    assert layer.weights.direction == direction and not layer.weights.activations


def reference_lstm(weights: RnnWeights, x: np.ndarray) -> np.ndarray:
    """The equations of the ONNX specification in float64, [sequence, directions, batch, hidden]."""
    w, r, b, p = (getattr(weights, name).astype(np.float64) for name in ("w", "r", "b", "p"))
    outputs = []
    for d in range(weights.num_directions):
        steps = list(x.astype(np.float64))
        backward = weights.direction == "reverse" or d == 1
        h = c = np.zeros((x.shape[1], weights.hidden_size))
        ys = []
        for step in reversed(steps) if backward else steps:
            gates = [step @ w[d, g].T + h @ r[d, g].T + b[d, 0, g] + b[d, 1, g] for g in range(4)]
            i, f = (1 / (1 + np.exp(-(gates[g] + p[d, q] * c))) for g, q in ((0, 0), (2, 2)))
            c = f * c + i * np.tanh(gates[3])
            o = 1 / (1 + np.exp(-(gates[1] + p[d, 1] * c)))
            h = o * np.tanh(c)
            ys.append(h)
        outputs.append(np.stack(ys[::-1] if backward else ys))
    return np.stack(outputs, axis=1)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_gate_order_and_peepholes_are_those_of_the_specification(direction: str) -> None:
    rng = np.random.default_rng(1)
    weights = random_weights(rng, 5, 3, direction, np.float32)
    x = rng.standard_normal((6, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(
        run_model(rnn_model(weights), {"x": x})["y"], reference_lstm(weights, x), atol=1e-6
    )


def test_a_shared_initializer_stays_for_its_other_readers() -> None:
    rng = np.random.default_rng(2)
    shared = (0.5 * rng.standard_normal((1, 16, 4))).astype(np.float32)
    nodes = [
        helper.make_node("LSTM", ["x", "S", "S"], ["y0", "h0"], name="a", hidden_size=4),
        helper.make_node("Squeeze", ["y0", "one"], ["s"]),
        helper.make_node("LSTM", ["s", "S", "S"], ["y"], name="b", hidden_size=4),
    ]
    graph = helper.make_graph(
        nodes, "tied", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", "n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(shared, "S"), numpy_helper.from_array(np.array([1]), "one")],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    first, second = find_rnns(model)
    write_weights(model, first, replace(first.weights, w=first.weights.w * 0))
    first, second = find_rnns(model)
    assert not first.weights.w.any()
    np.testing.assert_array_equal(first.weights.r[0].reshape(16, 4), shared[0])
    np.testing.assert_array_equal(second.weights.w[0].reshape(16, 4), shared[0])


def bare(change) -> ir.Model:
    proto = ir.to_proto(rnn_model(random_weights(np.random.default_rng(0))))
    change(proto)
    return ir.from_proto(proto)


def put(proto: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_name_their_tensor(value: float) -> None:
    def change(proto: onnx.ModelProto) -> None:
        array = np.zeros((1, 16, 4), np.float32)
        array[0, 3, 1] = value
        put(proto, "R", array)

    with pytest.raises(LstmoptError, match=r"rnn, tensor 'R': 1 weights are NaN or infinite"):
        find_rnns(bare(change))


@pytest.mark.parametrize(
    ("name", "shape"), [("W", (1, 12, 3)), ("R", (1, 20, 4)), ("B", (1, 31)), ("P", (2, 12))]
)
def test_wrong_shapes_name_their_input(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(LstmoptError, match=f"input {name}: has shape"):
        find_rnns(bare(lambda proto: put(proto, name, np.zeros(shape, np.float32))))


def test_a_hidden_size_that_contradicts_the_weights_is_a_fault() -> None:
    def change(proto: onnx.ModelProto) -> None:
        next(a for a in proto.graph.node[0].attribute if a.name == "hidden_size").i = 7

    with pytest.raises(LstmoptError, match="hidden_size is 7, its weights have 4"):
        find_rnns(bare(change))


def test_what_is_not_supported_says_why() -> None:
    def layout(proto: onnx.ModelProto) -> None:
        proto.graph.node[0].attribute.append(helper.make_attribute("layout", 1))

    (layer,) = find_rnns(bare(layout))
    assert not layer.supported and "layout=1" in layer.reason

    def half(proto: onnx.ModelProto) -> None:
        for tensor in list(proto.graph.initializer):
            put(proto, tensor.name, numpy_helper.to_array(tensor).astype(np.float16))

    (layer,) = find_rnns(bare(half))
    assert not layer.supported and "float16" in layer.reason

    def computed(proto: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "W")
        proto.graph.initializer.remove(tensor)
        proto.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [1, 16, 3]))

    (layer,) = find_rnns(bare(computed))
    assert not layer.supported and "computed from the model's inputs" in layer.reason
    with pytest.raises(LstmoptError, match="none of its 1 LSTM or GRU nodes is supported"):
        require_rnns(bare(computed), "model.onnx")


def test_layers_in_subgraphs_are_found_and_keep_their_sizes() -> None:
    inner = ir.to_proto(rnn_model(random_weights(np.random.default_rng(0)))).graph
    body = helper.make_graph(inner.node, "body", [], [inner.output[0]], inner.initializer)
    node = helper.make_node("If", ["flag"], ["out"], name="choice", then_branch=body, else_branch=body)
    graph = helper.make_graph(
        [node], "outer",
        [helper.make_tensor_value_info("flag", TensorProto.BOOL, []), inner.input[0]],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    layers = find_rnns(model)
    assert {layer.where for layer in layers} == {"If choice then_branch", "If choice else_branch"}
    assert len({layer.name for layer in layers}) == 2
    assert all(layer.supported and not layer.resizable for layer in layers)
    assert all("its hidden size stays" in layer.reason for layer in layers)
