"""Chooses the task and gets its data ready."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.tasks.base import Task
from lstmopt.tasks.data import LABELS, Dataset, Splits, check, read_arrays, split
from lstmopt.tasks.examples import Classification, Distillation, Regression
from lstmopt.tasks.interface import Interface, read_interface
from lstmopt.tasks.lm import LanguageModelling
from lstmopt.tasks.synthetic import make_splits

if TYPE_CHECKING:
    import onnx_ir as ir

TASKS = ("lm", "classify", "regress", "distill")
UNLABELLED = "not checked against labels: the original's own outputs are the truth"
MADE = "no data were given: trained and checked on inputs that the model made itself"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task with its data.

    Attributes:
        task: the task.
        splits: its data.
        labelled: whether the data came with labels.
        notes: what the report says first.
        digest: a hash of the data.
    """

    task: Task
    splits: Splits
    labelled: bool
    notes: tuple[str, ...]
    digest: str


def prepare(
    model: ir.Model,
    *,
    task: str | None,
    data: Any,
    val: Any,
    test: Any,
    seed: int,
    folder: Path | None = None,
) -> Prepared:
    """Chooses the task and reads, checks and splits the data, or makes them.

    Args:
        model: the original.
        task: its name, or None: `lm` for a language model, `classify` or `regress` where there are labels
            (by their type), otherwise `distill`.
        data: training data, see `read_arrays`; None makes them.
        val: validation data; a contiguous tenth of the training data where None.
        test: test data.
        seed: of made data.
        folder: where made data are kept for the next call; None keeps nothing.

    Raises:
        LstmoptError: data that do not fit the model or the task.
    """
    interface = read_interface(model)
    if task is not None and task not in TASKS:
        raise LstmoptError(f"--task {task}", "unknown task", f"use one of {', '.join(TASKS)}")
    if data is None:
        if val is not None or test is not None:
            raise LstmoptError(
                "--val", "validation or test data without training data", "give --data as well"
            )
        return _made(model, interface, task, seed, folder)
    arrays, where = read_arrays(data)
    chosen = task or _guess(interface, arrays)
    if chosen == "lm" and not interface.is_language_model:
        raise LstmoptError(
            "--task lm", "the model does not read tokens and score its vocabulary", "use another task"
        )
    everything = check(arrays, where, interface, chosen)
    notes: list[str] = []
    if val is None:
        train, valid = split(everything, stream=chosen == "lm")
        notes.append("validation data: the last tenth of the training data, which training does not see")
    else:
        others, place = read_arrays(val)
        train, valid = everything, check(others, place, interface, chosen)
    tested: Dataset | None = None
    if test is not None:
        others, place = read_arrays(test)
        tested = check(others, place, interface, chosen)
    labelled = chosen != "distill"
    if not labelled:
        notes.insert(0, UNLABELLED)
    splits = Splits(train, valid, tested)
    return Prepared(_task(chosen, interface, labelled), splits, labelled, tuple(notes), splits.digest())


def describe(
    model: ir.Model, *, task: str | None, data: Any, val: Any, test: Any
) -> tuple[str, bool, tuple[str, ...]]:
    """Checks data as `prepare` does, but makes none; returns the task, whether it has labels, and notes."""
    if data is not None:
        prepared = prepare(model, task=task, data=data, val=val, test=test, seed=0)
        return prepared.task.name, prepared.labelled, prepared.notes
    interface = read_interface(model)
    return "lm" if interface.is_language_model and interface.states else "distill", False, (UNLABELLED, MADE)


def _guess(interface: Interface, arrays: dict[str, Any]) -> str:
    if interface.is_language_model:
        return "lm"
    if LABELS not in arrays:
        return "distill"
    return "classify" if np.issubdtype(arrays[LABELS].dtype, np.integer) else "regress"


def _task(name: str, interface: Interface, labelled: bool) -> Task:
    match name:
        case "lm":
            return LanguageModelling(interface, labelled)
        case "classify":
            return Classification(interface)
        case "regress":
            return Regression(interface)
        case _:
            return Distillation(interface)


def _made(
    model: ir.Model, interface: Interface, task: str | None, seed: int, folder: Path | None
) -> Prepared:
    """Makes data, or reads what an earlier call with this seed and model has made."""
    if task in ("classify", "regress"):
        raise LstmoptError(f"--task {task}", "needs data with labels", "give --data, or use --task distill")
    chosen = "lm" if interface.is_language_model and interface.states and task != "distill" else "distill"
    splits = (
        make_splits(model, interface, seed) if folder is None else _cached(model, interface, seed, folder)
    )
    return Prepared(_task(chosen, interface, False), splits, False, (UNLABELLED, MADE), splits.digest())


def _cached(model: ir.Model, interface: Interface, seed: int, folder: Path) -> Splits:
    import hashlib

    import onnx_ir as ir
    from safetensors.numpy import load_file, save_file

    content = hashlib.sha256(ir.to_proto(model).SerializeToString()).hexdigest()
    key = hashlib.sha256(json.dumps([content, seed, repr(interface)]).encode()).hexdigest()[:16]
    path = folder / f"made-{key}.safetensors"
    if path.is_file():
        arrays = load_file(path)
        parts = [{n[6:]: a for n, a in arrays.items() if n.startswith(f"{p}.")} for p in ("train", "valid")]
        return Splits(Dataset(parts[0], None), Dataset(parts[1], None), None, made=True)
    splits = make_splits(model, interface, seed)
    arrays = {
        f"{name}.{key}": np.ascontiguousarray(array)
        for name, part in (("train", splits.train), ("valid", splits.valid))
        for key, array in part.inputs.items()
    }
    beside = path.with_suffix(".tmp")
    save_file(arrays, beside)
    beside.replace(path)
    return splits
