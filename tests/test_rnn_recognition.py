"""Written-out cells become nodes where they are cells, and nothing else does; outputs stay what they were."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmopt.rnn.cells import GRU, LSTM
from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.recognition.recognise import Recognised, recognise
from tests.written_out import (
    HIDDEN,
    INPUT,
    ORDERS,
    Draft,
    Weights,
    gru_step,
    looped,
    lstm_step,
    scanned,
    unrolled,
)

CALLS = ({"batch": 3, "steps": 4, "time": 4}, {"batch": 1, "steps": 7, "time": 6})


def nodes(model: ir.Model, *kinds: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in kinds]


def same_outputs(before: ir.Model, after: ir.Model) -> None:
    """Compares the outputs in calls of several shapes, in ONNX Runtime."""
    assert [v.name for v in before.graph.inputs] == [v.name for v in after.graph.inputs]
    assert [v.name for v in before.graph.outputs] == [v.name for v in after.graph.outputs]
    onnx.checker.check_model(ir.to_proto(after))
    for seed, sizes in enumerate(CALLS):
        feeds = example_inputs(before, 10 + seed, sizes)
        expected, got = run_model(before, feeds), run_model(after, feeds)
        for name, array in expected.items():
            assert got[name].shape == array.shape and got[name].dtype == array.dtype
            np.testing.assert_allclose(got[name], array, rtol=0, atol=2e-6)


def became(model: ir.Model, kind: str, count: int = 1) -> Recognised:
    """Checks that a model has become so many layers, and that nothing is left of what they were."""
    found = recognise(model)
    assert len(nodes(found.model, kind)) == count and not found.faults
    assert not nodes(found.model, "Sigmoid", "Tanh", "Scan", "Loop")
    same_outputs(model, found.model)
    return found


def left(model: ir.Model) -> Recognised:
    """Checks that a model has no layer found in it, and a remark why."""
    found = recognise(model)
    assert not nodes(found.model, "LSTM", "GRU") and not found.layers and found.faults
    same_outputs(model, found.model)
    return found


@pytest.mark.parametrize("style", ORDERS)
def test_unrolled_lstms_of_every_order(style: str) -> None:
    weights = Weights(4)
    found = became(unrolled(lstm_step(weights, style), 3, backward=style == "keras"), "LSTM")
    (node,) = nodes(found.model, "LSTM")
    assert node.attributes["direction"].value == ("reverse" if style == "keras" else "forward")
    packed = {name: weights.r[k * HIDDEN : (k + 1) * HIDDEN] for k, name in enumerate(ORDERS[style])}
    expected = np.concatenate([packed[name] for name in LSTM.gates]).astype(np.float32)
    np.testing.assert_array_equal(node.inputs[2].const_value.numpy()[0], expected)


@pytest.mark.parametrize(
    "form", ["after", "before", "difference", "less", "swapped", "less-swapped", "chunk"]
)
def test_unrolled_grus_of_every_form(form: str) -> None:
    weights = Weights(3)
    found = became(unrolled(gru_step(weights, form), 3, backward=form == "before"), "GRU")
    (node,) = nodes(found.model, "GRU")
    after = "linear_before_reset" in node.attributes
    assert after == (form in ("after", "difference", "less", "chunk"))
    packed = {name: weights.r[k * HIDDEN : (k + 1) * HIDDEN] for k, name in enumerate("rzh")}
    packed["z"] = -packed["z"] if "swapped" in form else packed["z"]
    expected = np.concatenate([packed[name] for name in GRU.gates]).astype(np.float32)
    np.testing.assert_array_equal(node.inputs[2].const_value.numpy()[0], expected)


@pytest.mark.parametrize("form", ["after", "before", "difference", "swapped", "lstm"])
def test_steps_from_constant_zeros_are_all_in_the_layer(form: str) -> None:
    step = lstm_step(Weights(4), "torch") if form == "lstm" else gru_step(Weights(3), form)
    found = became(unrolled(step, 4, start=np.zeros((1, HIDDEN))), "LSTM" if form == "lstm" else "GRU")
    assert any("written out over 4 steps" in note for note in found.notes)


@pytest.mark.parametrize("form", ["after", "before", "lstm"])
def test_a_first_step_from_other_constants_stays_before_the_layer(form: str) -> None:
    step = lstm_step(Weights(4), "torch") if form == "lstm" else gru_step(Weights(3), form)
    kind = "LSTM" if form == "lstm" else "GRU"
    start = np.linspace(-1, 1, HIDDEN)[None]
    model = unrolled(step, 4, start=start)
    found = recognise(model)
    assert len(nodes(found.model, kind)) == 1 and len(nodes(found.model, "Sigmoid")) in (2, 3)
    assert any("written out over 3 steps" in note for note in found.notes)
    same_outputs(model, found.model)
    short = recognise(unrolled(step, 2, start=start))
    assert not nodes(short.model, kind)
    assert any("starts from constants that are not zero" in note for note in (*short.notes, *short.faults))


def test_a_single_step_and_old_opsets() -> None:
    found = became(unrolled(lstm_step(Weights(4, seed=1), "torch"), 1), "LSTM")
    (node,) = nodes(found.model, "LSTM")
    assert node.inputs[1].shape[2] == INPUT  # x is the input and not the state
    became(unrolled(lstm_step(Weights(4), "tensorflow"), 2, opset=9), "LSTM")
    became(unrolled(gru_step(Weights(3), "after"), 2, opset=11), "GRU")


def test_layers_of_one_step_on_each_other() -> None:
    """Streaming models: one step a call, the second layer reads what the first one gives."""
    g = Draft()
    first, second = Weights(3, seed=1), Weights(3, inputs=HIDDEN, seed=2)
    h, _ = gru_step(first, "chunk")(g, "x", "h_0", "")
    k, _ = gru_step(second, "before")(g, h, "k_0", "")
    g("Identity", h, out="h_n")
    g("Tanh", k, out="y")
    g("Identity", k, out="k_n")
    state = ["batch", HIDDEN]
    model = g.model(
        {"x": ["batch", INPUT], "h_0": state, "k_0": state}, {"y": state, "h_n": state, "k_n": state}
    )
    found = recognise(model)
    assert len(nodes(found.model, "GRU")) == 2 and not nodes(found.model, "Sigmoid")
    same_outputs(model, found.model)


@pytest.mark.parametrize("backward", [False, True])
def test_bodies_of_scans_and_loops(backward: bool) -> None:
    became(scanned(lstm_step(Weights(4), "torch"), 2, backward=backward), "LSTM")
    became(scanned(gru_step(Weights(3), "before"), 1, backward=backward), "GRU")
    became(looped(lstm_step(Weights(4), "tensorflow"), 2, backward=backward, counter=True), "LSTM")
    became(looped(gru_step(Weights(3), "swapped"), 1, backward=backward), "GRU")


def relu(g: Draft, h: str) -> str:
    return g("Relu", h)


def hard(step):  # noqa: ANN001, ANN201
    """The same step with a hard sigmoid in the place of each sigmoid."""

    def write(g: Draft, x: str, h: str, c: str) -> tuple[str, str]:
        before = len(g.nodes)
        made = step(g, x, h, c)
        for node in g.nodes[before:]:
            node.op_type = "HardSigmoid" if node.op_type == "Sigmoid" else node.op_type
        return made

    return write


def test_near_misses_are_left_with_a_remark() -> None:
    torch = lstm_step(Weights(4), "torch")
    assert "changed before the next one" in left(unrolled(torch, 3, between=relu)).faults[0]
    assert "do not follow it directly" in left(unrolled(torch, 3, carry_c=False)).faults[0]
    several = [lstm_step(Weights(4, seed=k), "torch") for k in range(3)]
    assert "different weights" in left(unrolled(several, 3)).faults[0]
    several = [gru_step(Weights(3, seed=k), "after") for k in range(2)]
    assert "different weights" in left(unrolled(several, 2)).faults[0]
    for style, attribute in (("torch", {"alpha": 0.5}), ("torch", {"beta": 0.0})):
        model = unrolled(lstm_step(Weights(4), style), 4)
        last = nodes(model, "Gemm")[-1]
        for name, value in attribute.items():
            last.attributes[name] = ir.AttrFloat32(name, value)
        assert "different weights" in left(model).faults[0]  # of steps that look alike the last alone differs
    short = looped(lstm_step(Weights(4), "tensorflow"), 2, skip_last=True)
    found = recognise(short)
    assert not found.layers and "from one end to the other" in found.faults[0]


@pytest.mark.parametrize(
    ("capped", "said"),
    [
        ("count", "a Min is in its count"),
        ("index", "a Min is in its count"),
        ("slice", "other sizes than that of the sequence"),
        ("condition", "the whole of a longer input"),
    ],
)
def test_loops_that_stop_short_of_long_inputs_are_left(capped: str, said: str) -> None:
    model = looped(lstm_step(Weights(4), "tensorflow"), 2, capped=capped)
    found = recognise(model)
    assert not found.layers and any(said in fault for fault in found.faults)
    feeds = example_inputs(model, 0, {"batch": 2, "time": 210})
    np.testing.assert_array_equal(run_model(found.model, feeds)["y"], run_model(model, feeds)["y"])


@pytest.mark.parametrize(
    ("capped", "batch", "steps", "fixed"),
    [
        ("band", 2, 120, 0),
        *((name, 9, 5, n) for name in ("batch", "batch index", "batch sum", "batch start") for n in (0, 5)),
    ],
)
def test_loops_that_count_with_other_sizes_are_left(capped: str, batch: int, steps: int, fixed: int) -> None:
    """All of a short call's steps are read, and of one with a large batch, or of some length, not all."""
    model = looped(lstm_step(Weights(4), "tensorflow"), 2, capped=capped, fixed=fixed)
    found = left(model)
    feeds = example_inputs(model, 0, {"batch": batch, "time": steps})
    np.testing.assert_array_equal(run_model(found.model, feeds)["y"], run_model(model, feeds)["y"])


