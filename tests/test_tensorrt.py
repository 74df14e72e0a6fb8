"""What TensorRT's parser makes of our ONNX, and its ahead-of-time builder; both real, without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lstmopt.errors import LstmoptError
from lstmopt.passes.convert import export_model
from lstmopt.passes.fix import fix_inputs
from lstmopt.reference.char_lm import model_path
from lstmopt.report.schema import Manifest
from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.surgery import resize
from lstmopt.runtimes import cuda, open_session, runtime, tensorrt, tensorrt_engine
from lstmopt.runtimes.tensorrt_engine import MODULES, build_engine, ranges_of, trt_module
from lstmopt.runtimes.tensorrt_model import needs_scan, prepare
from tests.needed import missing
from tests.real_models import ddddocr, silero_vad
from tests.recurrent import feeds_of, in_onnxruntime, recurrent
from tests.test_rnn_branches import switched
from tests.trt_network import Network

Form = tuple[str, str, dict[str, Any]]
ENGINE = runtime("tensorrt")

PLAIN: list[Form] = [
    *(
        (kind, direction, {"lengths": lengths, "states": states})
        for kind in ("LSTM", "GRU")
        for direction in ("forward", "reverse", "bidirectional")
        for lengths in (False, True)
        for states in (False, True)
    ),
    ("LSTM", "forward", {"bias": False}),
    ("LSTM", "bidirectional", {"peepholes": True, "states": True, "lengths": True}),
    ("LSTM", "forward", {"activations": ["HardSigmoid", "Relu", "Softsign"]}),
    ("GRU", "bidirectional", {"linear_before_reset": 1, "states": True}),
    ("GRU", "forward", {"linear_before_reset": 1, "bias": False}),
    ("GRU", "forward", {"clip": 0.2}),
    ("RNN", "bidirectional", {"states": True}),
]
"""What the parser reads rightly as it is in f32."""

MISREAD: list[Form] = [
    ("LSTM", "forward", {"layout": 1, "states": True}),
    ("GRU", "bidirectional", {"layout": 1}),
    ("LSTM", "bidirectional", {"clip": 0.2, "states": True}),
    ("LSTM", "forward", {"activations": ["Sigmoid", "Softplus", "Tanh"]}),
    ("GRU", "forward", {"activations": ["Sigmoid", "Softplus"]}),
    ("LSTM", "forward", {"activations": ["Sigmoid", "Tanh", "ScaledTanh"]}),
    ("LSTM", "forward", {"activations": ["Sigmoid", "ThresholdedRelu", "Tanh"]}),
]
"""What it reads wrongly without a word."""

REFUSED: list[Form] = [
    ("LSTM", "forward", {"input_forget": 1}),
    ("LSTM", "bidirectional", {"activations": ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Relu", "Tanh"]}),
    ("GRU", "bidirectional", {"activations": ["Sigmoid", "Tanh", "HardSigmoid", "Tanh"]}),
    ("LSTM", "forward", {"activations": ["Affine", "Tanh", "Tanh"], "activation_alpha": [0.5],
                         "activation_beta": [0.1]}),
]  # fmt: skip
"""What it refuses."""


def named(form: Form) -> str:
    kind, direction, rest = form
    return f"{kind} {direction} {rest}"


def trt() -> Any:
    module = trt_module()
    if module is None:
        missing("TensorRT-RTX is not installed: pip install 'lstmopt[tensorrt-rtx]'")
    return module


def parsed(model: onnx.ModelProto) -> Network | None:
    """The network that the parser makes of a model, None where it refuses."""
    module = trt()
    log = module.Logger(module.Logger.INTERNAL_ERROR)
    network = module.Builder(log).create_network(0)
    parser = module.OnnxParser(network, log)
    return Network(module, network) if parser.parse(model.SerializeToString()) else None


def prepared(model: onnx.ModelProto, precision: str, calls: list[Any]) -> onnx.ModelProto:
    proto = ir.to_proto(prepare(ir.from_proto(model), precision, calls, "model").model)
    onnx.checker.check_model(proto)
    return proto


def furthest(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference over the output's largest value."""
    assert set(got) == set(expected)
    return max(
        float(np.abs(got[name].astype(np.float64) - array).max() / max(1e-3, np.abs(array).max()))
        for name, array in expected.items()
    )


