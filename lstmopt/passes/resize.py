"""Resize: gives layers the hidden sizes that the machine executes well, through their unit groups.

Shrinking removes the units that matter least, growing adds units that leave the function unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose
from typing import TYPE_CHECKING, ClassVar

from lstmopt.errors import LstmoptError
from lstmopt.measure.hysteresis import LEAST_STEP
from lstmopt.measure.kind import DENSE
from lstmopt.passes.calibration import calibration_inputs
from lstmopt.passes.candidates import best_peer
from lstmopt.passes.latency import LatencyModel, combinations, latency_models
from lstmopt.rnn.groups import UnitGroup, analyse, fixed_sizes
from lstmopt.rnn.reader import require_rnns
from lstmopt.rnn.surgery import Resized, resize

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.measure.table import LatencyTable
    from lstmopt.passes.candidates import Candidate
    from lstmopt.pipeline import State
    from lstmopt.targets import Target

FALLBACK_STEP = 8
"""Without a latency table, hidden sizes are multiples of it: one register of AVX2 holds 8 floats."""

LARGEST_SCALE = 4.0
"""Growing further is taken for a slip, such as 75 for 75%."""


@dataclass(frozen=True)
class Resize:
    """Stage: other hidden sizes.

    Args:
        hidden_size: the new size of every layer that can be resized, or of named ones; None chooses it
            from the latency tables.
        scale: without `hidden_size`, the largest share of its hidden size that a layer gets: it gets its
            largest hysteresis point up to that. Above 1 it grows, and at 1 too where a larger point is as
            fast.
        speed: instead of `scale`, how many times faster than the best peer the whole model is to be: of
            all combinations of hysteresis points that are, by the latency model, the one whose narrowest
            layer keeps most of its units, and of several that with the most weights.
        precision: only latency tables of this precision count, such as "sparse-i8"; None: of any.
        pattern: of sparse tables, only those of this pattern count; None: of any.
        density: of sparse tables, only those of this density count: that which the layers will be pruned
            to; None: of any.
        calibrate: whether importance is measured on the task's training inputs and the removed units'
            means are folded into biases; otherwise it comes from the weights alone.
        batch: sequences of a calibration call.
        sequence: steps of a calibration call.
        keep_state_shape: whether state inputs and outputs keep the shapes that callers know, with zeros
            where a unit is gone; layers with states then only shrink.
        together: names of layers that get one hidden size, the largest of those chosen for them.
    """

    hidden_size: int | Mapping[str, int] | None = None
    scale: float = 1.0
    speed: float | None = None
    precision: str | None = None
    pattern: str | None = None
    density: float | None = None
    calibrate: bool = True
    batch: int = 8
    sequence: int = 35
    keep_state_shape: bool = False
    together: tuple[tuple[str, ...], ...] = ()

    name: ClassVar[str] = "resize"
    needs: ClassVar[tuple[str, ...]] = ("model",)
    gives: ClassVar[tuple[str, ...]] = ("model",)

    def __post_init__(self) -> None:
        if not 0 < self.scale <= LARGEST_SCALE:
            raise LstmoptError(
                "Resize(scale)",
                f"{self.scale:g} is not above 0, up to {LARGEST_SCALE:g}",
                "give a share such as 0.75",
            )
        if self.speed is not None and not self.speed > 0:
            raise LstmoptError("Resize(speed)", f"{self.speed:g} is not positive", "give a ratio such as 1.5")
        sizes = self.hidden_size
        for size in sizes.values() if isinstance(sizes, Mapping) else (sizes,):
            if size is not None and size < 1:
                raise LstmoptError("Resize(hidden_size)", f"{size} is below 1", "give 1 or more")
        if isinstance(sizes, Mapping):
            # A dict has no order that counts: sorted, so that equal configurations have one repr and key.
            object.__setattr__(self, "hidden_size", dict(sorted(sizes.items())))

    def run(self, state: State) -> State:
        """Returns the state with the resized model; masks end with it, since they belong to its shapes.

        Raises:
            LstmoptError: an explicit size for a layer that cannot have it.
        """
        sizes, notes = self.sizes(state.model, state.tables, state.target, state.peers)
        notes = tuple(note for note in notes if note not in state.notes)
        if not sizes:
            return replace(state, notes=(*state.notes, *notes))
        calls = calibration_inputs(state, self.batch, self.sequence) if self.calibrate else []
        result = resize(
            state.model, sizes, seed=state.seed, calibration=calls, keep_states=self.keep_state_shape
        )
        return replace(
            state,
            model=result.model,
            masks={},
            pattern="dense",
            rounding=None,
            notes=(*state.notes, *notes, *_changes(result), *_state_notes(state.model, result.model)),
        )

    def sizes(
        self,
        model: ir.Model,
        tables: Sequence[LatencyTable] = (),
        target: Target | None = None,
        peers: Sequence[Candidate] = (),
    ) -> tuple[dict[str, int], tuple[str, ...]]:
        """Returns the new hidden size of each layer that changes, and notes on those that cannot.

        Args:
            model: the graph.
            tables: latency tables; those that fit the layers and the target count.
            target: for runtimes, precisions, threads and shape; without it no table counts.
            peers: the original, measured.

        Raises:
            LstmoptError: no layer, or an unknown one is named.
        """
        require_rnns(model, "Resize")
        if isinstance(self.hidden_size, Mapping):
            return dict(self.hidden_size), ()
        analysis = analyse(model)
        notes = fixed_sizes(analysis.groups)
        free = [group for group in analysis.groups if group.pinned is None]
        if self.hidden_size is not None:
            wanted = [self.hidden_size] * len(free)
        else:
            counted = [table for table in tables if self._counts(table)]
            models = () if target is None else latency_models(model, counted, peers, target)
            if not models and tables:
                notes.append("the latency tables do not cover the model's layers: sizes are multiples of 8")
            if self.speed is None:
                wanted = chosen_sizes(free, self.scale, models)
            else:
                wanted, told = sizes_for_speed(free, self.speed, models, peers)
                notes.append(told)
        sizes: dict[str, int] = {}
        wanted = self._joined(analysis.groups, free, wanted)
        for group, size in zip(free, wanted, strict=True):
            if size > group.hidden_size and not group.exact:
                notes.append(f"{', '.join(group.layers)} keeps its hidden size: a normalisation reads it")
            elif size > group.hidden_size and group.interface and self.keep_state_shape:
                notes.append(f"{', '.join(group.layers)} keeps its hidden size: its states keep their shapes")
            elif size != group.hidden_size:
                sizes[group.layers[0]] = size
        return sizes, tuple(notes)

    def _joined(
        self, groups: Sequence[UnitGroup], free: Sequence[UnitGroup], wanted: Sequence[int]
    ) -> list[int]:
        """Returns the sizes with those made equal that have to be: where a layer cannot change, none does."""
        joined = list(wanted)
        for names in self.together:
            mine = [index for index, group in enumerate(free) if set(names) & set(group.layers)]
            fixed = [g.hidden_size for g in groups if g.pinned is not None and set(names) & set(g.layers)]
            for index in mine:
                joined[index] = fixed[0] if fixed else max(wanted[other] for other in mine)
        return joined

    def _counts(self, table: LatencyTable) -> bool:
        """Whether a table is of what the model is to be executed as."""
        asked = self.pattern in (None, table.pattern) and (
            self.density is None or isclose(self.density, table.density, rel_tol=1e-5)
        )
        return self.precision in (None, table.precision) and (asked or table.pattern == DENSE)


def chosen_sizes(groups: Sequence[UnitGroup], scale: float, models: Sequence[LatencyModel]) -> list[int]:
    """Returns the largest good hidden size of each group up to `scale` times its own.

    Args:
        groups: layers that change together.
        scale: share of the hidden size.
        models: latency models; the one in which the result is fastest counts.

    Returns:
        For each group the largest hysteresis point up to the share; at the share 1, the next larger point
        where the group's own size lies in its bin, so is not faster. Without a model, or where no point is
        that small, the next smaller multiple of 8 (of 1 below 8).
    """
    proposals = [
        (model.predict(_by_layer(groups, sizes)), sizes)
        for model in models
        for sizes in [[_point(group, scale, model) for group in groups]]
    ]
    if proposals:
        return min(proposals, key=lambda item: item[0])[1]
    return [fallback_size(group, scale) for group in groups]


def _bound(group: UnitGroup, scale: float) -> int:
    return max(1, int(scale * group.hidden_size + 1e-9))


def fallback_size(group: UnitGroup, scale: float) -> int:
    """Returns the hidden size for a share of a group's own that nothing is measured about.

    Args:
        group: layers that change together.
        scale: share of the hidden size.

    Returns:
        The next smaller multiple of `FALLBACK_STEP`, of 1 below it.
    """
    bound = _bound(group, scale)
    return bound if bound < FALLBACK_STEP else bound - bound % FALLBACK_STEP


def _point(group: UnitGroup, scale: float, model: LatencyModel) -> int:
    """Returns a group's hysteresis point for a share of its hidden size."""
    bound, own = _bound(group, scale), group.hidden_size
    table = model.tables[group.layers[0]]
    points = table.points()
    # Read from the right, a size that is no point is in the bin of the point above it.
    above = min((point for point in points if point >= own), default=None)
    # Where little can be told bins are wide: growing is not to cost more than a size is worth.
    bearable = (1 + LEAST_STEP) * table.latency(own)
    if bound == own and group.exact and above is not None and table.latency(above) <= bearable:
        return above
    return max((point for point in points if point <= bound), default=fallback_size(group, scale))


