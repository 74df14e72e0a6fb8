"""torch's LSTM as a runtime: its numerics on the CPU, and on a GPU where there is one; what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lstmopt.errors import LstmoptError
from lstmopt.measure.bare import random_layer
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.files import save_model
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import cuda, open_session, runtime
from lstmopt.runtimes.cudnn import CuDnnSession
from tests.recurrent import recurrent
from tests.test_cli_errors import call, refused

ENGINE = runtime("cudnn")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(cuda.gpu() is None, reason="no GPU"))]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def in_float64(weights: Any, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> dict[str, np.ndarray]:
    """ONNX's equations, gates in its order i, o, f, c."""
    steps, batch, _ = x.shape
    ys, hs, cs = [], [], []
    for direction in range(weights.num_directions):
        w, r = (a[direction].astype(np.float64) for a in (weights.w, weights.r))
        b = weights.b[direction].astype(np.float64).sum(axis=0)
        state, cell = h[direction].astype(np.float64), c[direction].astype(np.float64)
        y = np.zeros((steps, batch, weights.hidden_size))
        for step in range(steps) if direction == 0 else reversed(range(steps)):
            i, o, f, g = (x[step].astype(np.float64) @ w[k].T + state @ r[k].T + b[k] for k in range(4))
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            state = sigmoid(o) * np.tanh(cell)
            y[step] = state
        ys.append(y)
        hs.append(state)
        cs.append(cell)
    return {"y": np.stack(ys, axis=1), "h_n": np.stack(hs), "c_n": np.stack(cs)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "limit"), [("f32", 1e-5), ("f16", 1e-3)])
@pytest.mark.parametrize(("directions", "states"), [(1, False), (1, True), (2, True)])
def test_it_computes_the_layer(
    device: str, precision: str, limit: float, directions: int, states: bool, tmp_path: Path
) -> None:
    weights = random_layer(LSTM, 40, 24, directions, seed=3)
    save_model(rnn_model(weights, states=states), tmp_path / "m.onnx")
    made = ENGINE.build(tmp_path / "m.onnx", precision, tmp_path / "b")
    rng = np.random.default_rng(4)
    x = rng.standard_normal((12, 3, 24)).astype(np.float32)
    h, c = (0.5 * rng.standard_normal((directions, 3, 40)).astype(np.float32) for _ in range(2))
    if not states:
        h, c = np.zeros_like(h), np.zeros_like(c)
    session = CuDnnSession(made, device)
    feeds = {"x": x, **({"h_0": h, "c_0": c} if states else {})}
    got, expected = session.run(feeds), in_float64(weights, x, h, c)
    assert set(got) == ({"y", "h_n", "c_n"} if states else {"y"})
    for name, array in got.items():
        assert array.dtype == np.float32
        assert np.abs(array - expected[name]).max() < limit * np.ptp(expected[name])
    session.bind(feeds)()


@pytest.mark.parametrize(
    ("form", "fault"),
    [
        ({"direction": "reverse"}, "forward or in both directions"),
        ({"activations": ["Sigmoid", "Relu", "Tanh"]}, "with the usual activations"),
        ({"peepholes": True}, "has peepholes"),
        ({"clip": 0.2}, "a clip"),
        ({"input_forget": 1}, "coupled gates"),
        ({"lengths": True}, "has sequence lengths"),
        ({"kind": "RNN"}, "is not one bare LSTM"),
    ],
    ids=str,
)
def test_what_cudnn_has_not_is_refused(form: dict[str, Any], fault: str, tmp_path: Path) -> None:
    save_model(ir.from_proto(recurrent(**form)), tmp_path / "m.onnx")
    with pytest.raises(LstmoptError, match=fault) as caught:
        ENGINE.build(tmp_path / "m.onnx", "f32", tmp_path / "b")
    assert "\n" not in str(caught.value)


def test_whole_models_and_other_precisions_are_refused(tmp_path: Path) -> None:
    from lstmopt.reference.char_lm import model_path

    with pytest.raises(LstmoptError, match="is not one bare LSTM"):
        ENGINE.build(model_path(), "f32", tmp_path / "b")
    save_model(rnn_model(random_layer(LSTM, 8, 4, 1, 0)), tmp_path / "m.onnx")
    with pytest.raises(LstmoptError, match="precision int8: cuDNN does not run it"):
        ENGINE.build(tmp_path / "m.onnx", "int8", tmp_path / "b")


@pytest.mark.skipif(cuda.gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    status = ENGINE.status()
    assert not status.usable and status.reason == cuda.NO_GPU and ENGINE.precisions() == ()
    save_model(rnn_model(random_layer(LSTM, 8, 4, 1, 0)), tmp_path / "m.onnx")
    made = ENGINE.build(tmp_path / "m.onnx", "f32", tmp_path / "b")
    with pytest.raises(LstmoptError, match="cudnn: no NVIDIA GPU or driver here; run it where there"):
        open_session(made, 1)
    result = call("probe", "--target", "cudnn", "--hidden-size", 64, "-o", tmp_path / "probe")
    refused(result, "no NVIDIA GPU or driver here")
