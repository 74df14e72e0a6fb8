"""Plans of training: size, pattern and sparsity, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from lstmopt import keys
from lstmopt.errors import LstmoptError
from lstmopt.passes.candidates import Built, build, compare, key
from lstmopt.passes.formats import smallest_formats
from lstmopt.precision import is_sparse
from lstmopt.report.document import Document
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.writer import write_weights
from lstmopt.runtimes import ops
from lstmopt.sparsity.formats import FORMATS
from lstmopt.sparsity.patterns import parse_pattern
from lstmopt.sparsity.precisions import allowed_formats, suits
from lstmopt.targets import RuntimeTarget, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.pipeline import State

CLOSE = 1.2
"""Of plans whose latencies are within this factor of one another the one with the most weights is tried
first; of as many weights the one with the largest size, then the one that another can go on from."""

ALIKE = 0.98
"""What share of weights counts as many."""

ROUNDS = 5


@dataclass(frozen=True, eq=False)
class Plan:
    """One training.

    Attributes:
        scale: hidden sizes, as a share of the original's.
        share: share of the compression.
        pattern: which masks are legal.
        resized: the state before it.
        density: of its LSTMs' weights.
        weights: LSTM weights that are not zero.
        latency_us: what its weights would take before any training, in the fastest runtime and precision;
            None where it was not measured.
    """

    scale: float
    share: float
    pattern: str
    resized: State
    density: float
    weights: float
    latency_us: float | None = None


class Latencies(Document):
    """What plans would take, by their number, in microseconds."""

    latency_us: dict[int, float]


def sparse_only(target: Target) -> Target | None:
    """Returns a target with the sparse precision alone that allows most; None where this machine has none."""
    found = []
    for item in target.runtimes:
        usable = filter(is_sparse, item.precisions) if ops.available(item.runtime) else ()
        precisions = sorted(usable, key=lambda name: len(allowed_formats(name)))
        if precisions:
            found.append(RuntimeTarget(runtime=item.runtime, precisions=(precisions[-1],)))
    return target.model_copy(update={"runtimes": tuple(found)}) if found else None


def rounding_of(pattern: str, target: Target) -> str | None:
    """Returns the format of the fastest sparse op for a pattern on a target; None where it has none here.

    Args:
        pattern: which masks are legal.
        target: its sparse precisions.
    """
    sparse = sparse_only(target)
    if sparse is None:
        return None
    precisions = {precision for item in sparse.runtimes for precision in item.precisions}
    allowed = {name for precision in precisions for name in allowed_formats(precision)}
    fitting = [f for f in FORMATS.values() if f.name in allowed and suits(f, parse_pattern(pattern))]
    return max(fitting, key=lambda item: item.error).name if fitting else None


def masked(model: ir.Model, pattern: str, density: float) -> ir.Model:
    """Returns a copy whose LSTM weights are cut to a density by magnitude: as fast as one that was trained.

    Args:
        model: the graph.
        pattern: which masks are legal.
        density: share of all LSTM weights that stays.
    """
    copy = model.clone()
    layers = [layer for layer in find_rnns(copy) if layer.supported and layer.weights is not None]
    scores = {
        f"{layer.name}/{kind}/{direction}": np.abs(each)
        for layer in layers
        if layer.weights is not None
        for kind, matrix in zip("wr", layer.weights.matrices, strict=True)
        for direction, each in enumerate(matrix)
    }
    masks = parse_pattern(pattern).masks(scores, density)
    for layer in layers:
        assert layer.weights is not None
        w, r = (
            np.stack(
                [each * masks[f"{layer.name}/{kind}/{direction}"] for direction, each in enumerate(matrix)]
            )
            for kind, matrix in zip("wr", layer.weights.matrices, strict=True)
        )
        write_weights(copy, layer, replace(layer.weights, w=w, r=r))
    return copy


def ranked(plans: Sequence[Plan], state: State) -> tuple[Plan, ...]:
    """Returns plans with their latencies, measured before any training, fastest first.

    What a plan will degrade by is not known before it is trained, and it falls with the number of weights:
    of plans that are equally fast the one with the most is tried first, and the others only after it.

    Args:
        plans: in the order in which they are tried where latency does not tell.
        state: for target and seed.
    """
    sparse = sparse_only(state.target)
    if sparse is None or len(plans) < 2:
        return tuple(plans)
    # A small model may be faster in the dense kernel, whose latency its size alone decides.
    both = tuple(
        item.model_copy(update={"precisions": ("f32", *item.precisions)}) for item in sparse.runtimes
    )
    target = sparse.model_copy(update={"runtimes": both})
    # Kept: close plans would change places when a call goes on, and what was trained be trained anew.
    parts = [f"{keys.model_digest(p.resized.model)} {p.pattern} {p.density}" for p in plans]
    name = keys.digest(keys.surroundings(), target.model_dump_json(), *parts)
    kept = state.run_folder / "plans" / f"{name}.json"
    took = Latencies.load(kept).latency_us if kept.is_file() else _latencies(plans, target, state)
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        Latencies(latency_us=took).save(kept)
    measured = [replace(plans[index], latency_us=latency) for index, latency in took.items()]
    return (*in_order(measured), *(plan for index, plan in enumerate(plans) if index not in took))


def _latencies(plans: Sequence[Plan], target: Target, state: State) -> dict[int, float]:
    """Measures the plans' models in the fastest runtime; those that no sparse op gains by are left out."""
    with TemporaryDirectory(prefix="lstmopt-") as folder:
        builds: dict[int, Built] = {}
        for index, plan in enumerate(plans):
            state.progress(f"latency of plan {index + 1} of {len(plans)}", index / len(plans))
            cut = masked(plan.resized.model, plan.pattern, plan.density)
            with suppress(LstmoptError):  # too dense for a sparse op to be of use
                builds[index] = build(str(index), cut, target, Path(folder), smallest_formats)
        if not builds:
            return {}
        found = list(builds.values())
        comparison = compare(found, target, state.seed, state.progress, ROUNDS, attempts=1, processes=1)
    return {
        index: min(comparison.timing(key(built.name, d)).median for d in built.deployments)
        for index, built in builds.items()
    }


def in_order(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """Returns measured plans, fastest first, of close ones the one with the most weights and units first."""
    rest = sorted(plans, key=lambda plan: plan.latency_us or 0.0)
    found: list[Plan] = []
    while rest:
        bound = CLOSE * (rest[0].latency_us or 0.0)
        close = [plan for plan in rest if (plan.latency_us or 0.0) <= bound]
        most = max(plan.weights for plan in close)
        best = max(
            (p for p in close if p.weights > ALIKE * most), key=lambda plan: (plan.scale, -plan.weights)
        )
        found.append(best)
        rest.remove(best)
    return tuple(found)
