"""Inputs that a model makes itself, where the user gave no data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.execution import Reference
from lstmopt.runtimes.base import TensorInfo
from lstmopt.tasks.data import Dataset, Splits
from lstmopt.tasks.interface import Interface, log_probabilities

if TYPE_CHECKING:
    import onnx_ir as ir

STREAMS, TRAIN_TOKENS, VALID_TOKENS = 128, 4000, 500
TRAIN_EXAMPLES, VALID_EXAMPLES, STEPS = 768, 128, 35


def make_splits(model: ir.Model, interface: Interface, seed: int) -> Splits:
    """Returns data made without any: sampled tokens for a language model, otherwise random inputs.

    Args:
        model: the original.
        interface: its interface.
        seed: of the random numbers.
    """
    if interface.is_language_model and interface.states:
        tokens = sample_tokens(model, interface, STREAMS, TRAIN_TOKENS + VALID_TOKENS, seed)
        name = next(port.name for port in interface.inputs if port.name in interface.vocabulary)
        parts = (tokens[:, :TRAIN_TOKENS], tokens[:, TRAIN_TOKENS:])
        train, valid = (Dataset({name: part}, None) for part in parts)
        return Splits(train, valid, None, made=True)
    count = TRAIN_EXAMPLES + VALID_EXAMPLES
    sizes = sizes_for(model, interface.batch or 1, STEPS)
    batch = interface.batch or 1
    rows: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]] = {}
    for index in range(-(-count // batch)):
        feeds = example_inputs(model, seed + index, sizes)
        for port in interface.inputs:
            array = feeds[port.name]
            if port.batch_axis is None:
                rows.setdefault(port.name, []).append(array)
            else:
                rows.setdefault(port.name, []).extend(np.moveaxis(array, port.batch_axis, 0))
    inputs = {
        port.name: rows[port.name][0] if port.batch_axis is None else np.stack(rows[port.name][:count])
        for port in interface.inputs
    }

    def part(begin: int, end: int) -> Dataset:
        cut = {
            port.name: inputs[port.name] if port.batch_axis is None else inputs[port.name][begin:end]
            for port in interface.inputs
        }
        return Dataset(cut, None)

    return Splits(part(0, TRAIN_EXAMPLES), part(TRAIN_EXAMPLES, count), None, made=True)


def sample_tokens(
    model: ir.Model, interface: Interface, streams: int, length: int, seed: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Samples texts from a language model, states carried, ``[streams, length]``.

    The first token of each is uniform over the vocabulary.
    """
    rng = np.random.default_rng(seed)
    streams = interface.batch or streams
    port = next(port for port in interface.inputs if port.name in interface.vocabulary)
    session = Reference(model)
    infos = [
        TensorInfo(
            str(v.name),
            np.dtype(v.dtype.numpy()),
            tuple(s if isinstance(s, int) else None for s in v.shape or ()),
        )
        for v in model.graph.inputs
        if v.dtype is not None
    ]
    states = interface.zero_states(infos, streams)
    tokens = np.zeros((streams, length), dtype=np.int32)
    tokens[:, 0] = rng.integers(0, interface.vocabulary[port.name], streams)
    for step in range(length - 1):
        feed = tokens[:, step : step + 1] if port.batch_axis == 0 else tokens[:, step : step + 1].T
        outputs = session.run({port.name: np.ascontiguousarray(feed).astype(port.dtype), **states})
        states = interface.next_states(outputs)
        scores = outputs[interface.outputs[0].name].reshape(streams, -1)
        # The largest of scores plus Gumbel noise is a sample of their softmax.
        noise = rng.gumbel(size=scores.shape)
        tokens[:, step + 1] = (log_probabilities(scores, interface.scale) + noise).argmax(axis=-1)
    return tokens
