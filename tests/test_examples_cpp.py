"""The C++ programs in examples/cpp: built here, run on a model and a library that lie alone in a folder."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lstmopt.runtimes.ops import available, library
from lstmopt.sparsity.formats import format_named
from tests.needed import missing
from tests.ops import ort_session, ov_compile, ov_core, ov_run, random_layer, save_sparse

EXAMPLES = Path(__file__).parent.parent / "examples" / "cpp"
SHAPES = {"x": (9, 2, 60), "h_0": (1, 2, 100), "c_0": (1, 2, 100)}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the programs whose runtimes' headers are here."""
    import onnxruntime
    from openvino.utils import get_cmake_path

    if shutil.which("cmake") is None or shutil.which("c++") is None:
        missing("cmake and a C++ compiler")
    folder = tmp_path_factory.mktemp("cpp")
    wheel = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    options = [f"-DOpenVINO_DIR={get_cmake_path()}", *([f"-DONNXRUNTIME_LIBRARY={wheel}"] if wheel else [])]
    for command in (["-S", EXAMPLES, "-B", folder, *options], ["--build", folder]):
        result = subprocess.run(["cmake", *map(str, command)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder


def inputs() -> dict[str, np.ndarray]:
    """Returns what the programs feed."""
    return {
        name: ((np.arange(np.prod(shape)) % 7 - 3) / 4).astype(np.float32).reshape(shape)
        for name, shape in SHAPES.items()
    }


def model(folder: Path) -> Path:
    weights = random_layer(np.random.default_rng(21), format_named("i8"), hidden=100, inputs=60, plain=True)
    return save_sparse(folder / "model.onnx", weights, format_named("i8"), states=True)


def printed_sum(program: Path, file: Path, runtime: str) -> float:
    """Runs a program without any environment, on a copy of the library; returns the sum that it prints."""
    copy = shutil.copy(library(runtime), file.parent)
    shapes = [",".join(map(str, shape)) for shape in SHAPES.values()]
    result = subprocess.run(
        [program, file, copy, *shapes], capture_output=True, text=True, env={}, cwd=file.parent, check=False
    )
    assert result.returncode == 0, result.stderr
    found = re.fullmatch(r"sum (\S+), ([\d.]+) us a call\n", result.stdout)
    assert found is not None, result.stdout
    assert float(found[2]) > 0
    return float(found[1])


def total(outputs: list[np.ndarray]) -> float:
    return float(sum(output.astype(np.float64).sum() for output in outputs))


@pytest.mark.skipif(not available("openvino"), reason="the native ops were not built")
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_openvino(programs: Path, tmp_path: Path, suffix: str) -> None:
    import openvino as ov

    file = model(tmp_path)
    want = total(ov_run(ov_compile(file), inputs()))
    if suffix == ".xml":
        ov.save_model(ov_core().read_model(str(file)), tmp_path / "model.xml", compress_to_fp16=False)
        file.unlink()
    have = printed_sum(programs / "openvino", file.with_suffix(suffix), "openvino")
    assert have == pytest.approx(want, rel=1e-7, abs=1e-6)
    assert abs(want) > 1e-3  # a sum of nothing would be equal too


@pytest.mark.skipif(not available("onnxruntime"), reason="the native ops were not built")
def test_onnxruntime(programs: Path, tmp_path: Path) -> None:
    if not (programs / "onnxruntime").exists():
        pytest.skip(
            "no headers of ONNX Runtime: Debian 13's libonnxruntime-dev has them (CMAKE_INCLUDE_PATH)"
        )
    file = model(tmp_path)
    want = total(ort_session(file).run(None, inputs()))
    have = printed_sum(programs / "onnxruntime", file, "onnxruntime")
    assert have == pytest.approx(want, rel=1e-7, abs=1e-6)
    assert abs(want) > 1e-3


def test_a_wrong_call_is_told(programs: Path, tmp_path: Path) -> None:
    for name in ("openvino", "onnxruntime"):
        program = programs / name
        if program.exists():
            for arguments in ([], [tmp_path / "absent.onnx", tmp_path / "absent.so", "1"]):
                result = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
                assert result.returncode == 1 and result.stderr
