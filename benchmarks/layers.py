"""Sparse layers, and each way to run one: what `benchmarks.kernels` compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks import torch_csr
from lstmopt.measure.process import Candidate
from lstmopt.precision import SPARSE
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import open_session, runtime
from lstmopt.runtimes.ops import sparse_layer_model
from lstmopt.sparsity.formats import format_named
from lstmopt.sparsity.patterns import parse_pattern

PATTERNS = {
    "f32": "bank32", "i16": "bank32:step2", "i16-bank64": "bank64:step2", "i8": "bank64:step4",
    "i8-planes2": "bank64:step4", "i8-shared": "gate-shared64:step4",
}  # fmt: skip
RUNTIMES = ("openvino", "onnxruntime")
PEERS = ("openvino f32", "openvino bf16", "onnxruntime f32", "onnxruntime int8")
"""What runs the zeros too: each runtime's own LSTM, in the precisions of this CPU."""
TORCH = "torch CSR f32"


@dataclass(frozen=True)
class Shape:
    """Of a layer with as many inputs as units, and of one call.

    Attributes:
        size: hidden units.
        sequence: steps.
        batch: sequences.
        density: share of the weights that are not zero.
    """

    size: int
    sequence: int
    batch: int
    density: float


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
    folder: Path, shape: Shape, formats: Sequence[str], *, torch: bool, runtimes: Sequence[str] = RUNTIMES
) -> tuple[list[Candidate], dict[str, float]]:
    """Builds what is timed.

    Args:
        folder: where the models go.
        shape: of the layer and the call.
        formats: of our ops, each in every runtime.
        torch: whether torch's sparse rows take part.
        runtimes: in which our ops run.

    Returns:
        The candidates, ``"i8 in openvino"`` and the like, and each one's root mean square error over the
        output's, against the same masked weights before rounding in double precision.
    """
    x = np.random.default_rng(1).standard_normal((shape.sequence, shape.batch, shape.size))
    calls = [(1.0, {"x": x.astype(np.float32)})]
    dense = layer(shape.size, PATTERNS["i8"], shape.density)
    file = folder / "dense.onnx"
    ir.save(rnn_model(dense, sequence=shape.sequence, batch=shape.batch), file)
    found: list[tuple[Candidate, RnnWeights]] = []
    for name in PEERS:
        where, precision = name.split()
        if precision in runtime(where).precisions():
            built = runtime(where).build(file, precision, folder / name.replace(" ", "-"))
            found.append((Candidate(name, built, calls), dense))
    if torch:
        deployment = torch_csr.build(dense, folder / "torch.npz")
        found.append((Candidate(TORCH, deployment, calls, torch_csr.OPENER), dense))
    for name in formats:
        item, weights = format_named(name), layer(shape.size, PATTERNS[name], shape.density)
        file = folder / f"{name}.onnx"
        packed = [[item.pack(matrix[0])] for matrix in weights.matrices]
        ir.save(sparse_layer_model(weights, *packed, sequence=shape.sequence, batch=shape.batch), file)
        for where in runtimes:
            built = runtime(where).build(file, f"{SPARSE}{name}", folder / f"{where}-{SPARSE}{name}")
            found.append((Candidate(f"{name} in {where}", built, calls), weights))
    return [item for item, _ in found], {item.name: _error(item, weights) for item, weights in found}


def _error(candidate: Candidate, weights: RnnWeights) -> float:
    opener = torch_csr.open_session if candidate.opener == torch_csr.OPENER else open_session
    feeds = candidate.calls[0][1]
    want = double_lstm(weights, feeds["x"])
    have = opener(candidate.deployment, 1).run(feeds)["y"]
    return float(np.sqrt(np.mean((have - want) ** 2) / np.mean(want**2)))
