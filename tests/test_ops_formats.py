"""Packed weights: an exact inverse, stable rounding, any mask, any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmopt.errors import LstmoptError
from lstmopt.sparsity.formats import FORMATS, format_named, unpack
from lstmopt.sparsity.patterns import parse_pattern

PATTERNS = {
    "f32": "bank32", "i16": "bank32:step2", "i16-bank64": "bank64:step2", "i8": "bank64:step4",
    "i8-planes2": "bank64:step4", "i8-shared": "gate-shared64:step4",
}  # fmt: skip


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    gates = draw(st.integers(1, 4))
    shape = gates, draw(st.integers(1, 40)), draw(st.integers(1, 140))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = 10.0 ** draw(st.integers(-36, 28))
    values = rng.standard_normal(shape) * rng.choice([1e-4, 1.0, 3.0], shape) * size
    if draw(st.booleans()):
        values = np.sign(values) * (1 + 1e-3 * rng.standard_normal(shape)) * size  # all near the largest
    values[rng.random(shape) >= draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))] = 0
    return values.astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(matrices(), st.sampled_from(sorted(FORMATS)))
def test_round_trip(matrix: np.ndarray, name: str) -> None:
    item = format_named(name)
    if name == "i8-shared" and matrix.shape[0] == 1:
        with pytest.raises(ValueError, match="gates of a layer"):
            item.pack(matrix)
        return
    rounded = item.round_weights(matrix)
    blob = item.pack(matrix)
    assert np.array_equal(unpack(blob), rounded)
    assert np.array_equal(item.round_weights(rounded), rounded)
    assert np.array_equal(unpack(item.pack(rounded)), rounded)
    assert not rounded[matrix == 0].any()
    assert len(blob) == item.packed_bytes(rounded != 0) and len(blob) % 64 == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_rounding_moves_little(name: str, seed: int) -> None:
    bound = {"f32": 2e-6, "i16": 1 / 450, "i16-bank64": 1 / 225}.get(name, 1 / 250)
    matrix = np.random.default_rng(seed).standard_normal((4, 33, 130)).astype(np.float32)
    matrix[..., ::3] = np.sign(matrix[..., ::3]) * (3 + 1e-3 * matrix[..., ::3])  # many near the largest
    moved = np.abs(format_named(name).round_weights(matrix) - matrix)
    largest = np.abs(matrix) if name == "f32" else np.abs(matrix).max(axis=2, keepdims=True)
    assert (moved <= bound * largest).all()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_cost_of_its_pattern(name: str) -> None:
    item = format_named(name)
    matrix = np.random.default_rng(0).standard_normal((4, 512, 512))
    mask = parse_pattern(PATTERNS[name]).masks({"w": np.abs(matrix)}, 0.0625)["w"]
    assert item.packed_bytes(mask) / np.count_nonzero(mask) < 1.13 * item.bytes_per_nonzero


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda blob: blob[:40], "cut off"),
        (lambda blob: blob[:-64], "size"),
        (lambda blob: b"x" + blob[1:], "not of lstmopt"),
        (lambda blob: blob[:8] + b"\x09" + blob[9:], "version 9"),
        (lambda blob: blob[:10] + b"\x09" + blob[11:], "impossible"),
    ],
)
def test_damaged(change, fault: str) -> None:  # noqa: ANN001
    blob = format_named("f32").pack(np.ones((4, 3, 5), np.float32))
    with pytest.raises(LstmoptError, match=fault):
        unpack(change(blob))


def test_bad_matrices() -> None:
    wrong = np.zeros((5, 3, 4)), np.zeros((4, 3)), np.full((4, 1, 1), np.nan), np.full((1, 1, 1), 1e31)
    for matrix in wrong:
        with pytest.raises(ValueError, match="a "):
            format_named("i8").pack(matrix)
    with pytest.raises(LstmoptError, match="unknown"):
        format_named("i4")
