"""Resize: gives layers the hidden sizes that the machine executes well, through their unit groups.

Shrinking removes the units that matter least, growing adds units that leave the function unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.groups import UnitGroup, unit_groups
from lstmopt.rnn.reader import require_rnns
from lstmopt.rnn.surgery import Resized, resize

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.measure.table import LatencyTable
    from lstmopt.pipeline import State

Feeds = dict[str, npt.NDArray[Any]]

FALLBACK_STEP = 8
"""Without a latency table, hidden sizes are multiples of it: one register of AVX2 holds 8 floats."""

CALIBRATION_CALLS = 8


@dataclass(frozen=True)
class Resize:
    """Stage: other hidden sizes.

    Args:
        hidden_size: the new size of every layer that can be resized, or of named ones; None chooses it
            from the latency tables.
        scale: without `hidden_size`, the largest share of its hidden size that a layer keeps: it gets its
            largest hysteresis point up to that.
        calibrate: whether importance is measured on the task's training inputs and the removed units'
            means are folded into biases; otherwise it comes from the weights alone.
        batch: sequences of a calibration call.
        sequence: steps of a calibration call.
    """

    hidden_size: int | Mapping[str, int] | None = None
    scale: float = 1.0
    calibrate: bool = True
    batch: int = 8
    sequence: int = 35

    name: ClassVar[str] = "resize"
    needs: ClassVar[tuple[str, ...]] = ("model",)
    gives: ClassVar[tuple[str, ...]] = ("model",)

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise LstmoptError(
                "Resize(scale)", f"{self.scale:g} is not positive", "give a share such as 0.75"
            )
        sizes = self.hidden_size
        if isinstance(sizes, Mapping):
            # A dict has no order that counts: sorted, so that equal configurations have one repr and key.
            object.__setattr__(self, "hidden_size", dict(sorted(sizes.items())))

    def run(self, state: State) -> State:
        """Returns the state with the resized model; masks end with it, since they belong to its shapes.

        Raises:
            LstmoptError: an explicit size for a layer that cannot have it.
        """
        sizes, notes = self.sizes(state.model, state.tables)
        if not sizes:
            return replace(state, notes=(*state.notes, *notes))
        calls = calibration_inputs(state, self.batch, self.sequence) if self.calibrate else []
        result = resize(state.model, sizes, seed=state.seed, calibration=calls)
        return replace(state, model=result.model, masks={}, pattern="dense", notes=(*state.notes, *notes, *_changes(result)))

    def sizes(
        self, model: ir.Model, tables: Iterable[LatencyTable] = ()
    ) -> tuple[dict[str, int], tuple[str, ...]]:
        """Returns the new hidden size of each layer that changes, and notes on those that cannot.

        Args:
            model: the graph.
            tables: latency tables; the one in which the layer is fastest counts.

        Raises:
            LstmoptError: no layer, or an unknown one is named.
        """
        require_rnns(model, "Resize")
        groups = unit_groups(model)
        if isinstance(self.hidden_size, Mapping):
            return dict(self.hidden_size), ()
        sizes: dict[str, int] = {}
        notes: list[str] = []
        tables = tuple(tables)
        for group in groups:
            if group.pinned is not None:
                notes.append(f"{', '.join(group.layers)} keeps its hidden size: {group.pinned}")
                continue
            size = self.hidden_size
            if size is None:
                size = chosen_size(group, self.scale, tables)
            if size > group.hidden_size and not group.exact:
                notes.append(f"{', '.join(group.layers)} keeps its hidden size: a normalisation reads it")
            elif size != group.hidden_size:
                sizes[group.layers[0]] = size
        return sizes, tuple(notes)


def chosen_size(group: UnitGroup, scale: float, tables: tuple[LatencyTable, ...]) -> int:
    """Returns the largest good hidden size of a group up to `scale` times its own.

    Args:
        group: layers that change together.
        scale: share of the hidden size.
        tables: latency tables of any layers, runtimes and precisions.

    Returns:
        The largest hysteresis point of the table in which the group's first layer is fastest; without a
        table, or where no point is that small, the next smaller multiple of 8 (of 1 below 8).
    """
    bound = max(1, int(scale * group.hidden_size + 1e-9))
    mine = [table for table in tables if table.layer in group.layers]
    if mine:
        best = min(mine, key=lambda table: min(table.latency(point) for point in table.points()))
        below = [point for point in best.points() if point <= bound]
        if below:
            return int(max(below))
    return bound if bound < FALLBACK_STEP else bound - bound % FALLBACK_STEP


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


def calibration_inputs(state: State, batch: int, sequence: int) -> list[Feeds]:
    """Returns a few calls on training data; states that a call does not give are zero.

    Fixed axes of the model win over `batch` and `sequence`. Without a task, random valid inputs are used.
    """
    model = state.model
    if state.task is None or state.data is None:
        return [example_inputs(model, state.seed, sizes_for(model, batch, sequence))]
    rng = np.random.default_rng(state.seed)
    items = state.task.batches(state.data.train, batch=batch, sequence=sequence, rng=rng)
    return [
        _completed(model, {name: np.asarray(array) for name, array in item.feeds.items()})
        for item in islice(items, CALIBRATION_CALLS)
    ]


def _completed(model: ir.Model, feeds: Feeds) -> Feeds:
    """Adds zeros for inputs that are not fed, with dynamic sizes taken from those that are."""
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        array = feeds.get(str(value.name))
        for size, known in zip(value.shape or (), () if array is None else array.shape, strict=False):
            if not isinstance(size, int) and size.value:
                sizes[size.value] = known
    missing = {
        name: np.zeros_like(array)
        for name, array in example_inputs(model, 0, sizes).items()
        if name not in feeds
    }
    return {**feeds, **missing}
