"""Training where there is a GPU: what runs there is trained there, and what does not stays on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lstmopt.bridge import placing
from lstmopt.bridge.module import OnnxModule
from lstmopt.passes.grow_prune import GrowPrune
from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.reader import find_rnns
from lstmopt.sparsity.formats import format_named
from tests.training import language_model, state_for

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("model"))


def test_a_module_that_runs_on_a_device_has_no_fault(model):
    module = OnnxModule(model)
    assert placing._fault(model, module, "cpu") == ""
    assert all(weight.grad is None for weight in module.weights.values())


def test_a_module_that_does_not_run_there_is_told(model):
    assert "the graph does not run" in placing._fault(model, OnnxModule(model), "meta")


def test_a_module_that_computes_something_else_there_is_told(model, monkeypatch):
    module = OnnxModule(model)
    move = module.place

    def place(device, dtype=None):
        move(device, dtype)
        with torch.no_grad():
            next(iter(module.weights.values())).add_(0.1)

    monkeypatch.setattr(module, "place", place)
    assert "differs" in placing._fault(model, module, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_said(model):
    module = OnnxModule(model)
    assert placing.place_for_training([(model, module)]) == () and module.device.type == "cpu"


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
    assert format_named("i8") is not None


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
        assert placing._fault(graph, OnnxModule(graph), "cuda") == "", form
    assert example_inputs(graph, 0)
