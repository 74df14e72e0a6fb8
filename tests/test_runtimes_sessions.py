"""Both runtimes on the same models: names, order, values, shapes, clear faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lstmopt.errors import LstmoptError
from lstmopt.measure.bare import random_layer
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import RUNTIMES, Deployment, Runtime, open_session, runtime
from lstmopt.runtimes.base import TensorInfo, check_feeds

EVERY = pytest.mark.parametrize("engine", RUNTIMES, ids=lambda item: item.name)


def layer(hidden: int = 24, inputs: int = 12, directions: int = 1, seed: int = 0) -> RnnWeights:
    rng = np.random.default_rng(seed)
    shapes = (directions, 4, hidden, inputs), (directions, 4, hidden, hidden), (directions, 2, 4, hidden)
    w, r, b = ((rng.standard_normal(shape) / np.sqrt(hidden)).astype(np.float32) for shape in shapes)
    return RnnWeights(LSTM, "bidirectional" if directions == 2 else "forward", w, r, b)


def reference(weights: RnnWeights, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> dict[str, np.ndarray]:
    """The equations of the ONNX specification in float64; ``x [sequence, batch, input]``."""

    def sigmoid(value: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-value))

    steps, batch, _ = x.shape
    y = np.zeros((steps, weights.num_directions, batch, weights.hidden_size))
    last = np.array(h, np.float64), np.array(c, np.float64)
    for d in range(weights.num_directions):
        w, r = weights.w[d].astype(np.float64), weights.r[d].astype(np.float64)
        bias = weights.b[d].astype(np.float64).sum(0)
        ht, ct = last[0][d], last[1][d]
        for t in range(steps) if d == 0 else reversed(range(steps)):
            i, o, f, g = (x[t] @ w[k].T + ht @ r[k].T + bias[k] for k in range(4))
            ct = sigmoid(f) * ct + sigmoid(i) * np.tanh(g)
            ht = sigmoid(o) * np.tanh(ct)
            y[t, d] = ht
        last[0][d], last[1][d] = ht, ct
    return {"y": y, "h_n": last[0], "c_n": last[1]}


def write(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def graph_model(nodes, inputs, outputs, initializers=()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def value(name: str, shape: tuple[int | str, ...], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


@EVERY
@settings(deadline=None, max_examples=6, derandomize=True)
@given(
    hidden=st.integers(1, 40), inputs=st.integers(1, 20), directions=st.sampled_from((1, 2)),
    batch=st.integers(1, 3), steps=st.integers(1, 9), fixed=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_lstm_equals_float64(
    tmp_path_factory, engine, hidden, inputs, directions, batch, steps, fixed, seed
) -> None:
    weights = layer(hidden, inputs, directions, seed)
    sizes = {"sequence": steps, "batch": batch} if fixed else {}
    folder = tmp_path_factory.mktemp("lstm")
    save_model(rnn_model(weights, states=True, **sizes), folder / "m.onnx")
    rng = np.random.default_rng(seed)
    state = directions, batch, hidden
    feeds = {
        "x": rng.standard_normal((steps, batch, inputs)).astype(np.float32),
        "h_0": rng.standard_normal(state).astype(np.float32),
        "c_0": rng.standard_normal(state).astype(np.float32),
    }
    deployment = engine.build(folder / "m.onnx", "f32", folder / "built")
    session = open_session(deployment, 1)
    outputs = session.run(feeds)
    expected = reference(weights, feeds["x"], feeds["h_0"], feeds["c_0"])
    assert list(outputs) == list(expected)
    for name, array in outputs.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=2e-5)
    assert [info.name for info in session.inputs] == ["x", "h_0", "c_0"]
    assert session.inputs[0].shape == ((steps, batch, inputs) if fixed else (None, None, inputs))
    assert deployment.input_shapes["x"][2] == inputs


@EVERY
def test_a_folder_with_a_comma_in_its_name(engine: Runtime, tmp_path: Path) -> None:
    """`openvino.convert_model` would take a comma in a path for the end of it."""
    folder = tmp_path / "hidden sizes 8, 16"
    save_model(rnn_model(layer()), folder / "m.onnx")
    proto = onnx.load(folder / "m.onnx")
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    feeds = {"x": np.ones((5, 1, 12), np.float32)}
    expected = run_model(load_model(folder / "m.onnx"), feeds)["y"]
    session = open_session(engine.build(folder / "m.onnx", "f32", folder / "built"), 1)
    np.testing.assert_allclose(session.run(feeds)["y"], expected, atol=1e-5)


@EVERY
def test_results_are_copies_and_bound_inputs_are_read_at_each_call(engine: Runtime, tmp_path: Path) -> None:
    weights = layer()
    save_model(rnn_model(weights), tmp_path / "m.onnx")
    session = open_session(engine.build(tmp_path / "m.onnx", "f32", tmp_path / "b"), 1)
    one = {"x": np.ones((5, 1, 12), np.float32)}
    two = {"x": np.zeros((3, 2, 12), np.float32)}
    first = session.run(one)["y"]
    kept = first.copy()
    calls = session.bind(one), session.bind(two)  # two shapes bound at once
    for call in calls * 3:
        call()
    session.run(two)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(session.run(one)["y"], kept)


def test_an_output_of_another_rank_than_declared_is_timed_all_the_same(tmp_path: Path) -> None:
    """As in ddddocr's model: its output has an axis more than its graph says, which no inference finds."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = [value("x", ("a", 3)), value("shape", ("rank",), TensorProto.INT64)]
    path = write(graph_model(nodes, inputs, [value("y", ("a", "b"))]), tmp_path / "m.onnx")
    session = open_session(runtime("onnxruntime").build(path, "f32", tmp_path / "b"), 1)
    feeds = {"x": np.ones((2, 3), np.float32), "shape": np.array([2, 1, 3])}
    assert session.run(feeds)["y"].shape == (2, 1, 3)
    call = session.bind(feeds)
    for _ in range(3):
        call()