def sizes_for_speed(
    groups: Sequence[UnitGroup],
    speed: float,
    models: Sequence[LatencyModel],
    peers: Sequence[Candidate],
) -> tuple[list[int], str]:
    """Returns the combination of hysteresis points that is fast enough and keeps most, and a note.

    What keeps most is what leaves the narrowest layer the largest share of its units, since one narrow
    layer spoils what the others keep; and of several that with the most weights.

    Args:
        groups: layers that change together.
        speed: times faster than the best peer.
        models: latency models; any of them may be the fast one.
        peers: the original, measured; without them the fastest prediction for it counts.

    Returns:
        A hidden size for each group, of the fastest combination where none is fast enough.

    Raises:
        LstmoptError: there is no latency model.
    """
    if not models:
        raise LstmoptError(
            "Resize(speed)", "no latency tables cover the model's layers", "put Probe before, or give scale"
        )
    own = [group.hidden_size for group in groups]
    best = (
        best_peer(peers).latency.median
        if peers
        else min(model.predict(_by_layer(groups, own)) for model in models)
    )
    found: list[tuple[float, tuple[float, int], list[int], str]] = []
    for model in models:
        choices = [_choices(group, model.tables[group.layers[0]]) for group in groups]
        for sizes in combinations(choices):
            layers = _by_layer(groups, sizes)
            kept = min(size / group.hidden_size for size, group in zip(sizes, groups, strict=True))
            value = kept, model.parameters(layers)
            found.append((model.predict(layers), value, list(sizes), model.title))
    enough = [item for item in found if item[0] <= best / speed]
    latency, _, chosen, title = (
        max(enough, key=lambda item: (item[1], -item[0])) if enough else min(found, key=lambda item: item[0])
    )
    told = f"hidden sizes {', '.join(map(str, chosen))}: {latency:.0f} us predicted in {title}"
    wanted = f"{best / speed:.0f} us wanted"
    return chosen, f"{told}, {wanted}" if enough else f"{told}, the fastest there is; {wanted}"


