"""Inputs that a model makes itself, where the user gave no data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.execution import Reference
from lstmopt.runtimes.base import TensorInfo
from lstmopt.tasks.data import Dataset, Splits
from lstmopt.tasks.interface import Interface, log_probabilities

if TYPE_CHECKING:
    import onnx_ir as ir

Tokens = npt.NDArray[np.int32]

STREAMS, TRAIN_TOKENS, VALID_TOKENS = 128, 4000, 500
TRAIN_EXAMPLES, VALID_EXAMPLES, STEPS = 768, 128, 35


def makes_text(interface: Interface) -> bool:
    """Whether a model's data are text that it writes itself: it reads tokens and scores the next of each.

    One without states starts anew in each call, so its texts are as long as a call.
    """
    if not interface.is_language_model or len(interface.inputs) != 1:
        return False
    output = interface.outputs[0]
    each_step = bool(output.rows) or output.sequence_axis is not None or len(output.shape) == 3
    return each_step and len(interface.inputs[0].shape) == 2


def make_splits(model: ir.Model, interface: Interface, seed: int) -> Splits:
    """Returns data made without any: sampled tokens for a language model, otherwise random inputs.

    Args:
        model: the original.
        interface: its interface.
        seed: of the random numbers.
    """
    if not makes_text(interface):
        everything = _random_examples(model, interface, seed)
        parts = (slice(0, TRAIN_EXAMPLES), slice(TRAIN_EXAMPLES, None))
        train, valid = (everything.part(part) for part in parts)
        return Splits(train, valid, None, made=True)
    name = interface.inputs[0].name
    if interface.states:
        tokens = sample_tokens(model, interface, STREAMS, TRAIN_TOKENS + VALID_TOKENS, seed)
        texts = (tokens[:, :TRAIN_TOKENS], tokens[:, TRAIN_TOKENS:])
    else:
        tokens = sample_windows(model, interface, TRAIN_EXAMPLES + VALID_EXAMPLES, seed)
        texts = (tokens[:TRAIN_EXAMPLES], tokens[TRAIN_EXAMPLES:])
    train, valid = (Dataset({name: text}, None) for text in texts)
    return Splits(train, valid, None, made=True)


def _random_examples(model: ir.Model, interface: Interface, seed: int) -> Dataset:
    """Returns random inputs; those without an axis of sequences are shared where others have one."""
    count = TRAIN_EXAMPLES + VALID_EXAMPLES
    batch = interface.batch or 1
    sizes = sizes_for(model, batch, STEPS)
    calls = [example_inputs(model, seed + index, sizes) for index in range(-(-count // batch))]
    axes = {port.name: port.batch_axis for port in interface.inputs if port.batch_axis is not None}
    inputs: dict[str, npt.NDArray[Any]] = {}
    for port in interface.inputs:
        arrays = [call[port.name] for call in calls]
        if port.name in axes:
            axis = axes[port.name]
            inputs[port.name] = np.concatenate([np.moveaxis(array, axis, 0) for array in arrays])[:count]
        else:
            inputs[port.name] = arrays[0] if axes else np.stack(arrays)
    return Dataset(inputs, None, frozenset(inputs) - frozenset(axes) if axes else frozenset())


def graph_inputs(model: ir.Model) -> tuple[TensorInfo, ...]:
    """Returns a graph's inputs as a session tells them."""
    return tuple(
        TensorInfo(
            str(value.name),
            np.dtype(value.dtype.numpy()),
            tuple(size if isinstance(size, int) else None for size in value.shape or ()),
        )
        for value in model.graph.inputs
        if value.dtype is not None
    )


def sample_tokens(model: ir.Model, interface: Interface, streams: int, length: int, seed: int) -> Tokens:
    """Samples texts from a language model, states carried, ``[streams, length]``.

    The first token of each is uniform over the vocabulary. Where the model fixes the steps of a call, the
    tokens that are not known yet are zeros, which no earlier score sees, and states go on with a whole call.
    """
    rng = np.random.default_rng(seed)
    streams = interface.batch or streams
    port = next(port for port in interface.inputs if port.name in interface.vocabulary)
    output, width = interface.outputs[0], port.fixed_steps or 1
    session = Reference(model)
    states = interface.zero_states(graph_inputs(model), streams)
    tokens = np.zeros((streams, -(-length // width) * width), dtype=np.int32)
    tokens[:, 0] = rng.integers(0, interface.vocabulary[port.name], streams)
    for step in range(length - 1):
        start = step - step % width
        known = tokens[:, start : start + width]
        feed = known if port.batch_axis == 0 else known.T
        outputs = session.run({port.name: np.ascontiguousarray(feed).astype(port.dtype), **states})
        scores = output.steps_first(outputs[output.name], streams)[step - start]
        tokens[:, step + 1] = _drawn(scores, interface.scale, rng)
        if step + 1 == start + width:
            states = interface.next_states(outputs)
    return tokens[:, :length]


def sample_windows(model: ir.Model, interface: Interface, count: int, seed: int) -> Tokens:
    """Samples texts of one call each from a language model without states, ``[count, steps]``.

    Each token costs a run over all before it, since nothing is carried; where the model fixes the steps
    of a call, the tokens that are not known yet are zeros, which no earlier score sees.
    """
    rng = np.random.default_rng(seed)
    port, output = interface.inputs[0], interface.outputs[0]
    fixed = port.fixed_steps
    length, batch = fixed or STEPS, interface.batch or STREAMS
    session = Reference(model)
    found = []
    for _ in range(-(-count // batch)):
        tokens = np.zeros((batch, length), dtype=np.int32)
        tokens[:, 0] = rng.integers(0, interface.vocabulary[port.name], batch)
        for step in range(1, length):
            known = tokens if fixed else tokens[:, :step]
            feed = known if port.batch_axis == 0 else known.T
            scores = session.run({port.name: np.ascontiguousarray(feed).astype(port.dtype)})[output.name]
            tokens[:, step] = _drawn(output.steps_first(scores, batch)[step - 1], interface.scale, rng)
        found.append(tokens)
    return np.concatenate(found)[:count]


def _drawn(scores: npt.NDArray[Any], scale: str, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Returns a token for each row of scores."""
    # The largest of scores plus Gumbel noise is a sample of their softmax.
    noise = rng.gumbel(size=scores.shape)
    return np.asarray((log_probabilities(scores, scale) + noise).argmax(axis=-1))
