"""ONNX Runtime on the CPU: f32, and its dynamic int8."""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
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

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
"""Distributions of the one module."""

FLOAT = 1
"""ONNX's number of f32: the type of tensors whose type shape inference does not find."""

QUANTIZED_OPERATORS = ("LSTM", "MatMul", "Gemm")
"""What ONNX Runtime's dynamic quantisation covers here; embeddings stay as they are."""

_TYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int16)": np.int16, "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64, "tensor(bool)": np.bool_,
}  # fmt: skip


class OnnxRuntimeSession:
    """A session with the settings of a deployment."""

    def __init__(
        self, deployment: Deployment, threads: int, providers: Sequence[Any] = ("CPUExecutionProvider",)
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # errors are raised, and told once
        for key, value in deployment.settings.items():
            options.add_session_config_entry(key, value)
        try:
            for library in deployment.libraries:
                options.register_custom_ops_library(str(library))
            self._session = ort.InferenceSession(str(deployment.file), options, providers=list(providers))
        except Exception as error:  # noqa: BLE001 - its classes have no common base
            raise LstmoptError(
                str(deployment.file), f"ONNX Runtime cannot load it ({first_line(error)})", "check the file"
            ) from error
        self.inputs = tuple(_info(item) for item in self._session.get_inputs())
        self.outputs = tuple(_info(item) for item in self._session.get_outputs())
        self._names = [info.name for info in self.outputs]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Returns all outputs by name."""
        check_feeds(self.inputs, feeds)
        try:
            results = self._session.run(self._names, dict(feeds))
        except Exception as error:  # noqa: BLE001 - as above
            raise LstmoptError(
                "inference",
                f"ONNX Runtime failed ({first_line(error)})",
                "check the inputs' shapes and values",
            ) from error
        return {name: np.asarray(result) for name, result in zip(self._names, results, strict=True)}

    def bind(self, feeds: Feeds) -> Callable[[], Any]:
        """Returns one inference with bound inputs and outputs."""
        check_feeds(self.inputs, feeds)
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.require(array, requirements="C"))
        for name in self._names:
            binding.bind_output(name)
        run = self._session.run_with_iobinding

        def call() -> None:
            run(binding)

        def call_anew() -> None:
            binding.clear_binding_outputs()
            for name in self._names:
                binding.bind_output(name)
            run(binding)

        # The second call finds the first one's outputs, whose ranks ONNX Runtime then holds against those
        # that the graph declares. Some graphs declare wrong ones, and run well everywhere else.
        try:
            call()
            call()
        except Exception:  # noqa: BLE001 - as above; what fails for another reason fails again
            return call_anew
        return call


def _info(item: Any) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else None for size in item.shape)
    return TensorInfo(item.name, np.dtype(_TYPES.get(item.type, np.object_)), shape)


class OnnxRuntime:
    """The runtime."""

    name = "onnxruntime"

    def status(self) -> RuntimeStatus:
        """Says whether one of its packages is installed."""
        for package in PACKAGES:
            try:
                return RuntimeStatus(self.name, True, version(package), self.precisions())
            except PackageNotFoundError:
                continue
        return RuntimeStatus(self.name, False, "", (), "not installed: pip install onnxruntime")

    def precisions(self) -> tuple[str, ...]:
        """Returns f32 and int8, which every CPU runs, and the sparse ops' where they were built."""
        return ("f32", "int8", *(SPARSE_PRECISIONS if available(self.name) else ()))

    def build(
        self, model_file: Path, precision: str, folder: Path, calls: Sequence[Feeds] = ()
    ) -> Deployment:
        """Copies the model (f32, sparse ops) or quantises its weights to int8.

        Raises:
            LstmoptError: the model cannot be quantised, or the precision is another.
        """
        graph = read_graph(model_file)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "model.onnx"
        libraries: tuple[Path, ...] = ()
        if is_sparse(precision):
            libraries = (copy_library(self.name, folder),)
        if precision == "f32" or libraries:
            _copy(model_file, graph, file)
        elif precision == "int8":
            _quantize(model_file, file)
        else:
            raise LstmoptError(
                f"precision {precision}", "ONNX Runtime on CPUs does not run it", "use f32 or int8"
            )
        return Deployment(
            runtime=self.name,
            file=file,
            precision=precision,
            settings={"session.intra_op.allow_spinning": "0"},
            libraries=libraries,
            input_shapes=declared_shapes(graph),
        )

    def open(self, deployment: Deployment, threads: int) -> OnnxRuntimeSession:
        """Loads a deployment."""
        try:
            return OnnxRuntimeSession(deployment, threads)
        except ImportError as error:
            raise LstmoptError("onnxruntime", "not installed", "pip install onnxruntime") from error


def _copy(model_file: Path, graph: Any, file: Path) -> None:
    """Copies a model into one file, its external data included."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    if any(uses_external_data(tensor) for tensor in graph.initializer):
        onnx.save(onnx.load(model_file), file)
    else:
        shutil.copyfile(model_file, file)


def _quantize(model_file: Path, file: Path) -> None:
    """Quantises the weights dynamically, a scale a channel, as ONNX Runtime's documentation says.

    Weights behind constant expressions and in branches need ONNX Runtime's preprocessing first. It is
    tried second: it renames and fuses, which most models do not need.
    """
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        prepared, beside = Path(folder) / "prepared.onnx", Path(folder) / file.name
        try:
            _quantize_once(model_file, beside, subgraphs=False)
            if not is_int8(beside):
                from onnxruntime.quantization import quant_pre_process

                quant_pre_process(model_file, prepared, skip_symbolic_shape=True)
                _quantize_once(prepared, beside, subgraphs=True)
        except Exception as error:  # noqa: BLE001 - it raises anything
            raise LstmoptError(
                str(model_file), f"ONNX Runtime cannot quantise it ({first_line(error)})", "use f32"
            ) from error
        if not is_int8(beside):
            raise LstmoptError(
                str(model_file),
                f"ONNX Runtime finds no constant weights of {', '.join(QUANTIZED_OPERATORS)} to quantise",
                "use f32",
            )
        beside.replace(file)


def _quantize_once(model_file: Path, file: Path, subgraphs: bool) -> None:
    """Calls the quantizer.

    Without VNNI, x86 adds pairs of u8 x s8 products in 16 bits, which saturate: there the weights keep
    7 bits (on a Zen 3 that halves the error of `models/char_lm`'s logits, 0.13 to 0.06 of their deviation).
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    root.addFilter(_is_error)  # it advises its preprocessing on the root logger
    try:
        quantize_dynamic(
            model_file,
            file,
            op_types_to_quantize=list(QUANTIZED_OPERATORS),
            per_channel=True,
            reduce_range=saturates(),
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": FLOAT, "EnableSubgraph": subgraphs},
        )
    finally:
        root.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def is_int8(model_file: Path) -> bool:
    """Whether a file has quantised operators, in its graph or in a branch."""
    import onnx_ir as ir

    nodes = ir.from_proto(read_graph(model_file)).all_nodes()
    return any(node.op_type in ("DynamicQuantizeLSTM", "MatMulInteger") for node in nodes)


def saturates() -> bool:
    """Returns whether this CPU multiplies int8 by pairs into 16 bits: x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return True  # not known: the safe choice
    return not {"avx512_vnni", "avx_vnni"} & set(flags)
