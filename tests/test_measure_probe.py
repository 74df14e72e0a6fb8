"""Probing a bare layer in a real runtime: the table, its curve's picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from lstmopt.measure.hysteresis import bins, points
from lstmopt.measure.probe import plot_table, probe_layer, steady
from lstmopt.measure.table import LatencyTable


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


def test_a_disturbed_reference_makes_no_block_look_fast() -> None:
    assert steady([10.0, 10.0, 30.0, 10.0, 10.0]) == [10.0, 10.0, 10.0, 10.0]
    assert steady([10.0, 11.0]) == [10.5]
    drift = steady([10.0, 11.0, 12.0, 13.0, 14.0])
    assert drift == sorted(drift) and drift[0] < drift[-1]
