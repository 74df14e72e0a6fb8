"""The NVIDIA GPU of this machine, as far as runtimes need it: is there one, and how calls on it are timed.

The driver is asked without torch, which takes seconds to import; buffers, graphs and events are torch's.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError

NO_GPU = "no NVIDIA GPU or driver here"
NO_TORCH = "torch is a build without CUDA: install torch from PyTorch's CUDA index"


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: such as "NVIDIA H100 80GB HBM3".
        capability: compute capability, such as (9, 0).
        driver: the CUDA version that the driver supports, such as "13.0".
    """

    name: str
    capability: tuple[int, int]
    driver: str


@cache
def gpu() -> Gpu | None:
    """Returns the first GPU that this process sees, or None."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, number, text = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    driver.cuDeviceGetName(text, len(text), device)
    driver.cuDriverGetVersion(ctypes.byref(number))
    major, minor = ctypes.c_int(), ctypes.c_int()
    # 75 and 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return Gpu(
        name=text.value.decode("utf-8", "replace"),
        capability=(major.value, minor.value),
        driver=f"{number.value // 1000}.{number.value % 1000 // 10}",
    )


@cache
def fault() -> str:
    """Returns why nothing can run on a GPU here, in a few words; empty where something can."""
    if gpu() is None:
        return NO_GPU
    if find_spec("torch") is None:
        return "torch is not installed, whose buffers are used: install it from PyTorch's CUDA index"
    import torch

    return "" if torch.cuda.is_available() else NO_TORCH


def require(where: str) -> Any:
    """Returns torch, where it has a GPU.

    Args:
        where: what errors are about.

    Raises:
        LstmoptError: it has none.
    """
    if told := fault():
        raise LstmoptError(where, told, "run it where there is a GPU; see lstmopt doctor")
    import torch

    return torch


def captured(torch: Any, call: Callable[[], None]) -> Callable[[], None] | None:
    """Returns what replays a CUDA graph of a call on buffers, or None where it cannot be captured.

    Args:
        torch: with a GPU.
        call: launches its work on torch's current stream; it must not wait for it.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is set up at the first calls must not be captured
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            call()
    except (RuntimeError, LstmoptError):
        torch.cuda.synchronize()
        return None

    def replay(_: Any = call) -> None:  # the graph holds addresses alone: the call keeps what is there
        graph.replay()

    return replay


def waiting(torch: Any, launch: Callable[[], None]) -> Callable[[], None]:
    """Returns a call that launches and waits for it: what an inference is to who needs its result.

    Args:
        torch: with a GPU.
        launch: launches its work on torch's current stream.
    """
    wait = torch.cuda.current_stream().synchronize

    def call() -> None:
        launch()
        wait()

    return call


def event_times(torch: Any, call: Callable[[], None], iterations: int, warm_up: int = 20) -> npt.NDArray[Any]:
    """Returns how long the GPU works on a call, microseconds, one a call.

    Args:
        torch: with a GPU.
        call: launches its work on torch's current stream; copies are not part of it.
        iterations: timed calls, 100 at least for a median and a p99.
        warm_up: calls before them.
    """
    for _ in range(warm_up):
        call()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(iterations)]
    torch.cuda.synchronize()
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return np.array([1e3 * start.elapsed_time(end) for start, end in pairs])
