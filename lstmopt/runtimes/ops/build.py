"""Builds the ops' libraries from the sources that lie beside this file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lstmopt.errors import LstmoptError
from lstmopt.runtimes.ops.libraries import FOLDER, NAMES, SOURCES, folders

LINES = 12
"""Of a failed command's output, how many are shown."""

QUIET = "import sys; sys.modules['openvino_telemetry'] = None"
"""See `runtimes.openvino.imported`."""


def build_ops(output: Path | None = None, openvino_dir: Path | None = None) -> tuple[Path, ...]:
    """Builds the libraries for the installed OpenVINO, or for another.

    Args:
        output: folder for the libraries; where None, that in which lstmopt looks for them.
        openvino_dir: folder of ``OpenVINOConfig.cmake``; that of the installed package where None.

    Returns:
        The libraries that were built: ONNX Runtime's, and OpenVINO's where OpenVINO was found.

    Raises:
        LstmoptError: a tool is missing or the build failed.
    """
    cmake = shutil.which("cmake")
    if cmake is None:
        raise LstmoptError("cmake", "was not found", "install it: pip install cmake, or apt install cmake")
    if os.environ.get("CXX") is None and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise LstmoptError("a C++ compiler", "was not found", "install g++ (apt install g++), or set CXX")
    folder = output if output is not None else _default()
    with tempfile.TemporaryDirectory(prefix="lstmopt-build-") as build:
        options = ["-DCMAKE_BUILD_TYPE=Release"]
        found = openvino_dir if openvino_dir is not None else _openvino_dir()
        if found is not None:
            options.append(f"-DOpenVINO_DIR={found}")
        _call([cmake, "-S", str(SOURCES), "-B", build, *options])
        _call([cmake, "--build", build, "--config", "Release", "--parallel"])
        _call([cmake, "--install", build, "--config", "Release", "--prefix", str(folder)])
    return tuple(folder / name for name in NAMES.values() if (folder / name).is_file())


def _default() -> Path:
    """Returns the folder that has libraries now, or else the package's own."""
    present = [folder for folder in folders() if any((folder / name).is_file() for name in NAMES.values())]
    return present[0] if present else SOURCES / FOLDER


def _openvino_dir() -> Path | None:
    """Returns where the installed OpenVINO has its CMake files, or None where it is not installed."""
    call = [sys.executable, "-c", f"{QUIET}; import openvino.utils as u; print(u.get_cmake_path())"]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    return Path(result.stdout.strip()) if result.returncode == 0 and result.stdout.strip() else None


def _call(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        output = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        told = " | ".join(line.strip() for line in output[-LINES:])
        raise LstmoptError(
            "build-ops", f"{Path(command[0]).name} failed: {told}", "it takes g++ 12 or clang++ 14, or newer"
        )
