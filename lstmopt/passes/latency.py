"""The model of latency: what a model costs is the rest plus the sum of its layers' ``L(input, hidden)``.

It only chooses between combinations of hidden sizes; what is chosen is measured again whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from lstmopt.errors import LstmoptError
from lstmopt.measure.kind import DENSE, Kind
from lstmopt.measure.table import LatencyTable
from lstmopt.rnn.cells import CELLS, LSTM
from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.groups import analyse
from lstmopt.rnn.reader import X

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.passes.candidates import Candidate
    from lstmopt.rnn.groups import Analysis
    from lstmopt.targets import Shape, Target

GATES = {cell.kind: len(cell.gates) for cell in CELLS}

COMBINATIONS = 50_000
"""Most combinations of hidden sizes that are looked at; with more, every other size is left out."""


@dataclass(frozen=True)
class Layer:
    """What of a layer its latency depends on; layers that are alike are measured once.

    Attributes:
        name: of its node.
        hidden_size: hidden units of a direction.
        input_size: features of a step, or None where they are hidden units as many as its own.
        directions: 1 or 2.
        cell: its kind, as ONNX calls it.
        reset_after: of a GRU, whether its reset comes after the product with R.
        batch: sequences of a call; None is what the target says.
        sequence: steps of a call, likewise.
    """

    name: str
    hidden_size: int
    input_size: int | None
    directions: int
    cell: str = LSTM.kind
    reset_after: bool = False
    batch: int | None = None
    sequence: int | None = None

    def call(self, target: Target) -> tuple[int, int]:
        """Returns batch and steps of the target's most frequent call."""
        shape = most_frequent(target)
        return self.batch or shape.batch, self.sequence or shape.sequence


def most_frequent(target: Target) -> Shape:
    """Returns the shape of most of a target's calls."""
    return max(target.shapes, key=lambda item: item.weight)


def called_layers(model: ir.Model, target: Target) -> tuple[Layer, ...]:
    """Returns the layers whose hidden size can change, with the steps that reach them in a target's call.

    A model that takes one chunk a call, or whose convolutions leave few steps of many, runs its layers over
    other lengths than the target names: that is observed.

    Args:
        model: the graph.
        target: for its most frequent shape.
    """
    analysis = analyse(model)
    layers = free_layers(analysis)
    reached = {layer.name: analysis.layers[layer.name].input(X) for layer in layers}
    names = {name: str(value.name) for name, value in reached.items() if value is not None}
    shape = most_frequent(target)
    try:
        feeds = example_inputs(model, 0, sizes_for(model, shape.batch, shape.sequence, shape.inputs))
        seen = Reference(model, also=list(names.values())).run(feeds)
    except LstmoptError:
        return layers  # what cannot be run cannot be measured either: the peers have said so
    return tuple(
        replace(layer, sequence=size[0], batch=size[1])
        if (size := seen[names[layer.name]].shape) and 0 not in size
        else layer
        for layer in layers
    )


def free_layers(analysis: Analysis) -> tuple[Layer, ...]:
    """Returns the layers whose hidden size can change.

    Args:
        analysis: of the model.
    """
    free = {name for group in analysis.groups if group.pinned is None for name in group.layers}
    found = []
    for name, layer in analysis.layers.items():
        assert layer.weights is not None
        weights = layer.weights
        # A layer that reads nothing but hidden units of its own width shrinks with them.
        tied = bool((analysis.inputs[name] > 0).all()) and weights.input_size == weights.hidden_size
        if name in free:
            size = None if tied else weights.input_size
            cell = weights.cell.kind
            found.append(
                Layer(name, weights.hidden_size, size, weights.num_directions, cell, weights.reset_after)
            )
    return tuple(found)


