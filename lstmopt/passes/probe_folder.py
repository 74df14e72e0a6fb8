"""`lstmopt probe`: tables and pictures of a model's layers, or of a bare one, in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.kind import DENSE, Kind
from lstmopt.measure.probe import plot_table
from lstmopt.measure.table import LatencyTable, stems
from lstmopt.passes.kinds import DENSITIES, asked_kinds, usable_kinds
from lstmopt.passes.latency import Layer
from lstmopt.passes.probe import Progress, grid, layer_tables, model_layers
from lstmopt.rnn.cells import GRU, LSTM
from lstmopt.rnn.files import load_model
from lstmopt.rnn.recognition.recognise import recognise
from lstmopt.runtimes import runtime
from lstmopt.runtimes.ops import ABSENT, available
from lstmopt.runtimes.ops.libraries import MEND
from lstmopt.sparsity.patterns import parse_pattern
from lstmopt.targets import Target, load_target


class ProbeRow(BaseModel):
    """One table in short."""

    model_config = ConfigDict(frozen=True)

    layer: str
    runtime: str
    precision: str
    pattern: str
    density: float
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
                Kind(row.runtime, row.precision, row.pattern, row.density).title,
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
    patterns: Sequence[str] = (),
    densities: Sequence[float] = (),
    cell: str = LSTM.kind,
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
        patterns: of sparse layers; the target's where none is given.
        densities: of sparse layers, in 0..1; `DENSITIES` where none is given.
        cell: of a bare layer, "LSTM" or "GRU", this one with the reset after the product.

    Raises:
        LstmoptError: neither or both of model and hidden size are given, a bad model, or patterns or
            densities of which nothing can be measured.
    """
    if (model is None) == (hidden_size is None):
        raise LstmoptError(
            "lstmopt probe", "needs a model or --hidden-size, one of them", "see lstmopt probe --help"
        )
    chosen = load_target(target)
    if model is not None:
        layers = model_layers(recognise(load_model(model)).model, str(model), chosen)
    else:
        assert hidden_size is not None
        layers = (Layer(f"bare-{hidden_size}", hidden_size, input_size, 1, cell, cell == GRU.kind),)
    kinds = _kinds(chosen, patterns, densities)
    rows, taken = [], set[str]()
    for layer in layers:
        dims = grid(layer.hidden_size, step, 0.125)
        for table in layer_tables(layer, dims, chosen, output / ".cache", progress, kinds):
            (stem,) = stems([table], taken)
            place, picture = output / f"{stem}.json", output / f"{stem}.png"
            table.save(place)
            plot_table(table, picture)
            rows.append(_row(table, layer, place, picture))
    return ProbeResult(cpu=fingerprint().cpu, rows=tuple(rows))


def _row(table: LatencyTable, layer: Layer, place: Path, picture: Path) -> ProbeRow:
    return ProbeRow(
        layer=table.layer,
        runtime=table.runtime,
        precision=table.precision,
        pattern=table.pattern,
        density=table.density,
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


def _kinds(target: Target, patterns: Sequence[str], densities: Sequence[float]) -> list[Kind]:
    """Returns the kinds of a target that this machine runs.

    Raises:
        LstmoptError: patterns or densities are asked for that nothing sparse can be measured of.
    """
    for pattern in patterns:
        parse_pattern(pattern)
    asked = asked_kinds(target, tuple(patterns) or None, tuple(densities) or DENSITIES)
    kinds = usable_kinds(asked)
    if not kinds and not (patterns or densities):
        told = {name: runtime(name).status().reason for name in dict.fromkeys(kind.runtime for kind in asked)}
        reasons = [f"{name}: {reason}" for name, reason in told.items() if reason]
        raise LstmoptError(
            f"target {target.name}",
            "; ".join(reasons) or "none of its precisions runs on this machine",
            "probe on the machine that is meant, or see lstmopt doctor",
        )
    if (patterns or densities) and not any(kind.pattern != DENSE for kind in kinds):
        where = "--pattern" if patterns else "--density"
        runtimes = {kind.runtime for kind in asked if kind.pattern != DENSE}
        if not runtimes:
            raise LstmoptError(
                where,
                f"no sparse precision of target {target.name} goes with "
                + ", ".join(patterns or target.patterns),
                "use a target with precisions such as sparse-i8, and a pattern of docs/ops.md for them",
            )
        if not any(available(name) for name in runtimes):
            raise LstmoptError(where, ABSENT, MEND)
        raise LstmoptError(where, f"{', '.join(sorted(runtimes))} cannot be used here", "see lstmopt doctor")
    return kinds
