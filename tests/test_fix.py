"""A model for one value or shape of an input computes what the original does, and its layers can change."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lstmopt.errors import LstmoptError
from lstmopt.passes.fix import fix_inputs
from lstmopt.passes.resize import resize
from lstmopt.rnn.constants import deciding_inputs
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.groups import unit_groups
from lstmopt.rnn.reader import require_rnns
from tests.real_models import silero_vad
from tests.test_cli_errors import call
from tests.test_rnn_branches import switched
from tests.written_out import Draft


def outputs(model: ir.Model, x: np.ndarray, **more: np.ndarray) -> np.ndarray:
    return run_model(model, {"x": x, **more})["y"]


@pytest.mark.parametrize("flag", [True, False])
def test_the_branch_of_a_value_is_taken(flag: bool, tmp_path: Path) -> None:
    model = switched("input")
    fixed = fix_inputs(model, {"flag": float(flag)}, {}, "switched")
    save_model(fixed, tmp_path / "fixed.onnx")
    fixed = load_model(tmp_path / "fixed.onnx")
    assert [value.name for value in fixed.graph.inputs] == ["x"]
    assert not any(node.op_type == "If" for node in fixed.graph.all_nodes())
    assert len(require_rnns(fixed, "fixed")) == 2
    assert any(value.name == "flag" for value in model.graph.inputs)  # the original is as it was
    rng = np.random.default_rng(0)
    for steps, batch in ((1, 1), (9, 3)):
        x = rng.standard_normal((steps, batch, 3)).astype(np.float32)
        expected = outputs(model, x, flag=np.array(flag))
        other = outputs(model, x, flag=np.array(not flag))
        np.testing.assert_allclose(outputs(fixed, x), expected, rtol=0, atol=1e-6)
        assert np.abs(other - expected).max() > 1e-2


@pytest.mark.parametrize("batch", [1, 2])
def test_the_branch_of_a_shape_is_taken(batch: int) -> None:
    model = switched("single")
    fixed = fix_inputs(model, {}, {"x": (5, batch, 3)}, "switched")
    assert not any(node.op_type == "If" for node in fixed.graph.all_nodes())
    x = np.random.default_rng(1).standard_normal((5, batch, 3)).astype(np.float32)
    np.testing.assert_allclose(outputs(fixed, x), outputs(model, x), rtol=0, atol=1e-6)


def data_shaped() -> ir.Model:
    """The number of an input's non-zeros decides: a shape, and yet not the same in every call."""
    g = Draft()
    number = g("Gather", g("Shape", g("NonZero", "x")), g.const(1, np.int64))
    few = g("Less", number, g.const(4, np.int64))
    branches = []
    for name, factor in (("then", 2.0), ("else", 3.0)):
        inner = Draft(f"{name}_")
        inner("Mul", "x", inner.const(np.float32(factor)), out=f"{name}_y")
        info = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [8])
        branches.append(helper.make_graph(inner.nodes, name, [], [info], inner.tensors))
    g.nodes.append(
        helper.make_node("If", [few], ["y"], name="if", then_branch=branches[0], else_branch=branches[1])
    )
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8])
    unused = helper.make_tensor_value_info("mode", TensorProto.INT64, [])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8])
    graph = helper.make_graph(g.nodes, "data_shaped", [value, unused], [out], g.tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def test_a_shape_that_values_decide_decides_nothing() -> None:
    model = data_shaped()
    condition = next(node for node in model.graph if node.op_type == "If").inputs[0]
    assert condition is not None and deciding_inputs(condition) == {"x"}
    fixed = fix_inputs(model, {"mode": 1}, {"x": (8,)}, "data_shaped")
    assert any(node.op_type == "If" for node in fixed.graph)
    for x in (np.eye(8, dtype=np.float32)[0], np.ones(8, np.float32)):
        np.testing.assert_array_equal(outputs(fixed, x), outputs(model, x, mode=np.array(1)))


@pytest.mark.parametrize(
    ("values", "shapes", "said"),
    [
        ({"rate": 1}, {}, "switched: has no input 'rate'; it has x, flag"),
        ({"flag": 3}, {}, "switched: input flag of type bool cannot be 3"),
        ({"x": 0}, {}, "switched: input x has no fixed size"),
        ({"flag": 1, "x": 0}, {"x": (1, 1, 3)}, "switched: would have no input left"),
        ({"flag": 1}, {"x": (1, 1, 4)}, "shape of x: [1, 1, 4] does not fit"),
        ({"flag": 1}, {"z": (1,)}, "shape of z: the model has no such input"),
    ],
)
def test_what_cannot_be_fixed_is_said(
    values: dict[str, float], shapes: dict[str, tuple[int, ...]], said: str
) -> None:
    with pytest.raises(LstmoptError, match=re.escape(said)):
        fix_inputs(switched("input"), values, shapes, "switched")


def test_the_shell_leads_there(tmp_path: Path) -> None:
    save_model(switched("input"), tmp_path / "model.onnx")
    plan = call("optimize", tmp_path / "model.onnx", "--dry-run", "--json")
    assert plan.returncode == 0 and "lstmopt fix MODEL flag=VALUE -o FIXED.onnx" in plan.stdout
    done = call("fix", tmp_path / "model.onnx", "flag=true", "-o", tmp_path / "fixed.onnx")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "fixed.onnx")
    assert call("optimize", tmp_path / "fixed.onnx", "--dry-run").returncode == 0
    again = call("fix", tmp_path / "model.onnx", "flag=true", "-o", tmp_path / "fixed.onnx")
    assert again.returncode == 2 and "exists" in again.stderr
    for wrong in (["flag"], ["flag=x"], []):
        failed = call("fix", tmp_path / "model.onnx", *wrong, "-o", tmp_path / "other.onnx")
        assert failed.returncode == 2 and not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(("rate", "samples"), [(16000, 576), (8000, 288)])
