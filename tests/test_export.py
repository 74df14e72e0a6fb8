"""`lstmopt export`: what it writes loads as its manifest says, whatever a precision cannot do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.passes.convert import _fastest, export_model, relative_error
from lstmopt.report.schema import Manifest
from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model
from lstmopt.runtimes import Deployment, open_session, runtime
from lstmopt.targets import RuntimeTarget, Shape, Target, load_target
from tests.test_cli_errors import call, classifier, refused


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return classifier(tmp_path / "model.onnx")


def exported(*arguments: object) -> dict[str, Any]:
    result = call("export", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_every_precision_ships_the_settings_that_make_it_one(name: str, model: Path, tmp_path: Path) -> None:
    """On a CPU with AMX, OpenVINO runs f32 files in bf16 unless it is told not to."""
    original = load_model(model)
    feeds = example_inputs(original, 0, {"sequence": 6, "batch": 2})
    expected = run_model(original, feeds)["scores"]
    for precision in runtime(name).precisions():
        if precision.startswith("sparse-"):
            continue  # nothing of this model is sparse: see test_sparse_export
        output = tmp_path / precision
        exported(model, "--runtime", name, "--format", precision, "--threads", 2, "-o", output)
        manifest = Manifest.load(output / "manifest.json")
        (entry,) = manifest.deployments(output)
        assert (entry.runtime, entry.precision, manifest.threads) == (name, precision, 2)
        assert manifest.fingerprint == fingerprint() and manifest.versions[name]
        if name == "openvino":
            assert entry.settings["INFERENCE_PRECISION_HINT"] == precision
        for path, digest in manifest.files.items():
            assert hashlib.sha256((output / path).read_bytes()).hexdigest() == digest
        assert {path.name for path in output.iterdir()} == {*manifest.files, "manifest.json"}
        error = np.abs(open_session(entry, 1).run(feeds)["scores"] - expected).max()
        assert error < (1e-5 if precision == "f32" else 0.1)


def test_the_settings_are_said(model: Path, tmp_path: Path) -> None:
    result = call("export", model, "--runtime", "openvino", "--format", "f32", "-o", tmp_path / "out")
    assert "load it with INFERENCE_PRECISION_HINT=f32" in result.stdout


def test_auto_leaves_out_a_precision_that_cannot_be_built(tmp_path: Path) -> None:
    """Nothing of this graph can be quantised."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )  # fmt: skip
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    document = exported(path, "--runtime", "onnxruntime", "-o", tmp_path / "out")
    assert document["deployment"]["precision"] == "f32" and document["error"] == 0
    assert len(document["notes"]) == 1 and "no constant weights" in document["notes"][0]
    result = call("export", path, "--runtime", "onnxruntime", "--format", "int8", "-o", tmp_path / "int8")
    refused(result, "relu.onnx", "no constant weights")
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize("precision", ["f32", "auto"])
def test_a_model_that_computes_no_numbers_is_not_written(precision: str, tmp_path: Path) -> None:
    model = classifier(tmp_path / "nan.onnx")
    proto = onnx.load(model)
    (decoder,) = (tensor for tensor in proto.graph.initializer if tensor.name == "decoder")
    array = numpy_helper.to_array(decoder).copy()
    array[0, 0] = np.nan
    decoder.CopyFrom(numpy_helper.from_array(array, "decoder"))
    onnx.save(proto, model)
    with pytest.raises(LstmoptError, match=r"onnxruntime: f32 computes NaN or infinity"):
        export_model(
            model, runtime="onnxruntime", precision=precision, target="local", output=tmp_path / "out",
            progress=lambda text, fraction: None,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_auto_falls_back_to_f32_alone() -> None:
    def made(precision: str) -> Deployment:
        return Deployment(file=Path("model.onnx"), runtime="onnxruntime", precision=precision)

    def chosen(**errors: float) -> str:
        built = [(made(precision), error) for precision, error in errors.items()]
        return _fastest(built, [], load_target("local"), lambda text, fraction: None)[0].precision

    assert chosen(int8=0.05, f32=0.02) == "f32"
    assert chosen(int8=0.005) == "int8"
    with pytest.raises(LstmoptError, match=r"--format auto: int8 has an error of 5.0%.*f32 cannot be built"):
        chosen(int8=0.05)


def test_the_error_is_over_the_deviation() -> None:
    truth = 100 + np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    expected = {"y": truth, "h": truth}
    ours = {"y": truth + np.float32(0.2), "h": truth * 0}
    assert relative_error(ours, expected, ["y"]) == pytest.approx(0.2 / truth.std(), rel=1e-3)
    assert relative_error({"y": np.full(3, 2.5)}, {"y": np.full(3, 2.0)}, ["y"]) == 0.5
    masked = {"y": np.array([-np.inf, 1.0, 3.0])}
    assert relative_error(masked, masked, ["y"]) == 0
    assert np.isinf(relative_error({"y": np.array([0, 1.0, 3.0])}, masked, ["y"]))
    assert np.isnan(relative_error({"y": np.array([-np.inf, np.nan, 3.0])}, masked, ["y"]))
    assert np.isnan(relative_error(masked, {"y": np.full(3, np.nan)}, ["y"]))


def test_static_shapes_are_those_of_the_call(model: Path, tmp_path: Path) -> None:
    document = exported(
        model, "--runtime", "onnxruntime", "--format", "f32", "--static", "--shape", "x=5x2x4",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert document["deployment"]["input_shapes"] == {"x": [5, 2, 4]}
    (entry,) = Manifest.load(tmp_path / "out" / "manifest.json").deployments(tmp_path / "out")
    assert entry.input_shapes == {"x": (5, 2, 4)}
    proto = onnx.load(entry.file)
    assert [dim.dim_value for dim in proto.graph.output[0].type.tensor_type.shape.dim] == [2, 3]
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 2, 4)).astype(np.float32)}
    expected = run_model(load_model(model), feeds)["scores"]
    np.testing.assert_allclose(open_session(entry, 1).run(feeds)["scores"], expected, atol=1e-6)
    with pytest.raises(LstmoptError, match="has shape"):
        open_session(entry, 1).run({"x": np.zeros((6, 2, 4), np.float32)})


