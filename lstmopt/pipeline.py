"""What a stage is, the state that stages hand on, and the chain that runs them."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

import lstmopt
from lstmopt import persistence
from lstmopt.errors import LstmoptError
from lstmopt.report.folder import check_destination, recover
from lstmopt.report.schema import PassRecord
from lstmopt.rnn.files import load_model, save_model
from lstmopt.targets import Target, load_target

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.measure.table import LatencyTable
    from lstmopt.passes.candidates import Candidate
    from lstmopt.passes.grow_prune import GrowPrune
    from lstmopt.report.schema import Report
    from lstmopt.tasks.base import Task
    from lstmopt.tasks.data import Splits

BoolArray = npt.NDArray[np.bool_]
GIVEN = ("model", "target", "data")
"""What every chain starts with."""

LOCK = "lock"


@dataclass(frozen=True)
class Budget:
    """How long training may take; both None: the recipe's own number of epochs.

    Attributes:
        seconds: wall-clock seconds of all training together.
        steps: optimiser steps of one training.
    """

    seconds: float | None = None
    steps: int | None = None


class Stage(Protocol):
    """One step of the chain: a frozen dataclass whose fields are its configuration."""

    @property
    def name(self) -> str:
        """What records and folders call it."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be there before it."""

    @property
    def gives(self) -> tuple[str, ...]:
        """What is there after it."""

    def run(self, state: State) -> State:
        """Returns a changed copy of the state."""


def _silent(text: str, fraction: float) -> None:
    """Shows nothing."""


@dataclass(frozen=True, eq=False)
class State:
    """Everything that a stage may read; a stage returns a changed copy.

    Attributes:
        model: the graph as the stages so far have made it.
        original: the graph as the user gave it.
        source: the user's file.
        target: where the artifact will run.
        output: the artifact folder.
        run_folder: the folder of all stages' results, ``output/.run``.
        workdir: the folder of the running stage: checkpoints go here.
        key: hash of everything that led to this state.
        task: what "as accurate" means for this model.
        data: training, validation and test data.
        labelled: whether the data came from the user with labels.
        max_degradation: the contract, a fraction (0.01 is 1%).
        budget: how long training may take.
        seed: seeds every random choice.
        teacher: the model to distil from; the original where None.
        tables: latency tables of the probe, each for one layer, runtime and precision.
        peers: the original as users would deploy it today, measured.
        masks: weights that may be non-zero, by initializer name, in the initializer's layout.
        trained: models that training has produced, by name, each a candidate.
        candidates: every model x runtime x precision that was built and measured.
        report: the report of the artifact that was written.
        notes: what the user should know, most important first.
        records: the stages that have run.
        command: the call that repeats the run.
        keep_intermediates: a folder in which every stage's model is kept, or None.
        progress: called with a line of text and a fraction in 0..1.
    """

    model: ir.Model
    original: ir.Model
    source: Path
    target: Target
    output: Path
    run_folder: Path
    workdir: Path
    key: str
    task: Task
    data: Splits
    labelled: bool = False
    max_degradation: float = 0.01
    budget: Budget = Budget()
    seed: int = 0
    teacher: ir.Model | None = None
    tables: tuple[LatencyTable, ...] = ()
    peers: tuple[Candidate, ...] = ()
    masks: Mapping[str, BoolArray] = field(default_factory=dict)
    trained: Mapping[str, ir.Model] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    report: Report | None = None
    notes: tuple[str, ...] = ()
    records: tuple[PassRecord, ...] = ()
    command: str = ""
    keep_intermediates: Path | None = None
    progress: Callable[[str, float], None] = _silent

    def then(self, stage: Stage) -> State:
        """Returns the state after a stage, from the run folder where the same stage has run before."""
        key = _digest(self.key, stage.name, repr(stage))
        before = replace(self, workdir=self.run_folder / f"{stage.name}-{key}")
        after = persistence.load(before.workdir, before)
        if after is None:
            self.progress(stage.name, 0.0)
            before.workdir.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            after = stage.run(before)
            seconds = round(time.monotonic() - began, 3)
            record = PassRecord(name=stage.name, seconds=seconds, modified=after.model is not self.model)
            after = replace(after, records=(*after.records, record))
            persistence.save(before.workdir, before, after)
            if self.keep_intermediates is not None:
                path = self.keep_intermediates / f"{len(after.records):02d}-{stage.name}.onnx"
                save_model(after.model, path)
        self.progress(f"{stage.name}: done", 1.0)
        # Where a stage had to run again and gave something else, those after it run again too.
        return replace(after, key=_digest(key, persistence.digest(before.workdir)))


