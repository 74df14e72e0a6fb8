"""Turns candidates and their comparison into the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmopt import measure
from lstmopt.keys import versions
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.table import stems
from lstmopt.passes.candidates import NOISE, ORIGINAL, Candidate, best_peer, fastest_f32, key, timing_calls
from lstmopt.passes.elsewhere import Prediction
from lstmopt.passes.formats import DENSE
from lstmopt.passes.trained import follows, pattern_of
from lstmopt.report.plots import Curve
from lstmopt.report.schema import (
    CandidateRecord,
    Contract,
    HiddenSize,
    Interval,
    Latency,
    LstmRecord,
    Measurement,
    Metric,
    Optimized,
    Peer,
    Ratios,
    Report,
    Size,
    Speedup,
)
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.recognition.recognise import recognise
from lstmopt.rnn.states import state_pairs
from lstmopt.runtimes import stand_in

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.measure.table import LatencyTable
    from lstmopt.pipeline import State

KEPT_INTERRUPTED = "the machine was busy: some interrupted rounds had to be kept in the latencies"


@dataclass(frozen=True)
class Tested:
    """The metric on test data, which decided nothing."""

    original: float
    optimized: float


def report(
    state: State,
    model: ir.Model,
    candidates: Sequence[Candidate],
    chosen: Candidate,
    comparison: measure.Comparison | Prediction,
    tested: Tested | None,
) -> Report:
    """Returns the report of an artifact.

    Args:
        state: of the run.
        model: the graph of what ships.
        candidates: everything that was measured, the original in every precision among it.
        chosen: what ships.
        comparison: the measurement that they all took part in, or what stands in for it.
        tested: metric on test data.
    """
    peers = [candidate for candidate in candidates if candidate.name == ORIGINAL]
    f32, best = fastest_f32(peers), best_peer(peers)
    before, after = size(state.original, f32), size(model, chosen)
    worse = chosen.degradation
    assert worse is not None
    # What degradations are against; without it, of the first peer.
    baseline = [c for c in peers if (c.deployment.runtime, c.deployment.precision) == ("onnxruntime", "f32")]
    reference = (baseline or peers)[0].metric
    own = key(chosen.name, chosen.deployment)
    return Report(
        target=state.target,
        calls=_calls(state),
        fingerprint=fingerprint(),
        versions=versions(),
        peers=tuple(_peer(peer) for peer in peers),
        fastest_f32=peers.index(f32),
        best_peer=peers.index(best),
        original=before,
        optimized=Optimized(
            **after.model_dump(),
            name=chosen.name,
            runtime=chosen.deployment.runtime,
            precision=chosen.deployment.precision,
            file=chosen.deployment.file.name,
            latency_us=_latency(chosen),
            metric=Metric(name=state.task.metric, original=reference, optimized=chosen.metric),
        ),
        ratios=Ratios.of(_speedup(comparison, f32, own), _speedup(comparison, best, own), before, after),
        lstms=_lstms(state, model, chosen),
        contract=Contract(
            kind="labels" if state.labelled else "fidelity",
            metric=_loss_name(state),
            max_degradation=state.max_degradation,
            degradation=Interval(value=worse.value, low=worse.low, high=worse.high),
            met=worse.value <= state.max_degradation + NOISE,
            data=f"validation data, {worse.n} blocks",
            made_inputs=state.data.made,
            n=worse.n,
            agreement=chosen.agreement,
        ),
        passes=state.records,
        candidates=tuple(_record(candidate, chosen) for candidate in candidates),
        test=None
        if tested is None
        else Metric(name=state.task.metric, original=tested.original, optimized=tested.optimized),
        measurement=None
        if isinstance(comparison, Prediction)
        else Measurement(
            aa=_interval(comparison.aa),
            trusted=comparison.trusted,
            discarded=comparison.discarded,
            kept_interrupted=comparison.kept_interrupted,
        ),
        notes=(
            *_stood_in(chosen),
            *state.notes,
            *([KEPT_INTERRUPTED] if comparison.kept_interrupted else []),
        ),
        seed=state.seed,
        command=state.command,
        source=state.source.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _stood_in(chosen: Candidate) -> list[str]:
    """Returns what a user should know of a file whose runtime does not run here."""
    other = stand_in(chosen.deployment).runtime
    if other == chosen.deployment.runtime:
        return []
    return [f"{chosen.deployment.runtime} does not run here: all outputs are those of {other} on its file"]


def _loss_name(state: State) -> str:
    if state.task.name == "lm":
        return "cross-entropy" if state.labelled else "cross-entropy under the original"
    # What the degradation is of: for `regress` the square error, whose root is the metric.
    return {"classify": "cross-entropy", "regress": "mean square error"}.get(
        state.task.name, "relative rmse of the outputs"
    )


def size(model: ir.Model, candidate: Candidate) -> Size:
    """Returns how large a model is, and the file that a candidate loads."""
    arrays = [
        np.asarray(value.const_value.numpy())
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    ]
    return Size(
        parameters=candidate.parameters,
        nonzero_parameters=candidate.nonzero_parameters,
        bytes=_bytes(candidate),
        model_parameters=sum(array.size for array in arrays),
        model_nonzero_parameters=sum(int(np.count_nonzero(array)) for array in arrays),
    )


def _bytes(candidate: Candidate) -> int:
    """Returns the bytes of what a candidate's runtime loads."""
    file = candidate.deployment.file
    return sum(path.stat().st_size for path in file.parent.glob(f"{file.stem}.*"))


