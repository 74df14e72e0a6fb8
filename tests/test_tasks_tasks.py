"""Tasks: what a call is fed, losses and degradation by their definitions, data that do not fit."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmopt.bridge.module import OnnxModule
from lstmopt.bridge.runner import ModuleRunner
from lstmopt.errors import LstmoptError
from lstmopt.rnn.execution import run_model
from lstmopt.tasks import prepare
from lstmopt.tasks.base import Degradation, Evaluation, degradation
from lstmopt.tasks.data import Dataset, split
from lstmopt.tasks.interface import read_interface
from lstmopt.tasks.prepare import describe
from lstmopt.tasks.synthetic import STEPS, sample_tokens, sample_windows

torch = pytest.importorskip("torch")
VOCABULARY, HIDDEN, WIDTH = 7, 5, 4
RNG = np.random.default_rng(0)


def draw(*shape, scale=0.6):
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


TENSORS = {
    "table": draw(VOCABULARY, WIDTH, scale=1.0),
    "W": draw(1, 4 * HIDDEN, WIDTH), "R": draw(1, 4 * HIDDEN, HIDDEN),
    "D": draw(HIDDEN, VOCABULARY, scale=2.0), "direction": np.array([1]), "rows": np.array([-1, HIDDEN]),
    "last": np.array(-1), "zero": np.array([0]),
}  # fmt: skip


def info(name, shape, element=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, element, shape)


def build(nodes, inputs, outputs):
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(array, name) for name, array in TENSORS.items() if name in used]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return ir.from_proto(proto)


def language_model(batch_first=False, rows=False, ending="", states=True, fixed=False):
    """A language model as one exporter or another writes it."""
    steps, batch = {True: (5, 3), False: ("sequence", "batch"), "steps": (5, "batch")}[fixed]
    order = [batch, steps] if batch_first else [steps, batch]
    nodes = [helper.make_node("Gather", ["table", "tokens"], ["x0"])]
    if batch_first:
        nodes.append(helper.make_node("Transpose", ["x0"], ["x"], perm=[1, 0, 2]))
    state = ["", "h", "c"] if states else []
    nodes += [
        helper.make_node("LSTM", ["x" if batch_first else "x0", "W", "R", "", *state], ["y", "h_n", "c_n"],
                         hidden_size=HIDDEN, name="lstm"),
        helper.make_node("Squeeze", ["y", "direction"], ["z"]),
    ]  # fmt: skip
    value = "z"
    if batch_first:
        nodes.append(helper.make_node("Transpose", ["z"], ["zt"], perm=[1, 0, 2]))
        value = "zt"
    if rows:
        nodes.append(helper.make_node("Reshape", [value, "rows"], ["zr"]))
        value = "zr"
    nodes.append(helper.make_node("MatMul", [value, "D"], ["scores" if ending else "out"]))
    if ending:
        nodes.append(helper.make_node(ending, ["scores"], ["out"], axis=-1))
    outputs = [info("out", [15 if fixed is True else "rows", VOCABULARY] if rows else [*order, VOCABULARY])]
    inputs = [info("tokens", order, TensorProto.INT64)]
    if states:
        inputs += [info(name, [1, batch, HIDDEN]) for name in "hc"]
        outputs += [info(f"{name}_n", [1, batch, HIDDEN]) for name in "hc"]
    return build(nodes, inputs, outputs)


def reference_scores(columns, window, states):
    """Log-probabilities of the same network in numpy, float64: ``[batch, n, vocabulary]``."""
    w, r, table, decoder = (TENSORS[name].astype(np.float64) for name in ("W", "R", "table", "D"))
    batch, length = columns.shape
    h = c = np.zeros((batch, HIDDEN))
    found = []
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    for step in range(length):
        if not states and step % window == 0:
            h = c = np.zeros((batch, HIDDEN))
        i, o, f, g = np.split(table[columns[:, step]] @ w[0].T + h @ r[0].T, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        scores = h @ decoder
        found.append(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))
    return np.stack(found, axis=1)


STREAM = np.random.default_rng(1).integers(0, VOCABULARY, 3000)
FORMS = list(
    product([False, True], [False, True], ["", "Softmax", "LogSoftmax"], [False, True], [False, True])
)


class Session:
    """A model in ONNX Runtime, as tasks see it."""

    def __init__(self, model):
        self.model = model
        self.inputs = ModuleRunner(model, OnnxModule(model)).inputs

    def run(self, feeds):
        return run_model(self.model, feeds)


@pytest.mark.parametrize(("batch_first", "rows", "ending", "states", "fixed"), FORMS)
def test_language_models_of_every_form(batch_first, rows, ending, states, fixed):
    model = language_model(batch_first, rows, ending, states, fixed)
    prepared = prepare(model, task=None, data={"tokens": STREAM}, val={"tokens": STREAM}, test=None, seed=0)
    task = prepared.task
    assert task.name == "lm" and prepared.labelled and task.interface.batch == (3 if fixed else None)
    runner = ModuleRunner(model, OnnxModule(model).eval())
    found = task.evaluate(runner, prepared.splits.valid)
    windows = list(task.windows(prepared.splits.valid, 1 if not fixed else 3, 64))
    batch = round(float(found.weights.sum()) / max(1, sum(w.labels.shape[0] for w in windows)))
    batch = 3 if fixed else batch
    length = len(STREAM) // batch
    columns = STREAM[: batch * length].reshape(batch, length)
    window = 5 if fixed else 64
    count = (length - 1) // window * window if fixed else length - 1
    logs = reference_scores(columns[:, :count], window, states)
    expected = -np.take_along_axis(logs, columns[:, 1 : count + 1, None], axis=2).sum()
    assert found.weights.sum() == batch * count
    assert found.losses.sum() == pytest.approx(expected, rel=1e-5)
    assert found.metric == pytest.approx(np.exp(expected / (batch * count)), rel=1e-5)
    assert found.weights.min() >= min(500, count)
    # the same call gives torch the same loss
    call = next(task.windows(prepared.splits.valid, 3, window))
    feeds = {**call.feeds, **(task.interface.zero_states(runner.inputs, 3) if states else {})}
    outputs = OnnxModule(model)({name: torch.from_numpy(array) for name, array in feeds.items()})
    wide = len(STREAM) // 3
    first = STREAM[: 3 * wide].reshape(3, wide)[:, : window + 1]
    logs = reference_scores(first[:, :window], window, states)
    expected = -np.take_along_axis(logs, first[:, 1:, None], axis=2).mean()
    assert float(task.loss(outputs, call, None, 0.5, 1.0)) == pytest.approx(expected, rel=1e-4)


def test_without_labels_the_degradation_is_kl_over_entropy():
    model = language_model()
    other = language_model()
    noisy = {name: array for name, array in TENSORS.items()}
    other.graph.initializers["D"].const_value = ir.Tensor(noisy["D"] * np.float32(0.7), name="D")
    prepared = prepare(model, task=None, data={"tokens": STREAM}, val={"tokens": STREAM}, test=None, seed=0)
    from dataclasses import replace

    task = replace(prepared.task, labelled=False)
    original, changed = Session(model), Session(other)
    base = task.evaluate(original, prepared.splits.valid, reference=original)
    worse = task.evaluate(changed, prepared.splits.valid, reference=original)
    result = degradation(base, worse)
    assert degradation(base, base).value == 0
    batch = 1
    logs = reference_scores(STREAM[None, : len(STREAM) - 1], 64, True)
    tempered = 0.7 * logs
    tempered -= np.log(np.exp(tempered).sum(axis=-1, keepdims=True))
    entropy = -(np.exp(logs) * logs).sum() / batch
    divergence = (np.exp(logs) * (logs - tempered)).sum()
    assert result.value == pytest.approx(divergence / entropy, rel=0.02)
    assert result.low <= result.value <= result.high and result.n == len(base.losses) > 3
    with pytest.raises(ValueError, match="original"):
        task.evaluate(original, prepared.splits.valid)


def test_sampled_text_follows_the_model():
    model = language_model()
    tokens = sample_tokens(model, read_interface(model), 400, 12, 3)
    assert tokens.shape == (400, 12) and tokens.min() >= 0 and tokens.max() < VOCABULARY
    assert np.array_equal(tokens, sample_tokens(model, read_interface(model), 400, 12, 3))
    logs = reference_scores(tokens[:, :-1].astype(np.int64), 12, True)
    seen = np.take_along_axis(logs, tokens[:, 1:, None].astype(np.int64), axis=2)[..., 0]
    entropy = -(np.exp(logs) * logs).sum(axis=-1)
    # the mean surprise of true samples is the mean entropy, within four standard errors
    difference = -seen - entropy
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(difference.size)


def classifier(ending="", fixed=None, framewise=False):
    """Frames ``[sequence, batch, 4]`` to classes ``[batch, 7]``, or ``[sequence, batch, 7]``."""
    batch = fixed or "batch"
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=HIDDEN, name="lstm"),
        helper.make_node("Squeeze", ["y", "direction"], ["z"]),
    ]
    if not framewise:
        nodes.append(helper.make_node("Gather", ["z", "last"], ["l"], axis=0))
    nodes.append(
        helper.make_node("MatMul", ["z" if framewise else "l", "D"], ["scores" if ending else "out"])
    )
    if ending:
        nodes.append(helper.make_node(ending, ["scores"], ["out"], axis=-1))
    shape = [batch, VOCABULARY]
    return build(
        nodes,
        [info("x", ["sequence", batch, WIDTH])],
        [info("out", ["sequence", *shape] if framewise else shape)],
    )


@pytest.mark.parametrize("ending", ["", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("framewise", [False, True])
@pytest.mark.parametrize("fixed", [None, 4])
def test_classification(ending, framewise, fixed):
    model = classifier(ending, fixed, framewise)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((20, 6, WIDTH)).astype(np.float32)
    labels = rng.integers(0, VOCABULARY, (20, 6) if framewise else 20)
    if framewise:
        labels[:, 4:] = -1
    data = {"x": x, "labels": labels}
    prepared = prepare(model, task=None, data=data, val=data, test=None, seed=0)
    assert prepared.task.name == "classify"
    found = prepared.task.evaluate(Session(model), prepared.splits.valid)
    feeds = x.transpose(1, 0, 2)
    scores = np.concatenate(
        [run_model(model, {"x": np.ascontiguousarray(feeds[:, i : i + 4])})["out"] for i in range(0, 20, 4)],
        axis=1 if framewise else 0,
    ).astype(np.float64)
    scores = scores.transpose(1, 0, 2) if framewise else scores
    logs = np.log(scores) if ending == "Softmax" else scores
    logs = logs - np.log(np.exp(logs).sum(axis=-1, keepdims=True))
    used = labels >= 0
    losses = -np.take_along_axis(logs, np.maximum(labels, 0)[..., None], axis=-1)[..., 0][used]
    assert found.loss == pytest.approx(losses.mean(), rel=1e-4)
    assert found.metric == pytest.approx((logs.argmax(-1) != labels)[used].mean())
    assert len(found.losses) == 20
    call = next(prepared.task.calls(prepared.splits.valid, 20, None))
    outputs = OnnxModule(model)({name: torch.from_numpy(array) for name, array in call.feeds.items()})
    count = fixed or 20
    first = losses.reshape(20, -1)[:count].mean()
    assert float(prepared.task.loss(outputs, call, None, 0.0, 1.0)) == pytest.approx(first, rel=1e-4)


def test_regression_and_distillation():
    model, other = classifier(), classifier()
    other.graph.initializers["D"].const_value = ir.Tensor(TENSORS["D"] * np.float32(0.9), name="D")
    x = np.random.default_rng(3).standard_normal((30, 6, WIDTH)).astype(np.float32)
    truth = run_model(model, {"x": np.ascontiguousarray(x.transpose(1, 0, 2))})["out"]
    ours, theirs = 0.9 * truth, truth
    labels = truth + 0.5
    data = {"x": x, "labels": labels}
    prepared = prepare(model, task="regress", data=data, val=data, test=None, seed=0)
    found = [prepared.task.evaluate(Session(m), prepared.splits.valid) for m in (model, other)]
    assert found[0].metric == pytest.approx(0.5, rel=1e-4)
    worse = degradation(found[0], found[1])
    assert worse.value == pytest.approx(((ours - labels) ** 2).mean() / 0.25 - 1, rel=1e-3)
    plain = {"x": x}
    prepared = prepare(model, task=None, data=plain, val=plain, test=None, seed=0)
    assert prepared.task.name == "distill" and not prepared.labelled
    base = prepared.task.evaluate(Session(model), prepared.splits.valid, reference=Session(model))
    worse = prepared.task.evaluate(Session(other), prepared.splits.valid, reference=Session(model))
    assert degradation(base, base).value == 0
    expected = np.sqrt(((ours - theirs) ** 2).mean()) / theirs.std()
    assert degradation(base, worse).value == pytest.approx(expected, rel=1e-3)
    assert worse.agreement == 1.0


def test_degradation_interval_covers_the_truth():
    """Of 200 draws of noisy blocks, the 95% interval holds the true value in most."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        base = rng.gamma(50, 1 / 50, 60)
        worse = base * (1.02 + 0.03 * rng.standard_normal(60))
        weights = np.ones(60)
        result = degradation(Evaluation(base, weights, 0.0), Evaluation(worse, weights, 0.0), seed)
        held += result.low <= 0.02 <= result.high
    assert 175 <= held <= 199


