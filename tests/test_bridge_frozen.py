"""Operators outside the bridge: ONNX Runtime runs them, the rest is trained against captured activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lstmopt
from lstmopt.errors import LstmoptError
from lstmopt.passes import GrowPrune, Simplify
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import save_model
from lstmopt.rnn.inspection import inspect_model
from lstmopt.rnn.trainable import TRAINABLE

torch = pytest.importorskip("torch")

from lstmopt.bridge.frozen import cut_loss  # noqa: E402
from lstmopt.bridge.module import OnnxModule, write_back  # noqa: E402
from lstmopt.bridge.ops import CONTROL, OPS  # noqa: E402

HIDDEN = 16


def graph(nodes, constants, outputs=("y",)):
    info = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, ["sequence", "batch", 6])],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    made.output[0].CopyFrom(info(outputs[0], 1, ["sequence", "batch", 3]))
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(onnx.helper.make_model(made, opset_imports=imports, ir_version=8))


def between(behind="BiasGelu"):
    """Returns a model with a foreign operator before its LSTM, and perhaps one behind it."""
    node, rng = onnx.helper.make_node, np.random.default_rng(0)

    def random(*shape):
        return (rng.standard_normal(shape) / 2).astype(np.float32)

    constants = {
        "front": random(6, 8), "W": random(1, 4 * HIDDEN, 8), "R": random(1, 4 * HIDDEN, HIDDEN) / 2,
        "axis": np.array([1]), "bias": random(HIDDEN), "out": random(HIDDEN, 3),
    }  # fmt: skip
    nodes = [
        node("MatMul", ["x", "front"], ["seen"], name="front"),
        node("QuickGelu", ["seen"], ["active"], name="quick", domain="com.microsoft"),
        node("LSTM", ["active", "W", "R"], ["steps"], name="lstm", hidden_size=HIDDEN),
        node("Squeeze", ["steps", "axis"], ["flat"], name="squeeze"),
    ]
    last = "flat"
    if behind == "BiasGelu":
        nodes.append(node("BiasGelu", ["flat", "bias"], ["late"], name="late", domain="com.microsoft"))
        last = "late"
    nodes.append(node("MatMul", [last, "out"], ["y"], name="out"))
    return graph(nodes, constants)


def tensors(feeds):
    return {name: torch.from_numpy(array) for name, array in feeds.items()}


def feeds(seed=0, steps=5, batch=2):
    return {"x": np.random.default_rng(seed).standard_normal((steps, batch, 6)).astype(np.float32)}


def test_what_is_listed_as_trainable_is_what_the_bridge_has():
    assert {*OPS, *CONTROL} == TRAINABLE


def test_inspect_lists_what_is_missing():
    seen = inspect_model(between())
    assert seen.frozen == {"com.microsoft.BiasGelu": 1, "com.microsoft.QuickGelu": 1}
    assert any("com.microsoft.BiasGelu (1), com.microsoft.QuickGelu (1)" in note for note in seen.notes)
    assert not inspect_model(ir.from_proto(onnx.parser.parse_model(SEQUENCE_LOOP))).frozen


@pytest.mark.parametrize("behind", ["BiasGelu", ""])
def test_outputs_are_onnx_runtimes(behind):
    model = between(behind)
    module = OnnxModule(model).eval()
    for seed, steps in ((0, 5), (1, 3)):
        given = feeds(seed, steps)
        ours = module(tensors(given))["y"].detach().numpy()
        np.testing.assert_allclose(ours, run_model(model, given)["y"], atol=1e-5)


def test_what_is_cut_and_what_keeps_its_weights():
    module = OnnxModule(between())
    assert module.cuts == ("flat",)
    assert module.notes == (
        "frozen: com.microsoft.QuickGelu, com.microsoft.BiasGelu cannot be trained through and run as in the "
        "original; what the recurrent layers hand to them is trained to be the original's; 1 weights before "
        "them keep their values",
    )
    trained = {name for name, weight in module.weights.items() if weight.requires_grad}
    assert trained == {"W", "R", "out"} and not module.weights["front"].requires_grad
    before = OnnxModule(between(""))
    assert before.cuts == () and "handed" not in before.notes[0]
    assert {name for name, weight in before.weights.items() if weight.requires_grad} == {"W", "R", "out"}


def test_the_gradient_at_a_cut_is_that_of_the_distance_from_the_teacher():
    model = between()
    student, teacher = OnnxModule(model), OnnxModule(model).eval().requires_grad_(False)
    teacher.capture(student.cuts)
    with torch.no_grad():
        student.weights["R"].mul_(0.5)
    given = tensors(feeds())
    teacher(given)
    student(given)
    loss = cut_loss(student.captured, teacher.captured)
    ours, theirs = student.captured["flat"][0], teacher.captured["flat"][0]
    assert float(loss.detach()) == pytest.approx(
        float((((ours - theirs) ** 2).mean() / theirs.var()).detach()), rel=1e-5
    )
    loss.backward()
    assert float(student.weights["R"].grad.abs().sum()) > 0
    assert student.weights["out"].grad is None and student.weights["front"].grad is None


def test_a_value_that_the_teacher_lacks_is_named():
    with pytest.raises(LstmoptError, match="value elsewhere: is not in the original"):
        OnnxModule(between()).capture(["elsewhere"])


def test_what_has_another_shape_in_the_original_is_refused():
    with pytest.raises(LstmoptError, match="value flat: has another shape"):
        cut_loss({"flat": [torch.zeros(2, 3)]}, {"flat": [torch.zeros(2, 4)]})


def test_constants_of_a_frozen_node_are_inside_it_whatever_their_type():
    """Strings cannot be tensors of torch: a tokeniser's table stays where it is."""
    node = onnx.helper.make_node
    model = between("")
    proto = ir.to_proto(model)
    strings = onnx.helper.make_tensor("words", onnx.TensorProto.STRING, [2], [b"a", b"b"])
    proto.graph.node.insert(0, node("Constant", [], ["table"], value=strings, name="table"))
    proto.graph.node.insert(
        1, node("LabelEncoder", ["table"], ["numbers"], domain="ai.onnx.ml", name="encode",
                keys_strings=["a", "b"], values_floats=[0.5, 0.25])
    )  # fmt: skip
    proto.graph.node.insert(2, node("ReduceSum", ["numbers"], ["factor"], keepdims=0, name="sum"))
    proto.graph.node.insert(3, node("Mul", ["x", "factor"], ["scaled"], name="scale"))
    proto.graph.node[4].input[0] = "scaled"
    proto.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 2))
    model = ir.from_proto(proto)
    module = OnnxModule(model).eval()
    given = feeds()
    np.testing.assert_allclose(
        module(tensors(given))["y"].detach().numpy(), run_model(model, given)["y"], atol=1e-5
    )


