"""Where the sparse ops lose, and what share of their bound they reach.

    python -m benchmarks.limits [--sizes 64,128,256,512,1024] [--markdown docs/results/limits.md]

Layers of many sizes and densities against the runtimes' own, as in `benchmarks.kernels`: batch 1, 35 steps,
one thread, warm. The bound of a layer is the time in which one core would read its packed weights as often as
the kernels do and compute nothing: R once a step, from the cache in which it lies; W once from there, and
from the first cache for every four steps. How fast a core reads is measured (`bandwidth.cpp`).
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from benchmarks.kernels import header, least_ratio, row, shown
from benchmarks.layers import PATTERNS, PEERS, Shape, candidates, layer
from benchmarks.rows import made_by
from lstmopt.measure.timing import Comparison, compare
from lstmopt.sparsity.formats import format_named

SIZES = (64, 128, 256, 512, 1024)
DENSITIES = (0.0625, 0.125, 0.25, 0.5)
STEPS, TOGETHER = 35, 4
"""Steps of a call; steps whose inputs the kernels multiply together."""
FORMATS = ("f32", "i8")
FIRST_CACHE = 16384


@dataclass(frozen=True)
class Result:
    """A layer's comparison.

    Attributes:
        size: hidden units, and inputs.
        density: share of the weights that are not zero.
        comparison: what was measured.
        bounds: microseconds that reading takes, by format.
    """

    size: int
    density: float
    comparison: Comparison
    bounds: dict[str, float]


def bandwidths(program: Path, sizes: Sequence[int]) -> list[float]:
    """Returns the bytes a nanosecond at which a core reads buffers of some sizes, in bytes."""
    told = subprocess.run([program, *map(str, sizes)], capture_output=True, text=True, check=True)
    return [float(line) for line in told.stdout.split()]


def bound(program: Path, size: int, density: float, name: str) -> float:
    """Returns the microseconds in which a core reads a layer's packed weights as the kernels do."""
    item, weights = format_named(name), layer(size, PATTERNS[name], density)
    w, r = (len(item.pack(matrix[0])) for matrix in weights.matrices)
    from_w, from_r, from_first = bandwidths(program, (w, r, FIRST_CACHE))
    return (w / from_w + w * (ceil(STEPS / TOGETHER) - 1) / from_first + STEPS * r / from_r) / 1000


def measure(program: Path, size: int, density: float, rounds: int) -> Result:
    shape = Shape(size, STEPS, 1, density)
    with tempfile.TemporaryDirectory() as folder:
        timed, _ = candidates(Path(folder), shape, FORMATS, torch=False, runtimes=("onnxruntime",))
        comparison = compare(timed, threads=1, rounds=rounds, cold=False)
    return Result(size, density, comparison, {name: bound(program, size, density, name) for name in FORMATS})


def table(results: Sequence[Result], name: str) -> list[str]:
    """Returns how many times faster than the fastest peer a format is, sizes by densities."""
    ours = f"{name} in onnxruntime"
    lines = header(["H", *(f"{density:.4g}" for density in sorted({item.density for item in results}))])
    for size in sorted({item.size for item in results}):
        cells = []
        for item in sorted((item for item in results if item.size == size), key=lambda item: item.density):
            peers = [peer for peer in PEERS if peer in item.comparison.names]
            ratio, peer = least_ratio(item.comparison, ours, peers)
            mark = "**" if ratio.high < 1 else ""
            doubt = "" if item.comparison.trusted else "?"
            cells.append(f"{mark}{shown(ratio)}{mark}{doubt} {peer}")
        lines.append(row([str(size), *cells]))
    return lines


def shares(results: Sequence[Result]) -> list[str]:
    """Returns, for each layer and format, its bound, its latency, and their ratio."""
    lines = header(["H", "density", "format", "bound, us", "latency, us", "share"])
    for item in results:
        for name, least in item.bounds.items():
            taken = item.comparison.timing(f"{name} in onnxruntime").median
            cells = [f"{item.density:.4g}", name, f"{least:.1f}", f"{taken:.1f}", f"{least / taken:.0%}"]
            lines.append(row([str(item.size), *cells]))
    return lines


def page(results: Sequence[Result]) -> str:
    """Returns everything as Markdown."""
    return "\n".join(
        [
            "# Where the sparse ops lose, and their bound",
            "",
            made_by("python -m benchmarks.limits"),
            "",
            f"One LSTM layer, H = input, batch 1, {STEPS} steps, one thread, warm, in ONNX Runtime. Ratios:",
            "the latency of the fastest of the runtimes' own LSTMs, whose name follows, over ours, with the",
            "95% interval; bold where ours is slower; `?` where the machine was not quiet.",
            *(line for name in FORMATS for line in ("", f"## {name}, by density", "", *table(results, name))),
            "",
            "## Share of the bound",
            "",
            "Bound: one core only reads the packed weights as often as the kernels do, from where they lie",
            "(`benchmarks/limits.py`). Latency: the whole call through ONNX Runtime.",
            "",
            *shares(results),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--markdown", type=Path, help="a file that the page is written to")
    options = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "bandwidth"
        source = Path(__file__).with_name("bandwidth.cpp")
        subprocess.run(["g++", "-O3", "-march=native", source, "-o", program], check=True)
        for size in map(int, options.sizes.split(",")):
            for density in DENSITIES:
                results.append(measure(program, size, density, options.rounds))
                print("\n".join(shares(results[-1:])), flush=True)
    text = page(results)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
