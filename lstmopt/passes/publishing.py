"""The figures that are published: of the written file, beside all peers, warm and with empty caches.

The measurement that chose favours what was lucky in it, so another one is made of what was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lstmopt import measure
from lstmopt.passes.candidates import ORIGINAL, Built, Candidate, best_peer, key, peers_of, scaled, timed
from lstmopt.passes.elsewhere import Prediction, is_elsewhere
from lstmopt.report.schema import Cold, Interval, Latency
from lstmopt.rnn.states import state_pairs
from lstmopt.runtimes.base import Deployment

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.pipeline import State

COLD_ROUNDS = 8
"""Of the measurement with empty caches: a few seconds; it decides nothing."""


def measured_again(
    state: State, chosen: Candidate, written: Deployment, model: ir.Model, rounds: int
) -> measure.Comparison | Prediction:
    """Times the written file beside every peer.

    Args:
        state: with its candidates, the original in every precision among them.
        chosen: what ships.
        written: its file in the artifact.
        model: its graph.
        rounds: blocks of each.
    """
    deployments = [peer.deployment for peer in peers_of(state.candidates)]
    builds = _beside(state, deployments, chosen.name, written, model)
    return timed(builds, state, rounds, seed=1)


def published(
    candidates: Sequence[Candidate],
    chosen: Candidate,
    written: Deployment,
    again: measure.Comparison | Prediction,
) -> tuple[tuple[Candidate, ...], Candidate]:
    """Returns the candidates on the scale of `measured_again`, and the one that ships as written.

    Args:
        candidates: everything that was measured, on one scale.
        chosen: what ships.
        written: its file in the artifact.
        again: the last measurement; what took part in it has its latency from there, the rest is scaled
            by the best peer's.
    """
    best = best_peer(peers_of(candidates))
    factor = again.timing(key(ORIGINAL, best.deployment)).median / best.latency.median
    found, shipped = [], chosen
    for candidate in candidates:
        name = key(candidate.name, candidate.deployment)
        changes: dict[str, Any] = {"deployment": written} if candidate is chosen else {}
        if name in again.names:
            changes["latency"] = again.timing(name)
        found.append(candidate.model_copy(update=changes) if changes else scaled(candidate, factor))
        if candidate is chosen:
            shipped = found[-1]
    return tuple(found), shipped


def overtaken(
    candidates: Sequence[Candidate], shipped: Candidate, again: measure.Comparison | Prediction
) -> bool:
    """Returns whether the best peer is as fast as what would ship.

    Args:
        candidates: as published.
        shipped: one of them.
        again: the last measurement.
    """
    best = best_peer(peers_of(candidates))
    return again.ratio(key(ORIGINAL, best.deployment), key(shipped.name, shipped.deployment)).value <= 1


def cold(
    state: State, candidates: Sequence[Candidate], shipped: Candidate, model: ir.Model, rounds: int
) -> Cold | None:
    """Times the written file and the best peer with empty caches, where a call goes on from the one before.

    Args:
        state: of the run.
        candidates: as published.
        shipped: one of them, its file in the artifact.
        model: its graph.
        rounds: blocks of each, `COLD_ROUNDS` at most.

    Returns:
        None for a model that carries no states, for a target that is another machine or a GPU, whose caches
        are not those that are emptied, and where the measurement is not to be trusted.
    """
    if is_elsewhere(state.target) or state.target.device == "cuda" or not state_pairs(state.original):
        return None
    best = best_peer(peers_of(candidates))
    comparison = timed(
        _beside(state, [best.deployment], shipped.name, shipped.deployment, model),
        state,
        min(rounds, COLD_ROUNDS),
        lambda text, fraction: state.progress(f"{text} with empty caches", fraction),
        cold=True,
        attempts=1,
    )
    if not comparison.trusted:
        return None
    own, other = key(shipped.name, shipped.deployment), key(ORIGINAL, best.deployment)
    return Cold(
        optimized=Latency.model_validate(comparison.timing(own)),
        best_peer=Latency.model_validate(comparison.timing(other)),
        ratio=Interval.model_validate(comparison.ratio(other, own)),
        trusted=comparison.trusted,
    )


def _beside(
    state: State, peers: Sequence[Deployment], name: str, written: Deployment, model: ir.Model
) -> list[Built]:
    """Returns peers and the written file as what is timed; where a peer ships, its written file alone."""
    deployments = {key(ORIGINAL, peer): peer for peer in peers}
    if name == ORIGINAL:
        deployments[key(ORIGINAL, written)] = written
        return [Built(ORIGINAL, state.original, tuple(deployments.values()), ())]
    return [
        Built(ORIGINAL, state.original, tuple(deployments.values()), ()),
        Built(name, model, (written,), ()),
    ]