def _choices(group: UnitGroup, table: LatencyTable) -> list[int]:
    """Returns the hidden sizes that a group may have: its hysteresis points."""
    return [point for point in table.points() if point <= group.hidden_size or group.exact]


def _by_layer(groups: Sequence[UnitGroup], sizes: Sequence[int]) -> dict[str, int]:
    return {name: size for group, size in zip(groups, sizes, strict=True) for name in group.layers}


def _changes(result: Resized) -> tuple[str, ...]:
    return tuple(
        f"{name}: {before} to {result.after[name]} hidden units"
        + (
            f", {result.kept_importance[name]:.1%} of their importance kept"
            if result.after[name] < before
            else ""
        )
        for name, before in result.before.items()
        if result.after[name] != before
    )


def _state_notes(before: ir.Model, after: ir.Model) -> tuple[str, ...]:
    """Returns what callers have to know of the states: their new shapes."""
    old = {str(value.name): _shape(value) for value in (*before.graph.inputs, *before.graph.outputs)}
    changed = [
        f"{value.name} {_shape(value)}, was {old[str(value.name)]}"
        for value in (*after.graph.inputs, *after.graph.outputs)
        if _shape(value) != old.get(str(value.name), _shape(value))
    ]
    return (f"states have new shapes: {'; '.join(changed)}",) if changed else ()


def _shape(value: ir.Value) -> str:
    sizes = [str(size) if isinstance(size, int) else size.value or "?" for size in value.shape or ()]
    return f"[{', '.join(sizes)}]"
