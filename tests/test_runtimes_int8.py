"""ONNX Runtime's dynamic int8: what it covers, how far it is from f32, what it cannot do."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lstmopt.errors import LstmoptError
from lstmopt.rnn.files import save_model
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import open_session, runtime
from tests.real_models import ddddocr, silero_vad
from tests.test_runtimes_sessions import graph_model, layer, value, write

ENGINE = runtime("onnxruntime")


def operators(graph: onnx.GraphProto) -> list[str]:
    found = []
    for node in graph.node:
        found.append(node.op_type)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += operators(attribute.g)
    return found


def pair(path: Path, folder: Path, feeds: dict[str, np.ndarray]) -> tuple[list[str], dict[str, float]]:
    """The quantised graph's operators, and its outputs' errors over their standard deviation."""
    plain = open_session(ENGINE.build(path, "f32", folder / "f32"), 1).run(feeds)
    small = ENGINE.build(path, "int8", folder / "int8")
    got = open_session(small, 1).run(feeds)
    assert list(got) == list(plain)
    errors = {n: float(np.sqrt(((got[n] - plain[n]) ** 2).mean()) / max(plain[n].std(), 1e-3)) for n in plain}
    return operators(onnx.load(small.file).graph), errors


@pytest.mark.parametrize("directions", [1, 2])
def test_lstm_and_its_error(tmp_path: Path, directions: int) -> None:
    save_model(rnn_model(layer(96, 64, directions)), tmp_path / "m.onnx")
    x = np.random.default_rng(1).standard_normal((35, 2, 64)).astype(np.float32)
    used, errors = pair(tmp_path / "m.onnx", tmp_path, {"x": x})
    assert "DynamicQuantizeLSTM" in used and "LSTM" not in used
    assert errors["y"] < 0.05


def test_saturating_weights_stay_accurate(tmp_path: Path) -> None:
    """Large weights beside small ones: a scale a channel keeps the small, 7 bits keep the sums exact."""
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.9, 1.0, (128, 32)).astype(np.float32) * np.where(np.arange(32) % 2, 1, 1e-3)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = graph_model(
        nodes, [value("x", (4, 128))], [value("y", (4, 32))],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )  # fmt: skip
    path = write(model, tmp_path / "m.onnx")
    x = rng.uniform(0.8, 1.0, (4, 128)).astype(np.float32)
    plain = open_session(ENGINE.build(path, "f32", tmp_path / "a"), 1).run({"x": x})["y"]
    got = open_session(ENGINE.build(path, "int8", tmp_path / "b"), 1).run({"x": x})["y"]
    np.testing.assert_allclose(got, plain, rtol=0.01)


def test_gemm_is_covered(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((16, 32)), "b": rng.standard_normal(16)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    constants = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    path = write(
        graph_model(nodes, [value("x", ("n", 32))], [value("y", ("n", 16))], constants), tmp_path / "m.onnx"
    )
    used, errors = pair(path, tmp_path, {"x": rng.standard_normal((7, 32)).astype(np.float32)})
    assert "MatMulInteger" in used and "Gemm" not in used
    assert errors["y"] < 0.05


def test_weights_behind_a_constant_expression(tmp_path: Path) -> None:
    """As exporters write them: Unsqueeze of Concat of Constants; the quantizer alone leaves them."""
    weights = layer(32, 16)
    inputs = [value("x", (9, 1, 16))]
    halves = np.split(weights.w[0].reshape(128, 16), 2)
    nodes = [
        helper.make_node("Constant", [], ["w0"], value=numpy_helper.from_array(halves[0])),
        helper.make_node("Constant", [], ["w1"], value=numpy_helper.from_array(halves[1])),
        helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([0]))),
        helper.make_node("Concat", ["w0", "w1"], ["w2"], axis=0),
        helper.make_node("Unsqueeze", ["w2", "axes"], ["w"]),
        helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=32),
    ]
    constants = [numpy_helper.from_array(weights.r.reshape(1, 128, 32), "r")]
    path = write(graph_model(nodes, inputs, [value("y", (9, 1, 1, 32))], constants), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((9, 1, 16)).astype(np.float32)
    used, errors = pair(path, tmp_path, {"x": x})
    assert "DynamicQuantizeLSTM" in used
    assert errors["y"] < 0.05


def test_what_has_nothing_to_quantise_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    inputs, outputs = [value("a", (2, 3)), value("b", (3, 2))], [value("c", (2, 2))]
    path = write(graph_model(nodes, inputs, outputs), tmp_path / "m.onnx")
    with pytest.raises(LstmoptError, match="no constant weights of LSTM, MatMul, Gemm"):
        ENGINE.build(path, "int8", tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_external_weights_come_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_model(rnn_model(layer(64, 64)), source / "whole.onnx")
    proto = onnx.load(source / "whole.onnx")
    onnx.save(proto, source / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    x = np.random.default_rng(0).standard_normal((4, 1, 64)).astype(np.float32)
    used, errors = pair(source / "m.onnx", tmp_path, {"x": x})
    assert "DynamicQuantizeLSTM" in used and errors["y"] < 0.05
    (source / "m.data").unlink()
    again = open_session(ENGINE.build(source / "whole.onnx", "f32", tmp_path / "c"), 1).run({"x": x})
    assert np.isfinite(again["y"]).all()


def test_the_root_logger_is_left_as_it_was(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.level, list(root.filters)
    save_model(rnn_model(layer()), tmp_path / "m.onnx")
    ENGINE.build(tmp_path / "m.onnx", "int8", tmp_path / "b")
    assert (root.level, list(root.filters)) == before


def test_models_that_others_trained(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    speech = {
        "input": 0.1 * rng.standard_normal((1, 576)).astype(np.float32),
        "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000),
    }  # fmt: skip
    used, errors = pair(silero_vad(), tmp_path / "silero", speech)
    assert used.count("DynamicQuantizeLSTM") == 4 and errors["stateN"] < 0.1  # inside nested branches
    used, errors = pair(ddddocr(), tmp_path / "ocr", {"input1": rng.random((1, 1, 64, 160), np.float32)})
    assert "DynamicQuantizeLSTM" in used and max(errors.values()) < 0.1
