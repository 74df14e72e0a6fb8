"""The GPU benchmark on the CPU, small: its numerics, what it finds, its files; it claims no speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu
from lstmopt.measure.hysteresis import points
from lstmopt.runtimes import cuda

ROOT = Path(__file__).resolve().parent.parent


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *map(str, arguments)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.skipif(cuda.gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_it_is_one_line() -> None:
    done = script()
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: no NVIDIA GPU that torch can use here; run it where there is one\n"


@pytest.mark.skipif(cuda.gpu() is not None, reason="there is a GPU")
def test_the_demo_is_one_line_too(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu_demo.sh"), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=120, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: tensorrt: "), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_on_the_cpu_it_computes_right_and_writes_its_files(tmp_path: Path) -> None:
    done = script(
        "--device", "cpu", "--largest", 72, "--sizes", 24, "--seconds", 60,
        "--json", tmp_path / "a" / "g.json", "--png", tmp_path / "b" / "g.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a" / "g.json").read_text(encoding="utf-8"))
    assert found["device"].startswith("no GPU")
    errors = {row["precision"]: row["ways"]["torch eager"]["error"] for row in found["peers"]}
    assert errors["f32"] < 1e-5 < errors["f16"] < 1e-3
    for curve in found["curves"].values():
        assert list(curve["latency_us"]) == ["64", "72"]
        assert curve["points"][0] == 72
    assert (tmp_path / "b" / "g.png").read_bytes().startswith(b"\x89PNG")
    assert set(found["curves"]) == {
        f"{precision}, batch {batch}" for precision in ("f32", "f16") for batch in (1, 8)
    }
    assert "f32, batch 8 (resolution" in done.stdout


def test_what_is_written_as_onnx_is_the_layer(tmp_path: Path) -> None:
    import onnxruntime as ort

    layer = gpu.Layer.random(24)
    session = ort.InferenceSession(str(gpu.written(layer, tmp_path)), providers=["CPUExecutionProvider"])
    assert layer.error(session.run(["y"], {"x": layer.x})[0]) < 1e-5


def test_ways_that_are_absent_say_why() -> None:
    import torch

    layer = gpu.Layer.random(8)
    if cuda.gpu() is None:
        told = gpu.measured(lambda: gpu.in_tensorrt(layer, "f32", gpu.clock_times, graph=True))
        assert "no NVIDIA GPU" in told["absent"] or "not installed" in told["absent"]
        told = gpu.measured(lambda: gpu.in_onnxruntime(torch, layer, "f32", "CUDAExecutionProvider"))
        assert told["absent"] == "this build of ONNX Runtime is without it"


def test_outputs_that_are_wrong_are_told() -> None:
    layer = gpu.Layer.random(8)
    truth = layer.in_float64()
    assert layer.error(truth) == 0 and layer.error(np.zeros_like(truth)) > 0.1
    ways = {"a": {"median_us": 1.0, "error": 1e-4}, "b": {"absent": "no"}, "c": {"error": float("nan")}}
    rows = [{"precision": precision, "hidden_size": 8, "ways": ways} for precision in ("f32", "f16")]
    assert [line.split(":")[0] for line in gpu.faults({"peers": rows})] == [
        "a, f32, hidden size 8", "c, f32, hidden size 8", "c, f16, hidden size 8",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", ["steps", "line", "flat", "sawtooth"])
def test_its_points_are_those_of_the_package(shape: str) -> None:
    dims = range(64, 513, 8)
    latency = {
        "steps": {d: 10.0 * -(-d // 64) for d in dims},
        "line": {d: float(d) for d in dims},
        "flat": {d: 5.0 for d in dims},
        "sawtooth": {d: d + (40.0 if d % 64 else 0.0) for d in dims},
    }[shape]
    assert gpu.hysteresis_points(latency, 0.01) == list(points(latency, 0.01))
