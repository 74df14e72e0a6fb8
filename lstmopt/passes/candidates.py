"""Builds a model for every runtime and precision of a target, and measures each as it would be deployed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from lstmopt import keys, measure
from lstmopt.errors import LstmoptError
from lstmopt.passes.elsewhere import Prediction, is_elsewhere, predict
from lstmopt.passes.formats import FormatsOf, build_in, measured_formats
from lstmopt.passes.latency import most_frequent
from lstmopt.precision import is_sparse
from lstmopt.rnn.examples import axis_roles, example_inputs, sizes_for
from lstmopt.rnn.files import save_model
from lstmopt.rnn.reader import find_rnns, recurrent_nodes
from lstmopt.rnn.recognition.quantised import has_quantised
from lstmopt.rnn.recognition.recognise import recognise
from lstmopt.runtimes import OURS, open_session, ops, runtime, stand_in
from lstmopt.runtimes.base import Deployment
from lstmopt.runtimes.onnxruntime import is_int8
from lstmopt.targets import RuntimeTarget
from lstmopt.tasks.base import (
    Degradation,
    Evaluation,
    Runner,
    Task,
    degradation,
    load_evaluation,
    save_evaluation,
)
from lstmopt.tasks.calls import InParts

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.pipeline import State
    from lstmopt.targets import Target
    from lstmopt.tasks.data import Dataset

ORIGINAL = "original"
"""What the candidates are called that are the model as the user gave it."""

NOISE = 1e-5
"""Relative difference between two correct f32 runs of one model: no degradation smaller than it is one."""

Feeds = Mapping[str, npt.NDArray[Any]]
Progress = Callable[[str, float], None]


class Candidate(BaseModel):
    """One model in one runtime and precision, measured.

    Attributes:
        name: "original", "resized" or "pruned".
        deployment: the file, and how it is loaded.
        latency: latency of one call, weighted over the target's shapes, in microseconds.
        degradation: against the original, on validation data, in this deployment; None where not measured.
        metric: the task's metric in this deployment.
        agreement: share of steps with the same top class as the original's, where that was compared.
        within_contract: whether the degradation is allowed.
        hidden_sizes: hidden size of each recurrent layer, by name.
        parameters: entries of W and R of the recurrent layers.
        nonzero_parameters: those that are not zero.
        formats: format of each layer and product that runs as a sparse op, by name.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    deployment: Deployment
    latency: measure.Timing
    degradation: Degradation | None
    metric: float | None
    agreement: float | None = None
    within_contract: bool
    hidden_sizes: dict[str, int]
    parameters: int
    nonzero_parameters: int
    formats: dict[str, str] = {}

    @property
    def title(self) -> str:
        """Name, runtime and precision in one line."""
        return f"{self.name}, {self.deployment.runtime} {self.deployment.precision}"


@dataclass(frozen=True)
class Built:
    """A model as each runtime loads it, and why some could not be built.

    Attributes:
        name: what its candidates are called.
        model: the graph.
        deployments: one a runtime and precision.
        notes: on those that could not be built.
        formats: format of each place that runs as a sparse op, by runtime and precision.
    """

    name: str
    model: ir.Model
    deployments: tuple[Deployment, ...]
    notes: tuple[str, ...]
    formats: Mapping[tuple[str, str], dict[str, str]] = field(default_factory=dict)