@EVERY
def test_awkward_names_order_and_types(engine: Runtime, tmp_path: Path) -> None:
    """Outputs that are one tensor, an input that nothing reads, names that Python functions have."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["/sum:0"]),
        helper.make_node("Identity", ["/sum:0"], ["file"]),
        helper.make_node("Identity", ["/sum:0"], ["z"]),
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("Not", ["flag"], ["other"]),
    ]
    inputs = [
        value("tokens", ("n",), TensorProto.INT64), value("x", ("a", 3)), value("unused", ("a", 3)),
        value("flag", (2,), TensorProto.BOOL),
    ]  # fmt: skip
    outputs = [
        value("z", ("a", 3)), value("rows", ("n", 2)), value("file", ("a", 3)), value("/sum:0", ("a", 3)),
        value("other", (2,), TensorProto.BOOL),
    ]  # fmt: skip
    table = np.arange(10, dtype=np.float32).reshape(5, 2)
    path = write(
        graph_model(nodes, inputs, outputs, [numpy_helper.from_array(table, "table")]), tmp_path / "m.onnx"
    )
    session = open_session(engine.build(path, "f32", tmp_path / "b"), 1)
    feeds = {
        "tokens": np.array([4, 0, 2]), "x": np.array([[1, 2, 3]], np.float32),
        "unused": np.zeros((1, 3), np.float32), "flag": np.array([True, False]),
    }  # fmt: skip
    assert [info.name for info in session.inputs] == list(feeds)
    got = session.run(feeds)
    assert list(got) == ["z", "rows", "file", "/sum:0", "other"]
    for name in ("z", "file", "/sum:0"):
        np.testing.assert_array_equal(got[name], 2 * feeds["x"])
    np.testing.assert_array_equal(got["rows"], table[[4, 0, 2]])
    np.testing.assert_array_equal(got["other"], [False, True])
    session.bind(feeds)()


@pytest.mark.parametrize("engine", RUNTIMES, ids=lambda engine: engine.name)
def test_an_output_may_be_an_input(engine: Runtime, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    path = write(
        graph_model(nodes, [value("x", (2,))], [value("y", (2,)), value("x", (2,))]), tmp_path / "m.onnx"
    )
    feeds = {"x": np.array([1, 2], np.float32)}
    got = open_session(engine.build(path, "f32", tmp_path / "a"), 1).run(feeds)
    assert list(got) == ["y", "x"]
    np.testing.assert_array_equal(got["x"], feeds["x"])
    np.testing.assert_array_equal(got["y"], 2 * feeds["x"])


@EVERY
@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "input x: is missing"),
        ({"x": np.zeros((2, 1, 12)), "y": 0}, "no such input"),
        ({"x": np.zeros((2, 1, 12))}, "has type float64"),
        ({"x": np.zeros((2, 1, 11), np.float32)}, r"\[2, 1, 11\]; the model takes \['any', 'any', 12\]"),
        ({"x": np.zeros((2, 12), np.float32)}, r"has shape \[2, 12\]"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_told(engine: Runtime, tmp_path: Path, feeds, said: str) -> None:
    save_model(rnn_model(layer()), tmp_path / "m.onnx")
    session = open_session(engine.build(tmp_path / "m.onnx", "f32", tmp_path / "b"), 1)
    for use in (session.run, session.bind):
        with pytest.raises(LstmoptError, match=said):
            use(feeds)


def test_inputs_that_the_model_cannot_take_are_told(tmp_path: Path) -> None:
    """By ONNX Runtime; OpenVINO 2026.4 returns nonsense of the declared shape and says nothing."""
    engine = runtime("onnxruntime")
    shape = numpy_helper.from_array(np.array([2, 3]), "shape")
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    model = graph_model(nodes, [value("x", ("n",))], [value("y", (2, 3))], [shape])
    session = open_session(engine.build(write(model, tmp_path / "m.onnx"), "f32", tmp_path / "b"), 1)
    assert session.run({"x": np.ones(6, np.float32)})["y"].shape == (2, 3)
    with pytest.raises(LstmoptError, match="inference: .* failed"):
        session.run({"x": np.ones(5, np.float32)})


@EVERY
@pytest.mark.parametrize("content", [None, b"", b"not a model" * 30])
def test_what_is_no_model_is_told_in_one_line(engine: Runtime, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LstmoptError) as caught:
        open_session(engine.build(path, "f32", tmp_path / "b"), 1)
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)


@EVERY
def test_a_damaged_deployment_is_told(engine: Runtime, tmp_path: Path) -> None:
    save_model(rnn_model(layer()), tmp_path / "m.onnx")
    deployment = engine.build(tmp_path / "m.onnx", "f32", tmp_path / "b")
    weights = deployment.file.with_suffix(".bin")
    heaviest = weights if weights.exists() else deployment.file
    whole = heaviest.read_bytes()
    heaviest.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LstmoptError, match="cannot load it"):
        open_session(deployment, 1)
    deployment.file.unlink()
    with pytest.raises(LstmoptError, match="cannot load it"):
        open_session(deployment, 1)
    library = deployment.model_copy(update={"libraries": (tmp_path / "none.so",)})
    with pytest.raises(LstmoptError, match="cannot load it"):
        open_session(library, 1)


@EVERY
def test_precisions_that_it_lacks_are_refused(engine: Runtime, tmp_path: Path) -> None:
    save_model(rnn_model(layer()), tmp_path / "m.onnx")
    for precision in {"f16", "int4", "bf16", "int8"} - set(engine.precisions()) - {"bf16"}:
        with pytest.raises(LstmoptError, match=f"precision {precision}"):
            engine.build(tmp_path / "m.onnx", precision, tmp_path / "b")


def test_status_names_and_unknown_runtimes() -> None:
    for engine in RUNTIMES:
        status = engine.status()
        assert status.usable and status.version and "f32" in status.precisions
        assert status.precisions == engine.precisions()
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    has_bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
    assert ("bf16" in runtime("openvino").precisions()) == has_bf16
    with pytest.raises(LstmoptError, match="use one of openvino, onnxruntime"):
        runtime("tensorflow")


@EVERY
def test_settings_are_explicit_and_a_deployment_survives_json(engine: Runtime, tmp_path: Path) -> None:
    save_model(rnn_model(layer()), tmp_path / "m.onnx")
    deployment = engine.build(tmp_path / "m.onnx", "f32", tmp_path / "b")
    wanted = {"openvino": ("INFERENCE_PRECISION_HINT", "f32")}.get(
        engine.name, ("session.intra_op.allow_spinning", "0")
    )
    assert deployment.settings[wanted[0]] == wanted[1]
    assert Deployment.model_validate_json(deployment.model_dump_json()) == deployment


def test_openvino_keeps_weights_in_f32(tmp_path: Path) -> None:
    weights = layer(64, 64)
    save_model(rnn_model(weights), tmp_path / "m.onnx")
    deployment = runtime("openvino").build(tmp_path / "m.onnx", "f32", tmp_path / "b")
    assert deployment.file.with_suffix(".bin").stat().st_size >= 4 * weights.parameters


def test_a_scalar_and_a_shape_of_unknown_rank_fit() -> None:
    infos = (TensorInfo("rate", np.dtype(np.int64), ()),)
    check_feeds(infos, {"rate": np.array(16000)})
    with pytest.raises(LstmoptError, match="has shape"):
        check_feeds(infos, {"rate": np.array([16000])})


TOLD = """
import os, sys, unittest.mock
for name in ("CI", "TF_BUILD", "JENKINS_URL"):
    os.environ.pop(name, None)
from pathlib import Path
with unittest.mock.patch("threading.Thread.start") as started, unittest.mock.patch("os.fork") as forked:
    from lstmopt.runtimes import runtime
    {}
    assert not started.called and not forked.called
assert sys.modules.get("openvino_telemetry") is None and "openvino" in sys.modules
"""
CALLS = {
    "build": "runtime('openvino').build(Path(sys.argv[1]), 'f32', Path(sys.argv[2]))",
    "status": "runtime('openvino').status()",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_openvino_s_makers_are_told_nothing(call: str, tmp_path: Path) -> None:
    """`import openvino` sends that it was imported, from a process that it forks; at times that hangs."""
    save_model(rnn_model(random_layer(LSTM, 8, 4, 1, 0)), tmp_path / "m.onnx")
    command = [sys.executable, "-c", TOLD.format(call), str(tmp_path / "m.onnx"), str(tmp_path / "ir")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
