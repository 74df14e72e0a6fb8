"""A call in parts gives what the whole gives; int8, which rounds a call as a whole, what small calls give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import open_session, runtime
from lstmopt.tasks.calls import InParts
from lstmopt.tasks.data import Dataset
from lstmopt.tasks.examples import Classification
from lstmopt.tasks.interface import read_interface
from tests.ops import random_layer
from tests.test_cli_errors import classifier


def rows(path: Path, first: str) -> Path:
    """A layer whose output has steps and sequences on one axis, one of them first."""
    layer = random_layer(np.random.default_rng(0), hidden=6, inputs=4, density=1.0, plain=True)
    save_model(rnn_model(layer), path)
    proto = onnx.load(path)
    order = [2, 0, 1, 3] if first == "batch" else [0, 2, 1, 3]
    proto.graph.node.append(helper.make_node("Transpose", ["y"], ["turned"], perm=order))
    proto.graph.node.append(helper.make_node("Reshape", ["turned", "shape"], ["rows"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, 6], np.int64), "shape"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["both", 6]))
    onnx.save(proto, path)
    return path


def stateful(path: Path) -> Path:
    layer = random_layer(np.random.default_rng(0), hidden=6, inputs=4, density=1.0, plain=True)
    save_model(rnn_model(layer, states=True), path)
    return path


MODELS = {
    "last": classifier,
    "rows, batch": lambda path: rows(path, "batch"),
    "rows, sequence": lambda path: rows(path, "sequence"),
    "states": stateful,
}


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
@pytest.mark.parametrize("name", MODELS)
def test_parts_make_the_whole(name: str, batch: int, tmp_path: Path) -> None:
    path = MODELS[name](tmp_path / "model.onnx")
    model = load_model(path)
    session = open_session(runtime("onnxruntime").build(path, "f32", tmp_path / "built"), 1)
    calls: list[int] = []

    class Watched:
        inputs = session.inputs

        def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            calls.append(feeds["x"].shape[1])
            return session.run(feeds)

    feeds = example_inputs(model, 0, {"batch": 5, "sequence": 3})
    whole = session.run(feeds)
    parts = InParts(Watched(), read_interface(model), batch).run(feeds)
    assert calls == ([5] if batch >= 5 else [batch] * (5 // batch) + ([5 % batch] if 5 % batch else []))
    assert set(parts) == set(whole)
    for key, array in whole.items():
        np.testing.assert_allclose(parts[key], array, rtol=0, atol=1e-6)


def test_outputs_as_long_as_the_longest_sequence_are_of_whole_calls(tmp_path: Path) -> None:
    proto = onnx.load(stateful(tmp_path / "model.onnx"))
    interface = read_interface(load_model(tmp_path / "model.onnx"))

    built = runtime("onnxruntime").build(tmp_path / "model.onnx", "f32", tmp_path / "built")

    class Cut:
        inputs = open_session(built, 1).inputs

        def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            steps = 1 + int(np.abs(feeds["x"]).sum() > 100)
            state = np.zeros((1, feeds["x"].shape[1], 6))
            return {"y": np.ones((steps, 1, feeds["x"].shape[1], 6)), "h_n": state, "c_n": state}

    x = np.concatenate([np.zeros((3, 1, 4)), np.full((3, 1, 4), 99)], axis=1)
    feeds = {"x": x, "h_0": np.zeros((1, 2, 6)), "c_0": np.zeros((1, 2, 6))}
    assert [value.name for value in proto.graph.output] == ["y", "h_n", "c_n"]
    assert InParts(Cut(), interface, 1).run(feeds)["y"].shape == (2, 1, 2, 6)


def test_int8_is_judged_in_calls_of_its_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = classifier(tmp_path / "model.onnx", 32)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 6, 4)) * rng.uniform(0.1, 3, (32, 1, 1))
    data = Dataset({"x": x.astype(np.float32)}, rng.integers(0, 3, 32))
    task = Classification(read_interface(load_model(path)))
    session = open_session(runtime("onnxruntime").build(path, "int8", tmp_path / "built"), 1)
    together = task.evaluate(session, data).losses
    apart = task.evaluate(InParts(session, task.interface, 1), data).losses
    monkeypatch.setattr("lstmopt.tasks.examples.EVALUATION_BATCH", 1)
    np.testing.assert_array_equal(apart, task.evaluate(session, data).losses)
    assert np.abs(apart - together).max() > 1e-4  # or there would be nothing to judge
