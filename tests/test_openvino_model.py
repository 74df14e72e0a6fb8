"""What OpenVINO's own LSTM and GRU misread without an error is computed rightly all the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from lstmopt.errors import LstmoptError
from lstmopt.passes import convert as convert_module
from lstmopt.passes.convert import convert, export_model
from lstmopt.rnn.cells import GRU, LSTM, CellSpec
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.files import load_model
from lstmopt.rnn.weights import RnnWeights
from lstmopt.runtimes import open_session, runtime
from lstmopt.runtimes.openvino_rewrites import FloatWeights
from lstmopt.targets import load_target
from tests.ops import ort_session, save_dense

HIDDEN, INPUT, BATCH, STEPS = 12, 9, 3, 7


def layer(cell: CellSpec, direction: str = "bidirectional", **options: Any) -> RnnWeights:
    rng, gates = np.random.default_rng(5), len(cell.gates)
    directions = 2 if direction == "bidirectional" else 1
    w, r, b = (
        (0.4 * rng.standard_normal((directions, *shape))).astype(np.float32)
        for shape in ((gates, HIDDEN, INPUT), (gates, HIDDEN, HIDDEN), (2, gates, HIDDEN))
    )
    return replace(RnnWeights(cell, direction, w, r, b), **options)


def peepholes(directions: int) -> np.ndarray:
    return np.random.default_rng(6).standard_normal((directions, 3, HIDDEN)).astype(np.float32)


FORMS = {
    "LSTM": layer(LSTM),
    "GRU": layer(GRU, reset_after=True),
    "LSTM peepholes": layer(LSTM, p=peepholes(2)),
    "LSTM peepholes, reverse": layer(LSTM, "reverse", p=peepholes(1)),
    "LSTM coupled": layer(LSTM, input_forget=True),
    "LSTM clip": layer(LSTM, clip=0.5),
    "GRU clip": layer(GRU, clip=0.5),
    "LSTM HardSigmoid": layer(LSTM, activations=("HardSigmoid", "Tanh", "Tanh") * 2),
    "LSTM mixed": layer(LSTM, activations=("Sigmoid", "Tanh", "Tanh", "Sigmoid", "Relu", "Tanh")),
    "GRU mixed": layer(GRU, activations=("Sigmoid", "Tanh", "Sigmoid", "Relu")),
    "GRU LeakyRelu": layer(GRU, activations=("Sigmoid", "LeakyRelu") * 2, activation_alpha=(0.1, 0.2)),
}


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_openvino_computes_what_onnxruntime_does(name: str, lengths: bool, tmp_path: Path) -> None:
    weights = FORMS[name]
    path = save_dense(tmp_path / "model.onnx", weights, lengths=lengths)
    rng = np.random.default_rng(7)
    session = open_session(runtime("openvino").build(path, "f32", tmp_path / "made"), 1)
    own = ort_session(path, ours=False)
    for steps, batch, ends in ((STEPS, BATCH, [7, 2, 4]), (2, 1, [1])):
        state = (weights.num_directions, batch, HIDDEN)
        given = {"x": rng.standard_normal((steps, batch, INPUT)), "h_0": rng.standard_normal(state)}
        if weights.cell is LSTM:
            given["c_0"] = rng.standard_normal(state)
        feeds = {key: array.astype(np.float32) for key, array in given.items()}
        if lengths:
            feeds["lengths"] = np.array(ends, np.int32)
        want = dict(zip((o.name for o in own.get_outputs()), own.run(None, feeds), strict=True))
        have = session.run(feeds)
        assert set(have) == set(want)
        for key, right in want.items():
            np.testing.assert_allclose(have[key], right, atol=2e-5, rtol=0, err_msg=key)


def test_weights_that_are_computed_are_refused_where_the_layer_would_be_misread(tmp_path: Path) -> None:
    path = save_dense(tmp_path / "model.onnx", layer(LSTM, "forward", p=peepholes(1)))
    model = ir.load(path)
    node = model.graph.node("rnn")
    scaled = ir.node("Mul", [node.inputs[2], model.graph.inputs[1]], num_outputs=1)  # R depends on h_0
    model.graph.insert_before(node, scaled)
    node.replace_input_with(2, scaled.outputs[0])
    ir.save(model, tmp_path / "computed.onnx")
    with pytest.raises(LstmoptError, match="computes something else"):
        runtime("openvino").build(tmp_path / "computed.onnx", "f32", tmp_path / "made")


def plain_rnn(path: Path, lengths: bool, activations: Sequence[str]) -> Path:
    """Writes a model of one bidirectional RNN node, which is none of ours to change."""
    rng = np.random.default_rng(8)
    constants = {
        name: (0.4 * rng.standard_normal((2, *shape))).astype(np.float32)
        for name, shape in (("W", (HIDDEN, INPUT)), ("R", (HIDDEN, HIDDEN)), ("B", (2 * HIDDEN,)))
    }
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["T", BATCH, INPUT])]
    if lengths:
        inputs.append(helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, [BATCH]))
    node = helper.make_node(
        "RNN",
        ["x", "W", "R", "B", *(["lengths"] if lengths else [])],
        ["y"],
        name="plain",
        hidden_size=HIDDEN,
        direction="bidirectional",
        activations=list(activations),
    )
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["T", 2, BATCH, HIDDEN])
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "plain", inputs, [output], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_plain_rnn_is_built_where_openvino_computes_it(tmp_path: Path) -> None:
    path = plain_rnn(tmp_path / "model.onnx", False, ("Relu", "Relu"))
    session = open_session(runtime("openvino").build(path, "f32", tmp_path / "made"), 1)
    feeds = {"x": np.random.default_rng(9).standard_normal((STEPS, BATCH, INPUT)).astype(np.float32)}
    right = ort_session(path, ours=False).run(None, feeds)[0]
    np.testing.assert_allclose(session.run(feeds)["y"], right, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("lengths", "activations"), [(True, ("Tanh", "Tanh")), (False, ("Tanh", "Relu"))])
def test_a_plain_rnn_is_refused_where_openvino_misreads_it(
    lengths: bool, activations: Sequence[str], tmp_path: Path
) -> None:
    path = plain_rnn(tmp_path / "model.onnx", lengths, activations)
    with pytest.raises(LstmoptError, match="something else for this RNN") as raised:
        export_model(
            path,
            runtime="openvino",
            precision="f32",
            target="xeon",
            output=tmp_path / "made",
            progress=lambda text, fraction: None,
        )
    assert raised.value.where == f"{path}, plain"


SHARING = {
    "concat": "y = Concat <axis = 3> (a, b)",
    "add": "y = Add (a, b)",
    "product and an output": "y = Mul (a, b)  z = Identity (a)",
    "squeezed": "sa = Squeeze (a, one)  sb = Squeeze (b, one)  y = Max (sa, sb)",
    "another reader": "t = Transpose <perm = [1, 0, 2]> (x)  y = Relu (t)  z = Identity (a)",
    "batch first": "sa = Squeeze (a, one)  t = Transpose <perm = [1, 0, 2]> (sa)  m = MatMul (t, m0) "
    "u = Transpose <perm = [1, 0, 2]> (x)  y = Concat <axis = 2> (m, u)",
    "states": "y = Add (ha, hb)  z = Identity (a)",
}
"""What is done with two layers that read one input, and with the input."""


def sharing(path: Path, rest: str, shape: str, opset: int) -> Path:
    """Writes a model of two layers that read its input, and of what is done with them."""
    if opset < 13:
        rest = rest.replace("Squeeze (a, one)", "Squeeze <axes = [1]> (a)").replace(
            "Squeeze (b, one)", "Squeeze <axes = [1]> (b)"
        )
    rank = 3 if any(op in rest for op in ("Squeeze", "Relu", "ha, hb")) else 4
    y, z = (
        f"float[{', '.join(f'{axis}{i}' for i in range(n))}] {axis}" for axis, n in (("y", rank), ("z", 4))
    )
    outputs = f"{y}, {z}" if "z =" in rest else y
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        shared (float[{shape}] x) => ({outputs}) {{
            a, ha = LSTM <hidden_size = 6> (x, w, r)
            b, hb = GRU <hidden_size = 6, direction = "reverse"> (x, v, s)
            {rest}
        }}"""
    )
    rng = np.random.default_rng(4)
    sizes = {"w": (1, 24, 4), "r": (1, 24, 6), "v": (1, 18, 4), "s": (1, 18, 6), "m0": (6, 4)}
    arrays = {key: rng.standard_normal(size).astype(np.float32) for key, size in sizes.items()}
    constants = {**arrays, "one": np.array([1])}
    model.graph.initializer.extend(numpy_helper.from_array(each, key) for key, each in constants.items())
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("opset", [10, 17])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", SHARING)
def test_layers_may_share_an_input(name: str, fixed: bool, opset: int, tmp_path: Path) -> None:
    path = sharing(tmp_path / "model.onnx", SHARING[name], "5, 3, 4" if fixed else "T, N, 4", opset)
    rng = np.random.default_rng(5)
    session = open_session(runtime("openvino").build(path, "f32", tmp_path / "made"), 1)
    for steps, batch in ((5, 3),) if fixed else ((5, 3), (4, 1), (1, 2)):
        feeds = {"x": rng.standard_normal((steps, batch, 4)).astype(np.float32)}
        right = ort_session(path, ours=False).run(None, feeds)
        got = session.run(feeds)
        for key, want in zip(("y", "z"), right, strict=False):
            np.testing.assert_allclose(got[key], want, atol=2e-6, rtol=0)