@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize("form", [*PLAIN, *MISREAD, *REFUSED], ids=named)
def test_every_form_is_parsed_rightly_and_built(form: Form, precision: str, tmp_path: Path) -> None:
    kind, direction, rest = form
    model = recurrent(kind, direction, **rest)
    feeds = feeds_of(model)
    # ONNX Runtime has no layout 1.
    plain = (
        model if not rest.get("layout") else ir.to_proto(prepare(ir.from_proto(model), "f32", [], "").model)
    )
    expected = in_onnxruntime(plain, feeds)
    proto = prepared(model, precision, [feeds])
    assert [value.name for value in proto.graph.input] == [value.name for value in model.graph.input]
    network = parsed(proto)
    assert network is not None
    got = network.run(feeds)
    assert furthest(got, expected) < (1e-5 if precision == "f32" else 1e-2)
    assert all(got[name].dtype == array.dtype for name, array in expected.items())
    onnx.save(proto, tmp_path / "model.onnx")
    shapes = {value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
              for value in proto.graph.input}  # fmt: skip
    assert len(build_engine(tmp_path / "model.onnx", ranges_of(shapes, [feeds]))) > 10_000


@pytest.mark.parametrize("form", PLAIN, ids=named)
def test_what_is_read_rightly_stays_as_it_is(form: Form) -> None:
    kind, direction, rest = form
    model = recurrent(kind, direction, **rest)
    assert {node.op_type for node in prepared(model, "f32", []).graph.node} == {kind}
    network = parsed(model)
    assert network is not None
    feeds = feeds_of(model)
    assert furthest(network.run(feeds), in_onnxruntime(model, feeds)) < 1e-5


@pytest.mark.parametrize("form", MISREAD, ids=named)
def test_what_is_rewritten_would_be_misread(form: Form) -> None:
    """Where a later parser reads it rightly the rewrite can go, and this test with it."""
    kind, direction, rest = form
    model = recurrent(kind, direction, **rest)
    feeds = feeds_of(model)
    network = parsed(model)
    assert network is not None
    if rest.get("layout"):
        # As if the batch were the sequence: the first states fit, or the outputs are of other values.
        expected = in_onnxruntime(ir.to_proto(prepare(ir.from_proto(model), "f32", [], "").model), feeds)
        try:
            got = network.run(feeds)
        except ValueError:
            return
        y = got["y"]
        assert y.shape != expected["y"].shape or np.abs(y - expected["y"]).max() > 1e-2
        return
    assert furthest(network.run(feeds), in_onnxruntime(model, feeds)) > 1e-3


@pytest.mark.parametrize("form", REFUSED, ids=named)
def test_what_is_rewritten_would_be_refused(form: Form) -> None:
    kind, direction, rest = form
    assert parsed(recurrent(kind, direction, **rest)) is None


def test_lengths_in_f16_would_be_refused() -> None:
    from lstmopt.rnn.half import Half
    from lstmopt.rnn.rewriting import rewrite

    half = rewrite(ir.from_proto(recurrent(lengths=True)), Half())
    assert parsed(ir.to_proto(half)) is None
    (layer,) = find_rnns(ir.from_proto(recurrent(lengths=True)))
    assert needs_scan(layer, "f16") and not needs_scan(layer, "f32")


