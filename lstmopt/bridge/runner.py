"""A module made to look like a runtime's session, and the states that calls carry."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from lstmopt.bridge.module import OnnxModule
from lstmopt.rnn.examples import real_inputs
from lstmopt.runtimes.base import TensorInfo, tensor_info
from lstmopt.tasks.variance import Variance

if TYPE_CHECKING:
    from lstmopt.tasks.base import Batch
    from lstmopt.tasks.interface import Interface, Port

Array = npt.NDArray[Any]


def tensor_infos(model: ir.Model) -> tuple[TensorInfo, ...]:
    """Returns the inputs of a model as a runtime's session describes them."""
    return tuple(tensor_info(value) for value in real_inputs(model) if value.dtype is not None)


class ModuleRunner:
    """Runs a module on arrays, without gradients or dropout.

    Args:
        model: the graph that the module was made of.
        module: the module.
    """

    def __init__(self, model: ir.Model, module: OnnxModule) -> None:
        self.inputs = tensor_infos(model)
        self._module = module

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns all outputs by name."""
        training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad():
                outputs = self._module(
                    {name: self._module.placed(np.array(array)) for name, array in feeds.items()}
                )
        finally:
            self._module.train(training)
        return {
            name: (value.float() if value.is_floating_point() else value).cpu().numpy()
            for name, value in outputs.items()
        }


class Stream:
    """Calls a module on batches in a row and carries its states.

    Args:
        model: the graph that the module was made of.
        module: the module.
        interface: which inputs and outputs are states.
    """

    def __init__(self, model: ir.Model, module: OnnxModule, interface: Interface) -> None:
        self._infos = tensor_infos(model)
        self._interface = interface
        self.module = module
        self.states: dict[str, Tensor] = {}

    def __call__(self, batch: Batch, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the outputs of one call."""
        if self._interface.states and (batch.fresh or not self.states):
            zeros = self._interface.zero_states(self._infos, _width(self._interface, batch))
            self.states = self.module.placed_feeds(zeros)
        outputs: dict[str, Tensor] = self.module({**feeds, **self.states})
        self.states = {
            name: value.float() if value.is_floating_point() else value
            for name, value in self._interface.next_states(outputs).items()
        }
        return outputs

    def cut(self) -> None:
        """Cuts the states off from the gradients of the calls so far."""
        self.states = {name: value.detach() for name, value in self.states.items()}


def output_variances(
    stream: Stream, batches: Iterable[Batch], ports: Sequence[Port], count: int = 32
) -> dict[str, float]:
    """Returns the variance of some outputs over the first of some calls.

    Args:
        stream: the module; its states are forgotten afterwards.
        batches: calls in a row.
        ports: the outputs.
        count: most calls to look at.
    """
    spreads = {port.name: Variance() for port in ports}
    with torch.no_grad():
        for batch in islice(batches, count):
            outputs = stream(batch, stream.module.placed_feeds(batch.feeds))
            for name, spread in spreads.items():
                spread.add(outputs[name].double().cpu().numpy())
    stream.states = {}
    return {name: spread.variance for name, spread in spreads.items() if spread.count}


def computed(stream: Stream, batches: Iterable[Batch], names: Collection[str]) -> set[str]:
    """Returns which values are computed in any of some calls: those of a branch that none takes are not.

    Args:
        stream: the module; its states are forgotten afterwards, and what it captures is as before.
        batches: calls in a row; no more of them are looked at than tell it.
        names: of values that nodes compute.
    """
    found: set[str] = set()
    stream.module.capture(names)
    with torch.no_grad():
        for batch in batches:
            stream(batch, stream.module.placed_feeds(batch.feeds))
            found |= set(stream.module.captured)
            if len(found) == len(names):
                break
    stream.states = {}
    stream.module.capture(stream.module.cuts)
    return found


def _width(interface: Interface, batch: Batch) -> int:
    for port in interface.inputs:
        if port.batch_axis is not None:
            return int(batch.feeds[port.name].shape[port.batch_axis])
    return interface.batch or 1