@pytest.mark.parametrize("labels", [pytest.param(False, marks=pytest.mark.deep), True])
def test_pruning_trains_what_can_be_trained(labels, tmp_path: Path):
    model = between()
    save_model(model, tmp_path / "model.onnx")
    rng = np.random.default_rng(1)
    data = {"x": rng.standard_normal((256, 7, 6)).astype(np.float32)}
    if labels:
        data["labels"] = np.stack(
            [run_model(model, {"x": each[:, None]})["y"][:, 0] for each in data["x"]]
        )  # the original is right
    recipe = GrowPrune(density=0.3, pattern="unstructured", amp=False, batch=16, dropout=0.0)

    def cut_error(state):
        given = feeds(9, 12, 4)
        student, teacher = (OnnxModule(each).eval() for each in (state.model, model))
        for module in (student, teacher):
            module.capture(["flat"])
            module(tensors(given))
        return float(cut_loss(student.captured, teacher.captured).detach())

    errors = {}
    for steps in (4, 250):
        pipeline = lstmopt.Pipeline(Simplify(), GrowPrune(**{**vars(recipe), "steps": steps}))
        state = pipeline.run(
            tmp_path / "model.onnx", data=data, output=tmp_path / f"out{steps}",
            task="regress" if labels else None,
        )  # fmt: skip
        errors[steps] = cut_error(state)
    weights = {name: value.const_value.numpy() for name, value in state.model.graph.initializers.items()}
    np.testing.assert_array_equal(weights["front"], OnnxModule(model).weights["front"].detach().numpy())
    assert np.count_nonzero(weights["R"]) + np.count_nonzero(weights["W"]) == pytest.approx(
        0.3 * (weights["R"].size + weights["W"].size), abs=2
    )
    assert errors[250] < 0.5 * errors[4]
    assert any(note.startswith("frozen: com.microsoft.QuickGelu") for note in state.notes)
    again = OnnxModule(state.model)
    np.testing.assert_array_equal(
        run_model(write_back(state.model, again), feeds())["y"], run_model(state.model, feeds())["y"]
    )


def test_no_gradient_at_all_is_one_clear_line(tmp_path: Path):
    """Only an index of the LSTM's outputs goes on."""
    node = onnx.helper.make_node
    proto = ir.to_proto(between(""))
    del proto.graph.node[-1]
    proto.graph.node.extend(
        [
            node("ArgMax", ["flat"], ["best"], axis=-1, keepdims=1, name="argmax"),
            node("Cast", ["best"], ["number"], to=1, name="cast"),
            node("Expand", ["number", "three"], ["y"], name="expand"),
        ]
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 1, 3]), "three"))
    save_model(ir.from_proto(proto), tmp_path / "model.onnx")
    with pytest.raises(LstmoptError, match="no gradient reaches the recurrent layers"):
        lstmopt.Pipeline(GrowPrune(density=0.5, steps=4, pattern="unstructured")).run(
            tmp_path / "model.onnx", output=tmp_path / "out",
            data={"x": np.random.default_rng(0).standard_normal((40, 5, 6)).astype(np.float32)},
        )  # fmt: skip