def build(
    name: str,
    model: ir.Model,
    target: Target,
    folder: Path,
    formats_of: FormatsOf = measured_formats,
    ahead: bool = False,
) -> Built:
    """Writes a model for every runtime x precision that the target allows and this machine can run.

    Sparse ops are built where they are faster than dense kernels for some of the weights.

    Args:
        name: what the candidates are called.
        model: the graph.
        target: runtimes and precisions.
        folder: where the files go, in a folder of that name.
        formats_of: chooses the formats of sparse ops.
        ahead: whether a target whose runtimes do not run here is written for all the same.

    Raises:
        LstmoptError: no runtime of the target can load the model.
    """
    place = folder / name
    ahead = ahead and is_elsewhere(target)
    place.mkdir(parents=True, exist_ok=True)
    source = place / "model.onnx"
    save_model(model, source)
    deployments: list[Deployment] = []
    notes: list[str] = []
    formats: dict[tuple[str, str], dict[str, str]] = {}
    choose = formats_of(model, heaviest_call(model, target, 0), target)
    calls = [feeds for _, feeds in sorted(timing_calls(model, target, 0), key=lambda call: -call[0])]
    for wanted in target.runtimes:
        engine = runtime(wanted.runtime)
        status = engine.status()
        usable = status.ahead if ahead else engine.precisions()
        if not (status.usable or (ahead and usable)):
            notes.append(f"{wanted.runtime} was left out: {status.reason}")
            continue
        known: list[dict[str, str]] = []
        for precision in wanted.precisions:
            runs = precision in usable or (is_sparse(precision) and ops.available(wanted.runtime))
            if not runs:
                absent = ops.absent(wanted.runtime) if is_sparse(precision) else ""
                note = absent or f"{wanted.runtime} does not run {precision} on this machine"
                notes += [note] if note not in notes else []
                continue
            beside = place / f"{wanted.runtime}-{precision}"
            try:
                made = build_in(
                    model, source, wanted.runtime, precision, choose, target.threads, beside, known, calls
                )
                if made is not None:
                    deployment, chosen = made
                    deployments.append(deployment)
                    known.append(chosen)
                    formats[wanted.runtime, precision] = chosen
            except LstmoptError as error:
                notes.append(f"{name} in {wanted.runtime} {precision} was left out: {error.fault}")
    if not deployments:
        raise LstmoptError(
            f"target {target.name}",
            "no runtime of it can load the model: "
            + ("; ".join(notes) or "none of its precisions runs on this machine"),
            "see lstmopt doctor",
        )
    return Built(name, model, tuple(deployments), tuple(notes), formats)


def build_peers(original: ir.Model, target: Target, folder: Path) -> Built:
    """Writes the original for every dense precision: what its users have without our ops and runtimes.

    Where the target is another machine it is written for that.

    Args:
        original: the graph.
        target: runtimes and precisions.
        folder: where the files go.

    Raises:
        LstmoptError: no runtime of the target can load the model.
    """
    dense = tuple(
        # A target that names sparse ops alone is compared with f32.
        RuntimeTarget(
            runtime=item.runtime,
            precisions=tuple(p for p in item.precisions if not is_sparse(p)) or ("f32",),
        )
        for item in target.runtimes
        if item.runtime not in OURS or all(other.runtime in OURS for other in target.runtimes)
    )
    as_given = (RuntimeTarget(runtime="onnxruntime", precisions=("f32",)),)
    absent = not any(item.runtime == "onnxruntime" for item in dense)
    if absent and has_quantised(original) and not is_elsewhere(target):
        dense += as_given  # others run its floats: the model to beat is the one that was given
    try:
        return build(ORIGINAL, original, target.model_copy(update={"runtimes": dense}), folder, ahead=True)
    except LstmoptError:
        if is_elsewhere(target) or any(item.runtime == "onnxruntime" for item in dense):
            raise
    # What no runtime of the target takes is compared with as it is.
    return build(ORIGINAL, original, target.model_copy(update={"runtimes": dense + as_given}), folder)


def timing_calls(model: ir.Model, target: Target, seed: int) -> list[tuple[float, Feeds]]:
    """Returns a share and the inputs of each shape of the target, for this model's interface."""
    total = sum(shape.weight for shape in target.shapes)
    if not recurrent_nodes(model) and "other" in axis_roles(model).values():
        model = recognise(model).model  # written-out layers do not tell which axis is that of the steps
    return [
        (
            shape.weight / total,
            example_inputs(model, seed, sizes_for(model, shape.batch, shape.sequence, shape.inputs)),
        )
        for shape in target.shapes
    ]


def heaviest_call(model: ir.Model, target: Target, seed: int) -> Feeds:
    """Returns the inputs of the target's most frequent shape."""
    return max(timing_calls(model, target, seed), key=lambda call: call[0])[1]


