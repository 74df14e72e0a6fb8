"""What the report makes of broken candidates, of an untrusted measurement and of few data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import lstmopt
from lstmopt import measure
from lstmopt.measure.statistics import Spread
from lstmopt.measure.table import LatencyTable
from lstmopt.measure.timing import Comparison
from lstmopt.passes import Export, Resize, Simplify
from lstmopt.passes.candidates import assess, build, key
from lstmopt.passes.export import choose
from lstmopt.passes.reporting import KEPT_INTERRUPTED, curves, report, write_latency
from lstmopt.report.html import render_html
from lstmopt.rnn.files import load_model
from tests.test_cli_errors import classifier, examples
from tests.test_measure_table import table
from tests.test_pipeline import ONE, Count

X = np.random.default_rng(5).standard_normal((60, 6, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two kinds of labels: any classes, and the model's own answers, on which it has no loss."""
    path = tmp_path_factory.mktemp("reporting")
    classifier(path / "model.onnx", 16)
    examples(path / "classes.npz", 60, x=X)
    session = ort.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])
    answers = [session.run(None, {"x": X[[i]].transpose(1, 0, 2)})[0][0] for i in range(len(X))]
    examples(path / "answers.npz", 60, x=X, labels=np.stack(answers))
    return path


def run(folder: Path, output: Path, data: str, *stages: Any) -> lstmopt.State:
    return lstmopt.Pipeline(*(stages or (Count(),))).run(
        folder / "model.onnx", output=output, data=folder / data, target=ONE, max_degradation=0.01
    )


def spoilt(model: ir.Model, value: float) -> ir.Model:
    """The model with a decoder that answers with one value."""
    decoder = model.graph.initializers["decoder"]
    assert decoder.const_value is not None
    array = np.full(decoder.const_value.shape.numpy(), value, np.float32)
    decoder.const_value = ir.Tensor(array, name="decoder")
    return model


def assessed(
    folder: Path, output: Path, data: str, value: float, **changes: Any
) -> tuple[lstmopt.State, tuple[Any, ...], Comparison]:
    """Returns the original and a spoilt model, both evaluated, with latencies that are made up."""
    state = run(folder, output, data)
    broken = spoilt(load_model(folder / "model.onnx"), value)
    state = replace(state, trained={"pruned": broken})
    models = {"original": state.original, "pruned": broken}
    builds = [build(name, model, ONE, output / "builds") for name, model in models.items()]
    names = [key(built.name, item) for built in builds for item in built.deployments]
    rounds = {name: [np.full(5, 10.0 + index)] * 4 for index, name in enumerate(names)}
    fields: dict[str, Any] = {
        "rounds": rounds, "aa": measure.Ratio(value=1.0, low=0.99, high=1.01), "discarded": 0,
        "kept_interrupted": False, "processes": 2, "apart": Spread(0.0, 3),
    }  # fmt: skip
    comparison = Comparison(**{**fields, **changes})
    return state, assess(builds, comparison, state), comparison


@pytest.mark.parametrize(
    ("data", "value"), [("classes.npz", math.nan), ("answers.npz", math.nan), ("answers.npz", 0.0)]
)
def test_a_broken_candidate_is_reported_and_does_not_ship(
    folder: Path, tmp_path: Path, data: str, value: float
) -> None:
    state, candidates, comparison = assessed(folder, tmp_path, data, value)
    original, broken = candidates
    assert original.degradation.value == 0 and original.within_contract
    assert not math.isfinite(broken.degradation.value) and not broken.within_contract
    made = report(state, state.model, candidates, choose(candidates, 0.01), comparison, None)
    assert made.optimized.name == "original" and made.contract.met
    (record,) = (item for item in made.candidates if item.name == "pruned")
    assert record.degradation is None and record.degradation_interval is None and not record.within_contract
    assert "NaN" not in made.text() and "Infinity" not in made.text()
    render_html(made)


