"""The runtimes that models are deployed in, one file each.

What prepares a model for one imports `onnx_ir` where it is called: workers that time calls are many, and each
would take half a second longer to start.
"""

from __future__ import annotations

from lstmopt.errors import LstmoptError
from lstmopt.runtimes.base import Deployment, Runtime, RuntimeStatus, Session, TensorInfo
from lstmopt.runtimes.cudnn import CUDNN, ON_CPU, TORCH
from lstmopt.runtimes.onnxruntime import OnnxRuntime
from lstmopt.runtimes.onnxruntime_gpu import ON_CUDA, ON_RTX
from lstmopt.runtimes.openvino import OpenVino
from lstmopt.runtimes.tensorrt import TensorRt

__all__ = [
    "GPU_RUNTIMES",
    "OURS",
    "RUNTIMES",
    "Deployment",
    "Runtime",
    "RuntimeStatus",
    "Session",
    "TensorInfo",
    "open_session",
    "runtime",
    "stand_in",
]

RUNTIMES: tuple[Runtime, ...] = (OpenVino(), OnnxRuntime())
"""Those of every machine."""

GPU_RUNTIMES: tuple[Runtime, ...] = (TensorRt(), TORCH, CUDNN, ON_CUDA, ON_RTX)
"""Those that run on an NVIDIA GPU alone; models can be written for them elsewhere."""

OURS = ("cudnn",)
"""Runtimes in which models run as they do nowhere else: the original in them is no peer."""


def runtime(name: str) -> Runtime:
    """Returns a runtime by name.

    Raises:
        LstmoptError: there is none of that name.
    """
    known = (*RUNTIMES, *GPU_RUNTIMES)
    for item in (*known, ON_CPU):
        if item.name == name:
            return item
    raise LstmoptError(f"runtime {name}", "unknown", f"use one of {', '.join(item.name for item in known)}")


def open_session(deployment: Deployment, threads: int) -> Session:
    """Loads a deployment in its runtime.

    Args:
        deployment: the file, and how it is loaded.
        threads: threads of one inference.

    Raises:
        LstmoptError: an unknown runtime, one that is not installed, or a file that it cannot load.
    """
    return runtime(deployment.runtime).open(deployment, threads)


def stand_in(deployment: Deployment) -> Deployment:
    """Returns a deployment itself, or what runs in its place where its runtime does not run here.

    That is torch on the CPU for what torch runs on a GPU: the same graph, each operator in the same
    precision. For other runtimes that load ONNX it is ONNX Runtime on the same file: the same tensors, those
    in f16 as well, though each operator computes in f32. It tells accuracy and nothing of speed.

    Args:
        deployment: of any runtime.
    """
    if runtime(deployment.runtime).status().usable or deployment.file.suffix != ".onnx":
        return deployment
    if deployment.runtime in (CUDNN.name, TORCH.name) and ON_CPU.status().usable:
        return deployment.model_copy(update={"runtime": ON_CPU.name})
    settings = {"session.intra_op.allow_spinning": "0"}
    return deployment.model_copy(update={"runtime": "onnxruntime", "settings": settings})
