"""Chooses the task and gets its data ready."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmopt import keys
from lstmopt.errors import LstmoptError
from lstmopt.rnn.execution import Reference
from lstmopt.tasks.base import Runner, Task
from lstmopt.tasks.checks import check
from lstmopt.tasks.data import LABELS, Dataset, Splits, read_arrays, split
from lstmopt.tasks.examples import Classification, Distillation, Regression
from lstmopt.tasks.interface import Interface, read_interface
from lstmopt.tasks.lm import LanguageModelling
from lstmopt.tasks.synthetic import graph_inputs, make_splits, makes_text

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
        _check_none(val, test)
        return _made(model, interface, task, seed, folder)
    arrays, where = read_arrays(data)
    chosen = task or _guess(interface, arrays)
    if chosen == "lm" and not interface.is_language_model:
        raise LstmoptError(
            "--task lm", "the model does not read tokens and score its vocabulary", "use another task"
        )
    if chosen == "lm" and len(interface.inputs) > 1:
        other = next(port.name for port in interface.inputs if port.name not in interface.vocabulary)
        raise LstmoptError(
            f"input {other}", "is not a token or a state, and --task lm feeds no others", "use --task distill"
        )
    if chosen in ("lm", "classify") and interface.scale == "sigmoids":
        raise LstmoptError(
            f"--task {chosen}",
            "the model's output is a sigmoid: each class by itself, and not one of them",
            "use --task regress, with labels of 0 and 1 in the output's shape",
        )
    labelled = chosen != "distill"
    made = _task(chosen, interface, labelled)
    session = OfGraph(model)

    def part(source: Any) -> Dataset:
        found, place = read_arrays(source)
        return _tried(made, session, check(found, place, interface, chosen), place)

    everything = _tried(made, session, check(arrays, where, interface, chosen), where)
    notes: list[str] = []
    if val is None:
        train, valid = split(everything, stream=chosen == "lm")
        _tried(made, session, valid, f"{where}, the last tenth")
        notes.append("validation data: the last tenth of the training data, which training does not see")
    else:
        train, valid = everything, part(val)
    tested = None if test is None else part(test)
    if not labelled:
        notes.insert(0, UNLABELLED)
    splits = Splits(train, valid, tested)
    return Prepared(made, splits, labelled, tuple(notes), splits.digest())


class OfGraph:
    """A graph as a task runs it.

    Args:
        model: the graph.
    """

    def __init__(self, model: ir.Model) -> None:
        self.inputs = graph_inputs(model)
        self.run = Reference(model).run


def _tried(task: Task, session: Runner, part: Dataset, where: str) -> Dataset:
    """Returns the data after the model has answered their first call, in the shape of the labels.

    Raises:
        LstmoptError: it does not, or no step has a class.
    """
    if part.labels is not None and task.name == "classify" and int(part.labels.max()) < 0:
        raise LstmoptError(f"{where}, array labels", "holds nothing but -1", "give at least one class")
    try:
        task.evaluate(session, part, reference=session, limit=1)
    except LstmoptError as error:
        raise LstmoptError(where, f"{error.where}: {error.fault}", error.mend) from error
    return part


def describe(
    model: ir.Model, *, task: str | None, data: Any, val: Any, test: Any
) -> tuple[str, bool, tuple[str, ...]]:
    """Checks data as `prepare` does, but makes none; returns the task, whether it has labels, and notes."""
    if data is not None:
        prepared = prepare(model, task=task, data=data, val=val, test=test, seed=0)
        return prepared.task.name, prepared.labelled, prepared.notes
    _check_none(val, test)
    return _made_task(read_interface(model), task), False, (UNLABELLED, MADE)


def _check_none(val: Any, test: Any) -> None:
    """Checks that there are no other data where there are none to train on."""
    for option, given in (("--val", val), ("--test", test)):
        if given is not None:
            raise LstmoptError(option, "there are no data to train on beside it", "give --data as well")


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


def _made_task(interface: Interface, task: str | None) -> str:
    """Returns the task on data that are made.

    Raises:
        LstmoptError: one that needs labels, or text that the model cannot write.
    """
    if task in ("classify", "regress"):
        raise LstmoptError(f"--task {task}", "needs data with labels", "give --data, or use --task distill")
    if task == "lm" and not makes_text(interface):
        raise LstmoptError(
            "--task lm", "the model does not read tokens and score the next of each", "use another task"
        )
    return "lm" if makes_text(interface) and task != "distill" else "distill"


def _made(
    model: ir.Model, interface: Interface, task: str | None, seed: int, folder: Path | None
) -> Prepared:
    """Makes data, or reads what an earlier call with this seed and model has made."""
    chosen = _made_task(interface, task)
    splits = (
        make_splits(model, interface, seed) if folder is None else _cached(model, interface, seed, folder)
    )
    return Prepared(_task(chosen, interface, False), splits, False, (UNLABELLED, MADE), splits.digest())


def _cached(model: ir.Model, interface: Interface, seed: int, folder: Path) -> Splits:
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    key = keys.digest(keys.surroundings(), keys.model_digest(model), repr((seed, interface)))
    path = folder / f"made-{key}.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            shared = frozenset(json.loads(file.metadata()["shared"]))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        parts = [{n[6:]: a for n, a in arrays.items() if n.startswith(f"{p}.")} for p in ("train", "valid")]
        train, valid = (Dataset(part, None, shared) for part in parts)
        return Splits(train, valid, None, made=True)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        splits = make_splits(model, interface, seed)
    arrays = {
        f"{name}.{key}": np.ascontiguousarray(array).reshape(array.shape)  # which may be ()
        for name, part in (("train", splits.train), ("valid", splits.valid))
        for key, array in part.inputs.items()
    }
    beside = path.with_suffix(".tmp")
    save_file(arrays, beside, {"shared": json.dumps(sorted(splits.train.shared))})
    beside.replace(path)
    return splits
