"""`SparseGRUSequence` in both runtimes: right numbers in either reset form, hostile files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lstmopt.rnn.cells import GRU
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes.ops import sparse_layer_model
from lstmopt.sparsity.formats import FORMATS, Format, format_named, unpack
from lstmopt.sparsity.formats.layers import layer_bytes, pack_layer
from tests.ops import (
    WITH_ALPHA,
    WITH_BETA,
    activations_of,
    check_lengths,
    error,
    needs_ops,
    ort_session,
    ov_compile,
    ov_run,
    save_dense,
)

pytestmark = needs_ops
Array = np.ndarray
DIRECTIONS = ("forward", "reverse", "bidirectional")


def random_gru(
    rng: np.random.Generator,
    item: Format | None,
    *,
    hidden: int = 0,
    inputs: int = 0,
    direction: str = "",
    reset_after: bool | None = None,
    density: float = 0.2,
    **options: Any,
) -> RnnWeights:
    """Returns a layer of sparse weights, rounded to a format where one is given."""
    hidden, inputs = hidden or int(rng.integers(1, 90)), inputs or int(rng.integers(1, 90))
    direction = direction or str(rng.choice(DIRECTIONS))
    directions = 2 if direction == "bidirectional" else 1

    def matrix(columns: int) -> Array:
        values = rng.standard_normal((directions, 3, hidden, columns)) / np.sqrt(density * columns + 1)
        shape = (directions, 1, hidden, columns) if item and item.name == "i8-shared" else values.shape
        values = (values * (rng.random(shape) < density)).astype(np.float32)
        return np.stack([item.round_weights(each) for each in values]) if item else values

    bias = (0.3 * rng.standard_normal((directions, 2, 3, hidden))).astype(np.float32)
    after = bool(rng.random() < 0.5) if reset_after is None else reset_after
    return RnnWeights(GRU, direction, matrix(inputs), matrix(hidden), bias, reset_after=after, **options)


def feeds(rng: np.random.Generator, weights: RnnWeights, steps: int, batch: int) -> dict[str, Array]:
    """Returns an input and an initial state for `sparse_layer_model(states=True)`."""
    state = weights.num_directions, batch, weights.hidden_size
    return {
        "x": rng.standard_normal((steps, batch, weights.input_size)).astype(np.float32),
        "h_0": (0.5 * rng.standard_normal(state)).astype(np.float32),
    }


def double_gru(weights: RnnWeights, x: Array, h_0: Array, lengths: Array | None = None) -> list[Array]:
    """Returns Y and Y_h as ONNX specifies them, in double precision; zeros of a sequence of length 0."""
    steps, batch, _ = x.shape
    ends = np.full(batch, steps) if lengths is None else np.clip(lengths, 0, steps)
    bound = np.inf if weights.clip is None else weights.clip
    functions = [
        lambda value, f=function: f(np.clip(value, -bound, bound)) for function in activations_of(weights)
    ]
    y = np.zeros((steps, weights.num_directions, batch, weights.hidden_size))
    h = h_0.astype(np.float64) * (ends > 0)[:, None]
    for d in range(weights.num_directions):
        f, g = functions[2 * d : 2 * d + 2]
        w, r = weights.w[d].astype(np.float64), weights.r[d].astype(np.float64)
        wb, rb = weights.b[d].astype(np.float64)
        for row in range(batch):
            for step in range(ends[row]):
                t = ends[row] - 1 - step if weights.direction == "reverse" or d == 1 else step
                given, seen, before = w @ x[t, row] + wb, r @ h[d, row] + rb, h[d, row]
                z, reset = f(given[0] + seen[0]), f(given[1] + seen[1])
                inner = reset * seen[2] if weights.reset_after else r[2] @ (reset * before) + rb[2]
                h[d, row] = (1 - z) * g(given[2] + inner) + z * before
                y[t, d, row] = h[d, row]
    return [y, h]


def saved(path: Path, weights: RnnWeights, item: Format, **options: Any) -> Path:
    ir.save(sparse_layer_model(weights, *pack_layer(item, weights), states=True, **options), path)
    return path


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_is_packed_stands_for_the_rounded_weights(name: str) -> None:
    """Cut between gates or not, and whatever the format of a part of one gate."""
    item, rng = format_named(name), np.random.default_rng(8)
    for after in (False, True):
        weights = random_gru(rng, item, hidden=37, inputs=70, reset_after=after)
        packed = pack_layer(item, weights)
        assert tuple(sum(map(len, part)) for part in packed) == layer_bytes(item, weights)
        for matrix, blobs in zip(weights.matrices, packed, strict=True):
            for each, blob in zip(matrix, blobs, strict=True):
                parts, at = [], 0
                while at < len(blob):
                    size = int.from_bytes(blob[at + 32 : at + 40], "little")
                    parts.append(unpack(blob[at : at + size]))
                    at += size
                assert len(parts) == (1 if after or matrix is weights.w else 2)
                np.testing.assert_array_equal(np.concatenate(parts), each)


def test_f32_is_as_exact_as_onnxruntime(tmp_path: Path) -> None:
    rng, item, total = np.random.default_rng(1), format_named("f32"), np.zeros(2)
    for number in range(24):
        options = {"clip": 0.75} if number % 3 == 2 else {}
        weights = random_gru(rng, item, reset_after=number % 2 == 0, **options)
        given = feeds(rng, weights, int(rng.integers(1, 12)), int(rng.integers(1, 6)))
        want = double_gru(weights, given["x"], given["h_0"])
        ir.save(rnn_model(weights, states=True), tmp_path / "dense.onnx")
        own = ort_session(tmp_path / "dense.onnx", ours=False).run(None, given)
        path = saved(tmp_path / "sparse.onnx", weights, item)
        ours = ort_session(path).run(None, given)
        for have, theirs, right in zip(ours, own, want, strict=True):
            errors = error(have, right), error(theirs, right)
            total += np.square(errors)
            assert errors[0] < 4 * max(errors[1], 2**-23), number
        if number % 4 == 0:
            for have, other in zip(ours, ov_run(ov_compile(path), given), strict=True):
                assert np.array_equal(have, other)
    assert np.sqrt(total[0]) < 4 * np.sqrt(total[1])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_formats_within_their_bands(tmp_path: Path, name: str, after: bool) -> None:
    item, rng = format_named(name), np.random.default_rng(3)
    for hidden in (48, 130):
        weights = random_gru(rng, None, hidden=hidden, inputs=hidden, direction="forward", reset_after=after)
        if name == "i8-shared":
            shared = {key: getattr(weights, key) * (getattr(weights, key)[:, :1] != 0) for key in "wr"}
            weights = replace(weights, **shared)
        given = feeds(rng, weights, 35, 2)
        want = double_gru(weights, given["x"], given["h_0"])
        path = saved(tmp_path / "sparse.onnx", weights, item)
        ours = ort_session(path).run(None, given)
        for have, right in zip(ours, want, strict=True):
            assert error(have, right) < item.error
        for have, other in zip(ours, ov_run(ov_compile(path), given), strict=True):
            assert np.array_equal(have, other)


@pytest.mark.parametrize("name", ["f32", "i8"])
def test_lengths_and_rows_of_a_batch(tmp_path: Path, name: str) -> None:
    item, rng = format_named(name), np.random.default_rng(4)
    for number, direction in enumerate((*DIRECTIONS, *DIRECTIONS)):
        weights = random_gru(rng, item, direction=direction, reset_after=number < len(DIRECTIONS))
        given = feeds(rng, weights, 7, 5)
        dense = save_dense(tmp_path / "dense.onnx", weights, lengths=True)
        path = saved(tmp_path / "sparse.onnx", weights, item, lengths=True)
        for lengths in ([7, 3, 1, 0, 9], [0, 2, 0, 0, 0], [0] * 5):
            given["lengths"] = np.array(lengths, np.int32)
            want = double_gru(weights, given["x"], given["h_0"], given["lengths"])
            check_lengths(dense, path, given, want, item.error)
            session = ort_session(path)
            alone = {"x": given["x"][:, 1:2], "h_0": given["h_0"][:, 1:2], "lengths": given["lengths"][1:2]}
            whole = session.run(None, given)
            np.testing.assert_array_equal(session.run(None, alone)[0][:, :, 0], whole[0][:, :, 1])


def test_threads_and_activations(tmp_path: Path) -> None:
    rng, item = np.random.default_rng(5), format_named("f32")
    for extra in ("Relu", "ThresholdedRelu", "Softplus", "Elu", "Affine", "LeakyRelu"):
        chosen = ("HardSigmoid", extra, "Sigmoid", "ScaledTanh")
        weights = random_gru(rng, item, hidden=70, inputs=20)
        chosen = chosen[: 2 * weights.num_directions]
        weights = replace(
            weights,
            activations=chosen,
            activation_alpha=tuple(0.3 for name in chosen if name in WITH_ALPHA),
            activation_beta=tuple(0.7 for name in chosen if name in WITH_BETA),
        )
        given = feeds(rng, weights, 5, 2)
        want = double_gru(weights, given["x"], given["h_0"])
        path = saved(tmp_path / "sparse.onnx", weights, item, threads=2)
        for results in (ort_session(path).run(None, given), ov_run(ov_compile(path), given)):
            for have, right in zip(results, want, strict=True):
                assert error(have, right) < 3e-6


def test_files_of_openvino_keep_the_reset_form(tmp_path: Path) -> None:
    import openvino as ov

    from tests.ops import ov_core

    rng, item = np.random.default_rng(7), format_named("f32")
    for after in (False, True):
        weights = random_gru(rng, item, hidden=64, inputs=30, reset_after=after)
        given = feeds(rng, weights, 9, 2)
        want = double_gru(weights, given["x"], given["h_0"])
        path = saved(tmp_path / "sparse.onnx", weights, item)
        ov.save_model(ov_core().read_model(str(path)), tmp_path / "model.xml", compress_to_fp16=False)
        results = ov_run(ov_compile(tmp_path / "model.xml"), given)
        for have, right in zip(results, want, strict=True):
            assert error(have, right) < 3e-6


def test_weights_of_another_form_are_refused_when_a_model_is_loaded(tmp_path: Path) -> None:
    """R of the other reset form, of another cell, or cut short: one line in either runtime."""
    rng, item = np.random.default_rng(9), format_named("i8")
    path = saved(tmp_path / "sparse.onnx", random_gru(rng, item, hidden=20, reset_after=True), item)
    good = onnx.load(path)

    def changed(change: Any) -> Path:
        proto = onnx.ModelProto.FromString(good.SerializeToString())
        change(proto.graph)
        onnx.save(proto, tmp_path / "bad.onnx")
        return tmp_path / "bad.onnx"

    def drop(name: str) -> Any:
        def change(graph: Any) -> None:
            kept = [each for each in graph.node[0].attribute if each.name != name]
            del graph.node[0].attribute[:]
            graph.node[0].attribute.extend(kept)

        return change

    def cut(graph: Any) -> None:
        tensor = next(each for each in graph.initializer if each.name.endswith(".R"))
        tensor.raw_data = tensor.raw_data[:-64]
        tensor.dims[0] -= 64

    def turned(graph: Any) -> None:
        graph.node[0].op_type = "SparseLSTMSequence"

    faults = {
        "expected 2": drop("linear_before_reset"),
        "size that they name": cut,
        "linear_before_reset is for a GRU": turned,
    }
    for fault, change in faults.items():
        bad = changed(change)
        for load in (ort_session, ov_compile):
            with pytest.raises(Exception, match=fault):
                load(bad)
