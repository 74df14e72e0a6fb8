"""OpenVINO's own `benchmark_app` runs what an artifact ships, in the shapes of its manifest, and our ops."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmopt
from lstmopt.passes import Export, Resize, Simplify
from lstmopt.runtimes.ops import available, library
from lstmopt.sparsity.formats import format_named
from lstmopt.targets import RuntimeTarget, Target
from tests.needed import missing
from tests.ops import ov_core, random_layer, save_sparse
from tests.test_cli_errors import classifier, examples

OPENVINO = Target(name="openvino", runtimes=(RuntimeTarget(runtime="openvino", precisions=("f32",)),))


def run_benchmark_app(file: Path, shapes: dict[str, Any], *more: str | Path) -> None:
    program = shutil.which("benchmark_app", path=str(Path(sys.executable).parent))
    if program is None:
        missing("this OpenVINO comes without benchmark_app")
    shown = ",".join(f"{name}[{','.join(map(str, shape))}]" for name, shape in shapes.items())
    result = subprocess.run(
        [
            program, "-m", file, "-d", "CPU", "-data_shape", shown, "-hint", "none",
            "-api", "sync", "-niter", "20", "-nstreams", "1", *more,
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "20 iterations" in result.stdout, result.stdout


def assert_runs_in_benchmark_app(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    (entry,) = (item for item in manifest["deploy"] if item["runtime"] == "openvino")
    assert entry["file"] == "openvino/model.xml"
    precision = entry["settings"]["INFERENCE_PRECISION_HINT"]
    options = "-infer_precision", precision, "-nthreads", str(manifest["threads"])
    run_benchmark_app(artifact / entry["file"], entry["input_shapes"], *options)


def optimized(model: Path, output: Path, **options: Any) -> Path:
    lstmopt.Pipeline(Simplify(), Resize(scale=0.7), Export(5)).run(
        model, output=output, target=OPENVINO, max_degradation=20.0, **options
    )
    return output


@pytest.mark.deep
def test_a_classifier(tmp_path: Path) -> None:
    model, data = classifier(tmp_path / "m.onnx", 24), examples(tmp_path / "data.npz")
    assert_runs_in_benchmark_app(optimized(model, tmp_path / "out", data=data))


@pytest.mark.skipif(not available("openvino"), reason="the native ops were not built")
@pytest.mark.parametrize("name", ["f32", "i8"])
def test_the_sparse_op(tmp_path: Path, name: str) -> None:
    import openvino as ov

    item = format_named(name)
    weights = random_layer(np.random.default_rng(31), item, hidden=64, inputs=48, plain=True)
    file = save_sparse(tmp_path / "sparse.onnx", weights, item, states=True)
    ov.save_model(ov_core().read_model(str(file)), tmp_path / "model.xml", compress_to_fp16=False)
    alone = tmp_path / "alone"
    alone.mkdir()
    for each in (tmp_path / "model.xml", tmp_path / "model.bin", library("openvino")):
        shutil.copy(each, alone)
    shapes = {"x": (7, 1, 48), "h_0": (1, 1, 64), "c_0": (1, 1, 64)}
    run_benchmark_app(alone / "model.xml", shapes, "-extensions", alone / library("openvino").name)


@pytest.mark.deep
def test_a_language_model_with_states(tmp_path: Path) -> None:
    from lstmopt.reference.char_lm import corpus, model_path

    text = corpus()
    data = {"tokens": text.train[:50_000]}, {"tokens": text.valid[:5_000]}
    assert_runs_in_benchmark_app(optimized(model_path(), tmp_path / "out", data=data[0], val=data[1]))
