"""Measures latency against hidden size for the layers of a model, or for a bare one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.probe import plot_table, probe_layer
from lstmopt.measure.table import LatencyTable
from lstmopt.rnn.files import load_model
from lstmopt.rnn.groups import analyse
from lstmopt.rnn.reader import require_rnns
from lstmopt.runtimes import runtime
from lstmopt.targets import Target, load_target

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.pipeline import State

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Layer:
    """What of a layer its latency depends on; layers that are alike are measured once."""

    name: str
    hidden_size: int
    input_size: int | None
    directions: int


@dataclass(frozen=True)
class Probe:
    """Stage: a latency table for each kind of layer, runtime and precision.

    Args:
        step: grid of hidden sizes, counted down from the layer's own.
        smallest: least hidden size, as a share of the layer's own.
    """

    step: int = 8
    smallest: float = 0.4

    name: ClassVar[str] = "probe"
    needs: ClassVar[tuple[str, ...]] = ("model", "target")
    gives: ClassVar[tuple[str, ...]] = ("tables",)

    def run(self, state: State) -> State:
        """Returns the state with its tables; tables that were given are used as they are.

        Raises:
            LstmoptError: the model has no layer that can be changed.
        """
        layers = model_layers(state.model, state.source.name)
        notes = list(state.notes)
        for table in state.tables:
            differing = table.foreign()
            if differing:
                notes.append(
                    f"the latency table of {table.layer} is of another CPU ({', '.join(differing)} differ)"
                )
        if state.tables:
            return replace(state, notes=tuple(notes))
        tables = []
        cache = state.run_folder / "latency"
        for layer in layers:
            dims = grid(layer.hidden_size, self.step, self.smallest)
            tables += list(layer_tables(layer, dims, state.target, cache, state.progress))
        return replace(state, tables=tuple(tables))


def model_layers(model: ir.Model, source: str) -> tuple[Layer, ...]:
    """Returns the layers of a model whose hidden size can change, as far as latency depends on them.

    Raises:
        LstmoptError: there is no layer that can be changed.
    """
    require_rnns(model, source)
    analysis = analyse(model)
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


def grid(hidden_size: int, step: int, smallest: float) -> list[int]:
    """Returns the hidden sizes to choose from: the largest and multiples of the step below it, ascending."""
    low = max(1, int(hidden_size * smallest))
    return sorted({hidden_size, *range(hidden_size // step * step, low - 1, -step)} - {0})


def layer_tables(
    layer: Layer, dims: list[int], target: Target, cache: Path, progress: Progress
) -> Iterable[LatencyTable]:
    """Yields a table for each runtime and precision of a target, from the cache where it is there."""
    shape = max(target.shapes, key=lambda item: item.weight)
    for wanted in target.runtimes:
        engine = runtime(wanted.runtime)
        if not engine.status().usable:
            continue
        for precision in wanted.precisions:
            if precision not in engine.precisions():
                continue
            what: dict[str, Any] = {
                "input_size": layer.input_size,
                "hidden_sizes": dims,
                "directions": layer.directions,
                "runtime": wanted.runtime,
                "precision": precision,
                "threads": target.threads,
                "batch": shape.batch,
                "sequence": shape.sequence,
            }
            identity = json.dumps([what, engine.status().version, fingerprint().model_dump()], sort_keys=True)
            path = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
            title = f"probe {layer.name}, {wanted.runtime} {precision}"
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
            "layer", "runtime", "hysteresis points", "bins", "at the largest", "resolution", "measured"
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
    target: str,
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
        hidden_size: largest hidden size of a bare layer.
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
        for table in layer_tables(layer, dims, chosen, output / ".cache", progress):
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
