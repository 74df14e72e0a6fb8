"""TensorRT's Python module, that of TensorRT-RTX in its place, and how engines are built with either."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from lstmopt.errors import LstmoptError
from lstmopt.runtimes import cuda
from lstmopt.runtimes.base import Feeds

MODULES = {"tensorrt": "model.plan", "tensorrt_rtx": "model.rtx.plan"}
"""Python modules of the one API, the first that is whole is used, and the file of each one's engines."""

INSTALL = "pip install 'lstmopt[tensorrt]', or 'lstmopt[tensorrt-rtx]' for GeForce and RTX cards"

MOST_WORKSPACE = 1 << 30
Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Least, usual and largest sizes of an input."""


@cache
def trt_module() -> ModuleType | None:
    """Returns TensorRT's Python module, else that of TensorRT-RTX, or None.

    The registry's `tensorrt` installs without its libraries where NVIDIA's own index is out of reach.
    """
    for name in MODULES:
        if find_spec(name) is None:
            continue
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):
            continue
        if hasattr(module, "Builder"):
            return module
    return None


def builds_here() -> bool:
    """Whether engines can be built here: RTX does so without a GPU."""
    module = trt_module()
    return module is not None and (module.__name__ == "tensorrt_rtx" or cuda.gpu() is not None)


class Log:
    """Keeps TensorRT's errors instead of printing them."""

    def __init__(self, trt: Any) -> None:
        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR:
                    self.errors.append(" ".join(message.split()))

        self.logger = Logger()

    @property
    def telling(self) -> str:
        """The first error, in one line."""
        errors: list[str] = self.logger.errors
        return errors[0][:300] if errors else "it does not say why"


@cache
def log() -> Log:
    """Returns the log of this process: TensorRT takes the first and ignores others."""
    trt = trt_module()
    assert trt is not None
    return Log(trt)


def build_engine(model_file: Path, ranges: Mapping[str, Range]) -> bytes:
    """Parses a model and returns its engine, serialised; products in f32 are not rounded to TF32.

    Args:
        model_file: what `prepare` made.
        ranges: of each input with dynamic axes.

    Raises:
        LstmoptError: TensorRT refuses the model; the line is its own.
    """
    trt = trt_module()
    if trt is None:
        raise LstmoptError("tensorrt", "not installed", INSTALL)
    told = log()
    told.logger.errors.clear()
    builder = trt.Builder(told.logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    # TensorRT 10 has to be told what is the only way in 11.
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, told.logger)
    if not parser.parse_from_file(str(model_file)):
        raise LstmoptError(
            str(model_file), f"TensorRT refuses it ({_refusal(parser)})", "use another runtime"
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, MOST_WORKSPACE)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _add_profile(trt, builder, network, config, ranges)
    stored = _timing_cache(trt)
    if stored is not None:
        known = stored.read_bytes() if stored.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise LstmoptError(
            str(model_file), f"TensorRT cannot build it ({told.telling})", "use another runtime"
        )
    if stored is not None:
        _write_cache(stored, bytes(config.get_timing_cache().serialize()))
    return bytes(data)


def _refusal(parser: Any) -> str:
    error = parser.get_error(0) if parser.num_errors else None
    if error is None:
        return "it does not say why"
    node = f"{error.node_name()}: " if hasattr(error, "node_name") and error.node_name() else ""
    return " ".join(f"{node}{error.desc()}".split())[:300]


def _add_profile(trt: Any, builder: Any, network: Any, config: Any, ranges: Mapping[str, Range]) -> None:
    profile, needed = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tuple(tensor.shape):
            continue
        if tensor.name not in ranges:
            raise LstmoptError(
                f"input {tensor.name}",
                "has dynamic axes, and no call tells TensorRT their sizes",
                "name a target with shapes, or fix the axes with --static",
            )
        profile.set_shape(tensor.name, *ranges[tensor.name])
        needed = True
    if needed:
        config.add_optimization_profile(profile)


def _timing_cache(trt: Any) -> Path | None:
    """Returns where tactics that were timed are kept: one file a version and GPU; None where none are."""
    card = cuda.gpu()
    if card is None or trt.__name__ != "tensorrt":
        return None  # RTX chooses on the user's machine
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{trt.__version__} {card.name}")
    return base / "lstmopt" / f"tensorrt-{name}.cache"


def _write_cache(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_bytes(data)
        beside.replace(path)
    except OSError:
        return  # it only saves time


def ranges_of(shapes: Mapping[str, tuple[int | str, ...]], calls: Sequence[Feeds]) -> dict[str, Range]:
    """Returns least, usual and largest sizes of each input with dynamic axes.

    Args:
        shapes: as the model declares them.
        calls: the most frequent one first.
    """
    found = {}
    for name, declared in shapes.items():
        sizes = [call[name].shape for call in calls if name in call]
        if sizes and any(not isinstance(size, int) for size in declared):
            least, most = (tuple(pick(axis) for axis in zip(*sizes, strict=True)) for pick in (min, max))
            found[name] = (least, tuple(sizes[0]), most)
    return found