def compare(
    builds: Sequence[Built], target: Target, seed: int, progress: Progress, rounds: int, **options: Any
) -> measure.Comparison:
    """Times every deployment of every model, all interleaved; names are `key(name, deployment)`.

    Args:
        builds: the models.
        target: shapes and threads.
        seed: of the inputs and the order.
        progress: told how far it is.
        rounds: blocks of each.
        options: of `measure.compare`.
    """
    candidates = [
        measure.Candidate(name=key(built.name, deployment), deployment=deployment, calls=calls)
        for built in builds
        for calls in [timing_calls(built.model, target, seed)]
        for deployment in built.deployments
    ]
    return measure.compare(
        candidates, threads=target.threads, rounds=rounds, seed=seed, progress=progress, **options
    )


def timed(
    builds: Sequence[Built], state: State, rounds: int, progress: Progress | None = None, seed: int = 0,
    **options: Any,
) -> measure.Comparison | Prediction:  # fmt: skip
    """Times every deployment of every model as `compare` does; what cannot run here is predicted.

    Args:
        builds: the models.
        state: for target, seed, latency tables and progress.
        rounds: blocks of each.
        progress: told how far it is; the state's where None.
        seed: is added to the state's.
        options: of `measure.compare`.

    Raises:
        LstmoptError: the target is another machine, and the latency tables do not tell its speed.
    """
    if is_elsewhere(state.target):
        return predict(builds, state.original, state.tables, state.target)
    shown = progress or state.progress
    return compare(builds, state.target, state.seed + seed, shown, rounds, **options)


def key(name: str, deployment: Deployment) -> str:
    """Returns what a comparison calls one deployment of one model."""
    return f"{name}/{deployment.runtime}/{deployment.precision}"


def evaluate(
    deployment: Deployment,
    state: State,
    part: Dataset,
    reference: Deployment | None = None,
    *,
    cached: bool = True,
) -> Evaluation:
    """Runs a deployment over data and returns what the task makes of its outputs.

    An evaluation of the same files on the same data is taken from the run folder.

    Args:
        deployment: what is evaluated, loaded as a user would load it; where its runtime does not run here,
            what stands in for it is.
        state: for the task and the number of threads.
        part: the data.
        reference: the original, for tasks that compare with its outputs.
        cached: whether an evaluation of the same files may be taken.
    """
    against = None if reference is None or state.labelled else reference
    path = (
        state.run_folder / "evaluations" / f"{_evaluation_key(deployment, state, part, against)}.safetensors"
    )
    known = load_evaluation(path) if cached else None
    if known is not None:
        return known
    other = None if against is None else as_called(against, state.task, state.target)
    session = as_called(deployment, state.task, state.target)
    found = state.task.evaluate(session, part, reference=other)
    save_evaluation(path, found)
    return found


def as_called(deployment: Deployment, task: Task, target: Target) -> Runner:
    """Opens a deployment, or what stands in for it, so that it is called as in its use, see `InParts`."""
    session = open_session(stand_in(deployment), target.threads)
    batch = _own_batch(deployment, target)
    return session if batch is None else InParts(session, task.interface, batch)


def _own_batch(deployment: Deployment, target: Target) -> int | None:
    """Returns the batch on which a deployment's accuracy depends, or None where it does not."""
    if deployment.runtime != "onnxruntime":
        return None
    rounds = deployment.precision == "int8" or is_int8(deployment.file)
    return most_frequent(target).batch if rounds else None


def _evaluation_key(deployment: Deployment, state: State, part: Dataset, reference: Deployment | None) -> str:
    """Returns a hash of everything that an evaluation depends on."""
    digest = hashlib.sha256(keys.surroundings().encode() + part.digest().encode())
    digest.update(f"{state.task.name} {state.target.threads}".encode())
    for item in (deployment, reference):
        if item is not None:
            batch = _own_batch(item, state.target)
            digest.update(repr((item.runtime, item.precision, sorted(item.settings.items()), batch)).encode())
            for path in sorted((*item.file.parent.glob(f"{item.file.stem}.*"), *item.libraries)):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def original_deployment(state: State) -> Deployment:
    """Returns the original in ONNX Runtime's f32: what every degradation is measured against."""
    folder = state.run_folder / f"original-{keys.model_digest(state.original)[:16]}"
    source = folder / "source.onnx"
    if not source.exists():
        save_model(state.original, source)
    return runtime("onnxruntime").build(source, "f32", folder / "onnxruntime-f32")


