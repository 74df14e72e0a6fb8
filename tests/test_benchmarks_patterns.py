"""The ablation's own parts: models rebuilt with our ops, its rows, its page, a training of a row."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest

from benchmarks import patterns
from benchmarks.pattern_models import Model, Row
from benchmarks.pattern_page import front, page
from benchmarks.sparse_models import deployed, with_sparse_lstms
from lstmopt.passes import GrowPrune
from lstmopt.passes.plans import masked
from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import save_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.runtimes import open_session
from lstmopt.sparsity.formats import FORMATS
from lstmopt.sparsity.patterns import parse_pattern
from tests.ops import needs_ops
from tests.training import language_model, text

pytestmark = needs_ops


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return masked(language_model(tmp_path_factory.mktemp("model")), "unstructured", 0.4)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_model_computed_in_a_format_is_the_model(dense, tmp_path, name, runtime):
    """Names, states and values, in the real runtimes."""
    sparse = with_sparse_lstms(dense, name)
    assert not find_rnns(sparse) and len(find_rnns(dense)) == 2
    session = open_session(deployed(sparse, name, tmp_path / "model.onnx", runtime), 1)
    feeds = example_inputs(dense, 0, {"sequence": 7, "batch": 3})
    have, want = session.run(feeds), run_model(dense, feeds)
    assert set(have) == set(want)
    for key, value in want.items():
        error = np.sqrt(np.mean((have[key] - value) ** 2) / np.mean(value**2))
        assert error < 3 * FORMATS[name].error, key
        assert name == "f32" or error > 0


class Small(Model):
    name = "small"
    start = None
    data = {"train": text(20_000, 1), "valid": text(8_000, 2), "test": text(8_000, 3)}

    def recipe(self, row):
        return GrowPrune(
            density=row.density, pattern=row.pattern, rounding=row.rounding, steps=self.options.steps,
            batch=16, sequence=16, amp=False, regrow=0.0, seed=0,
        )  # fmt: skip


@pytest.fixture
def small(dense, tmp_path):
    model = Small(Namespace(work=tmp_path, steps=12))
    model.start = tmp_path / "dense.onnx"
    save_model(dense, model.start)
    return model


def test_rows():
    rows = Small(Namespace(work=None)).rows
    assert len(rows) == len({row.name for row in rows}) == 3 * 11 + 3
    assert [row.pattern for row in rows[:5]] == [
        "unstructured", "bank64:step4", "bank32:step2", "gate-shared64:step4", "block16x1",
    ]  # fmt: skip
    assert {row.density for row in rows[:11]} == {0.0625}
    for row in rows:
        assert str(parse_pattern(row.pattern)) == row.pattern


@pytest.mark.deep
def test_a_row_is_trained_once_and_the_page_tells_it(small, tmp_path, monkeypatch):
    monkeypatch.setattr(patterns, "ROUNDS", 4)
    rows = [Row("small", "unstructured", 0.125), Row("small", "bank64:step4", 0.0625, "i8")]
    rows += [Row("small", "bank64:step4", 0.0625)]
    for row in rows:
        small.train(row)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.onnx")}
    assert {path.name for path in written} == {"dense.onnx", *(f"{row.name}.onnx" for row in rows)}
    for row in rows:
        small.train(row)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.onnx")} == written
    monkeypatch.setitem(patterns.page.__globals__["TITLES"], "small", "A small one")
    patterns.write_page([small], tmp_path / "results")
    shown = (tmp_path / "results" / "patterns.md").read_text()
    assert "## A small one" in shown and "| bank64:step4, 6.25% | i8 | i8-planes2 |" in shown
    assert (
        "| unstructured | 12.5% |" in shown.replace("**", "")
        and "Not trained yet: small-unstructured" in shown
    )
    assert "| i8-shared |" not in shown and "| dense | | onnxruntime int8 |" in shown
    small.file(rows[0]).unlink()
    patterns.write_page([small], tmp_path / "results")
    assert "| unstructured | 12.5% |" in (tmp_path / "results" / "patterns.md").read_text().replace("**", "")


def test_the_front():
    def row(us, worse, made="here"):
        latency = {"us": {"dense f32": 1.0, "f32": 9e9, "i8": us}}
        return {"latency": latency, "degradation": {"value": worse}, "made": made}

    rows = [row(1, 3), row(2, 2), row(3, 2), row(2, 4), row(4, 1), row(2, 4, "there")]
    assert front(rows) == [True, True, False, False, True, True]


def test_earlier_rows_stay_until_they_are_made_again(small):
    def line(pattern, **more):
        return {"row": vars(Row("small", pattern, 0.125)), **more}

    before = {
        "rows": [line("bank64", valid=1, made="then"), line("bank32", valid=2, made="then")],
        "formats": [line("bank64", format=name, made="then") for name in ("i8", "f32")],
    }
    part = {"rows": [line("bank64", valid=3)], "formats": [line("bank64", format="i8")]}
    found = patterns.merged(small, part, before)
    assert [(item["valid"], item["made"] == "then") for item in found["rows"]] == [(3, False), (2, True)]
    assert [(item["format"], item["made"] == "then") for item in found["formats"]] == [
        ("i8", False),
        ("f32", True),
    ]
    assert "small-bank64-12.5" not in found["missing"] and "small-bank64-6.25" in found["missing"]


def test_a_page_of_nothing():
    assert page({}, "make patterns").startswith("# Sparsity patterns")