@dataclass(frozen=True)
class Pipeline:
    """A chain of stages.

    Args:
        stages: in the order in which they run.
    """

    stages: tuple[Stage, ...]

    def __init__(self, *stages: Stage) -> None:
        object.__setattr__(self, "stages", stages)

    def check(self) -> None:
        """Checks that each stage finds what it needs, before anything starts.

        Raises:
            LstmoptError: a stage needs what no earlier stage gives.
        """
        there = set(GIVEN)
        for stage in self.stages:
            missing = [need for need in stage.needs if need not in there]
            if missing:
                before = ", ".join(other.name for other in self.stages if other is not stage)
                raise LstmoptError(
                    f"Pipeline, stage {stage.name}",
                    f"needs {', '.join(missing)}, which no earlier stage gives (others: {before or 'none'})",
                    "put the stage that gives it before",
                )
            there.update(stage.gives)

    def run(
        self,
        model: str | Path,
        *,
        target: str | Path | Target = "local",
        output: str | Path,
        data: Any = None,
        val: Any = None,
        test: Any = None,
        task: str | None = None,
        max_degradation: float | None = None,
        budget: Budget | None = None,
        latency_tables: tuple[LatencyTable, ...] = (),
        teacher: str | Path | None = None,
        seed: int = 0,
        fresh: bool = False,
        keep_intermediates: bool = False,
        command: str = "",
        progress: Callable[[str, float], None] = _silent,
    ) -> State:
        """Runs the chain; the same call again goes on where the last one stopped.

        Args:
            model: the ONNX file.
            target: a target, its name or its TOML file.
            output: the artifact folder; intermediate results go to ``.run`` inside it.
            data: training data: an ``.npz`` file, ``module:function``, or a mapping of arrays; None
                makes inputs itself and distils.
            val: validation data in the same forms; a contiguous tenth of ``data`` where None.
            test: test data, only reported.
            task: "lm", "classify", "regress" or "distill"; found from model and data where None.
            max_degradation: the contract; 0 with labels and 0.01 without, where None.
            budget: how long training may take.
            latency_tables: measured before, instead of probing here.
            teacher: an ONNX file with the model's interface to distil from; the original where None.
            seed: seeds every random choice.
            fresh: forget the results of earlier calls.
            keep_intermediates: keep every stage's model under ``.run/intermediates``.
            command: the call that repeats this run, for the report.
            progress: called with a line of text and a fraction in 0..1.

        Returns:
            The last stage's state; its ``report`` is that of the artifact.

        Raises:
            LstmoptError: bad input, or a chain that makes no sense.
            ContractError: nothing holds the contract.
        """
        from lstmopt.tasks.prepare import prepare

        self.check()
        source, output = Path(model), Path(output)
        original = load_model(source)
        chosen = load_target(target)
        _check_target(chosen)
        run_folder = _run_folder(output)
        with _sole_owner(run_folder):
            if fresh:
                _clear(run_folder)
            prepared = prepare(
                original, task=task, data=data, val=val, test=test, seed=seed, folder=run_folder
            )
            if max_degradation is None:
                max_degradation = 0.0 if prepared.labelled else 0.01
            budget = budget or Budget()
            key = _digest(
                code_version(),
                file_digest(source),
                chosen.model_dump_json(),
                prepared.digest,
                prepared.task.name,
                repr((max_degradation, budget, seed)),
                "" if teacher is None else file_digest(Path(teacher)),
                *(table.model_dump_json() for table in latency_tables),
            )
            state = State(
                model=original,
                original=original,
                source=source,
                target=chosen,
                output=output,
                run_folder=run_folder,
                workdir=run_folder,
                key=key,
                task=prepared.task,
                data=prepared.splits,
                labelled=prepared.labelled,
                max_degradation=max_degradation,
                budget=budget,
                seed=seed,
                teacher=None if teacher is None else load_model(teacher),
                tables=latency_tables,
                notes=prepared.notes,
                command=command,
                keep_intermediates=run_folder / "intermediates" if keep_intermediates else None,
                progress=progress,
            )
            for stage in self.stages:
                state = state.then(stage)
        return state


def standard_stages(
    compression: float, scales: tuple[float, ...] | None = None, train: GrowPrune | None = None
) -> tuple[Stage, ...]:
    """Returns the stages of `lstmopt optimize`.

    Args:
        compression: times fewer non-zero recurrent weights to aim for.
        scales: hidden sizes to try, as shares of the original's; None takes the usual ones.
        train: the recipe; None takes the usual one.
    """
    from lstmopt.passes import BackOff, Export, GrowPrune, Peers, Probe, Simplify, Verify
    from lstmopt.passes.back_off import SCALES

    back_off = BackOff(SCALES if scales is None else scales, compression, train or GrowPrune())
    return Simplify(), Peers(), Probe(step=16, smallest=0.5), back_off, Export(), Verify()


def optimize(
    model: str | Path,
    *,
    output: str | Path,
    compression: float = 4.0,
    scales: tuple[float, ...] | None = None,
    train: GrowPrune | None = None,
    **options: Any,
) -> State:
    """Optimises a model with the standard stages; see `Pipeline.run` for the other options.

    Args:
        model: the ONNX file.
        output: the artifact folder.
        compression: times fewer non-zero recurrent weights to aim for.
        scales: hidden sizes to try, as shares of the original's, smallest first.
        train: the recipe of training; its density and time are set for each size.
        options: of `Pipeline.run`.

    Returns:
        The last stage's state.

    Raises:
        LstmoptError: bad input, or torch is missing.
        ContractError: nothing holds the contract.
    """
    from lstmopt.rnn.reader import require_rnns

    _check_torch()
    require_rnns(load_model(model), str(model))
    return Pipeline(*standard_stages(compression, scales, train)).run(model, output=output, **options)


