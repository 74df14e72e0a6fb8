"""Runs a model's calls in parts of the batch that it is deployed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lstmopt.tasks.base import Array, Runner

if TYPE_CHECKING:
    from lstmopt.runtimes.base import TensorInfo
    from lstmopt.tasks.interface import Interface, Port


class InParts:
    """A loaded model that is given a few sequences at a time, whatever the batch of a call.

    ONNX Runtime's dynamic int8 rounds a whole call with one scale, so that what a sequence gives depends on
    the others beside it: its accuracy is that of the calls which it will really get.

    Args:
        session: the model.
        interface: its inputs and outputs.
        batch: sequences of a part.
    """

    def __init__(self, session: Runner, interface: Interface, batch: int) -> None:
        self._session, self._interface, self._batch = session, interface, batch
        self._axes = {port.name: port.batch_axis for port in interface.inputs if port.batch_axis is not None}
        shapes = {info.name: info.shape for info in session.inputs}
        for pair in interface.states:
            free = interface.state_batch.get(pair.input)
            open_axes = [a for a, size in enumerate(shapes[pair.input]) if size is None or a == free]
            if len(open_axes) == 1:
                self._axes[pair.input] = self._axes[pair.output] = open_axes[0]

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs; a dynamic size is None."""
        return self._session.inputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns all outputs by name, as of one call."""
        widths = {feeds[name].shape[axis] for name, axis in self._axes.items() if name in feeds}
        if len(widths) != 1 or not self._divides():
            return self._session.run(feeds)
        (width,) = widths
        parts = [
            self._session.run({name: self._part(name, array, start) for name, array in feeds.items()})
            for start in range(0, width, self._batch)
        ]
        sizes = [min(self._batch, width - start) for start in range(0, width, self._batch)]
        joined: dict[str, Array] = {}
        try:
            for pair in self._interface.states:
                arrays = [part[pair.output] for part in parts]
                joined[pair.output] = np.concatenate(arrays, axis=self._axes[pair.output])
            for port in self._interface.outputs:
                joined[port.name] = _joined(port, [part[port.name] for part in parts], sizes)
        except ValueError:  # outputs as long as a part's longest sequence
            return self._session.run(feeds)
        return joined

    def _divides(self) -> bool:
        """Whether every state and output has an axis of sequences of its own."""
        ports = self._interface.outputs
        return (
            self._interface.batch is None
            and all(pair.output in self._axes for pair in self._interface.states)
            and all(port.rows or port.batch_axis is not None for port in ports)
        )

    def _part(self, name: str, array: Array, start: int) -> Array:
        axis = self._axes.get(name)
        if axis is None:
            return array
        return array.take(range(start, min(start + self._batch, array.shape[axis])), axis=axis)


def _joined(port: Port, arrays: list[Array], sizes: list[int]) -> Array:
    """Returns an output of one call from those of its parts, each of so many sequences."""
    if port.rows != "sequence":  # sequences one after the other, or an axis of their own
        return np.concatenate(arrays, axis=0 if port.rows else port.batch_axis)
    steps = [a.reshape(-1, size, *a.shape[1:]) for a, size in zip(arrays, sizes, strict=True)]
    whole = np.concatenate(steps, axis=1)
    return whole.reshape(-1, *whole.shape[2:])
