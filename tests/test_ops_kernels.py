"""The kernels' own tests, built from the shipped sources, and build-ops; `make sanitize` adds sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from lstmopt.cli import cli
from lstmopt.errors import LstmoptError
from lstmopt.runtimes.ops import build
from lstmopt.runtimes.ops.libraries import SOURCES

TOOLS = shutil.which("cmake") is not None and shutil.which("c++") is not None
needs_tools = pytest.mark.skipif(not TOOLS, reason="no cmake or no C++ compiler")


def run(*command: str | Path) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def build_tests(folder: Path, *options: str) -> Path:
    off = "-DLSTMOPT_OPENVINO=OFF", "-DLSTMOPT_ONNXRUNTIME=OFF"
    run("cmake", "-S", SOURCES, "-B", folder, *off, "-DLSTMOPT_TESTS=ON", "-DLSTMOPT_FUZZ=ON", *options)
    run("cmake", "--build", folder, "--parallel", "2")
    return folder


@needs_tools
@pytest.mark.deep
@pytest.mark.parametrize("portable", ["OFF", "ON"])
def test_kernels_on_every_instruction_set(tmp_path: Path, portable: str) -> None:
    folder = build_tests(tmp_path, f"-DLSTMOPT_PORTABLE={portable}")
    assert "all passed" in run(folder / "test_kernels", "30")
    assert "all passed" in run(folder / "test_kernels", "5", "4")


@needs_tools
@pytest.mark.deep
def test_build_ops(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["build-ops", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    names = {"liblstmopt_openvino.so", "liblstmopt_onnxruntime.so"}
    assert {Path(line).name for line in result.output.split()} == names


def test_build_ops_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LstmoptError, match="install it"):
        build.build_ops(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: "cmake" if name == "cmake" else None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(LstmoptError, match="C.. compiler.*install g"):
        build.build_ops(tmp_path)