def test_a_branch_that_is_never_taken_is_not_looked_at():
    text = """
    <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[sequence, batch, 6] x) => (float[sequence, batch, n] y) {
       two = Constant <value_int = 2> ()
       three = Constant <value_int = 3> ()
       less = Less (two, three)
       y = If (less) <
          then_branch = a () => (float[sequence, batch, n] p) { p = Tanh (x) },
          else_branch = b () => (float[sequence, batch, n] q) { q = com.microsoft.QuickGelu (x) }>
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    module = OnnxModule(model).eval()
    assert not module.notes and not inspect_model(model).frozen
    np.testing.assert_allclose(module(tensors(feeds()))["y"], run_model(model, feeds())["y"], atol=1e-6)


def test_strings_go_from_one_frozen_node_to_the_next():
    text = """
    <ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 2]>
    g (float[sequence, batch, 6] x) => (float[sequence, batch, 6] y) {
       whole = Round (x)
       number = Cast <to = 7> (whole)
       word = Cast <to = 8> (number)
       known = ai.onnx.ml.LabelEncoder
          <keys_strings = ["0", "1", "-1"], values_floats = [0.5, 0.25, 2.0], default_float = -7.0> (word)
       y = Add (known, x)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    assert inspect_model(model).frozen == {"Cast": 1, "ai.onnx.ml.LabelEncoder": 1}
    module = OnnxModule(model).eval()
    np.testing.assert_allclose(module(tensors(feeds()))["y"], run_model(model, feeds())["y"], atol=1e-6)


SEQUENCE_LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
loop (float[sequence, batch, 6] x) => (float[batch, n, 6] y, int64 count) {
   many = Constant <value_int = 3> ()
   yes = Constant <value = bool {1}> ()
   zero = Constant <value_int = 0> ()
   two = Constant <value_int = 2> ()
   nothing = SequenceEmpty ()
   rows = SplitToSequence <axis = 0, keepdims = 0> (x)
   found = Loop (many, yes, nothing) <body = body (int64 i, bool go, seq(float[batch, 6]) before)
      => (bool on, seq(float[batch, 6]) after) {
      on = Identity (go)
      row = SequenceAt (rows, i)
      double = Add (row, row)
      after = SequenceInsert (before, double)
   }>
   first = SequenceAt (rows, zero)
   more = SequenceInsert (found, first, zero)
   less = SequenceErase (more, two)
   count = SequenceLength (less)
   pair = SequenceConstruct (first, first)
   both = ConcatFromSequence <axis = 1, new_axis = 1> (pair)
   all = ConcatFromSequence <axis = 1, new_axis = 1> (less)
   y = Concat <axis = 1> (all, both)
}
"""


def test_a_loop_that_appends_to_a_sequence():
    proto = onnx.parser.parse_model(SEQUENCE_LOOP)
    model = ir.from_proto(proto)
    module = OnnxModule(model)
    assert not module.notes
    given = tensors(feeds(steps=4))
    given["x"].requires_grad_(True)
    ours = module(given)
    theirs = run_model(model, feeds(steps=4))
    np.testing.assert_allclose(ours["y"].detach().numpy(), theirs["y"])
    assert int(ours["count"]) == int(theirs["count"]) == 3
    ours["y"].sum().backward()
    assert float(given["x"].grad.abs().sum()) > 0


QUANTISED_OUTPUT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[sequence, batch, 6] x) => (float[sequence, batch, 3] y) <
   float[6, 4] w, uint8[4, 3] q, float s = {0.05}, uint8 z = {120}, float t = {0.02}> {
   p = MatMul (x, w)
   h = Tanh (p)
   b, bs, bz = DynamicQuantizeLinear (h)
   product = MatMulInteger (b, q, bz, z)
   number = Cast <to = 1> (product)
   scale = Mul (bs, s)
   r = Mul (number, scale)
   k = QuantizeLinear (r, t, z)
   y = DequantizeLinear (k, t, z)
}
"""


def test_gradients_pass_what_is_quantised_as_if_it_were_not():
    proto = onnx.parser.parse_model(QUANTISED_OUTPUT)
    rng = np.random.default_rng(3)
    w, q = rng.standard_normal((6, 4)).astype(np.float32), rng.integers(0, 255, (4, 3)).astype(np.uint8)
    for name, array in (("w", w), ("q", q)):
        tensor = next((t for t in proto.graph.initializer if t.name == name), None)
        if tensor is not None:
            proto.graph.initializer.remove(tensor)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    module = OnnxModule(model)
    assert not module.notes
    given = feeds()
    theirs = run_model(model, given)["y"]
    for grad in (False, True):  # whole numbers, or floats that carry them
        with torch.set_grad_enabled(grad):
            ours = module(tensors(given))["y"]
        # A value on the edge of two steps may be rounded either way.
        assert np.abs(ours.detach().numpy() - theirs).max() <= 0.0201
        assert np.mean(ours.detach().numpy() != theirs) < 0.1
    inside = (np.abs(theirs) < 2.3).astype(np.float32)
    (ours * torch.from_numpy(inside)).sum().backward()
    weight = torch.tensor(w, requires_grad=True)
    plain = torch.tanh(torch.from_numpy(given["x"]) @ weight) @ ((torch.from_numpy(q).float() - 120) * 0.05)
    (plain * torch.from_numpy(inside)).sum().backward()
    np.testing.assert_allclose(module.weights["w"].grad, weight.grad, rtol=0.05, atol=0.02)
