"""Simplify keeps what a graph computes, its interface and its layers, whatever onnxsim does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper

from lstmopt.passes import simplify as stage
from lstmopt.passes.rewrites import DropZeroStates, FoldWeights
from lstmopt.passes.simplify import Simplify, simplify
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.reader import INITIAL_C, INITIAL_H, find_rnns
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.writer import rnn_model
from tests.graphs import Builder, Drawn, feeds_for, lstm_graphs
from tests.recurrent import recurrent
from tests.test_rnn_reader import random_weights

SETTINGS = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def interface(model: ir.Model) -> list[tuple[str, Any, str]]:
    return [(v.name, v.dtype, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]


def check(before: ir.Model, after: ir.Model) -> None:
    onnx.checker.check_model(ir.to_proto(after))
    assert interface(after) == interface(before)
    layers = find_rnns(after)
    assert [layer.name for layer in layers] == [layer.name for layer in find_rnns(before)]
    for layer in layers:
        assert layer.supported and layer.input(1).is_initializer() and layer.input(2).is_initializer()
    for sequence, batch in ((5, 2), (9, 1)):
        feeds = feeds_for(before, sequence, batch, sequence)
        expected, got = run_model(before, feeds), run_model(after, feeds)
        assert list(got) == list(expected)
        for name, array in expected.items():
            assert np.abs(got[name] - array).max() <= 1e-5 * max(np.abs(array).max(), 1e-30), name


@settings(max_examples=2, **SETTINGS)
@given(lstm_graphs())
def test_drawn_graphs_compute_the_same(drawn: Drawn) -> None:
    before = ir.to_proto(drawn.model).SerializeToString(deterministic=True)
    after, notes = simplify(drawn.model)
    assert not notes
    assert ir.to_proto(drawn.model).SerializeToString(deterministic=True) == before
    check(drawn.model, after)


@pytest.mark.deep
@settings(max_examples=25, **SETTINGS)
@given(lstm_graphs())
def test_many_drawn_graphs_compute_the_same(drawn: Drawn) -> None:
    after, notes = simplify(drawn.model)
    assert not notes
    check(drawn.model, after)


@settings(max_examples=30, **SETTINGS)
@given(lstm_graphs())
def test_without_onnxsim_weights_and_zero_states_are_still_folded(drawn: Drawn) -> None:
    before = drawn.model.clone()
    after = rewrite(drawn.model, DropZeroStates(), FoldWeights())
    check(drawn.model, after)
    assert ir.to_proto(drawn.model) == ir.to_proto(before)


def with_states(fill: float) -> ir.Model:
    """One layer whose initial states are Expand and ConstantOfShape of a fill."""
    b = Builder(17, np.random.default_rng(0))
    x = b.input("x", TensorProto.FLOAT, ["sequence", "batch", 3])
    batch = b.one("Gather", b.one("Shape", x), b.ints(1), axis=0)
    shape = b.one("Concat", b.ints(2), batch, b.ints(4), axis=0)
    both = b.one("ConstantOfShape", shape, value=onnx.numpy_helper.from_array(np.array([fill], np.float32)))
    h = b.one("Slice", both, b.ints(0), b.ints(1), b.ints(0))
    one = b.one("Concat", b.ints(1), batch, b.ints(4), axis=0)
    c = b.one("Expand", b.initializer(np.full((1, 1, 1), fill, np.float32)), one)
    w, r = b.initializer(b.floats(1, 16, 3)), b.initializer(b.floats(1, 16, 4))
    b.nodes.append(helper.make_node("LSTM", [x, w, r, "", "", h, c], ["y"], name="l", hidden_size=4))
    b.output("out", "y", ["sequence", 1, "batch", 4])
    return ir.from_proto(b.proto())


@pytest.mark.parametrize(("fill", "kept"), [(0.0, False), (0.25, True)])
def test_initial_states_go_where_they_are_zero_and_only_there(fill: float, kept: bool) -> None:
    model = with_states(fill)
    after, _ = simplify(model)
    (layer,) = find_rnns(after)
    assert (layer.input(INITIAL_H) is not None) == (layer.input(INITIAL_C) is not None) == kept
    if not kept:
        assert [node.op_type for node in after.graph] == ["LSTM", "Identity"]
    check(model, after)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", "killed by signal 11"),
        ("raise SystemExit('no such operator')", "it failed (no such operator)"),
        ("import time; time.sleep(60)", "longer than 3 s"),
        ("import sys; open(sys.argv[2], 'w').write('nonsense')", "not an ONNX file"),
        ("import sys, onnx; m = onnx.load(sys.argv[1]); m.graph.output[0].name = 'z'; "
         "m.graph.node[-1].output[0] = 'z'; onnx.save(m, sys.argv[2])", "changed their names"),
        ("import sys, onnx, numpy as np; m = onnx.load(sys.argv[1]); t = m.graph.initializer[0]; "
         "a = onnx.numpy_helper.to_array(t) * np.float32(1.01); "
         "t.CopyFrom(onnx.numpy_helper.from_array(a, t.name)); onnx.save(m, sys.argv[2])", "out changed"),
    ],
)  # fmt: skip
def test_a_failing_onnxsim_leaves_the_graph_and_a_note(
    script: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real process is run with another program in it: crashes, hangs and wrong results do happen."""
    monkeypatch.setattr(stage, "_ONNXSIM", script)
    model = with_states(0.25)
    after, notes = simplify(model, timeout=3)
    assert len(notes) == 1 and said in notes[0]
    check(model, after)


