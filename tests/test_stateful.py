"""Models that keep their states inside: the same as with explicit states, call by call, over 100 chunks."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lstmopt
from lstmopt.errors import LstmoptError
from lstmopt.passes import Export, Resize
from lstmopt.passes.convert import export_model
from lstmopt.passes.verify import verify_artifact
from lstmopt.report.schema import Manifest
from lstmopt.rnn.cells import GRU
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.states import fixed_batch, state_pairs
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import open_session
from lstmopt.runtimes import runtime as find_runtime
from lstmopt.runtimes.stateful import make_stateful
from lstmopt.sparsity.formats import format_named
from tests.ops import needs_ops, random_layer, save_sparse
from tests.test_cli_errors import call, classifier, refused
from tests.test_rnn_state_shapes import packed, target

CHUNKS = 100


def quiet(text: str, fraction: float) -> None:
    """Shows nothing."""


def chunk(number: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((3, batch, 6)).astype(np.float32)


def explicit(model: Path, count: int = CHUNKS, batch: int = 1) -> list[np.ndarray]:
    """Returns what the model gives to chunks, its states fed back."""
    session = Reference(load_model(model))
    state = np.zeros((4, batch, session_size(model)), np.float32)
    found = []
    for number in range(count):
        results = session.run({"x": chunk(number, batch), "state": state})
        state = results["state_out"]
        found.append(results["y"])
    return found


def session_size(model: Path) -> int:
    return int(onnx.load(model).graph.input[1].type.tensor_type.shape.dim[2].dim_value)


def script(folder: Path) -> ModuleType:
    """Returns a folder's run.py as a module."""
    name = f"run_{abs(hash(folder))}"
    spec = importlib.util.spec_from_file_location(name, folder / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stateful") / "model.onnx"
    save_model(packed("rows"), path)
    return path


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for runtime in ("openvino", "onnxruntime"):
        folders[runtime] = tmp_path_factory.mktemp("exported") / runtime
        export_model(
            model, runtime=runtime, precision="f32", target=target(runtime), output=folders[runtime],
            progress=quiet, stateful=True,
        )  # fmt: skip
    return folders


def test_openvino_variables_are_the_explicit_states(model: Path, exported: dict[str, Path]) -> None:
    manifest = Manifest.load(exported["openvino"] / "manifest.json")
    (entry,) = manifest.stateful
    assert entry.file == Path("stateful.xml") and entry.states == {"state": (4, 1, 12)}
    session = open_session(entry.inside(exported["openvino"]), 1)
    assert [info.name for info in session.inputs] == ["x"]
    assert [info.name for info in session.outputs] == ["y"]
    expected = explicit(model)
    for _ in range(2):
        for number, truth in enumerate(expected):
            np.testing.assert_allclose(session.run({"x": chunk(number)})["y"], truth, atol=2e-5)
        session.reset()
    assert np.abs(expected[-1] - explicit(model, 1)[0]).max() > 1e-3


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_wrapper_keeps_the_states(
    model: Path, exported: dict[str, Path], runtime: str, batch: int
) -> None:
    stream = script(exported[runtime]).Stream(batch=batch)
    expected = explicit(model, batch=batch)
    for _ in range(2):
        for number, truth in enumerate(expected):
            outputs = stream({"x": chunk(number, batch)})
            assert list(outputs) == ["y"]
            np.testing.assert_allclose(outputs["y"], truth, atol=2e-5)
        stream.reset()


@pytest.mark.deep
def test_an_artifact_has_both_forms_and_is_verified(tmp_path: Path) -> None:
    save_model(packed("rows", hidden=160), tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((60, 5, 6)).astype(np.float32)
    out = tmp_path / "out"
    lstmopt.Pipeline(Resize(hidden_size=16), Export(3, stateful=True)).run(
        tmp_path / "model.onnx", data={"x": x}, output=out, max_degradation=50.0, target=target("openvino")
    )
    manifest = Manifest.load(out / "manifest.json")
    assert [entry.file.as_posix() for entry in manifest.stateful] == ["openvino/stateful.xml"]
    assert {"openvino/stateful.xml", "openvino/stateful.bin"} <= set(manifest.files)
    assert verify_artifact(out, progress=quiet).passed
    stream = script(out).Stream("openvino")
    for number, truth in enumerate(explicit(out / "model.onnx")):
        np.testing.assert_allclose(stream({"x": chunk(number)})["y"], truth, atol=1e-3)


def test_a_model_without_states_is_refused(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx")
    refused(
        call("export", path, "--runtime", "openvino", "--stateful", "-o", tmp_path / "out"), "has no states"
    )
    with pytest.raises(LstmoptError, match="no states"):
        lstmopt.optimize(path, output=tmp_path / "out", stateful=True)


def test_states_that_cannot_be_told_apart_are_not_paired(tmp_path: Path) -> None:
    """Two layers start from one input: which of their last states the next call starts from is not said."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    two (float[T, 1, 4] x, float[1, 1, 4] h0, float[1, 1, 4] c0)
        => (float[T, 1, 1, 4] y, float[1, 1, 4] h_one, float[1, 1, 4] h_two, float[1, 1, 4] cn)
    <float[1, 16, 4] w, float[1, 16, 4] r> {
        first, h_one, cn = LSTM <hidden_size = 4> (x, w, r, , , h0, c0)
        y, h_two = LSTM <hidden_size = 4> (x, w, r, , , h0)
    }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(3)
    for name in ("w", "r"):
        array = rng.standard_normal((1, 16, 4)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "model.onnx")
    assert [(pair.input, pair.output) for pair in state_pairs(load_model(tmp_path / "model.onnx"))] == [
        ("c0", "cn")
    ]


def test_outputs_have_onnx_names_whatever_compiling_adds(exported: dict[str, Path]) -> None:
    """OpenVINO merges Squeeze and Unsqueeze, and what they gave has two names then."""
    import openvino as ov

    folder = exported["openvino"]
    onnx.save(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[1, 6] x) => (float[1, 1] output) {
                mean = ReduceMean <keepdims = 1, axes = [1]> (x)
                axes = Constant <value_ints = [1]> ()
                flat = Squeeze (mean, axes)
                output = Unsqueeze (flat, axes)
            }"""
        ),
        folder / "names.onnx",
    )
    built = find_runtime("openvino").build(folder / "names.onnx", "f32", folder / "names")
    port = ov.compile_model(built.file, "CPU").outputs[0]
    assert port.get_names() == {"mean", "output"}
    entry = {"file": built.file.relative_to(folder).as_posix()}
    for session in (script(folder).OpenVino(entry, 1), open_session(built, 1)):
        assert list(session.run({"x": np.ones((1, 6), np.float32)})) == ["output"]


@needs_ops
@pytest.mark.parametrize("name", ["f32", "i8"])
def test_sparse_ops_keep_their_states_inside_too(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    item = format_named(name)
    layer = random_layer(rng, item, hidden=32, inputs=6, plain=True)
    source = save_sparse(tmp_path / "model.onnx", layer, item, states=True)
    built = find_runtime("openvino").build(source, f"sparse-{name}", tmp_path / "built")
    outputs = [value.name for value in onnx.load(source).graph.output]
    pairs = [("h_0", outputs[1]), ("c_0", outputs[2])]
    zeros = {name: np.zeros((1, 1, 32), np.float32) for name in ("h_0", "c_0")}
    feeds = {"x": chunk(0), **zeros}
    made = make_stateful(built, pairs, feeds, fixed_batch(load_model(source), feeds), 1)
    ours, theirs, states = open_session(made, 1), open_session(built, 1), zeros
    for number in range(CHUNKS):
        expected = theirs.run({"x": chunk(number), **states})
        states = {source: expected[result] for source, result in pairs}
        np.testing.assert_allclose(
            ours.run({"x": chunk(number)})[outputs[0]], expected[outputs[0]], atol=1e-5
        )


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_layer_that_reads_its_states_directly_keeps_them_inside(kind: str, tmp_path: Path) -> None:
    """With variables of one batch, and x of any, OpenVINO's own layers would compute no step."""
    layer = random_layer(np.random.default_rng(0), hidden=16, inputs=6, density=1.0, plain=True)
    if kind == "GRU":
        layer = replace(
            layer, cell=GRU, w=layer.w[:, :3], r=layer.r[:, :3], b=layer.b[:, :, :3], reset_after=True
        )
    model = rnn_model(layer, states=True)
    for axis, name in enumerate(("s", "b")):  # names that do not tell which is which
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.shape = ir.Shape(
                [name if str(size) == ("sequence", "batch")[axis] else size for size in value.shape]
            )
    save_model(model, tmp_path / "model.onnx")
    out = tmp_path / "out"
    options = "--runtime", "openvino", "--format", "f32", "--stateful", "-o", out
    result = call("export", tmp_path / "model.onnx", *options)
    assert result.returncode == 0, result.stderr
    manifest = Manifest.load(out / "manifest.json")
    (made,) = manifest.stateful
    inside = open_session(made.inside(out), 1)
    states = {pair.input: np.zeros((1, 1, 16), np.float32) for pair in state_pairs(model)}
    for number, steps in enumerate((3, 1, 7, 2)):
        x = np.random.default_rng(number).standard_normal((steps, 1, 6)).astype(np.float32)
        expected = Reference(model).run({"x": x, **states})
        states = {pair.input: expected[pair.output] for pair in state_pairs(model)}
        np.testing.assert_allclose(inside.run({"x": x})["y"], expected["y"], atol=1e-5)
