"""Bare layers with random weights, dense or sparse, as a runtime loads them: what a probe times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.measure.kind import DENSE, Kind
from lstmopt.rnn.cells import CellSpec
from lstmopt.rnn.files import save_model
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import Deployment
from lstmopt.runtimes import runtime as find_runtime
from lstmopt.runtimes.onnxruntime import QUANTIZED_OPERATORS
from lstmopt.runtimes.ops import sparse_layer_model
from lstmopt.sparsity.formats import Format
from lstmopt.sparsity.formats.layers import pack_layer
from lstmopt.sparsity.patterns import parse_pattern
from lstmopt.sparsity.precisions import sparse_format

Array = npt.NDArray[np.float32]


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
        model = sparse_layer_model(weights, *_packed(weights, item, kind), sequence=sequence, batch=batch)
    save_model(model, source)
    return find_runtime(kind.runtime).build(source, _precision(weights.cell, kind), folder / "built")


def _precision(cell: CellSpec, kind: Kind) -> str:
    """Returns the precision of a layer alone: what dynamic quantisation does not cover stays f32 in int8."""
    covered = cell.kind in QUANTIZED_OPERATORS
    return kind.precision if covered or (kind.runtime, kind.precision) != ("onnxruntime", "int8") else "f32"


def _packed(weights: RnnWeights, item: Format, kind: Kind) -> tuple[list[bytes], list[bytes]]:
    """Returns W and R under a legal mask, one budget over both, packed by direction."""
    pattern = parse_pattern(kind.pattern)
    masked: dict[str, list[Array]] = {"w": [], "r": []}
    for pair in zip(*weights.matrices, strict=True):
        both = dict(zip("wr", pair, strict=True))
        masks = pattern.masks({name: np.abs(each) for name, each in both.items()}, kind.density)
        for name, each in both.items():
            masked[name].append(each * masks[name])
    return pack_layer(item, replace(weights, w=np.stack(masked["w"]), r=np.stack(masked["r"])))


def random_layer(
    cell: CellSpec, hidden: int, inputs: int, directions: int, seed: int, reset_after: bool = False
) -> RnnWeights:
    """Returns a layer of uniform random weights as frameworks start from.

    Args:
        cell: its kind.
        hidden: hidden units of a direction.
        inputs: features of a step.
        directions: 1 or 2.
        seed: of the weights.
        reset_after: see `RnnWeights`.
    """
    rng = np.random.default_rng(seed)
    scale = 1 / np.sqrt(hidden)

    def draw(*shape: int) -> Array:
        return rng.uniform(-scale, scale, shape).astype(np.float32)

    gates = len(cell.gates)
    return RnnWeights(
        cell=cell,
        direction="bidirectional" if directions == 2 else "forward",
        w=draw(directions, gates, hidden, inputs),
        r=draw(directions, gates, hidden, hidden),
        b=draw(directions, 2, gates, hidden),
        reset_after=reset_after,
    )
