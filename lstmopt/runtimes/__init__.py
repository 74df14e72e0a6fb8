"""The runtimes that models are deployed in, one file each."""

from __future__ import annotations

from lstmopt.errors import LstmoptError
from lstmopt.runtimes.base import Deployment, Runtime, RuntimeStatus, Session, TensorInfo
from lstmopt.runtimes.onnxruntime import OnnxRuntime
from lstmopt.runtimes.openvino import OpenVino

__all__ = [
    "RUNTIMES",
    "Deployment",
    "Runtime",
    "RuntimeStatus",
    "Session",
    "TensorInfo",
    "open_session",
    "runtime",
]

RUNTIMES: tuple[Runtime, ...] = (OpenVino(), OnnxRuntime())


def runtime(name: str) -> Runtime:
    """Returns a runtime by name.

    Raises:
        LstmoptError: there is none of that name.
    """
    for item in RUNTIMES:
        if item.name == name:
            return item
    raise LstmoptError(
        f"runtime {name}", "unknown", f"use one of {', '.join(item.name for item in RUNTIMES)}"
    )


def open_session(deployment: Deployment, threads: int) -> Session:
    """Loads a deployment in its runtime.

    Args:
        deployment: the file, and how it is loaded.
        threads: that one inference may use.

    Raises:
        LstmoptError: the runtime is unknown or not installed, or cannot load the file.
    """
    return runtime(deployment.runtime).open(deployment, threads)
