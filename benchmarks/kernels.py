"""One sparse layer in every format against the runtimes' own LSTMs: latency, ratios and errors.

make bench-kernels, or python -m benchmarks.kernels [--sizes 512,650] [--batch 20] [--sequence 1] [--cold]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from benchmarks.sparse_models import deployed, sparse_layer
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.process import Candidate
from lstmopt.measure.timing import compare
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import Deployment, open_session, runtime
from lstmopt.sparsity.formats import FORMATS
from lstmopt.sparsity.patterns import parse_pattern

PATTERNS = {
    "f32": "bank32", "i16": "bank32:step2", "i16-bank64": "bank64:step2", "i8": "bank64:step4",
    "i8-planes2": "bank64:step4", "i8-shared": "gate-shared64:step4",
}  # fmt: skip
BARS = ("openvino f32", "openvino bf16", "onnxruntime f32", "onnxruntime int8")


def layer(size: int, pattern: str, density: float) -> RnnWeights:
    """Returns a layer whose sums have the size of a trained one's."""
    rng = np.random.default_rng(size)
    w, r = (rng.standard_normal((4, size, size)).astype(np.float32) for _ in range(2))
    masks = parse_pattern(pattern).masks({"w": np.abs(w), "r": np.abs(r)}, density)
    gain = np.float32(0.5 / np.sqrt(2 * density * size))
    bias = (0.1 * rng.standard_normal((1, 2, 4, size))).astype(np.float32)
    return RnnWeights(LSTM, "forward", (w * masks["w"] * gain)[None], (r * masks["r"] * gain)[None], bias)


def double_lstm(weights: RnnWeights, x: Any) -> Any:
    """Returns Y of a forward layer in double precision, ``[steps, 1, batch, hidden]``."""
    assert weights.b is not None
    w, r, bias = (array[0].astype(np.float64) for array in (weights.w, weights.r, weights.b.sum(axis=1)))
    h = c = np.zeros((x.shape[1], weights.hidden_size))
    ys = []
    for row in x.astype(np.float64):
        i, o, f, g = np.einsum("ghi,bi->gbh", w, row) + np.einsum("ghi,bi->gbh", r, h) + bias[:, None]
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        ys.append(h)
    return np.stack(ys)[:, None]


def candidates(
    folder: Path, size: int, options: argparse.Namespace
) -> tuple[list[Candidate], dict[str, float]]:
    """Returns what is timed, and each one's error against its own weights before rounding."""
    steps, batch = options.sequence, options.batch
    feeds = {"x": np.random.default_rng(1).standard_normal((steps, batch, size)).astype(np.float32)}
    found: list[tuple[str, Deployment, RnnWeights]] = []
    dense = layer(size, PATTERNS["i8"], options.density)
    file = folder / "dense.onnx"
    ir.save(rnn_model(dense, sequence=steps, batch=batch), file)
    for name in BARS:
        where, precision = name.split()
        if precision in runtime(where).precisions():
            found.append(
                (name, runtime(where).build(file, precision, folder / name.replace(" ", "-")), dense)
            )
    for name in options.formats.split(","):
        weights = layer(size, PATTERNS[name], options.density)
        file = folder / f"{name}.onnx"
        sparse = sparse_layer(weights, name, steps, batch)
        found += [
            (f"{name} in {where}", deployed(sparse, file, where), weights)
            for where in options.runtimes.split(",")
        ]
    errors = {}
    for name, deployment, weights in found:
        want = double_lstm(replace(weights), feeds["x"])
        have = open_session(deployment, 1).run(feeds)["y"]
        errors[name] = float(np.sqrt(np.mean((have - want) ** 2) / np.mean(want**2)))
    return [Candidate(name, deployment, [(1.0, feeds)]) for name, deployment, _ in found], errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="512,650,1024,1500")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--runtimes", default="openvino,onnxruntime")
    parser.add_argument("--density", type=float, default=0.0625)
    parser.add_argument("--sequence", type=int, default=35)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--cold", action="store_true", help="empty the caches before each call")
    options = parser.parse_args()
    console, machine = Console(width=150), fingerprint()
    console.print(
        f"{machine.cpu}; one thread, batch {options.batch}, sequence {options.sequence}, "
        f"density {options.density}"
    )
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            timed, errors = candidates(Path(folder), size, options)
            result = compare(timed, threads=1, rounds=options.rounds, cold=options.cold)
        doubt = "" if result.trusted else " (not to be trusted)"
        table = Table(title=f"H = input = {size}; A/A {result.aa.value:.3f}{doubt}")
        bars = [name for name in BARS if name in errors]
        for column in ("", "us", "95% interval", "error", *(f"over {name}" for name in bars)):
            table.add_column(column, justify="left" if not column else "right")
        for name in errors:
            time, ratios = result.timing(name), [result.ratio(bar, name) for bar in bars]
            shown = [f"{ratio.value:.1f} ({ratio.low:.1f}-{ratio.high:.1f})" for ratio in ratios]
            interval = f"{time.low:.0f}-{time.high:.0f}"
            table.add_row(name, f"{time.median:.0f}", interval, f"{errors[name]:.1e}", *shown)
        console.print(table)


if __name__ == "__main__":
    main()
