"""Layout 1 is rewritten when a file is read: checked against ONNX's own evaluator, which knows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lstmopt.passes.sparse_ops import SparseOps, sparse_places
from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.writer import rnn_model
from tests.test_rnn_reader import random_weights

SEQUENCE, BATCH = 5, 3


def batch_first(direction: str, last_states: bool = True) -> onnx.ModelProto:
    """A bare layer of layout 1 with its states as inputs and outputs, and a second reader of Y."""
    weights = random_weights(np.random.default_rng(0), 4, 3, direction)
    proto = ir.to_proto(rnn_model(weights, states=True))
    graph, directions = proto.graph, weights.num_directions
    graph.node[0].attribute.append(helper.make_attribute("layout", 1))
    graph.node.append(helper.make_node("Neg", ["y"], ["negative"]))
    state = ["batch", directions, 4]
    shapes = {
        "x": ["batch", "sequence", 3], "y": ["batch", "sequence", directions, 4],
        "negative": ["batch", "sequence", directions, 4],
        "h_0": state, "c_0": state, "h_n": state, "c_n": state,
    }  # fmt: skip
    inputs = [value.name for value in graph.input]
    outputs = ["y", "h_n", "c_n", "negative"] if last_states else ["y", "negative"]
    if not last_states:
        del graph.node[0].output[1:]
    for values, names in ((graph.input, inputs), (graph.output, outputs)):
        del values[:]
        values.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in names)
    return proto


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("last_states", [True, False])
def test_the_graph_computes_the_same(direction: str, last_states: bool, tmp_path: Path) -> None:
    proto = batch_first(direction, last_states)
    onnx.save(proto, tmp_path / "model.onnx")
    rng = np.random.default_rng(1)
    directions = 2 if direction == "bidirectional" else 1
    feeds = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (
            ("x", (BATCH, SEQUENCE, 3)), ("h_0", (BATCH, directions, 4)), ("c_0", (BATCH, directions, 4)),
        )
    }  # fmt: skip
    names = [output.name for output in proto.graph.output]
    expected = dict(zip(names, ReferenceEvaluator(proto).run(None, feeds), strict=True))
    model = load_model(tmp_path / "model.onnx")
    got = run_model(model, feeds)
    assert list(got) == names
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-6)
    after = ir.to_proto(model)
    onnx.checker.check_model(after)
    assert list(after.graph.input) == list(proto.graph.input)
    assert list(after.graph.output) == list(proto.graph.output)
    (layer,) = find_rnns(model)
    assert layer.supported


def test_nodes_in_branches_are_rewritten(tmp_path: Path) -> None:
    inner = batch_first("forward", last_states=False).graph
    body = helper.make_graph(inner.node, "body", [], [inner.output[1]], inner.initializer)
    node = helper.make_node("If", ["flag"], ["out"], then_branch=body, else_branch=body)
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph([node], "outer", [flag, *inner.input], [out])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "model.onnx")
    rng = np.random.default_rng(2)
    feeds = {
        "flag": np.array(True),
        **{
            name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in (("x", (BATCH, SEQUENCE, 3)), ("h_0", (BATCH, 1, 4)), ("c_0", (BATCH, 1, 4)))
        },
    }
    expected = ReferenceEvaluator(proto).run(None, feeds)[0]
    model = load_model(tmp_path / "model.onnx")
    np.testing.assert_allclose(run_model(model, feeds)["out"], expected, atol=1e-6)


def test_values_made_in_a_branch_have_names_of_their_own(tmp_path: Path) -> None:
    """Layers in the main graph and in a branch, each between transpositions that get names."""
    inner = batch_first("forward", last_states=False).graph
    outer = onnx.compose.add_prefix(batch_first("forward", last_states=False), "o_").graph
    body = helper.make_graph(inner.node, "body", [], [inner.output[1]], inner.initializer)
    node = helper.make_node("If", ["flag"], ["out"], then_branch=body, else_branch=body)
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph(
        [*outer.node, node], "both", [flag, *inner.input, *outer.input], [out, *outer.output],
        outer.initializer,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "model.onnx")
    model = load_model(tmp_path / "model.onnx")
    feeds = example_inputs(model, 0, {"batch": BATCH, "sequence": SEQUENCE})
    names = [value.name for value in proto.graph.output]
    expected = dict(zip(names, ReferenceEvaluator(proto).run(None, feeds), strict=True))
    got = run_model(model, feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-6)
    # A later rewrite, whose values are unnamed too.
    sparse = rewrite(
        model, SparseOps({place.name: "f32" for place in sparse_places(model, 1.0)}, densest=1.0)
    )
    names_outside = {value.name for node in sparse.graph for value in node.outputs if value.name}
    for node in sparse.graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                inside = {value.name for each in attribute.as_graph() for value in each.outputs if value.name}
                assert not inside & names_outside
