"""Converts a model for one runtime; the precision is chosen by measuring where it is not given."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from lstmopt import measure
from lstmopt.errors import LstmoptError
from lstmopt.keys import versions
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.passes.candidates import Feeds, timing_calls
from lstmopt.passes.formats import build_in, measured_formats, nothing_sparse
from lstmopt.passes.rewrites import FixShapes
from lstmopt.passes.sparse_ops import RoundWeights
from lstmopt.precision import SPARSE, is_sparse
from lstmopt.report.folder import MANIFEST, manifest_files, write_folder
from lstmopt.report.manifest import Manifest, state_records
from lstmopt.report.runner import run_script
from lstmopt.report.titles import runtime_title
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.proof import random_calls
from lstmopt.rnn.recognition.recognise import Recognised, float_layers
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.states import fixed_batch, state_pairs
from lstmopt.runtimes import Runtime, open_session, ops, stand_in
from lstmopt.runtimes import runtime as find_runtime
from lstmopt.runtimes.base import Deployment, Session, StatefulDeployment
from lstmopt.runtimes.stateful import stateful_deployments
from lstmopt.targets import Target, load_target

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_F32, MOST_ROUNDED = 0.01, 0.5
"""Relative error of an output in f32, and in fewer bits, that no rounding explains: the runtime misreads the
model."""

CLOSE = 1e-5
"""Share of an output's largest number by which it may differ, however little it deviates."""

OTHER_SHAPES = ((1, 1), (2, 3), (1, 7))
"""Batch and sequence of calls on which the outputs of a runtime are compared, beside the target's."""

AUTO_ERROR = 0.01
"""Root mean square error over the outputs' standard deviation that `auto` allows."""

STANDARD = "standard.onnx"
"""Beside a file for the sparse ops: the weights that they compute with, in operators of ONNX."""

AS_FLOATS = "int8 layers were written as the floats that their integers stand for; the error is against those"

Progress = Callable[[str, float], None]


