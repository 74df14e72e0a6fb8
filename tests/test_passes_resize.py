"""Importance, folded means, chosen sizes and the stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from lstmopt.errors import LstmoptError
from lstmopt.passes.latency import latency_models
from lstmopt.passes.resize import Resize
from lstmopt.rnn.check import silence
from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.folding import measure
from lstmopt.rnn.groups import analyse, lane_importance, unit_groups
from lstmopt.rnn.plan import Plan
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.surgery import resize
from lstmopt.rnn.writer import write_weights
from lstmopt.targets import RuntimeTarget, Target
from tests.graphs import Builder, Drawn, feeds_for, lstm_graphs
from tests.test_measure_table import table

SETTINGS = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def language_model(hidden: int = 12, layers: int = 2, seed: int = 0) -> ir.Model:
    """Tokens, embedding, LSTMs with states, MatMul and Add."""
    b = Builder(17, np.random.default_rng(seed))
    tokens = b.input("tokens", TensorProto.INT64, ["sequence", "batch"])
    value, width = b.one("Gather", b.initializer(b.floats(11, 5)), tokens), 5
    for index in range(layers):
        states = [b.input(f"{kind}{index}", TensorProto.FLOAT, [1, "batch", hidden]) for kind in "hc"]
        w, r = b.initializer(b.floats(1, 4 * hidden, width)), b.initializer(b.floats(1, 4 * hidden, hidden))
        biases = b.initializer(b.floats(1, 8 * hidden))
        outputs = [f"y{index}", f"h{index}n", f"c{index}n"]
        inputs = [value, w, r, biases, "", *states]
        b.nodes.append(helper.make_node("LSTM", inputs, outputs, name=f"lstm{index}", hidden_size=hidden))
        value, width = b.axes("Squeeze", outputs[0], [1]), hidden
        for kind in "hc":
            b.output(f"{kind}{index}_out", f"{kind}{index}n", [1, "batch", hidden])
    logits = b.one(
        "Add", b.one("MatMul", value, b.initializer(b.floats(hidden, 11))), b.initializer(b.floats(11))
    )
    b.output("logits", logits, ["sequence", "batch", 11])
    b.outputs.insert(0, b.outputs.pop())
    return ir.from_proto(b.proto())


def kill(model: ir.Model, layer: str, units: list[int]) -> ir.Model:
    """Returns a copy in which nothing reads those units."""
    copy = model.clone()
    analysis = analyse(copy)
    order = {
        lane.base: np.setdiff1d(np.arange(lane.size), units)
        for lane in analysis.flow.lanes
        if lane.layer == layer
    }
    silence(copy, Plan(analysis, order))
    return copy


def test_dead_units_go_first_and_their_going_is_an_identity() -> None:
    model = kill(kill(language_model(), "lstm0", [1, 4, 7]), "lstm1", [0, 11])
    small = resize(model, {"lstm0": 9, "lstm1": 10})
    assert small.before == {"lstm0": 12, "lstm1": 12} and small.after == {"lstm0": 9, "lstm1": 10}
    assert small.kept_importance == {"lstm0": 1.0, "lstm1": 1.0}
    feeds = feeds_for(model, 6, 2, 0)
    expected = run_model(model, feeds)
    fewer = dict(feeds)
    for index, gone in ((0, [1, 4, 7]), (1, [0, 11])):
        for kind in "hc":
            fewer[f"{kind}{index}"] = np.delete(feeds[f"{kind}{index}"], gone, axis=2)
            expected[f"{kind}{index}_out"] = np.delete(expected[f"{kind}{index}_out"], gone, axis=2)
    got = run_model(small.model, fewer)
    for name, array in expected.items():
        assert np.abs(got[name] - array).max() <= 1e-5 * np.abs(array).max(), name
    shapes = {
        value.name: list(value.shape) for value in (*small.model.graph.inputs, *small.model.graph.outputs)
    }
    assert shapes["h0"][2] == shapes["h0_out"][2] == 9 and shapes["c1"][2] == shapes["c1_out"][2] == 10


def test_importance_is_nothing_where_either_side_is_nothing() -> None:
    model = language_model(layers=1)
    layer = find_rnns(model)[0]
    weights = layer.weights
    w, r, b = weights.w.copy(), weights.r.copy(), weights.b.copy()
    w[:, :, 3] = r[:, :, 3] = b[:, :, :, 3] = 0
    write_weights(model, layer, replace(weights, w=w, r=r, b=b))
    model = kill(model, "lstm0", [5])
    analysis = analyse(model)
    scores = lane_importance(analysis, analysis.flow.lanes[0])
    assert scores[3] == scores[5] == 0
    assert np.all(np.delete(scores, [3, 5]) > 0)


def test_importance_is_the_norms_of_the_units_weights() -> None:
    model = language_model(layers=1)
    analysis = analyse(model)
    weights = find_rnns(model)[0].weights
    decoder = next(node for node in model.graph if node.op_type == "MatMul").inputs[1].const_value.numpy()
    b = weights.b[0].sum(axis=0)
    incoming = [
        np.concatenate([weights.w[0, :, u].ravel(), weights.r[0, :, u].ravel(), b[:, u]]) for u in range(12)
    ]
    outgoing = [np.concatenate([weights.r[0, :, :, u].ravel(), decoder[u]]) for u in range(12)]
    norm = np.linalg.norm
    expected = [np.sqrt(norm(i) * norm(o)) for i, o in zip(incoming, outgoing, strict=True)]
    np.testing.assert_allclose(lane_importance(analysis, analysis.flow.lanes[0]), expected, rtol=1e-5)


def test_folding_keeps_the_output_of_units_that_never_change() -> None:
    """A unit whose activation is a constant is nothing but a bias of its readers: folded, nothing is lost."""
    model = language_model(hidden=10)
    for layer in find_rnns(model):
        weights = layer.weights
        w, r, b = weights.w.copy(), weights.r.copy(), weights.b.copy()
        for unit in (2, 6):
            # Open input and output gates, closed forget gate: h = tanh(tanh(b_c)) at every step.
            w[:, :, unit] = r[:, :, unit] = b[:, :, :, unit] = 0
            b[:, 0, 0, unit], b[:, 0, 1, unit], b[:, 0, 2, unit], b[:, 0, 3, unit] = 30, 30, -30, 0.6
        write_weights(model, layer, replace(weights, w=w, r=r, b=b))
    rng = np.random.default_rng(0)
    constant = np.float32(np.tanh(np.tanh(0.6)))

    def call(sequence: int, units: int) -> dict[str, np.ndarray]:
        states = {f"{kind}{i}": np.zeros((1, 3, units), np.float32) for i in range(2) for kind in "hc"}
        return {"tokens": rng.integers(0, 11, (sequence, 3)), **states}

    calls = [call(30, 10) for _ in range(2)]
    small = resize(model, {"lstm0": 8, "lstm1": 8}, calibration=calls)
    assert [layer.weights.hidden_size for layer in find_rnns(small.model)] == [8, 8]
    feeds = call(20, 10)
    for index in range(2):
        feeds[f"h{index}"][..., [2, 6]] = constant  # from the first step on, as ever after
    expected = run_model(model, feeds)["logits"]
    fewer = {name: np.delete(a, [2, 6], axis=2) if name != "tokens" else a for name, a in feeds.items()}
    folded = run_model(small.model, fewer)["logits"]
    assert np.abs(folded - expected).max() < 1e-5 * np.abs(expected).max()
    # The plain removal of the same units does lose something.
    dead = kill(kill(model, "lstm0", [2, 6]), "lstm1", [2, 6])
    assert np.abs(run_model(dead, feeds)["logits"] - expected).max() > 1e-2


@settings(max_examples=15, **SETTINGS)
@given(lstm_graphs(pins=False), st.integers(0, 2))
def test_calibrated_shrinking_of_drawn_graphs_runs_and_keeps_dead_removal_exact(
    drawn: Drawn, seed: int
) -> None:
    sizes = {group.layers[0]: group.hidden_size - 1 for group in unit_groups(drawn.model) if not group.pinned}
    calls = [feeds_for(drawn.model, 5, 2, seed), feeds_for(drawn.model, 3, 2, seed + 1)]
    small = resize(drawn.model, sizes, calibration=calls)
    for layer in find_rnns(small.model):
        assert layer.weights.hidden_size == small.after[layer.name]
    outputs = run_model(small.model, example_inputs(small.model, 0, sizes_for(small.model, 2, 4)))
    assert all(np.isfinite(array).all() for array in outputs.values())


def test_moments_are_those_of_the_outputs() -> None:
    model = language_model(hidden=6, layers=1)
    analysis = analyse(model)
    calls = [feeds_for(model, 7, 2, 0), feeds_for(model, 4, 3, 1)]
    moments = measure(model, analysis, calls)
    from lstmopt.rnn.execution import Reference

    ys = [Reference(model, also=["y0"]).run(feeds)["y0"][:, 0].reshape(-1, 6) for feeds in calls]
    y = np.concatenate(ys).astype(np.float64)
    np.testing.assert_allclose(moments.means[1], y.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(moments.deviations[1], y.std(axis=0), atol=1e-6)


def test_faults_are_named() -> None:
    model = language_model()
    with pytest.raises(
        LstmoptError, match="layer lstm7: is not one that can be resized; the layers are: lstm0, lstm1"
    ):
        resize(model, {"lstm7": 4})
    with pytest.raises(LstmoptError, match="not positive"):
        resize(model, {"lstm0": 0})
    for scale in (0.0, 8.0, float("nan")):
        with pytest.raises(LstmoptError, match="not above 0, up to 4"):
            Resize(scale=scale)
    for size in (0, {"lstm0": 4, "lstm1": 0}):
        with pytest.raises(LstmoptError, match="0 is below 1"):
            Resize(hidden_size=size)


def curve(layer: str, sizes: tuple[int, ...] = (4, 6, 8, 12, 14), each: float = 10.0, **changes: Any) -> Any:
    """A table whose latency is so many microseconds a hidden unit; its points are the sizes."""
    latency = {size: each * size for size in sizes}
    marks = tuple(sorted(sizes, reverse=True))
    fields: dict[str, Any] = {
        "layer": layer, "runtime": "onnxruntime", "input_size": 5 if layer == "lstm0" else None,
        "dimensions": sizes, "curve": latency, "samples": {}, "hysteresis_points": marks,
    }  # fmt: skip
    return table(**{**fields, **changes})


ONE = Target(name="one", runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32", "int8")),))


def chosen(*tables: Any, target: Target | None = ONE, **how: Any) -> tuple[list[int], tuple[str, ...]]:
    """The hidden sizes that the two layers get, and the notes."""
    model = language_model()
    sizes, notes = Resize(**how).sizes(model, tables, target)
    return [sizes.get(name, 12) for name in ("lstm0", "lstm1")], notes


def test_sizes_are_points_of_the_tables() -> None:
    both = curve("lstm0"), curve("lstm1")
    assert chosen(*both) == ([12, 12], ())
    assert chosen(*both, scale=0.99) == ([8, 8], ())
    assert chosen(*both, scale=0.6) == ([6, 6], ())
    assert chosen(*both, scale=0.1) == ([1, 1], ())
    assert chosen(curve("lstm0"), curve("lstm1", (3, 12)), scale=0.99)[0] == [8, 3]


def test_sizes_grow_to_points() -> None:
    """Above 1 as far as is asked for; at 1 to a larger size that is as fast, and no other."""
    assert chosen(curve("lstm0"), curve("lstm1"), scale=1.2)[0] == [14, 14]
    assert chosen(curve("lstm0"), curve("lstm1"), scale=1.1)[0] == [12, 12]
    level = {"curve": {4: 40.0, 8: 80.0, 12: 140.0, 14: 140.5}, "hysteresis_points": (14, 8, 4)}
    sizes = (4, 8, 12, 14)
    assert chosen(curve("lstm0"), curve("lstm1", sizes, **level))[0] == [12, 14]
    # Told apart or not: what is 3% slower is not grown to.
    level["curve"] = {4: 40.0, 8: 80.0, 12: 140.0, 14: 144.5}
    assert chosen(curve("lstm0"), curve("lstm1", sizes, **level, resolution=0.05))[0] == [12, 8]


def test_the_runtime_in_which_the_model_is_fastest_decides() -> None:
    slow = curve("lstm0", (5, 12)), curve("lstm1", (5, 12))
    fast = [curve(name, (7, 12), each=3.0, precision="int8") for name in ("lstm0", "lstm1")]
    assert chosen(*slow, *fast, scale=0.8)[0] == [7, 7]
    assert chosen(*slow, fast[0], scale=0.8)[0] == [5, 5]  # int8 of one layer alone says nothing


MIXED = Target(
    name="mixed", runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32", "int8", "sparse-i8")),)
)


def sparse(sizes: tuple[int, ...], each: float, density: float = 0.125) -> list[Any]:
    """Tables of both layers, in our op at one density."""
    axes = {"precision": "sparse-i8", "pattern": "bank64:step4", "density": density}
    return [curve(name, sizes, each=each, **axes) for name in ("lstm0", "lstm1")]


def test_points_are_those_of_the_tables_that_the_model_is_executed_as() -> None:
    dense = [curve(name, (7, 12), each=3.0) for name in ("lstm0", "lstm1")]
    some = [*dense, *sparse((6, 12), 1.0), *sparse((5, 12), 2.0, 0.25)]
    assert chosen(*some, scale=0.8, target=MIXED)[0] == [6, 6], "the fastest one's"
    assert chosen(*some, scale=0.8, density=0.25, target=MIXED)[0] == [5, 5], "not another density's"
    assert chosen(*some, scale=0.8, precision="f32", target=MIXED)[0] == [7, 7]
    assert chosen(*some, scale=0.8, pattern="bank32", target=MIXED)[0] == [7, 7], "dense ones have no pattern"
    assert chosen(*some, scale=0.8, target=ONE)[0] == [7, 7], "the target has no sparse precision"
    sizes, notes = chosen(*some, scale=0.8, precision="int8", target=MIXED)
    assert sizes == [8, 8] and "do not cover" in notes[0]


def test_a_speed_counts_the_weights_that_a_density_leaves() -> None:
    """Both are fast enough at the full size: the one that keeps more weights is taken."""
    dense = [curve(name, (8, 12), each=3.0) for name in ("lstm0", "lstm1")]
    sizes, notes = chosen(*dense, *sparse((8, 12), 1.0), speed=1.0, target=MIXED)
    assert sizes == [12, 12] and "predicted in onnxruntime sparse-i8" in notes[0]
    _, notes = chosen(*dense, *sparse((8, 12), 2.9), speed=1 / 1.1, target=MIXED)
    assert "predicted in onnxruntime f32" in notes[0]


@pytest.mark.parametrize(
    "other",
    [
        {"threads": 2}, {"batch": 4}, {"sequence": 7}, {"precision": "bf16"}, {"runtime": "openvino"},
        {"input_size": 6}, {"directions": 2},
        {"dimensions": (4, 8), "curve": {4: 1.0, 8: 2.0}, "hysteresis_points": (8, 4)},
    ],
)  # fmt: skip
def test_tables_of_anything_else_do_not_count(other: dict[str, Any]) -> None:
    sizes, notes = chosen(curve("lstm0", **other), curve("lstm1"), scale=0.6)
    assert sizes == [7, 7]  # as without tables: multiples of 8, of 1 below 8
    assert any("do not cover" in note for note in notes)
    assert chosen(scale=0.6) == ([7, 7], ())
    assert chosen(curve("lstm0"), curve("lstm1"), scale=0.6, target=None)[0] == [7, 7]


def test_a_speed_is_reached_with_what_keeps_most() -> None:
    """Of all combinations of points: the widest narrowest layer, then the most weights."""
    cheap, dear = curve("lstm0", each=10.0), curve("lstm1", each=40.0)
    (predicted,) = latency_models(language_model(), (cheap, dear), (), ONE)
    own = predicted.predict({"lstm0": 12, "lstm1": 12})
    for speed in (1.0, 1.2, 1.5, 2.5):
        sizes, notes = chosen(cheap, dear, speed=speed)
        found = {"lstm0": sizes[0], "lstm1": sizes[1]}
        assert predicted.predict(found) <= own / speed and "us predicted in onnxruntime f32" in notes[-1]
        for one in (4, 6, 8, 12, 14):
            for other in (4, 6, 8, 12, 14):
                rival = {"lstm0": one, "lstm1": other}
                worth = [(min(s.values()), predicted.parameters(s)) for s in (rival, found)]
                assert worth[0] <= worth[1] or predicted.predict(rival) > own / speed
    assert chosen(cheap, dear, speed=100.0)[0] == [4, 4]
    with pytest.raises(LstmoptError, match="no latency tables"):
        chosen(speed=1.5)
    with pytest.raises(LstmoptError, match="not positive"):
        Resize(speed=0)


@dataclass(frozen=True)
class Some:
    """The part of the pipeline's state that the stage reads."""

    model: ir.Model
    tables: tuple[Any, ...] = ()
    target: Any = None
    peers: tuple[Any, ...] = ()
    task: Any = None
    data: Any = None
    seed: int = 0
    masks: dict[str, Any] = field(default_factory=lambda: {"old": 1})
    pattern: str = "old"
    rounding: str | None = "old"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    feeds: dict[str, np.ndarray]


