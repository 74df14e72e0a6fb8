"""Measures latency against hidden size for the layers of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.kind import DENSE, Kind
from lstmopt.measure.probe import probe_layer
from lstmopt.measure.table import LatencyTable
from lstmopt.passes.candidates import best_peer
from lstmopt.passes.kinds import DENSITIES, asked_kinds, usable_kinds
from lstmopt.passes.latency import Layer, called_layers, fitting
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.reader import require_rnns
from lstmopt.runtimes import runtime
from lstmopt.runtimes.ops import library
from lstmopt.sparsity.patterns import parse_pattern
from lstmopt.targets import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.pipeline import State

Progress = Callable[[str, float], None]
LARGEST = 1.1
"""Largest hidden size that is measured, as a share of the layer's own: what lies there may be as fast."""


@dataclass(frozen=True)
class Probe:
    """Stage: a latency table for each kind of layer, runtime, precision, and pattern and density if sparse.

    Where the peers are measured, what could not catch up with the best of them even at the smallest hidden
    size is left out.

    Args:
        step: grid of hidden sizes, counted down from the layer's own.
        smallest: least hidden size, as a share of the layer's own.
        largest: largest hidden size, as a share of the layer's own.
        densities: of the weights of sparse layers, in 0..1.
        patterns: of sparse layers; None takes the target's. Those that a format suits are measured in it.

    Raises:
        LstmoptError: no sizes between the bounds, a density outside 0..1, or an unknown pattern.
    """

    step: int = 8
    smallest: float = 0.4
    largest: float = LARGEST
    densities: tuple[float, ...] = DENSITIES
    patterns: tuple[str, ...] | None = None

    name: ClassVar[str] = "probe"
    needs: ClassVar[tuple[str, ...]] = ("model", "target")
    gives: ClassVar[tuple[str, ...]] = ("tables",)

    def __post_init__(self) -> None:
        if self.step < 1:
            raise LstmoptError("Probe(step)", f"{self.step} is below 1", "give a number of units such as 8")
        if not 0 < self.smallest <= self.largest < float("inf"):
            raise LstmoptError(
                "Probe(smallest, largest)",
                f"{self.smallest:g} to {self.largest:g} are no bounds above 0",
                "give shares such as 0.4 and 1.1",
            )
        if not all(0 < density <= 1 for density in self.densities):
            raise LstmoptError(
                "Probe(densities)", f"{self.densities} are not within 0..1", "give shares such as 0.125"
            )
        for pattern in self.patterns or ():
            parse_pattern(pattern)

    def run(self, state: State) -> State:
        """Returns the state with a table for each layer, those that were given among them.

        A table that was given is used where it fits a layer and the target and reaches as far as the sizes
        that may be chosen, without another look at the machine that it was measured on; what it does not
        cover is measured here.

        Raises:
            LstmoptError: the model has no layer that can be changed.
        """
        layers = model_layers(state.model, state.source.name, state.target)
        asked = asked_kinds(state.target, self.patterns, self.densities)
        kinds, notes = self._worth(state, usable_kinds(asked))
        tables: list[LatencyTable] = []
        strange, used = list(state.tables), list[LatencyTable]()
        cache = state.run_folder / "latency"
        for layer in layers:
            dims = grid(layer.hidden_size, self.step, self.smallest, self.largest)
            like = [table for table in state.tables if fitting((table,), layer, state.target)]
            strange = [table for table in strange if table not in like]
            # Only a wish to grow needs the sizes above the layer's own.
            top = dims[-1] if self.largest > LARGEST else layer.hidden_size
            given, told = _sufficient(like, layer, asked, dims[0], top)
            notes += told
            used += given.values()
            kinds, told = _fast_enough(layer, dims[0], state, kinds, given)
            notes += told
            missing = [kind for kind in kinds if kind not in given]
            tables += fitting(tuple(given.values()), layer, state.target)
            tables += layer_tables(layer, dims, state.target, cache, state.progress, missing)
        notes += [_unused(table) for table in strange]
        notes += [note for table in state.tables if table in used for note in _foreign(table)]
        return replace(state, tables=tuple(tables), notes=(*state.notes, *notes))

    def _worth(self, state: State, kinds: list[Kind]) -> tuple[list[Kind], list[str]]:
        """Returns the kinds that may win as far as the peers tell, and notes on those that cannot.

        The peers are dense, and tell nothing about sparse kinds: see `_fast_enough`.
        """
        if not state.peers:
            return kinds, []
        best = best_peer(state.peers)
        notes = []
        for peer in state.peers:
            kind = Kind(peer.deployment.runtime, peer.deployment.precision)
            slower = peer.latency.median / best.latency.median
            # Smaller hidden sizes save no more than their square: that is what the weights shrink by.
            if kind in kinds and slower > 1 / self.smallest**2:
                kinds.remove(kind)
                notes.append(
                    f"{kind.title} was not probed: {slower:.1f} times the latency of "
                    f"{best.deployment.runtime} {best.deployment.precision}, too much for smaller sizes"
                )
        return kinds, notes


