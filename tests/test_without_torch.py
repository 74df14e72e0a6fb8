"""Every verb but `optimize` works where torch is not installed; `optimize` says what to install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lstmopt
from lstmopt.passes import Export, Simplify
from tests.test_cli_errors import classifier, examples, refused
from tests.test_pipeline import ONE

BLOCK = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec


def without_torch(name, path=None, target=None):
    return None if name.split(".")[0] == "torch" else find(name, path, target)


PathFinder.find_spec = staticmethod(without_torch)
"""

TARGET = """
name = "mine"
shapes = [{ batch = 1, sequence = 6 }]
[[runtimes]]
runtime = "onnxruntime"
precisions = ["f32"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bare")
    (path / "site").mkdir()
    (path / "site" / "sitecustomize.py").write_text(BLOCK)
    (path / "target.toml").write_text(TARGET)
    classifier(path / "model.onnx", 16)
    examples(path / "data.npz", 60)
    return path


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Path:
    lstmopt.Pipeline(Simplify(), Export(5)).run(
        folder / "model.onnx", target=ONE, data=folder / "data.npz", output=folder / "artifact"
    )
    return folder / "artifact"


def bare(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Calls `lstmopt` in a process, and with children, that cannot import torch."""
    paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


def test_torch_is_really_blocked(folder: Path) -> None:
    assert "ModuleNotFoundError" in bare(folder, "-c", "import torch").stderr
    assert "ModuleNotFoundError" in bare(folder, "-c", "from torch.nn import functional").stderr


@pytest.mark.deep
@pytest.mark.parametrize(
    "call",
    [
        "probe {0}/model.onnx --target {0}/target.toml -o {0}/latency-of-model",
        "bench {0}/artifact --rounds 5 --target {0}/target.toml",
        "export {0}/model.onnx --runtime openvino --format f32 --static -o {0}/exported-ir",
        "verify {0}/artifact",
        "advise {0}/model.onnx --target {0}/target.toml",
        "advise {0}/model.onnx --target {0}/target.toml --data {0}/data.npz",
    ],
)
def test_a_verb_works_on_what_was_built(call: str, folder: Path, artifact: Path) -> None:
    assert artifact.is_dir()
    test_a_verb_works(call, folder)


@pytest.mark.parametrize(
    "call",
    [
        "inspect {0}/model.onnx",
        "probe --hidden-size 16 --step 8 --target {0}/target.toml -o {0}/latency",
        "bench {0}/model.onnx --rounds 5 --target {0}/target.toml",
        "export {0}/model.onnx --runtime onnxruntime -o {0}/exported",
    ],
)
def test_a_verb_works(call: str, folder: Path) -> None:
    result = bare(folder, "-m", "lstmopt.cli", *call.format(folder).split(), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)


def test_doctor_says_what_to_install(folder: Path) -> None:
    result = bare(folder, "-m", "lstmopt.cli", "doctor", "--json")
    assert result.returncode == 0, result.stderr
    (torch,) = (item for item in json.loads(result.stdout)["findings"] if item["name"] == "torch")
    assert not torch["usable"] and "pip install torch" in torch["remark"]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_optimize_says_what_to_install(more: list[str], folder: Path) -> None:
    arguments = ["optimize", folder / "model.onnx", "--data", folder / "data.npz", "-o", folder / "out"]
    result = bare(folder, "-m", "lstmopt.cli", *arguments, *more)
    refused(result, "torch: not installed", "pip install torch")
    assert not (folder / "out").exists()