def f32_deployment(name: str, model: ir.Model, state: State) -> Deployment:
    """Returns a model in ONNX Runtime's f32, written to the running stage's folder."""
    folder = state.workdir / name
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "model.onnx"
    save_model(model, source)
    return runtime("onnxruntime").build(source, "f32", folder / "onnxruntime-f32")


def shippable(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Returns the candidates within the contract whose model holds it in f32 too, in one runtime at least.

    What holds it in int8 alone does so by luck.
    """
    f32 = [candidate for candidate in candidates if candidate.deployment.precision == "f32"]
    broken = {c.name for c in f32} - {c.name for c in f32 if c.within_contract}
    return tuple(c for c in candidates if c.within_contract and c.name not in broken)


def scaled(candidate: Candidate, factor: float) -> Candidate:
    """Returns a candidate with its latency on the scale of another measurement.

    Args:
        candidate: measured beside some peer.
        factor: that peer's latency in the other measurement over its latency in this one.
    """
    times = ("median", "p10", "p90", "p99", "low", "high")
    latency = candidate.latency
    changes = {name: getattr(latency, name) * factor for name in times}
    return candidate.model_copy(update={"latency": latency.model_copy(update=changes)})


def assess(
    builds: Sequence[Built], comparison: measure.Comparison | Prediction, state: State
) -> tuple[Candidate, ...]:
    """Returns every deployment with its latency and its degradation on the validation data.

    Args:
        builds: models in the forms that runtimes load.
        comparison: their latencies.
        state: contract, task and data.
    """
    baseline = original_deployment(state)
    original = evaluate(baseline, state, state.data.valid, baseline)
    found = []
    for built in builds:
        layers = [layer for layer in find_rnns(recognise(built.model).model) if layer.weights is not None]
        weights = {layer.name: layer.weights for layer in layers if layer.weights is not None}
        for deployment in built.deployments:
            name = key(built.name, deployment)
            latency = comparison.timing(name)
            state.progress(f"evaluating {name}", 0.5)
            evaluation = evaluate(deployment, state, state.data.valid, baseline)
            worse = degradation(original, evaluation, state.seed)
            found.append(
                Candidate(
                    name=built.name,
                    deployment=deployment,
                    latency=latency,
                    degradation=worse,
                    metric=evaluation.metric,
                    agreement=evaluation.agreement,
                    within_contract=worse.value <= state.max_degradation + NOISE,
                    hidden_sizes={name: item.hidden_size for name, item in weights.items()},
                    parameters=sum(item.parameters for item in weights.values()),
                    nonzero_parameters=sum(item.nonzero_parameters for item in weights.values()),
                    formats=built.formats.get((deployment.runtime, deployment.precision), {}),
                )
            )
    return tuple(found)


def peers_of(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Returns the candidates that are the original."""
    return tuple(candidate for candidate in candidates if candidate.name == ORIGINAL)


def fastest_f32(peers: Sequence[Candidate]) -> Candidate:
    """Returns the fastest peer in f32.

    Raises:
        LstmoptError: there is none.
    """
    found = [peer for peer in peers if peer.deployment.precision == "f32"]
    if not found:
        raise LstmoptError(
            "the original",
            "runs in f32 in no runtime of the target, and all else is compared with that",
            "add f32 of ONNX Runtime to the target",
        )
    return min(found, key=lambda peer: peer.latency.median)


def best_peer(peers: Sequence[Candidate]) -> Candidate:
    """Returns the fastest peer of any precision within the contract; f32 always is."""
    allowed = [peer for peer in peers if peer.within_contract] or [fastest_f32(peers)]
    return min(allowed, key=lambda peer: peer.latency.median)