def test_silero_for_one_rate_streams_the_same_and_is_resized(rate: int, samples: int) -> None:
    model = load_model(silero_vad())
    fixed = fix_inputs(model, {"sr": rate}, {"input": (1, samples), "state": (2, 1, 128)}, "silero")
    (group,) = unit_groups(fixed)
    assert group.pinned is None and group.interface == ("state", "stateN")
    larger = resize(fixed, {group.layers[0]: 136}).model
    rng = np.random.default_rng(rate)
    state, grown = np.zeros((2, 1, 128), np.float32), np.zeros((2, 1, 136), np.float32)
    for _ in range(20):
        sound = (0.3 * rng.standard_normal((1, samples))).astype(np.float32)
        expected = run_model(model, {"input": sound, "state": state, "sr": np.array(rate)})
        got = run_model(fixed, {"input": sound, "state": state})
        of_larger = run_model(larger, {"input": sound, "state": grown})
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5 * np.abs(array).max())
        np.testing.assert_allclose(of_larger["output"], expected["output"], rtol=0, atol=1e-5)
        state, grown = expected["stateN"], of_larger["stateN"]


def test_a_cell_written_out_in_a_branch_is_recognised() -> None:
    from lstmopt.passes.simplify import simplify

    fixed = fix_inputs(load_model(silero_vad("silero_vad_op18_ifless.onnx")), {"sr": 16000}, {}, "ifless")
    simple, notes = simplify(fixed)
    assert "recognised: LSTM of 128 units written out over one step" in notes
    (layer,) = require_rnns(simple, "ifless")
    assert layer.weights is not None and layer.weights.hidden_size == 128


def test_an_axis_of_the_same_name_is_fixed_in_every_input() -> None:
    def info(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3])

    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "h"], ["y"])], "shared", [info("x"), info("h")], [info("y")]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    fixed = fix_inputs(ir.from_proto(proto), {}, {"x": (4, 3)}, "shared")
    assert [tuple(value.shape or ()) for value in fixed.graph.inputs] == [(4, 3), (4, 3)]
