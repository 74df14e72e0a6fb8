"""OpenVINO on the CPU: f32, and bf16 where the CPU has it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.precision import SPARSE_PRECISIONS, is_sparse
from lstmopt.rnn.execution import first_line
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
from lstmopt.runtimes.ops.libraries import available, copy_library

HINTS = {"f32": "f32", "bf16": "bf16"}
NO_INT8 = "no int8: NNCF 3.4 compresses weights without LSTMSequence, and its quantisation breaks the outputs"
"""Measured on `models/char_lm`: compression 1.0x the speed of f32; quantisation 1.3x, the logits off by
0.4 of their deviation (ONNX Runtime's int8: 8x and 0.06)."""

_PREFACES = (
    "Exception from",
    "Check '",
    "FrontEnd API failed",
    "Model wasn't fully",
    "Summary",
    "[ONNX Frontend]",
)
"""How lines begin that say where in OpenVINO's source an error was raised, not what it is."""


def imported() -> Any:
    """Returns the package, without what tells its makers over the network that it was imported.

    That runs in a process which it forks while other threads hold locks, and for which the interpreter waits
    at its end: seen to hang where there is no network.

    Raises:
        ImportError: it is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class OpenVinoSession:
    """A compiled model with one infer request."""

    def __init__(self, deployment: Deployment, threads: int) -> None:
        ov = imported()
        core = ov.Core()
        settings = {
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": "NO",
            **deployment.settings,
        }
        try:
            for library in deployment.libraries:
                core.add_extension(str(library))
            written = core.read_model(str(deployment.file))
            self._model = core.compile_model(written, "CPU", settings)
        except Exception as error:  # noqa: BLE001 - OpenVINO raises RuntimeError and others
            raise LstmoptError(
                str(deployment.file), f"OpenVINO cannot load it ({telling_line(error)})", "check the file"
            ) from error
        self._request = self._model.create_infer_request()
        self.inputs = tuple(map(_info, self._model.inputs, written.inputs))
        self.outputs = tuple(map(_info, self._model.outputs, written.outputs))

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Returns all outputs by name."""
        check_feeds(self.inputs, feeds)
        try:
            results = self._request.infer(dict(feeds))
        except Exception as error:  # noqa: BLE001 - as above
            raise LstmoptError(
                "inference", f"OpenVINO failed ({telling_line(error)})", "check the inputs' shapes and values"
            ) from error
        return {
            info.name: np.array(results[port])
            for info, port in zip(self.outputs, self._model.outputs, strict=True)
        }

    def reset(self) -> None:
        """Sets the states that a stateful model keeps inside to zero."""
        self._request.reset_state()

    def bind(self, feeds: Feeds) -> Callable[[], Any]:
        """Returns one inference on inputs that were set before."""
        ov = imported()
        check_feeds(self.inputs, feeds)
        request = self._model.create_infer_request()
        kept = [np.require(feeds[info.name], requirements="C") for info in self.inputs]
        for port, array in zip(self._model.inputs, kept, strict=True):
            request.set_tensor(port, ov.Tensor(array, shared_memory=True))

        def call(_: list[Array] = kept) -> None:
            # In this thread, as a program in C++ calls it: start_async and wait go through another one, which
            # costs microseconds. Shared outputs are not copied for Python.
            request.infer(share_outputs=True)

        return call


def _info(port: Any, written: Any) -> TensorInfo:
    """Describes a port, whose tensor compiling may give further names, by its name in the file."""
    shape = port.get_partial_shape()
    sizes = (
        tuple(None if dim.is_dynamic else dim.get_length() for dim in shape) if shape.rank.is_static else ()
    )
    # In files of others it may have several; the ONNX one is the shortest that is not a port's.
    names = sorted(written.get_names(), key=lambda name: (":" in name, len(name), name))
    return TensorInfo(
        names[0] if names else port.get_any_name(), np.dtype(port.get_element_type().to_dtype()), sizes
    )


class OpenVino:
    """The runtime."""

    name = "openvino"

    def status(self) -> RuntimeStatus:
        """Says whether the package is installed."""
        if find_spec("openvino") is None:
            return RuntimeStatus(self.name, False, "", (), "not installed: pip install openvino")
        number = _version()
        precisions = self.precisions()
        reason = NO_INT8 if "bf16" in precisions else f"no bf16: this CPU does not have it; {NO_INT8}"
        return RuntimeStatus(self.name, True, number, precisions, reason)

    def precisions(self) -> tuple[str, ...]:
        """Returns f32, bf16 where the CPU has it, the sparse ops' where built; nothing if not installed."""
        if find_spec("openvino") is None:
            return ()
        dense = ("f32", "bf16") if "BF16" in _capabilities() else ("f32",)
        return (*dense, *(SPARSE_PRECISIONS if available(self.name) else ()))

    def build(
        self, model_file: Path, precision: str, folder: Path, calls: Sequence[Feeds] = ()
    ) -> Deployment:
        """Writes ``model.xml`` and ``model.bin``; weights stay f32, the precision is a setting.

        Raises:
            LstmoptError: OpenVINO cannot convert the model, or the precision is another.
        """
        try:
            ov = imported()
        except ImportError as error:
            raise LstmoptError("openvino", "not installed", "pip install openvino") from error

        from lstmopt.runtimes.openvino_model import read_rightly

        sparse = is_sparse(precision)
        if precision not in HINTS and not sparse:
            raise LstmoptError(
                f"precision {precision}", f"OpenVINO does not run it here ({NO_INT8})", "use f32"
            )
        graph = read_graph(model_file)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "model.xml"
        libraries: tuple[Path, ...] = (copy_library(self.name, folder),) if sparse else ()
        try:
            model = read_rightly(model_file, graph, lambda path: _read(path, libraries))
            _name_ports(model, graph)
            ov.save_model(model, str(file), compress_to_fp16=False)
        except LstmoptError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise LstmoptError(
                str(model_file),
                f"OpenVINO cannot convert it ({telling_line(error)})",
                "use --runtime onnxruntime",
            ) from error
        return Deployment(
            runtime=self.name,
            file=file,
            precision=precision,
            settings={"INFERENCE_PRECISION_HINT": HINTS.get(precision, "f32")},
            libraries=libraries,
            input_shapes=declared_shapes(graph),
        )

    def open(self, deployment: Deployment, threads: int) -> OpenVinoSession:
        """Loads a deployment."""
        try:
            return OpenVinoSession(deployment, threads)
        except ImportError as error:
            raise LstmoptError("openvino", "not installed", "pip install openvino") from error


def _read(path: Path, libraries: Sequence[Path]) -> Any:
    """Returns the model of an ONNX file, simplified as OpenVINO's own conversion does it.

    That conversion, `openvino.convert_model`, is not called: it reports on the model to its makers.
    """
    core = imported().Core()
    from openvino._offline_transformations import apply_moc_transformations

    for library in libraries:
        core.add_extension(str(library))
    model = core.read_model(str(path))
    apply_moc_transformations(model, cf=False, smart_reshape=True)
    return model


def _name_ports(model: Any, graph: Any) -> None:
    """Gives each input and output its ONNX name alone: conversions merge names of equal tensors.

    Raises:
        ValueError: the conversion added or lost an input.
    """
    inputs = list(declared_shapes(graph))
    by_name = {name: port for port in model.inputs for name in port.get_names()}
    if len(model.inputs) != len(inputs) or not set(inputs) <= set(by_name):
        raise ValueError(f"it would have the inputs {', '.join(sorted(by_name))}")
    for name in inputs:
        by_name[name].get_tensor().set_names({name})
    for value, port in zip(graph.output, model.outputs, strict=True):
        port.get_tensor().set_names({value.name})


def telling_line(error: BaseException) -> str:
    """Returns the first line of an OpenVINO error that says what is wrong rather than where it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith((*_PREFACES, "--", "While validating"))]
    return first_line(RuntimeError(telling[0])) if telling else first_line(error)


def _version() -> str:
    try:
        return version("openvino")
    except PackageNotFoundError:  # a build of one's own on the path
        return str(imported().__version__)


@cache
def _capabilities() -> tuple[str, ...]:
    return tuple(imported().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
