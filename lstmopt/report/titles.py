"""Names as people write them."""

from __future__ import annotations

_NAMES = {
    "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "cudnn": "cuDNN",
    "torch-cuda": "torch on the GPU", "torch-cpu": "torch on the CPU",
    "onnxruntime-cuda": "ONNX Runtime, CUDA", "onnxruntime-rtx": "ONNX Runtime, TensorRT-RTX",
}  # fmt: skip


def runtime_title(runtime: str) -> str:
    """Returns a runtime's name as its makers write it."""
    return _NAMES.get(runtime, runtime)


def deployment_title(runtime: str, precision: str) -> str:
    """Returns runtime and precision as people write them."""
    return f"{runtime_title(runtime)} {precision}"
