"""Bare LSTM layers with random weights, dense or sparse, as a runtime loads them: what a probe times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.measure.kind import DENSE, Kind
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.files import save_model
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import Deployment
from lstmopt.runtimes import runtime as find_runtime
from lstmopt.runtimes.ops import sparse_lstm_model
from lstmopt.sparsity.formats import Format
from lstmopt.sparsity.patterns import parse_pattern
from lstmopt.sparsity.precisions import sparse_format


def build_bare(weights: RnnWeights, kind: Kind, folder: Path, *, sequence: int, batch: int) -> Deployment:
    """Writes a bare layer as a runtime loads it.

    Args:
        weights: dense; a sparse kind keeps the entries of the legal mask that keeps the largest.
        kind: runtime and precision, and the pattern and density of a sparse one.
        folder: where the files go; it is there.
        sequence: steps of a call.
        batch: sequences of a call.

    Raises:
        LstmoptError: the runtime cannot load such a layer, or the library of the native ops is missing.
    """
    item, source = sparse_format(kind.precision), folder / "source.onnx"
    if (item is None) is not (kind.pattern == DENSE):
        raise LstmoptError(
            f"precision {kind.precision}",
            f"does not go with pattern {kind.pattern}",
            "sparse precisions take a pattern, the others are dense",
        )
    if item is None:
        model = rnn_model(weights, sequence=sequence, batch=batch)
    else:
        model = sparse_lstm_model(weights, *_packed(weights, item, kind), sequence=sequence, batch=batch)
    save_model(model, source)
    return find_runtime(kind.runtime).build(source, kind.precision, folder / "built")


def _packed(weights: RnnWeights, item: Format, kind: Kind) -> tuple[list[bytes], list[bytes]]:
    """Returns W and R under a legal mask, one budget over both, packed by direction."""
    pattern = parse_pattern(kind.pattern)
    packed: tuple[list[bytes], list[bytes]] = ([], [])
    for pair in zip(*weights.matrices, strict=True):
        masks = pattern.masks(
            {name: np.abs(each) for name, each in zip("wr", pair, strict=True)}, kind.density
        )
        for blobs, name, each in zip(packed, "wr", pair, strict=True):
            blobs.append(item.pack(each * masks[name]))
    return packed


def random_layer(hidden: int, inputs: int, directions: int, seed: int) -> RnnWeights:
    """Returns an LSTM layer of uniform random weights as frameworks start from.

    Args:
        hidden: hidden units of a direction.
        inputs: features of a step.
        directions: 1 or 2.
        seed: of the weights.
    """
    rng = np.random.default_rng(seed)
    scale = 1 / np.sqrt(hidden)

    def draw(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return rng.uniform(-scale, scale, shape).astype(np.float32)

    gates = len(LSTM.gates)
    return RnnWeights(
        cell=LSTM,
        direction="bidirectional" if directions == 2 else "forward",
        w=draw(directions, gates, hidden, inputs),
        r=draw(directions, gates, hidden, hidden),
        b=draw(directions, 2, gates, hidden),
    )
