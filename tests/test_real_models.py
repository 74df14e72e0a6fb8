"""`inspect` and `export` on models that others trained: the same outputs, also streaming."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests.real_models import ddddocr, silero_vad
from tests.test_cli_errors import call

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
CHUNKS = 100


def in_onnxruntime(path: Path) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, dict(feeds)), strict=True))


def in_openvino(path: Path) -> Run:
    import openvino as ov

    model = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        result = model(dict(feeds))
        return {output.any_name: np.array(result[output]) for output in model.outputs}

    return run


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def exported(model: Path, runtime: str, folder: Path) -> Run:
    """What `lstmopt export` has written, loaded without this package."""
    arguments = ("--runtime", runtime, "--format", "f32", "-o", folder, "--json")
    result = call("export", model, *arguments)
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["error"] < 1e-4
    return RUNTIMES[runtime](Path(document["deployment"]["file"]))


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-4 * max(1.0, float(np.abs(expected).max()))


def sounds(rng: np.random.Generator, samples: int) -> list[np.ndarray]:
    time = np.arange(samples)
    return [
        (0.3 * np.sin(time * 0.05 * (1 + chunk % 7)) + 0.1 * rng.standard_normal(samples)).astype(np.float32)
        for chunk in range(CHUNKS)
    ]


def stream(
    runs: tuple[Run, Run], feeds: list[dict[str, np.ndarray]], states: dict[str, str], start: np.ndarray
) -> list[np.ndarray]:
    """Feeds both models chunk by chunk, each with its own states; compares everything that they answer."""
    carried: list[dict[str, np.ndarray]] = [dict.fromkeys(states, start), dict.fromkeys(states, start)]
    heard = []
    for chunk in feeds:
        before, after = (run({**chunk, **state}) for run, state in zip(runs, carried, strict=True))
        assert list(before) == list(after)
        for name, array in before.items():
            assert_close(after[name], array)
        carried = [{i: answer[o] for i, o in states.items()} for answer in (before, after)]
        heard.append(before[next(iter(before))].ravel())
    return heard


def test_silero_streams_in_onnx_runtime(tmp_path: Path) -> None:
    path = silero_vad()
    inspected = call("inspect", path, "--json")
    assert inspected.returncode == 0, inspected.stderr
    document = json.loads(inspected.stdout)
    assert len(document["layers"]) == 2  # one for each sampling rate
    assert document["states"] == [{"input": "state", "output": "stateN"}]
    feeds = [{"input": sound[None], "sr": np.array(16000)} for sound in sounds(np.random.default_rng(0), 576)]
    runs = in_onnxruntime(path), exported(path, "onnxruntime", tmp_path / "out")
    heard = stream(runs, feeds, {"state": "stateN"}, np.zeros((2, 1, 128), np.float32))
    assert len({float(value[0]) for value in heard}) > CHUNKS // 2


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_silero_in_a_plain_graph_streams_in_every_runtime(runtime: str, tmp_path: Path) -> None:
    path = silero_vad("silero_vad_16k_sequence.onnx")
    feeds = [{"input": sound[None]} for sound in sounds(np.random.default_rng(1), 576)]
    runs = in_onnxruntime(path), exported(path, runtime, tmp_path / "out")
    heard = stream(runs, feeds, {"h": "hn", "c": "cn"}, np.zeros((1, 1, 128), np.float32))
    assert len({float(value[0]) for value in heard}) > CHUNKS // 2


@pytest.mark.deep
def test_what_openvino_cannot_convert_is_said(tmp_path: Path) -> None:
    path = silero_vad()
    result = call("export", path, "--runtime", "openvino", "--format", "f32", "-o", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {path}: OpenVINO cannot convert it")
    assert not (tmp_path / "out").exists()


@pytest.mark.deep
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_ddddocr_reads_the_same(runtime: str, tmp_path: Path) -> None:
    path = ddddocr()
    document = json.loads(call("inspect", path, "--json").stdout)
    assert document["layers"][0]["hidden_size"] == 512
    original, ours = in_onnxruntime(path), exported(path, runtime, tmp_path / "out")
    rng = np.random.default_rng(2)
    for width in (64, 160, 333):
        picture = {"input1": rng.uniform(-1, 1, (1, 1, 64, width)).astype(np.float32)}
        expected, got = original(picture), ours(picture)
        assert list(got) == list(expected)
        for name, array in expected.items():
            assert_close(got[name], array)
            np.testing.assert_array_equal(got[name].argmax(-1), array.argmax(-1))