@pytest.mark.deep
def test_infinite_degradations_are_kept_with_their_stage(folder: Path, tmp_path: Path) -> None:
    """On labels that are the original's own answers everything else is infinitely worse."""
    chain = (Simplify(), Resize(hidden_size=8), Export(5))
    first = run(folder, tmp_path, "answers.npz", *chain)
    values = {item.name: item.degradation.value for item in first.candidates if item.degradation is not None}
    assert values == {"original": 0.0, "optimized": math.inf}
    (kept,) = tmp_path.glob(".run/export-*/state.json")
    before = kept.stat().st_mtime_ns
    again = run(folder, tmp_path, "answers.npz", *chain)
    assert kept.stat().st_mtime_ns == before and again.candidates == first.candidates


@pytest.mark.parametrize("aa", [0.97, 1.0, 1.03])
def test_an_untrusted_measurement_publishes_no_ratio(folder: Path, tmp_path: Path, aa: float) -> None:
    ratio = measure.Ratio(value=aa, low=aa - 0.01, high=aa + 0.01)
    state, candidates, comparison = assessed(folder, tmp_path, "classes.npz", 1.0, aa=ratio)
    made = report(state, state.model, candidates, candidates[0], comparison, None)
    document = json.loads(made.text())
    assert document["measurement"]["trusted"] is (aa == 1.0)
    for name in ("latency_over_f32", "latency_over_best_peer"):
        values = document["ratios"][name]
        assert values.keys() == {"value", "low", "high"}
        assert (None in values.values()) is (aa != 1.0)
    assert ("no speed is published" in " ".join(made.lines)) is (aa != 1.0)


def test_interrupted_rounds_that_were_kept_are_noted(folder: Path, tmp_path: Path) -> None:
    for kept in (True, False):
        place = tmp_path / str(kept)
        state, candidates, comparison = assessed(folder, place, "classes.npz", 1.0, kept_interrupted=kept)
        made = report(state, state.model, candidates, candidates[0], comparison, None)
        assert (KEPT_INTERRUPTED in made.notes) is kept


def test_the_contract_tells_how_few_the_data_are(folder: Path, tmp_path: Path) -> None:
    state, candidates, comparison = assessed(folder, tmp_path, "classes.npz", 1.0)
    made = report(state, state.model, candidates, candidates[0], comparison, None)
    assert made.contract.n == 6 and made.contract.too_few and made.contract.metric == "cross-entropy"
    assert any("too few" in line for line in made.lines)


def test_the_contract_names_what_degrades(folder: Path, tmp_path: Path) -> None:
    state, candidates, comparison = assessed(folder, tmp_path, "answers.npz", 1.0)
    made = report(state, state.model, candidates, candidates[0], comparison, None)
    assert made.contract.metric == "mean square error"
    assert made.optimized.metric is not None and made.optimized.metric.name == "rmse"


def test_agreement_reaches_the_report(folder: Path, tmp_path: Path) -> None:
    np.savez(folder / "plain.npz", x=X)
    state, candidates, comparison = assessed(folder, tmp_path, "plain.npz", 1.0)
    made = report(state, state.model, candidates, candidates[0], comparison, None)
    assert made.contract.agreement == made.peers[0].agreement == 1.0
    (record,) = (item for item in made.candidates if item.name == "pruned")
    assert record.agreement is not None and record.agreement < 1.0  # it always answers with the first class


def test_each_density_of_a_layer_has_its_own_table_picture_and_curve(tmp_path: Path) -> None:
    axes = {"precision": "sparse-i8", "pattern": "bank64:step4"}
    tables = [table(), *(table(**axes, density=density) for density in (0.0625, 0.125))]
    write_latency(tmp_path, tables)
    stems = {path.stem for path in tmp_path.glob("*.png")}
    assert stems == {"bare-openvino-f32"} | {
        f"bare-openvino-sparse-i8-bank64-step4-{density}" for density in (0.0625, 0.125)
    }
    assert {LatencyTable.load(tmp_path / f"{stem}.json").density for stem in stems} == {1.0, 0.0625, 0.125}
    assert [item.title for item in curves(tables)][1] == "bare, openvino sparse-i8, bank64:step4 at 6.25%"
