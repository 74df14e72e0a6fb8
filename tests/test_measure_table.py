"""Latency tables and fingerprints: round trips, damage, other machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.kind import Kind
from lstmopt.measure.table import LatencyTable, stems


def table(**changes: object) -> LatencyTable:
    values: dict[str, object] = {
        "fingerprint": fingerprint(), "runtime": "openvino", "version": "1", "precision": "f32", "threads": 1,
        "batch": 1, "sequence": 35, "layer": "bare", "input_size": None, "directions": 1,
        "dimensions": (8, 16, 24), "samples": {8: (1.0, 1.1), 24: (3.0,)},
        "curve": {8: 1.0, 16: 2.0, 24: 3.0}, "hysteresis_points": (24, 16, 8), "hysteresis_bins": (),
        "resolution": 0.01, "measurements": 3, "exhaustive": 9, "confidence": 1.0,
    }  # fmt: skip
    return LatencyTable(**{**values, **changes})  # type: ignore[arg-type]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(curve=st.dictionaries(st.integers(1, 4096), st.floats(0.1, 1e9), min_size=1, max_size=20))
def test_a_table_survives_its_file(tmp_path_factory: pytest.TempPathFactory, curve: dict[int, float]) -> None:
    dims = tuple(sorted(curve))
    one = table(dimensions=dims, curve=curve, hysteresis_points=(dims[-1],))
    path = tmp_path_factory.mktemp("table") / "deep" / "t.json"
    one.save(path)
    assert LatencyTable.load(path) == one
    assert [item.name for item in path.parent.iterdir()] == ["t.json"]
    assert all(one.latency(d) == pytest.approx(curve[d]) for d in dims)


SPARSE = {"precision": "sparse-i8", "pattern": "bank64:step4", "density": 0.0625}


def test_a_sparse_table_survives_with_its_axes(tmp_path: Path) -> None:
    one = table(**SPARSE)
    one.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == one
    assert one.kind == Kind("openvino", "sparse-i8", "bank64:step4", 0.0625)
    assert one.kind.title == "openvino sparse-i8, bank64:step4 at 6.25%"
    assert one.kind.stem == "openvino-sparse-i8-bank64-step4-0.0625"
    assert table().kind.title == "openvino f32" and table().kind.stem == "openvino-f32"


def test_every_axis_is_part_of_a_table_s_identity() -> None:
    others = [
        {"density": 0.125}, {"pattern": "bank64:k1:step4"}, {"precision": "sparse-i16"},
        {"runtime": "onnxruntime"},
    ]  # fmt: skip
    kinds = [table(**SPARSE).kind, table().kind, *(table(**{**SPARSE, **other}).kind for other in others)]
    assert len(set(kinds)) == len(kinds)
    assert len({kind.stem for kind in kinds}) == len({kind.title for kind in kinds}) == len(kinds)


def test_a_table_from_before_there_were_sparse_ones_is_dense(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table().save(path)
    document = json.loads(path.read_text())
    del document["pattern"], document["density"]
    path.write_text(json.dumps(document))
    assert LatencyTable.load(path) == table() and table().pattern == "dense" and table().density == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"precision": "sparse-i8"}, {"pattern": "bank64:step4", "density": 0.5}, {"density": 0.5},
        {**SPARSE, "density": 0.0}, {**SPARSE, "density": 1.5}, {**SPARSE, "precision": "sparse-i7"},
    ],
)  # fmt: skip
def test_axes_that_contradict_each_other_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        table(**wrong)


def test_between_two_sizes_the_straight_line() -> None:
    assert table().latency(20) == pytest.approx(2.5)
    assert table().latency(1000) == 3.0
    assert table().points() == (24, 16, 8) and table().bins() == ()


def test_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table().save(path)
    whole = path.read_text()
    document = json.loads(whole)
    damaged = [
        "", "[]", "null", whole[: len(whole) // 2],
        whole.replace("2.0", "NaN"), whole.replace("2.0", "Infinity"),
        json.dumps({**document, "schema": 2}), json.dumps({**document, "unknown": 1}),
        json.dumps({**document, "curve": {"8": 1.0}}), json.dumps({**document, "hysteresis_points": [99]}),
        json.dumps({**document, "curve": {"8": -1.0, "16": 2.0, "24": 3.0}}),
        json.dumps({key: value for key, value in document.items() if key != "fingerprint"}),
    ]  # fmt: skip
    for text in damaged:
        path.write_text(text)
        with pytest.raises(LstmoptError, match="damaged or of another schema"):
            LatencyTable.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LstmoptError, match="damaged"):
        LatencyTable.load(path)
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(LstmoptError, match="cannot be read"):
            LatencyTable.load(missing)


def test_this_machine_is_itself_and_another_is_told() -> None:
    here = fingerprint()
    assert here.cpu and here.cores >= 1 and here.memory_gib > 0
    assert here.difference(here) == () and table().foreign() == ()
    other = here.model_copy(update={"cpu": "another", "isa": (*here.isa, "amx_tile")})
    assert here.difference(other) == ("cpu", "isa")
    assert table(fingerprint=other).foreign() == ("cpu", "isa")
    # latency does not depend on the size of the main memory
    assert here.difference(here.model_copy(update={"memory_gib": 1.0})) == ()


def test_no_two_tables_are_one_file() -> None:
    tables = [
        table().model_copy(update={"layer": name}) for name in ("/enc/lstm", "enc-lstm", "enc_lstm", "a/b")
    ]
    found = stems(tables)
    assert found == [
        "enc-lstm-openvino-f32", "enc-lstm-openvino-f32-2", "enc_lstm-openvino-f32", "a-b-openvino-f32",
    ]  # fmt: skip
    assert stems(tables[:1], {*found}) == ["enc-lstm-openvino-f32-3"]
