"""Measures what each option would buy on this machine: no training, about a minute."""

from __future__ import annotations

import math
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmopt import measure
from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import available_cores, fingerprint
from lstmopt.measure.statistics import Timing
from lstmopt.passes.advice import Advice, Option
from lstmopt.passes.candidates import Built, as_called, build, key, timing_calls
from lstmopt.passes.convert import fixed, real_outputs, relative_error
from lstmopt.passes.formats import smallest_formats
from lstmopt.passes.plans import masked, sparse_only
from lstmopt.passes.resize import fallback_size
from lstmopt.rnn.examples import dynamic_axes
from lstmopt.rnn.files import load_model
from lstmopt.rnn.groups import UnitGroup, unit_groups
from lstmopt.rnn.reader import find_rnns, require_rnns
from lstmopt.rnn.recognition.recognise import recognise
from lstmopt.rnn.surgery import resize
from lstmopt.runtimes import RUNTIMES, Deployment, open_session, ops
from lstmopt.runtimes.base import RuntimeStatus
from lstmopt.targets import Target, load_target

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.tasks.prepare import Prepared

DENSITIES = (0.25, 0.125, 0.0625)
"""Densities of the LSTMs' weights that are tried in sparse ops."""

SHARES = (0.75, 0.5)
"""Hidden sizes that are tried, as shares of the original's."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Variant:
    """A model to be measured, with what a user would do for it.

    Attributes:
        title: what it is.
        built: the model as each runtime loads it.
        training: whether it needs training.
        command: what to type for a deployment of it.
    """

    title: str
    built: Built
    training: bool
    command: Callable[[Deployment], str]


def advise(
    model: str | Path,
    *,
    target: str | Path | Target = "local",
    data: Any = None,
    threads: int | None = None,
    options: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = lambda text, fraction: None,
) -> Advice:
    """Measures the options for a model.

    Args:
        model: the ONNX file.
        target: for runtimes, precisions, threads and shapes.
        data: where given, the degradation of each dense option is measured on its last tenth.
        threads: of one inference, in place of the target's.
        options: what a command of the shell needs to mean the same target, such as ``--target mine.toml
            --shape x=6x2x4``; the target's name where None.
        seed: of random inputs.
        progress: told how far it is.

    Raises:
        LstmoptError: bad input.
    """
    path = Path(model)
    original = load_model(path)
    chosen = load_target(target)
    if options is None:
        options = ("--target", chosen.name if isinstance(target, Target) else str(target))
    commands = Commands(path, options, str(data) if isinstance(data, (str, Path)) else "DATA", threads)
    if threads is not None:
        chosen = chosen.model_copy(update={"threads": threads})
    prepared = None
    if data is not None:  # before anything is measured
        from lstmopt.tasks.prepare import prepare

        prepared = prepare(original, task=None, data=data, val=None, test=None, seed=seed)
    statuses = [status for status in (r.status() for r in RUNTIMES) if status.reason]
    notes = [f"{status.name}: {status.reason}" for status in statuses]
    said = {line for status in statuses for line in _less(status)}
    with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder:
        found = list(variants(original, chosen, Path(folder), notes, commands))
        comparison = _compare(found, chosen, chosen.threads, seed, progress)
        rows, trusted = rated(found, comparison, chosen.threads), comparison.trusted
        more = len(available_cores())
        if more > chosen.threads:
            # Threads only matter for the model as it is: sessions of other models scale alike.
            wide = [replace(found[0], command=replace(commands, threads=more).export())]
            wider = _compare(wide, chosen, more, seed, progress)
            reference = comparison.timing(_reference(found))
            rows, trusted = rows + rated(wide, wider, more, reference), trusted and wider.trusted
        errors, name = _errors(found, original, chosen, prepared, seed, notes, progress)
    filled = [o.model_copy(update={"error": errors.get((o.name, o.runtime, o.precision))}) for o in rows]
    feeds = timing_calls(original, chosen, seed)[0][1]
    return Advice(
        source=str(path),
        cpu=fingerprint().cpu,
        target=chosen.name,
        calls=", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items()),
        error=name,
        options=tuple(sorted(filled, key=lambda option: option.latency_us)),
        notes=tuple(note for note in dict.fromkeys(notes) if note not in said),
        trusted=trusted,
    )


def _less(status: RuntimeStatus) -> list[str]:
    """Returns what `build` notes of a runtime, and its status says better."""
    absent = re.findall(r"no (\w+):", status.reason)
    left_out = [f"{status.name} does not run {precision} on this machine" for precision in absent]
    return [f"{status.name} was left out: {status.reason}", *left_out]


@dataclass(frozen=True)
class Commands:
    """What to type for an option.

    Attributes:
        path: the model.
        target: options that name the target.
        data: what stands for the training data.
        threads: of one inference, where they are not the target's.
    """

    path: Path
    target: Sequence[str]
    data: str = "DATA"
    threads: int | None = None

    def export(self, *more: str) -> Callable[[Deployment], str]:
        """Returns the call that writes the model in the form of a deployment."""
        return lambda item: self._call("export", "--runtime", item.runtime, "--format", item.precision, *more)

    def optimize(self, *more: str) -> Callable[[Deployment], str]:
        """Returns the call that trains; it finds runtime and precision by itself."""
        return lambda item: self._call("optimize", "--data", self.data, *more)

    def _call(self, verb: str, *more: str) -> str:
        threads = () if self.threads is None else ("--threads", str(self.threads))
        return shlex.join(["lstmopt", verb, str(self.path), *more, *self.target, *threads, "-o", "DIR"])


def variants(
    original: ir.Model, target: Target, folder: Path, notes: list[str], commands: Commands
) -> Iterator[Variant]:
    """Yields the model as it is, with static shapes, with sparse weights, and with smaller dimensions.

    Args:
        original: the graph.
        target: runtimes, precisions and shapes.
        folder: where the built files go.
        notes: gets a line for each thing that cannot be done.
        commands: what to type.

    Raises:
        LstmoptError: it has no LSTM or GRU.
    """
    recognised = recognise(original)
    if not find_rnns(recognised.model):
        require_rnns(recognised.model, str(commands.path))

    def built(title: str, model: ir.Model) -> Built:
        found = build(title, model, target, folder)
        notes.extend(found.notes)
        return found

    yield Variant("as it is", built("as it is", original), False, commands.export())
    if len(target.shapes) == 1 and dynamic_axes(original):
        try:
            static = built("static shapes", fixed(original, target))
            yield Variant("static shapes", static, False, commands.export("--static"))
        except LstmoptError as error:
            notes.append(f"static shapes: {error.fault}")
    notes.extend(recognised.notes)
    layered = recognised.model
    yield from _sparse_variants(layered, target, folder, notes, commands)
    groups = [group for group in unit_groups(layered) if group.pinned is None]
    if not groups:
        notes.append("smaller dimensions: no layer of this model can be resized; lstmopt inspect says why")
        return
    for share, sizes in smaller_sizes(groups).items():
        title = f"hidden sizes {', '.join(str(size) for size in sizes.values())}"
        try:
            smaller = built(title, resize(layered, sizes).model)
        except LstmoptError as error:
            notes.append(f"{title}: {error.fault}")
            continue
        command = commands.optimize("--scale", f"{share:.0%}")
        yield Variant(title, smaller, True, command)


def _sparse_variants(
    original: ir.Model, target: Target, folder: Path, notes: list[str], commands: Commands
) -> Iterator[Variant]:
    """Yields the model with most of its LSTM weights cut, in sparse ops: as fast as a trained one."""
    sparse = sparse_only(target)
    if sparse is None:
        reasons = [note for item in target.runtimes if (note := ops.absent(item.runtime))]
        notes.append(
            "sparsity: dense kernels execute zeros like other numbers; "
            + ("; ".join(reasons) or f"the sparse ops of lstmopt are not in target {target.name}")
        )
        return
    for density in DENSITIES:
        title = f"{1 / density:.0f}x fewer LSTM or GRU weights"
        try:
            cut = masked(original, target.pattern, density)
            found = build(title, cut, sparse, folder, smallest_formats)
        except LstmoptError as error:
            notes.append(f"{title}: {error.fault}")
            return
        command = commands.optimize("--compression", f"{1 / density:g}")
        yield Variant(title, found, True, command)


def smaller_sizes(groups: Sequence[UnitGroup]) -> dict[float, dict[str, int]]:
    """Returns hidden sizes by layer for each share of `SHARES` that gives others than those before.

    Args:
        groups: layers that change together, in the sizes that they have.
    """
    seen = [{name: group.hidden_size for group in groups for name in group.layers}]
    found: dict[float, dict[str, int]] = {}
    for share in SHARES:
        sizes = {name: fallback_size(group, share) for group in groups for name in group.layers}
        if sizes not in seen:
            seen.append(sizes)
            found[share] = sizes
    return found


def _compare(
    found: Sequence[Variant], target: Target, threads: int, seed: int, progress: Progress
) -> measure.Comparison:
    """Times every deployment of the variants together."""
    candidates = []
    for item in found:
        calls = timing_calls(item.built.model, target, seed)
        candidates += [measure.Candidate(key(item.title, d), d, calls) for d in item.built.deployments]
    return measure.compare(candidates, threads=threads, rounds=12, seed=seed, progress=progress)


def rated(
    found: Sequence[Variant],
    comparison: measure.Comparison,
    threads: int,
    reference: Timing | None = None,
) -> list[Option]:
    """Returns a row for each deployment of the variants.

    Args:
        found: the variants, the model as it is first.
        comparison: their latencies, by `candidates.key`.
        threads: of one inference.
        reference: the latency that speeds are over, where another comparison has it; None takes this one's
            of the model as it is in ONNX Runtime f32 (without one: in the first deployment).
    """
    rows = []
    for item, deployment in _pairs(found):
        name = key(item.title, deployment)
        own = comparison.timing(name)
        if reference is None:
            ratio = comparison.ratio(_reference(found), name)
            speedup, low, high = ratio.value, ratio.low, ratio.high
        else:  # measured at another time: nothing cancels
            speedup, low, high = (
                reference.median / own.median,
                reference.low / own.high,
                reference.high / own.low,
            )
        rows.append(
            Option(
                name=item.title,
                runtime=deployment.runtime,
                precision=deployment.precision,
                threads=threads,
                latency_us=own.median,
                speedup=speedup,
                low=low,
                high=high,
                error=None,
                training=item.training,
                command=item.command(deployment),
            )
        )
    return rows


def _pairs(found: Sequence[Variant]) -> list[tuple[Variant, Deployment]]:
    return [(item, deployment) for item in found for deployment in item.built.deployments]


def _reference(found: Sequence[Variant]) -> str:
    """Returns the name of what speeds are over."""
    pairs = [(key(item.title, each), each) for item, each in _pairs(found)]
    ours = (name for name, d in pairs if (d.runtime, d.precision) == ("onnxruntime", "f32"))
    return next(ours, pairs[0][0])


def _errors(
    found: Sequence[Variant],
    original: ir.Model,
    target: Target,
    prepared: Prepared | None,
    seed: int,
    notes: list[str],
    progress: Progress,
) -> tuple[dict[tuple[str, str, str], float], str]:
    """Returns the error of each option that needs no training, by name, runtime and precision."""
    errors: dict[tuple[str, str, str], float] = {}
    dense = [(item, d) for item in found if not item.training for d in item.built.deployments]
    truth = next((d for _, d in dense if d.precision == "f32"), dense[0][1])
    if prepared is None:
        calls = timing_calls(original, target, seed)
        real = real_outputs(original)
        expected = open_session(truth, target.threads).run(calls[0][1])
        for item, deployment in dense:
            outputs = open_session(deployment, target.threads).run(calls[0][1])
            try:
                error = relative_error(outputs, expected, real)
            except LstmoptError:  # outputs of another shape
                error = math.inf
            errors[(item.title, deployment.runtime, deployment.precision)] = error
        return errors, "error"
    from lstmopt.tasks.base import degradation

    baseline = as_called(truth, prepared.task, target)
    limit, unit = (20_000, "tokens") if prepared.task.name == "lm" else (256, "examples")
    notes.append(f"degradation: on at most {limit:,} {unit} of the validation data; optimize takes all of it")
    start = prepared.task.evaluate(baseline, prepared.splits.valid, reference=baseline, limit=limit)
    for item, deployment in dense:
        if item.title != "as it is":
            continue
        progress(f"evaluating {item.title}, {deployment.runtime} {deployment.precision}", 0.9)
        session = as_called(deployment, prepared.task, target)
        evaluation = prepared.task.evaluate(session, prepared.splits.valid, reference=baseline, limit=limit)
        worse = degradation(start, evaluation, seed)
        errors[(item.title, deployment.runtime, deployment.precision)] = worse.value
    return errors, "degradation"
