"""cuDNN on an NVIDIA GPU: whole models and single layers in torch, replayed as a CUDA graph.

`TORCH` runs recurrent layers as torch's modules do: what a GPU's users have, to be measured against.
`CUDNN` also asks cuDNN for the kernels that torch does not ask for, to be probed and deployed in. Layers in
a row run in the form that is fastest for the call (`bridge.deployed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.rnn.examples import real_inputs
from lstmopt.rnn.files import load_model, save_model
from lstmopt.runtimes import cuda
from lstmopt.runtimes.base import (
    Array,
    Deployment,
    Feeds,
    RuntimeStatus,
    TensorInfo,
    check_feeds,
    declared_shapes,
    read_graph,
)

if TYPE_CHECKING:
    import onnx_ir as ir

PRECISIONS = ("f32", "f16")
TRIES = 50
"""Calls of each form by which the fastest is chosen."""


AGREEMENT = {"f32": 1e-4, "f16": 2e-2}
"""Largest difference between two forms, over the output's largest value: no other is taken for its speed."""


@dataclass
class CuDnn:
    """The runtime.

    Attributes:
        name: as targets name it.
        forms: those in which layers may run.
    """

    name: str
    forms: tuple[str, ...]

    def status(self) -> RuntimeStatus:
        """Says whether it can be used here."""
        if told := cuda.fault():
            return RuntimeStatus(self.name, False, "", (), told)
        import torch

        number = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        version = f"{number} (torch {torch.__version__})"
        return RuntimeStatus(self.name, True, version, PRECISIONS)

    def precisions(self) -> tuple[str, ...]:
        """Returns f32 and f16; nothing where there is no GPU."""
        return () if cuda.fault() else PRECISIONS

    def build(
        self, model_file: Path, precision: str, folder: Path, calls: Sequence[Feeds] = ()
    ) -> Deployment:
        """Copies the model; torch makes of it what it runs when the file is opened.

        Raises:
            LstmoptError: a precision other than f32 and f16, an operator that torch is not given, or a weight
                beyond f16.
        """
        if precision not in PRECISIONS:
            raise LstmoptError(f"precision {precision}", "cuDNN does not run it", "use f32 or f16")
        _torch()
        from lstmopt.bridge.deployed import DeployedModule

        read_graph(model_file)
        model = load_model(model_file)
        DeployedModule(model, precision, "cpu", self.forms)
        file = folder / "model.onnx"
        save_model(model, file)
        shapes = declared_shapes(read_graph(file))
        return Deployment(runtime=self.name, file=file, precision=precision, input_shapes=shapes)

    def open(self, deployment: Deployment, threads: int) -> CuDnnSession:
        """Loads a deployment; threads mean nothing on a GPU."""
        cuda.require(self.name)
        return CuDnnSession(deployment, "cuda", self.forms)