def _fast_enough(
    layer: Layer, size: int, state: State, kinds: list[Kind], given: Collection[Kind]
) -> tuple[list[Kind], list[str]]:
    """Returns the kinds without sparse ones that cannot win, and notes on these.

    A sparse kind cannot in which this layer alone, at its smallest hidden size, takes as long as a whole
    call of the best peer does: one size is measured before all are.

    Args:
        layer: what to measure.
        size: its smallest hidden size.
        state: for target, peers and cache.
        kinds: all that may win so far.
        given: those of which there is a table.
    """
    sparse = [kind for kind in kinds if kind.pattern != DENSE and kind not in given]
    if not state.peers or not sparse:
        return kinds, []
    best = best_peer(state.peers).latency.median
    # The peers' latencies are means over the target's calls: this one counts with its share.
    weights = [shape.weight for shape in state.target.shapes]
    share, lost, notes = max(weights) / sum(weights), list[Kind](), list[str]()
    cache = state.run_folder / "latency"
    for kind, table in zip(
        sparse, layer_tables(layer, [size], state.target, cache, state.progress, sparse), strict=True
    ):
        least = share * table.latency(size)
        if least >= best:
            lost.append(kind)
            notes.append(
                f"{kind.title} was not probed: {layer.name} alone takes {least:.0f} us with {size} "
                f"units, the whole model {best:.0f} us in the best peer"
            )
    return [kind for kind in kinds if kind not in lost], notes


def _sufficient(
    tables: Sequence[LatencyTable], layer: Layer, asked: Collection[Kind], low: int, high: int
) -> tuple[dict[Kind, LatencyTable], list[str]]:
    """Returns the first of a layer's tables of each kind that covers the sizes, and notes on the others."""
    found: dict[Kind, LatencyTable] = {}
    notes = []
    for table in tables:
        kind, sizes = table.kind, table.dimensions
        if kind not in asked:
            fault = "that pattern and density are not asked for"
        elif min(sizes) > low or max(sizes) < high:
            fault = f"it has hidden sizes {min(sizes)} to {max(sizes)}, {low} to {high} are needed"
        elif kind in found:
            fault = "another one that was given comes first"
        else:
            found[kind] = table
            continue
        notes.append(
            f"the latency table of {table.layer}, {kind.title}, was not used for {layer.name}: {fault}"
        )
    return found, notes


def _unused(table: LatencyTable) -> str:
    size = "as its hidden size" if table.input_size is None else str(table.input_size)
    return (
        f"the latency table of {table.layer} was not used, no layer of the model on the target's calls is "
        f"like it: {table.kind.title}, {table.threads} thread(s), batch {table.batch}, "
        f"{table.sequence} steps, {table.cell} of input size {size}, hidden sizes up to "
        f"{max(table.dimensions)}"
    )


def _foreign(table: LatencyTable) -> list[str]:
    """Returns what a user should know who brought this table."""
    notes = []
    if differing := table.foreign():
        other = f"GPU, {table.fingerprint.gpu}" if table.fingerprint.gpu else "CPU"
        notes.append(
            f"the latency table of {table.layer} is of another {other} ({', '.join(differing)} differ)"
        )
    version = runtime(table.runtime).status().version
    if version and version != table.version:
        notes.append(
            f"the latency table of {table.layer} is of {table.runtime} {table.version}, here it is {version}"
        )
    return notes


def model_layers(model: ir.Model, source: str, target: Target) -> tuple[Layer, ...]:
    """Returns the layers of a model whose hidden size can change, as far as latency depends on them.

    Args:
        model: the graph.
        source: what errors call it.
        target: for the call.

    Raises:
        LstmoptError: the model has no recurrent layer.
    """
    require_rnns(model, source)
    return called_layers(model, target)


def grid(hidden_size: int, step: int, smallest: float, largest: float = LARGEST) -> list[int]:
    """Returns the hidden sizes to choose from, ascending: the layer's own and multiples of the step.

    They reach to the next multiple of the step at least.

    Args:
        hidden_size: the layer's own.
        step: between two of them.
        smallest: least hidden size, as a share of the layer's own.
        largest: largest hidden size, likewise.
    """
    low = max(1, int(hidden_size * smallest))
    high = max(int(largest * hidden_size + 1e-9), -(-hidden_size // step) * step)
    return sorted({hidden_size, *range(high // step * step, low - 1, -step)} - {0})


def layer_tables(
    layer: Layer, dims: list[int], target: Target, cache: Path, progress: Progress, kinds: Sequence[Kind]
) -> Iterator[LatencyTable]:
    """Yields a table for each kind, from the cache where it is there.

    Args:
        layer: what to measure.
        dims: hidden sizes that may be chosen, ascending.
        target: for threads, and for the call that the layer does not tell, of several the most frequent.
        cache: folder of tables measured before.
        progress: told how far it is.
        kinds: of those that this machine runs.

    Raises:
        LstmoptError: a runtime does not build or run such a layer.
    """
    batch, sequence = layer.call(target)
    for kind in kinds:
        what: dict[str, Any] = {
            "input_size": layer.input_size,
            "hidden_sizes": dims,
            "directions": layer.directions,
            "runtime": kind.runtime,
            "precision": kind.precision,
            "threads": target.threads,
            "batch": batch,
            "sequence": sequence,
        }
        version = [runtime(kind.runtime).status().version]
        if layer.cell != LSTM.kind:
            what |= {"cell": layer.cell, "reset_after": layer.reset_after}
        if kind.pattern != DENSE:
            what |= {"pattern": kind.pattern, "density": kind.density}
            version.append(hashlib.sha256(library(kind.runtime).read_bytes()).hexdigest())
        identity = json.dumps([what, *version, fingerprint().model_dump()], sort_keys=True)
        path = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
        title = f"probe {layer.name}, {kind.title}"
        if path.is_file():
            try:
                yield LatencyTable.load(path).model_copy(update={"layer": layer.name})
                continue
            except LstmoptError:
                path.unlink()

        def told(text: str, fraction: float, title: str = title) -> None:
            progress(f"{title}: {text}", fraction)

        table = probe_layer(layer=layer.name, progress=told, **what)
        table.save(path)
        yield table
