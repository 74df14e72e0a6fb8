"""The C++ programs in examples/cpp: built here, run on a model and a library that lie alone in a folder."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from lstmopt.passes.formats import build_sparse
from lstmopt.passes.sparse_ops import sparse_places
from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.files import load_model
from lstmopt.runtimes import open_session
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


def printed_sum(
    program: Path, file: Path, runtime: str, shapes: Iterable[tuple[int, ...]] = SHAPES.values()
) -> float:
    """Runs a program without any environment, on a copy of the library; returns the sum that it prints."""
    copy = file.parent / library(runtime).name
    if not copy.exists():  # a library that is loaded must not be written over
        shutil.copy(library(runtime), copy)
    sizes = [",".join(map(str, shape)) for shape in shapes]
    result = subprocess.run(
        [program, file, copy, *sizes], capture_output=True, text=True, env={}, cwd=file.parent, check=False
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
        missing("headers of ONNX Runtime: Debian 13's libonnxruntime-dev has them (CMAKE_INCLUDE_PATH)")
    file = model(tmp_path)
    want = total(ort_session(file).run(None, inputs()))
    have = printed_sum(programs / "onnxruntime", file, "onnxruntime")
    assert have == pytest.approx(want, rel=1e-7, abs=1e-6)
    assert abs(want) > 1e-3


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_model_of_tokens(programs: Path, tmp_path: Path, name: str) -> None:
    if not available(name):
        pytest.skip("the native ops were not built")
    if not (programs / name).exists():
        missing(f"headers of {name}")
    pruned = load_model(Path(__file__).parents[1] / "models" / "char_lm" / "pruned.onnx")
    formats = {place.name: "i8" for place in sparse_places(pruned)}
    made = build_sparse(pruned, name, formats, "sparse-i8", 1, tmp_path)
    session = open_session(made, 1)
    feeds = example_inputs(pruned, 0, {"sequence": 5, "batch": 1})
    for array in feeds.values():
        array[...] = (
            0 if array.dtype == np.int64 else ((np.arange(array.size) % 7 - 3) / 4).reshape(array.shape)
        )
    want = total(list(session.run(feeds).values()))
    shapes = [feeds[info.name].shape for info in session.inputs]
    have = printed_sum(programs / name, made.file, name, shapes)
    assert have == pytest.approx(want, rel=1e-6)


def test_a_wrong_call_is_told(programs: Path, tmp_path: Path) -> None:
    for name in ("openvino", "onnxruntime"):
        program = programs / name
        if program.exists():
            for arguments in ([], [tmp_path / "absent.onnx", tmp_path / "absent.so", "1"]):
                result = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
                assert result.returncode == 1 and result.stderr
