"""run.py and golden.safetensors: in this environment, and in fresh ones that have one runtime alone."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lstmopt.errors import LstmoptError
from lstmopt.report import run as script
from lstmopt.report.folder import manifest_files
from lstmopt.report.golden import Golden, play, read_golden, write_golden
from lstmopt.report.runner import run_script
from lstmopt.report.schema import Manifest, StateRecord
from lstmopt.runtimes import open_session, runtime
from tests.needed import missing
from tests.report_samples import MACHINE

MODEL = Path(str(files("lstmopt.reference").joinpath("char_lm.onnx")))
STATES = tuple((f"{kind}_{layer}", f"{kind}_{layer}_out") for layer in (0, 1) for kind in "hc")
WINDOWS = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the reference model: ONNX Runtime int8 first, OpenVINO f32 second."""
    folder = tmp_path_factory.mktemp("run") / "artifact"
    folder.mkdir()
    entries = [
        runtime("onnxruntime").build(MODEL, "int8", folder / "onnxruntime"),
        runtime("openvino").build(MODEL, "f32", folder / "openvino"),
    ]
    rng = np.random.default_rng(0)
    windows = []
    for _ in range(WINDOWS):
        feeds: dict[str, Any] = {"tokens": rng.integers(0, 90, (8, 1))}
        feeds |= {name: np.zeros((1, 1, 392), np.float32) for name, _ in STATES}
        windows.append(feeds)
    original = runtime("onnxruntime").build(MODEL, "f32", folder.parent / "original")
    golden = Golden(
        inputs=tuple(windows),
        original=play(open_session(original, 1).run, windows, STATES),
        optimized=tuple(play(open_session(entry, 1).run, windows, STATES) for entry in entries),
    )
    write_golden(folder / "golden.safetensors", golden)
    (folder / "run.py").write_text(run_script(), encoding="utf-8")
    Manifest(
        files=manifest_files(folder),
        fingerprint=MACHINE,
        deploy=tuple(entry.model_copy(update={"file": entry.file.relative_to(folder)}) for entry in entries),
        states=tuple(StateRecord(input=source, output=result) for source, result in STATES),
    ).save(folder / "manifest.json")
    return folder


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(made, tmp_path / "artifact"))


def run(
    artifact: Path, *options: str, python: str | Path = sys.executable
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), str(artifact / "run.py"), *options]
    # In the artifact's folder, where its folder onnxruntime/ could be taken for the package.
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=artifact)


def test_golden_round_trip(made: Path) -> None:
    golden = read_golden(made / "golden.safetensors")
    assert len(golden.inputs) == WINDOWS and len(golden.optimized) == 2
    assert golden.inputs[0].keys() == {"tokens", *(name for name, _ in STATES)}
    assert golden.original[3]["logits"].shape == golden.optimized[1][3]["logits"].shape
    assert (made / "golden.safetensors").stat().st_mode == (made / "run.py").stat().st_mode
    tensors, metadata = script.read_safetensors(made / "golden.safetensors")
    assert json.loads(metadata["names"])["outputs"][0] == "logits"
    for step in range(WINDOWS):
        np.testing.assert_array_equal(tensors[f"input.{step}.tokens"], golden.inputs[step]["tokens"])
        np.testing.assert_array_equal(
            tensors[f"optimized.{step}.logits"], golden.optimized[0][step]["logits"]
        )
        np.testing.assert_array_equal(
            tensors[f"optimized-1.{step}.h_1_out"], golden.optimized[1][step]["h_1_out"]
        )


def test_golden_damaged(artifact: Path) -> None:
    path = artifact / "golden.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LstmoptError):
        read_golden(path)


def test_states_are_carried() -> None:
    seen = []

    def count(feeds: Any) -> Any:
        seen.append(int(feeds["s"]))
        return {"y": feeds["x"], "t": feeds["s"] + 1}

    windows = [{"x": np.array(index), "s": np.array(0)} for index in range(3)]
    assert [int(window["t"]) for window in play(count, windows, [("s", "t")])] == [1, 2, 3]
    assert seen == [0, 1, 2]