def fitting(tables: Sequence[LatencyTable], layer: Layer, target: Target) -> list[LatencyTable]:
    """Returns the tables of a layer like this one on such calls, under its name.

    The name of the layer that was measured does not matter; everything that latency depends on does.

    Args:
        tables: of any layers, runtimes, precisions and calls.
        layer: the layer.
        target: for runtimes, precisions, threads and shape.
    """
    wanted = {(item.runtime, precision) for item in target.runtimes for precision in item.precisions}
    calls = (layer.input_size, layer.directions, target.threads, *layer.call(target))
    found: dict[Kind, LatencyTable] = {}
    for table in tables:
        form = table.cell, table.reset_after
        same = (table.input_size, table.directions, table.threads, table.batch, table.sequence) == calls
        same = same and form == (layer.cell, layer.reset_after)
        inside = min(table.dimensions) <= layer.hidden_size <= max(table.dimensions)
        if same and inside and (table.runtime, table.precision) in wanted:
            mine = table if table.layer == layer.name else table.model_copy(update={"layer": layer.name})
            found.setdefault(table.kind, mine)
    return list(found.values())


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """One model's latency in one runtime and precision, by the hidden sizes of its layers.

    Attributes:
        kind: runtime and precision, and the pattern and density of sparse layers.
        rest: everything but the layers that can change, microseconds.
        tables: of each layer that can change, by its name.
        sources: the layers whose hidden units such a layer reads, by its name, each once a direction;
            empty where it reads something else.
    """

    kind: Kind
    rest: float
    tables: Mapping[str, LatencyTable]
    sources: Mapping[str, tuple[str, ...]]

    @property
    def title(self) -> str:
        """The kind in one line."""
        return self.kind.title

    def predict(self, sizes: Mapping[str, int]) -> float:
        """Returns the latency of one call, microseconds.

        A table knows one input size for each hidden size. With another, the layer's work changes as its
        number of weights does.

        Args:
            sizes: hidden size of every layer that can change.
        """
        total = self.rest
        for name, table in self.tables.items():
            hidden = sizes[name]
            known = table.input_size or hidden
            inputs = self.inputs(name, sizes)
            total += table.latency(hidden) * (inputs + hidden) / (known + hidden)
        return total

    def inputs(self, name: str, sizes: Mapping[str, int]) -> int:
        """Returns the features of a step that a layer reads, given the hidden sizes."""
        table = self.tables[name]
        return sum(sizes[source] for source in self.sources[name]) or table.input_size or sizes[name]

    def parameters(self, sizes: Mapping[str, int]) -> int:
        """Returns the entries of W and R that the layers that can change keep, given their hidden sizes."""
        whole = sum(
            GATES[table.cell] * table.directions * sizes[name] * (self.inputs(name, sizes) + sizes[name])
            for name, table in self.tables.items()
        )
        return round(self.kind.density * whole)


def latency_models(
    model: ir.Model, tables: Sequence[LatencyTable], peers: Sequence[Candidate], target: Target
) -> tuple[LatencyModel, ...]:
    """Returns a latency model for each kind in which every layer has a table.

    The peers are dense. What a model of sparse layers costs beside them is taken from the same runtime's
    f32, where that is known, or else from its first precision that is.

    Args:
        model: the graph, with the hidden sizes that the peers have.
        tables: of the probe.
        peers: the measured original, from which the rest is taken; without them it is 0.
        target: for runtimes, precisions, threads and shape.
    """
    analysis = analyse(model)
    layers = called_layers(model, target)
    by_kind: dict[Kind, dict[str, LatencyTable]] = {}
    for layer in layers:
        for table in fitting(tables, layer, target):
            by_kind.setdefault(table.kind, {})[layer.name] = table
    own = {layer.name: layer.hidden_size for layer in layers}
    sources = {layer.name: _sources(analysis, layer.name, own) for layer in layers}
    alone = [
        LatencyModel(kind, 0.0, mine, sources) for kind, mine in by_kind.items() if set(mine) == set(own)
    ]
    whole = {Kind(peer.deployment.runtime, peer.deployment.precision): peer.latency.median for peer in peers}
    rests = {
        item.kind: max(0.0, whole[item.kind] - item.predict(own)) for item in alone if item.kind in whole
    }

    def rest(kind: Kind) -> float:
        """Returns what everything but the layers that can change takes."""
        if kind.pattern == DENSE:
            return rests.get(kind, 0.0)
        beside = [value for known, value in rests.items() if known.runtime == kind.runtime]
        return rests.get(Kind(kind.runtime, "f32"), next(iter(beside), 0.0))

    return tuple(replace(item, rest=rest(item.kind)) for item in alone)


def _sources(analysis: Analysis, name: str, own: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the layers that a layer reads, where it reads all hidden units of some and nothing else."""
    codes = analysis.inputs[name]
    if not (codes > 0).all():
        return ()
    lanes = [analysis.flow.lanes[index] for index in sorted(set(analysis.flow.lane_of(codes).tolist()))]
    whole = sum(lane.size for lane in lanes) == len(codes)
    return tuple(lane.layer for lane in lanes) if whole and all(lane.layer in own for lane in lanes) else ()


def combinations(choices: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """Yields combinations of one size a group, with fewer sizes where they would be too many.

    Args:
        choices: the sizes that each group may have.
    """
    kept = [list(sizes) for sizes in choices]
    while prod(len(sizes) for sizes in kept) > COMBINATIONS:
        longest = max(range(len(kept)), key=lambda index: len(kept[index]))
        kept[longest] = kept[longest][::2]
    return product(*kept)
