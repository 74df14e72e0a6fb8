"""GrowPrune on a small trained model: budgets, patterns, resuming, divergence, losses without labels."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from lstmopt.bridge import checkpoint, training
from lstmopt.bridge.module import OnnxModule, write_back
from lstmopt.bridge.pruning import Group, Matrix, Pruner
from lstmopt.bridge.runner import ModuleRunner
from lstmopt.bridge.schedule import Schedule
from lstmopt.errors import LstmoptError
from lstmopt.passes.grow_prune import GrowPrune
from lstmopt.pipeline import Budget
from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model
from lstmopt.sparsity.patterns import Unstructured, parse_pattern
from lstmopt.targets import load_target
from tests.training import language_model, state_for, text

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("model"))


def recipe(**changes):
    return GrowPrune(
        **{
            "density": 0.2,
            "steps": 60,
            "batch": 16,
            "sequence": 16,
            "mask_every": 5,
            "amp": False,
            "pattern": "unstructured",
            **changes,
        }
    )


def density_of(model):
    layers = [layer.weights for layer in find_rnns(model)]
    return sum(w.nonzero_parameters for w in layers) / sum(w.parameters for w in layers)


def loss_of(model, state):
    runner = ModuleRunner(model, OnnxModule(model).eval())
    reference = ModuleRunner(state.original, OnnxModule(state.original).eval())
    return state.task.evaluate(runner, state.data.valid, reference=reference).loss


def one_shot(model, density):
    """The model with its smallest LSTM weights zeroed, untrained."""
    module = OnnxModule(model)
    matrices = tuple(Matrix(name, gates=4) for name, weight in module.weights.items() if weight.ndim == 3)
    Pruner(module, [Group(matrices, Unstructured(), density)], regrow=False).renew([density], 0.0)
    return write_back(model, module)


def weights_of(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def test_density_zeros_and_accuracy(model, tmp_path):
    state = state_for(model, tmp_path)
    after = recipe(steps=150, learning_rate=1e-2).run(state)
    total = sum(mask.size for mask in after.masks.values())
    assert sum(int(mask.sum()) for mask in after.masks.values()) == int(0.2 * total)
    assert density_of(after.model) <= 0.2
    weights = weights_of(after.model)
    for name, mask in after.masks.items():
        assert mask.dtype == np.bool_ and mask.shape == weights[name].shape
        assert np.all(weights[name][~mask] == 0)
    assert [v.name for v in after.model.graph.outputs] == [v.name for v in model.graph.outputs]
    dense, pruned = loss_of(model, state), loss_of(after.model, state)
    assert pruned < loss_of(one_shot(model, 0.2), state) - 0.5
    assert pruned < dense + 0.1
    assert density_of(state.model) > 0.99  # the model that was given is not changed
    feeds = example_inputs(after.model, 0, {"sequence": 5, "batch": 2})
    module = OnnxModule(after.model).eval()
    with torch.no_grad():
        ours = module({name: torch.from_numpy(array) for name, array in feeds.items()})
    np.testing.assert_allclose(ours["logits"].numpy(), run_model(after.model, feeds)["logits"], atol=1e-4)


@pytest.mark.parametrize("pattern", ["bank8", "bank16:k1", "gate-shared8", "block4x2", "2:4"])
@pytest.mark.parametrize("regrow", [0.0, 0.3])
def test_masks_are_of_the_pattern(model, tmp_path, pattern, regrow):
    after = recipe(pattern=pattern, steps=30, regrow=regrow).run(state_for(model, tmp_path))
    assert density_of(after.model) <= 0.2
    for name, mask in after.masks.items():
        for view in Matrix(name, gates=4).views(mask).values():
            assert parse_pattern(pattern).is_legal(view)


def test_regrowth_wakes_the_weights_that_the_gradient_asks_for(model):
    module = OnnxModule(model)
    name = next(name for name, weight in module.weights.items() if weight.ndim == 3)
    pruner = Pruner(module, [Group((Matrix(name, gates=4),), Unstructured(), 0.5)], regrow=True)
    pruner.renew([0.5], 0.0)
    before = module.masks[name].numpy().copy()
    weight = module.weights[name]
    weight.grad = torch.zeros_like(weight)
    asleep = np.flatnonzero(~before.reshape(-1))[::7]
    weight.grad.view(-1)[torch.from_numpy(asleep)] = (
        torch.linspace(1, 2, len(asleep)) * torch.tensor([1, -1]).repeat(len(asleep))[: len(asleep)]
    )
    pruner.collect()
    count = int(0.5 * before.size)
    pruner.renew([0.5], len(asleep) / count)
    after = module.masks[name].numpy()
    assert after.sum() == count
    assert np.all(after.reshape(-1)[asleep])
    assert np.all(weight.detach().numpy().reshape(-1)[asleep] == 0)
    kept = np.abs(weight.detach().numpy())[before & after].min()
    dropped = before & ~after
    assert dropped.sum() == len(asleep)
    assert np.abs(weights_of(model)[name])[dropped].max() <= kept
    assert not pruner.gradients[name].any()


def test_layers_of_their_own_density_and_the_decoder(model, tmp_path):
    names = [layer.name for layer in find_rnns(model)]
    state = state_for(model, tmp_path)
    after = recipe(density={names[1]: 0.1}, prune_decoder=0.3, steps=30).run(state)
    first, second = (layer.weights for layer in find_rnns(after.model))
    assert first.nonzero_parameters > 0.99 * first.parameters
    assert second.nonzero_parameters == int(0.1 * second.parameters)
    decoder = next(array for name, array in weights_of(after.model).items() if array.shape == (32, 12))
    assert np.count_nonzero(decoder) == int(0.3 * decoder.size)
    with pytest.raises(LstmoptError, match="no such layer"):
        recipe(density={"nowhere": 0.1}).run(state)


class Stop(Exception):
    pass


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(model, tmp_path, monkeypatch):
    stage = recipe(steps=40, dropout=0.1, regrow=0.2)
    whole = stage.run(state_for(model, tmp_path / "whole"))
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    save, saves = checkpoint.save, []

    def stopping(path, tensors, document):
        save(path, tensors, document)
        saves.append(document["step"])
        if document["step"] in (9, 25) and saves.count(document["step"]) == 1:
            raise Stop

    monkeypatch.setattr(checkpoint, "save", stopping)
    state = state_for(model, tmp_path / "stopped")
    for _ in range(2):
        with pytest.raises(Stop):
            stage.run(state)
    after = stage.run(state)
    assert saves.count(9) == 1 and saves.count(25) == 1 and saves.count(10) == 1
    for name, array in weights_of(whole.model).items():
        np.testing.assert_allclose(weights_of(after.model)[name], array, atol=2e-5)
    assert all(np.array_equal(after.masks[name], whole.masks[name]) for name in whole.masks)


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from lstmopt.bridge import training
from lstmopt.rnn.files import load_model
from tests.training import state_for
from tests.test_passes_grow_prune import recipe
training.CHECKPOINT_SECONDS = 0.0
step = training.Trainer._train_step
def counted(self, batch):
    print(self._at.step, flush=True)
    return step(self, batch)
training.Trainer._train_step = counted
after = recipe(steps=40).run(state_for(load_model(sys.argv[1]), Path(sys.argv[2])))
print("done", flush=True)
"""