class Stream:
    """A task with token calls and no states, as the real ones hand them out."""

    def batches(self, part: str, *, batch: int, sequence: int, rng: np.random.Generator):
        assert part == "training tokens"
        while True:
            yield Call({"tokens": rng.integers(0, 11, (sequence, batch))})


@dataclass(frozen=True)
class Parts:
    train: str = "training tokens"


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (dict(scale=0.75), [8, 8]),
        (dict(hidden_size=7), [7, 7]),
        (dict(hidden_size={"lstm1": 5}), [12, 5]),
        (dict(hidden_size=16), [16, 16]),
        (dict(hidden_size=12), [12, 12]),
    ],
)  # fmt: skip
def test_the_stage(stage: dict[str, Any], expected: list[int], calibrated: bool) -> None:
    state = Some(language_model(), task=Stream(), data=Parts()) if calibrated else Some(language_model())
    after = Resize(**stage).run(state)
    assert [layer.weights.hidden_size for layer in find_rnns(after.model)] == expected
    assert [layer.weights.hidden_size for layer in find_rnns(state.model)] == [12, 12]
    assert after.masks == ({} if expected != [12, 12] else {"old": 1})
    assert after.pattern == ("dense" if expected != [12, 12] else "old")
    assert after.rounding == (None if expected != [12, 12] else "old")
    again = Resize(**stage).run(state)
    assert ir.to_proto(again.model).SerializeToString() == ir.to_proto(after.model).SerializeToString()


def test_a_layer_that_cannot_change_is_noted_and_an_explicit_wish_refused() -> None:
    from lstmopt.rnn.writer import rnn_model
    from tests.test_rnn_reader import random_weights

    model = rnn_model(random_weights(np.random.default_rng(0), hidden=9))
    after = Resize(scale=0.5).run(Some(model))
    assert after.model is model and "rnn keeps its hidden size: they reach the output y" in after.notes[0]
    with pytest.raises(LstmoptError, match="cannot be resized"):
        Resize(hidden_size={"rnn": 4}).run(Some(model))


def test_equal_configurations_have_one_key() -> None:
    one, other = Resize(hidden_size={"a": 1, "b": 2}), Resize(hidden_size={"b": 2, "a": 1})
    assert repr(one) == repr(other)
