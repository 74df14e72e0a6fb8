"""One sparse layer in every format against the runtimes' own LSTMs: latency, ratios, errors, and the goals.

make bench-kernels, or python -m benchmarks.kernels [--sizes 512,650] [--case "sequence 1"] [--markdown FILE]

Warm and cold, one thread; contenders of a table take turns block by block (`lstmopt.measure`). Of what an
expert would try beside the runtimes, torch's sparse rows, which are oneMKL's, are in it; Opus's 8x4 kernel is
not, which no package exports (`benchmarks.torch_csr`).
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.layers import RUNTIMES, TORCH, Shape, candidates
from lstmopt.keys import versions
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.statistics import Ratio
from lstmopt.measure.timing import Comparison, compare

INT8 = ("onnxruntime int8",)
F32 = ("openvino f32", "onnxruntime f32")


@dataclass(frozen=True)
class Goal:
    """What has to hold of a format.

    Attributes:
        format: of our ops.
        over: the peers that it has to be faster than; the fastest of them counts.
        least: how many times.
        smallest: of the sizes, the first that this is asked of.
        error: a peer, and how many times its error ours may be.
        prototype: the ratio that prototypes reached, for each size.
    """

    format: str
    over: tuple[str, ...]
    least: float
    smallest: int = 0
    error: tuple[str, float] | None = None
    prototype: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A shape of calls, the formats that are compared there, and what has to hold."""

    title: str
    sequence: int
    batch: int
    formats: tuple[str, ...]
    goals: tuple[Goal, ...]


CASES = (
    Case(
        "sequence 35, batch 1", 35, 1, ("f32", "i16", "i8", "i8-shared"),
        (
            Goal("f32", F32[:1], 12, prototype={512: 43, 650: 42, 1024: 41, 1500: 23}),
            Goal("i16", INT8, 4, 0, ("openvino bf16", 1 / 3), {512: 6.4, 650: 8.0, 1024: 16.5, 1500: 15.2}),
            Goal("i8", INT8, 6, 0, (INT8[0], 1.0), {512: 8.7, 650: 10.7, 1024: 23.8, 1500: 22.0}),
        ),
    ),
    Case(
        "sequence 1, batch 1, the whole call", 1, 1, ("f32", "i8", "i8-shared"),
        (Goal("i8", F32, 5, smallest=650), Goal("i8", INT8, 2, smallest=650)),
    ),
    Case("sequence 35, batch 20", 35, 20, ("i8",), (Goal("i8", INT8, 4),)),
)  # fmt: skip

BARS = ("openvino f32", "openvino bf16", "onnxruntime int8")


@dataclass(frozen=True)
class Result:
    """A comparison and the errors of its contenders."""

    case: Case
    shape: Shape
    cold: bool
    comparison: Comparison
    errors: dict[str, float]

    @property
    def title(self) -> str:
        return f"{self.case.title}, {'cold' if self.cold else 'warm'}"

    def doubt(self) -> str:
        return "" if self.comparison.trusted else " (not to be trusted)"


def measure(case: Case, shape: Shape, cold: bool, rounds: int) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        # Cold, each process holds the memory that empties the caches: torch is left out to spare it.
        timed, errors = candidates(Path(folder), shape, case.formats, torch=not cold)
        comparison = compare(timed, threads=1, rounds=rounds, cold=cold)
    return Result(case, shape, cold, comparison, errors)


def contenders(result: Result) -> list[str]:
    """Returns the table of a comparison, in lines of Markdown."""
    comparison, bars = result.comparison, [name for name in BARS if name in result.errors]
    lines = [
        f"### H = input = {result.shape.size}, {result.title}",
        f"A/A {comparison.aa.value:.3f}{result.doubt()}",
        "",
        *header(["", "us", "95% interval", "error", *(f"over {name}" for name in bars)]),
    ]
    for name in result.errors:
        time = comparison.timing(name)
        ratios = [shown(comparison.ratio(bar, name)) for bar in bars]
        cells = [f"{time.median:.1f}", f"{time.low:.1f}-{time.high:.1f}", f"{result.errors[name]:.1e}"]
        lines.append(row([name, *cells, *ratios]))
    return [*lines, ""]