def test_the_reference_model_and_a_resized_one_are_parsed_rightly(tmp_path: Path) -> None:
    original = load_model(model_path())
    names = [layer.name for layer in find_rnns(original)]
    smaller = resize(original, dict(zip(names, (64, 72), strict=True))).model
    for index, model in enumerate((original, smaller)):
        source = tmp_path / f"{index}.onnx"
        save_model(model, source)
        calls = [dict(example_inputs(model, 0, sizes_for(model, 1, steps, {}))) for steps in (4, 2)]
        for precision, limit in (("f32", 1e-5), ("f16", 2e-2)):
            made = ENGINE.build(source, precision, tmp_path / f"{index}{precision}", calls)
            assert made.settings["tokens"] == "2x1:4x1:4x1"
            assert (made.file.parent / MODULES[trt().__name__]).stat().st_size > 100_000
            network = parsed(onnx.load(made.file))
            assert network is not None
            assert furthest(network.run(calls[0]), run_model(model, calls[0])) < limit


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("silero_vad.onnx", "f16"),
        ("silero_vad_16k_op15.onnx", "f32"),
        pytest.param("silero_vad.onnx", "f32", marks=pytest.mark.deep),
        pytest.param("silero_vad_16k_op15.onnx", "f16", marks=pytest.mark.deep),
        pytest.param("ddddocr", "f32", marks=pytest.mark.deep),
        pytest.param("ddddocr", "f16", marks=pytest.mark.deep),
    ],
)
def test_real_models_are_built_and_compute_the_same(name: str, precision: str, tmp_path: Path) -> None:
    source = ddddocr() if name == "ddddocr" else silero_vad(name)
    model = load_model(source)
    shapes = {"input1": (1, 1, 64, 96)} if name == "ddddocr" else {"input": (1, 576), "state": (2, 1, 128)}
    calls = [dict(example_inputs(model, 0, sizes_for(model, 1, 1, shapes)))]
    made = ENGINE.build(source, precision, tmp_path, calls)
    assert (tmp_path / MODULES[trt().__name__]).stat().st_size > 1_000_000
    assert made.settings.get("switch.sr") == ("16000" if name == "silero_vad.onnx" else None)
    written = onnx.load(made.file)
    got, expected = in_onnxruntime(written, calls[0]), run_model(model, calls[0])
    assert furthest(got, expected) < (1e-5 if precision == "f32" else 2e-2)


@pytest.mark.deep
def test_a_resized_real_model_is_built(tmp_path: Path) -> None:
    model = load_model(ddddocr())
    (layer,) = (layer.name for layer in find_rnns(model))
    smaller = resize(model, {layer: 256}).model
    save_model(smaller, tmp_path / "small.onnx")
    calls = [dict(example_inputs(smaller, 0, sizes_for(smaller, 1, 1, {"input1": (1, 1, 64, 96)})))]
    made = ENGINE.build(tmp_path / "small.onnx", "f16", tmp_path / "b", calls)
    assert (tmp_path / "b" / MODULES[trt().__name__]).stat().st_size > 1_000_000
    expected = run_model(smaller, calls[0])
    assert furthest(in_onnxruntime(onnx.load(made.file), calls[0]), expected) < 2e-2


def test_a_branch_that_shapes_decide_is_refused_unless_they_are_fixed() -> None:
    model = switched("long")
    calls = [example_inputs(model, 0, {"steps": 5, "batch": 1})]
    said = "model, If if0: inputs of other shapes may take another branch.* lstmopt fix MODEL --shape"
    with pytest.raises(LstmoptError, match=said):
        prepare(model, "f32", calls, "model")
    fixed = fix_inputs(model, {}, {"x": (5, 1, 3)}, "model")
    made = prepare(fixed, "f32", calls, "model").model
    assert not any(node.op_type == "If" for node in made.graph.all_nodes())
    got, expected = run_model(made, calls[0]), run_model(model, calls[0])
    np.testing.assert_allclose(got["y"], expected["y"], rtol=0, atol=1e-6)


def test_a_quantised_model_is_refused_in_one_line(tmp_path: Path) -> None:
    save_model(ir.from_proto(recurrent(hidden=32)), tmp_path / "m.onnx")
    made = runtime("onnxruntime").build(tmp_path / "m.onnx", "int8", tmp_path / "int8")
    with pytest.raises(LstmoptError, match="holds com.microsoft.DynamicQuantizeLSTM, which TensorRT has not"):
        ENGINE.build(made.file, "f32", tmp_path / "b")


