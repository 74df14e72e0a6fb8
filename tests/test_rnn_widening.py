"""16-bit models are read in float32, with the interface that they came with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.writer import rnn_model
from tests.test_rnn_reader import random_weights

WRAPPED = """
<ir_version: 8, opset_import: ["": 17]>
g (FLOAT[steps, batch, 3] x) => (FLOAT[1, 1, batch, 4] last, FLOAT[steps, 1, batch, 4] y)
<int64 one = {1}, int64 final = {-1}, seq(FLOAT[]) parts, optional(seq(FLOAT[])) maybe, seq(FLOAT[]) sure>
{
    y = LSTM <hidden_size = 4> (x, W, R)
    parts = SplitToSequence <axis = 0> (y, one)
    maybe = Optional (parts)
    sure = OptionalGetElement (maybe)
    last = SequenceAt (sure, final)
}
"""
"""A layer whose steps are kept in a sequence, and that in an optional value."""


def halved(model: ir.Model) -> onnx.ModelProto:
    """A model with every float of 16 bits, and nodes around the layer that name the type."""
    proto = ir.to_proto(model)
    graph = proto.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    constant = numpy_helper.from_array(np.asarray(0.5, np.float16))
    graph.node.insert(0, helper.make_node("Constant", [], ["half"], value=constant))
    graph.node.append(helper.make_node("Mul", ["y", "half"], ["less"]))
    graph.node.append(helper.make_node("Cast", ["less"], ["again"], to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Add", ["again", "half"], ["more"]))
    shape = [dim.dim_param or dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim]
    graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT16, shape))
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("external", [False, True])
def test_half_models_are_widened_behind_their_interface(
    direction: str, external: bool, tmp_path: Path
) -> None:
    weights = random_weights(np.random.default_rng(0), direction=direction)
    weights = replace(weights, w=weights.w.astype(np.float16).astype(np.float32))
    exact = rnn_model(weights, states=True)
    proto, path = halved(exact), tmp_path / "half.onnx"
    onnx.save(proto, path, save_as_external_data=external, location="half.data", size_threshold=0)
    model = load_model(path)
    (layer,) = find_rnns(model)
    assert layer.supported and layer.weights.w.dtype == np.float32
    np.testing.assert_array_equal(layer.weights.w, weights.w)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    for kind in ("input", "output"):
        assert list(getattr(after.graph, kind)) == list(getattr(proto.graph, kind))
    feeds = example_inputs(model, 0, {"sequence": 5, "batch": 2})
    assert {array.dtype for array in feeds.values()} == {np.dtype(np.float16)}
    got = run_model(model, feeds)
    expected = run_model(exact, {name: array.astype(np.float32) for name, array in feeds.items()})
    for name, array in expected.items():
        assert got[name].dtype == np.float16
        np.testing.assert_allclose(got[name], array, atol=5e-3)
    np.testing.assert_allclose(got["more"], expected["y"] * 0.5 + 0.5, atol=5e-3)
    save_model(model, tmp_path / "again.onnx")
    again = run_model(load_model(tmp_path / "again.onnx"), feeds)
    np.testing.assert_array_equal(again["more"], got["more"])


def wrapped(kind: str, dtype: type[np.floating]) -> onnx.ModelProto:
    """Returns the model of a type."""
    proto = onnx.parser.parse_model(WRAPPED.replace("FLOAT", kind))
    rng = np.random.default_rng(0)
    for name, columns in (("W", 3), ("R", 4)):
        array = rng.standard_normal((1, 16, columns)).astype(np.float16)
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(dtype), name))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_sequences_and_optional_values_stay_what_they_are(tmp_path: Path) -> None:
    onnx.save(wrapped("float16", np.float16), tmp_path / "half.onnx")
    twin = wrapped("float", np.float32)
    model = load_model(tmp_path / "half.onnx")
    widened = ir.to_proto(model)
    onnx.checker.check_model(widened, full_check=True)
    types = [{info.name: info.type for info in each.graph.value_info} for each in (widened, twin)]
    for name in ("parts", "maybe", "sure"):
        assert types[0][name] == types[1][name]
    feeds = {"x": np.random.default_rng(1).standard_normal((5, 2, 3)).astype(np.float16)}
    got = run_model(model, feeds)
    expected = run_model(ir.from_proto(twin), {"x": feeds["x"].astype(np.float32)})
    for name, array in expected.items():
        assert got[name].dtype == np.float16
        np.testing.assert_array_equal(got[name], array.astype(np.float16))