X = np.zeros((10, 6, WIDTH), np.float32)
FAULTS = {
    "no such input": ({"y": X, "x": X}, "no such input"),
    "missing": ({"labels": np.zeros(10, int)}, "no array 'x'"),
    "type": ({"x": X.astype(int)}, "has type int64"),
    "shape": ({"x": X[..., :2]}, "has shape"),
    "rank": ({"x": X[0]}, "has shape"),
    "empty": ({"x": X[:0]}, "empty"),
    "not finite": ({"x": X * np.nan}, "NaN"),
    "labels": ({"x": X, "labels": np.zeros(9, int)}, "9 entries"),
    "class": ({"x": X, "labels": np.full(10, 99)}, "class 99"),
    "one example": ({"x": X[:1]}, "cannot be split"),
    "label rank": ({"x": X, "labels": np.zeros((10, 3), int)}, r"labels: has shape \[10, 3\]"),
    "label without axis": ({"x": X, "labels": np.array(3)}, "1 entries"),
    "label type": ({"x": X, "labels": np.array(["a"] * 10)}, "type <U1"),
    "no class": ({"x": X, "labels": np.full(10, -1)}, "nothing but -1"),
    "no class at the end": ({"x": X, "labels": np.array([0] * 9 + [-1])}, "last tenth.*nothing but -1"),
    "negative class": ({"x": X, "labels": np.full(10, -2)}, "class -2"),
    "width of numbers": ({"x": X, "labels": np.zeros((10, 3))}, r"\[10, 3\].*\[examples, 7\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_data_that_do_not_fit_are_one_clear_line(fault):
    data, message = FAULTS[fault]
    with pytest.raises(LstmoptError, match=message):
        prepare(classifier(), task=None, data=data, val=None, test=None, seed=0)


LM_FAULTS = {
    "label range": (STREAM * 0 + 99, "class 99, the model has 0 to 6"),
    "label -1": (STREAM * 0 - 1, "class -1"),
    "label shape": (STREAM.reshape(3, -1), r"shape \[3, 1000\].*\[3000\]"),
    "label type": (STREAM.astype(float), "type float64"),
}


@pytest.mark.parametrize("fault", LM_FAULTS)
def test_labels_of_tokens_that_do_not_fit(fault):
    labels, message = LM_FAULTS[fault]
    data = {"tokens": STREAM, "labels": labels}
    with pytest.raises(LstmoptError, match=message):
        prepare(language_model(), task=None, data=data, val=None, test=None, seed=0)


def test_labels_of_more_steps_than_the_model_answers():
    labels = np.zeros((10, 5), int)  # x has 6 steps, which the model's file does not say
    with pytest.raises(LstmoptError, match=r"labels.*\[10, 5\].*answers \[10, 6\]"):
        prepare(
            classifier(framewise=True),
            task=None,
            data={"x": X, "labels": labels},
            val=None,
            test=None,
            seed=0,
        )


def test_too_few_tokens_for_a_fixed_window():
    with pytest.raises(LstmoptError, match="too few"):
        prepare(
            language_model(fixed=True), task=None, data={"tokens": STREAM[:12]}, val={"tokens": STREAM},
            test=None, seed=0,
        )  # fmt: skip


def with_rate(scale=1.0):
    """A classifier with a second input that all examples share, by whose value the frames are scaled."""
    nodes = [
        helper.make_node("Mul", ["x", "rate"], ["scaled"]),
        helper.make_node("LSTM", ["scaled", "W", "R"], ["y"], hidden_size=HIDDEN, name="lstm"),
        helper.make_node("Squeeze", ["y", "direction"], ["z"]),
        helper.make_node("Gather", ["z", "last"], ["l"], axis=0),
        helper.make_node("MatMul", ["l", "D"], ["out"]),
    ]
    inputs = [info("x", ["sequence", "batch", WIDTH]), info("rate", [])]
    return build(nodes, inputs, [info("out", ["batch", VOCABULARY])])


def test_an_input_that_all_examples_share_is_never_cut():
    x = np.random.default_rng(3).standard_normal((40, 6, WIDTH)).astype(np.float32)
    labels = np.arange(40) % VOCABULARY
    data = {"x": x, "rate": np.array(2.0, np.float32), "labels": labels}
    prepared = prepare(with_rate(), task=None, data=data, val=None, test=None, seed=0)
    assert (len(prepared.splits.train), len(prepared.splits.valid)) == (36, 4)
    found = prepared.task.evaluate(Session(with_rate()), prepared.splits.valid)
    other = prepare(classifier(), task=None, data={"x": 2 * x, "labels": labels}, val=None, test=None, seed=0)
    assert found.losses == pytest.approx(
        other.task.evaluate(Session(classifier()), other.splits.valid).losses
    )


def test_arrays_of_unequal_length_are_named():
    graph = with_rate().graph
    model = ir.Model(graph, ir_version=9)
    graph.inputs[1].shape = ir.Shape(["batch", 1])
    data = {"x": X, "rate": np.ones((9, 1), np.float32)}
    with pytest.raises(LstmoptError, match="unequal length.*x 10, rate 9"):
        prepare(model, task=None, data=data, val=None, test=None, seed=0)


def test_the_digest_tells_shapes_and_types_apart():
    data = np.arange(24, dtype=np.int64)
    forms = [data, data.reshape(2, 12), data.reshape(12, 2), data.view(np.uint64), data.view(np.float64)]
    found = {Dataset({"x": form}, None).digest() for form in forms}
    found |= {Dataset({"x": data}, form).digest() for form in forms}
    found |= {Dataset({"x": data}, None, frozenset("x")).digest()}
    assert len(found) == 11


def test_examples_that_fill_up_a_fixed_batch_do_not_count():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((18, 6, WIDTH)).astype(np.float32)
    for labels in (rng.integers(0, VOCABULARY, 18), rng.standard_normal((18, VOCABULARY)), None):
        data = {"x": x} if labels is None else {"x": x, "labels": labels}
        found = []
        for fixed in (4, None):
            model, other = classifier(fixed=fixed), classifier(fixed=fixed)
            other.graph.initializers["D"].const_value = ir.Tensor(TENSORS["D"] * np.float32(0.9), name="D")
            prepared = prepare(model, task=None, data=data, val=data, test=None, seed=0)
            valid = prepared.splits.valid
            found.append(prepared.task.evaluate(Session(other), valid, reference=Session(model)))
        assert len(found[0].losses) == 18
        assert found[0].losses == pytest.approx(found[1].losses, rel=1e-4)
        assert found[0].weights == pytest.approx(found[1].weights)
        assert found[0].metric == pytest.approx(found[1].metric, rel=1e-4)
        assert found[0].agreement == found[1].agreement


def test_many_streams_are_evaluated_a_few_together():
    model = language_model()
    streams = STREAM.reshape(50, 60)
    prepared = prepare(model, task=None, data={"tokens": streams}, val={"tokens": streams}, test=None, seed=0)
    seen = []

    class Watched(Session):
        def run(self, feeds):
            seen.append(feeds["tokens"].shape[1])
            return super().run(feeds)

    found = prepared.task.evaluate(Watched(model), prepared.splits.valid)
    assert seen == [16, 16, 16, 2]
    logs = reference_scores(streams[:, :-1], 64, True)
    expected = -np.take_along_axis(logs, streams[:, 1:, None], axis=2)[..., 0].sum(axis=1)
    assert found.losses == pytest.approx(expected, rel=1e-5)
    assert found.weights == pytest.approx(np.full(50, 59.0))


def test_the_bootstrap_needs_little_memory():
    import tracemalloc

    base = np.random.default_rng(0).random(50_000)
    worse = Evaluation(base * 1.1, np.ones(50_000), 0.0)
    tracemalloc.start()
    result = degradation(Evaluation(base, np.ones(50_000), 0.0), worse)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # all resamples at once are 1.2 GB
    assert result.value == pytest.approx(0.1) and result.low == pytest.approx(result.high)


def test_degradation_over_an_original_without_loss():
    nothing, some = np.zeros(30), np.r_[np.zeros(29), 1.0]
    ones = np.ones(30)
    original = Evaluation(nothing, ones, 0.0)
    same = degradation(original, original)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    worse = degradation(original, Evaluation(some, ones, 0.0))
    assert worse.value == np.inf and worse.low == 0 and worse.high == np.inf
    assert np.isnan(degradation(original, Evaluation(some * np.nan, ones, 0.0)).value)
    again = Degradation.model_validate_json(worse.model_dump_json())
    assert again == worse


def test_distillation_judges_every_output():
    def two(scale=1.0):
        nodes = [
            helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=HIDDEN, name="lstm"),
            helper.make_node("Squeeze", ["y", "direction"], ["z"]),
            helper.make_node("Gather", ["z", "last"], ["l"], axis=0),
            helper.make_node("MatMul", ["l", "D"], ["out"]),
            helper.make_node("MatMul", ["z", "D"], ["frames"]),
            helper.make_node("ArgMax", ["out"], ["best"], axis=1),
        ]
        frames = info("frames", ["sequence", "batch", VOCABULARY])
        best = info("best", ["batch", 1], TensorProto.INT64)
        model = build(
            nodes, [info("x", ["sequence", "batch", WIDTH])],
            [info("out", ["batch", VOCABULARY]), frames, best],
        )  # fmt: skip
        node = next(node for node in model.graph if node.outputs[0].name == "frames")
        changed = ir.Tensor((TENSORS["D"] * scale).astype(np.float32), name="D2")
        value = ir.Value(name="D2", const_value=changed, type=ir.TensorType(ir.DataType.FLOAT))
        value.shape = ir.Shape(TENSORS["D"].shape)
        model.graph.register_initializer(value)
        node.replace_input_with(1, value)
        return model

    x = np.random.default_rng(3).standard_normal((30, 6, WIDTH)).astype(np.float32)
    data = {"x": x}
    model, other = two(), two(0.8)
    prepared = prepare(model, task=None, data=data, val=data, test=None, seed=0)
    original, changed = (
        prepared.task.evaluate(Session(item), prepared.splits.valid, reference=Session(model))
        for item in (model, other)
    )
    frames = run_model(model, {"x": np.ascontiguousarray(x.transpose(1, 0, 2))})["frames"]
    # the first output is the same, the second one off by a fifth
    expected = np.sqrt(((0.2 * frames) ** 2).mean() / frames.var() / 2)
    assert degradation(original, changed).value == pytest.approx(expected, rel=1e-3)
    assert degradation(original, original).value == 0 and len(changed.losses) == 30
    call = next(prepared.task.calls(prepared.splits.valid, 30, None))
    tensors = {name: torch.from_numpy(array) for name, array in call.feeds.items()}
    loss = prepared.task.loss(OnnxModule(other)(tensors), call, OnnxModule(model)(tensors), 1.0, 1.0)
    assert float(loss.detach()) == pytest.approx(2 * expected**2, rel=1e-2)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("fixed", [False, True, "steps"])
def test_a_language_model_without_states_writes_its_own_text(batch_first, rows, fixed):
    model = language_model(batch_first, rows, states=False, fixed=fixed)
    interface = read_interface(model)
    steps = 5 if fixed else STEPS
    tokens = sample_windows(model, interface, 300, 3)
    assert tokens.shape == (300, steps) and tokens.min() >= 0 and tokens.max() < VOCABULARY
    logs = reference_scores(tokens[:, :-1].astype(np.int64), steps, False)
    seen = np.take_along_axis(logs, tokens[:, 1:, None].astype(np.int64), axis=2)[..., 0]
    entropy = -(np.exp(logs) * logs).sum(axis=-1)
    difference = -seen - entropy
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(difference.size)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_text_of_a_streaming_model_with_fixed_steps_is_that_of_one_without(batch_first, rows):
    fixed, free = (language_model(batch_first, rows, fixed=steps) for steps in ("steps", False))
    tokens, expected = (sample_tokens(model, read_interface(model), 20, 13, 3) for model in (fixed, free))
    assert tokens.shape == (20, 13) and (tokens == expected).mean() > 0.99


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("states", [False, True])
def test_without_data_a_language_model_with_fixed_steps_is_evaluated_whole(
    batch_first, states, tmp_path, monkeypatch
):
    monkeypatch.setattr("lstmopt.tasks.synthetic.TRAIN_TOKENS", 100)
    monkeypatch.setattr("lstmopt.tasks.synthetic.VALID_TOKENS", 50)
    model = language_model(batch_first, states=states, fixed="steps")
    prepared = prepare(model, task=None, data=None, val=None, test=None, seed=0, folder=tmp_path)
    task, valid = prepared.task, prepared.splits.valid
    assert task.name == "lm" and not prepared.labelled
    found = task.evaluate(Session(model), valid, reference=Session(model))
    assert found.weights.sum() == valid.inputs["tokens"].size, "every step counts, each text's last one too"
    assert 1 < found.metric < VOCABULARY
    calls = task.batches(prepared.splits.train, batch=8, sequence=35, rng=np.random.default_rng(0))
    shape = (8, 5) if batch_first else (5, 8)
    assert {call.feeds["tokens"].shape for call in calls} == {shape}


def test_without_data_a_language_model_without_states_is_one(tmp_path):
    model = language_model(states=False)
    prepared = prepare(model, task=None, data=None, val=None, test=None, seed=0, folder=tmp_path)
    assert prepared.task.name == "lm" and not prepared.labelled and prepared.splits.made
    again = prepare(model, task=None, data=None, val=None, test=None, seed=0, folder=tmp_path)
    assert again.digest == prepared.digest and len(list(tmp_path.iterdir())) == 1
    assert describe(model, task=None, data=None, val=None, test=None)[0] == "lm"
    found = prepared.task.evaluate(Session(model), prepared.splits.valid, reference=Session(model))
    assert 1 < found.metric < VOCABULARY


def test_made_inputs_that_are_shared_stay_whole(tmp_path):
    model = with_rate()
    first = prepare(model, task=None, data=None, val=None, test=None, seed=0, folder=tmp_path)
    again = prepare(model, task=None, data=None, val=None, test=None, seed=0, folder=tmp_path)
    for prepared in (first, again):
        assert prepared.splits.train.shared == {"rate"}
        assert prepared.splits.valid.inputs["rate"].shape == ()
        assert len(prepared.splits.valid) == 128
    assert first.digest == again.digest


def test_a_function_that_fails_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "fails_here.py").write_text(
        "def fail():\n    raise RuntimeError('no disk')\ndef ragged():\n    return {'x': [[1], [1, 2]]}\n"
    )
    monkeypatch.chdir(tmp_path)
    for function, message in (("fail", "RuntimeError: no disk"), ("ragged", "no array")):
        with pytest.raises(LstmoptError, match=message):
            prepare(classifier(), task=None, data=f"fails_here:{function}", val=None, test=None, seed=0)


