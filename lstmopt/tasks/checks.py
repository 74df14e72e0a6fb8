"""Data against a model and a task: names, types, shapes, values; each fault is one clear line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.tasks.data import LABELS, Dataset
from lstmopt.tasks.interface import Interface, Port

Array = npt.NDArray[Any]


def check(arrays: Mapping[str, Array], where: str, interface: Interface, task: str) -> Dataset:
    """Checks arrays against a model and returns them in the model's types.

    Args:
        arrays: by input name, and ``labels``.
        where: what to call them.
        interface: of the model.
        task: its name.

    Raises:
        LstmoptError: a name, type, shape or value that does not fit.
    """
    names = [port.name for port in interface.inputs]
    states = {pair.input for pair in interface.states}
    for name in arrays:
        if name not in names and name not in states and name != LABELS:
            raise LstmoptError(
                f"{where}, array {name}",
                "the model has no such input",
                f"its inputs are: {', '.join(names)}; what it shall say goes under {LABELS}",
            )
    for pair in interface.states:
        if pair.input in arrays and arrays[pair.input].any():
            raise LstmoptError(
                f"{where}, array {pair.input}",
                f"is taken for a state: it starts at 0, and {pair.output} is its next value",
                "leave it out of the data; rename that output where it is none",
            )
    inputs = {}
    for port in interface.inputs:
        if port.name not in arrays:
            raise LstmoptError(
                f"{where}", f"holds no array {port.name!r}", f"one is needed for each of {names}"
            )
        place = f"{where}, array {port.name}"
        inputs[port.name] = _input(arrays[port.name], port, place, interface, task)
    shared = frozenset(name for name in inputs if _is_shared(interface.port(name), inputs[name]))
    _check_lengths({name: array for name, array in inputs.items() if name not in shared}, where)
    if task == "distill":
        return Dataset(inputs, None, shared)  # labels that came along are not looked at
    labels = arrays.get(LABELS)
    data = Dataset(inputs, labels, shared)
    if labels is not None:
        place = f"{where}, array labels"
        _check_labels(labels, data, place, interface, task)
    elif task != "lm":
        raise LstmoptError(where, f"holds no labels, which task {task} needs", "add an array named labels")
    return data


def _input(array: Array, port: Port, place: str, interface: Interface, task: str) -> Array:
    if array.size == 0:
        raise LstmoptError(place, "is empty", "give at least one example")
    if task == "lm" and port.name in interface.vocabulary:
        if array.ndim not in (1, 2):
            raise LstmoptError(place, f"has {array.ndim} axes", "give a stream [n] or streams [streams, n]")
    elif port.batch_axis is not None:
        _check_shape(array, ["examples", *port.each], place)
    elif not (_fits(array.shape, port.shape) or _fits(array.shape[1:], port.shape)):
        _check_shape(array, [*port.shape], place)
    array = _typed(array, port.dtype, place)
    bound = interface.vocabulary.get(port.name)
    if bound is not None:
        fault = "token {}, the model's vocabulary is 0 to {}"
        _check_range(array, 0, bound, place, fault, "use the model's tokeniser")
    return array


def _is_shared(port: Port, array: Array) -> bool:
    """Whether an array is one value for all examples, not one for each."""
    return port.batch_axis is None and array.ndim == len(port.shape)


def _check_lengths(inputs: Mapping[str, Array], where: str) -> None:
    lengths = {name: len(array) for name, array in inputs.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise LstmoptError(where, f"holds arrays of unequal length ({said})", "give as many of each")


def _check_labels(labels: Array, data: Dataset, place: str, interface: Interface, task: str) -> None:
    output = interface.outputs[0]
    integers = labels.dtype.kind in "iu"
    if not integers and (task != "regress" or labels.dtype.kind != "f"):
        wanted = "numbers" if task == "regress" else "whole numbers"
        raise LstmoptError(place, f"has type {labels.dtype}", f"task {task} takes {wanted}")
    if not integers and not np.isfinite(labels).all():
        raise LstmoptError(place, "holds NaN or infinity", "mend the labels")
    if task == "lm":
        tokens = next(array for name, array in data.inputs.items() if name in interface.vocabulary)
        if labels.shape != tokens.shape:
            raise LstmoptError(
                place, f"has shape {list(labels.shape)}", f"expected {list(tokens.shape)}, one for each token"
            )
    else:
        if labels.ndim == 0 or len(labels) != len(data):
            count = len(labels) if labels.ndim else 1
            raise LstmoptError(
                place,
                f"has {count} entries",
                f"expected {len(data)}, one for each example; examples are the first axis of every array",
            )
        each = output.each[:-1] if task == "classify" else output.each
        if not (_fits(labels.shape[1:], each) or _fits(_squeezed(labels.shape[1:]), _squeezed(each))):
            if task == "regress" and not integers and labels.ndim < 2 and len(output.shape or ()) > 1:
                raise LstmoptError(
                    place,
                    f"has shape {list(labels.shape)}, and numbers with a point are not taken for classes",
                    "give whole numbers where they are classes, or a number for each output",
                )
            _check_shape(labels, ["examples", *each], place)
    classes = output.shape[-1] if output.shape else None
    if task == "regress" or classes is None:
        return
    lowest = -1 if task == "classify" else 0  # -1 is a step that has no class
    if classes == 1 and task == "classify":
        raise LstmoptError(place, "name classes, and the model has one output", "use --task regress")
    _check_range(labels, lowest, classes, place, "class {}, the model has 0 to {}", "mend the labels")
    if labels.max() < 0:
        raise LstmoptError(place, "holds nothing but -1", "give at least one class")


def _check_range(array: Array, lowest: int, bound: int, place: str, fault: str, mend: str) -> None:
    low, high = int(array.min()), int(array.max())
    if high >= bound or low < lowest:
        said = fault.format(high if high >= bound else low, bound - 1)
        raise LstmoptError(place, f"holds {said}", mend)


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        want is None or want == have for want, have in zip(wanted, shape, strict=True)
    )


def _squeezed(shape: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(size for size in shape if size != 1)


def _check_shape(array: Array, wanted: Sequence[int | str | None], place: str) -> None:
    if not _fits(array.shape, [size if isinstance(size, int) else None for size in wanted]):
        shape = ", ".join("any" if size is None else str(size) for size in wanted)
        raise LstmoptError(place, f"has shape {list(array.shape)}", f"expected [{shape}]")


def _typed(array: Array, dtype: np.dtype[Any], place: str) -> Array:
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise LstmoptError(place, "holds NaN or infinity", "mend the data")
    same_kind = array.dtype.kind == dtype.kind or {array.dtype.kind, dtype.kind} <= {"i", "u"}
    if not same_kind:
        raise LstmoptError(place, f"has type {array.dtype}", f"the model takes {dtype}")
    # Streams of tokens stay in the type in which they were given: they are cast call by call.
    return array if array.dtype.kind in "iu" else array.astype(dtype, copy=False)
