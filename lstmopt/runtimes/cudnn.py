"""torch's cuDNN LSTM: a bare layer on an NVIDIA GPU, replayed as a CUDA graph.

It is what a GPU does best with a dense LSTM, so it is there to be measured against and to be probed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import INITIAL_C, INITIAL_H, SEQUENCE_LENS, RnnLayer, find_rnns
from lstmopt.rnn.weights import RnnWeights
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


class CuDnn:
    """The runtime."""

    name = "cudnn"

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
        """Copies a model of one bare layer.

        Raises:
            LstmoptError: a precision other than f32 and f16, or a model that is more or other than that.
        """
        if precision not in PRECISIONS:
            raise LstmoptError(f"precision {precision}", "cuDNN does not run it", "use f32 or f16")
        model = load_model(model_file)
        bare_layer(model, str(model_file))
        file = folder / "model.onnx"
        save_model(model, file)
        shapes = declared_shapes(read_graph(file))
        return Deployment(runtime=self.name, file=file, precision=precision, input_shapes=shapes)

    def open(self, deployment: Deployment, threads: int) -> CuDnnSession:
        """Loads a deployment; threads mean nothing on a GPU."""
        cuda.require(self.name)
        return CuDnnSession(deployment, "cuda")


def bare_layer(model: ir.Model, where: str) -> RnnLayer:
    """Returns the layer that a model is nothing but.

    Args:
        model: the graph.
        where: what errors call it.

    Raises:
        LstmoptError: it is not one LSTM as cuDNN computes it, from the graph's inputs to its outputs.
    """
    layers = [layer for layer in find_rnns(model) if layer.weights is not None]
    weights = layers[0].weights if layers else None
    named = {id(value) for value in model.graph.inputs}
    if weights is None or len(layers) != 1 or len(list(model.graph.all_nodes())) != 1:
        fault = "is not one bare LSTM"
    elif weights.cell is not LSTM or weights.direction == "reverse" or not weights.has_default_activations:
        fault = "is not an LSTM forward or in both directions with the usual activations"
    elif weights.p is not None or weights.clip is not None or weights.input_forget:
        fault = "has peepholes, a clip or coupled gates, which cuDNN has not"
    elif layers[0].input(SEQUENCE_LENS) is not None or id(layers[0].node.inputs[0]) not in named:
        fault = "has sequence lengths, or reads something that is no input"
    else:
        return layers[0]
    raise LstmoptError(where, fault, "use it for single layers, such as those of lstmopt probe")


def torch_lstm(weights: RnnWeights, precision: str, device: str) -> Any:
    """Returns torch's module of a layer.

    Args:
        weights: of a plain LSTM.
        precision: "f32" or "f16".
        device: "cuda", or "cpu" for its numerics.
    """
    import torch

    module = torch.nn.LSTM(weights.input_size, weights.hidden_size, bidirectional=weights.num_directions == 2)
    order = list(weights.cell.to_torch)
    kinds = {"weight_ih": weights.w, "weight_hh": weights.r}
    if weights.b is not None:
        kinds |= {"bias_ih": weights.b[:, 0], "bias_hh": weights.b[:, 1]}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        for kind, array in kinds.items():
            for direction, suffix in zip(range(weights.num_directions), ("", "_reverse"), strict=False):
                parts = np.concatenate(array[direction][order])
                getattr(module, f"{kind}_l0{suffix}").copy_(torch.from_numpy(np.ascontiguousarray(parts)))
    dtype = torch.float16 if precision == "f16" else torch.float32
    return module.to(device=device, dtype=dtype).eval().requires_grad_(False)


class CuDnnSession:
    """A layer on a device; inputs and outputs are f32 in either precision.

    Args:
        deployment: of `CuDnn.build`.
        device: "cuda", or "cpu", where torch's own kernels compute: for numerics, not for speed.

    Raises:
        LstmoptError: the file is not a bare layer, or torch is not installed.
    """

    def __init__(self, deployment: Deployment, device: str) -> None:
        if find_spec("torch") is None:
            raise LstmoptError("cudnn", "torch is not installed", "pip install torch")
        import torch

        self._torch, self._device = torch, device
        model = load_model(deployment.file)
        layer = bare_layer(model, str(deployment.file))
        assert layer.weights is not None
        self._module = torch_lstm(layer.weights, deployment.precision, device)
        self._dtype = next(self._module.parameters()).dtype
        self.inputs = tuple(_info(value) for value in model.graph.inputs)
        self.outputs = tuple(_info(value) for value in model.graph.outputs)
        given = [layer.input(position) for position in (INITIAL_H, INITIAL_C)]
        self._states = [None if value is None else str(value.name) for value in given]
        x = layer.node.inputs[0]
        assert x is not None
        self._x = str(x.name)
        self._results = [str(value.name) for value in layer.node.outputs]
        self._weights = layer.weights
        self.graphed = False

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Returns all outputs by name."""
        check_feeds(self.inputs, feeds)
        values = dict(zip(self._results, self._call(*self._buffers(feeds)), strict=False))
        return {info.name: values[info.name].float().cpu().numpy() for info in self.outputs}

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
        buffers = self._buffers(feeds)

        def call() -> None:
            self._forward(*buffers)

        replay = cuda.captured(self._torch, call) if graph and self._device == "cuda" else None
        self.graphed = replay is not None
        return replay or call

    def _forward(self, x: Any, states: tuple[Any, Any]) -> Any:
        # torch lets cuDNN round f32 to TF32 unless told otherwise: f32 is f32 in every runtime here.
        with self._torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self._module(x, states)

    def _buffers(self, feeds: Feeds) -> tuple[Any, tuple[Any, Any]]:
        """Returns the input and the states on the device, in the layer's type."""

        def placed(array: Array) -> Any:
            return self._torch.from_numpy(np.array(array)).to(self._device, self._dtype)

        x = feeds[self._x]
        zero = np.zeros((self._weights.num_directions, x.shape[1], self._weights.hidden_size), np.float32)
        h, c = (placed(zero if name is None else feeds[name]) for name in self._states)
        return placed(x), (h, c)

    def _call(self, x: Any, states: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        """Returns y ``[sequence, directions, batch, hidden]`` and the states, as ONNX lays them out."""
        y, (h, c) = self._forward(x, states)
        steps, batch = x.shape[:2]
        y = y.reshape(steps, batch, self._weights.num_directions, self._weights.hidden_size)
        return y.transpose(1, 2).contiguous(), h, c


def _info(value: ir.Value) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape or ())
    return TensorInfo(str(value.name), np.dtype(np.float32), shape)
