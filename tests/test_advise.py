"""`advise` measures every option and names what to type for it; nothing is written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

from lstmopt.passes.advise import Advice, advise
from lstmopt.targets import RuntimeTarget, Shape, Target
from tests.real_models import ddddocr, silero_vad
from tests.test_cli_errors import call, classifier, examples

TARGET = """
name = "mine"
shapes = [{ batch = 2, sequence = 6 }]
[[runtimes]]
runtime = "onnxruntime"
precisions = ["f32"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("advise")
    classifier(path / "model.onnx", 32)
    (path / "target.toml").write_text(TARGET)
    return path


@pytest.fixture(scope="module")
def advice(folder: Path) -> Advice:
    result = call("advise", folder / "model.onnx", "--target", folder / "target.toml", "--json")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "target.toml"]
    return Advice.model_validate_json(result.stdout)


def test_every_option_is_measured(advice: Advice) -> None:
    measured = {(option.name, option.precision) for option in advice.options}
    names = {"as it is", "static shapes", "hidden sizes 24", "hidden sizes 16"}
    assert measured == {(name, "f32") for name in names}
    latencies = [option.latency_us for option in advice.options]
    assert latencies == sorted(latencies) and min(latencies) > 0
    for option in advice.options:
        assert 0 < option.low <= option.speedup <= option.high
        assert option.training == option.name.startswith("hidden sizes")
        assert (option.error is None) == option.training
        assert option.error is None or option.error < 1e-5
    assert advice.calls == "x [6, 2, 4]"


def test_the_speeds_are_those_of_the_latencies(advice: Advice) -> None:
    (first,) = (
        option
        for option in advice.options
        if option.name == "as it is" and option.precision == "f32" and option.threads == 1
    )
    assert first.speedup == 1.0
    for option in advice.options:
        if option.threads == 1:
            # medians of rounds against a median of ratios: not the same number, but the same thing
            assert option.speedup == pytest.approx(first.latency_us / option.latency_us, rel=0.5)


def test_the_command_of_an_option_does_what_it_says(folder: Path, advice: Advice, tmp_path: Path) -> None:
    for option in advice.options:
        if option.name != "as it is" or option.threads != 1:
            continue
        program, *arguments = shlex.split(option.command.replace("DIR", str(tmp_path / option.precision)))
        result = call(*arguments, "--json")
        assert program == "lstmopt" and result.returncode == 0, result.stderr
        exported = json.loads(result.stdout)
        assert exported["deployment"]["precision"] == option.precision
        assert Path(exported["deployment"]["file"]).is_file()
        onnx.checker.check_model(exported["deployment"]["file"])


@pytest.mark.deep
def test_with_data_the_error_is_the_degradation(folder: Path, tmp_path: Path) -> None:
    target = Target(
        name="one",
        runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32", "int8")),),
        shapes=(Shape(batch=1, sequence=6),),
    )
    data = examples(tmp_path / "data.npz", 60)
    told: list[str] = []
    result = advise(
        folder / "model.onnx", target=target, data=data, progress=lambda text, fraction: told.append(text)
    )
    assert result.error == "degradation" and any("evaluating" in text for text in told)
    errors = {
        option.precision: option.error
        for option in result.options
        if option.name == "as it is" and option.threads == 1
    }
    assert errors["f32"] == 0.0
    assert errors["int8"] is not None and np.isfinite(errors["int8"]) and errors["int8"] != 0.0


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    result = call("advise", tmp_path / "m.onnx")
    assert result.returncode == 2 and "not an ONNX file" in result.stderr


@pytest.mark.deep
@pytest.mark.parametrize("name", ["silero_vad.onnx", "silero_vad_16k_sequence.onnx", "ddddocr"])
def test_real_models_are_advised_on(name: str) -> None:
    path = ddddocr() if name == "ddddocr" else silero_vad(name)
    result = advise(path)
    assert {"openvino", "onnxruntime"} == {option.runtime for option in result.options}
    dense = [option for option in result.options if not option.training]
    assert all(option.error is not None for option in dense if option.threads == 1)
    for option in dense:
        if option.precision == "f32" and option.threads == 1:
            assert option.error is not None and option.error < 1e-4
    smaller = [option for option in result.options if option.training]
    if name == "silero_vad.onnx":  # its layers lie in If branches
        assert not smaller and any("no layer of this model can be resized" in note for note in result.notes)
    else:
        assert smaller
