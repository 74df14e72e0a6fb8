"""Measures every candidate in its runtime and writes the artifact of the fastest one allowed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lstmopt import keys
from lstmopt.errors import ContractError, LstmoptError
from lstmopt.keys import versions
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.passes import publishing, reporting
from lstmopt.passes.candidates import (
    ORIGINAL,
    Built,
    Candidate,
    assess,
    best_peer,
    build,
    build_peers,
    evaluate,
    heaviest_call,
    original_deployment,
    peers_of,
    scaled,
    shippable,
    timed,
)
from lstmopt.passes.plans import sparse_only
from lstmopt.passes.sparse_ops import RoundWeights, sparse_places
from lstmopt.passes.verify import artifact_checks, contract_check
from lstmopt.report.folder import manifest_files, write_artifact_folder
from lstmopt.report.golden import Golden, play, write_golden
from lstmopt.report.html import render_html
from lstmopt.report.manifest import state_records
from lstmopt.report.runner import run_script
from lstmopt.report.schema import Manifest, Report
from lstmopt.rnn.files import save_model
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.states import fixed_batch, state_pairs
from lstmopt.runtimes import OURS, open_session, stand_in
from lstmopt.runtimes.base import Deployment, StatefulDeployment
from lstmopt.runtimes.stateful import stateful_deployments

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.pipeline import State

PACKED = "packed"
"""What the original is called in sparse ops, where it already holds zeros, and in our runtimes: no peer."""

CLOSE = 1.2
"""How much slower than the fastest of the models that could ship one may be to be measured once more."""

UNROUNDED = "model.onnx has the weights before they were rounded for the sparse ops: in f32 only those hold"
"""A note where the rounded weights break the contract outside the sparse ops."""

GOLDEN_WINDOWS = 3
"""Calls recorded one after the other, so that states are fed back twice."""


@dataclass(frozen=True)
class Export:
    """Stage: the artifact folder.

    Args:
        rounds: blocks of the measurement that chooses.
        stateful: whether OpenVINO models that keep their states inside are written as well.

    Raises:
        LstmoptError: fewer rounds than one.
    """

    rounds: int = 30
    stateful: bool = False

    name: ClassVar[str] = "export"
    needs: ClassVar[tuple[str, ...]] = ("model", "target", "data")
    gives: ClassVar[tuple[str, ...]] = ("candidates", "report", "artifact")

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise LstmoptError("Export(rounds)", f"{self.rounds} is below 1", "give 1 or more")

    def run(self, state: State) -> State:
        """Returns the state with its candidates and report; the artifact is in place.

        Raises:
            ContractError: no candidate holds the contract; nothing was written.
            LstmoptError: the output cannot be written.
        """
        place = state.workdir / "candidates"
        builds = [build_peers(state.original, state.target, place)]
        builds += [
            build(name, model, state.target, place, ahead=True) for name, model in _contenders(state).items()
        ]
        builds += _packed(state, place)
        notes = (*state.notes, *(note for built in builds for note in built.notes if note not in state.notes))
        comparison = timed(builds, state, self.rounds)
        candidates = assess(builds, comparison, state)
        # Only what was measured now can be chosen: the files of the others are older.
        chosen = choose(candidates, state.max_degradation)
        candidates = (*candidates, *_measured_before(state, candidates))
        state = replace(state, candidates=candidates, notes=notes)
        models = {built.name: built.model for built in builds}
        try:
            self._write(state, chosen, models[chosen.name])
        except _Overtaken:
            state.progress(f"{chosen.title} was not faster than the best peer when measured again", 1.0)
            chosen = best_peer(peers_of(candidates))
            self._write(state, chosen, state.original)
        model = models[chosen.name]
        return replace(state, model=model, report=Report.load(state.output / "report.json"))

    def _write(self, state: State, chosen: Candidate, model: ir.Model) -> None:
        """Puts the artifact of a candidate in place.

        Raises:
            _Overtaken: its file is not faster than the best peer after all.
            ContractError: a file does not do what was measured.
        """
        deployed = [
            candidate
            for candidate in sorted(state.candidates, key=lambda item: item.latency.median)
            if candidate.name == chosen.name and candidate.within_contract
        ]
        deployed.sort(key=lambda candidate: candidate is not chosen)
        tested = _test(state, chosen)

        def fill(folder: Path) -> None:
            shapes = {
                name: array.shape for name, array in heaviest_call(model, state.target, state.seed).items()
            }
            placed = _place_files(folder, model, deployed, shapes)
            noted = state
            if chosen.formats and not contract_check(state, _plain(folder)).passed:
                # What was measured in f32 were the weights before they were rounded: those hold it.
                save_model(model, folder / "model.onnx")
                noted = replace(state, notes=(*state.notes, UNROUNDED))
            entries = [entry for entry, _ in placed]
            golden = _golden(state, model, [entry.inside(folder) for entry in entries])
            write_golden(folder / "golden.safetensors", golden)
            (folder / "run.py").write_text(run_script(), encoding="utf-8")
            reporting.write_latency(folder / "latency", state.tables)
            written = entries[0].inside(folder)
            again = publishing.measured_again(state, chosen, written, model, self.rounds)
            published, shipped = publishing.published(state.candidates, chosen, written, again)
            if shipped.name != ORIGINAL and again.trusted and publishing.overtaken(published, shipped, again):
                raise _Overtaken
            final = reporting.report(noted, model, published, shipped, again, tested)
            final = final.model_copy(
                update={
                    "optimized": final.optimized.model_copy(update={"file": entries[0].file.as_posix()}),
                    "cold": publishing.cold(state, published, shipped, model, self.rounds),
                }
            )
            final.save(folder / "report.json")
            page = render_html(final, reporting.curves(state.tables))
            (folder / "report.html").write_text(page, encoding="utf-8")
            stateful = self._stateful(state, model, [entry.inside(folder) for entry in entries])
            manifest = Manifest(
                files=manifest_files(folder),
                versions=versions(),
                fingerprint=fingerprint(),
                deploy=tuple(entries),
                states=state_records(model, state.original),
                threads=state.target.threads,
                stateful=tuple(item.placed(item.file.parent.relative_to(folder)) for item in stateful),
            )
            manifest.save(folder / "manifest.json")
            # Before it takes the place of an older one: what does not check is never seen there.
            for check in (*artifact_checks(folder, manifest), contract_check(state, written)):
                if not check.passed:
                    raise ContractError(str(state.output), f"{check.name}: {check.detail}", "report this")

        write_artifact_folder(fill, state.output)

    def _stateful(
        self, state: State, model: ir.Model, entries: Sequence[Deployment]
    ) -> tuple[StatefulDeployment, ...]:
        """Writes models that keep their states inside, where they are wanted."""
        if not self.stateful:
            return ()
        pairs = [(pair.input, pair.output) for pair in state_pairs(model)]
        call = heaviest_call(model, state.target, state.seed)
        return stateful_deployments(entries, pairs, call, fixed_batch(model, call), state.target.threads)


class _Overtaken(Exception):
    """What was chosen is not faster than the best peer when both are measured again."""


def _measured_before(state: State, again: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Returns the candidates that only an earlier stage measured, on the scale of the measurement of now."""
    names = {candidate.name for candidate in again}
    others = [candidate for candidate in state.candidates if candidate.name not in names]
    if not others or not state.peers:
        return tuple(others)
    best = best_peer(state.peers)
    (now,) = (c for c in peers_of(again) if c.title == best.title)
    factor = now.latency.median / best.latency.median
    return tuple(scaled(candidate, factor) for candidate in others)


