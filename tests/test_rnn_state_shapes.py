"""`keep_states`: callers' state shapes stay, removed units are zeros, and what comes out can be fed back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import lstmopt
from lstmopt.errors import LstmoptError
from lstmopt.passes import Export, Resize
from lstmopt.report.schema import Manifest
from lstmopt.report.text import state_lines
from lstmopt.rnn.check import silence
from lstmopt.rnn.execution import Reference, run_model
from lstmopt.rnn.files import save_model
from lstmopt.rnn.groups import analyse
from lstmopt.rnn.plan import Plan
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.states import state_pairs
from lstmopt.rnn.surgery import carry_out, resize
from lstmopt.runtimes import open_session
from lstmopt.targets import RuntimeTarget, Target
from tests.graphs import Drawn, feeds_for, lstm_graphs
from tests.test_rnn_resize import draw_order

SETTINGS = dict(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)  # fmt: skip


def target(*runtimes: str) -> Target:
    return Target(
        name="f32", runtimes=tuple(RuntimeTarget(runtime=name, precisions=("f32",)) for name in runtimes)
    )


def packed(
    layout: str, opset: int = 17, hidden: int = 12, layers: int = 2, batch: object = "batch"
) -> ir.Model:
    """Returns layers whose states are all cut from one input.

    Args:
        layout: "rows" ``[2 layers, batch, hidden]``, "nested" ``[2, layers, batch, hidden]``, "flat"
            ``[batch, 2 * layers * hidden + 5]`` with 5 numbers that are no states of units, "cropped"
            ``[batch, layers, hidden, 2]`` as Keras' models have it, cut on all axes at once.
        opset: of the file.
        hidden: hidden units.
    """
    layers, batch = 2, "batch"
    rng = np.random.default_rng(len(layout) + opset)
    helper, constants, nodes = onnx.helper, [], []

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def op(kind: str, inputs: list[str], *outputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, list(outputs), name=outputs[0], **attributes))
        return outputs[0]

    def axes_moved(kind: str, value: str, name: str, axes: list[int]) -> str:
        if opset < 13:
            return op(kind, [value], name, axes=axes)
        return op(kind, [value, constant(f"{name}.axes", np.array(axes))], name)

    shape = {
        "cropped": [batch, layers, hidden, 2],
        "rows": [2 * layers, batch, hidden],
        "nested": [2, layers, batch, hidden],
        "flat": [batch, 2 * layers * hidden + 5],
    }[layout]
    x, finals = "x", []
    for layer in range(layers):
        states = []
        for kind in range(2):
            number, name = 2 * layer + kind, f"{'hc'[kind]}{layer}"
            if layout == "rows":
                op("Gather", ["state", constant(f"{name}.at", np.array([number]))], name, axis=0)
            elif layout == "nested":
                at = constant(f"{name}.at", np.array(kind))
                op("Gather", ["state", at], f"{name}.kind", axis=0)
                op("Gather", [f"{name}.kind", constant(f"{name}.of", np.array([layer]))], name, axis=0)
            elif layout == "cropped":
                ends = [2**63 - 1, layer + 1, hidden if kind else 2**63 - 1, kind + 1]
                bounds = [np.array([0, layer, 0, kind]), np.array(ends), np.arange(4), np.ones(4, np.int64)]
                cuts = [constant(f"{name}.cut{i}", bound) for i, bound in enumerate(bounds)]
                op("Slice", ["state", *cuts], f"{name}.cropped")
                axes_moved("Squeeze", f"{name}.cropped", f"{name}.flat", [1, 3])
                axes_moved("Unsqueeze", f"{name}.flat", name, [0])
            else:
                bounds = [np.array([number * hidden]), np.array([(number + 1) * hidden]), np.array([1])]
                cuts = [constant(f"{name}.cut{i}", bound) for i, bound in enumerate(bounds)]
                op("Slice", ["state", *cuts], f"{name}.flat")
                op("Reshape", [f"{name}.flat", constant(f"{name}.form", np.array([1, -1, hidden]))], name)
            states.append(name)
        w, r = (
            (rng.standard_normal((1, 4 * hidden, n)) / np.sqrt(hidden)).astype(np.float32)
            for n in (6 if layer == 0 else hidden, hidden)
        )
        weights = [constant(f"W{layer}", w), constant(f"R{layer}", r)]
        last = [f"hn{layer}", f"cn{layer}"]
        op("LSTM", [x, *weights, "", "", *states], f"y{layer}", *last, hidden_size=hidden)
        x = f"flat{layer}"
        axes = constant(f"axes{layer}", np.array([1]))
        if opset >= 13:
            op("Squeeze", [f"y{layer}", axes], x)
        else:
            op("Squeeze", [f"y{layer}"], x, axes=[1])
        finals += last
    op("MatMul", [x, constant("out", rng.standard_normal((hidden, 3)).astype(np.float32))], "y")
    if layout == "rows":
        op("Concat", finals, "state_out", axis=0)
    elif layout == "nested":
        for kind in range(2):
            op("Concat", finals[kind::2], f"all{kind}", axis=0)
            shaped = constant(f"shape{kind}", np.array([1, layers, -1, hidden]))
            op("Reshape", [f"all{kind}", shaped], f"lifted{kind}")
        op("Concat", ["lifted0", "lifted1"], "state_out", axis=0)
    elif layout == "cropped":
        for kind in range(2):
            parts = []
            for layer, final in enumerate(finals[kind::2]):
                flat = axes_moved("Squeeze", final, f"{final}.flat", [0])
                parts.append(axes_moved("Unsqueeze", flat, f"part{kind}{layer}", [1]))
            op("Concat", parts, f"all{kind}", axis=1)
            axes_moved("Unsqueeze", f"all{kind}", f"lifted{kind}", [-1] if opset > 10 else [3])
        op("Concat", ["lifted0", "lifted1"], "state_out", axis=3)
    else:
        rows = [
            op("Reshape", [name, constant(f"{name}.row", np.array([-1, hidden]))], f"{name}.2d")
            for name in finals
        ]
        cuts = [constant(f"rest{i}", np.array([v])) for i, v in enumerate((2 * layers * hidden, 10**6, 1))]
        op("Slice", ["state", *cuts], "rest")
        op("Concat", [*rows, "rest"], "state_out", axis=1)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, ["sequence", batch, 6]), info("state", 1, shape)],
        [info("y", 1, ["sequence", batch, 3]), info("state_out", 1, shape)], constants,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def hidden_sizes(model: ir.Model) -> list[int]:
    return [layer.weights.hidden_size for layer in find_rnns(model)]


def shapes(model: ir.Model) -> dict[str, str]:
    return {str(value.name): str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)}


def silenced(model: ir.Model, order: dict[int, np.ndarray]) -> ir.Model:
    """Returns a copy in which nothing reads the units that go: what the small model must compute."""
    copy = model.clone()
    silence(copy, Plan(analyse(copy), order))
    return copy


def stream(model: ir.Model, calls: int) -> list[np.ndarray]:
    """Returns the real outputs of calls in a row, states fed back from zeros."""
    session, pairs = Reference(model), state_pairs(model)
    feeds = feeds_for(model, 3, 2, seed=0)
    state = {pair.input: np.zeros_like(feeds[pair.input]) for pair in pairs}
    outputs = []
    for call in range(calls):
        fresh = feeds_for(model, 3, 2, seed=call)
        results = session.run({**fresh, **state})
        state = {pair.input: results[pair.output] for pair in pairs}
        outputs.append(results["y"])
    return outputs


@pytest.mark.parametrize("opset", [10, 17, 21])
@pytest.mark.parametrize("layout", ["rows", "nested", "flat", "cropped"])
def test_states_cut_from_one_input_keep_their_shape(layout: str, opset: int) -> None:
    model = packed(layout, opset)
    analysis = analyse(model)
    rng = np.random.default_rng(1)
    assert [group.interface for group in analysis.groups] == [("state", "state_out")]
    # Every layer keeps other units, so that rows of the state are cut at other places.
    order = {
        lane.base: np.sort(rng.permutation(lane.size)[:5]).astype(np.int64) for lane in analysis.flow.lanes
    }
    small = model.clone()
    carry_out(small, Plan(analyse(small), order), np.random.default_rng(0), keep_states=True)
    assert hidden_sizes(small) == [5, 5]
    assert shapes(small) == shapes(model)
    expected, got = stream(silenced(model, order), 20), stream(small, 20)
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)
    feeds = feeds_for(small, 4, 3, seed=5)
    after = run_model(small, feeds)["state_out"]
    before = run_model(silenced(model, order), feeds)["state_out"]
    assert after.shape == before.shape
    kept = after != 0
    np.testing.assert_allclose(after[kept], before[kept], atol=1e-5)
    by_row = {"flat": kept.reshape(3, -1)[:, : 4 * 12], "cropped": kept}
    units = by_row.get(layout, np.moveaxis(kept, -2, 0))
    assert units.reshape(3, -1).sum(axis=1).tolist() == [4 * 5] * 3


@pytest.mark.parametrize("layout", ["rows", "nested", "flat", "cropped"])
def test_without_it_the_packed_state_shrinks(layout: str) -> None:
    small = resize(packed(layout), {"y0": 5}).model
    size = 4 * 5 + 5 if layout == "flat" else 5
    for value in (*small.graph.inputs, *small.graph.outputs):
        if str(value.name).startswith("state"):
            assert value.shape[2 if layout == "cropped" else -1] == size
    assert len(stream(small, 3)) == 3


def test_what_keeps_its_state_shape_can_shrink_once_more() -> None:
    model = packed("rows")
    once = resize(model, {"y0": 8}, keep_states=True).model
    twice = resize(once, {"y0": 4}, keep_states=True).model
    assert shapes(twice) == shapes(model)
    assert hidden_sizes(twice) == [4, 4]
    assert all(np.isfinite(output).all() for output in stream(twice, 5))


def test_there_is_no_room_for_added_units() -> None:
    with pytest.raises(LstmoptError, match="no room for added units"):
        resize(packed("rows"), {"y0": 16}, keep_states=True)


@pytest.mark.deep
@pytest.mark.parametrize("keep", [True, False])
def test_an_artifact_says_what_callers_have_to_feed(keep: bool, tmp_path: Path) -> None:
    model = packed("rows", hidden=160)
    save_model(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((60, 5, 6)).astype(np.float32)
    state = lstmopt.Pipeline(Resize(hidden_size=16, keep_state_shape=keep), Export(3)).run(
        tmp_path / "model.onnx", data={"x": x}, output=tmp_path / "out", max_degradation=50.0,
        target=target("onnxruntime", "openvino") if keep else target("onnxruntime"),
    )  # fmt: skip
    manifest = Manifest.load(tmp_path / "out" / "manifest.json")
    (record,) = manifest.states
    assert record.original_shape == (4, "batch", 160)
    assert record.shape == (4, "batch", 160 if keep else 16) and record.changed is not keep
    assert [entry.runtime for entry in manifest.deploy].count("openvino") == keep
    for entry in manifest.deployments(tmp_path / "out"):
        shape = next(i.shape for i in open_session(entry, 1).inputs if i.name == "state")
        assert shape[-1] == (160 if keep else 16)
    said = [note for note in state.notes if note.startswith("states have new shapes")]
    lines = state_lines(manifest)
    if keep:
        assert not said and not lines
    else:
        assert "state [4, batch, 16], was [4, batch, 160]" in said[0]
        assert lines == ("state state -> state_out: [4, batch, 16], was [4, batch, 160]",)


@settings(max_examples=20, **SETTINGS)
@given(lstm_graphs(), st.data())
def test_drawn_graphs_keep_their_interface(drawn: Drawn, data: st.DataObject) -> None:
    keep_interface(drawn, data)


@pytest.mark.deep
@settings(max_examples=300, **SETTINGS)
@given(lstm_graphs(), st.data())
def test_many_drawn_graphs_keep_their_interface(drawn: Drawn, data: st.DataObject) -> None:
    keep_interface(drawn, data)


def keep_interface(drawn: Drawn, data: st.DataObject) -> None:
    order = draw_order(analyse(drawn.model), data)
    small = drawn.model.clone()
    carry_out(small, Plan(analyse(small), order), np.random.default_rng(0), keep_states=True)
    assert shapes(small) == shapes(drawn.model)
    if not drawn.exact:
        return
    dead = silenced(drawn.model, order)
    feeds = feeds_for(dead, 4, 3, seed=4)
    expected, got = run_model(dead, feeds), run_model(small, feeds)
    for name, array in expected.items():
        assert got[name].shape == array.shape
        scale = np.abs(array).max(initial=1e-3)
        here = got[name] != 0 if name != "y" else np.ones(array.shape, bool)
        assert np.abs(got[name] - array)[here].max(initial=0) <= 1e-5 * scale
