"""The programs in examples/ run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models.language_model import LanguageModel, Sizes, export_onnx
from tests.test_cli_errors import QUICK, classifier

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: object, timeout: float = 600) -> str:
    result = subprocess.run(
        [sys.executable, QUICK, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.deep
def test_chain_passes(tmp_path: Path) -> None:
    classifier(tmp_path / "m.onnx", 24)
    assert "ships: " in run("chain_passes.py", tmp_path / "m.onnx", 16, tmp_path / "out")


@pytest.mark.deep
def test_language_model_and_deploy(tmp_path: Path) -> None:
    export_onnx(LanguageModel(Sizes(97, 8, 48)), tmp_path / "model.onnx")
    out = run("optimize_language_model.py", tmp_path / "out", 8, tmp_path / "model.onnx")
    assert "over the best peer" in out
    assert "step 4: token" in run("deploy.py", tmp_path / "out")
