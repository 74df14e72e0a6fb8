"""Models that ONNX Runtime has quantised are read as floats that compute nearly the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lstmopt.passes.candidates import timing_calls
from lstmopt.report.manifest import Manifest
from lstmopt.rnn.examples import axis_roles, example_inputs
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.inspection import inspect_model
from lstmopt.rnn.proof import random_calls
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.recognition.recognise import recognise
from lstmopt.rnn.states import state_pairs
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import open_session, runtime
from lstmopt.targets import load_target
from tests.ops import save_dense
from tests.test_cli_errors import call
from tests.test_rnn_reader import random_weights
from tests.written_out import HIDDEN, Weights, looped, lstm_step, unrolled


def quantised(model: ir.Model, folder: Path, per_channel: bool) -> ir.Model:
    """A model after ONNX Runtime's dynamic quantisation."""
    from onnxruntime.quantization import quantize_dynamic

    save_model(model, folder / "float.onnx")
    quantize_dynamic(
        folder / "float.onnx", folder / "int8.onnx", per_channel=per_channel, reduce_range=True,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )  # fmt: skip
    return load_model(folder / "int8.onnx")


def with_product(direction: str) -> ir.Model:
    """A layer, and a product with its output."""
    weights = replace(random_weights(np.random.default_rng(0), 8, 5, direction), p=None)
    proto = ir.to_proto(rnn_model(weights, states=True))
    rng = np.random.default_rng(1)
    table = helper.make_tensor("table", TensorProto.FLOAT, [8, 6], rng.standard_normal(48))
    proto.graph.initializer.append(table)
    proto.graph.node.append(helper.make_node("MatMul", ["y", "table"], ["scores"], name="scores"))
    shape = ["sequence", weights.num_directions, "batch", 6]
    proto.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape))
    return ir.from_proto(proto)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_int8_layers_become_floats(direction: str, per_channel: bool, tmp_path: Path) -> None:
    exact = with_product(direction)
    model = quantised(exact, tmp_path, per_channel)
    kinds = {node.op_type for node in model.graph}
    assert {"DynamicQuantizeLSTM", "MatMulInteger"} <= kinds and not find_rnns(model)
    found = recognise(model)
    assert {node.op_type for node in found.model.graph} == {"LSTM", "MatMul"}
    assert found.layers == (
        "1 int8 LSTM and 1 int8 product, optimised as floats; the model to beat is the int8 one as it was "
        "given",
    )  # fmt: skip
    (layer,), (before,) = find_rnns(found.model), find_rnns(exact)
    # Six bits and a sign: nothing may be further from what was quantised.
    for mine, theirs in zip(layer.weights.matrices, before.weights.matrices, strict=True):
        assert np.abs(mine - theirs).max() <= np.abs(theirs).max() / 63
    feeds = example_inputs(model, 3, {"sequence": 6, "batch": 3})
    expected, got, rounded = (run_model(each, feeds) for each in (exact, found.model, model))
    assert list(got) == list(rounded)
    for name, array in expected.items():
        assert np.abs(got[name] - array).max() < 0.1 * np.abs(array).max()
        assert np.abs(got[name] - rounded[name]).max() < 0.1 * np.abs(array).max()
    notes = inspect_model(model).notes
    assert any("the model to beat is the int8 one" in note for note in notes)


def test_int8_cells_are_recognised_too(tmp_path: Path) -> None:
    model = quantised(unrolled(lstm_step(Weights(4), "paddle"), 3), tmp_path, per_channel=False)
    assert "MatMulInteger" in {node.op_type for node in model.graph}
    found = recognise(model)
    (layer,) = find_rnns(found.model)
    assert layer.weights.hidden_size == HIDDEN and len(found.layers) == 2


def test_products_of_computed_weights_are_left(tmp_path: Path) -> None:
    """Integers that are no rounded floats stay integers."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])], "whole",
        [info("a", TensorProto.UINT8, [2, 3]), info("b", TensorProto.UINT8, [3, 2])],
        [info("y", TensorProto.INT32, [2, 2])],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert recognise(model).model is model


def unnamed_axes(model: ir.Model) -> ir.Model:
    """Gives the axes names that do not tell which is which."""
    names = {"sequence": "s", "batch": "b"}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape([size if isinstance(size, int) else names[str(size)] for size in value.shape])
    return model


def test_an_int8_layer_tells_the_axes_as_its_floats_do(tmp_path: Path) -> None:
    """Or it would be timed in calls of one step, and what was made of it in calls of 35."""
    exact = unnamed_axes(with_product("forward"))
    model = quantised(exact, tmp_path, per_channel=False)
    assert axis_roles(model) == axis_roles(exact) == {"s": "sequence", "b": "batch"}
    assert state_pairs(model) == state_pairs(exact) and state_pairs(model)
    for mine, theirs in zip(random_calls(model), random_calls(exact), strict=True):
        assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    (call,), (same,) = (timing_calls(each, load_target("local"), 0) for each in (model, exact))
    assert call[1]["x"].shape == same[1]["x"].shape == (35, 1, 5)


def test_a_written_out_loop_tells_the_axes_as_its_layer_does() -> None:
    model = looped(lstm_step(Weights(4), "tensorflow"), 2, time_first=True)
    for value in model.graph.inputs:
        value.shape = ir.Shape([{"batch": "b", "time": "s"}.get(str(size), size) for size in value.shape])
    ((_, feeds),) = timing_calls(model, load_target("local"), 0)
    assert feeds["x"].shape[:2] == (35, 1)


@pytest.mark.parametrize("form", ["coupled", "lengths", "peepholes"])
def test_openvino_runs_int8_layers_as_floats(form: str, tmp_path: Path) -> None:
    """What it makes of such a node itself leaves out coupled gates and lengths, and refuses peepholes."""
    weights = random_weights(np.random.default_rng(0), 8, 5, "bidirectional")
    weights = replace(weights, p=weights.p if form == "peepholes" else None, input_forget=form == "coupled")
    exact = save_dense(tmp_path / "exact.onnx", weights, lengths=form == "lengths")
    model = quantised(load_model(exact), tmp_path, per_channel=False)
    save_model(model, tmp_path / "model.onnx")
    done = call(
        "export", tmp_path / "model.onnx", "--runtime", "openvino", "--format", "f32", "-o", tmp_path / "out"
    )
    assert done.returncode == 0 and "as the floats" in done.stdout, done.stderr
    (entry,) = Manifest.load(tmp_path / "out" / "manifest.json").deployments(tmp_path / "out")
    built = runtime("openvino").build(tmp_path / "model.onnx", "f32", tmp_path / "built")
    for steps, batch in ((1, 1), (6, 1), (4, 3)):
        feeds = example_inputs(model, 3, {"sequence": steps, "batch": batch})
        if form == "lengths":
            feeds["lengths"] = np.arange(1, batch + 1, dtype=np.int32)
        expected = run_model(recognise(model).model, feeds)
        for deployment in (entry, built):
            for name, array in open_session(deployment, 1).run(feeds).items():
                np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5)