def test_a_loop_of_a_fixed_length_is_a_layer() -> None:
    became(looped(lstm_step(Weights(4), "tensorflow"), 2, fixed=5), "LSTM")


@pytest.mark.parametrize("time_first", [True, False])
def test_a_loop_behind_a_loop_and_what_it_hands_on(time_first: bool) -> None:
    first = ir.to_proto(looped(gru_step(Weights(3), "after"), 1, time_first=time_first))
    second = looped(gru_step(Weights(3, inputs=HIDDEN), "before"), 1, time_first=time_first, inputs=HIDDEN)
    (loop,) = (node for node in first.graph.node if node.op_type == "Loop")
    body, info = loop.attribute[0].g, helper.make_tensor_value_info
    # Carried as it is, and an output of the graph.
    body.input.append(info("b_kept", TensorProto.FLOAT, [2]))
    body.node.append(helper.make_node("Identity", ["b_kept"], ["b_kept_out"]))
    body.output.insert(2, info("b_kept_out", TensorProto.FLOAT, [2]))
    loop.input.append("kept_0")
    loop.output.insert(1, "kept_n")
    first.graph.input.append(info("kept_0", TensorProto.FLOAT, [2]))
    first.graph.output.append(info("kept_n", TensorProto.FLOAT, [2]))
    later = onnx.compose.add_prefix(ir.to_proto(second), "second_")
    became(ir.from_proto(onnx.compose.merge_models(first, later, io_map=[("y", "second_x")])), "GRU", 2)