def test_tokens_outside_the_vocabulary_are_named():
    with pytest.raises(LstmoptError, match="token 7.*0 to 6"):
        prepare(language_model(), task=None, data={"tokens": STREAM + 1}, val=None, test=None, seed=0)
    with pytest.raises(LstmoptError, match="token -1"):
        prepare(language_model(), task=None, data={"tokens": STREAM - 1}, val=None, test=None, seed=0)
    with pytest.raises(LstmoptError, match="labels"):
        prepare(classifier(), task="classify", data={"x": X}, val=None, test=None, seed=0)
    with pytest.raises(LstmoptError, match="unknown task"):
        prepare(classifier(), task="translate", data={"x": X}, val=None, test=None, seed=0)


def test_files_and_functions(tmp_path, monkeypatch):
    path = tmp_path / "data.npz"
    np.savez(path, x=X, labels=np.arange(10) % VOCABULARY)
    prepared = prepare(classifier(), task=None, data=str(path), val=None, test=str(path), seed=0)
    assert len(prepared.splits.train) == 9 and len(prepared.splits.valid) == 1
    assert prepared.splits.valid.labels.tolist() == [9 % VOCABULARY]
    (tmp_path / "makes_data.py").write_text(
        "import numpy as np\ndef make():\n    return {'x': np.zeros((8, 3, 4), 'f4')}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert (
        len(
            prepare(classifier(), task=None, data="makes_data:make", val=None, test=None, seed=0).splits.train
        )
        == 7
    )
    objects = tmp_path / "objects.npz"
    np.savez(objects, x=np.array([{}], dtype=object))
    path.write_bytes(path.read_bytes()[:100])
    for source in (path, tmp_path / "none.npz", objects, "makes_data:none", "nowhere:make", 3):
        with pytest.raises(LstmoptError):
            prepare(classifier(), task=None, data=source, val=None, test=None, seed=0)


def test_the_kept_tenth_is_the_end_and_shares_nothing():
    prepared = prepare(language_model(), task=None, data={"tokens": STREAM}, val=None, test=None, seed=0)
    train, valid = (part.inputs["tokens"] for part in (prepared.splits.train, prepared.splits.valid))
    assert np.array_equal(np.concatenate([train, valid]), STREAM) and len(valid) == 300
    assert any("last tenth" in note for note in prepared.notes)
    streams = prepare(
        language_model(), task=None, data={"tokens": STREAM.reshape(3, -1)}, val=None, test=None, seed=0
    )
    parts = split(streams.splits.train, stream=True)
    assert [part.inputs["tokens"].shape for part in parts] == [(3, 810), (3, 90)]