class Exported(BaseModel):
    """What `lstmopt export` has written.

    Attributes:
        source: the user's file.
        deployment: the file, and how it is loaded.
        error: of its outputs against the original's in ONNX Runtime f32, over their standard deviation; where
            int8 layers were written as floats, against those.
        notes: precisions that were left out, and why.
        stateful: models that keep their states inside.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    deployment: Deployment
    error: float
    notes: tuple[str, ...] = ()
    stateful: tuple[StatefulDeployment, ...] = ()

    def render(self) -> Any:
        """Returns a few lines for the shell."""
        from rich.text import Text

        ours, truth = self.deployment, "its floats" if AS_FLOATS in self.notes else "the original"
        lines = [
            f"{ours.file}: {ours.runtime} {ours.precision}, "
            f"relative error {self.error:.1e} against {truth} in f32",
            *_loading(ours),
            *(f"register {library} with the runtime first" for library in ours.libraries),
            *([f"{STANDARD} beside it: the same weights for any other runtime"] if ours.libraries else []),
            *(f"{item.file}: the same, states inside; request.reset_state()" for item in self.stateful),
            *(f"Note: {note}" for note in self.notes),
        ]
        return Text("\n".join(lines))


def export_model(
    path: Path,
    *,
    runtime: str,
    precision: str,
    target: str | Path | Target,
    output: Path,
    progress: Progress,
    static: bool = False,
    stateful: bool = False,
) -> Exported:
    """Writes a model in the form that a runtime executes, without training.

    The folder gets the runtime's files and a ``manifest.json`` with the settings to load them with; where
    they call the sparse ops, `STANDARD` too.

    Args:
        path: the ONNX file.
        runtime: the runtime's name.
        precision: "f32", "bf16", "f16", "int8", "sparse-f32", "sparse-i16", "sparse-i8" (zeros are skipped;
            the format of each matrix is chosen by measuring), or "auto": the fastest within 1% of the
            outputs' deviation.
        target: for its shapes and threads.
        output: the folder to write.
        progress: told how far it is.
        static: fix the dynamic axes to the target's only shape.
        stateful: write an OpenVINO model that keeps its states inside as well, and `run.py`, whose
            ``Stream`` keeps them in either runtime.

    Raises:
        LstmoptError: the model cannot be converted or the output not written.
    """
    _check_output(output)
    names = ["model.xml", "model.bin"] if runtime == "openvino" else ["model.onnx"]
    _check_free(output, [*names, STANDARD] if is_sparse(precision) else names)
    model, chosen = load_model(path), load_target(target)
    if static:
        model = fixed(model, chosen)
    if stateful and not state_pairs(model):
        raise LstmoptError(str(path), "has no states that could be kept inside", "leave --stateful out")
    return convert(model, path, runtime, precision, chosen, output, progress, stateful)


def fixed(model: ir.Model, target: Target) -> ir.Model:
    """Returns a copy with the sizes of a target's call in place of dynamic axes.

    Args:
        model: the graph.
        target: has one shape.

    Raises:
        LstmoptError: the target has several shapes, or none fits the model.
    """
    if len(target.shapes) != 1:
        raise LstmoptError(
            f"--static with target {target.name}",
            f"it has {len(target.shapes)} shapes, and a static model takes one",
            "name a target with one shape",
        )
    feeds = timing_calls(model, target, 0)[0][1]
    return rewrite(model, FixShapes({name: array.shape for name, array in feeds.items()}))


def convert(
    model: ir.Model,
    path: Path,
    runtime: str,
    precision: str,
    target: Target,
    output: Path,
    progress: Progress,
    stateful: bool = False,
) -> Exported:
    """Writes a model for a runtime.

    Args:
        model: the graph.
        path: the file that it came from, for messages.
        runtime: the runtime's name.
        precision: one that the runtime has here, or "auto": the fastest of those that the model can be
            built in and that keep the real outputs within `AUTO_ERROR`; f32 where none does and it can be
            built. A runtime that does not run here and for which models can be written is not timed: f32.
        target: for its shapes and threads.
        output: the folder to write; other files there stay.
        progress: told how far it is.
        stateful: see `export_model`.

    Returns:
        The deployment, its file in ``output``, and its error, see `Exported`.

    Raises:
        LstmoptError: the runtime is not usable here, the model cannot be built in the precision or
            computes no numbers in it (for "auto": in any that is allowed), or the output cannot be written.
    """
    engine = find_runtime(runtime)
    wanted = _wanted(engine, precision)
    floats = Recognised(model)
    if runtime != "onnxruntime":  # whose own operators int8 layers are
        floats = float_layers(model)
        model = floats.model
    with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder:
        source = Path(folder) / "source.onnx"
        save_model(model, source)
        calls = timing_calls(model, target, 0)
        truth = find_runtime("onnxruntime").build(source, "f32", Path(folder) / "truth")
        original = open_session(truth, target.threads)
        expected = original.run(calls[0][1])
        others = [(calls[0][1], expected), *_other_calls(model, original)]
        built: list[tuple[Deployment, float]] = []
        faults: list[LstmoptError] = []
        choose = measured_formats(model, calls[0][1], target, progress=progress)
        known: dict[str, dict[str, str]] = {}
        for item in wanted:
            try:
                written = build_in(
                    model,
                    source,
                    runtime,
                    item,
                    choose,
                    target.threads,
                    Path(folder) / item,
                    known.values(),
                    [feeds for _, feeds in sorted(calls, key=lambda call: -call[0])],
                )
                if written is None and precision == "auto":
                    continue
                if written is None:
                    raise nothing_sparse(str(path))
                made, formats = written
                known[item] = formats
                session = open_session(stand_in(made), target.threads)
                error = relative_error(session.run(calls[0][1]), expected, real_outputs(model))
                _check_numbers(error, made)
                _check_calls(session, made, others)
                built.append((made, error))
            except LstmoptError as fault:
                # The copy that was converted is of no interest to the user, and gone.
                where = fault.where.replace(str(source), str(path))
                faults.append(LstmoptError(where, fault.fault, fault.mend))
        if not built:
            raise faults[0]
        best, error = _fastest(built, calls, target, progress) if precision == "auto" else built[0]
        if is_sparse(best.precision):
            save_model(rewrite(model, RoundWeights(known[best.precision])), best.file.parent / STANDARD)
        kept: tuple[StatefulDeployment, ...] = ()
        if stateful:
            pairs = [(pair.input, pair.output) for pair in state_pairs(model)]
            feeds = calls[0][1]
            kept = stateful_deployments([best], pairs, feeds, fixed_batch(model, feeds), target.threads)
            (best.file.parent / "run.py").write_text(run_script(), encoding="utf-8")
        manifest = Manifest(
            files=manifest_files(best.file.parent),
            versions=versions(),
            fingerprint=fingerprint(),
            deploy=(best.placed(Path()),),
            states=state_records(model, model),
            threads=target.threads,
            stateful=tuple(item.placed(Path()) for item in kept),
        )
        _check_free(output, manifest.files)
        manifest.save(best.file.parent / MANIFEST)
        stale = _written_before(output) - set(manifest.files)
        write_folder(best.file.parent, output)
        for name in stale:
            (output / name).unlink(missing_ok=True)
    return Exported(
        source=str(path),
        deployment=best.placed(output),
        error=error,
        notes=(
            *([AS_FLOATS] if floats.layers else []),
            *floats.faults,
            *_not_run(engine, best),
            *(f"left out: {fault.fault}" for fault in faults),
        ),
        stateful=tuple(item.placed(output) for item in kept),
    )


def _wanted(engine: Runtime, precision: str) -> tuple[str, ...]:
    """Returns the precisions to build, checked."""
    status = engine.status()
    known = engine.precisions() if status.usable else status.ahead
    if not known:
        raise LstmoptError(f"--runtime {engine.name}", status.reason, "see lstmopt doctor")
    if precision == "auto":
        return known if status.usable else known[:1]
    if is_sparse(precision) and (absent := ops.absent(engine.name)):
        raise LstmoptError(f"--format {precision}", absent, "see lstmopt doctor, or name a dense format")
    if precision not in known:
        raise LstmoptError(
            f"--format {precision}",
            f"{engine.name} does not run it here",
            f"use one of {', '.join(known)}",
        )
    return (precision,)


def _not_run(engine: Runtime, deployment: Deployment) -> list[str]:
    """Returns what a user should know of a model that was written for another machine."""
    status, other = engine.status(), runtime_title(stand_in(deployment).runtime)
    if status.usable:
        return []
    return [f"not run in {engine.name} ({status.reason}): the error is that of {other} on the same file"]


def _loading(deployment: Deployment) -> list[str]:
    """Returns how a file is loaded, in lines."""
    settings = ", ".join(f"{key}={value}" for key, value in deployment.settings.items())
    beside = f"(also in {MANIFEST} beside it)"
    if deployment.runtime == "tensorrt":
        return [f"made for {settings} {beside}", "build its engine with build.sh on the machine that runs it"]
    if deployment.runtime == "cudnn":
        return ["load it with lstmopt.open_artifact on the machine that runs it"]
    return [f"load it with {settings} {beside}"]


def _fastest(
    built: Sequence[tuple[Deployment, float]],
    calls: Sequence[tuple[float, Feeds]],
    target: Target,
    progress: Progress,
) -> tuple[Deployment, float]:
    """Returns the fastest deployment with an error that is allowed, f32 where none is, and its error.

    Raises:
        LstmoptError: none is allowed, and f32 is not among them.
    """
    allowed = [item for item in built if item[1] <= AUTO_ERROR]
    allowed = allowed or [item for item in built if item[0].precision == "f32"]
    if not allowed:
        errors = ", ".join(f"{made.precision} has an error of {error:.1%}" for made, error in built)
        raise LstmoptError(
            "--format auto",
            f"{errors}, over the {AUTO_ERROR:.0%} that is allowed, and f32 cannot be built",
            "name the format if that is good enough",
        )
    if len(allowed) == 1:
        return allowed[0]
    candidates = [measure.Candidate(made.precision, made, calls) for made, _ in allowed]
    comparison = measure.compare(candidates, threads=target.threads, progress=progress)
    return min(allowed, key=lambda item: comparison.timing(item[0].precision).median)


def real_outputs(model: ir.Model) -> list[str]:
    """Returns the names of a graph's outputs that are not states, of all where there are no others."""
    names = [str(value.name) for value in model.graph.outputs]
    carried = {pair.output for pair in state_pairs(model)}
    return [name for name in names if name not in carried] or names


