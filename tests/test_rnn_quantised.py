"""Models that ONNX Runtime has quantised are read as floats that compute nearly the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.inspection import inspect_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.recognition.recognise import recognise
from lstmopt.rnn.writer import rnn_model
from tests.test_rnn_reader import random_weights
from tests.written_out import HIDDEN, Weights, lstm_step, unrolled


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
