"""The model of latency: what a model costs is the rest plus the sum of its layers' ``L(input, hidden)``.

It only chooses between combinations of hidden sizes; what is chosen is measured again whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from lstmopt.measure.table import LatencyTable
from lstmopt.rnn.groups import analyse

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.passes.candidates import Candidate
    from lstmopt.rnn.groups import Analysis
    from lstmopt.targets import Target

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
    """

    name: str
    hidden_size: int
    input_size: int | None
    directions: int


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
            found.append(Layer(name, weights.hidden_size, size, weights.num_directions))
    return tuple(found)


def fitting(tables: Sequence[LatencyTable], layer: Layer, target: Target) -> list[LatencyTable]:
    """Returns the tables of a layer like this one on such calls, under its name.

    The name of the layer that was measured does not matter; everything that latency depends on does.

    Args:
        tables: of any layers, runtimes, precisions and calls.
        layer: the layer.
        target: for runtimes, precisions, threads and shape.
    """
    shape = max(target.shapes, key=lambda item: item.weight)
    wanted = {(item.runtime, precision) for item in target.runtimes for precision in item.precisions}
    calls = (layer.input_size, layer.directions, target.threads, shape.batch, shape.sequence)
    found: dict[tuple[str, str], LatencyTable] = {}
    for table in tables:
        same = (table.input_size, table.directions, table.threads, table.batch, table.sequence) == calls
        inside = min(table.dimensions) <= layer.hidden_size <= max(table.dimensions)
        if same and inside and (table.runtime, table.precision) in wanted:
            mine = table if table.layer == layer.name else table.model_copy(update={"layer": layer.name})
            found.setdefault((table.runtime, table.precision), mine)
    return list(found.values())


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """One model's latency in one runtime and precision, by the hidden sizes of its layers.

    Attributes:
        runtime: its name.
        precision: such as "int8".
        rest: everything but the layers that can change, microseconds.
        tables: of each layer that can change, by its name.
        sources: the layers whose hidden units such a layer reads, by its name, each once a direction;
            empty where it reads something else.
    """

    runtime: str
    precision: str
    rest: float
    tables: Mapping[str, LatencyTable]
    sources: Mapping[str, tuple[str, ...]]

    @property
    def title(self) -> str:
        """Runtime and precision in one line."""
        return f"{self.runtime} {self.precision}"

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
        """Returns the entries of W and R of the layers that can change, given their hidden sizes."""
        return sum(
            4 * table.directions * sizes[name] * (self.inputs(name, sizes) + sizes[name])
            for name, table in self.tables.items()
        )


def latency_models(
    model: ir.Model, tables: Sequence[LatencyTable], peers: Sequence[Candidate], target: Target
) -> tuple[LatencyModel, ...]:
    """Returns a latency model for each runtime and precision in which every layer has a table.

    Args:
        model: the graph, with the hidden sizes that the peers have.
        tables: of the probe.
        peers: the measured original, from which the rest is taken; without them it is 0.
        target: for runtimes, precisions, threads and shape.
    """
    analysis = analyse(model)
    layers = free_layers(analysis)
    by_kind: dict[tuple[str, str], dict[str, LatencyTable]] = {}
    for layer in layers:
        for table in fitting(tables, layer, target):
            by_kind.setdefault((table.runtime, table.precision), {})[layer.name] = table
    own = {layer.name: layer.hidden_size for layer in layers}
    sources = {layer.name: _sources(analysis, layer.name, own) for layer in layers}
    whole = {(peer.deployment.runtime, peer.deployment.precision): peer.latency.median for peer in peers}
    found = []
    for (runtime, precision), mine in by_kind.items():
        if set(mine) != set(own):
            continue
        alone = LatencyModel(runtime, precision, 0.0, mine, sources)
        rest = max(0.0, whole.get((runtime, precision), 0.0) - alone.predict(own))
        found.append(LatencyModel(runtime, precision, rest, mine, sources))
    return tuple(found)


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
