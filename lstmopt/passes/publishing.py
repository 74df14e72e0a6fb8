"""The figures that are published: of the written file, beside the peers, warm and with empty caches.

The measurement that chose favours what was lucky in it, so another one is made of what was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lstmopt import measure
from lstmopt.passes.candidates import Built, Candidate, best_peer, compare, fastest_f32, key
from lstmopt.passes.peers import ORIGINAL
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
) -> measure.Comparison:
    """Times the written file beside the fastest f32 peer and the best one.

    Args:
        state: with its candidates, the original in every precision among them.
        chosen: what ships.
        written: its file in the artifact.
        model: its graph.
        rounds: blocks of each.
    """
    peers = _peers(state)
    rivals = (fastest_f32(peers), best_peer(peers))
    return compare(
        _beside(state, rivals, chosen, written, model), state.target, state.seed + 1, state.progress, rounds
    )


def cold(
    state: State, chosen: Candidate, written: Deployment, model: ir.Model, rounds: int
) -> Cold | None:
    """Times the written file and the best peer with empty caches, where a call goes on from the one before.

    Args:
        state: with its candidates.
        chosen: what ships.
        written: its file in the artifact.
        model: its graph.
        rounds: blocks of each, `COLD_ROUNDS` at most.

    Returns:
        None for a model that carries no states.
    """
    if not state_pairs(state.original):
        return None
    best = best_peer(_peers(state))
    comparison = compare(
        _beside(state, (best,), chosen, written, model),
        state.target,
        state.seed,
        lambda text, fraction: state.progress(f"{text} with empty caches", fraction),
        min(rounds, COLD_ROUNDS),
        cold=True,
        attempts=1,
    )
    own, other = key(chosen.name, chosen.deployment), key(ORIGINAL, best.deployment)
    return Cold(
        optimized=Latency.model_validate(comparison.timing(own)),
        best_peer=Latency.model_validate(comparison.timing(other)),
        ratio=Interval.model_validate(comparison.ratio(other, own)),
        trusted=comparison.trusted,
    )


def published(
    candidates: Sequence[Candidate], chosen: Candidate, written: Deployment, again: measure.Comparison
) -> tuple[tuple[Candidate, ...], Candidate]:
    """Returns the candidates with the latencies of `measured_again`, and the one that ships as written."""
    found, shipped = [], chosen
    for candidate in candidates:
        name = key(candidate.name, candidate.deployment)
        changes: dict[str, Any] = {"latency": again.timing(name)} if name in again.rounds else {}
        if candidate is chosen:
            changes["deployment"] = written
        found.append(candidate.model_copy(update=changes) if changes else candidate)
        if candidate is chosen:
            shipped = found[-1]
    return tuple(found), shipped


def _peers(state: State) -> list[Candidate]:
    return [candidate for candidate in state.candidates if candidate.name == ORIGINAL]


def _beside(
    state: State, rivals: Sequence[Candidate], chosen: Candidate, written: Deployment, model: ir.Model
) -> list[Built]:
    """Returns peers and the written file as what is timed; where a peer ships, its written file alone."""
    deployments = {key(ORIGINAL, peer.deployment): peer.deployment for peer in rivals}
    if chosen.name == ORIGINAL:
        deployments[key(ORIGINAL, written)] = written
        return [Built(ORIGINAL, state.original, tuple(deployments.values()), ())]
    return [
        Built(ORIGINAL, state.original, tuple(deployments.values()), ()),
        Built(chosen.name, model, (written,), ()),
    ]
