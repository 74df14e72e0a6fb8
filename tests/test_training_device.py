"""Training where there is a GPU: what runs there is trained there, and what does not stays on the CPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from lstmopt.bridge import placing
from lstmopt.bridge.module import OnnxModule
from lstmopt.passes.grow_prune import GrowPrune
from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.reader import find_rnns
from tests.training import language_model, state_for

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("model"))


def test_a_module_that_runs_on_a_device_has_no_fault(model):
    module = OnnxModule(model)
    assert placing._fault(module, lambda: example_inputs(model, 0), "cpu") == ""
    assert all(weight.grad is None for weight in module.weights.values())


def test_a_module_that_does_not_run_there_is_told(model):
    def call():
        return example_inputs(model, 0)

    assert "the graph does not run" in placing._fault(OnnxModule(model), call, "meta")
    short = {name: array for name, array in call().items() if name != "tokens"}
    assert "the graph does not run" in placing._fault(OnnxModule(model), lambda: short, "cpu")


def test_a_module_that_computes_something_else_there_is_told(model, monkeypatch):
    module = OnnxModule(model)
    move = module.place

    def place(device, dtype=None):
        move(device, dtype)
        with torch.no_grad():
            next(iter(module.weights.values())).add_(0.1)

    monkeypatch.setattr(module, "place", place)
    assert "differs" in placing._fault(module, lambda: example_inputs(model, 0), "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_said(model):
    module = OnnxModule(model)
    with placing.placed_for_training([(module, lambda: example_inputs(model, 0))]) as notes:
        assert notes == () and module.device.type == "cpu"


def test_what_does_not_run_on_a_gpu_stays_on_the_cpu(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    modules = [OnnxModule(model) for _ in range(2)]
    trials = [(module, lambda: example_inputs(model, 0)) for module in modules]
    monkeypatch.setattr(placing, "_fault", lambda module, *_: "it fails" if module is modules[1] else "")
    before = torch.backends.cudnn.allow_tf32
    with placing.placed_for_training(trials) as (note,):
        assert note == "trained on the CPU: on the GPU it fails"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    assert all(module.device.type == "cpu" for module in modules)


STATES = {
    "untouched": "",
    "older": "b.cuda.matmul.allow_tf32 = True; b.cudnn.allow_tf32 = False",
    "by name": "torch.set_float32_matmul_precision('high')",
    "newer": "b.fp32_precision = 'tf32'",
    "one newer": "b.cudnn.rnn.fp32_precision = 'ieee'",
}
EXACT = """
import torch
from lstmopt.bridge.exact import exact_products
b = torch.backends
{}
places = (b.cuda.matmul, b.cudnn.rnn, b.cudnn.conv)
before = [place.fp32_precision for place in places]
with exact_products():
    assert [place.fp32_precision for place in places] == ["ieee"] * 3
assert [place.fp32_precision for place in places] == before
"""


@pytest.mark.parametrize("settings", STATES.values(), ids=STATES)
def test_products_are_exact_however_torch_was_set_and_as_before_after(settings):
    code = EXACT.format(settings)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_placed_arrays_keep_their_shapes(model):
    module = OnnxModule(model)
    for array in (np.array(3), np.zeros((0, 2)), np.arange(6).reshape(2, 3).T):
        assert tuple(module.placed(array).shape) == array.shape


@needs_gpu
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_on_a_gpu_ends_as_on_the_cpu(model, optimizer, tmp_path, monkeypatch):
    recipe = GrowPrune(
        density=0.2, steps=60, batch=16, sequence=16, mask_every=5, amp=False, pattern="bank32",
        rounding="i8", optimizer=optimizer, dropout=0.0,
    )  # fmt: skip
    found = recipe.run(state_for(model, tmp_path / "gpu"))
    assert any(note.startswith("trained on the NVIDIA") for note in found.notes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expected = recipe.run(state_for(model, tmp_path / "cpu"))
    state = state_for(model, tmp_path / "loss")
    losses = []
    for trained in (found, expected):
        module = OnnxModule(trained.model).eval()
        from lstmopt.bridge.runner import ModuleRunner

        losses.append(state.task.evaluate(ModuleRunner(trained.model, module), state.data.valid).loss)
        layers = [layer.weights for layer in find_rnns(trained.model)]
        kept = sum(w.nonzero_parameters for w in layers) / sum(w.parameters for w in layers)
        assert kept == pytest.approx(0.2, abs=0.02)
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


@needs_gpu
def test_a_training_on_a_gpu_goes_on_from_its_checkpoint(model, tmp_path, monkeypatch):
    from lstmopt.bridge import training

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    recipe = GrowPrune(density=0.3, steps=40, batch=16, sequence=16, dropout=0.2, pattern="unstructured")
    whole = recipe.run(state_for(model, tmp_path / "whole"))
    count = 0

    class Stopped(Exception):
        pass

    def stop(text, fraction):
        nonlocal count
        count += 1
        if count == 3:
            raise Stopped

    monkeypatch.setattr(training, "TELL_SECONDS", 0.0)
    state = state_for(model, tmp_path / "parts")
    with pytest.raises(Stopped):
        recipe.run(replace(state, progress=stop))
    parts = recipe.run(state)
    for a, b in zip(find_rnns(whole.model), find_rnns(parts.model), strict=True):
        np.testing.assert_allclose(a.weights.w, b.weights.w, rtol=1e-3, atol=1e-4)


@needs_gpu
def test_every_state_and_length_is_computed_there(tmp_path):
    import onnx_ir as ir

    from tests.recurrent import recurrent

    for form in ({"lengths": True}, {"direction": "bidirectional", "lengths": True}, {"peepholes": True}):
        graph = ir.from_proto(recurrent(**form))
        assert placing._fault(OnnxModule(graph), partial(example_inputs, graph, 0), "cuda") == "", form
