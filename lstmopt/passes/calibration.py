"""A few calls on training data, from which the importance of hidden units is measured."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.rnn.examples import example_inputs, sizes_for

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.pipeline import State

Feeds = dict[str, npt.NDArray[Any]]

CALIBRATION_CALLS = 8


def calibration_inputs(state: State, batch: int, sequence: int) -> list[Feeds]:
    """Returns a few calls on training data; states that a call does not give are zero.

    Fixed axes of the model win over `batch` and `sequence`. Without a task, random valid inputs are used.
    """
    model = state.model
    if state.task is None or state.data is None:
        return [example_inputs(model, state.seed, sizes_for(model, batch, sequence))]
    rng = np.random.default_rng(state.seed)
    items = state.task.batches(state.data.train, batch=batch, sequence=sequence, rng=rng)
    return [
        _completed(model, {name: np.asarray(array) for name, array in item.feeds.items()})
        for item in islice(items, CALIBRATION_CALLS)
    ]


def _completed(model: ir.Model, feeds: Feeds) -> Feeds:
    """Adds zeros for inputs that are not fed, with dynamic sizes taken from those that are."""
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        array = feeds.get(str(value.name))
        for size, known in zip(value.shape or (), () if array is None else array.shape, strict=False):
            if not isinstance(size, int) and size.value:
                sizes[size.value] = known
    missing = {
        name: np.zeros_like(array)
        for name, array in example_inputs(model, 0, sizes).items()
        if name not in feeds
    }
    return {**feeds, **missing}