def test_a_graph_with_unseeded_random_numbers_is_simplified() -> None:
    b = Builder(17, np.random.default_rng(0))
    x = b.input("x", TensorProto.FLOAT, ["sequence", "batch", 3])
    w, r = b.initializer(b.floats(1, 16, 3)), b.initializer(b.floats(1, 16, 4))
    b.nodes.append(helper.make_node("LSTM", [x, w, r], ["y"], name="l", hidden_size=4))
    b.output("out", "y", ["sequence", 1, "batch", 4])
    b.output("noisy", b.one("Add", "y", b.one("RandomNormalLike", "y")), ["sequence", 1, "batch", 4])
    model = ir.from_proto(b.proto())
    after, notes = simplify(model)
    assert not notes
    assert any(node.op_type == "RandomNormalLike" for node in after.graph)
    feeds = feeds_for(model, 4, 2, 0)
    np.testing.assert_allclose(run_model(after, feeds)["out"], run_model(model, feeds)["out"], atol=1e-6)


@dataclass(frozen=True)
class Some:
    """The part of the pipeline's state that the stage reads."""

    model: ir.Model
    notes: tuple[str, ...] = ("first",)
    workdir: Path = field(default_factory=Path)


def test_the_stage_adds_its_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_ONNXSIM", "raise SystemExit('broken')")
    model = rnn_model(random_weights(np.random.default_rng(0)))
    after = Simplify().run(Some(model))
    assert after.notes[0] == "first" and "broken" in after.notes[1]
    assert Simplify.needs == ("model",) and Simplify.gives == ("model",) and Simplify().name == "simplify"


def test_inputs_with_a_default_are_told() -> None:
    proto = recurrent(states=True)
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = dim.dim_value or 3
    for state in proto.graph.input[1:]:
        sizes = [dim.dim_value for dim in state.type.tensor_type.shape.dim]
        zeros = onnx.numpy_helper.from_array(np.zeros(sizes, np.float32), state.name)
        proto.graph.initializer.append(zeros)
    names = [state.name for state in proto.graph.input[1:]]
    model, notes = simplify(ir.from_proto(proto))
    assert f"inputs that have a default are constants now: {', '.join(names)}" in notes
    assert not set(names) & {value.name for value in model.graph.inputs if not value.is_initializer()}