def relative_error(
    outputs: Mapping[str, npt.NDArray[Any]], expected: Mapping[str, npt.NDArray[Any]], names: Sequence[str]
) -> float:
    """Returns the largest of the outputs' root mean square errors over their standard deviations.

    Args:
        outputs: of a call, by name.
        expected: the original's of the same call.
        names: the outputs that are compared.

    Returns:
        The error; of an output that is constant it is over the deviation of all of them, and over nothing
        where nothing deviates; of one without elements it is 0. It is NaN or infinite where a value is NaN,
        or infinite in one of both alone; the same infinity, such as the logarithm of a probability 0, is
        right.

    Raises:
        LstmoptError: an output is absent or of another shape.
    """
    errors, scales = [], []
    for name in names:
        if name not in outputs or outputs[name].shape != expected[name].shape:
            there = list(outputs[name].shape) if name in outputs else "absent"
            raise LstmoptError(
                f"output {name}",
                f"is {there} where it should be {list(expected[name].shape)}",
                "use another --runtime, and report the model",
            )
        ours, truth = outputs[name].astype(np.float64), expected[name].astype(np.float64)
        difference = np.subtract(ours, truth, out=np.zeros_like(truth), where=ours != truth)
        errors.append(float((difference**2).mean()) if difference.size else 0.0)
        finite = truth[np.isfinite(truth)]
        scales.append(float(finite.var()) if finite.size else 0.0)
    whole = sum(scales) or 1.0
    return max(float(np.sqrt(e / (s or whole))) for e, s in zip(errors, scales, strict=True))


