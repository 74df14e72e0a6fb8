"""What `--dry-run` shows: the input checked, and what would be done."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from lstmopt.pipeline.chain import Pipeline, check_target, told_by
from lstmopt.pipeline.standard import check_torch, standard_stages
from lstmopt.pipeline.state import Budget
from lstmopt.rnn.files import load_model
from lstmopt.targets import Target, load_target

if TYPE_CHECKING:
    from lstmopt.measure.table import LatencyTable
    from lstmopt.passes.back_off import BackOff


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
    back_off: BackOff | None = None,
    trained: str | Path | None = None,
    budget: Budget | None = None,
    latency_tables: tuple[LatencyTable, ...] = (),
    seed: int = 0,
) -> Plan:
    """Checks everything that `optimize` would read and says what it would do.

    Raises:
        LstmoptError: bad input, hidden units that cannot be followed, or torch is missing.
    """
    from lstmopt.passes import Trained
    from lstmopt.passes.candidates import timing_calls
    from lstmopt.rnn.groups import fixed_sizes, unit_groups
    from lstmopt.rnn.reader import require_rnns
    from lstmopt.rnn.recognition.recognise import recognise
    from lstmopt.tasks.prepare import describe

    if trained is None:
        check_torch()
    original, chosen = load_model(model), load_target(target)
    check_target(chosen)
    timing_calls(original, chosen, seed)  # that the model runs on the target's shapes
    chosen, left_out = told_by(original, chosen, latency_tables)
    recognised = recognise(original).model
    layers = require_rnns(recognised, str(model))
    fixed = fixed_sizes(unit_groups(recognised))
    name, labelled, notes = describe(original, task=task, data=data, val=val, test=test)
    stages = standard_stages(back_off, trained)
    for stage in stages:
        if isinstance(stage, Trained):
            stage.check(load_model(stage.path), original, Path(model).name)
    Pipeline(*stages).check()
    return Plan(
        model=str(model),
        target=chosen.name,
        runtimes=tuple(f"{item.runtime} {'/'.join(item.precisions)}" for item in chosen.runtimes),
        task=name,
        labelled=labelled,
        max_degradation=(0.0 if labelled else 0.01) if max_degradation is None else max_degradation,
        layers={layer.name: layer.weights.hidden_size for layer in layers if layer.weights is not None},
        stages=tuple(_brief(stage) for stage in stages),
        notes=(
            *notes,
            *left_out,
            *fixed,
            *((_limit(budget or Budget()),) if trained is None else ()),
            f"seed {seed}",
        ),
    )


def _brief(stage: Any) -> str:
    """Returns a stage's name, with the settings that are not its defaults."""
    if not is_dataclass(stage) or isinstance(stage, type):
        return repr(stage)
    told = []
    for field in fields(stage):
        value = getattr(stage, field.name)
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.repr and value != made:
            told.append(f"{field.name}={_brief(value)}")
    return f"{type(stage).__name__}({', '.join(told)})" if told else type(stage).__name__


def _limit(budget: Budget) -> str:
    if budget.seconds is not None:
        return f"all training ends after {budget.seconds:g} s"
    if budget.steps is not None:
        return f"each training ends after {budget.steps} steps"
    return "each training ends after its passes over the data: there is no --budget"
