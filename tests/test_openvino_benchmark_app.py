"""OpenVINO's own `benchmark_app` runs what an artifact ships, with the shapes that its manifest gives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lstmopt
from lstmopt.passes import Export, Resize, Simplify
from lstmopt.targets import RuntimeTarget, Target
from tests.needed import missing
from tests.test_cli_errors import classifier, examples

OPENVINO = Target(name="openvino", runtimes=(RuntimeTarget(runtime="openvino", precisions=("f32",)),))


def assert_runs_in_benchmark_app(artifact: Path) -> None:
    program = shutil.which("benchmark_app", path=str(Path(sys.executable).parent))
    if program is None:
        missing("this OpenVINO comes without benchmark_app")
    manifest = json.loads((artifact / "manifest.json").read_text())
    (entry,) = (item for item in manifest["deploy"] if item["runtime"] == "openvino")
    assert entry["file"] == "openvino/model.xml"
    shapes = (f"{name}[{','.join(map(str, shape))}]" for name, shape in entry["input_shapes"].items())
    result = subprocess.run(
        [
            program, "-m", artifact / entry["file"], "-d", "CPU", "-data_shape", ",".join(shapes),
            "-infer_precision", entry["settings"]["INFERENCE_PRECISION_HINT"], "-hint", "none",
            "-api", "sync", "-niter", "20", "-nstreams", "1", "-nthreads", str(manifest["threads"]),
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "20 iterations" in result.stdout, result.stdout


def optimized(model: Path, output: Path, **options: Any) -> Path:
    lstmopt.Pipeline(Simplify(), Resize(scale=0.7), Export(5)).run(
        model, output=output, target=OPENVINO, max_degradation=20.0, **options
    )
    return output


def test_a_classifier(tmp_path: Path) -> None:
    model, data = classifier(tmp_path / "m.onnx", 24), examples(tmp_path / "data.npz")
    assert_runs_in_benchmark_app(optimized(model, tmp_path / "out", data=data))


@pytest.mark.deep
def test_a_language_model_with_states(tmp_path: Path) -> None:
    from lstmopt.reference.char_lm import corpus, model_path

    text = corpus()
    data = {"tokens": text.train[:50_000]}, {"tokens": text.valid[:5_000]}
    assert_runs_in_benchmark_app(optimized(model_path(), tmp_path / "out", data=data[0], val=data[1]))