def test_runs_the_best_file(made: Path) -> None:
    done = run(made, "--iterations", "20", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["runtime"] == "onnxruntime" and result["precision"] == "int8" and result["passed"]
    assert result["version"] == version("onnxruntime")
    assert result["latency_us"]["samples"] == 20 and result["latency_us"]["median"] > 0
    assert result["outputs"].keys() == {"logits", *(name for _, name in STATES)}
    # The int8 file is not the original: the two comparisons are not of one thing.
    assert (
        result["outputs"]["logits"]["difference"]
        < 1e-3
        < result["outputs"]["logits"]["difference_from_original"]
    )


def test_runs_another_runtime_and_prints_a_table(made: Path) -> None:
    done = run(made, "--runtime", "openvino", "--iterations", "20", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "openvino/model.xml" in done.stdout and "passed" in done.stdout and "h_1_out" in done.stdout


@pytest.mark.parametrize("prefix", ["optimized", "input"])
def test_outputs_that_differ_fail(artifact: Path, prefix: str) -> None:
    golden = read_golden(artifact / "golden.safetensors")
    if prefix == "input":
        windows = [dict(window) for window in golden.inputs]
        windows[2]["tokens"] = (windows[2]["tokens"] + 1) % 90
        golden = Golden(tuple(windows), golden.original, golden.optimized)
    else:
        last = {name: array * 1.2 for name, array in golden.optimized[0][-1].items()}
        first = (*golden.optimized[0][:-1], last)
        golden = Golden(golden.inputs, golden.original, (first, golden.optimized[1]))
    write_golden(artifact / "golden.safetensors", golden)
    done = run(artifact, "--iterations", "1")
    assert done.returncode == 1
    assert "DIFFERS" in done.stdout and "FAILED" in done.stdout


def test_states_of_another_size_are_not_compared_with_the_original(artifact: Path) -> None:
    golden = read_golden(artifact / "golden.safetensors")
    smaller = tuple({**window, "h_0_out": window["h_0_out"][..., :8]} for window in golden.original)
    write_golden(artifact / "golden.safetensors", Golden(golden.inputs, smaller, golden.optimized))
    done = run(artifact, "--iterations", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"]["h_0_out"]["difference_from_original"] is None
    assert "Infinity" not in done.stdout
    assert run(artifact, "--iterations", "1").returncode == 0


def break_manifest(artifact: Path) -> None:
    (artifact / "manifest.json").write_text("{")


def break_golden(artifact: Path) -> None:
    path = artifact / "golden.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def break_model(artifact: Path) -> None:
    (artifact / "onnxruntime" / "model.onnx").write_bytes(b"not a model")


def lose_manifest(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()


def lose_golden(artifact: Path) -> None:
    (artifact / "golden.safetensors").unlink()


def empty_golden(artifact: Path) -> None:
    (artifact / "golden.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [break_manifest, break_golden, break_model, lose_manifest, lose_golden, empty_golden]
)
def test_damage_is_one_line(artifact: Path, damage: Any) -> None:
    damage(artifact)
    done = run(artifact, "--iterations", "1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and done.stdout == ""


def test_no_such_runtime_in_the_artifact(artifact: Path) -> None:
    document = json.loads((artifact / "manifest.json").read_text())
    document["deploy"] = document["deploy"][:1]
    (artifact / "manifest.json").write_text(json.dumps(document))
    done = run(artifact, "--runtime", "openvino")
    assert done.returncode == 2 and "it has onnxruntime" in done.stderr


def test_the_script_is_python_3_9_and_stands_alone() -> None:
    tree = ast.parse(run_script(), feature_version=(3, 9))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"numpy"}
    assert len(run_script().splitlines()) < 520


def fresh(folder: Path, *packages: str) -> Path:
    """Returns the Python of a new environment with these packages, of the versions that are here."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pinned = [f"{name}=={version(name)}" for name in packages]
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", *pinned], capture_output=True, text=True
    )
    if installed.returncode:
        missing(f"pip cannot install {', '.join(packages)} here: {installed.stderr.strip()[-200:]}")
    return python


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "file"), [("onnxruntime", "onnxruntime/model.onnx"), ("openvino", "openvino/model.xml")]
)
def test_fresh_environment(made: Path, tmp_path: Path, name: str, file: str) -> None:
    python = fresh(tmp_path / "environment", name, "numpy")
    done = run(made, "--iterations", "20", "--json", python=python)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    # The best file that can be loaded there: the other runtime's folder is not taken for its package.
    assert result["file"] == file and result["passed"]
    other = {"onnxruntime": "openvino", "openvino": "onnxruntime"}[name]
    missing = run(made, "--runtime", other, python=python)
    assert missing.returncode == 2
    assert missing.stderr == f"error: {other}: not installed; pip install {other}\n"
    for absent in ("lstmopt", "safetensors", "torch", "onnx", other):
        assert subprocess.run([python, "-I", "-c", f"import {absent}"], capture_output=True).returncode == 1


@pytest.mark.deep
def test_environment_without_anything(made: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "environment", with_pip=False)
    done = run(made, python=tmp_path / "environment" / "bin" / "python")
    assert done.returncode == 2 and done.stderr == "error: numpy: not installed; pip install numpy\n"


finite = arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32))


@settings(deadline=None, max_examples=100, derandomize=True)
@given(finite, st.floats(1e-3, 1))
def test_difference_is_relative(expected: Any, share: float) -> None:
    assert script.difference([expected], [expected]) == 0
    if np.abs(expected).max() > 1e-3:
        got = script.difference([expected], [expected * np.float32(1 + share)])
        assert got == pytest.approx(share, rel=1e-2)


def test_difference_of_odd_values() -> None:
    infinity, nan = float("inf"), float("nan")
    values = np.array([1.0, 2.0, -infinity], np.float32)
    assert script.difference([values], [values]) == 0
    assert script.difference([values], [np.array([1.0, 2.0, 3.0])]) == infinity
    assert script.difference([values], [np.array([1.0, nan, -infinity])]) == infinity
    assert script.difference([values], [values[:2]]) == infinity
    assert script.difference([values, values], [values]) == infinity
    assert script.difference([np.zeros(3)], [np.ones(3)]) == infinity
    assert script.difference([np.arange(4)], [np.array([0, 1, 2, 9])]) == 0.25
