"""ONNX Runtime on an NVIDIA GPU, where its build has the CUDA provider or that of TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.rewriting import rewrite
from lstmopt.runtimes import cuda
from lstmopt.runtimes.base import (
    Deployment,
    Feeds,
    RuntimeStatus,
    check_feeds,
    declared_shapes,
    read_graph,
)
from lstmopt.runtimes.onnxruntime import OnnxRuntimeSession

PRECISIONS = ("f32", "f16")


class OnnxRuntimeGpu:
    """One execution provider as a runtime.

    Args:
        name: of the runtime.
        provider: as ONNX Runtime calls it.
        options: of the provider.
        install: what brings it.
    """

    def __init__(self, name: str, provider: str, options: Mapping[str, str], install: str) -> None:
        self.name, self._provider, self._options, self._install = name, provider, options, install

    def status(self) -> RuntimeStatus:
        """Says whether it can be used here."""
        try:
            import onnxruntime as ort
        except ImportError:
            return RuntimeStatus(self.name, False, "", (), f"not installed: {self._install}")
        if self._provider not in ort.get_available_providers():
            told = f"this build of ONNX Runtime is without it: {self._install}"
            return RuntimeStatus(self.name, False, "", (), told)
        if told := cuda.fault():
            return RuntimeStatus(self.name, False, str(ort.__version__), (), told)
        return RuntimeStatus(self.name, True, str(ort.__version__), PRECISIONS)

    def precisions(self) -> tuple[str, ...]:
        """Returns f32 and f16; nothing where it cannot be used."""
        return self.status().precisions

    def build(
        self, model_file: Path, precision: str, folder: Path, calls: Sequence[Feeds] = ()
    ) -> Deployment:
        """Writes the model, in f16 with every tensor in it cast.

        Raises:
            LstmoptError: a precision other than f32 and f16, or a weight beyond f16.
        """
        if precision not in PRECISIONS:
            raise LstmoptError(
                f"precision {precision}", "ONNX Runtime on GPUs does not run it", "use f32 or f16"
            )
        from lstmopt.rnn.half import Half

        read_graph(model_file)
        model, file = load_model(model_file), folder / "model.onnx"
        save_model(rewrite(model, Half()) if precision == "f16" else model, file)
        shapes = declared_shapes(read_graph(file))
        return Deployment(runtime=self.name, file=file, precision=precision, input_shapes=shapes)

    def open(self, deployment: Deployment, threads: int) -> OnnxRuntimeGpuSession:
        """Loads a deployment."""
        status = self.status()
        if not status.usable:
            raise LstmoptError(self.name, status.reason, "run it where there is a GPU; see lstmopt doctor")
        return OnnxRuntimeGpuSession(deployment, threads, self._provider, dict(self._options))


class OnnxRuntimeGpuSession(OnnxRuntimeSession):
    """A session of one provider; what it has not runs on the CPU, as ONNX Runtime does it."""

    def __init__(self, deployment: Deployment, threads: int, provider: str, options: dict[str, str]) -> None:
        super().__init__(deployment, threads, [(provider, options), "CPUExecutionProvider"])
        if self._session.get_providers()[0] != provider:  # it falls back without an error
            raise LstmoptError(
                deployment.runtime, f"{provider} does not load here", "install the CUDA that its build is for"
            )

    def bind(self, feeds: Feeds) -> Callable[[], Any]:
        """Returns one inference with inputs and outputs that stay on the GPU."""
        import onnxruntime as ort

        check_feeds(self.inputs, feeds)
        binding = self._session.io_binding()
        for name, array in feeds.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.require(array, requirements="C"), "cuda", 0)
            binding.bind_ortvalue_input(name, value)
        for name in self._names:
            binding.bind_output(name, "cuda")
        run = self._session.run_with_iobinding

        def call() -> None:
            run(binding)
            binding.synchronize_outputs()

        return call


ON_CUDA = OnnxRuntimeGpu(
    "onnxruntime-cuda", "CUDAExecutionProvider", {"use_tf32": "0"}, "pip install onnxruntime-gpu"
)
ON_RTX = OnnxRuntimeGpu(
    "onnxruntime-rtx",
    "NvTensorRTRTXExecutionProvider",
    {},
    "a build of ONNX Runtime with NVIDIA's TensorRT-RTX provider",
)
