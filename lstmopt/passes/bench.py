"""Compares the latency of any models: ONNX files, OpenVINO IRs, artifact folders."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lstmopt import measure
from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.passes.candidates import Feeds, build, timing_calls
from lstmopt.report.schema import Manifest
from lstmopt.rnn.files import load_model
from lstmopt.rnn.states import state_pairs
from lstmopt.runtimes.base import Deployment
from lstmopt.targets import Shape, Target, load_target


class BenchRow(BaseModel):
    """One candidate."""

    model_config = ConfigDict(frozen=True)

    name: str
    runtime: str
    precision: str
    latency_us: measure.Timing
    ratio: measure.Ratio | None


class BenchResult(BaseModel):
    """What `lstmopt bench` has measured; ratios are the first candidate's latency over each one's."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    threads: int
    rows: tuple[BenchRow, ...]
    aa: measure.Ratio
    trusted: bool
    discarded: int

    def render(self) -> Any:
        """Returns the shell's table."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("model", "runtime")
        for column in ("p50", "p90", "p99", "speed over the first"):
            table.add_column(column, justify="right")
        for row in self.rows:
            took, ratio = row.latency_us, row.ratio
            speed = f"{ratio.value:.3f}x ({ratio.low:.3f}..{ratio.high:.3f})" if ratio else "not published"
            table.add_row(
                row.name,
                f"{row.runtime} {row.precision}",
                f"{took.median:.1f} us",
                f"{took.p90:.1f} us",
                f"{took.p99:.1f} us",
                speed,
            )
        line = f"{self.cpu}, {self.threads} thread(s); the first against itself: {self.aa.value:.3f}"
        return Group(
            table, Text(line if self.trusted else f"{line}: the machine is too busy to publish ratios")
        )


def bench(
    models: Sequence[Path],
    *,
    target: str | Path | Target = "local",
    rounds: int = 30,
    cold: bool = False,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> BenchResult:
    """Times models against each other.

    An ONNX file is timed in every runtime and precision of the target, an OpenVINO IR as the manifest
    beside it says (f32 without one), an artifact or an export in each entry of its ``deploy`` list, all
    on the target's calls.

    Args:
        models: the files or folders.
        target: for runtimes, precisions, threads and shapes.
        rounds: blocks of each candidate.
        cold: whether the caches are emptied before each call.
        seed: of the order and of random inputs.
        progress: told how far it is.

    Raises:
        LstmoptError: something that is none of these, or models that cannot take the same calls.
    """
    chosen = load_target(target)
    with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder:
        found = [
            item
            for index, path in enumerate(models)
            for item in _candidates(Path(path), index, chosen, Path(folder), seed)
        ]
        _check_shapes(found)
        candidates = [item.candidate for item in found]
        comparison = measure.compare(
            candidates, threads=chosen.threads, rounds=rounds, cold=cold, seed=seed, progress=progress
        )
    first = candidates[0].name
    rows = tuple(
        BenchRow(
            name=named.path,
            runtime=item.deployment.runtime,
            precision=item.deployment.precision,
            latency_us=comparison.timing(item.name),
            ratio=comparison.ratio(first, item.name) if comparison.trusted else None,
        )
        for named in found
        for item in [named.candidate]
    )
    return BenchResult(
        cpu=fingerprint().cpu,
        threads=chosen.threads,
        rows=rows,
        aa=comparison.aa,
        trusted=comparison.trusted,
        discarded=comparison.discarded,
    )


@dataclass(frozen=True, eq=False)
class _Named:
    """A candidate, the path that was given, and its inputs that are states; None where no file tells."""

    path: str
    candidate: measure.Candidate
    states: frozenset[str] | None


def _candidates(path: Path, index: int, target: Target, folder: Path, seed: int) -> list[_Named]:
    """Returns what a file or folder deploys, all of it on the calls of the target."""

    def named(deployment: Deployment, calls: Sequence[tuple[float, Feeds]]) -> measure.Candidate:
        name = f"{index}#{path}|{deployment.runtime}|{deployment.precision}|{deployment.file.name}"
        return measure.Candidate(name, deployment, calls)

    if path.suffix == ".xml":
        return [_Named(str(path), _ir(_described(path), target, seed, named), None)]
    manifest = Manifest.load(path / "manifest.json") if path.is_dir() else None
    if manifest is not None and not (path / "model.onnx").is_file():
        # What `lstmopt export` wrote for OpenVINO holds no ONNX file: its IRs tell their inputs.
        states = frozenset(state.input for state in manifest.states)
        return [
            _Named(str(path), _ir(entry, target, seed, named), states) for entry in manifest.deployments(path)
        ]
    model = load_model(path / "model.onnx" if manifest is not None else path)
    calls = timing_calls(model, target, seed)
    states = frozenset(pair.input for pair in state_pairs(model))
    entries = (
        build(str(index), model, target, folder).deployments
        if manifest is None
        else manifest.deployments(path)
    )
    return [_Named(str(path), named(entry, calls), states) for entry in entries]


def _check_shapes(candidates: Sequence[_Named]) -> None:
    """Checks that inputs of one name have one shape everywhere: fixed axes do not follow the target.

    States may differ, and so may an IR's inputs that are states elsewhere.

    Raises:
        LstmoptError: two candidates would be timed on calls of different size.
    """
    known = [item.states for item in candidates if item.states is not None]
    states = frozenset[str]().union(*known)
    seen: dict[str, tuple[list[tuple[int, ...]], str]] = {}
    for item in candidates:
        if not known:
            return  # IRs do not say which inputs are states
        path = item.path
        for name in item.candidate.calls[0][1].keys() - states:
            shapes = [feeds[name].shape for _, feeds in item.candidate.calls]
            before, where = seen.setdefault(name, (shapes, path))
            if shapes != before:
                raise LstmoptError(
                    path,
                    f"its input {name} has shape {list(shapes[0])}, that of {where} {list(before[0])}",
                    "compare models that take the same calls",
                )


def _described(path: Path) -> Deployment:
    """Returns how an IR is loaded: as a manifest beside it says, otherwise in f32.

    Raises:
        LstmoptError: there is no such file, or the manifest is damaged.
    """
    if not path.is_file():
        raise LstmoptError(str(path), "no such file", "check the path")
    for folder in (path.parent, path.parent.parent):
        if (folder / "manifest.json").is_file():
            for entry in Manifest.load(folder / "manifest.json").deployments(folder):
                if entry.file.resolve() == path.resolve():
                    return entry
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    return Deployment(runtime="openvino", file=path.resolve(), precision="f32", settings=settings)


def _ir(
    deployment: Deployment, target: Target, seed: int, named: Callable[..., measure.Candidate]
) -> measure.Candidate:
    """Returns a candidate for an OpenVINO IR on random inputs; of two dynamic axes the first is time."""
    import numpy as np

    from lstmopt.runtimes import open_session

    inputs = open_session(deployment, target.threads).inputs
    rng = np.random.default_rng(seed)

    def feeds(shape: Shape) -> Feeds:
        found = {}
        for info in inputs:
            free = [axis for axis, size in enumerate(info.shape) if size is None]
            sizes = [size or shape.batch for size in info.shape]
            if len(free) == 2:
                sizes[free[0]] = shape.sequence
            floating = np.issubdtype(info.dtype, np.floating)
            array = rng.standard_normal(sizes) if floating else np.zeros(sizes)
            found[info.name] = array.astype(info.dtype)
        return found

    total = sum(shape.weight for shape in target.shapes)
    return named(deployment, [(shape.weight / total, feeds(shape)) for shape in target.shapes])
