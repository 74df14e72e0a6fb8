"""Measures what each option would buy on this machine: no training, about a minute."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from lstmopt import measure
from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import available_cores, fingerprint
from lstmopt.passes.candidates import Built, build, key, timing_calls
from lstmopt.rnn.files import load_model
from lstmopt.rnn.groups import unit_groups
from lstmopt.rnn.states import state_pairs
from lstmopt.rnn.surgery import resize
from lstmopt.runtimes import RUNTIMES, open_session
from lstmopt.targets import Target, load_target

if TYPE_CHECKING:
    import onnx_ir as ir

SHARES = (0.75, 0.5)
"""Hidden sizes that are tried, as shares of the original's."""

Progress = Callable[[str, float], None]


class Option(BaseModel):
    """One thing that could be done.

    Attributes:
        name: what it is.
        runtime: where it was measured.
        precision: in which precision.
        threads: of one inference.
        latency_us: median of one call.
        speedup: latency of the model as it is in ONNX Runtime f32, over this one's.
        low: lower end of its 95% interval.
        high: upper end.
        error: relative error of the outputs against f32, or the degradation on the data where given; None
            where training has to follow.
        training: whether it needs training.
        command: what to type for it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    runtime: str
    precision: str
    threads: int
    latency_us: float
    speedup: float
    low: float
    high: float
    error: float | None
    training: bool
    command: str


class Advice(BaseModel):
    """What `lstmopt advise` has measured.

    Attributes:
        source: the model.
        cpu: the machine.
        target: the target's name.
        calls: shapes that were timed.
        error: what `Option.error` is.
        options: fastest first.
        notes: what could not be measured, and why.
        trusted: whether a model was as fast as itself within 2%.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    cpu: str
    target: str
    calls: str
    error: str
    options: tuple[Option, ...]
    notes: tuple[str, ...]
    trusted: bool

    def render(self) -> Any:
        """Returns the shell's table."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title_justify="left")
        table.add_column("option", overflow="fold")
        table.add_column("runtime")
        for column in ("threads", "latency", "speed", self.error):
            table.add_column(column, justify="right")
        table.add_column("command", overflow="fold")
        for option in self.options:
            error = (
                "after training"
                if option.training
                else "-"
                if option.error is None
                else f"{option.error:.2%}"
            )
            table.add_row(
                option.name,
                f"{option.runtime} {option.precision}",
                str(option.threads),
                f"{option.latency_us:.0f} us",
                f"{option.speedup:.2f}x ({option.low:.2f}..{option.high:.2f})",
                error,
                option.command,
            )
        head = Text(f"{self.source} on {self.cpu}, target {self.target}, {self.calls}")
        notes = [Text(f"Note: {note}") for note in self.notes]
        if not self.trusted:
            notes.insert(0, Text("The machine is too busy: these latencies are not to be trusted"))
        return Group(head, table, *notes)


@dataclass(frozen=True, eq=False)
class _Variant:
    """A model to be measured, with what a user would do for it."""

    title: str
    built: Built
    training: bool
    command: str


def advise(
    model: str | Path,
    *,
    target: str | Path | Target = "local",
    data: Any = None,
    seed: int = 0,
    progress: Progress = lambda text, fraction: None,
) -> Advice:
    """Measures the options for a model.

    Args:
        model: the ONNX file.
        target: for runtimes, precisions, threads and shapes.
        data: where given, the degradation of each dense option is measured on its last tenth.
        seed: of random inputs.
        progress: told how far it is.

    Raises:
        LstmoptError: bad input.
    """
    path = Path(model)
    original = load_model(path)
    chosen = load_target(target)
    notes = [f"{status.name}: {status.reason}" for status in (r.status() for r in RUNTIMES) if status.reason]
    with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder:
        variants = list(_variants(path, original, chosen, Path(folder), notes))
        options, trusted = _measure(variants, chosen, chosen.threads, seed, progress)
        more = len(available_cores())
        if more > chosen.threads:
            # Threads only matter for the model as it is: sessions of other models scale alike.
            wider, also = _measure(variants[:1], chosen, more, seed, progress, base=options)
            options, trusted = options + wider, trusted and also
        errors, name = _errors(variants, original, chosen, data, seed, progress)
    filled = [o.model_copy(update={"error": errors.get((o.name, o.runtime, o.precision))}) for o in options]
    notes.append(
        "sparsity: these runtimes execute zeros like other numbers; it makes the model smaller, not faster"
    )
    feeds = timing_calls(original, chosen, seed)[0][1]
    return Advice(
        source=str(path),
        cpu=fingerprint().cpu,
        target=chosen.name,
        calls=", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items()),
        error=name,
        options=tuple(sorted(filled, key=lambda option: option.latency_us)),
        notes=tuple(dict.fromkeys(notes)),
        trusted=trusted,
    )


def _variants(
    path: Path, original: ir.Model, target: Target, folder: Path, notes: list[str]
) -> Iterator[_Variant]:
    """Yields the model as it is, with static shapes, and with smaller dimensions."""
    quoted = f"'{path}'" if " " in str(path) else str(path)
    built = build("as it is", original, target, folder)
    notes.extend(built.notes)
    yield _Variant(
        "as it is",
        built,
        False,
        f"lstmopt export {quoted} --runtime {{runtime}} --format {{precision}} -o DIR",
    )
    if len(target.shapes) == 1:
        static = _static(original, target)
        if static is not None:
            yield _Variant(
                "static shapes",
                build("static shapes", static, target, folder),
                False,
                "set the model's dynamic axes to the target's shape before export",
            )
    groups = [group for group in unit_groups(original) if group.pinned is None]
    if not groups:
        notes.append("smaller dimensions: no layer of this model can be resized; lstmopt inspect says why")
        return
    for share in SHARES:
        sizes = {
            name: max(1, int(group.hidden_size * share) // 8 * 8 or 1)
            for group in groups
            for name in group.layers
        }
        title = f"hidden sizes {', '.join(str(size) for size in sizes.values())}"
        try:
            smaller = resize(original, sizes).model
        except LstmoptError as error:
            notes.append(f"{title}: {error.fault}")
            continue
        command = f"lstmopt optimize {quoted} --target {target.name} --data DATA -o DIR"
        yield _Variant(title, build(title, smaller, target, folder), True, command)


def _static(model: ir.Model, target: Target) -> ir.Model | None:
    """Returns a copy with fixed sizes, or None where nothing is dynamic."""
    import onnx_ir as ir

    feeds = timing_calls(model, target, 0)[0][1]
    if all(isinstance(size, int) for value in model.graph.inputs for size in value.shape or ()):
        return None
    copy = model.clone()
    for value in copy.graph.inputs:
        if str(value.name) in feeds:
            value.shape = ir.Shape(feeds[str(value.name)].shape)
    return copy


def _measure(
    variants: list[_Variant],
    target: Target,
    threads: int,
    seed: int,
    progress: Progress,
    base: list[Option] | None = None,
) -> tuple[list[Option], bool]:
    """Times every deployment of the variants together."""
    candidates = [
        measure.Candidate(
            key(item.title, deployment), deployment, timing_calls(item.built.model, target, seed)
        )
        for item in variants
        for deployment in item.built.deployments
    ]
    comparison = measure.compare(candidates, threads=threads, rounds=12, seed=seed, progress=progress)
    first = next(
        (
            c.name
            for c in candidates
            if c.deployment.runtime == "onnxruntime" and c.deployment.precision == "f32"
        ),
        candidates[0].name,
    )
    reference = None
    if base is not None:
        reference = next((o.latency_us * o.speedup for o in base), None)
    options = []
    for item in variants:
        for deployment in item.built.deployments:
            name = key(item.title, deployment)
            latency, ratio = comparison.timing(name), comparison.ratio(first, name)
            scale = 1.0 if reference is None else reference / comparison.timing(first).median
            options.append(
                Option(
                    name=item.title,
                    runtime=deployment.runtime,
                    precision=deployment.precision,
                    threads=threads,
                    latency_us=latency.median,
                    speedup=ratio.value * scale,
                    low=ratio.low * scale,
                    high=ratio.high * scale,
                    error=None,
                    training=item.training,
                    command=item.command.format(runtime=deployment.runtime, precision=deployment.precision),
                )
            )
    return options, comparison.trusted


def _errors(
    variants: list[_Variant], original: ir.Model, target: Target, data: Any, seed: int, progress: Progress
) -> tuple[dict[tuple[str, str, str], float], str]:
    """Returns the error of each option that needs no training, by name, runtime and precision."""
    found: dict[tuple[str, str, str], float] = {}
    dense = [(item, d) for item in variants if not item.training for d in item.built.deployments]
    truth = next((d for _, d in dense if d.precision == "f32"), dense[0][1])
    if data is None:
        calls = timing_calls(original, target, seed)
        names = [str(v.name) for v in original.graph.outputs]
        carried = {pair.output for pair in state_pairs(original)}
        real = [name for name in names if name not in carried] or names
        expected = open_session(truth, target.threads).run(calls[0][1])
        for item, deployment in dense:
            outputs = open_session(deployment, target.threads).run(calls[0][1])
            found[(item.title, deployment.runtime, deployment.precision)] = _relative(outputs, expected, real)
        return found, "error"
    from lstmopt.tasks.base import degradation
    from lstmopt.tasks.prepare import prepare

    prepared = prepare(original, task=None, data=data, val=None, test=None, seed=seed)
    baseline = open_session(truth, target.threads)
    limit = 20_000 if prepared.task.name == "lm" else 256
    start = prepared.task.evaluate(baseline, prepared.splits.valid, reference=baseline, limit=limit)
    for item, deployment in dense:
        progress(f"evaluating {item.title}, {deployment.runtime} {deployment.precision}", 0.9)
        if item.title != "as it is":
            continue
        session = open_session(deployment, target.threads)
        evaluation = prepared.task.evaluate(session, prepared.splits.valid, reference=baseline, limit=limit)
        found[(item.title, deployment.runtime, deployment.precision)] = degradation(
            start, evaluation, seed
        ).value
    return found, "degradation"


def _relative(outputs: dict[str, Any], expected: dict[str, Any], names: list[str]) -> float:
    error = scale = 0.0
    for name in names:
        truth = expected[name].astype(np.float64)
        error += float(((outputs[name].astype(np.float64) - truth) ** 2).mean())
        scale += float((truth**2).mean())
    return float(np.sqrt(error / scale)) if scale else 0.0
