"""Valid inputs for a model whose author is not here to ask: shapes, token ranges, lengths, switches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import constant_value
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.reader import QUANTISED_LSTM, SEQUENCE_LENS, X, recurrent_nodes

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]

BATCH_NAMES = ("batch", "n", "b", "batch_size", "batchsize", "num_batch", "unk__batch")
SEQUENCE_NAMES = (
    "sequence",
    "seq",
    "time",
    "t",
    "length",
    "steps",
    "frames",
    "seq_len",
    "seqlen",
    "seq_length",
)
TRIAL_SIZES = (2, 16, 64, 128, 256, 512, 576, 1024, 4096)
"""Sizes tried for a dynamic axis that is neither batch nor sequence by name."""

MOVERS = frozenset({"Cast", "Identity", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Flatten", "Expand"})
"""Operators that hand integers on unchanged."""

BOUNDS = frozenset({"Clip", "Min", "Max", "Mod"})
"""Operators that hand integers inside some bounds on unchanged."""

FLOATS = frozenset({1, 10, 11, 16})
"""ONNX's numbers of float32, float16, float64 and bfloat16."""

ORDINARY = 100
"""Below this are the integers that a model is fed which computes with them and looks nothing up."""


def real_inputs(model: ir.Model) -> list[ir.Value]:
    """Returns the graph inputs that a caller feeds: those without a default value."""
    return [value for value in model.graph.inputs if value.const_value is None]


def dynamic_axes(model: ir.Model) -> dict[str, list[tuple[str, int]]]:
    """Returns for each dynamic size, by its name, the inputs and axes that have it."""
    axes: dict[str, list[tuple[str, int]]] = {}
    for value in real_inputs(model):
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                axes.setdefault(size.value or f"{value.name}.{axis}", []).append((str(value.name), axis))
    return axes


def _downstream(value: ir.Value, bounded: bool = False) -> Iterator[tuple[ir.Node, int]]:
    """Yields the consumers of a value, through operators that hand it on unchanged, or inside `bounded`."""
    for node, index in value.uses():
        if (node.op_type in MOVERS or (bounded and node.op_type in BOUNDS)) and index == 0:
            for output in node.outputs:
                yield from _downstream(output, bounded)
        else:
            yield node, index


def token_bounds(model: ir.Model) -> dict[str, int]:
    """Returns the vocabulary size of each integer input that indexes a constant table."""
    bounds: dict[str, int] = {}
    for value in real_inputs(model):
        if value.dtype is None or value.dtype.is_floating_point():
            continue
        for node, index in _downstream(value, bounded=True):
            if node.op_type == "Gather" and index == 1:
                table = constant_value(node.inputs[0])
                if table is not None and table.ndim:
                    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
                    size = int(table.shape[axis])
                    bounds[str(value.name)] = min(size, bounds.get(str(value.name), size))
            elif node.op_type == "OneHot" and index == 0:
                depth = constant_value(node.inputs[1])
                if depth is not None:
                    bounds[str(value.name)] = int(depth.reshape(-1)[0])
    return bounds


def _quantities(model: ir.Model) -> set[str]:
    """Returns the integer inputs that are turned into floats, and nothing else: samples, counts."""
    found = set()
    for value in real_inputs(model):
        if value.dtype is None or value.dtype.is_floating_point():
            continue
        casts = [
            node
            for node, _ in value.uses()
            if node.op_type == "Cast" and node.attributes["to"].as_int() in FLOATS
        ]
        if casts and len(casts) == len(list(value.uses())):
            found.add(str(value.name))
    return found


def switches(model: ir.Model) -> dict[str, int]:
    """Returns the constant that each integer input is compared with (a sampling rate, a mode)."""
    found: dict[str, int] = {}
    for value in real_inputs(model):
        if value.dtype is None or value.dtype.is_floating_point():
            continue
        for node, index in _downstream(value):
            if node.op_type == "Equal":
                other = constant_value(node.inputs[1 - index])
                if other is not None and other.size == 1:
                    found.setdefault(str(value.name), int(other.reshape(-1)[0]))
    return found


def _lengths(model: ir.Model) -> dict[str, str]:
    """Returns the integer inputs that are sequence lengths, with the layer that reads them."""
    found: dict[str, str] = {}
    for value in real_inputs(model):
        for node, index in _downstream(value):
            if node.op_type in ("LSTM", "GRU", "RNN", QUANTISED_LSTM) and index == SEQUENCE_LENS:
                found[str(value.name)] = str(node.name)
    return found


