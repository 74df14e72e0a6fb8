"""Models of other exporters (`tests/exported`): their layers are found, computed, and resized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from lstmopt.bridge.module import OnnxModule
from lstmopt.bridge.runner import ModuleRunner
from lstmopt.passes.simplify import simplify
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.groups import analyse
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.surgery import resize
from lstmopt.runtimes import open_session, runtime
from tests.recurrent import in_onnxruntime

FOLDER = Path(__file__).parent / "exported"
FOUND = {
    "tf2onnx-lstm": ["LSTM 12", "LSTM 10"],
    "tf2onnx-gru": ["GRU 12", "GRU 10"],
    "tf2onnx-bi": ["LSTM 12"],
    "tf2onnx-unrolled": ["LSTM 12"],
    "tf2onnx-dynamic": ["LSTM 12"],
    "paddle-lstm": ["LSTM 12", "LSTM 12"],
    "paddle-gru": ["GRU 12", "GRU 12"],
    "paddle-bi": ["LSTM 12"],
    "keras-torch-gru": ["GRU 12"],
}
"""Layers and their hidden sizes. Keras' second GRU on torch is written with its reset inside a Where."""


def calls(name: str) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(len(name))
    steps = (6, 9) if name in ("tf2onnx-dynamic", "paddle-lstm", "paddle-gru", "paddle-bi") else (6, 6)
    batches = (1, 1) if name.startswith("keras") else (1, 3)
    (given,) = onnx.load(FOLDER / f"{name}.onnx").graph.input
    return [
        {given.name: rng.standard_normal((batch, length, 8)).astype(np.float32)}
        for batch, length in zip(batches, steps, strict=True)
    ]


@pytest.mark.parametrize("name", FOUND)
def test_layers_are_found_and_the_model_is_the_same(name: str, tmp_path: Path) -> None:
    original = onnx.load(FOLDER / f"{name}.onnx")
    model, _ = simplify(load_model(FOLDER / f"{name}.onnx"))
    layers = find_rnns(model)
    assert sorted(f"{layer.weights.cell.kind} {layer.weights.hidden_size}" for layer in layers) == sorted(
        FOUND[name]
    )
    runner = ModuleRunner(model, OnnxModule(model))
    save_model(model, tmp_path / "model.onnx")
    sessions = [
        open_session(runtime(where).build(tmp_path / "model.onnx", "f32", tmp_path / where), 1)
        for where in ("onnxruntime", "openvino")
    ]
    for feeds in calls(name):
        expected = in_onnxruntime(original, feeds)
        for session in (*sessions, runner):
            got = session.run(feeds)
            assert list(got) == list(expected)
            for key, array in got.items():
                assert array.shape == expected[key].shape
                assert np.abs(array - expected[key]).max() < 2e-6 * max(1.0, np.ptp(expected[key]))


@pytest.mark.parametrize("name", FOUND)
def test_units_can_be_removed_and_added(name: str) -> None:
    model, _ = simplify(load_model(FOLDER / f"{name}.onnx"))
    free = [group.layers for group in analyse(model).groups if group.pinned is None]
    assert sum(map(len, free)) == len(FOUND[name])
    sizes = {layer.name: layer.weights.hidden_size for layer in find_rnns(model)}
    for change in (-3, 4):
        changed = resize(model, {layers[0]: sizes[layers[0]] + change for layers in free}).model
        found = {layer.name: layer.weights.hidden_size for layer in find_rnns(changed)}
        assert found == {layer: size + change for layer, size in sizes.items()}
        if change < 0:
            continue
        for feeds in calls(name):  # added units leave the function as it is
            (before,) = in_onnxruntime(onnx.load(FOLDER / f"{name}.onnx"), feeds).values()
            (after,) = ModuleRunner(changed, OnnxModule(changed)).run(feeds).values()
            assert np.abs(after - before).max() < 5e-6 * max(1.0, np.ptp(before))


def test_a_masked_layer_is_left_as_it_is(tmp_path: Path) -> None:
    """Its loop skips steps by their values: no LSTM does."""
    model, notes = simplify(load_model(FOLDER / "tf2onnx-masked.onnx"))
    assert any("is left" in note for note in notes)
    assert any(node.op_type == "Loop" for node in model.graph)
    save_model(model, tmp_path / "model.onnx")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 6, 8)).astype(np.float32)
    x[1, 2:] = 0
    x[2, 1] = 0
    expected = in_onnxruntime(onnx.load(FOLDER / "tf2onnx-masked.onnx"), {"x": x})
    got = in_onnxruntime(onnx.load(tmp_path / "model.onnx"), {"x": x})
    for key, array in got.items():
        np.testing.assert_allclose(array, expected[key], rtol=0, atol=1e-6)
