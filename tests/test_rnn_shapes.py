"""Which axis is what, in models whose names do not tell, and shapes that the user gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lstmopt.errors import LstmoptError
from lstmopt.rnn.examples import axis_roles, example_inputs, given_sizes, sizes_for
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.files import load_model
from lstmopt.rnn.reader import X, find_rnns
from tests.real_models import ddddocr, silero_vad
from tests.test_cli_errors import call, classifier, refused


def test_a_strided_front_end_gets_as_many_steps_as_were_asked_for() -> None:
    model = load_model(ddddocr())
    assert axis_roles(model)["image_width"] == "sequence"
    value = find_rnns(model)[0].input(X)
    assert value is not None
    for steps in (5, 35):
        outputs = Reference(model, also=[str(value.name)]).run(
            example_inputs(model, 0, sizes_for(model, 1, steps))
        )
        shape = outputs[str(value.name)].shape
        assert steps <= shape[0] <= 4 * steps and shape[1] == 1


def test_states_tell_the_batch_where_layers_are_in_branches() -> None:
    model = load_model(silero_vad("silero_vad.onnx"))
    roles = axis_roles(model)
    assert roles["state.1"] == "batch"
    feeds = example_inputs(model, 0, sizes_for(model, 2, 35, {"input": (2, 576)}))
    assert feeds["input"].shape == (2, 576) and feeds["state"].shape == (2, 2, 128)
    Reference(model).run(feeds)
    feeds = example_inputs(model, 0, sizes_for(model, 1, 35))
    assert feeds["state"].shape == (2, 1, 128) and feeds["input"].shape[0] == 1


def test_given_shapes_are_taken_as_they_are(tmp_path: Path) -> None:
    model = load_model(classifier(tmp_path / "m.onnx"))
    assert example_inputs(model, 0, sizes_for(model, 1, 35, {"x": (9, 3, 4)}))["x"].shape == (9, 3, 4)
    with pytest.raises(LstmoptError, match="no such input"):
        given_sizes(model, {"y": (1, 2)})
    with pytest.raises(LstmoptError, match="does not fit"):
        given_sizes(model, {"x": (9, 3, 5)})


def test_shapes_on_the_command_line(tmp_path: Path) -> None:
    model = classifier(tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.zeros((40, 6, 4), np.float32), labels=np.zeros(40, np.int64))
    saved = tmp_path / "saved.toml"
    arguments = ["optimize", model, "--data", tmp_path / "d.npz", "--dry-run"]
    first = call(*arguments, "--shape", "x=7x1x4", "--save-config", saved)
    assert first.returncode == 0, first.stderr
    assert "x=7x1x4" in saved.read_text()
    assert call("optimize", model, "--config", saved, "--dry-run").returncode == 0
    assert call(*arguments, "--shape", "x=seven").returncode == 2
    refused(call(*arguments, "--shape", "z=1x4"), "shape of z", "no such input")
    refused(call(*arguments, "--shape", "x=1x4"), "shape of x", "does not fit")
    told = call("export", model, "--runtime", "onnxruntime", "-o", tmp_path / "out", "--shape", "z=1x4")
    assert told.returncode == 2 and "no such input" in told.stderr
