"""Measures a bare layer at many hidden sizes and finds the hysteresis points."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from lstmopt.measure.bare import build_bare, random_layer
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.kind import DENSE, Kind
from lstmopt.measure.lock import machine_lock
from lstmopt.measure.process import Calls, Candidate, Worker, write_feeds
from lstmopt.measure.search import MOST_REPEATS, search
from lstmopt.measure.table import LatencyTable
from lstmopt.measure.timing import quiet_block
from lstmopt.rnn.cells import CELLS, LSTM
from lstmopt.runtimes import runtime as find_runtime

Progress = Callable[[str, float], None]

BLOCK_MS = 20.0


def probe_layer(
    *,
    layer: str,
    input_size: int | None,
    hidden_sizes: Sequence[int],
    directions: int,
    cell: str = LSTM.kind,
    reset_after: bool = False,
    runtime: str,
    precision: str,
    pattern: str = DENSE,
    density: float = 1.0,
    threads: int,
    batch: int,
    sequence: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> LatencyTable:
    """Returns the latency table of a bare layer with random weights and, if sparse, a random mask.

    Each block is timed beside blocks of the largest hidden size in another process, so that a drift of
    the machine cancels.

    Args:
        layer: what to call it.
        input_size: features of a step, or None: the hidden size.
        hidden_sizes: that may be chosen, in any order.
        directions: 1, or 2 for a bidirectional layer.
        cell: its kind, "LSTM" or "GRU".
        reset_after: of a GRU, whether the reset comes after the product.
        runtime: the runtime's name.
        precision: one that the runtime has here, or a format of the native ops such as "sparse-i8".
        pattern: of a sparse precision's masks, "dense" for the others.
        density: share of the weights that a sparse layer keeps.
        threads: of one inference.
        batch: sequences a call.
        sequence: steps a call.
        seed: of the weights.
        progress: told how far it is.

    Returns:
        The table; latencies are microseconds of one call.

    Raises:
        LstmoptError: the runtime does not build or run the layer, or another measurement holds the machine.
    """
    engine = find_runtime(runtime)
    spec = next(each for each in CELLS if each.kind == cell)
    kind = Kind(runtime, precision, pattern, density)
    dims = sorted(set(hidden_sizes))
    with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder, machine_lock(progress):

        @cache
        def candidate(hidden: int) -> tuple[Candidate, Calls]:
            place = Path(folder) / str(hidden)
            place.mkdir()
            inputs = input_size or hidden
            weights = random_layer(spec, hidden, inputs, directions, seed, reset_after)
            deployment = build_bare(weights, kind, place, sequence=sequence, batch=batch)
            x = np.random.default_rng(seed).standard_normal((sequence, batch, inputs)).astype(np.float32)
            item = Candidate(f"{layer} {hidden}", deployment, [(1.0, {"x": x})])
            return item, write_feeds(item, place / "feeds")

        largest = candidate(dims[-1])
        with Worker(*largest, threads) as reference, Worker(*largest, threads) as worker:
            reference.ready()
            worker.ready()
            base = float(np.median([_latency(reference) for _ in range(5)]))

            def measure(hidden: int, repeats: int) -> list[float]:
                # Loaded anew at each visit: where it lies in memory is part of the noise.
                worker.load(*candidate(hidden))
                worker.ready()
                beside, taken = [_latency(reference)], []
                for _ in range(repeats):
                    taken.append(_latency(worker))
                    beside.append(_latency(reference))
                return [base * x / near for x, near in zip(taken, steady(beside), strict=True)]

            found = search(measure, dims, progress, MOST_REPEATS)
    return LatencyTable(
        fingerprint=fingerprint(),
        runtime=runtime,
        version=engine.status().version,
        precision=precision,
        pattern=pattern,
        density=density,
        threads=threads,
        batch=batch,
        sequence=sequence,
        layer=layer,
        input_size=input_size,
        directions=2 if directions == 2 else 1,
        cell=cell,
        reset_after=reset_after,
        dimensions=tuple(dims),
        samples={d: tuple(round(x, 3) for x in taken) for d, taken in found.samples.items()},
        curve={d: round(x, 3) for d, x in found.latency.items()},
        hysteresis_points=found.points,
        hysteresis_bins=found.bins,
        resolution=found.resolution,
        measurements=found.measurements,
        exhaustive=found.exhaustive,
        confidence=found.confidence,
    )


def steady(beside: Sequence[float]) -> list[float]:
    """Returns what the reference took while each block ran, from the blocks before and after it.

    The middle of three of them, since one that was disturbed would make the block between look fast.

    Args:
        beside: the reference's latencies, at least two: one before the first block and one after each.

    Returns:
        One latency a block.
    """
    near = [beside[max(0, i - 1) : i + 3] for i in range(len(beside) - 1)]
    return [float(np.median(few)) for few in near]


def _latency(worker: Worker) -> float:
    """Returns the median of one block of calls, microseconds."""
    return float(np.median(quiet_block(worker, BLOCK_MS)[0].samples))


def plot_table(table: LatencyTable, path: Path) -> None:
    """Writes a PNG of a table: the curve, the samples behind it, points and bins marked.

    Args:
        table: what is drawn.
        path: the picture; its folder is made.

    Raises:
        OSError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for index, (low, high) in enumerate(table.bins()):
        label = "bin: smaller, not faster" if index == 0 else None
        axes.axvspan(low - 0.5, high + 0.5, color="#d9822b", alpha=0.15, linewidth=0, label=label)
    for dimension, samples in table.samples.items():
        axes.plot([dimension] * len(samples), samples, ".", color="#8a9ba8", markersize=2, alpha=0.6)
    dims = sorted(table.curve)
    axes.plot(dims, [table.curve[d] for d in dims], color="#137cbd", linewidth=1.2, label="latency")
    marks = sorted(table.points())
    axes.plot(
        marks, [table.curve[d] for d in marks], "o", color="#0f9960", markersize=5, label="hysteresis point"
    )
    values = [table.curve[d] for d in dims]
    axes.set_ylim(0, 1.15 * max(values))
    axes.set_xlabel("hidden size")
    axes.set_ylabel("latency, µs")
    inputs = "input = hidden" if table.input_size is None else f"input {table.input_size}"
    axes.set_title(
        f"{table.layer}: {table.kind.title}, batch {table.batch}, sequence {table.sequence}, "
        f"{table.threads} thread, {inputs}\n{table.runtime} {table.version}, {table.fingerprint.cpu}",
        fontsize=9,
        loc="left",
    )
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, dpi=130, format="png")
    pyplot.close(figure)
    beside.replace(path)