def _check_numbers(error: float, made: Deployment) -> None:
    """Checks that an error is a number."""
    if not np.isfinite(error):
        raise LstmoptError(
            made.runtime,
            f"{made.precision} computes NaN or infinity for random inputs",
            "check the model's weights, or name another --format",
        )


def _other_calls(model: ir.Model, original: Session) -> list[tuple[Feeds, Mapping[str, npt.NDArray[Any]]]]:
    """Returns calls of other batches and lengths than the target's, with the original's outputs.

    A runtime may read a model rightly for a batch of 1, and wrongly for any other.
    """
    found: list[tuple[Feeds, Mapping[str, npt.NDArray[Any]]]] = []
    for feeds in random_calls(model, OTHER_SHAPES):
        with suppress(LstmoptError):  # the model does not take these sizes
            found.append((feeds, original.run(feeds)))
    return found


def _check_calls(
    session: Session, made: Deployment, calls: Sequence[tuple[Feeds, Mapping[str, npt.NDArray[Any]]]]
) -> None:
    """Checks that a runtime has read a model as it is meant, states among the outputs.

    Raises:
        LstmoptError: an output differs by more than rounding explains.
    """
    most = MOST_F32 if made.precision in ("f32", f"{SPARSE}f32") else MOST_ROUNDED
    for feeds, expected in calls:
        outputs = session.run(feeds)
        for name, truth in expected.items():
            if truth.dtype.kind != "f" or not np.isfinite(truth).all():
                continue
            error = relative_error(outputs, expected, [name])
            if error <= most or np.abs(outputs[name] - truth).max() <= CLOSE * np.abs(truth).max():
                continue
            shapes = ", ".join(f"{key} {list(array.shape)}" for key, array in feeds.items())
            raise LstmoptError(
                made.runtime,
                f"computes something else for this model ({made.precision}, {shapes}: "
                f"relative error {error:.1e} of {name})",
                "use another --runtime, and report the model",
            )


def _written_before(output: Path) -> set[str]:
    """Returns the names of the files that an earlier call has written into a folder."""
    manifest = output / MANIFEST
    return set(Manifest.load(manifest).files) if manifest.exists() else set()


def _check_free(output: Path, names: Iterable[str]) -> None:
    """Checks that no file of the user's is written over.

    Raises:
        LstmoptError: one is there that no earlier call has written.
    """
    ours = _written_before(output)
    for name in names:
        if (output / name).exists() and name not in ours:
            raise LstmoptError(
                str(output / name), "is there already, and not lstmopt's", "name another folder"
            )


def _check_output(output: Path) -> None:
    """Checks that files and a manifest may be written there, before any work is done.

    Raises:
        LstmoptError: it is a file, cannot be written, or holds an artifact or a manifest of somebody else.
    """
    if output.exists() and not output.is_dir():
        raise LstmoptError(str(output), "is a file", "name a folder")
    there = next(place for place in (output, *output.absolute().parents) if place.exists())
    try:
        tempfile.TemporaryDirectory(prefix=".lstmopt-", dir=there).cleanup()
    except OSError as error:
        raise LstmoptError(
            str(output), f"cannot be written ({error.strerror})", "name another folder with -o"
        ) from error
    path = output / MANIFEST
    if not path.exists():
        return
    try:
        files = Manifest.load(path).files
    except LstmoptError as error:
        raise LstmoptError(str(path), "is not lstmopt's", "name another folder") from error
    if "report.json" in files:
        raise LstmoptError(str(output), "holds an artifact of lstmopt optimize", "name another folder")