def _lstms(state: State, model: ir.Model, chosen: Candidate) -> tuple[LstmRecord, ...]:
    original = find_rnns(recognise(state.original).model)
    before = {layer.name: layer.weights for layer in original if layer.weights is not None}
    records = []
    pattern = _pattern(state, model)
    for layer in find_rnns(recognise(model).model):
        old, new = before.get(layer.name), layer.weights
        if old is None or new is None:
            continue
        density = new.nonzero_parameters / new.parameters
        records.append(
            LstmRecord(
                name=layer.name,
                hidden_size=HiddenSize(before=old.hidden_size, after=new.hidden_size),
                pattern="dense" if density > 0.999 else pattern,
                density=density,
                input_size=HiddenSize(before=old.input_size, after=new.input_size),
                format=chosen.formats.get(layer.name, DENSE),
            )
        )
    return tuple(records)


def _pattern(state: State, model: ir.Model) -> str:
    """Returns the pattern of what ships: the narrowest that its zeros follow."""
    found = pattern_of(model)
    # Rounding makes further zeros; the pattern that was trained may still hold them.
    kept = found == "unstructured" and state.pattern != DENSE and follows(model, state.pattern)
    return state.pattern if kept else found


def _speedup(comparison: measure.Comparison | Prediction, peer: Candidate, own: str) -> Speedup:
    """Returns a peer's latency over the chosen candidate's; nothing where it is not known."""
    if not comparison.trusted:
        return Speedup()
    return Speedup.model_validate(comparison.ratio(key(ORIGINAL, peer.deployment), own))


def _interval(value: Any) -> Interval:
    return Interval(value=value.value, low=value.low, high=value.high)


def _latency(candidate: Candidate) -> Latency:
    return Latency.model_validate(candidate.latency.model_dump(include=set(Latency.model_fields)))


def _calls(state: State) -> tuple[str, ...]:
    """Returns what was fed in each measured call; a model's own sizes come before the target's."""
    states = {pair.input for pair in state_pairs(state.original)}
    return tuple(
        ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items() if name not in states)
        for _, feeds in timing_calls(state.original, state.target, state.seed)
    )


def _peer(candidate: Candidate) -> Peer:
    return Peer(
        runtime=candidate.deployment.runtime,
        precision=candidate.deployment.precision,
        latency_us=_latency(candidate),
        degradation=None if candidate.degradation is None else candidate.degradation.value,
        agreement=candidate.agreement,
        within_contract=candidate.within_contract,
        bytes=_bytes(candidate),
    )


def _record(candidate: Candidate, chosen: Candidate) -> CandidateRecord:
    worse = candidate.degradation
    return CandidateRecord(
        **dict(_peer(candidate)),
        name=candidate.name,
        degradation_interval=_interval(worse) if worse is not None and math.isfinite(worse.value) else None,
        hidden_sizes=candidate.hidden_sizes,
        density=candidate.nonzero_parameters / max(1, candidate.parameters),
        shipped=candidate is chosen,
    )


def curves(tables: Sequence[LatencyTable]) -> list[Curve]:
    """Returns what the report's plots of latency against hidden size show."""
    return [
        Curve(
            title=f"{table.layer}, {table.kind.title}",
            latency_us={d: table.latency(d) for d in table.dimensions},
            samples=table.samples,
            points=table.points(),
            bins=table.bins(),
        )
        for table in tables
    ]


def write_latency(folder: Path, tables: Sequence[LatencyTable]) -> None:
    """Writes each table as JSON and as a picture."""
    from lstmopt.measure.probe import plot_table

    for stem, table in zip(stems(tables), tables, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        table.save(folder / f"{stem}.json")
        plot_table(table, folder / f"{stem}.png")
