"""Tries plans from the fastest on until one holds the contract."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lstmopt.errors import LstmoptError
from lstmopt.measure.kind import DENSE
from lstmopt.passes.candidates import (
    ORIGINAL,
    Built,
    assess,
    best_peer,
    build,
    evaluate,
    f32_deployment,
    key,
    scaled,
    shippable,
    timed,
)
from lstmopt.passes.grow_prune import GrowPrune
from lstmopt.passes.plans import Plan, ranked, rounding_of
from lstmopt.passes.resize import Resize
from lstmopt.rnn.reader import find_rnns

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.pipeline import State

SCALES = (0.65, 0.82, 1.0)
"""Hidden sizes that are tried, as shares of the original's; each is rounded down to a hysteresis point."""

RELAXED = (1.0, 0.5)
"""What is tried at each size, as shares of the compression: less sparsity before a larger size."""

SHARE = 0.6
"""Share of what is left of the training time that a plan gets; the last one gets all."""

GAIN = 0.95
"""A plan ends the search where the upper end of its latency's interval, over the best peer's, is below."""

TUNED, RESIZED, PRUNED = "tuned", "resized", "pruned"


@dataclass(frozen=True)
class BackOff:
    """Resizes and trains, fastest plans first, until a candidate holds the contract and beats the peers.

    A plan is a size, a pattern and a sparsity. Where the target has sparse ops, the latency of each is
    measured before any training, and the fastest comes first; otherwise the smallest size does. Every model
    on the way is a candidate that the report shows: the dense original fine-tuned by the same recipe, each
    size before it is trained, each plan. One with less sparsity than the plan before grows its weights back
    from there.

    Args:
        scales: hidden sizes to try, as shares of the original's, smallest first.
        compression: times fewer non-zero recurrent weights to aim for, against the original.
        relaxed: shares of the compression to try at each size, in this order.
        tune: share of the training time in which the dense original is fine-tuned first, by the same
            recipe, where there are labels; without a time budget it gets as many epochs as a plan. It is
            the teacher and the start of all plans if its validation loss is better. 0 leaves it out.
        train: the recipe; its density, time and pattern are set for each plan, and where it names no
            rounding that of the fastest sparse op which the target allows.
        keep_state_shape: whether state inputs and outputs keep their shapes, see `Resize`.
        together: names of layers that get one hidden size, see `Resize`.

    Raises:
        LstmoptError: a share or a compression that makes no sense.
    """

    scales: tuple[float, ...] = SCALES
    compression: float = 4.0
    relaxed: tuple[float, ...] = RELAXED
    tune: float = 0.25
    train: GrowPrune = GrowPrune()
    keep_state_shape: bool = False
    together: tuple[tuple[str, ...], ...] = ()
    name: ClassVar[str] = "back-off"
    needs: ClassVar[tuple[str, ...]] = ("model", "target", "data", "peers")
    gives: ClassVar[tuple[str, ...]] = ("trained", "masks", "candidates")

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise LstmoptError("BackOff(scales)", f"{self.scales} are not positive", "give shares like 0.8")
        if not self.relaxed or not all(0 < share <= 1 for share in self.relaxed):
            raise LstmoptError("BackOff(relaxed)", f"{self.relaxed} are not within 0..1", "give shares")
        if not 1 <= self.compression < math.inf:
            raise LstmoptError("BackOff(compression)", f"{self.compression} is below 1", "give 1 or more")
        if not 0 <= self.tune < 1:
            raise LstmoptError("BackOff(tune)", f"{self.tune} is not within 0..1", "give a share below 1")

    def run(self, state: State) -> State:
        """Returns the state of the plan that holds, or of the last one tried."""
        original = _parameters(state)
        left = state.budget.seconds
        if self.tune > 0 and state.labelled:
            state = self._tuned(state, None if left is None else left * self.tune)
            left = None if left is None else left * (1 - self.tune)
        start, sizes, plans = state, [], list[Plan]()
        patterns = self._patterns(state)
        for scale in self.scales:
            resize = Resize(scale=scale, keep_state_shape=self.keep_state_shape, together=self.together)
            resized = _based(start, state)
            try:
                resized = resized.then(resize)
            except LstmoptError as error:  # layers that cannot be resized can still be pruned
                if self.together:
                    raise
                note = f"layers keep their sizes: {error.fault}"
                resized = replace(resized, notes=tuple(dict.fromkeys((*resized.notes, note))))
            state = _with(state, resized)
            if _sizes(resized) in sizes:
                continue  # two shares of a small layer can be one size
            sizes.append(_sizes(resized))
            reached = 1.0 if _sizes(resized) == _sizes(start) else scale  # nothing may be resizable
            whole = _parameters(resized)
            densities = [min(1.0, original / (self.compression * share) / whole) for share in self.relaxed]
            if not patterns:  # no machine of the target skips zeros
                densities = [1.0] * len(self.relaxed)
            plans += [
                Plan(reached, share, pattern, resized, density, density * whole)
                for index, (share, density) in enumerate(zip(self.relaxed, densities, strict=True))
                if density not in densities[:index]
                for pattern in patterns or (DENSE,)
            ]
        plans = list(ranked(plans, state))
        trained = start
        before: Plan | None = None
        for index, plan in enumerate(plans):
            seconds = None if left is None else left if plan is plans[-1] else left * SHARE
            left = None if left is None or seconds is None else left - seconds
            state.progress(
                f"plan {index + 1} of {len(plans)}: hidden sizes {_sizes(plan.resized)}, "
                f"{plan.pattern}, density {plan.density:.0%}",
                0.0,
            )
            first = plan.scale not in {other.scale for other in plans[:index]}
            # Weights grow back from where the plan before stopped, as many as this one has more.
            onward = before is not None and before.scale == plan.scale and before.weights <= plan.weights
            recipe = (
                self._dense(seconds)
                if plan.pattern == DENSE
                else replace(
                    self.train,
                    density=plan.density,
                    pattern=plan.pattern,
                    seconds=seconds,
                    rounding=self.train.rounding or rounding_of(plan.pattern, state.target),
                )
            )
            if onward:
                recipe = replace(recipe, start_density=plan.density)
            trained = _based(trained if onward else plan.resized, state).then(recipe)
            before = plan
            models = {_title(plan, patterns): trained.model}
            if first and plan.resized.model is not start.model:
                models = {f"{RESIZED}-{plan.scale:g}": plan.resized.model, **models}
            state, holds = _assessed(_with(state, trained), models)
            if holds:
                break
        return replace(
            state,
            model=trained.model,
            masks=trained.masks,
            pattern=trained.pattern,
            rounding=trained.rounding,
        )

    def _patterns(self, state: State) -> tuple[str, ...]:
        """Returns the patterns to try: the recipe's if it names one, otherwise the target's."""
        return state.target.patterns if self.train.pattern is None else (self.train.pattern,)

    def _dense(self, seconds: float | None) -> GrowPrune:
        """Returns the recipe without pruning."""
        return replace(
            self.train,
            density=1.0,
            pattern="unstructured",
            rounding=None,
            prune_decoder=None,
            seconds=seconds,
        )

    def _tuned(self, state: State, seconds: float | None) -> State:
        """Returns the state with the dense model fine-tuned: teacher and start if it became better."""
        state.progress("fine-tuning the dense model: teacher, start and baseline of what follows", 0.0)
        after = state.then(self._dense(seconds))
        state, _ = _assessed(_with(state, after), {TUNED: after.model})

        def loss(name: str, model: ir.Model) -> float:
            return evaluate(f32_deployment(name, model, state), state, state.data.valid).loss

        now, before = loss(TUNED, after.model), loss("start", state.model)
        better = "goes on from there" if now < before else "goes on from the original: tuning was too short"
        state.progress(f"loss on all validation data {before:.4f}, fine-tuned {now:.4f}: {better}", 1.0)
        if now >= before:
            return state
        given = state.teacher
        teacher = after.model if given is None or now < loss("teacher", given) else given
        # The key goes along: what follows depends on this start and this teacher.
        return replace(state, model=after.model, teacher=teacher, key=after.key)


