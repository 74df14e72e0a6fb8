"""Every fault of a file is one line that says where, what and how to mend; saving is whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from lstmopt.errors import LstmoptError
from lstmopt.keys import file_digest
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.writer import rnn_model
from tests.test_rnn_reader import random_weights


@pytest.fixture
def model() -> ir.Model:
    return rnn_model(random_weights(np.random.default_rng(0), hidden=8))


@pytest.fixture
def path(model: ir.Model, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def fault(path: Path) -> str:
    with pytest.raises(LstmoptError) as caught:
        load_model(path)
    text = str(caught.value)
    assert "\n" not in text and text.count("; ") >= 1 and caught.value.exit_code == 2
    return text


def test_a_round_trip_keeps_the_graph(model: ir.Model, path: Path) -> None:
    assert ir.to_proto(load_model(path)).SerializeToString(deterministic=True) == ir.to_proto(
        model
    ).SerializeToString(deterministic=True)


def test_missing_folder_and_empty(tmp_path: Path) -> None:
    assert "no such file" in fault(tmp_path / "none.onnx")
    assert "is a folder" in fault(tmp_path)
    (tmp_path / "empty.onnx").touch()
    assert "empty" in fault(tmp_path / "empty.onnx")


@pytest.mark.parametrize(
    "content", [b"hello, this is a text\n", b"PK\x03\x04" + bytes(100), bytes(range(256)) * 9]
)
def test_not_onnx(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert "not an ONNX file" in fault(tmp_path / "model.onnx")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_truncated_at_any_place(share: float, path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    fault(path)


def external(path: Path, location: str) -> None:
    proto = onnx.load(path)
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())


def test_external_data_beside_the_model(path: Path, model: ir.Model) -> None:
    external(path, "weights.bin")
    loaded = ir.to_proto(load_model(path))
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in ir.to_proto(model).graph.initializer}
    for tensor in loaded.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected[tensor.name])


def test_external_data_missing_outside_or_short(path: Path, tmp_path: Path) -> None:
    external(path, "gone.bin")
    assert "'gone.bin' of tensor 'W' is missing" in fault(path)
    (tmp_path.parent / "outside.bin").write_bytes(bytes(10000))
    for location in ("../outside.bin", str(tmp_path.parent / "outside.bin")):
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            next(entry for entry in tensor.external_data if entry.key == "location").value = location
        path.write_bytes(proto.SerializeToString())
        assert "points outside the model's folder" in fault(path)
    (tmp_path / "link.bin").symlink_to(tmp_path.parent / "outside.bin")
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "link.bin"
    path.write_bytes(proto.SerializeToString())
    assert "points outside" in fault(path)
    (tmp_path / "short.bin").write_bytes(bytes(7))
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "short.bin"
    path.write_bytes(proto.SerializeToString())
    fault(path)


@pytest.mark.parametrize(("opset", "text"), [(3, "not supported"), (99, "newer than this onnx package")])
def test_opsets_out_of_range(opset: int, text: str, path: Path) -> None:
    proto = onnx.load(path)
    proto.opset_import[0].version = opset
    path.write_bytes(proto.SerializeToString())
    assert text in fault(path)


def test_an_invalid_graph(path: Path) -> None:
    proto = onnx.load(path)
    proto.graph.node[0].input[0] = "nobody"
    path.write_bytes(proto.SerializeToString())
    assert "not a valid model" in fault(path)


def test_a_folder_that_cannot_be_written(model: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LstmoptError, match="cannot be written"):
        save_model(model, tmp_path / "file" / "model.onnx")


def test_a_full_disk_leaves_the_old_file(model: ir.Model, path: Path) -> None:
    """A limit on file sizes stands in for a full disk: the write fails in the middle."""
    import resource
    import signal

    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(LstmoptError, match="cannot be written"):
            save_model(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["model.onnx"]


def test_a_large_model_keeps_its_tensors_outside(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lstmopt.rnn.files.PROTOBUF_LIMIT", 1000)
    save_model(model, tmp_path / "large.onnx")
    assert sorted(os.listdir(tmp_path)) == ["large.onnx", "large.onnx.data"]
    assert (tmp_path / "large.onnx.data").stat().st_size >= model.graph.initializers["R"].const_value.nbytes
    loaded = load_model(tmp_path / "large.onnx")
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(
            loaded.graph.initializers[name].const_value.numpy(), value.const_value.numpy()
        )


def test_the_digest_has_external_data_of_constants_in_branches(tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "model.data"

    def branch(name: str, value: float) -> onnx.GraphProto:
        tensor = numpy_helper.from_array(np.full(4, value, np.float32), name)
        node = helper.make_node("Constant", [], [name], value=tensor)
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])]
        )

    node = helper.make_node("If", ["b"], ["y"], then_branch=branch("t", 1.0), else_branch=branch("e", 2.0))
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("b", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for body in (attribute.g for attribute in proto.graph.node[0].attribute):
        tensor = body.node[0].attribute[0].t
        start = data.stat().st_size if data.exists() else 0
        with data.open("ab") as file:
            file.write(tensor.raw_data)
        external_data_helper.set_external_data(tensor, "model.data", offset=start, length=16)
        tensor.ClearField("raw_data")
    path.write_bytes(proto.SerializeToString())
    load_model(path)
    before = file_digest(path)
    data.write_bytes(np.arange(8, dtype=np.float32).tobytes())
    assert file_digest(path) != before


def test_an_output_without_a_shape_gets_the_inferred_one(path: Path) -> None:
    proto = onnx.load(path)
    opset = next(entry.version for entry in proto.opset_import if not entry.domain)
    assert opset >= 13
    first = proto.graph.output[0].name
    proto.graph.node.add(op_type="ReduceSum", input=[first], output=["sum"]).attribute.add(
        name="keepdims", type=onnx.AttributeProto.INT, i=0
    )
    proto.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, None))
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    onnx.save(proto, path)
    with pytest.raises(onnx.checker.ValidationError, match="shape"):
        onnx.checker.check_model(proto)
    outputs = {value.name: value for value in load_model(path).graph.outputs}
    ranks = {name: None if value.shape is None else len(value.shape) for name, value in outputs.items()}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert ranks == {output.name: len(output.shape) for output in session.get_outputs()}
    assert ranks["sum"] == 0 and ranks[first]


def test_the_default_domain_has_one_spelling(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    inner = helper.make_node("Neg", ["x"], ["n"], domain="ai.onnx")
    body = helper.make_graph([inner], "body", [], [info("n", TensorProto.FLOAT, [2, 3])])
    nodes = [
        helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body),
        helper.make_node("Softmax", ["z"], ["y"], domain="ai.onnx"),
    ]
    graph = helper.make_graph(
        nodes,
        "spelled",
        [info("x", TensorProto.FLOAT, [2, 3]), info("yes", TensorProto.BOOL, [])],
        [info("y", TensorProto.FLOAT, [2, 3])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx", 11)], ir_version=7)
    onnx.save(proto, tmp_path / "spelled.onnx")
    model = load_model(tmp_path / "spelled.onnx")
    assert dict(model.opset_imports) == {"": 11}
    assert {node.domain for node in model.graph.all_nodes()} == {""}
    assert len(list(model.graph.all_nodes())) == 4


def _layer_model(
    nodes: list[onnx.NodeProto], kind: int, tensors: list[onnx.TensorProto], opset: int, **more: Any
):
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g",
        [info("x", kind, ["t", "b", 4]), info("h0", kind, [1, "b", 5]), info("c0", kind, [1, "b", 5])],
        [info("y", kind, ["t", 1, "b", 5]), *more.pop("outputs", [])], tensors,
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", opset), *more.pop("domains", [])]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


def _lstm(**attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node(
        "LSTM", ["x", "W", "R", "", "", "h0", "c0"], ["y"], name="rnn", hidden_size=5, **attributes
    )


def _matrices(kind: type) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(3)
    shapes = {"W": (1, 20, 4), "R": (1, 20, 5)}
    return [
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(kind), name)
        for name, shape in shapes.items()
    ]


def _same(proto: onnx.ModelProto, path: Path, kind: type) -> None:
    """Saves and reads a model; checks that it has its layer and computes the same."""
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    model = load_model(path)
    (layer,) = find_rnns(model)
    assert layer.supported, layer.reason
    rng = np.random.default_rng(4)
    shapes = {"x": (3, 2, 4), "h0": (1, 2, 5), "c0": (1, 2, 5)}
    feeds = {name: rng.standard_normal(shape).astype(kind) for name, shape in shapes.items()}
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    have = run_model(model, feeds)
    for output, want in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        assert have[output.name].dtype == want.dtype
        np.testing.assert_allclose(have[output.name], want, atol=1e-6 if kind is np.float32 else 2e-3)


def test_a_layer_in_a_function_of_the_model_is_found(tmp_path: Path) -> None:
    names = ["x", "W", "R", "h0", "c0"]
    function = onnx.helper.make_function(
        "mine", "Layer", names, ["y"], [_lstm()], [onnx.helper.make_opsetid("", 17)]
    )
    call = onnx.helper.make_node("Layer", names, ["y"], domain="mine")
    tensors, domains = _matrices(np.float32), [onnx.helper.make_opsetid("mine", 1)]
    proto = _layer_model([call], onnx.TensorProto.FLOAT, tensors, 17, functions=[function], domains=domains)
    _same(proto, tmp_path / "m.onnx", np.float32)


@pytest.mark.parametrize("opset", [13, 17])
def test_weights_behind_an_old_dequantize_linear_are_read(opset: int, tmp_path: Path) -> None:
    """The reference implementation of ONNX has it from opset 19 on alone."""
    rng, nodes, tensors = np.random.default_rng(5), [], []
    for name, shape in (("W", (1, 20, 4)), ("R", (1, 20, 5))):
        words = rng.integers(-128, 128, shape).astype(np.int8)
        tensors += [
            onnx.numpy_helper.from_array(words, f"{name}8"),
            onnx.numpy_helper.from_array(np.float32(0.01), f"{name}s"),
            onnx.numpy_helper.from_array(np.int8(3), f"{name}z"),
        ]
        nodes.append(onnx.helper.make_node("DequantizeLinear", [f"{name}8", f"{name}s", f"{name}z"], [name]))
    proto = _layer_model([*nodes, _lstm()], onnx.TensorProto.FLOAT, tensors, opset)
    _same(proto, tmp_path / "m.onnx", np.float32)


def test_a_half_input_that_is_an_output_too_stays_as_it_is(tmp_path: Path) -> None:
    half = onnx.TensorProto.FLOAT16
    outputs = [onnx.helper.make_tensor_value_info("h0", half, [1, "b", 5])]
    proto = _layer_model([_lstm()], half, _matrices(np.float16), 17, outputs=outputs)
    _same(proto, tmp_path / "m.onnx", np.float16)
