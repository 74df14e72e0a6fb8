"""TensorRT on an NVIDIA GPU, and TensorRT-RTX, which has the same API and another format of engines.

Where there is no GPU a model is written, and with RTX parsed and built ahead of time; nothing runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.rnn.files import load_model, save_model
from lstmopt.runtimes import cuda
from lstmopt.runtimes.base import (
    AHEAD,
    Array,
    Deployment,
    Feeds,
    RuntimeStatus,
    TensorInfo,
    check_feeds,
    declared_shapes,
    read_graph,
)
from lstmopt.runtimes.tensorrt_engine import (
    INSTALL,
    MODULES,
    Range,
    build_engine,
    builds_here,
    log,
    ranges_of,
    trt_module,
)

PRECISIONS = ("f32", "f16")

SWITCH = "switch."
"""How the settings begin that name the value that an input has to have."""


class TensorRt:
    """The runtime."""

    name = "tensorrt"

    def status(self) -> RuntimeStatus:
        """Says whether it can be used here; models can always be written for it."""
        trt, told = trt_module(), cuda.fault()
        if trt is None:
            return RuntimeStatus(self.name, False, "", (), f"not installed: {INSTALL}; {AHEAD}", PRECISIONS)
        kind = "TensorRT-RTX" if trt.__name__ == "tensorrt_rtx" else "TensorRT"
        version = f"{trt.__version__} ({kind})"
        if told:
            also = "parses and builds ahead of time only" if builds_here() else AHEAD
            return RuntimeStatus(self.name, False, version, (), f"{told}: {also}", PRECISIONS)
        return RuntimeStatus(self.name, True, version, self.precisions(), "", PRECISIONS)

    def precisions(self) -> tuple[str, ...]:
        """Returns f32 and f16; nothing where there is no GPU to run them on."""
        return () if trt_module() is None or cuda.fault() else PRECISIONS

    def build(
        self, model_file: Path, precision: str, folder: Path, calls: Sequence[Feeds] = ()
    ) -> Deployment:
        """Writes ``model.onnx``, ``build.sh``, and the engine where a builder is installed.

        An engine belongs to one version and GPU: where it does not load, it is built anew from the model.

        Raises:
            LstmoptError: a precision other than f32 and f16, or TensorRT has not what the model needs.
        """
        if precision not in PRECISIONS:
            raise LstmoptError(f"precision {precision}", "TensorRT does not run it", "use f32 or f16")
        from lstmopt.runtimes.tensorrt_model import prepare

        read_graph(model_file)
        made = prepare(load_model(model_file), precision, calls, str(model_file))
        file = folder / "model.onnx"
        save_model(made.model, file)
        shapes = declared_shapes(read_graph(file))
        ranges = ranges_of(shapes, calls)
        settings = {
            name: f"{':'.join('x'.join(map(str, sizes)) for sizes in bounds)}"
            for name, bounds in ranges.items()
        }
        settings |= {f"{SWITCH}{name}": str(value) for name, value in made.switches.items()}
        script = folder / "build.sh"
        script.write_text(build_script(precision, ranges, made.switches), encoding="utf-8")
        script.chmod(0o755)
        if builds_here():
            trt = trt_module()
            assert trt is not None
            engine = build_engine(file, ranges)
            (folder / MODULES[trt.__name__]).write_bytes(engine)
        return Deployment(
            runtime=self.name, file=file, precision=precision, settings=settings, input_shapes=shapes
        )

    def open(self, deployment: Deployment, threads: int) -> TensorRtSession:
        """Loads a deployment; threads mean nothing on a GPU."""
        if trt_module() is None:
            raise LstmoptError("tensorrt", "not installed", INSTALL)
        return TensorRtSession(deployment)


def build_script(precision: str, ranges: Mapping[str, Range], switches: Mapping[str, int]) -> str:
    """Returns the script that builds the engine with TensorRT's own tools.

    Args:
        precision: of the model beside it, which is typed: tools take it from there.
        ranges: of each input with dynamic axes.
        switches: values that inputs have to have.
    """
    bounds = [
        f"--{kind}Shapes="
        + ",".join(f"{name}:{'x'.join(map(str, item[k]))}" for name, item in ranges.items())
        for k, kind in enumerate(("min", "opt", "max"))
        if ranges
    ]
    exact = ["--noTF32"] if precision == "f32" else []
    options = " ".join(["--onnx=model.onnx", *(f"'{bound}'" for bound in bounds), *exact])
    told = "".join(f"# The model is for {name} = {value} alone.\n" for name, value in switches.items())
    return f"""#!/bin/sh
# Builds the engine of model.onnx for the GPU of this machine: model.plan with TensorRT's trtexec, or
# model.rtx.plan with TensorRT-RTX's tensorrt_rtx. Precision {precision} is in the model itself.
{told}set -eu
cd "$(dirname "$0")"
if command -v trtexec >/dev/null; then
  typed=; if trtexec --help | grep -q -e --stronglyTyped; then typed=--stronglyTyped; fi
  trtexec {options} $typed --saveEngine=model.plan --timingCacheFile=timing.cache \\
    --useCudaGraph --noDataTransfers --warmUp=500 --duration=5
else
  tensorrt_rtx {options} --saveEngine=model.rtx.plan
