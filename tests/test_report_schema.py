"""report.json and manifest.json: the contract's names, a round trip, damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmopt.errors import LstmoptError
from lstmopt.measure import Ratio, Timing
from lstmopt.report.parts import LEAST_BLOCKS, CandidateRecord
from lstmopt.report.schema import (
    MADE_INPUTS,
    UNLABELLED,
    Interval,
    Manifest,
    Measurement,
    Peer,
    Ratios,
    Report,
    Size,
    Speedup,
)
from tests.report_samples import manifest, report


def test_report_has_the_contract_s_names() -> None:
    document = json.loads(report().text())
    assert document["schema"] == 1
    assert {
        "target",
        "fingerprint",
        "peers",
        "fastest_f32",
        "best_peer",
        "optimized",
        "ratios",
        "lstms",
        "contract",
        "passes",
        "candidates",
        "notes",
        "lines",
        "seed",
        "command",
    } <= document.keys()
    peer = document["peers"][0]
    assert {"runtime", "precision", "latency_us", "degradation", "within_contract"} <= peer.keys()
    assert {"median", "p10", "p90", "p99", "samples"} <= peer["latency_us"].keys()
    assert {
        "runtime",
        "precision",
        "file",
        "latency_us",
        "parameters",
        "nonzero_parameters",
        "bytes",
        "metric",
    } <= document["optimized"].keys()
    assert {"name", "original", "optimized"} <= document["optimized"]["metric"].keys()
    ratios = document["ratios"]
    assert {"parameters", "nonzero_parameters"} <= ratios.keys()
    assert (
        ratios["latency_over_f32"].keys()
        == ratios["latency_over_best_peer"].keys()
        == {"value", "low", "high"}
    )
    assert ratios["nonzero_parameters"] == pytest.approx(1_945_000 / 322_560)
    assert {"name", "hidden_size", "pattern", "density"} <= document["lstms"][0].keys()
    assert document["lstms"][0]["hidden_size"].keys() == {"before", "after"}
    contract = document["contract"]
    assert {"kind", "metric", "max_degradation", "degradation", "met", "data"} <= contract.keys()
    assert contract["degradation"].keys() == {"value", "low", "high"}
    assert document["passes"][0].keys() == {"name", "seconds", "modified"}


def test_manifest_has_the_contract_s_names() -> None:
    document = json.loads(manifest({"model.onnx": "00"}).text())
    assert document["schema"] == 1
    assert {"schema", "files", "versions", "fingerprint", "deploy", "states"} <= document.keys()
    assert document["deploy"][0].keys() == {
        "runtime",
        "file",
        "precision",
        "settings",
        "libraries",
        "input_shapes",
    }
    assert document["deploy"][0]["input_shapes"] == {"tokens": ["sequence", 1]}


def test_round_trip(tmp_path: Path) -> None:
    report().save(tmp_path / "report.json")
    manifest().save(tmp_path / "manifest.json")
    assert Report.load(tmp_path / "report.json") == report()
    assert Manifest.load(tmp_path / "manifest.json") == manifest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "report.json"]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_damaged_files_are_one_clear_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "report.json"
    text = report().text().encode()
    kind = data.draw(st.sampled_from(["cut", "field", "type"]))
    if kind == "cut":
        text = text[: data.draw(st.integers(0, len(text) - 4))]
    else:
        document = json.loads(text)
        field = data.draw(
            st.sampled_from(["fingerprint", "peers", "optimized", "ratios", "contract", "target"])
        )
        document[field] = [] if kind == "type" else None
        text = json.dumps(document).encode()
    path.write_bytes(text)
    with pytest.raises(LstmoptError) as caught:
        Report.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("change", [{"schema": 2}, {"fastest_f32": 3}, {"best_peer": -1}])
def test_other_schemas_and_wrong_indices_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**json.loads(report().text()), **change}))
    with pytest.raises(LstmoptError):
        Report.load(path)


@pytest.mark.parametrize("file", ["/etc/passwd", "../model.onnx", "a/../../b"])
def test_manifest_paths_stay_inside(tmp_path: Path, file: str) -> None:
    document = json.loads(manifest().text())
    document["deploy"][0]["file"] = file
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(LstmoptError, match="inside the artifact"):
        Manifest.load(tmp_path / "manifest.json")


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(LstmoptError, match="cannot be read"):
        Report.load(tmp_path / "report.json")
    (tmp_path / "report.json").write_bytes(bytes(range(256)))
    with pytest.raises(LstmoptError, match="damaged"):
        Report.load(tmp_path / "report.json")


def test_deployments_are_located() -> None:
    first = manifest().deployments(Path("/some/artifact"))[0]
    assert first.file == Path("/some/artifact/onnxruntime/model.onnx")


def test_measurements_of_other_rooms_are_taken_as_they_are() -> None:
    timing = Timing(median=3.0, p10=2.0, p90=4.0, p99=5.0, low=2.9, high=3.1, samples=10)
    peer = Peer(
        runtime="openvino",
        precision="f32",
        latency_us=timing,
        degradation=float("nan"),
        within_contract=False,
    )
    assert peer.latency_us.p99 == 5.0 and peer.degradation is None
    empty = Size(parameters=0, nonzero_parameters=0, bytes=1)
    ratios = Ratios.of(Ratio(value=2, low=1, high=3), Ratio(value=1, low=1, high=1), empty, empty)
    assert ratios.latency_over_f32 == Speedup(value=2, low=1, high=3) and ratios.parameters is None


def test_first_lines() -> None:
    assert report().lines == ()
    contract = report().contract
    unlabelled = contract.model_copy(update={"kind": "fidelity", "made_inputs": True})
    assert report(contract=unlabelled).lines == (UNLABELLED, MADE_INPUTS)
    missed = contract.model_copy(update={"met": False})
    assert report(contract=missed).lines == ("does not meet the accuracy contract",)
    unsure = contract.model_copy(update={"degradation": Interval(value=0.019, low=0.01, high=0.03)})
    assert "too few" in report(contract=unsure).lines[0]
    # One block's interval is its own value, which says nothing of what other data would give.
    certain = Interval(value=0.0172, low=0.0172, high=0.0172)
    for n, few in ((1, True), (LEAST_BLOCKS - 1, True), (LEAST_BLOCKS, False)):
        single = contract.model_copy(update={"degradation": certain, "n": n})
        assert single.too_few is few
        assert (report(contract=single).lines != ()) is few
    endless = Interval(value=0.0172, low=0.0149, high=float("inf"))
    assert endless.high is None
    assert contract.model_copy(update={"degradation": endless, "n": 50}).too_few
    made = {
        "runtime": "onnxruntime", "precision": "f32", "bytes": 1, "within_contract": False,
        "latency_us": report().peers[0].latency_us, "hidden_sizes": {"lstm": 64},
    }  # fmt: skip
    own = CandidateRecord(**{**made, "name": "original", "within_contract": True, "shipped": True})
    far = CandidateRecord(**made, name="pruned-1", density=0.25, degradation=3.1195)
    near = CandidateRecord(**made, name="pruned-1-0.5", density=0.5, degradation=0.248)
    (line,) = report(candidates=(own, far, near)).lines
    assert "no smaller model" in line and "pruned-1-0.5, degrades by 24.8%" in line and "--budget" in line
    held = near.model_copy(update={"within_contract": True})
    assert report(candidates=(own, far, held)).lines == report(candidates=(own,)).lines == ()
    busy = Measurement(aa=Interval(value=1.05, low=1.0, high=1.1), trusted=False)
    assert "no speed is published" in report(measurement=busy).lines[0]


def test_speeds_that_are_not_published_are_null(tmp_path: Path) -> None:
    sample = report()
    empty = Ratios.of(Speedup(), Speedup(), sample.original, sample.optimized)
    busy = Measurement(aa=Interval(value=1.05, low=1.0, high=1.1), trusted=False)
    report(ratios=empty, measurement=busy).save(tmp_path / "report.json")
    document = json.loads((tmp_path / "report.json").read_text())
    for name in ("latency_over_f32", "latency_over_best_peer"):
        assert document["ratios"][name] == {"value": None, "low": None, "high": None}
    assert document["ratios"]["parameters"] > 1 and document["measurement"]["trusted"] is False
    assert Report.load(tmp_path / "report.json").ratios == empty


def test_an_artifact_without_the_optional_fields_is_read() -> None:
    """Those of the same schema that an earlier version wrote."""
    document = json.loads(report().text())
    del document["cold"], document["test"]
    assert Report.model_validate(document).cold is None


def test_latency_with_empty_caches_is_a_row_where_it_is_known() -> None:
    from lstmopt.report import figures
    from lstmopt.report.html import result_rows

    rows = dict(result_rows(report())["rows"])
    assert rows["Latency, empty caches"] == ["–", figures.latency(902.4), figures.latency(341.7)]
    cold = report().cold
    assert cold is not None
    for other in (None, cold.model_copy(update={"trusted": False})):
        assert "Latency, empty caches" not in dict(result_rows(report(cold=other))["rows"])
