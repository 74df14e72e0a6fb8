"""A model in torch on a GPU: buffers that stay there, and a CUDA graph of each shape of call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.rnn.examples import real_inputs
from lstmopt.rnn.files import load_model
from lstmopt.runtimes import cuda
from lstmopt.runtimes.base import Array, Deployment, Feeds, check_feeds, tensor_info

TRIES = 50
"""Calls of each form by which the fastest is chosen."""

AGREEMENT = {"f32": 4e-5, "f16": 1e-2}
"""Largest difference between two forms, over the output's largest value: a kernel that is further off than
rounding explains is not taken for its speed. How accurate a form is, the contract tells."""

KEPT = 16
"""Shapes of calls whose buffers and graphs are kept: beyond, the one that was not used for longest goes."""


@dataclass(frozen=True, eq=False)
class Call:
    """What runs calls of one shape.

    Attributes:
        form: of the layers.
        inputs: buffers on the device.
        outputs: what the last launch has left.
        launch: launches one inference and does not wait.
        graphed: whether that replays a CUDA graph.
        final: whether a graph was tried.
        kept: buffers of the layers, whose addresses a graph holds.
    """

    form: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    launch: Callable[[], None]
    graphed: bool
    final: bool
    kept: Sequence[Any]


class CuDnnSession:
    """A model on a device; inputs and outputs are f32 in either precision.

    The first call of a shape runs step by step, later ones as a CUDA graph, one at a time.

    Args:
        deployment: of `CuDnn.build`; its setting ``form`` says in which form layers run. Without it that
            is measured at the first call.
        device: "cuda", or "cpu", where torch's own kernels compute: for numerics, not for speed.
        forms: those in which layers may run.

    Attributes:
        form: in which the last call ran.
        graphed: whether the last call, or what `launcher` returned last, replays a CUDA graph.

    Raises:
        LstmoptError: torch has not what the file needs.
    """

    def __init__(self, deployment: Deployment, device: str, forms: Sequence[str]) -> None:
        self._torch, self._device, self._file = torch_for(deployment.runtime), device, str(deployment.file)
        from lstmopt.bridge.deployed import DeployedModule

        model = load_model(deployment.file)
        wanted = deployment.settings.get("form")
        # The first is what there always is.
        made = [form for form in forms if form == forms[0] or wanted is None or form == wanted]
        self.module = DeployedModule(model, deployment.precision, device, made)
        self._agreement = AGREEMENT[deployment.precision]
        self.inputs = tuple(map(tensor_info, real_inputs(model)))
        self.outputs = tuple(map(tensor_info, model.graph.outputs))
        self._chosen = wanted if wanted in self.module.forms else None
        self._calls: dict[tuple[tuple[int, ...], ...], Call] = {}
        self._lock = Lock()
        self.form, self.graphed = self.module.form, False

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Returns all outputs by name."""
        check_feeds(self.inputs, feeds)
        with self._lock:
            call = self._called(feeds)
            self.form, self.graphed = call.form, call.graphed
            return {
                info.name: call.outputs[info.name].cpu().numpy().astype(info.dtype) for info in self.outputs
            }

    def bind(self, feeds: Feeds) -> Callable[[], Any]:
        """Returns one inference on buffers of the device, as a CUDA graph where it can be captured."""
        launch = self.launcher(feeds, graph=True)
        return cuda.waiting(self._torch, launch) if self._device == "cuda" else launch

    def launcher(self, feeds: Feeds, *, graph: bool) -> Callable[[], None]:
        """Returns what launches one inference and does not wait: what CUDA events time.

        Args:
            feeds: copied to the device now.
            graph: whether to replay a CUDA graph; `graphed` says whether it could be captured.
        """
        check_feeds(self.inputs, feeds)
        with self._lock:
            tried = self._tried(self.placed(feeds))
            call = self._made(tried.inputs, tried.form, graph)
        self.form, self.graphed = call.form, call.graphed

        def launch() -> None:  # and keeps the call's buffers
            call.launch()

        return launch

    def launch(self, tensors: dict[str, Any], form: str) -> Callable[[], None]:
        """Returns what launches one inference on tensors of the device in a form."""
        return self._made(tensors, form, graph=False).launch

    def placed(self, feeds: Feeds) -> dict[str, Any]:
        """Returns inputs on the device, real ones in the type in which it computes."""
        tensors, real = self._tensors(feeds), self.module.dtype
        return {
            name: tensor.to(self._device, real if tensor.is_floating_point() else None, copy=True)
            for name, tensor in tensors.items()
        }

    def _tensors(self, feeds: Feeds) -> dict[str, Any]:
        return {name: self._torch.from_numpy(np.array(array)) for name, array in feeds.items()}

    def _called(self, feeds: Feeds) -> Call:
        """Returns what has run such inputs, its outputs there."""
        shapes = tuple(np.shape(feeds[info.name]) for info in self.inputs)
        call = self._calls.pop(shapes, None)
        if call is None:
            call = self._tried(self.placed(feeds))
        else:
            if not call.final and self._device == "cuda":
                call = self._made(call.inputs, call.form, graph=True)
            for name, tensor in self._tensors(feeds).items():
                call.inputs[name].copy_(tensor)
            call.launch()
        self._calls[shapes] = call
        while len(self._calls) > KEPT:
            del self._calls[next(iter(self._calls))]
        return call

    def _made(self, inputs: dict[str, Any], form: str, graph: bool) -> Call:
        outputs: dict[str, Any] = {}

        def launch() -> None:
            self.module.form = form
            outputs.update(self._call(inputs))

        replay = cuda.captured(self._torch, launch) if graph and self._device == "cuda" else None
        kept = self.module.buffers() if replay else ()
        return Call(form, inputs, outputs, replay or launch, replay is not None, graph, kept)

    def _tried(self, inputs: dict[str, Any]) -> Call:
        """Returns a call, launched, in the chosen form, or in the first where that has no kernels for it."""
        if self._chosen is None:
            self._chosen = self._fastest(inputs)
        call = self._made(inputs, self._chosen, graph=False)
        try:
            call.launch()
        except LstmoptError:
            if self._chosen == self.module.forms[0]:
                raise
            call = self._made(inputs, self.module.forms[0], graph=False)
            call.launch()
        return call

    def _fastest(self, inputs: dict[str, Any]) -> str:
        """Returns the form that is fastest for some inputs among those that agree with the first."""
        if self._device != "cuda" or len(self.module.forms) == 1:
            return self.module.forms[0]
        taken: dict[str, float] = {}
        expected: dict[str, Any] = {}
        for form in self.module.forms:
            call = self._made(inputs, form, graph=False)
            try:
                call.launch()
            except LstmoptError:
                if not taken:
                    raise
                continue  # a kernel that is not there for these sizes
            found = dict(call.outputs)
            if not taken or all(self._agree(expected[name], found[name]) for name in expected):
                expected = expected or found
                launch = self._made(inputs, form, graph=True).launch
                taken[form] = float(np.median(cuda.event_times(self._torch, launch, TRIES)))
        return min(taken, key=lambda form: taken[form])

    def _agree(self, expected: Any, found: Any) -> bool:
        if not expected.is_floating_point():
            return bool((expected == found).all())
        a, b = expected.double(), found.double()
        known = a.isfinite()
        if not self._torch.equal(a[~known].nan_to_num(), b[~known].nan_to_num()):
            return False
        a, b = a[known], b[known]
        return not a.numel() or bool(((a - b).abs() <= self._agreement * a.abs().max()).all())

    def _call(self, tensors: dict[str, Any]) -> dict[str, Any]:
        try:
            with self._torch.inference_mode():
                return self.module(tensors)
        except LstmoptError as error:
            raise LstmoptError(
                self._file, f"torch cannot run it on {self._device} ({error.fault})", "use another runtime"
            ) from error


def torch_for(name: str) -> Any:
    """Returns torch.

    Args:
        name: of the runtime that needs it.

    Raises:
        LstmoptError: it is not installed.
    """
    if find_spec("torch") is None:
        raise LstmoptError(name, "torch is not installed", "pip install torch")
    import torch

    return torch