def _contenders(state: State) -> dict[str, ir.Model]:
    """Returns the models that are measured to choose from beside the original, by name.

    Those that an earlier stage has measured, and that cannot ship or are far from the fastest, keep its
    figures.
    """
    measured = {candidate.name for candidate in state.candidates}
    hopeful = shippable(state.candidates)
    bound = CLOSE * min((c.latency.median for c in hopeful), default=0.0)
    close = {candidate.name for candidate in hopeful if candidate.latency.median <= bound}
    models = {name: model for name, model in state.trained.items() if name in close or name not in measured}
    if keys.model_digest(state.model) not in map(
        keys.model_digest, (state.original, *state.trained.values())
    ):
        models["optimized"] = state.model
    return models


def _packed(state: State, place: Path) -> list[Built]:
    """Returns the original in our runtimes; in sparse ops, where it holds zeros and they gain by it."""
    own = tuple(item for item in state.target.runtimes if item.runtime in OURS)
    if own and len(own) < len(state.target.runtimes):
        with suppress(LstmoptError):
            return [
                build(
                    PACKED,
                    state.original,
                    state.target.model_copy(update={"runtimes": own}),
                    place,
                    ahead=True,
                )
            ]
    sparse = sparse_only(state.target)
    if sparse is None or not sparse_places(state.original):
        return []
    with suppress(LstmoptError):  # no op is faster than the dense kernel
        return [build(PACKED, state.original, sparse, place)]
    return []