class Plan(BaseModel):
    """What `--dry-run` shows."""

    model_config = ConfigDict(frozen=True)

    model: str
    target: str
    runtimes: tuple[str, ...]
    task: str
    labelled: bool
    max_degradation: float
    layers: dict[str, int]
    stages: tuple[str, ...]
    notes: tuple[str, ...]

    def render(self) -> Any:
        """Returns the shell's table."""
        from rich.table import Table

        table = Table(show_header=False)
        table.add_row("model", self.model)
        table.add_row("layers", ", ".join(f"{name}: {size} units" for name, size in self.layers.items()))
        table.add_row("target", f"{self.target}: {', '.join(self.runtimes)}")
        table.add_row("task", f"{self.task}, {'with' if self.labelled else 'without'} labels")
        table.add_row("contract", f"at most {self.max_degradation:.2%} degradation")
        table.add_row("stages", "\n".join(self.stages))
        for note in self.notes:
            table.add_row("note", note)
        return table


def plan(
    model: str | Path,
    *,
    target: str | Path | Target = "local",
    data: Any = None,
    val: Any = None,
    test: Any = None,
    task: str | None = None,
    max_degradation: float | None = None,
    compression: float = 4.0,
    scales: tuple[float, ...] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
) -> Plan:
    """Checks everything that `optimize` would read and says what it would do.

    Raises:
        LstmoptError: bad input, or torch is missing.
    """
    from lstmopt.rnn.reader import require_rnns
    from lstmopt.tasks.prepare import describe

    _check_torch()
    original, chosen = load_model(model), load_target(target)
    _check_target(chosen)
    layers = require_rnns(original, str(model))
    name, labelled, notes = describe(original, task=task, data=data, val=val, test=test)
    stages = standard_stages(compression, scales)
    Pipeline(*stages).check()
    return Plan(
        model=str(model),
        target=chosen.name,
        runtimes=tuple(f"{item.runtime} {'/'.join(item.precisions)}" for item in chosen.runtimes),
        task=name,
        labelled=labelled,
        max_degradation=(0.0 if labelled else 0.01) if max_degradation is None else max_degradation,
        layers={layer.name: layer.weights.hidden_size for layer in layers if layer.weights is not None},
        stages=tuple(repr(stage) for stage in stages),
        notes=(*notes, f"{budget or Budget()}, seed {seed}"),
    )


def _check_torch() -> None:
    """Checks, before anything is measured, that training will be possible.

    Raises:
        LstmoptError: torch is not installed.
    """
    if find_spec("torch") is None:
        raise LstmoptError(
            "torch", "not installed, and training needs it", "pip install torch, or see lstmopt doctor"
        )


def _check_target(target: Target) -> None:
    """Checks that the target has what every comparison starts from, before anything is measured.

    Raises:
        LstmoptError: an unknown runtime, or none that runs f32 here.
    """
    from lstmopt.runtimes import runtime

    engines = [(runtime(wanted.runtime), wanted.precisions) for wanted in target.runtimes]
    if not any("f32" in precisions and engine.status().usable for engine, precisions in engines):
        raise LstmoptError(
            f"target {target.name}",
            "no runtime of it runs f32 on this machine, with which everything is compared",
            "add f32 to one of its runtimes, or see lstmopt doctor",
        )


def _run_folder(output: Path) -> Path:
    """Makes ``output/.run``, checking first that it can be written."""
    folder = output / ".run"
    check_destination(output)
    try:
        recover(output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "probe").write_text("")
    except OSError as error:
        raise LstmoptError(
            str(output), f"cannot be written ({error.strerror})", "name another folder with -o"
        ) from error
    return folder.resolve()


def _clear(run_folder: Path) -> None:
    """Deletes all results; the lock, which this call holds, stays."""
    for entry in run_folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _sole_owner(run_folder: Path) -> Any:
    """Locks the run folder, so that two calls do not write the same results."""
    from filelock import FileLock, Timeout

    lock = FileLock(run_folder / LOCK)
    try:
        return lock.acquire(timeout=0)
    except Timeout as error:
        raise LstmoptError(
            str(run_folder.parent), "another lstmopt is at work there", "wait for it, or name another folder"
        ) from error


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file and of the external data beside it, hexadecimal."""
    import onnx

    digest = hashlib.sha256(path.read_bytes())
    locations = {
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in sorted(locations):
        digest.update((path.parent / location).read_bytes())
    return digest.hexdigest()


@cache
def code_version() -> str:
    """Returns a hash of this package's sources, so that results of other code are not taken for its own."""
    root = Path(lstmopt.__file__).parent
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