def test_what_the_parser_refuses_is_one_line(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Unique", ["x"], ["y"])
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [info("x", 1, [4])], [info("y", 1, [None])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    trt()
    with pytest.raises(LstmoptError, match="TensorRT (refuses|cannot build)") as caught:
        ENGINE.build(tmp_path / "m.onnx", "f32", tmp_path / "b")
    assert "\n" not in str(caught.value)


def test_the_script_has_the_shapes_and_the_precision(tmp_path: Path) -> None:
    calls = [dict(feeds_of(recurrent(states=True), steps)) for steps in (7, 3, 20)]
    save_model(ir.from_proto(recurrent(states=True)), tmp_path / "m.onnx")
    ENGINE.build(tmp_path / "m.onnx", "f32", tmp_path / "b", calls)
    script = tmp_path / "b" / "build.sh"
    text = script.read_text(encoding="utf-8")
    assert script.stat().st_mode & 0o111
    assert "'--minShapes=x:3x3x4,h_0:1x3x8,c_0:1x3x8'" in text
    assert "'--optShapes=x:7x3x4,h_0:1x3x8,c_0:1x3x8'" in text
    assert "'--maxShapes=x:20x3x4,h_0:1x3x8,c_0:1x3x8'" in text
    assert "--saveEngine=model.plan" in text and "--noTF32" in text
    ENGINE.build(tmp_path / "m.onnx", "f16", tmp_path / "c", calls)
    assert "--noTF32" not in (tmp_path / "c" / "build.sh").read_text(encoding="utf-8")


def test_dynamic_axes_need_a_call_that_tells_them(tmp_path: Path) -> None:
    trt()
    save_model(ir.from_proto(recurrent()), tmp_path / "m.onnx")
    with pytest.raises(LstmoptError, match="input x: has dynamic axes"):
        ENGINE.build(tmp_path / "m.onnx", "f32", tmp_path / "b")


def test_without_its_library_models_are_written_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tensorrt, tensorrt_engine):
        monkeypatch.setattr(module, "trt_module", lambda: None)
    status = ENGINE.status()
    assert not status.usable and status.ahead == ("f32", "f16")
    assert "not installed: pip install 'lstmopt[tensorrt]'" in status.reason
    model = recurrent()
    save_model(ir.from_proto(model), tmp_path / "m.onnx")
    made = ENGINE.build(tmp_path / "m.onnx", "f16", tmp_path / "b", [feeds_of(model)])
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["build.sh", "model.onnx"]
    with pytest.raises(LstmoptError, match="tensorrt: not installed; pip install"):
        open_session(made, 1)


@pytest.mark.skipif(cuda.gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_nothing_runs(tmp_path: Path) -> None:
    trt()
    status = ENGINE.status()
    assert not status.usable and ENGINE.precisions() == ()
    assert status.reason == "no NVIDIA GPU or driver here: parses and builds ahead of time only"
    model = recurrent()
    save_model(ir.from_proto(model), tmp_path / "m.onnx")
    made = ENGINE.build(tmp_path / "m.onnx", "f32", tmp_path / "b", [feeds_of(model)])
    with pytest.raises(LstmoptError, match="tensorrt: no NVIDIA GPU or driver here"):
        open_session(made, 1)


@pytest.mark.parametrize("precision", ["int8", "bf16", "sparse-i8"])
def test_precisions_that_it_lacks_are_refused(precision: str, tmp_path: Path) -> None:
    save_model(ir.from_proto(recurrent()), tmp_path / "m.onnx")
    with pytest.raises(LstmoptError, match=f"precision {precision}: TensorRT does not run it"):
        ENGINE.build(tmp_path / "m.onnx", precision, tmp_path / "b")


def test_export_writes_the_folder_and_says_what_was_not_run(tmp_path: Path) -> None:
    if cuda.gpu() is not None:
        pytest.skip("there is a GPU")
    result = export_model(
        model_path(), runtime="tensorrt", precision="f16", target="local", output=tmp_path / "out",
        progress=lambda text, fraction: None,
    )  # fmt: skip
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "build.sh", "manifest.json"} <= names
    assert 1e-5 < result.error < 1e-2
    assert "not run in tensorrt" in result.notes[0]
    assert "that of ONNX Runtime on the same file" in result.notes[0]
    manifest = Manifest.load(tmp_path / "out" / "manifest.json")
    assert set(manifest.files) == names - {"manifest.json"}
    assert manifest.deploy[0].settings["tokens"] == "35x1:35x1:35x1"
    with pytest.raises(LstmoptError, match="--format int8: tensorrt does not run it here; use .* f32, f16"):
        export_model(
            model_path(), runtime="tensorrt", precision="int8", target="local", output=tmp_path / "no",
            progress=lambda text, fraction: None,
        )  # fmt: skip