@pytest.mark.deep
def test_kill_9_in_the_middle(model, tmp_path):
    from lstmopt.rnn.files import save_model

    save_model(model, tmp_path / "model.onnx")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model.onnx"), str(tmp_path / "work")]

    def steps(limit):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
        seen = []
        for line in process.stdout:
            seen.append(line.strip())
            if limit is not None and len(seen) == limit:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.stdout.close()
        process.wait()
        return seen

    assert steps(13)[0] == "0"
    seen = steps(None)
    assert 8 <= int(seen[0]) <= 13  # goes on where the checkpoint was
    assert seen[-1] == "done" and seen[-2] == "39"
    after = recipe(steps=40).run(state_for(model, tmp_path / "work"))  # finished: nothing is trained again
    whole = recipe(steps=40).run(state_for(model, tmp_path / "whole"))
    for name, array in weights_of(whole.model).items():
        np.testing.assert_allclose(weights_of(after.model)[name], array, atol=2e-5)


def test_a_damaged_checkpoint_is_no_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    assert checkpoint.load(path) is None
    checkpoint.save(path, {"a": torch.arange(3)}, {"step": 4})
    tensors, document = checkpoint.load(path)
    assert tensors["a"].tolist() == [0, 1, 2] and document == {"step": 4}
    path.write_bytes(path.read_bytes()[:-5])
    assert checkpoint.load(path) is None


