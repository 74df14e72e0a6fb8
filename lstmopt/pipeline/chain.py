"""The chain that runs stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmopt import keys
from lstmopt.errors import LstmoptError
from lstmopt.pipeline.folder import clear, run_folder
from lstmopt.pipeline.state import Budget, Stage, State, silent
from lstmopt.rnn.examples import given_sizes
from lstmopt.rnn.files import load_model
from lstmopt.targets import Target, load_target

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.measure.table import LatencyTable

GIVEN = ("model", "target", "data")
"""What every chain starts with."""


@dataclass(frozen=True)
class Pipeline:
    """A chain of stages.

    Args:
        stages: in the order in which they run.

    Raises:
        LstmoptError: one of them is no stage.
    """

    stages: tuple[Stage, ...]

    def __init__(self, *stages: Stage) -> None:
        for stage in stages:
            if isinstance(stage, type):
                raise LstmoptError("Pipeline", f"{stage.__name__} is a class", f"write {stage.__name__}()")
            if not hasattr(stage, "run"):
                raise LstmoptError("Pipeline", f"{stage!r} is no stage", "give stages such as Simplify()")
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
        notes: tuple[str, ...] = (),
        progress: Callable[[str, float], None] = silent,
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
            notes: what the report has to say beside what the stages find, most important first.
            progress: called with a line of text and a fraction in 0..1.

        Returns:
            The last stage's state; its ``report`` is that of the artifact.

        Raises:
            LstmoptError: bad input, or a chain that makes no sense.
            ContractError: nothing holds the contract.
        """
        from lstmopt.passes.completion import complete
        from lstmopt.tasks.prepare import prepare

        self.check()
        source, output = Path(model), Path(output)
        original = load_model(source)
        given_teacher = None if teacher is None else load_model(teacher)
        chosen = load_target(target)
        check_target(chosen)
        check_calls(original, chosen)
        chosen, left_out = told_by(original, chosen, latency_tables)
        with run_folder(output) as folder:
            if fresh:
                clear(folder)
            prepared = prepare(original, task=task, data=data, val=val, test=test, seed=seed, folder=folder)
            if max_degradation is None:
                max_degradation = 0.0 if prepared.labelled else 0.01
            budget = budget or Budget()
            key = keys.digest(
                keys.surroundings(),
                keys.file_digest(source),
                chosen.model_dump_json(),
                prepared.digest,
                prepared.task.name,
                repr((max_degradation, budget, seed, notes)),
                "" if teacher is None else keys.file_digest(Path(teacher)),
                *(table.model_dump_json() for table in latency_tables),
            )
            state = State(
                model=original,
                original=original,
                source=source,
                target=chosen,
                output=output,
                run_folder=folder,
                workdir=folder,
                key=key,
                task=prepared.task,
                data=prepared.splits,
                labelled=prepared.labelled,
                max_degradation=max_degradation,
                budget=budget,
                seed=seed,
                teacher=given_teacher,
                tables=latency_tables,
                notes=(*notes, *prepared.notes, *left_out),
                command=command,
                keep_intermediates=folder / "intermediates" if keep_intermediates else None,
                progress=progress,
            )
            for stage in self.stages:
                state = state.then(stage)
            return complete(state)


def check_target(target: Target) -> None:
    """Checks that the target has what every comparison starts from, before anything is measured.

    Raises:
        LstmoptError: an unknown runtime, or none that runs f32 here or can be written for in it.
    """
    from lstmopt.passes.elsewhere import is_elsewhere
    from lstmopt.runtimes import runtime

    engines = [(runtime(wanted.runtime), wanted.precisions) for wanted in target.runtimes]
    if is_elsewhere(target) and any("f32" in {*item.status().ahead} & {*asked} for item, asked in engines):
        return
    if not any("f32" in precisions and engine.status().usable for engine, precisions in engines):
        raise LstmoptError(
            f"target {target.name}",
            "no runtime of it runs f32 on this machine, with which everything is compared",
            "add f32 to one of its runtimes, or see lstmopt doctor",
        )


def check_calls(model: ir.Model, target: Target) -> None:
    """Checks that the shapes that the target gives for inputs are some of the model's.

    Args:
        model: the original.
        target: whose calls are measured.

    Raises:
        LstmoptError: no such input, or a shape that is not one of it.
    """
    for shape in target.shapes:
        given_sizes(model, shape.inputs)


def told_by(
    model: ir.Model, target: Target, tables: tuple[LatencyTable, ...]
) -> tuple[Target, tuple[str, ...]]:
    """Returns, of a target that is another machine, the runtimes and precisions whose speed tables tell.

    Args:
        model: the original.
        target: any target; one whose runtimes run here stays as it is.
        tables: that were given.

    Returns:
        The target, and notes on what was left out.

    Raises:
        LstmoptError: they do not tell that of a peer in f32.
    """
    from lstmopt.passes.elsewhere import is_elsewhere, untold
    from lstmopt.passes.latency import latency_models
    from lstmopt.rnn.recognition.recognise import recognise
    from lstmopt.runtimes import OURS, runtime

    if not is_elsewhere(target):
        return target, ()
    model = recognise(model).model
    known = {found.kind[:2] for found in latency_models(model, tables, (), target)}
    pairs = [
        (item.runtime, precision)
        for item in target.runtimes
        for precision in item.precisions
        if precision in runtime(item.runtime).status().ahead
    ]
    told = [pair for pair in pairs if pair in known]
    peers = [pair for pair in told if pair[0] not in OURS] or told
    if not any(precision == "f32" for _, precision in peers):
        raise untold(model, tables, target, (peers or pairs)[0][0], "f32")
    kept = tuple(
        item.model_copy(update={"precisions": precisions})
        for item in target.runtimes
        if (precisions := tuple(p for p in item.precisions if (item.runtime, p) in told))
    )
    notes = (
        f"{name} {p} was left out: no latency table tells it" for name, p in pairs if (name, p) not in told
    )
    return target.model_copy(update={"runtimes": kept}), tuple(notes)
