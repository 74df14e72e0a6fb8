"""What a stage is, and the state that stages hand on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from lstmopt import keys, persistence
from lstmopt.errors import LstmoptError
from lstmopt.report.schema import PassRecord
from lstmopt.rnn.files import save_model
from lstmopt.targets import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.measure.table import LatencyTable
    from lstmopt.passes.candidates import Candidate
    from lstmopt.report.schema import Report
    from lstmopt.tasks.base import Task
    from lstmopt.tasks.data import Splits

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Budget:
    """How long training may take; both None: the recipe's own number of epochs.

    Attributes:
        seconds: wall-clock seconds of all training together.
        steps: optimiser steps of one training.

    Raises:
        LstmoptError: both are given, or one that is not above 0.
    """

    seconds: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and self.steps is not None:
            raise LstmoptError("Budget", "seconds and steps exclude each other", "give one of them")
        for name in ("seconds", "steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise LstmoptError(f"Budget({name})", f"{value} is not above 0", "give a number above 0")


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


def silent(text: str, fraction: float) -> None:
    """Shows nothing."""


class Stopwatch:
    """Times stages that may run others inside them: each one's seconds are those that no inner one took.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._inside = [0.0]

    @contextmanager
    def span(self) -> Iterator[Callable[[], float]]:
        """Gives a function that returns, once the span is over, its seconds without those of inner spans."""
        began, own = self._clock(), 0.0
        self._inside.append(0.0)
        try:
            yield lambda: own
        finally:
            whole = self._clock() - began
            own = whole - self._inside.pop()
            self._inside[-1] += whole


@dataclass(frozen=True, eq=False, repr=False)
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
        tables: latency tables of the probe, each for one layer and what it is executed as.
        peers: the original as users would deploy it today, measured.
        masks: weights that may be non-zero, by initializer name, in the initializer's layout.
        pattern: of those masks; "dense" where there are none.
        rounding: format whose weights the pruned LSTMs hold exactly, or None.
        trained: models that the passes have produced, by name, each a candidate.
        candidates: every model x runtime x precision that was built and measured.
        report: the report of the artifact that was written.
        notes: what the user should know, most important first.
        records: the stages that have run.
        command: the call that repeats the run.
        keep_intermediates: a folder in which every stage's model is kept, or None.
        progress: called with a line of text and a fraction in 0..1.
        stopwatch: times the stages.
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
    pattern: str = "dense"
    rounding: str | None = None
    trained: Mapping[str, ir.Model] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    report: Report | None = None
    notes: tuple[str, ...] = ()
    records: tuple[PassRecord, ...] = ()
    command: str = ""
    keep_intermediates: Path | None = None
    progress: Callable[[str, float], None] = silent
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def __repr__(self) -> str:
        # Without the data and the weights, which are megabytes.
        ran = ", ".join(record.name for record in self.records)
        return f"State({self.source.name}, target {self.target.name}, after: {ran or 'nothing'})"

    def then(self, stage: Stage) -> State:
        """Returns the state after a stage, from the run folder where the same stage has run before."""
        key = keys.digest(self.key, stage.name, repr(stage))
        before = replace(self, workdir=self.run_folder / f"{stage.name}-{key}")
        after = persistence.load(before.workdir, before)
        if after is None:
            self.progress(stage.name, 0.0)
            before.workdir.mkdir(parents=True, exist_ok=True)
            with self.stopwatch.span() as seconds:
                after = stage.run(before)
            record = PassRecord(
                name=stage.name, seconds=round(seconds(), 3), modified=after.model is not self.model
            )
            after = replace(after, records=(*after.records, record))
            persistence.save(before.workdir, before, after)
        if self.keep_intermediates is not None:
            save_model(after.model, self.keep_intermediates / f"{len(after.records):02d}-{stage.name}.onnx")
        self.progress(f"{stage.name}: done", 1.0)
        # Where a stage had to run again and gave something else, those after it run again too.
        return replace(after, key=keys.digest(key, persistence.digest(before.workdir)))
