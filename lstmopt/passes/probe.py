"""Measures latency against hidden size for the layers of a model, or for a bare one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.probe import plot_table, probe_layer
from lstmopt.measure.table import LatencyTable
from lstmopt.passes.candidates import best_peer
from lstmopt.passes.latency import Layer, fitting, free_layers
from lstmopt.rnn.files import load_model
from lstmopt.rnn.groups import analyse
from lstmopt.rnn.reader import require_rnns
from lstmopt.runtimes import runtime
from lstmopt.targets import Target, load_target

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.pipeline import State

Progress = Callable[[str, float], None]
Kind = tuple[str, str]
"""A runtime and a precision."""

LARGEST = 1.1
"""Largest hidden size that is measured, as a share of the layer's own: what lies there may be as fast."""


@dataclass(frozen=True)
class Probe:
    """Stage: a latency table for each kind of layer, runtime and precision.

    Where the peers are measured, a runtime and precision that could not catch up with the best of them
    even at the smallest hidden size is left out.

    Args:
        step: grid of hidden sizes, counted down from the layer's own.
        smallest: least hidden size, as a share of the layer's own.
        largest: largest hidden size, as a share of the layer's own.
    """

    step: int = 8
    smallest: float = 0.4
    largest: float = LARGEST

    name: ClassVar[str] = "probe"
    needs: ClassVar[tuple[str, ...]] = ("model", "target")
    gives: ClassVar[tuple[str, ...]] = ("tables",)

    def run(self, state: State) -> State:
        """Returns the state with a table for each layer, those that were given among them.

        A table that was given is used where it fits a layer and the target and reaches as far as the sizes
        that may be chosen, without another look at the machine that it was measured on; what it does not
        cover is measured here.

        Raises:
            LstmoptError: the model has no layer that can be changed.
        """
        layers = model_layers(state.model, state.source.name)
        kinds, notes = self._worth(state)
        tables: list[LatencyTable] = []
        strange, used = list(state.tables), list[LatencyTable]()
        cache = state.run_folder / "latency"
        for layer in layers:
            dims = grid(layer.hidden_size, self.step, self.smallest, self.largest)
            like = [table for table in state.tables if fitting((table,), layer, state.target)]
            strange = [table for table in strange if table not in like]
            # Only a wish to grow needs the sizes above the layer's own.
            top = dims[-1] if self.largest > LARGEST else layer.hidden_size
            given, told = _sufficient(like, layer, dims[0], top)
            notes += told
            used += given.values()
            missing = [kind for kind in kinds if kind not in given]
            tables += fitting(tuple(given.values()), layer, state.target)
            tables += layer_tables(layer, dims, state.target, cache, state.progress, missing)
        notes += [_unused(table) for table in strange]
        notes += [note for table in state.tables if table in used for note in _foreign(table)]
        return replace(state, tables=tuple(tables), notes=(*state.notes, *notes))

    def _worth(self, state: State) -> tuple[list[Kind], list[str]]:
        """Returns the runtimes and precisions that may win, and notes on those that cannot."""
        kinds = usable_kinds(state.target)
        if not state.peers:
            return kinds, []
        best = best_peer(state.peers)
        notes = []
        for peer in state.peers:
            kind = peer.deployment.runtime, peer.deployment.precision
            slower = peer.latency.median / best.latency.median
            # Smaller hidden sizes save no more than their square: that is what the weights shrink by.
            if kind in kinds and slower > 1 / self.smallest**2:
                kinds.remove(kind)
                notes.append(
                    f"{' '.join(kind)} was not probed: {slower:.1f} times the latency of "
                    f"{best.deployment.runtime} {best.deployment.precision}, too much for smaller sizes"
                )
        return kinds, notes


def _sufficient(
    tables: Sequence[LatencyTable], layer: Layer, low: int, high: int
) -> tuple[dict[Kind, LatencyTable], list[str]]:
    """Returns the first of a layer's tables of each kind that covers the sizes, and notes on the others."""
    found: dict[Kind, LatencyTable] = {}
    notes = []
    for table in tables:
        kind, sizes = (table.runtime, table.precision), table.dimensions
        if min(sizes) > low or max(sizes) < high:
            fault = f"it has hidden sizes {min(sizes)} to {max(sizes)}, {low} to {high} are needed"
        elif kind in found:
            fault = "another one that was given comes first"
        else:
            found[kind] = table
            continue
        notes.append(
            f"the latency table of {table.layer}, {' '.join(kind)}, was not used for {layer.name}: {fault}"
        )
    return found, notes


def _unused(table: LatencyTable) -> str:
    size = "as its hidden size" if table.input_size is None else str(table.input_size)
    return (
        f"the latency table of {table.layer} was not used, no layer of the model on the target's calls is "
        f"like it: {table.runtime} {table.precision}, {table.threads} thread(s), batch {table.batch}, "
        f"{table.sequence} steps, input size {size}, hidden sizes up to {max(table.dimensions)}"
    )


def _foreign(table: LatencyTable) -> list[str]:
    """Returns what a user should know who brought this table."""
    notes = []
    if differing := table.foreign():
        notes.append(f"the latency table of {table.layer} is of another CPU ({', '.join(differing)} differ)")
    version = runtime(table.runtime).status().version
    if version and version != table.version:
        notes.append(
            f"the latency table of {table.layer} is of {table.runtime} {table.version}, here it is {version}"
        )
    return notes