def test_static_shapes_of_a_mix_are_refused(model: Path, tmp_path: Path) -> None:
    target = Target(
        name="mix",
        runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32",)),),
        shapes=(Shape(sequence=5), Shape(sequence=9)),
    )
    with pytest.raises(LstmoptError, match=r"--static with target mix: it has 2 shapes"):
        export_model(
            model, runtime="onnxruntime", precision="f32", target=target, output=tmp_path / "out",
            progress=lambda text, fraction: None, static=True,
        )  # fmt: skip


def test_an_artifact_or_somebody_s_manifest_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    arguments = ("export", model, "--runtime", "onnxruntime", "--format", "f32", "-o", tmp_path / "out")
    assert call(*arguments).returncode == 0
    assert call(*arguments).returncode == 0  # its own
    path = tmp_path / "out" / "manifest.json"
    document = json.loads(path.read_text())
    document["files"]["report.json"] = ""
    for text, word in ((json.dumps(document), "holds an artifact"), ('{"name": "my app"}', "manifest.json")):
        path.write_text(text)
        refused(call(*arguments), word, "name another folder")
        assert path.read_text() == text


@pytest.mark.parametrize("name", ["file", "file/out"])
def test_an_output_that_cannot_be_a_folder_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LstmoptError, match="is a file|cannot be written"):
        export_model(
            tmp_path / "none.onnx", runtime="onnxruntime", precision="f32", target="local",
            output=tmp_path / name, progress=lambda text, fraction: None,
        )  # fmt: skip


def test_export_writes_over_no_file_of_the_user(tmp_path: Path) -> None:
    model = classifier(tmp_path / "model.onnx", 8)
    before = model.read_bytes()
    result = call("export", model, "--runtime", "onnxruntime", "--format", "int8", "-o", tmp_path)
    refused(result, "model.onnx", "is there already", "another folder")
    assert model.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    for _ in range(2):  # its own files are replaced
        done = call("export", model, "--runtime", "onnxruntime", "--format", "int8", "-o", tmp_path / "out")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_outputs_that_are_empty_in_some_calls_are_no_fault(name: str, tmp_path: Path) -> None:
    """All steps but the first, of a sequence of one."""
    proto = onnx.load(classifier(tmp_path / "model.onnx"))
    proto.graph.node.append(helper.make_node("Slice", ["y", "from", "to", "axis0"], ["later"]))
    for label, number in (("from", 1), ("to", 2**31 - 1)):
        proto.graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), label))
    shape = ["steps", 1, "batch", 8]
    proto.graph.output.append(helper.make_tensor_value_info("later", TensorProto.FLOAT, shape))
    onnx.save(proto, tmp_path / "model.onnx")
    arguments = "--runtime", name, "--format", "f32", "-o", tmp_path / "out"
    done = call("export", tmp_path / "model.onnx", *arguments)
    assert done.returncode == 0, done.stderr
    empty = {"later": np.zeros((0, 1))}
    assert relative_error(empty, empty, ["later"]) == 0
