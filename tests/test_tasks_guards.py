"""Data and models that look right and would be read wrongly: each is seen, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmopt.errors import LstmoptError
from lstmopt.passes.candidates import Candidate, shippable
from lstmopt.passes.convert import relative_error
from lstmopt.rnn.examples import example_inputs, token_bounds
from lstmopt.runtimes import Deployment
from lstmopt.tasks.data import Dataset, read_arrays, split
from lstmopt.tasks.interface import read_interface
from lstmopt.tasks.prepare import prepare
from tests.test_passes_latency import peer

info = helper.make_tensor_value_info
HIDDEN, FEATURES = 5, 3


def recurrent(
    before: list[object], after: list[object], inputs: list[object], outputs: list[object],
    tensors: list[object] | None = None,
) -> ir.Model:  # fmt: skip
    """Returns a graph with an LSTM from X to Y; the nodes around it are given."""
    rng = np.random.default_rng(0)
    shapes = {"W": (1, 4 * HIDDEN, FEATURES), "R": (1, 4 * HIDDEN, HIDDEN)}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    node = helper.make_node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=HIDDEN)
    graph = helper.make_graph([*before, node, *after], "g", inputs, outputs, [*constants, *(tensors or [])])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_batch_of_a_square_call(transposed: bool) -> None:
    """As many steps as sequences: what reaches the layer tells which axis is which."""
    first = helper.make_node("Transpose", ["x"], ["X"], perm=[1, 0, 2])
    if not transposed:
        first = helper.make_node("Identity", ["x"], ["X"])
    model = recurrent(
        [first], [], [info("x", TensorProto.FLOAT, [4, 4, FEATURES])],
        [info("Y", TensorProto.FLOAT, [4, 1, 4, HIDDEN])],
    )  # fmt: skip
    assert read_interface(model).inputs[0].batch_axis == (0 if transposed else 1)


def test_tokens_behind_a_bound_are_tokens() -> None:
    rng = np.random.default_rng(1)
    table = numpy_helper.from_array(rng.standard_normal((9, FEATURES)).astype(np.float32), "table")
    bounds = [
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in (("lo", 0), ("hi", 8))
    ]
    nodes = [
        helper.make_node("Clip", ["tokens", "lo", "hi"], ["clipped"]),
        helper.make_node("Gather", ["table", "clipped"], ["X"]),
    ]
    model = recurrent(
        nodes, [], [info("tokens", TensorProto.INT64, ["s", "n"])],
        [info("Y", TensorProto.FLOAT, ["s", 1, "n", HIDDEN])], [table, *bounds],
    )  # fmt: skip
    assert token_bounds(model) == {"tokens": 9}
    assert len(np.unique(example_inputs(model, 0, {"s": 20, "n": 2})["tokens"])) > 5


def test_integers_that_are_numbers_are_drawn() -> None:
    model = recurrent(
        [helper.make_node("Cast", ["pcm"], ["X"], to=TensorProto.FLOAT)], [],
        [info("pcm", TensorProto.INT16, ["s", "n", FEATURES])],
        [info("Y", TensorProto.FLOAT, ["s", 1, "n", HIDDEN])],
    )  # fmt: skip
    assert len(np.unique(example_inputs(model, 0, {"s": 20, "n": 2})["pcm"])) > 20


def scored(*nodes: object) -> ir.Model:
    """Returns a model whose scores are what the nodes make of ``raw``."""
    decoder = numpy_helper.from_array(
        np.random.default_rng(2).standard_normal((HIDDEN, 4)).astype(np.float32), "D"
    )
    bounds = [numpy_helper.from_array(np.array(v, np.float32), name) for name, v in (("lo", 1e-6), ("hi", 1))]
    after = [
        helper.make_node("Squeeze", ["Y", "one"], ["flat"]),
        helper.make_node("MatMul", ["flat", "D"], ["raw"]),
        *nodes,
    ]
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    return recurrent(
        [helper.make_node("Identity", ["x"], ["X"])], after,
        [info("x", TensorProto.FLOAT, ["s", "n", FEATURES])],
        [info("scores", TensorProto.FLOAT, ["s", "n", 4])], [decoder, *bounds, one],
    )  # fmt: skip


def test_what_the_scores_are() -> None:
    def node(op: str, inputs: list[str], output: str) -> object:
        return helper.make_node(op, inputs, [output])

    clipped = scored(node("Softmax", ["raw"], "p"), node("Clip", ["p", "lo", "hi"], "scores"))
    assert read_interface(clipped).scale == "probabilities"
    logs = scored(node("Softmax", ["raw"], "p"), node("Log", ["p"], "scores"))
    assert read_interface(logs).scale == "log-probabilities"
    assert read_interface(scored(node("Identity", ["raw"], "scores"))).scale == "logits"
    sigmoids = scored(node("Sigmoid", ["raw"], "scores"))
    data = {"x": np.zeros((20, 6, FEATURES), np.float32), "labels": np.zeros((20, 6), np.int64)}
    with pytest.raises(LstmoptError, match="sigmoid"):
        prepare(sigmoids, task="classify", data=data, val=None, test=None, seed=0)


def test_an_array_that_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(LstmoptError, match="not an .npz file"):
        read_arrays(tmp_path / "data.npy")


def test_states_in_the_data_are_not_dropped() -> None:
    after = [helper.make_node("Identity", ["Y_h"], ["h_out"])]
    model = recurrent(
        [helper.make_node("Identity", ["x"], ["X"])], [],
        [info("x", TensorProto.FLOAT, ["s", "n", FEATURES]), info("h", TensorProto.FLOAT, [1, "n", HIDDEN])],
        [info("Y", TensorProto.FLOAT, ["s", 1, "n", HIDDEN]), info("h_out", TensorProto.FLOAT, [1, "n", 5])],
    )  # fmt: skip
    lstm = next(item for item in model.graph if item.op_type == "LSTM")
    proto = ir.to_proto(model)
    (node,) = [item for item in proto.graph.node if item.op_type == lstm.op_type]
    node.input.extend(["", "", "h"])
    node.output.append("Y_h")
    proto.graph.node.extend(after)
    model = ir.from_proto(proto)
    data = {"x": np.zeros((20, 6, FEATURES), np.float32), "h": np.zeros((20, 1, HIDDEN), np.float32)}
    prepare(model, task="distill", data=data, val=None, test=None, seed=0)  # as it starts anyway
    data["h"][0] = 1
    with pytest.raises(LstmoptError, match="state"):
        prepare(model, task="distill", data=data, val=None, test=None, seed=0)


def test_many_short_streams_are_split_between_streams() -> None:
    short = Dataset({"tokens": np.zeros((1000, 20), np.int64)}, None)
    assert [part.inputs["tokens"].shape for part in split(short, stream=True)] == [(900, 20), (100, 20)]
    long = Dataset({"tokens": np.zeros((20, 1000), np.int64)}, None)
    assert [part.inputs["tokens"].shape for part in split(long, stream=True)] == [(20, 900), (20, 100)]


def test_an_output_of_small_numbers_counts_as_much() -> None:
    rng = np.random.default_rng(0)
    truth = {"large": 1000 * rng.standard_normal(50), "small": rng.standard_normal(50)}
    found = {"large": truth["large"], "small": -truth["small"]}
    assert relative_error(found, truth, ["large", "small"]) == pytest.approx(2, rel=0.1)
    assert relative_error(truth, truth, ["large", "small"]) == 0


def test_one_runtime_off_the_contract_bars_no_other() -> None:
    def made(runtime: str, precision: str, within: bool) -> Candidate:
        deployment = Deployment(runtime=runtime, file=Path("m.onnx"), precision=precision)
        return peer(1.0).model_copy(update={"deployment": deployment, "within_contract": within})

    exact, off = made("onnxruntime", "f32", True), made("openvino", "f32", False)
    assert shippable([exact, off]) == (exact,)
    lucky = made("onnxruntime", "int8", True)
    assert shippable([off, lucky]) == ()