def test_cells_in_float64_are_left_with_a_remark() -> None:
    proto = ir.to_proto(unrolled(lstm_step(Weights(4), "torch"), 2))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del proto.graph.value_info[:]
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            wide = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    found = recognise(ir.from_proto(proto))
    assert not found.layers and any("computes in double" in fault for fault in found.faults)


def test_other_functions_are_no_cells() -> None:
    model = unrolled(hard(lstm_step(Weights(4), "torch")), 2)
    found = recognise(model)
    assert found.model is model and not found.layers

    def squared(g: Draft, x: str, h: str, c: str) -> tuple[str, str]:
        """A gate that reads the square of h is no affine function of it."""
        return lstm_step(Weights(4), "torch")(g, x, g("Mul", h, h), c)

    left(unrolled(squared, 3))

    def leaky(g: Draft, x: str, h: str, c: str) -> tuple[str, str]:
        """The carried state decays by itself as well."""
        new_h, new_c = lstm_step(Weights(4), "torch")(g, x, h, c)
        return new_h, g("Mul", new_c, g.const(0.9))

    found = recognise(unrolled(leaky, 3))
    assert not found.layers
    same_outputs(unrolled(leaky, 3), found.model)


def test_inner_values_that_are_read_keep_the_cells() -> None:
    """A cell state between the steps is no output of an LSTM."""
    torch = lstm_step(Weights(4), "torch")

    def spied(g: Draft, x: str, h: str, c: str) -> tuple[str, str]:
        made = torch(g, x, h, c)
        if "spy" not in {node.output[0] for node in g.nodes}:
            g("Neg", made[1], out="spy")
        return made

    model = unrolled(spied, 3)
    proto = ir.to_proto(model)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("spy", 1, ["batch", HIDDEN]))
    model = ir.from_proto(proto)
    assert "inner values are read" in left(model).faults[0]


EXPORTED = [("LSTMCell", False, 2), ("GRUCell", True, 2)]


@pytest.mark.parametrize(("cell", "backward", "layers"), EXPORTED)
def test_loops_that_torch_unrolls(cell: str, backward: bool, layers: int) -> None:
    torch = pytest.importorskip("torch")

    class Stack(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = [INPUT] + [HIDDEN] * (layers - 1)
            self.cells = torch.nn.ModuleList([getattr(torch.nn, cell)(size, HIDDEN) for size in sizes])

        def forward(self, x):  # noqa: ANN001, ANN202
            for one in self.cells:
                state = x.new_zeros(x.size(0), HIDDEN)
                state, made = (state, state) if cell == "LSTMCell" else state, []
                for t in reversed(range(x.size(1))) if backward else range(x.size(1)):
                    state = one(x[:, t], state)
                    made.append(state[0] if cell == "LSTMCell" else state)
                x = torch.stack(made[::-1] if backward else made, 1)
            return x

    file = io.BytesIO()
    torch.manual_seed(0)
    torch.onnx.export(
        Stack().eval(), (torch.zeros(2, 4, INPUT),), file, dynamo=False, input_names=["x"],
        output_names=["y"], dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
    )  # fmt: skip
    became(ir.from_proto(onnx.load_from_string(file.getvalue())), cell.removesuffix("Cell"), layers)
