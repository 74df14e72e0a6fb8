"""Training that ends on rounded weights: what comes out is rounded exactly, and it learns from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmopt import persistence
from lstmopt.bridge import checkpoint, training
from lstmopt.bridge.module import OnnxModule
from lstmopt.bridge.pruning import Group, Matrix, Pruner
from lstmopt.bridge.rounding import Rounding
from lstmopt.errors import LstmoptError
from lstmopt.passes.grow_prune import GrowPrune
from lstmopt.pipeline import Budget
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model
from lstmopt.sparsity.formats import FORMATS, format_named, unpack
from lstmopt.sparsity.patterns import parse_pattern
from tests.test_passes_grow_prune import Stop, density_of, loss_of, recipe, weights_of
from tests.training import language_model, state_for

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("model"))


def layer(seed, hidden, inputs, direction="forward"):
    rng = np.random.default_rng(seed)
    dirs = 2 if direction == "bidirectional" else 1
    draw = lambda *shape: (0.4 * rng.standard_normal(shape)).astype(np.float32)  # noqa: E731
    return RnnWeights(LSTM, direction, draw(dirs, 4, hidden, inputs), draw(dirs, 4, hidden, hidden))


def matrices_of(module):
    return tuple(Matrix(name, gates=4) for name, weight in module.weights.items() if weight.ndim == 3)


def assert_rounded(model, name):
    item = format_named(name)
    for found in find_rnns(model):
        for matrix in found.weights.matrices:
            for direction in matrix:
                assert np.array_equal(item.round_weights(direction), direction)
                assert np.array_equal(unpack(item.pack(direction)), direction)


def test_a_pruned_decoder_is_rounded_too(trained, tmp_path):
    model = trained
    state = state_for(model, tmp_path)
    after = recipe(density=0.3, prune_decoder=0.3, steps=30, rounding="i8").run(state)
    assert_rounded(after.model, "i8")
    decoder = next(array for array in weights_of(after.model).values() if array.shape == (32, 12))
    assert 0 < np.count_nonzero(decoder) < decoder.size
    rows = np.ascontiguousarray(decoder.T)[None]
    assert np.array_equal(format_named("i8").round_weights(rows), rows)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    hidden=st.integers(1, 40),
    inputs=st.integers(1, 140),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    pattern=st.sampled_from(["unstructured", "bank64:step4", "gate-shared64"]),
    direction=st.sampled_from(["forward", "bidirectional"]),
    seed=st.integers(0, 2**32),
)
def test_what_is_kept_is_rounded_as_the_whole_matrix(name, hidden, inputs, density, pattern, direction, seed):
    """Bit for bit, also after the weights have moved and after other masks."""
    module = OnnxModule(rnn_model(layer(seed, hidden, inputs, direction)))
    matrices = matrices_of(module)
    rounding = Rounding(module, matrices, format_named(name))
    pruner = Pruner(module, [Group(matrices, parse_pattern(pattern), density)], regrow=False)
    for share in (1.0, density, density):
        pruner.renew([share], 0.0)
        rounding.renew()
        for matrix in matrices:
            exact = matrix.views(module.weights[matrix.weight].detach().numpy())
            for key, used in matrix.views(module.rounded[matrix.weight].numpy()).items():
                assert np.array_equal(used, format_named(name).round_weights(exact[key]))
        with torch.no_grad():
            for weight in module.weights.values():
                weight.mul_(0.9).add_(0.01 * weight.sign())
        module.apply_masks()


@pytest.mark.parametrize("amp", [False, True])
def test_full_weights_get_the_gradient_at_the_rounded_ones(amp):
    # Without oneDNN torch has bfloat16 on every CPU.
    onednn = not amp or training.has_native_bfloat16()
    model = rnn_model(layer(0, 24, 70))
    module, rounded = OnnxModule(model), OnnxModule(model)
    matrices = matrices_of(module)
    for each in (module, rounded):
        Pruner(each, [Group(matrices, parse_pattern("bank64:step4"), 0.2)], regrow=False).renew([0.2], 0.0)
    rounding = Rounding(module, matrices, format_named("i8"))
    rounding.renew()
    before = {name: weight.detach().clone() for name, weight in module.weights.items()}
    with torch.no_grad():
        for name, weight in rounded.weights.items():
            weight.copy_(module.rounded[name])
            assert not torch.equal(weight, before[name])
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 3, 70)).astype(np.float32))
    outputs = []
    for each in (module, rounded):
        with (
            torch.backends.mkldnn.flags(enabled=onednn),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp),
        ):
            outputs.append(each({"x": x})["y"].float())
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    for name, weight in module.weights.items():
        assert torch.equal(weight, before[name])
        assert torch.equal(weight.grad, rounded.weights[name].grad) and weight.grad.any()
    rounding.stop()
    assert not torch.equal(module({"x": x})["y"], outputs[1])


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("f32", "bank32"),
        ("i16", "bank32:step2"),
        ("i8", "bank64:step4"),
        ("i8-shared", "gate-shared64:step4"),
    ],
)
def test_the_model_that_comes_out_holds_the_rounded_weights(trained, tmp_path, name, pattern):
    stage = recipe(pattern=pattern, steps=40, rounding=name)
    after = stage.run(state_for(trained, tmp_path))
    assert_rounded(after.model, name)
    assert density_of(after.model) <= 0.2
    assert after.rounding == name and any(name in note for note in after.notes)
    weights = weights_of(after.model)
    assert all(not weights[key][~mask].any() for key, mask in after.masks.items())
    again = stage.run(state_for(trained, tmp_path))  # finished: what is kept is not rounded to something else
    assert all(np.array_equal(array, weights[key]) for key, array in weights_of(again.model).items())


class Coarse:
    """A format of three values: what rounding costs, and what training on it brings back, is plain."""

    def round_weights(self, matrix, columns=None):
        kept = np.abs(matrix).sum(axis=2, keepdims=True) / np.maximum(
            1, (matrix != 0).sum(axis=2, keepdims=True)
        )
        return (np.sign(matrix) * kept).astype(np.float32)


def test_training_on_rounded_weights_is_better_than_rounding_alone(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("lstmopt.passes.grow_prune.format_named", lambda name: Coarse())
    losses = {}
    for share in (0.0, 0.4):
        state = state_for(trained, tmp_path / f"{share}")
        stage = recipe(steps=120, rounding="i8", rounding_share=share, density=0.4, learning_rate=5e-3)
        losses[share] = loss_of(stage.run(state).model, state)
    assert losses[0.4] < losses[0.0] - 0.02


def test_masks_are_final_before_weights_are_rounded(trained, tmp_path, monkeypatch):
    seen, renew = [], Pruner.renew

    def noted(self, densities, exchanged):
        seen.append(bool(self.module.rounded))
        renew(self, densities, exchanged)

    monkeypatch.setattr(Pruner, "renew", noted)
    recipe(steps=40, rounding="i8", rounding_share=0.5).run(state_for(trained, tmp_path))
    assert len(seen) > 2 and not any(seen)


def test_a_training_stopped_while_it_rounds_goes_on_as_if_it_had_not_been(trained, tmp_path, monkeypatch):
    stage = recipe(steps=40, dropout=0.1, rounding="i16", rounding_share=0.4)
    whole = stage.run(state_for(trained, tmp_path / "whole"))
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    save, stopped = checkpoint.save, []

    def stopping(path, tensors, document):
        save(path, tensors, document)
        if document["step"] in (26, 35) and document["step"] not in stopped:
            stopped.append(document["step"])
            raise Stop

    monkeypatch.setattr(checkpoint, "save", stopping)
    state = state_for(trained, tmp_path / "stopped")
    for _ in range(2):
        with pytest.raises(Stop):
            stage.run(state)
    after = stage.run(state)
    assert stopped == [26, 35]
    assert_rounded(after.model, "i16")
    for name, array in weights_of(whole.model).items():
        np.testing.assert_allclose(weights_of(after.model)[name], array, atol=1e-4)


def test_divergence_while_it_rounds(trained, tmp_path, monkeypatch):
    state = state_for(trained, tmp_path)
    loss, calls = type(state.task).loss, []

    def broken(self, *arguments):
        calls.append(1)
        return loss(self, *arguments) * (np.nan if len(calls) == 35 else 1)

    monkeypatch.setattr(type(state.task), "loss", broken)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    after = recipe(steps=40, rounding="i8", rounding_share=0.4).run(state)
    assert checkpoint.load(tmp_path / "checkpoint.safetensors")[1]["divergences"] == 1
    assert_rounded(after.model, "i8")


@pytest.mark.parametrize("seconds", [1e-3, 1.5])
def test_a_budget_of_seconds(trained, tmp_path, seconds):
    state = state_for(trained, tmp_path, budget=Budget(seconds=seconds))
    after = recipe(steps=None, rounding="i8").run(state)
    assert_rounded(after.model, "i8")
    assert density_of(after.model) <= 0.2


def test_the_format_is_kept_in_the_run_folder(trained, tmp_path):
    before = state_for(trained, tmp_path)
    persistence.save(tmp_path, before, replace(before, rounding="i8"))
    assert persistence.load(tmp_path, before).rounding == "i8"


@pytest.mark.parametrize(
    "fault", [{"rounding": "i4"}, {"rounding_share": 1.5}, {"rounding": "i8", "rounding_share": 0.6}], ids=str
)
def test_bad_settings_are_one_clear_line(fault):
    with pytest.raises(LstmoptError):
        GrowPrune(**fault)
