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

torch = pytest.importorskip("torch")

from lstmopt.bridge.frozen import cut_loss  # noqa: E402
from lstmopt.bridge.module import OnnxModule, write_back  # noqa: E402

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


@pytest.mark.parametrize("labels", [False, True])
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