class CuDnnSession:
    """A model on a device; inputs and outputs are f32 in either precision.

    Args:
        deployment: of `CuDnn.build`.
        device: "cuda", or "cpu", where torch's own kernels compute: for numerics, not for speed.
        forms: those in which layers may run.

    Attributes:
        graphed: whether the last `launcher` replays a CUDA graph.

    Raises:
        LstmoptError: torch is not installed, or has not what the file needs.
    """

    def __init__(self, deployment: Deployment, device: str, forms: Sequence[str]) -> None:
        self._torch, self._device, self._file = _torch(), device, str(deployment.file)
        from lstmopt.bridge.deployed import DeployedModule

        model = load_model(deployment.file)
        self.module = DeployedModule(model, deployment.precision, device, forms)
        self._agreement = AGREEMENT[deployment.precision]
        self.inputs = tuple(_info(value) for value in real_inputs(model))
        self.outputs = tuple(_info(value) for value in model.graph.outputs)
        self._forms: dict[tuple[tuple[int, ...], ...], str] = {}
        self.graphed = False

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Returns all outputs by name."""
        check_feeds(self.inputs, feeds)
        tensors = self.placed(feeds)
        self.module.form = self._fastest(tensors)
        results = self._call(tensors)
        return {
            info.name: results[info.name].cpu().numpy().astype(info.dtype, copy=False)
            for info in self.outputs
        }

    def bind(self, feeds: Feeds) -> Callable[[], Any]:
        """Returns one inference on buffers of the device, as a CUDA graph where it can be captured."""
        launch = self.launcher(feeds, graph=True)
        if self._device != "cuda":
            return launch
        wait = self._torch.cuda.current_stream().synchronize

        def call() -> None:
            launch()
            wait()

        return call

    def launcher(self, feeds: Feeds, *, graph: bool) -> Callable[[], None]:
        """Returns what launches one inference and does not wait: what CUDA events time.

        Args:
            feeds: copied to the device now.
            graph: whether to replay a CUDA graph; `graphed` says whether it could be captured.
        """
        check_feeds(self.inputs, feeds)
        tensors = self.placed(feeds)
        call = self.launch(tensors, self._fastest(tensors))
        replay = cuda.captured(self._torch, call) if graph and self._device == "cuda" else None
        self.graphed = replay is not None
        return replay or call

    def launch(self, tensors: dict[str, Any], form: str) -> Callable[[], None]:
        """Returns what launches one inference on tensors of the device in a form."""

        def call() -> None:
            self.module.form = form
            self._call(tensors)

        return call

    def _fastest(self, tensors: dict[str, Any]) -> str:
        """Returns the form that is fastest for such inputs, measured when they come the first time."""
        if self._device != "cuda" or len(self.module.forms) == 1:
            return self.module.form
        shapes = tuple(tuple(tensor.shape) for tensor in tensors.values())
        if shapes not in self._forms:
            taken: dict[str, float] = {}
            expected: dict[str, Any] = {}
            for form in self.module.forms:
                call = self.launch(tensors, form)
                try:
                    self.module.form = form
                    found = self._call(tensors)
                except LstmoptError:
                    if not taken:
                        raise
                    continue  # a kernel that is not there for these sizes
                expected = expected or found
                if all(self._agree(expected[name], found[name]) for name in expected):
                    launch = cuda.captured(self._torch, call) or call
                    taken[form] = float(np.median(cuda.event_times(self._torch, launch, TRIES)))
            self._forms[shapes] = min(taken, key=lambda form: taken[form])
        return self._forms[shapes]

    def _agree(self, expected: Any, found: Any) -> bool:
        if not expected.is_floating_point():
            return bool((expected == found).all())
        difference = (expected.float() - found.float()).abs()
        return not expected.numel() or bool(
            (difference <= self._agreement * expected.float().abs().max()).all()
        )

    def placed(self, feeds: Feeds) -> dict[str, Any]:
        """Returns inputs on the device, real ones in the type in which it computes."""
        tensors = {name: self._torch.from_numpy(np.array(array)) for name, array in feeds.items()}
        return {
            name: tensor.to(self._device, self.module.dtype if tensor.is_floating_point() else None)
            for name, tensor in tensors.items()
        }

    def _call(self, tensors: dict[str, Any]) -> dict[str, Any]:
        torch = self._torch
        try:
            # torch lets cuDNN round f32 to TF32 unless told otherwise: f32 is f32 in every runtime here.
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                return self.module(tensors)
        except LstmoptError as error:
            raise LstmoptError(
                self._file, f"torch cannot run it on {self._device} ({error.fault})", "use another runtime"
            ) from error


TORCH = CuDnn("torch-cuda", ("apart", "stacked"))
CUDNN = CuDnn("cudnn", ("apart", "stacked", "padded", "persistent"))


def _torch() -> Any:
    if find_spec("torch") is None:
        raise LstmoptError("cudnn", "torch is not installed", "pip install torch")
    import torch

    return torch


def _info(value: ir.Value) -> TensorInfo:
    assert value.dtype is not None
    shape = tuple(size if isinstance(size, int) else None for size in value.shape or ())
    return TensorInfo(str(value.name), np.dtype(value.dtype.numpy()), shape)