def goals(result: Result) -> list[str]:
    """Returns a row of Markdown for each goal and runtime."""
    rows = []
    for goal in (goal for goal in result.case.goals if result.shape.size >= goal.smallest):
        for where in RUNTIMES:
            name = f"{goal.format} in {where}"
            ratio, peer = least_ratio(result.comparison, name, goal.over)
            bound = ""
            if goal.error is not None:
                bar, factor = goal.error
                have = result.errors[name]
                bound = f"{have:.1e} (this CPU has no {bar})"
                if bar in result.errors:
                    most = factor * result.errors[bar]
                    bound = f"{have:.1e} (at most {most:.1e}: {met(have <= most)})"
            prototype = goal.prototype.get(result.shape.size)
            rows.append(
                row(
                    [
                        result.title, str(result.shape.size), name, peer, shown(ratio) + result.doubt(),
                        f"{goal.least:g}", met(ratio.value >= goal.least), bound,
                        f"{prototype:g}" if prototype else "",
                    ]
                )
            )  # fmt: skip
    return rows


def least_ratio(comparison: Comparison, name: str, peers: Sequence[str]) -> tuple[Ratio, str]:
    """Returns how many times faster a contender is than the fastest of some peers, and which that is."""
    fastest = min(peers, key=lambda peer: comparison.timing(peer).median)
    return comparison.ratio(fastest, name), fastest


def met(holds: bool) -> str:
    return "met" if holds else "**missed**"


def shown(ratio: Ratio) -> str:
    return f"{ratio.value:.1f} [{ratio.low:.1f}, {ratio.high:.1f}]"


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def header(columns: Sequence[str]) -> list[str]:
    return [row(columns), f"|{'---|' * len(columns)}"]


def page(results: Sequence[Result], density: float, rounds: int) -> str:
    """Returns everything as Markdown."""
    machine = fingerprint()
    caches = ", ".join(f"{name} {size // 1024} KiB" for name, size in machine.caches.items())
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    goal_columns = ["", "H", "", "over", "ratio", "at least", "", "error", "prototype"]
    return "\n".join(
        [
            "# Sparse LSTM layers against the runtimes' own",
            "",
            f"`make bench-kernels`, {machine.cpu}, {' '.join(machine.isa)}; {caches}; {machine.cores} cores, "
            f"{platform.system()}; {named}.",
            "",
            f"One LSTM layer, H = input, {1 - density:.2%} of the weights zero, one thread; {rounds} rounds",
            "or more. Ratios: the peer's latency over ours, with the 95% interval. Errors: root mean square",
            "over the output's, against the same masked weights in double precision before rounding. Cold:",
            "every cache is emptied before each call. Prototype: the ratio that prototypes reached on a Xeon",
            f"with AMX. {TORCH}: a cell loop over products of `torch.sparse_csr`, which are oneMKL's.",
            "",
            "## Goals",
            *header(goal_columns),
            *(line for result in results for line in goals(result)),
            "",
            "## Contenders",
            *(line for result in results for line in contenders(result)),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="512,650,1024,1500")
    parser.add_argument("--case", default="", help="only those whose title contains this")
    parser.add_argument("--density", type=float, default=0.0625)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--markdown", type=Path, help="a file that the tables are written to")
    options = parser.parse_args()
    results: list[Result] = []
    for case in (case for case in CASES if options.case in case.title):
        for size in map(int, options.sizes.split(",")):
            for cold in (False, True):
                shape = Shape(size, case.sequence, case.batch, options.density)
                results.append(measure(case, shape, cold, options.rounds))
                print("\n".join([*contenders(results[-1]), *goals(results[-1]), ""]), flush=True)
                if options.markdown is not None:  # after each, so that nothing is lost
                    options.markdown.parent.mkdir(parents=True, exist_ok=True)
                    options.markdown.write_text(page(results, options.density, options.rounds) + "\n")


if __name__ == "__main__":
    main()