def example_inputs(
    model: ir.Model, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Returns random inputs that the model accepts.

    Args:
        model: the graph.
        seed: of the random numbers.
        sizes: size of each dynamic axis by the name that `dynamic_axes` gives; others are 2.

    Returns:
        An array for each input: tokens inside the vocabulary, lengths from half the sequence to all of
        it, the constant that a switch is compared with, floats (states too) standard normal.

    Raises:
        LstmoptError: an input is not a tensor.
    """
    rng = np.random.default_rng(seed)
    sizes = dict(sizes or {})
    tokens, choices, lengths = token_bounds(model), switches(model), _lengths(model)
    quantities = _quantities(model) - set(tokens) - set(choices) - set(lengths)
    feeds: dict[str, Array] = {}
    for value in real_inputs(model):
        name = str(value.name)
        shape = tuple(
            size if isinstance(size, int) else sizes.get(size.value or f"{name}.{axis}", 2)
            for axis, size in enumerate(value.shape or ())
        )
        if value.dtype is None:
            raise LstmoptError(f"input {name}", "is not a tensor", "only tensor inputs are supported")
        dtype = value.dtype.numpy()
        if name in tokens:
            feeds[name] = rng.integers(0, tokens[name], shape).astype(dtype)
        elif name in choices:
            feeds[name] = np.full(shape, choices[name], dtype)
        elif np.issubdtype(dtype, np.floating):
            feeds[name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
        elif dtype == np.bool_:
            feeds[name] = np.ones(shape, dtype)
        elif dtype == np.uint8:
            feeds[name] = rng.integers(0, 256, shape).astype(dtype)
        elif name in quantities:
            low = max(-ORDINARY, np.iinfo(dtype).min)
            feeds[name] = rng.integers(low, ORDINARY, shape).astype(dtype)
        else:
            feeds[name] = np.ones(shape, dtype)
    longest = _sequence_size(model, sizes)
    for name in lengths:
        shape = feeds[name].shape
        feeds[name] = rng.integers(max(1, longest // 2), longest + 1, shape).astype(feeds[name].dtype)
        if feeds[name].size:
            feeds[name].reshape(-1)[0] = longest
    return feeds


def _sequence_size(model: ir.Model, sizes: Mapping[str, int]) -> int:
    """Returns the number of steps that the first axis named like a sequence has."""
    for key, places in dynamic_axes(model).items():
        if _named(key, SEQUENCE_NAMES):
            return sizes.get(key, 2)
        del places
    for node in recurrent_nodes(model):
        value = node.inputs[X]
        if value is not None and value.shape is not None:
            steps = value.shape[0]
            return steps if isinstance(steps, int) else sizes.get(str(steps.value), 2)
    return 2


def _named(key: str, names: tuple[str, ...]) -> bool:
    lower = key.lower()
    return lower in names or any(len(name) > 2 and name in lower for name in names)


def axis_roles(model: ir.Model) -> dict[str, str]:
    """Returns what each dynamic axis is: "batch", "sequence" or "other".

    Names decide where they are telling, and a state has no axis of steps: its dynamic one is the batch.
    Otherwise the axis is given another size, and the shape that reaches the first recurrent layer,
    ``[sequence, batch, input]``, tells; where it does not, the batch is what has to grow with the states.
    """
    from lstmopt.rnn.states import state_pairs

    axes = dynamic_axes(model)
    states = {pair.input for pair in state_pairs(model)}
    roles = {
        key: "batch" if _named(key, BATCH_NAMES) else "sequence" if _named(key, SEQUENCE_NAMES) else ""
        for key in axes
    }
    for key, places in axes.items():
        if not roles[key] and all(name in states for name, _ in places):
            roles[key] = "batch"
    unknown = [key for key, role in roles.items() if not role]
    layers = recurrent_nodes(model)
    if unknown and layers:
        value = layers[0].inputs[X]
        assert value is not None
        reference = Reference(model, also=[str(value.name)])
        base = _running_sizes(model, reference, dict.fromkeys(axes, 2), unknown)
        if base is not None:
            before = reference.run(example_inputs(model, 0, base))[str(value.name)].shape
            for key in unknown:
                roles[key] = _role_by_trial(model, reference, str(value.name), base, key, before)
    left = [key for key in unknown if not roles[key]]
    with_states = [key for key, places in axes.items() if any(name in states for name, _ in places)]
    if left and with_states:
        roles.update(dict.fromkeys(_grows_with(model, Reference(model), with_states, left), "batch"))
    return {key: role or "other" for key, role in roles.items()}


def _role_by_trial(
    model: ir.Model,
    reference: Reference,
    name: str,
    base: Mapping[str, int],
    key: str,
    before: tuple[int, ...],
) -> str:
    # A front end with strides shows a longer axis only once it is some strides longer.
    for size in (base[key] + 1, 2 * base[key], 8 * base[key], 32 * base[key], 128 * base[key]):
        try:
            after = reference.run(example_inputs(model, 0, {**base, key: size}))[name].shape
        except LstmoptError:
            continue
        if after[1] != before[1]:
            return "batch"
        if after[0] != before[0]:
            return "sequence"
    return ""


def _grows_with(model: ir.Model, reference: Reference, states: list[str], unknown: list[str]) -> list[str]:
    """Returns the axes without which the states' batch cannot be 2: one of them, or none."""
    for key in unknown:
        free = [other for other in unknown if other != key]
        base = _running_sizes(model, reference, {**dict.fromkeys([*states, key], 2)}, free)
        if base is None:
            continue
        try:
            reference.run(example_inputs(model, 0, {**base, key: 3}))
        except LstmoptError:
            return [key]
    return []


def _running_sizes(
    model: ir.Model, reference: Reference, sizes: dict[str, int], free: list[str]
) -> dict[str, int] | None:
    """Returns sizes on which the model runs, trying ever larger ones for the free axes, or None."""
    for trial in TRIAL_SIZES:
        attempts = [{**sizes, **dict.fromkeys(free, trial)}]
        attempts += [{**sizes, key: trial} for key in free if len(free) > 1]
        for attempt in attempts:
            try:
                reference.run(example_inputs(model, 0, attempt))
            except LstmoptError:
                continue
            return attempt
    return None


def given_sizes(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Returns the sizes of the dynamic axes of inputs whose shapes are given.

    Raises:
        LstmoptError: no such input, or a shape that is not one of it.
    """
    inputs = {str(value.name): value for value in real_inputs(model)}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise LstmoptError(
                f"shape of {name}", "the model has no such input", f"its inputs are: {', '.join(inputs)}"
            )
        declared = list(inputs[name].shape or ())
        keys = [
            size if isinstance(size, int) else size.value or f"{name}.{axis}"
            for axis, size in enumerate(declared)
        ]
        fits = len(keys) == len(shape) and all(
            key == size if isinstance(key, int) else sizes.setdefault(key, size) == size
            for key, size in zip(keys, shape, strict=True)
        )
        if not fits:
            raise LstmoptError(f"shape of {name}", f"{list(shape)} does not fit {keys}", "mend the shape")
    return sizes


def sizes_for(
    model: ir.Model, batch: int, sequence: int, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, int]:
    """Returns the dynamic axes' sizes for a call of so many sequences and (at least) so many steps.

    Where a convolution or a stride stands between the input and the recurrent layer, the input's axis
    is made as long as gives the layer that many steps.

    Args:
        model: the graph.
        batch: sequences.
        sequence: steps.
        shapes: shapes of inputs by name, which are taken as they are.

    Raises:
        LstmoptError: no sizes were found on which the model runs.
    """
    roles = axis_roles(model)
    given = given_sizes(model, shapes or {})
    roles = {key: role for key, role in roles.items() if key not in given}
    sizes = {key: {"batch": batch, "sequence": sequence}.get(role, 1) for key, role in roles.items()} | given
    layers = recurrent_nodes(model)
    value = layers[0].inputs[X] if layers else None
    reference = Reference(model, also=[str(value.name)] if value is not None else [])
    free = [key for key, role in roles.items() if role == "sequence"]
    others = [key for key, role in roles.items() if role == "other"]
    fault = "too few steps reach the first layer"
    for factor in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if free else (1,):
        attempt = {**sizes, **{key: sequence * factor for key in free}}
        try:
            outputs = reference.run(example_inputs(model, 0, attempt))
        except LstmoptError as error:
            fault = error.fault
            if others:
                found = _running_sizes(model, reference, attempt, others)
                if found is not None:
                    return found
            continue
        if value is None or not free or outputs[str(value.name)].shape[0] >= sequence:
            return attempt
    found = _running_sizes(model, reference, sizes, free) if free else None
    if found is not None:
        return found  # a call takes so many samples, and no others
    raise LstmoptError(
        "model", f"no inputs were found on which it runs (dynamic axes: {', '.join(roles)}; {fault})",
        "export it with its sequence and batch axes dynamic, or give data with --data",
    )  # fmt: skip