def choose(candidates: tuple[Candidate, ...], max_degradation: float) -> Candidate:
    """Returns the fastest candidate that may ship.

    Raises:
        ContractError: there is none.
    """
    allowed = shippable(candidates)
    if not allowed:
        values = [c.degradation.value for c in candidates if c.degradation is not None]
        measured = [value for value in values if math.isfinite(value)]
        raise ContractError(
            "contract",
            f"no candidate degrades by at most {max_degradation:.2%} (best: {min(measured, default=0):.2%})",
            "allow more with --max-degradation, or train longer with --budget",
        )
    return min(allowed, key=lambda candidate: candidate.latency.median)


def _test(state: State, chosen: Candidate) -> reporting.Tested | None:
    """Evaluates the original and the chosen candidate on the test data, where there are any."""
    if state.data.test is None:
        return None
    baseline = original_deployment(state)
    state.progress("evaluating the test data", 0.9)
    return reporting.Tested(
        original=evaluate(baseline, state, state.data.test, baseline).metric,
        optimized=evaluate(chosen.deployment, state, state.data.test, baseline).metric,
    )


def _place_files(
    folder: Path, model: ir.Model, deployed: list[Candidate], shapes: dict[str, tuple[int, ...]]
) -> list[tuple[Deployment, Candidate]]:
    """Writes the model files; returns what is deployed, best first.

    Paths are inside the artifact, and input shapes those of the call that was timed. ``model.onnx`` has the
    weights that the best one's sparse ops compute with, unless the caller finds that they hold there alone.
    """
    save_model(rewrite(model, RoundWeights(deployed[0].formats)), folder / "model.onnx")
    entries: list[tuple[Deployment, Candidate]] = []
    placed: dict[str, Candidate] = {}
    for candidate in deployed:
        deployment = candidate.deployment
        place = folder / deployment.runtime
        first = placed.setdefault(deployment.runtime, candidate)
        if first is candidate:
            _copy(deployment, place)
        elif deployment.runtime == "openvino" and not (first.formats or candidate.formats):
            pass  # one file serves both: the precision is a setting
        elif deployment.runtime == "onnxruntime" and deployment.precision == "f32":
            # A runtime's folder holds its fastest precision; model.onnx is there for f32.
            place = folder
        else:
            continue
        entry = deployment.placed(place.relative_to(folder)).model_copy(update={"input_shapes": shapes})
        entries.append((entry, candidate))
    return entries


def _plain(folder: Path) -> Deployment:
    """Returns how ``model.onnx`` of an artifact is loaded anywhere."""
    return Deployment(runtime="onnxruntime", file=folder / "model.onnx", precision="f32")


def _copy(deployment: Deployment, place: Path) -> None:
    """Copies a model file, what was written beside it and its libraries into a folder."""
    place.mkdir(parents=True, exist_ok=True)
    file = deployment.file
    scripts = file.parent.glob("build.sh")
    for path in (*file.parent.glob(f"{file.stem}.*"), *scripts, *deployment.libraries):
        shutil.copy(path, place / path.name)  # build.sh stays executable


def _golden(state: State, model: ir.Model, deployed: list[Deployment]) -> Golden:
    """Records what the original and each deployment answer to the same calls, states fed back."""
    pairs = [(pair.input, pair.output) for pair in state_pairs(model)]
    sources = {source for source, _ in pairs}

    def calls(graph: ir.Model) -> list[dict[str, Any]]:
        windows = [
            dict(heaviest_call(graph, state.target, state.seed + step)) for step in range(GOLDEN_WINDOWS)
        ]
        for window in windows:
            for name in sources & set(window):
                window[name][...] = 0
        return windows

    def recorded(deployment: Deployment, windows: list[dict[str, Any]]) -> tuple[Any, ...]:
        return play(open_session(stand_in(deployment), state.target.threads).run, windows, pairs)

    inputs, of_original = calls(model), calls(state.original)
    for ours, theirs in zip(inputs, of_original, strict=True):
        theirs.update({name: array for name, array in ours.items() if name not in sources})
    return Golden(
        inputs=tuple(inputs),
        original=recorded(original_deployment(state), of_original),
        optimized=tuple(recorded(deployment, inputs) for deployment in deployed),
    )