def test_divergence_goes_back_with_half_the_rate(model, tmp_path, monkeypatch):
    state = state_for(model, tmp_path)
    loss, calls = type(state.task).loss, []

    def broken(self, *arguments):
        calls.append(1)
        return loss(self, *arguments) * (math.nan if len(calls) in (10, 30) else 1)

    monkeypatch.setattr(type(state.task), "loss", broken)
    after = recipe(steps=40).run(state)
    document = checkpoint.load(tmp_path / "checkpoint.safetensors")[1]
    assert document["divergences"] == 2 and document["rate"] == pytest.approx(5e-4)
    assert density_of(after.model) <= 0.2
    assert all(np.isfinite(array).all() for array in weights_of(after.model).values())


def test_divergence_again_and_again_is_one_clear_line(model, tmp_path):
    with pytest.raises(LstmoptError, match=r"diverged 4 times.*learning rate"):
        recipe(steps=40, optimizer="sgd", learning_rate=1e9, clip=1e9).run(state_for(model, tmp_path))


def test_a_budget_of_seconds_or_steps_sets_the_length(model, tmp_path):
    timed = state_for(model, tmp_path / "seconds", budget=Budget(seconds=2.0))
    after = recipe(steps=None).run(timed)
    document = checkpoint.load(timed.workdir / "checkpoint.safetensors")[1]
    assert 1.5 < document["seconds"] < 60 and document["step"] > 1
    assert density_of(after.model) <= 0.2
    counted = state_for(model, tmp_path / "steps", budget=Budget(steps=17))
    assert density_of(recipe(steps=None).run(counted).model) <= 0.2
    assert checkpoint.load(counted.workdir / "checkpoint.safetensors")[1]["step"] == 17
    passed = state_for(model, tmp_path / "epochs")
    recipe(steps=None, epochs=0.5).run(passed)
    assert 30 < checkpoint.load(passed.workdir / "checkpoint.safetensors")[1]["step"] < 45


def test_a_budget_shorter_than_a_step_still_ends_at_the_density(model, tmp_path):
    after = recipe(steps=None).run(state_for(model, tmp_path, budget=Budget(seconds=1e-3)))
    assert density_of(after.model) <= 0.2
    with pytest.raises(LstmoptError, match="ramp"):
        recipe(ramp=1.0)


@pytest.mark.parametrize("tokens, most", [(2_000, 0.2), (60_000, 0.0)])
def test_a_dropout_left_open_follows_passes_and_density(model, tmp_path, monkeypatch, tokens, most):
    """Eight passes over little data: from 0.2 down to 1.6 times the density; a part of a pass: none."""
    seen, plain = [], OnnxModule.dropout

    def noted(self, probability):
        seen.append(probability)
        plain.fset(self, probability)

    monkeypatch.setattr(OnnxModule, "dropout", property(plain.fget, noted))
    data = {"tokens": text(tokens, 1)}
    recipe(density=0.05).run(state_for(model, tmp_path, data, {"tokens": text(4_000, 2)}))
    assert seen[0] == pytest.approx(most) and seen[-1] == pytest.approx(min(most, 1.6 * 0.05), rel=0.01)
    assert seen == sorted(seen, reverse=True)


def test_a_smaller_student_learns_from_a_larger_teacher(model, tmp_path_factory, tmp_path):
    """Their states have other sizes, and each carries its own."""
    small = language_model(tmp_path_factory.mktemp("small"), hidden=20)
    state = replace(state_for(small, tmp_path), original=model, teacher=model)
    after = recipe(density=0.5, alpha=0.9, temperature=2.0, steps=40, optimizer="sgd").run(state)
    assert [layer.weights.hidden_size for layer in find_rnns(after.model)] == [20, 20]
    assert density_of(after.model) == pytest.approx(0.5, abs=0.01)


def bare_layer(direction):
    rng = np.random.default_rng(0)
    dirs = 2 if direction == "bidirectional" else 1
    from lstmopt.rnn.cells import LSTM

    draw = lambda *shape: (0.4 * rng.standard_normal(shape)).astype(np.float32)  # noqa: E731
    return rnn_model(
        RnnWeights(LSTM, direction, draw(dirs, 4, 16, 6), draw(dirs, 4, 16, 16), draw(dirs, 2, 4, 16))
    )


def test_without_labels_the_teacher_alone_counts(tmp_path):
    model = bare_layer("bidirectional")
    x = np.random.default_rng(1).standard_normal((200, 9, 6)).astype(np.float32)
    state = state_for(model, tmp_path, {"x": x}, {"x": x[:40]})
    after = recipe(density=0.3, steps=300, batch=20, mask_every=10, learning_rate=5e-3, regrow=0.3).run(state)
    assert density_of(after.model) <= 0.3
    assert loss_of(after.model, state) < 0.5 * loss_of(one_shot(model, 0.3), state)