def _title(plan: Plan, patterns: tuple[str, ...]) -> str:
    """Returns what a plan's candidate is called: its size, and what else it does not share with the first."""
    share = "" if plan.share == 1 else f"-{plan.share:g}"
    pattern = "" if plan.pattern in (DENSE, *patterns[:1]) else f"-{plan.pattern.replace(':', '-')}"
    return f"{PRUNED}-{plan.scale:g}{share}{pattern}"


def _assessed(state: State, models: dict[str, ir.Model]) -> tuple[State, bool]:
    """Returns the state with more candidates, and whether one could ship and is faster than the best peer.

    The best peer is timed beside them: what it took an hour ago is another machine's figure.
    """
    best = best_peer(state.peers)
    goal = key(ORIGINAL, best.deployment)
    peer = Built(ORIGINAL, state.original, (best.deployment,), ())
    builds = [build(name, model, state.target, state.workdir, ahead=True) for name, model in models.items()]
    comparison = timed([peer, *builds], state, rounds=10)
    found = assess(builds, comparison, state)
    factor = best.latency.median / comparison.timing(goal).median
    for candidate in found:
        value = "?" if candidate.degradation is None else f"{candidate.degradation.value:+.2%}"
        state.progress(f"{candidate.title}: {candidate.latency.median:.0f} us, degradation {value}", 1.0)
    # By more than the noise, or a plan that is as fast as the original would end the search.
    holds = any(comparison.ratio(key(c.name, c.deployment), goal).high < GAIN for c in shippable(found))
    state = replace(
        state,
        trained={**state.trained, **models},
        candidates=(*state.candidates, *(scaled(candidate, factor) for candidate in found)),
    )
    return state, holds


def _based(start: State, state: State) -> State:
    """Returns an earlier state with what has been recorded since: what the next stage starts from."""
    return replace(start, records=state.records, notes=state.notes)


def _with(state: State, after: State) -> State:
    """Returns the state with the records and notes of a stage that has run beside it."""
    return replace(state, records=after.records, notes=after.notes)


def _parameters(state: State) -> int:
    return sum(layer.weights.parameters for layer in find_rnns(state.model) if layer.weights is not None)


def _sizes(state: State) -> str:
    return ", ".join(
        str(layer.weights.hidden_size) for layer in find_rnns(state.model) if layer.weights is not None
    )