@pytest.mark.parametrize("shape", [(6,), (1,), (1, 1, 6)])
def test_slopes_are_those_of_the_last_axis(shape: tuple[int, ...], tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    bent (float[T, N, 6] x) => (float[T, N, 6] y) { y = PRelu (x, slope) }"""
    model = onnx.parser.parse_model(text)
    slopes = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(slopes, "slope"))
    onnx.save(model, tmp_path / "model.onnx")
    session = open_session(runtime("openvino").build(tmp_path / "model.onnx", "f32", tmp_path / "made"), 1)
    for size in ((4, 6, 6), (5, 1, 6), (2, 3, 6)):
        x = np.random.default_rng(3).standard_normal(size).astype(np.float32)
        np.testing.assert_allclose(session.run({"x": x})["y"], np.where(x < 0, slopes * x, x), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "LSTM"])
def test_dequantised_weights_are_right_in_products_of_few_rows(
    op: str, axis: int | None, tmp_path: Path
) -> None:
    rng, size = np.random.default_rng(2), 32
    whole = rng.integers(-127, 127, (size, size)).astype(np.int8)
    scale = rng.uniform(0.001, 0.02, () if axis is None else size)
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["W"], axis=axis or 0)]
    if op == "LSTM":  # 8 units: 32 rows
        nodes += [
            helper.make_node("Unsqueeze", ["W", "zero"], ["W1"]),
            helper.make_node("Unsqueeze", ["x", "one"], ["x1"]),
            helper.make_node("LSTM", ["x1", "W1", "R"], ["y"], hidden_size=8),
        ]
    else:
        nodes.append(helper.make_node(op, ["x", "W"], ["y"], **({"transB": 1} if op == "Gemm" else {})))
    constants = {
        "q": whole, "s": np.float32(scale), "zero": np.array([0]), "one": np.array([1]),
        "R": 0.3 * rng.standard_normal((1, 32, 8)).astype(np.float32),
    }  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", onnx.TensorProto.FLOAT, ["n", size])],
        [info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    session = open_session(runtime("openvino").build(tmp_path / "model.onnx", "f32", tmp_path / "made"), 1)
    exact = Reference(ir.from_proto(model))
    for rows in (1, 2, 3, 8):
        x = {"x": rng.standard_normal((rows, size)).astype(np.float32)}
        np.testing.assert_allclose(session.run(x)["y"], exact.run(x)["y"], rtol=0, atol=1e-5)


def quantised_product(path: Path, *, turned: bool, external: bool = False) -> Path:
    """x and its weights, rounded, dequantised and multiplied twice: products of integers."""
    rng = np.random.default_rng(2)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["W"], axis=0 if turned else 1),
        *([helper.make_node("Transpose", ["W"], ["V"], perm=[1, 0])] if turned else []),
        helper.make_node("MatMul", ["xf", "V" if turned else "W"], ["y"]),
        helper.make_node("MatMul", ["x", "V" if turned else "W"], ["z"]),
    ]
    constants = {
        "q": rng.integers(-127, 127, (32, 32)).astype(np.int8),
        "s": rng.uniform(0.001, 0.02, 32).astype(np.float32),
        "xs": np.float32(0.02), "xz": np.uint8(128),
    }  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes[:-1] if not external else nodes, "g", [info("x", onnx.TensorProto.FLOAT, ["n", 32])],
        [info(name, onnx.TensorProto.FLOAT, None) for name in ("y", *(["z"] if external else []))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, size_threshold=0, location="weights.bin")
    return path


@pytest.mark.parametrize("turned", [False, True])
def test_products_of_integers_stay_what_they_are(turned: bool, tmp_path: Path) -> None:
    model = load_model(quantised_product(tmp_path / "model.onnx", turned=turned))
    assert not FloatWeights()(model).modified


def test_weights_in_another_file_are_dequantised_too(tmp_path: Path) -> None:
    """Both products read one constant, one of them with floats: it becomes floats, once."""
    path = quantised_product(tmp_path / "model.onnx", turned=True, external=True)
    session = open_session(runtime("openvino").build(path, "f32", tmp_path / "made"), 1)
    model = load_model(path)
    x = {"x": np.random.default_rng(3).uniform(-2, 2, (2, 32)).astype(np.float32)}
    exact = Reference(model).run(x)
    for name, array in session.run(x).items():
        np.testing.assert_allclose(array, exact[name], rtol=0, atol=1e-4)
    before = len(model.graph.initializers)
    assert FloatWeights()(model).modified and len(model.graph.initializers) <= before


def test_export_refuses_a_runtime_that_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The net under all that a runtime may misread: an error in f32 that is no rounding."""
    monkeypatch.setattr("lstmopt.runtimes.openvino_model.is_misread", lambda each: False)
    path = save_dense(tmp_path / "model.onnx", layer(LSTM, p=3 * peepholes(2)))
    with pytest.raises(LstmoptError, match="computes something else for this model"):
        convert(
            load_model(path), path, "openvino", "f32", load_target("local"), tmp_path / "out", lambda *_: None
        )
    assert convert_module.MOST_F32 < 0.02


def test_export_looks_at_other_batches_than_the_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that share an input are right for a batch of 1, and wrong for all others."""
    monkeypatch.setattr("lstmopt.runtimes.openvino_model.shares_input", lambda node: False)
    path = sharing(tmp_path / "model.onnx", SHARING["concat"], "T, N, 4", 17)
    with pytest.raises(LstmoptError, match=r"computes something else .*x \[3, 2, 4\]"):
        convert(
            load_model(path), path, "openvino", "f32", load_target("local"), tmp_path / "out", lambda *_: None
        )


def test_outputs_of_another_shape_are_wrong() -> None:
    with pytest.raises(LstmoptError, match=r"\[1, 4\] where it should be \[35, 4\]"):
        convert_module.relative_error({"y": np.ones((1, 4))}, {"y": np.ones((35, 4))}, ["y"])