fi
"""


@dataclass
class _Loaded:
    """An engine and the sizes that it takes."""

    engine: Any
    ranges: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def takes(self, feeds: Feeds) -> bool:
        return all(
            all(low <= size <= high for low, size, high in zip(least, feeds[name].shape, most, strict=True))
            for name, (least, most) in self.ranges.items()
        )


class TensorRtSession:
    """An engine on the GPU; for sizes outside of its profile another one is built when they come."""

    def __init__(self, deployment: Deployment) -> None:
        self._torch = cuda.require("tensorrt")
        trt = trt_module()
        assert trt is not None
        self._trt, self._file = trt, deployment.file
        self._runtime = trt.Runtime(log().logger)
        self._switches = {
            name.removeprefix(SWITCH): int(value)
            for name, value in deployment.settings.items()
            if name.startswith(SWITCH)
        }
        ranges = {
            name: _range(value) for name, value in deployment.settings.items() if not name.startswith(SWITCH)
        }
        plan = deployment.file.with_name(MODULES[trt.__name__])
        loaded = self._load(plan.read_bytes()) if plan.is_file() else None
        if loaded is None:
            loaded = self._built(ranges)
        self._engines = [loaded]
        self.graphed = False
        engine = loaded.engine
        infos: dict[Any, list[TensorInfo]] = {mode: [] for mode in (True, False)}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            shape = tuple(size if size >= 0 else None for size in engine.get_tensor_shape(name))
            info = TensorInfo(name, np.dtype(trt.nptype(engine.get_tensor_dtype(name))), shape)
            infos[engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append(info)
        order = list(deployment.input_shapes)
        self.inputs = tuple(
            sorted(infos[True], key=lambda info: order.index(info.name) if info.name in order else 0)
        )
        self.outputs = tuple(infos[False])

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Returns all outputs by name."""
        call, results = self._prepared(feeds)
        call()
        self._torch.cuda.synchronize()
        return {name: tensor.cpu().numpy() for name, tensor in results.items()}

    def bind(self, feeds: Feeds) -> Callable[[], Any]:
        """Returns one inference on buffers of the GPU, as a CUDA graph where it can be captured."""
        return cuda.waiting(self._torch, self.launcher(feeds, graph=True))

    def launcher(self, feeds: Feeds, *, graph: bool) -> Callable[[], None]:
        """Returns what launches one inference on torch's stream and does not wait: what CUDA events time.

        Args:
            feeds: copied to the GPU now.
            graph: whether to replay a CUDA graph; `graphed` says whether it could be captured.
        """
        call, _ = self._prepared(feeds)
        replay = cuda.captured(self._torch, call) if graph else None
        self.graphed = replay is not None
        return replay or call

    def _prepared(self, feeds: Feeds) -> tuple[Callable[[], None], dict[str, Any]]:
        """Returns a launch on buffers of its own, and the outputs' buffers."""
        check_feeds(self.inputs, feeds)
        for name, value in self._switches.items():
            if name in feeds and int(feeds[name].item()) != value:
                raise LstmoptError(
                    f"input {name}", f"the engine is for {value} alone", "export it for the other"
                )
        loaded = next((each for each in self._engines if each.takes(feeds)), None)
        if loaded is None:
            loaded = self._built({name: (array.shape,) * 3 for name, array in feeds.items()})
            self._engines.append(loaded)
        torch, context = self._torch, loaded.engine.create_execution_context()
        kept: dict[str, Any] = {}
        for info in self.inputs:
            kept[info.name] = torch.from_numpy(np.array(feeds[info.name], order="C")).cuda()
            context.set_input_shape(info.name, feeds[info.name].shape)
        results = {}
        for info in self.outputs:
            shape = tuple(context.get_tensor_shape(info.name))
            if min(shape, default=0) < 0:
                raise LstmoptError(
                    f"output {info.name}", "has a size that depends on values", "use --runtime onnxruntime"
                )
            results[info.name] = torch.from_numpy(np.zeros(shape, info.dtype)).cuda()
        for name, tensor in {**kept, **results}.items():
            context.set_tensor_address(name, tensor.data_ptr())

        def call(_: Any = (loaded, kept, results)) -> None:
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise LstmoptError("inference", f"TensorRT failed ({log().telling})", "report the model")

        return call, results

    def _built(self, ranges: Mapping[str, Range]) -> _Loaded:
        loaded = self._load(build_engine(self._file, ranges))
        if loaded is None:
            card = cuda.gpu()
            raise LstmoptError(
                str(self._file),
                f"TensorRT cannot load it ({log().telling})",
                f"check that this version runs on {'this GPU' if card is None else card.name}",
            )
        return loaded

    def _load(self, data: bytes) -> _Loaded | None:
        """Returns an engine, or None where it is of another version, GPU or format."""
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            return None
        loaded = _Loaded(engine)
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            inward = engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            if inward and -1 in tuple(engine.get_tensor_shape(name)):
                least, _, most = engine.get_tensor_profile_shape(name, 0)
                loaded.ranges[name] = tuple(least), tuple(most)
        return loaded


def _range(text: str) -> Range:
    least, usual, most = (tuple(int(size) for size in part.split("x")) for part in text.split(":"))
    return least, usual, most
