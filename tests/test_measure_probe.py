"""Probing a bare layer in a real runtime: the table, its curve's picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lstmopt.errors import LstmoptError
from lstmopt.measure.bare import build_bare, random_layer
from lstmopt.measure.hysteresis import bins, points
from lstmopt.measure.kind import Kind
from lstmopt.measure.probe import plot_table, probe_layer, steady
from lstmopt.measure.table import LatencyTable
from lstmopt.rnn.cells import LSTM
from lstmopt.runtimes import open_session
from lstmopt.sparsity.formats import format_named
from lstmopt.sparsity.patterns import parse_pattern


@pytest.mark.parametrize(("input_size", "directions"), [(None, 1), (24, 2)])
def test_a_bare_layer(tmp_path: Path, input_size: int | None, directions: int) -> None:
    told = []
    table = probe_layer(
        layer="bare", input_size=input_size, hidden_sizes=[16, 48, 96, 192], directions=directions,
        runtime="onnxruntime", precision="f32", threads=1, batch=1, sequence=10,
        progress=lambda text, share: told.append(share),
    )  # fmt: skip
    assert table.dimensions == (16, 48, 96, 192) and table.input_size == input_size
    assert min(table.curve.values()) > 0
    assert table.points() == points(table.curve, max(0.01, table.resolution)) and table.points()[0] == 192
    assert table.bins() == bins(table.curve, max(0.01, table.resolution))
    assert sum(map(len, table.samples.values())) == table.measurements
    assert told and max(told) <= 1.0
    assert table.foreign() == ()
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table
    plot_table(table, tmp_path / "deep" / "curve.png")
    assert (tmp_path / "deep" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [item.name for item in (tmp_path / "deep").iterdir()] == ["curve.png"]


@pytest.mark.deep
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    ("precision", "pattern", "directions"),
    [("sparse-i8", "bank64:step4", 1), ("sparse-i8-shared", "gate-shared64:step4", 2)],
)
def test_a_bare_sparse_layer(
    tmp_path: Path, runtime: str, precision: str, pattern: str, directions: int
) -> None:
    table = probe_layer(
        layer="bare", input_size=None, hidden_sizes=[64, 128, 200], directions=directions, runtime=runtime,
        precision=precision, pattern=pattern, density=0.125, threads=1, batch=1, sequence=10,
    )  # fmt: skip
    assert table.kind == Kind(runtime, precision, pattern, 0.125)
    assert table.points()[0] == 200 and min(table.curve.values()) > 0
    plot_table(table, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_what_is_timed_of_a_sparse_layer_is_the_masked_layer(tmp_path: Path, name: str) -> None:
    """The op gives what the dense layer gives once all but the mask's entries are zeroed."""
    weights, kind = random_layer(LSTM, 40, 24, 2, seed=3), Kind(name, "sparse-f32", "bank32", 0.25)
    x = np.random.default_rng(0).standard_normal((7, 2, 24)).astype(np.float32)
    masked = []
    for w, r in zip(*weights.matrices, strict=True):
        masks = parse_pattern("bank32").masks({"w": np.abs(w), "r": np.abs(r)}, 0.25)
        assert all(parse_pattern("bank32").is_legal(mask) for mask in masks.values())
        masked.append((w * masks["w"], r * masks["r"]))
    dense = replace(weights, w=np.stack([w for w, _ in masked]), r=np.stack([r for _, r in masked]))
    assert dense.nonzero_parameters <= 0.25 * weights.parameters
    (tmp_path / "dense").mkdir()
    want, have = (
        open_session(build_bare(layer, each, folder, sequence=7, batch=2), 1).run({"x": x})["y"]
        for layer, each, folder in ((dense, Kind(name, "f32"), tmp_path / "dense"), (weights, kind, tmp_path))
    )
    assert np.sqrt(np.mean((have - want) ** 2) / np.mean(want**2)) < format_named("f32").error


def test_a_precision_and_a_pattern_have_to_go_together(tmp_path: Path) -> None:
    weights = random_layer(LSTM, 8, 8, 1, seed=0)
    for precision, pattern in (("sparse-i8", "dense"), ("f32", "bank32")):
        with pytest.raises(LstmoptError, match="does not go with pattern"):
            build_bare(weights, Kind("openvino", precision, pattern), tmp_path, sequence=1, batch=1)


def test_a_disturbed_reference_makes_no_block_look_fast() -> None:
    assert steady([10.0, 10.0, 30.0, 10.0, 10.0]) == [10.0, 10.0, 10.0, 10.0]
    assert steady([10.0, 11.0]) == [10.5]
    drift = steady([10.0, 11.0, 12.0, 13.0, 14.0])
    assert drift == sorted(drift) and drift[0] < drift[-1]
