"""Data for training and validation: read and split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError

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
        shared: names of the inputs that all examples share, such as a sampling rate: whole, never cut.
    """

    inputs: Mapping[str, Array]
    labels: Array | None
    shared: frozenset[str] = frozenset()

    def __len__(self) -> int:
        counted = [len(array) for name, array in self.inputs.items() if name not in self.shared]
        return counted[0] if counted else min(1, len(self.inputs))

    def part(self, index: Any) -> Dataset:
        """Returns what an index, as of an array, picks of everything that is not shared."""
        inputs = {name: array if name in self.shared else array[index] for name, array in self.inputs.items()}
        return Dataset(inputs, None if self.labels is None else self.labels[index], self.shared)

    def digest(self) -> str:
        """Returns a hash of the content, shapes and types included."""
        state = hashlib.sha256()
        arrays = [*sorted(self.inputs.items()), *([] if self.labels is None else [(LABELS, self.labels)])]
        for name, array in arrays:
            shared = name in self.shared
            state.update(repr((name, array.shape, array.dtype.str, shared)).encode())
            state.update(np.ascontiguousarray(array).tobytes())
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
        return _arrays(source, "data"), "data"
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
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError, EOFError, TypeError) as error:
        raise LstmoptError(
            f"data {path}", "is not an .npz file of plain arrays", "write it with numpy.savez(path, **arrays)"
        ) from error


def _call(text: str) -> dict[str, Array]:
    import os
    import sys

    module, _, function = text.partition(":")
    where = f"data {text}"
    path = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        made = getattr(import_module(module), function)()
    except Exception as error:  # noqa: BLE001 - the user's own code may raise anything
        fault = f"cannot be called ({type(error).__name__}: {error})"
        raise LstmoptError(where, fault, "check module and function") from error
    finally:
        sys.path[:] = path
    if not isinstance(made, Mapping):
        raise LstmoptError(where, f"gives a {type(made).__name__}", "return a dict of arrays by input name")
    return _arrays(made, where)


def _arrays(made: Mapping[Any, Any], where: str) -> dict[str, Array]:
    try:
        return {str(name): np.asarray(array) for name, array in made.items()}
    except (ValueError, TypeError) as error:
        raise LstmoptError(where, f"gives what is no array ({error})", "give plain numpy arrays") from error


SHORT = 35
"""Tokens: the end of a stream that is shorter is not much to be judged by."""


def split(data: Dataset, stream: bool) -> tuple[Dataset, Dataset]:
    """Returns all but the last tenth, and the last tenth, which is contiguous.

    Args:
        data: all of it.
        stream: whether the arrays are one stream of tokens ``[n]`` (or ``[streams, n]``).

    Raises:
        LstmoptError: there is nothing to split.
    """
    cut = [array for name, array in data.inputs.items() if name not in data.shared]
    axis = 1 if stream and cut and cut[0].ndim == 2 else 0
    if axis == 1 and cut[0].shape[1] * VALIDATION_SHARE < SHORT and cut[0].shape[0] * VALIDATION_SHARE >= 1:
        axis = 0  # many short streams: whole ones are kept
    count = cut[0].shape[axis] if cut else 1
    kept = count - max(1, int(count * VALIDATION_SHARE))
    if kept < 1:
        raise LstmoptError(
            "data", f"{count} examples cannot be split", "give more, or validation data with --val"
        )
    where = (slice(None),) * axis
    return data.part((*where, slice(0, kept))), data.part((*where, slice(kept, count)))
