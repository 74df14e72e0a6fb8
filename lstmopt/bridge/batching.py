"""Sets a batch free that a model fixes, where its module computes any: training on one sequence is slow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.bridge.runner import ModuleRunner
from lstmopt.errors import LstmoptError
from lstmopt.rnn.examples import example_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.bridge.module import OnnxModule
    from lstmopt.tasks.interface import Interface

Array = npt.NDArray[Any]
Call = dict[str, Array]

STREAMS, CALLS = 3, 2
TRIALS = 16
TOLERANCE = 1e-4
"""Of an output's largest value: sums in another order, not another result."""


def free_batch(interface: Interface, model: ir.Model, module: OnnxModule) -> Interface:
    """Returns an interface without a fixed batch if the module takes others and computes the same.

    That is tried: a few random streams together, and each by itself, states carried.

    Args:
        interface: of the model.
        model: the graph that the module was made of.
        module: the module.
    """
    if interface.batch is None or any(port.batch_axis is None for port in interface.inputs):
        return interface
    runner = ModuleRunner(model, module)
    shapes = {info.name: info.shape for info in runner.inputs}
    choices = [
        [axis for axis, size in enumerate(shapes[pair.input]) if size in (None, interface.batch)]
        for pair in interface.states
    ]
    streams = [[example_inputs(model, 10 * s + c) for c in range(CALLS)] for s in range(STREAMS)]
    apart: list[list[Mapping[str, Array]]] = []
    for axes in islice(product(*choices), TRIALS):
        placed = {pair.input: axis for pair, axis in zip(interface.states, axes, strict=True)}
        together = [
            {
                port.name: np.concatenate([stream[call][port.name] for stream in streams], port.batch_axis)
                for port in interface.inputs
                if port.batch_axis is not None
            }
            for call in range(CALLS)
        ]
        freed = replace(interface, batch=None, state_batch=placed)
        try:
            found = list(_stream(runner, freed, together, STREAMS * interface.batch))
        except (LstmoptError, RuntimeError, IndexError, ValueError):
            continue
        # Most models that fix a batch have failed by now.
        apart = apart or [list(_stream(runner, interface, calls, None)) for calls in streams]
        if all(_same(found[call], [stream[call] for stream in apart], freed) for call in range(CALLS)):
            return freed
    return interface


def _stream(
    runner: ModuleRunner, interface: Interface, calls: list[Call], width: int | None
) -> Iterator[Mapping[str, Array]]:
    states = interface.zero_states(runner.inputs, width or interface.batch or 1)
    for call in calls:
        own = {port.name: call[port.name] for port in interface.inputs}
        outputs = runner.run({**own, **states})
        yield outputs
        states = interface.next_states(outputs)


def _same(found: Mapping[str, Array], apart: list[Mapping[str, Array]], interface: Interface) -> bool:
    """Whether outputs of several streams are those of each, one after the other along the batch."""
    axes = {port.name: port.batch_axis for port in interface.outputs}
    axes |= {pair.output: interface.state_batch[pair.input] for pair in interface.states}
    for name, axis in axes.items():
        if axis is None:
            return False
        expected = np.concatenate([outputs[name] for outputs in apart], axis)
        if found[name].shape != expected.shape:
            return False
        if np.abs(found[name] - expected).max(initial=0) > TOLERANCE * np.abs(expected).max(initial=1e-6):
            return False
    return True