def model_layers(model: ir.Model, source: str) -> tuple[Layer, ...]:
    """Returns the layers of a model whose hidden size can change, as far as latency depends on them.

    Args:
        model: the graph.
        source: what errors call it.

    Raises:
        LstmoptError: the model has no recurrent layer.
    """
    require_rnns(model, source)
    return free_layers(analyse(model))


def usable_kinds(target: Target) -> list[Kind]:
    """Returns the runtimes and precisions of a target that this machine runs."""
    return [
        (wanted.runtime, precision)
        for wanted in target.runtimes
        if runtime(wanted.runtime).status().usable
        for precision in wanted.precisions
        if precision in runtime(wanted.runtime).precisions()
    ]


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
    """Yields a table for each runtime and precision, from the cache where it is there.

    Args:
        layer: what to measure.
        dims: hidden sizes that may be chosen, ascending.
        target: for threads and shape, of several the most frequent one.
        cache: folder of tables measured before.
        progress: told how far it is.
        kinds: runtimes and precisions, of those that this machine runs.

    Raises:
        LstmoptError: a runtime does not build or run such a layer.
    """
    shape = max(target.shapes, key=lambda item: item.weight)
    for name, precision in kinds:
        what: dict[str, Any] = {
            "input_size": layer.input_size,
            "hidden_sizes": dims,
            "directions": layer.directions,
            "runtime": name,
            "precision": precision,
            "threads": target.threads,
            "batch": shape.batch,
            "sequence": shape.sequence,
        }
        identity = json.dumps(
            [what, runtime(name).status().version, fingerprint().model_dump()], sort_keys=True
        )
        path = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
        title = f"probe {layer.name}, {name} {precision}"
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


class ProbeRow(BaseModel):
    """One table in short."""

    model_config = ConfigDict(frozen=True)

    layer: str
    runtime: str
    precision: str
    points: tuple[int, ...]
    bins: tuple[tuple[int, int], ...]
    latency_us: float
    resolution: float
    measurements: int
    exhaustive: int
    confidence: float
    table: str
    picture: str


class ProbeResult(BaseModel):
    """What `lstmopt probe` has found and written."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    rows: tuple[ProbeRow, ...]

    def render(self) -> Any:
        """Returns the shell's table."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(
            "layer", "runtime", "hysteresis points", "bins", "at its own size", "resolution", "measured"
        )
        for row in self.rows:
            shown = ", ".join(str(point) for point in row.points[:8]) + (
                ", ..." if len(row.points) > 8 else ""
            )
            table.add_row(
                row.layer,
                f"{row.runtime} {row.precision}",
                shown,
                str(len(row.bins)),
                f"{row.latency_us:.0f} us",
                f"{row.resolution:.2%}",
                f"{row.measurements} of {row.exhaustive}, {row.confidence:.0%} sure",
            )
        files = [Text(f"{row.table}\n{row.picture}") for row in self.rows]
        return Group(Text(self.cpu), table, *files)


def probe_to_folder(
    model: Path | None,
    target: str | Path | Target,
    hidden_size: int | None,
    input_size: int | None,
    step: int,
    output: Path,
    progress: Progress,
) -> ProbeResult:
    """Probes the layers of a model, or a bare one, and writes tables and pictures.

    Args:
        model: the ONNX file, or None for a bare layer.
        target: for runtimes, precisions, threads and shape.
        hidden_size: of a bare layer; sizes to a tenth above it are measured.
        input_size: its features of a step; the hidden size where None.
        step: grid of hidden sizes.
        output: folder of tables and pictures; tables there are used again.
        progress: told how far it is.

    Raises:
        LstmoptError: neither or both of model and hidden size are given, or a bad model.
    """
    if (model is None) == (hidden_size is None):
        raise LstmoptError(
            "lstmopt probe", "needs a model or --hidden-size, one of them", "see lstmopt probe --help"
        )
    chosen = load_target(target)
    if model is not None:
        layers = model_layers(load_model(model), str(model))
    else:
        assert hidden_size is not None
        layers = (Layer(f"bare-{hidden_size}", hidden_size, input_size, 1),)
    rows = []
    for layer in layers:
        dims = grid(layer.hidden_size, step, 0.125)
        kinds = usable_kinds(chosen)
        for table in layer_tables(layer, dims, chosen, output / ".cache", progress, kinds):
            stem = f"{layer.name.strip('/').replace('/', '-')}-{table.runtime}-{table.precision}"
            place, picture = output / f"{stem}.json", output / f"{stem}.png"
            table.save(place)
            plot_table(table, picture)
            rows.append(
                ProbeRow(
                    layer=table.layer,
                    runtime=table.runtime,
                    precision=table.precision,
                    points=table.points(),
                    bins=table.bins(),
                    latency_us=table.latency(layer.hidden_size),
                    resolution=table.resolution,
                    measurements=table.measurements,
                    exhaustive=table.exhaustive,
                    confidence=table.confidence,
                    table=str(place),
                    picture=str(picture),
                )
            )
    return ProbeResult(cpu=fingerprint().cpu, rows=tuple(rows))
