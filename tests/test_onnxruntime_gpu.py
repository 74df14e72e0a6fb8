"""ONNX Runtime's GPU providers: what is written for them, and that absent ones are one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lstmopt.errors import LstmoptError
from lstmopt.rnn.files import save_model
from lstmopt.runtimes import cuda, open_session, runtime, stand_in
from lstmopt.runtimes.onnxruntime import OnnxRuntimeSession
from lstmopt.runtimes.onnxruntime_gpu import OnnxRuntimeGpuSession
from tests.recurrent import feeds_of, in_onnxruntime, recurrent

NAMES = ("onnxruntime-cuda", "onnxruntime-rtx")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "limit"), [("f32", 1e-6), ("f16", 1e-2)])
def test_what_is_written_computes_the_same(name: str, precision: str, limit: float, tmp_path: Path) -> None:
    model = recurrent(states=True)
    save_model(ir.from_proto(model), tmp_path / "m.onnx")
    made = runtime(name).build(tmp_path / "m.onnx", precision, tmp_path / "b")
    feeds = feeds_of(model)
    got, expected = in_onnxruntime(onnx.load(made.file), feeds), in_onnxruntime(model, feeds)
    assert set(got) == set(expected)
    for output, array in got.items():
        assert array.dtype == np.float32
        assert np.abs(array - expected[output]).max() <= limit * np.abs(expected[output]).max()
    halves = sum(
        tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in onnx.load(made.file).graph.initializer
    )
    assert (halves > 0) is (precision == "f16")


@pytest.mark.skipif(cuda.gpu() is not None, reason="there is a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_without_it_nothing_runs(name: str, tmp_path: Path) -> None:
    status = runtime(name).status()
    assert not status.usable and status.precisions == runtime(name).precisions() == ()
    assert "this build of ONNX Runtime is without it: " in status.reason
    save_model(ir.from_proto(recurrent()), tmp_path / "m.onnx")
    made = runtime(name).build(tmp_path / "m.onnx", "f32", tmp_path / "b")
    with pytest.raises(LstmoptError, match=f"{name}: this build of ONNX Runtime is without it"):
        open_session(made, 1)
    with pytest.raises(LstmoptError, match="precision int8: ONNX Runtime on GPUs does not run it"):
        runtime(name).build(tmp_path / "m.onnx", "int8", tmp_path / "c")
    assert isinstance(open_session(stand_in(made), 1), OnnxRuntimeSession)


@pytest.mark.skipif(cuda.gpu() is not None, reason="there is a GPU")
def test_a_provider_that_falls_back_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime itself warns, and goes on with the CPU."""
    save_model(ir.from_proto(recurrent()), tmp_path / "m.onnx")
    made = runtime("onnxruntime-cuda").build(tmp_path / "m.onnx", "f32", tmp_path / "b")
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(LstmoptError, match="onnxruntime-cuda: CUDAExecutionProvider does not load here"),
    ):
        OnnxRuntimeGpuSession(made, 1, "CUDAExecutionProvider", {})
