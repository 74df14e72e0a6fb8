"""Tries plans from the fastest on until one holds the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lstmopt.passes.candidates import assess, best_peer, build, compare
from lstmopt.passes.grow_prune import GrowPrune
from lstmopt.passes.resize import Resize
from lstmopt.rnn.reader import find_rnns

if TYPE_CHECKING:
    from lstmopt.pipeline import State

SCALES = (0.65, 0.82, 1.0)
"""Hidden sizes that are tried, as shares of the original's; each is rounded down to a hysteresis point."""

SHARE = 0.6
"""Share of what is left of the training time that a plan gets; the last one gets all."""


@dataclass(frozen=True)
class BackOff:
    """Resizes and trains, smallest sizes first, until a candidate holds the contract and beats the peers.

    A plan that fails is kept as a candidate: the report shows it.

    Args:
        scales: hidden sizes to try, as shares of the original's, smallest first.
        compression: times fewer non-zero recurrent weights to aim for, against the original.
        train: the recipe; its density and time are set for each plan.
    """

    scales: tuple[float, ...] = SCALES
    compression: float = 4.0
    train: GrowPrune = GrowPrune()
    name: ClassVar[str] = "back-off"
    needs: ClassVar[tuple[str, ...]] = ("model", "target", "data", "peers")
    gives: ClassVar[tuple[str, ...]] = ("trained", "masks")

    def run(self, state: State) -> State:
        """Returns the state of the plan that holds, or of the last one tried."""
        original = _parameters(state)
        left = state.budget.seconds
        for number, scale in enumerate(self.scales):
            share = None if left is None else left if number == len(self.scales) - 1 else left * SHARE
            if left is not None and share is not None:
                left -= share
            after = state.then(Resize(scale=scale))
            size = _parameters(after)
            density = min(1.0, original / self.compression / size)
            plan = replace(self.train, density=density, seconds=share)
            title = f"plan {number + 1} of {len(self.scales)}"
            state.progress(f"{title}: hidden sizes {_sizes(after)}, density {density:.0%}", 0.0)
            after = after.then(plan)
            name = f"pruned-{scale:g}"
            state = replace(
                state,
                trained={**state.trained, name: after.model},
                masks=after.masks,
                records=after.records,
                notes=after.notes,
                model=state.model,
            )
            if self._holds(state, name, after):
                return replace(state, model=after.model)
        return state

    def _holds(self, state: State, name: str, after: State) -> bool:
        """Whether a candidate of the plan holds the contract, in its runtime, and beats the best peer."""
        built = build(name, after.model, state.target, state.workdir)
        comparison = compare([built], state.target, state.seed, state.progress, rounds=10)
        candidates = assess([built], comparison, state)
        goal = best_peer(state.peers).latency.median
        for candidate in candidates:
            value = "?" if candidate.degradation is None else f"{candidate.degradation.value:+.2%}"
            state.progress(f"{candidate.title}: {candidate.latency.median:.0f} us, degradation {value}", 1.0)
        return any(item.within_contract and item.latency.median < goal for item in candidates)


def _parameters(state: State) -> int:
    return sum(layer.weights.parameters for layer in find_rnns(state.model) if layer.weights is not None)


def _sizes(state: State) -> str:
    layers: Sequence[int] = [
        layer.weights.hidden_size for layer in find_rnns(state.model) if layer.weights is not None
    ]
    return ", ".join(str(size) for size in layers)
