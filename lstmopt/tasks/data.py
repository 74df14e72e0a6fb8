"""Data for training and validation: read, checked against the model, and split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError

if TYPE_CHECKING:
    from lstmopt.tasks.interface import Interface

Array = npt.NDArray[Any]
LABELS = "labels"
VALIDATION_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Dataset:
    """Arrays of one part of the data.

    Attributes:
        inputs: an array for each input that is not a state. For `lm` the tokens are one stream ``[n]`` or
            streams ``[streams, n]``; otherwise axis 0 counts examples and the batch axis is left out.
        labels: in the same order, or None.
    """

    inputs: Mapping[str, Array]
    labels: Array | None

    def __len__(self) -> int:
        return max((len(array) for array in self.inputs.values() if array.ndim), default=0)

    def digest(self) -> str:
        """Returns a hash of the content."""
        state = hashlib.sha256()
        for name in sorted(self.inputs):
            state.update(name.encode() + np.ascontiguousarray(self.inputs[name]).tobytes())
        if self.labels is not None:
            state.update(np.ascontiguousarray(self.labels).tobytes())
        return state.hexdigest()


@dataclass(frozen=True, eq=False)
class Splits:
    """Training, validation and test data; validation chooses, the test only reports."""

    train: Dataset
    valid: Dataset
    test: Dataset | None
    made: bool = False

    def digest(self) -> str:
        """Returns a hash of the content."""
        parts = [self.train.digest(), self.valid.digest(), "" if self.test is None else self.test.digest()]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def read_arrays(source: Any) -> tuple[dict[str, Array], str]:
    """Returns the arrays of an ``.npz`` file, of ``module:function``, or of a mapping, and what to call them.

    Raises:
        LstmoptError: the file or function is missing, or gives something else.
    """
    if isinstance(source, Mapping):
        return {str(name): np.asarray(array) for name, array in source.items()}, "data"
    text = str(source)
    path = Path(text)
    if path.suffix == ".npz" or path.exists():
        return _read_npz(path), text
    if ":" in text:
        return _call(text), text
    raise LstmoptError(f"data {text}", "no such file", "give an .npz file or module:function")


def _read_npz(path: Path) -> dict[str, Array]:
    import zipfile

    if not path.is_file():
        raise LstmoptError(f"data {path}", "no such file", "check the path")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError, EOFError) as error:
        raise LstmoptError(
            f"data {path}", "is not an .npz file of plain arrays", "write it with numpy.savez(path, **arrays)"
        ) from error


def _call(text: str) -> dict[str, Array]:
    import os
    import sys

    module, _, function = text.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        made = getattr(import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise LstmoptError(
            f"data {text}", f"cannot be called ({error})", "check module and function"
        ) from error
    finally:
        sys.path.pop(0)
    if not isinstance(made, Mapping):
        raise LstmoptError(
            f"data {text}", f"gives a {type(made).__name__}", "return a dict of arrays by input name"
        )
    return {str(name): np.asarray(array) for name, array in made.items()}


def check(arrays: Mapping[str, Array], where: str, interface: Interface, task: str) -> Dataset:
    """Checks arrays against a model and returns them in the model's types.

    Raises:
        LstmoptError: a name, type, shape or value that does not fit.
    """
    names = [port.name for port in interface.inputs]
    states = {pair.input for pair in interface.states}
    for name in arrays:
        if name not in names and name not in states and name != LABELS:
            raise LstmoptError(
                f"{where}, array {name}", "the model has no such input", f"its inputs are: {', '.join(names)}"
            )
    inputs = {}
    for port in interface.inputs:
        if port.name not in arrays:
            raise LstmoptError(
                f"{where}", f"holds no array {port.name!r}", f"one is needed for each of {names}"
            )
        array = arrays[port.name]
        place = f"{where}, array {port.name}"
        if array.size == 0:
            raise LstmoptError(place, "is empty", "give at least one example")
        inputs[port.name] = _typed(array, port.dtype, place)
        if task == "lm" and port.name in interface.vocabulary:
            if array.ndim not in (1, 2):
                raise LstmoptError(
                    place, f"has {array.ndim} axes", "give a stream [n] or streams [streams, n]"
                )
        elif port.batch_axis is not None:
            expected = [size for axis, size in enumerate(port.shape) if axis != port.batch_axis]
            fits = array.ndim == len(port.shape) and all(
                want is None or want == have for want, have in zip(expected, array.shape[1:], strict=True)
            )
            if not fits:
                shape = ["examples", *("any" if size is None else size for size in expected)]
                raise LstmoptError(place, f"has shape {list(array.shape)}", f"expected {shape}")
        bound = interface.vocabulary.get(port.name)
        if bound is not None and (int(array.max()) >= bound or int(array.min()) < 0):
            worst = int(array.max()) if int(array.max()) >= bound else int(array.min())
            raise LstmoptError(
                place,
                f"holds token {worst}, the model's vocabulary is 0 to {bound - 1}",
                "use the model's tokeniser",
            )
    labels = arrays.get(LABELS)
    if labels is not None:
        if np.issubdtype(labels.dtype, np.floating) and not np.isfinite(labels).all():
            raise LstmoptError(f"{where}, array labels", "holds NaN or infinity", "mend the labels")
        first = next(iter(inputs.values()))
        if len(labels) != len(first):
            raise LstmoptError(
                f"{where}, array labels", f"has {len(labels)} entries", f"expected {len(first)}"
            )
    classes = interface.outputs[0].shape[-1] if interface.outputs[0].shape else None
    if labels is not None and task == "classify" and classes is not None and int(labels.max()) >= classes:
        raise LstmoptError(
            f"{where}, array labels",
            f"holds class {int(labels.max())}, the model has 0 to {classes - 1}",
            "mend the labels",
        )
    if labels is None and task in ("classify", "regress"):
        raise LstmoptError(where, f"holds no labels, which task {task} needs", "add an array named labels")
    return Dataset(inputs, labels)


def _typed(array: Array, dtype: np.dtype[Any], place: str) -> Array:
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise LstmoptError(place, "holds NaN or infinity", "mend the data")
    same_kind = array.dtype.kind == dtype.kind or {array.dtype.kind, dtype.kind} <= {"i", "u"}
    if not same_kind:
        raise LstmoptError(place, f"has type {array.dtype}", f"the model takes {dtype}")
    # Streams of tokens stay in the type in which they were given: they are cast call by call.
    return array if array.dtype.kind in "iu" else array.astype(dtype, copy=False)


def split(data: Dataset, stream: bool) -> tuple[Dataset, Dataset]:
    """Returns all but the last tenth, and the last tenth, which is contiguous.

    Args:
        data: all of it.
        stream: whether the arrays are one stream of tokens ``[n]`` (or ``[streams, n]``).
    """
    first = next(iter(data.inputs.values()))
    axis = 1 if stream and first.ndim == 2 else 0
    count = first.shape[axis]
    kept = count - max(1, int(count * VALIDATION_SHARE))
    if kept < 1:
        raise LstmoptError(
            "data", f"{count} examples cannot be split", "give more, or validation data with --val"
        )

    def part(begin: int, end: int) -> Dataset:
        cut = (slice(None),) * axis + (slice(begin, end),)
        labels = None if data.labels is None else data.labels[cut]
        return Dataset({name: array[cut] for name, array in data.inputs.items()}, labels)

    return part(0, kept), part(kept, count)