def test_data_that_the_model_makes_itself(model, tmp_path):
    from lstmopt.tasks import synthetic

    tokens = synthetic.sample_tokens(model, state_for(model, tmp_path).task.interface, 16, 300, 0)
    prepared = state_for(model, tmp_path)
    data = replace(prepared.data, train=replace(prepared.data.train, inputs={"tokens": tokens}))
    task = replace(prepared.task, labelled=False)
    after = recipe(steps=30).run(replace(prepared, data=data, task=task, labelled=False))
    assert density_of(after.model) <= 0.2


def test_bfloat16_trains_too(model, tmp_path, monkeypatch):
    state = state_for(model, tmp_path)
    if not training.has_native_bfloat16():
        with pytest.raises(LstmoptError, match="bfloat16"):
            recipe(amp=True).run(state)
    # Without oneDNN torch has bfloat16 everywhere, if slowly.
    monkeypatch.setattr(training, "has_native_bfloat16", lambda: True)
    with torch.backends.mkldnn.flags(enabled=False):
        after = recipe(steps=30, amp=True, learning_rate=2e-3).run(state)
    assert density_of(after.model) <= 0.2
    assert loss_of(after.model, state) < loss_of(one_shot(model, 0.2), state)
    assert all(a.dtype == weights_of(model)[n].dtype for n, a in weights_of(after.model).items())


@pytest.mark.parametrize(("rate", "expected"), [(None, 2e-3 * 10 / 500), (2e-3, 2e-3)])
def test_a_short_training_moves_weights_less_unless_told(rate, expected, model, tmp_path, monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def noted(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    recipe(steps=10, learning_rate=rate).run(state_for(model, tmp_path))
    assert max(rates) == pytest.approx(expected) and len(rates) == 10


def test_schedule():
    course = Schedule(start_density=0.5, density=0.1, ramp=0.5, hold=0.4, final_rate=0.02, regrow=0.3)
    densities = [course.density_at(x) for x in np.linspace(0, 1, 101)]
    assert densities[0] == 0.5 and densities[50:] == [0.1] * 51
    assert all(a >= b for a, b in zip(densities, densities[1:], strict=False))
    assert course.density_at(0.25) == pytest.approx(0.1 + 0.4 / 8)
    rates = [course.rate_at(x) for x in (0.0, 0.4, 0.7, 1.0)]
    assert rates == pytest.approx([1.0, 1.0, math.sqrt(0.02), 0.02])
    assert course.regrow_at(0.0) == 0.3 and course.regrow_at(0.5) == 0.0
    assert Schedule(start_density=0.5, density=0.8).density_at(0.0) == 0.8
    assert Schedule(ramp=0.0).density_at(0.0) == 0.1


@pytest.mark.parametrize(
    "fault",
    [{"density": 1.5}, {"density": {"a": -1}}, {"steps": 0}, {"pattern": "dense"}, {"optimizer": "lion"},
     {"alpha": 2.0}, {"mask_every": 0}, {"dropout": -0.1}, {"learning_rate": 0.0}],
    ids=str,
)  # fmt: skip
def test_bad_settings_are_one_clear_line(fault):
    with pytest.raises(LstmoptError):
        GrowPrune(**fault)


def test_a_model_without_lstm_weights_is_one_clear_line(model, tmp_path):
    import onnx
    import onnx_ir as ir

    info = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [info("x", 1, ["batch", 3])],
        [info("y", 1, ["batch", 2])], [weight],
    )  # fmt: skip
    plain = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
    state = replace(state_for(model, tmp_path), model=plain)
    with pytest.raises(LstmoptError, match="no LSTM or GRU weights"):
        recipe().run(state)


def test_text_can_be_learnt():
    assert text(100, 0).shape == (100,) and not np.array_equal(text(100, 0), text(100, 1))


@pytest.mark.parametrize(("target", "pattern"), [("nvidia", "unstructured"), ("local", "bank64:step4")])
def test_without_a_pattern_it_is_the_target_s_first(model, tmp_path, target, pattern):
    state = state_for(model, tmp_path, target=load_target(target))
    assert GrowPrune(steps=2, batch=4, sequence=8).run(state).pattern == pattern
