"""Models with zeros go to the sparse ops: rewritten, chosen by measuring, exported, shipped."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import lstmopt
from lstmopt.errors import LstmoptError
from lstmopt.passes import Export, Simplify, Trained, Verify
from lstmopt.passes import formats as formats_module
from lstmopt.passes.convert import STANDARD, export_model
from lstmopt.passes.formats import (
    DENSE,
    Measured,
    build_in,
    build_sparse,
    measured_formats,
    smallest_formats,
    worth_measuring,
)
from lstmopt.passes.sparse_ops import MOST_COLUMNS, RoundWeights, SparseOps, sparse_places
from lstmopt.passes.trained import pattern_of
from lstmopt.report.schema import Manifest, Report
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.constants import constant_value
from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model, write_weights
from lstmopt.runtimes import open_session, runtime
from lstmopt.sparsity.formats import FORMATS, format_named, unpack
from lstmopt.sparsity.formats.blob import read as read_blob
from lstmopt.sparsity.formats.layers import layer_format_name, layer_formats
from lstmopt.sparsity.patterns import parse_pattern
from lstmopt.sparsity.precisions import allowed_formats
from lstmopt.targets import RuntimeTarget, Target
from tests.graphs import Drawn, feeds_for, lstm_graphs
from tests.ops import error, needs_ops, random_layer
from tests.test_cli_errors import call, classifier, examples, refused

pytestmark = needs_ops
NAMES = ("openvino", "onnxruntime")
ANY = Target(name="any", runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32",)),))
PRODUCT_FORMATS = sorted(set(FORMATS) - {"i8-shared"})


def pruned(model: ir.Model, density: float, seed: int = 0, shared: bool = False) -> ir.Model:
    """Returns a copy whose LSTM weights are random and mostly zero."""
    copy, rng = model.clone(), np.random.default_rng(seed)
    for layer in find_rnns(copy):
        if layer.weights is None or not layer.supported:
            continue
        matrices = []
        for matrix in layer.weights.matrices:
            shape = (matrix.shape[0], 1, *matrix.shape[2:]) if shared else matrix.shape
            matrices.append((matrix * (rng.random(shape) < density)).astype(np.float32))
        write_weights(copy, layer, replace(layer.weights, w=matrices[0], r=matrices[1]))
    return copy


def ran(model: ir.Model, name: str, folder: Path, feeds: dict[str, Any], precision: str) -> dict[str, Any]:
    source = folder / "source.onnx"
    save_model(model, source)
    made = runtime(name).build(source, precision, folder / name)
    return open_session(made, 1).run(feeds)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate,))
@given(
    drawn=lstm_graphs(),
    seed=st.integers(0, 99),
    parts=st.tuples(st.sampled_from(sorted(FORMATS)), st.sampled_from(sorted(FORMATS))),
    name=st.sampled_from(NAMES),
)
def test_rewritten_graphs_compute_what_the_rounded_ones_do(
    drawn: Drawn, seed: int, parts: tuple[str, str], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = pruned(drawn.model, 0.25, seed, shared="i8-shared" in parts)
    item = layer_format_name(*map(format_named, parts))
    formats = {place.name: item for place in sparse_places(model)}
    feeds = feeds_for(model, 5, 2, seed)
    rounded = rewrite(model, RoundWeights(formats))
    expected = Reference(rounded).run(feeds)
    # Rounding what is rounded changes nothing.
    again = Reference(rewrite(rounded, RoundWeights(formats))).run(feeds)
    assert all(np.array_equal(again[key], expected[key]) for key in expected)
    sparse = rewrite(model, SparseOps(formats))
    assert sum(node.domain == "lstmopt" for node in sparse.graph) == len(formats)
    folder = tmp_path_factory.mktemp("drawn")
    try:
        dense = ran(rounded, name, folder, feeds, "f32")
    except LstmoptError:
        return  # the runtime does not take this graph as it is
    for key, want in expected.items():
        assert dense[key].shape == want.shape, key
        if want.dtype.kind == "f" and want.size:
            assert error(dense[key], want) <= 1e-4, key
    outputs = ran(sparse, name, folder, feeds, f"sparse-{item}")
    for key, want in expected.items():
        if want.dtype.kind == "f" and want.size:
            most = max(FORMATS[part].error for part in parts)
            bound = 3 * most * (1 if item == "f32" else 3)  # of layers of few units, in a row
            assert error(outputs[key], want) <= bound, (key, item, name)


def product(op: str, units: int, columns: int, bias: bool, transposed: bool, seed: int) -> ir.Model:
    """Returns a sparse MatMul (then Add) or Gemm over x."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((columns, units)) * (rng.random((columns, units)) < 0.2)
    matrix = np.ascontiguousarray(matrix.T if transposed else matrix).astype(np.float32)
    inputs = ["x", "W"] + (["B"] if bias and op == "Gemm" else [])
    options = {"transB": int(transposed)} if op == "Gemm" else {}
    nodes = [helper.make_node(op, inputs, ["y"], name="product", **options)]
    tensors = [numpy_helper.from_array(matrix, "W")]
    if bias and op == "Gemm":
        tensors.append(numpy_helper.from_array(rng.standard_normal(units).astype(np.float32), "B"))
    info = helper.make_tensor_value_info
    rank = ["n"] if op == "Gemm" else ["n", "m"]
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, [*rank, columns])],
        [info("y", TensorProto.FLOAT, [*rank, units])], tensors,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.from_proto(proto)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate,))
@given(
    units=st.integers(1, 70), columns=st.integers(1, 90), bias=st.booleans(), transposed=st.booleans(),
    op=st.sampled_from(["MatMul", "Gemm"]), item=st.sampled_from(PRODUCT_FORMATS),
    name=st.sampled_from(NAMES), seed=st.integers(0, 99),
)  # fmt: skip
def test_products(
    units: int, columns: int, bias: bool, transposed: bool, op: str, item: str, name: str, seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    model = product(op, units, columns, bias, transposed and op == "Gemm", seed)
    formats = {place.name: item for place in sparse_places(model)}
    rng = np.random.default_rng(seed)
    rank = (3,) if op == "Gemm" else (3, 2)
    feeds = {"x": rng.standard_normal((*rank, columns)).astype(np.float32)}
    expected = Reference(rewrite(model, RoundWeights(formats))).run(feeds)["y"]
    sparse = rewrite(model, SparseOps(formats))
    outputs = ran(sparse, name, tmp_path_factory.mktemp("product"), feeds, f"sparse-{item}")
    assert error(outputs["y"], expected) <= (1e-5 if item == "f32" else 0.03)


def test_a_product_has_no_gates_to_share_an_index() -> None:
    model = product("MatMul", 40, 64, False, False, 0)
    (place,) = sparse_places(model)
    assert sorted(item.name for item in place.formats) == PRODUCT_FORMATS
    assert smallest_formats(model, {}, ANY)("onnxruntime", "sparse-i8")["product"] in PRODUCT_FORMATS
    layer = rnn_model(sparse_layer(64, 0.1, "gate-shared64:step4"))
    assert smallest_formats(layer, {}, ANY)("onnxruntime", "sparse-i8") == {"rnn": "i8-shared"}


def test_products_of_a_rank_that_the_graph_does_not_tell(tmp_path: Path) -> None:
    """Exporters leave the shapes of values between nodes out."""
    rng = np.random.default_rng(0)
    matrices = [rng.standard_normal((64, 64)) * (rng.random((64, 64)) < 0.1) for _ in "VW"]
    tensors = [
        numpy_helper.from_array(matrix.astype(np.float32), name)
        for name, matrix in zip("VW", matrices, strict=True)
    ]
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]), helper.make_node("MatMul", ["a", "V"], ["b"], name="mm"),
        helper.make_node("MatMul", ["b", "W"], ["y"], name="mm2"),
    ]  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, ["n", "m", 64])],
        [info("y", TensorProto.FLOAT, ["n", "m", 64])], tensors,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = ir.from_proto(proto)
    feeds = {"x": rng.standard_normal((3, 2, 64)).astype(np.float32)}
    target = Target(name="t", runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32",)),))
    chosen = measured_formats(model, feeds, target)("onnxruntime", "sparse-f32")
    assert set(chosen) <= {place.name for place in sparse_places(model)}
    formats = {place.name: "f32" for place in sparse_places(model)}
    assert len(formats) == 2
    outputs = ran(rewrite(model, SparseOps(formats)), "onnxruntime", tmp_path, feeds, "sparse-f32")
    assert error(outputs["y"], Reference(model).run(feeds)["y"]) < 1e-5


def test_what_is_not_replaced() -> None:
    """Dense weights, products of other forms, and weights that are not constant stay as they are."""
    layer = rnn_model(sparse_layer(32, 0.9))
    assert not sparse_places(layer) and not rewrite(layer, SparseOps({"rnn": "i8"})).opset_imports.get(
        "lstmopt"
    )
    for op, change in (("Gemm", {"alpha": 0.5}), ("Gemm", {"transA": 1}), ("Gemm", {"beta": 2.0})):
        model = product(op, 8, 8, True, False, 0)
        node = next(iter(model.graph))
        for key, value in change.items():
            node.attributes[key] = ir.AttrFloat32(key, value) if key != "transA" else ir.AttrInt64(key, value)
        assert not sparse_places(model), change


def sparse_layer(hidden: int, density: float, pattern: str | None = None) -> RnnWeights:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((1, 4, hidden, hidden)).astype(np.float32) * 0.1
    r = rng.standard_normal((1, 4, hidden, hidden)).astype(np.float32) * 0.1
    if pattern is None:
        masks = {"w": rng.random(w[0].shape) < density, "r": rng.random(r[0].shape) < density}
    else:
        masks = parse_pattern(pattern).masks({"w": np.abs(w[0]), "r": np.abs(r[0])}, density)
    return RnnWeights(LSTM, "forward", w * masks["w"], r * masks["r"])


def test_formats_that_a_precision_allows() -> None:
    assert allowed_formats("sparse-f32") == ("f32",)
    assert set(allowed_formats("sparse-i16")) == {"f32", "i16", "i16-bank64"}
    assert set(allowed_formats("sparse-i8")) == set(FORMATS)
    with pytest.raises(LstmoptError, match="i4"):
        allowed_formats("sparse-i4")


def test_the_fastest_of_those_allowed_is_chosen() -> None:
    times = Measured({DENSE: 9.0, "f32": 5.0, "i16": 3.0, "i8": 2.0})
    assert times.fastest(("f32",)) == "f32" and times.fastest(("f32", "i16")) == "i16"
    assert Measured({DENSE: 1.0, "f32": 5.0}).fastest(("f32",)) == DENSE
    apart = Measured({DENSE: 9.0, "i16": 3.0, "i8": 4.0, "i16+i8": 2.0})
    assert apart.fastest(("i16",)) == "i16" and apart.fastest(("i16", "i8")) == "i16+i8"


@pytest.mark.parametrize("name", NAMES)
def test_formats_are_chosen_by_measuring(name: str) -> None:
    """At 256 units and 5% the int8 op is many times faster; an almost dense layer is none of its."""
    model = rnn_model(sparse_layer(256, 0.05, "bank64:step4"), sequence=16, batch=1)
    target = Target(name="t", runtimes=(RuntimeTarget(runtime=name, precisions=("f32",)),))
    feeds = example_inputs(model, 0, {})
    told: list[str] = []
    choose = measured_formats(model, feeds, target, progress=lambda text, fraction: told.append(text))
    chosen = choose(name, "sparse-i8")
    assert set(chosen) == {"rnn"} and chosen["rnn"] in FORMATS
    exact = choose(name, "sparse-f32")  # without AVX-512 the dense kernel may be as fast
    assert exact in ({"rnn": "f32"}, {})
    assert len(told) == 1  # measured once, for every precision
    assert measured_formats(rnn_model(sparse_layer(64, 0.8)), {}, target)(name, "sparse-i8") == {}


@pytest.mark.parametrize("name", NAMES)
def test_w_and_r_may_have_formats_of_their_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of different patterns: what is smallest for one wastes bytes in the other."""
    shared, banked = (sparse_layer(128, 0.1, item) for item in ("gate-shared64:step4", "bank64:step4"))
    model = rnn_model(replace(shared, r=banked.r), sequence=16, batch=1)
    (place,) = sparse_places(model)
    worth = worth_measuring(place)
    w, r = layer_formats("i8-shared+i8")
    assert (w.name, r.name) == ("i8-shared", "i8")
    size = place.packed_bytes(w)[0] + place.packed_bytes(r)[1]
    assert worth["i8-shared+i8"] == int(float(f"{size:.2g}")) < 0.95 * min(worth["i8"], worth["f32"])
    assert not any("+" in item for item in worth_measuring(sparse_places(rnn_model(banked))[0]))
    assert smallest_formats(model, {}, ANY)(name, "sparse-i8") == {"rnn": "i8-shared+i8"}
    assert smallest_formats(model, {}, ANY)(name, "sparse-f32") == {"rnn": "f32"}

    # Whether it is faster is a matter of the CPU; where it is, it ships.
    times = dict.fromkeys((DENSE, *worth), 9.0) | {"i8-shared+i8": 1.0}
    monkeypatch.setattr(formats_module, "_measure", lambda *args: Measured(times))
    monkeypatch.setattr(formats_module, "_MEASURED", {})
    target = Target(name="t", runtimes=(RuntimeTarget(runtime=name, precisions=("f32",)),))
    feeds = example_inputs(model, 0, {})
    choose = measured_formats(model, feeds, target)
    save_model(model, tmp_path / "model.onnx")
    source, made = tmp_path / "model.onnx", tmp_path / "made"
    deployment, formats = build_in(model, source, name, "sparse-i8", choose, 1, made)
    assert formats == {"rnn": "i8-shared+i8"}
    want = Reference(rewrite(model, RoundWeights(formats))).run(feeds)
    have = open_session(deployment, 1).run(feeds)
    assert error(have["y"], want["y"]) < r.error


@pytest.mark.parametrize("pair", ["f32+i8", "i8+f32", "i16+i8-planes2"])
def test_each_matrix_is_packed_and_rounded_in_its_own_format(pair: str) -> None:
    """And what is packed stands for the very weights that the rounded model has."""
    model = rnn_model(sparse_layer(70, 0.2))
    (node,) = rewrite(model, SparseOps({"rnn": pair})).graph
    rounded = find_rnns(rewrite(model, RoundWeights({"rnn": pair})))[0].weights
    exact = find_rnns(model)[0].weights
    assert rounded is not None and exact is not None
    for part, item in zip("wr", layer_formats(pair), strict=True):
        blob = constant_value(node.inputs[1 + "wr".index(part)])
        assert blob is not None and item.owns(read_blob(blob.tobytes()))
        assert np.array_equal(unpack(blob.tobytes()), getattr(rounded, part)[0])
        near = np.allclose(getattr(rounded, part), getattr(exact, part), rtol=1e-5, atol=0)
        assert near == (item.name == "f32")


def test_a_layer_of_which_one_matrix_is_sparse_is_measured() -> None:
    """A dense W beside a pruned R; together more than half of the weights are there."""
    dense, sparse = sparse_layer(64, 1.0), sparse_layer(64, 0.05)
    (place,) = sparse_places(rnn_model(replace(dense, r=sparse.r)))
    assert place.density < 0.06
    assert not sparse_places(rnn_model(replace(dense, r=sparse_layer(64, 0.8).r)))


def test_numbers_that_the_ops_refuse_leave_a_node_as_it_is() -> None:
    """The rest of the model is still packed."""
    large = sparse_layer(64, 0.05)
    large.w[0, 0, 0, 0] = 1e31
    assert not sparse_places(rnn_model(large))
    model = product("Gemm", 20, 30, True, False, 0)
    assert len(sparse_places(model)) == 1
    node = next(iter(model.graph))
    bias = constant_value(node.inputs[2])
    assert bias is not None
    masked = np.array(bias)
    masked[3] = -np.inf
    node.inputs[2].const_value = ir.Tensor(masked)
    assert not sparse_places(model)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_too_long_for_the_ops_leave_a_node_as_it_is(name: str, tmp_path: Path) -> None:
    """The longest that are not, without a zero, are loaded in every format."""
    model = product("Gemm", 3, MOST_COLUMNS, False, False, 0)
    node = next(iter(model.graph))
    full = np.random.default_rng(0).choice([-1.0, 1.0], (MOST_COLUMNS, 3)).astype(np.float32)
    node.inputs[1].const_value = ir.Tensor(full)
    feeds = {"x": np.random.default_rng(1).standard_normal((2, MOST_COLUMNS)).astype(np.float32)}
    for item in PRODUCT_FORMATS:
        (place,) = sparse_places(model, 1.0)
        sparse = rewrite(model, SparseOps({place.name: item}, densest=1.0))
        outputs = ran(sparse, name, tmp_path, feeds, f"sparse-{item}")
        assert error(outputs["y"], feeds["x"].astype(np.float64) @ full) <= (1e-5 if item == "f32" else 0.03)
    assert not sparse_places(product("Gemm", 3, MOST_COLUMNS + 1, False, False, 0))


@pytest.mark.parametrize("fixed", [True, False])
def test_formats_are_measured_in_the_shape_that_the_graph_fixes(
    fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime has less to do where shapes are fixed."""
    sizes = {"sequence": 3, "batch": 2} if fixed else {}
    model = rnn_model(sparse_layer(64, 0.05), **sizes)
    seen: list[ir.Model] = []
    bare = formats_module._bare

    def watched(*args: Any) -> ir.Model:
        seen.append(bare(*args))
        return seen[-1]

    monkeypatch.setattr(formats_module, "_bare", watched)
    monkeypatch.setattr(formats_module, "_MEASURED", {})
    target = Target(
        name="t", threads=2, runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32",)),)
    )
    feeds = example_inputs(model, 0, {"sequence": 3, "batch": 2})
    measured_formats(model, feeds, target)("onnxruntime", "sparse-f32")
    shape = seen[0].graph.inputs[0].shape
    assert shape is not None and all(isinstance(size, int) for size in shape) == fixed


def test_patterns_are_recognised() -> None:
    for pattern in ("gate-shared64:step4", "bank64:step4", "bank32:step2", "block16x1"):
        assert pattern_of(rnn_model(sparse_layer(128, 0.1, pattern))) == pattern
    assert pattern_of(rnn_model(sparse_layer(128, 0.1))) == "unstructured"
    assert pattern_of(rnn_model(sparse_layer(16, 1.0))) == "dense"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense classifier of 128 units, the same pruned to 6%, and data."""
    path = tmp_path_factory.mktemp("sparse")
    model = load_model(classifier(path / "model.onnx", 128))
    layer = find_rnns(model)[0]
    assert layer.weights is not None
    masks = parse_pattern("bank64:step4").masks({"r": np.abs(layer.weights.r[0])}, 0.06)
    # W, of 4 columns, stays as it is: without an entry the model would compute nothing but zeros.
    write_weights(model, layer, replace(layer.weights, r=layer.weights.r * masks["r"]))
    save_model(model, path / "pruned.onnx")
    examples(path / "data.npz", 60)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_export_of_a_model_that_holds_zeros(name: str, folder: Path, tmp_path: Path) -> None:
    model = load_model(folder / "pruned.onnx")
    feeds = example_inputs(model, 0, {"sequence": 7, "batch": 3})
    expected = Reference(model).run(feeds)["scores"]
    assert expected.std() > 0.1
    for precision, most in (("sparse-i8", 0.04), ("sparse-i16", 0.01), ("sparse-f32", 1e-5)):
        out = tmp_path / precision
        options: dict[str, Any] = {"runtime": name, "precision": precision, "target": "local"}
        made = export_model(
            folder / "pruned.onnx", output=out, progress=lambda text, fraction: None, **options
        )
        manifest = Manifest.load(out / "manifest.json")
        (entry,) = manifest.deployments(out)
        assert entry == made.deployment and entry.precision == precision and made.error < most
        assert len(entry.libraries) == 1 and entry.libraries[0].is_file() and entry.libraries[0].parent == out
        assert entry.libraries[0].name in manifest.files
        scores = open_session(entry, 1).run(feeds)["scores"]
        assert error(scores, expected) < most
        # The same rounded weights in standard operators: what is left is the rounding of activations.
        standard = load_model(out / STANDARD)
        assert {node.domain for node in standard.graph} <= {"", "ai.onnx"} and STANDARD in manifest.files
        plain = Reference(standard).run(feeds)["scores"]
        assert error(plain, expected) < 1e-5 or precision != "sparse-f32"
        assert error(plain, expected) < most and error(scores, plain) < most


def test_the_shell_names_sparse_formats_by_their_numbers(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("export", folder / "pruned.onnx", "--runtime", "onnxruntime", "--format", "i8", "-o", out)
    assert result.returncode == 0, result.stderr
    assert "onnxruntime sparse-i8" in result.stdout and "register" in result.stdout


def test_export_to_one_folder_again_leaves_nothing_of_before(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for precision in ("i8", "f32", "i8"):
        options = "--runtime", "onnxruntime", "--format", precision, "-o", out
        result = call("export", folder / "pruned.onnx", *options)
        assert result.returncode == 0, result.stderr
        assert (out / STANDARD).exists() == (precision == "i8")
        listed = Manifest.load(out / "manifest.json").files
        assert {path.name for path in out.iterdir()} == {*listed, "manifest.json"}


def test_export_refuses_a_dense_model(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("export", folder / "model.onnx", "--runtime", "onnxruntime", "--format", "i8", "-o", out)
    refused(result, "model.onnx", "no LSTM, GRU or product", "lstmopt optimize")
    assert not out.exists()


TARGET = Target(
    name="both",
    runtimes=(
        RuntimeTarget(runtime="openvino", precisions=("f32", "sparse-f32", "sparse-i8")),
        RuntimeTarget(runtime="onnxruntime", precisions=("f32", "sparse-i8")),
    ),
)


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Path:
    lstmopt.Pipeline(Simplify(), Trained(str(folder / "pruned.onnx")), Export(5), Verify()).run(
        folder / "model.onnx",
        target=TARGET,
        output=folder / "out",
        data=folder / "data.npz",
        max_degradation=9.0,
    )
    return folder / "out"


@pytest.mark.deep
def test_an_artifact_with_sparse_ops(artifact: Path) -> None:
    report, manifest = Report.load(artifact / "report.json"), Manifest.load(artifact / "manifest.json")
    assert report.optimized.precision.startswith("sparse-") and report.lstms[0].pattern == "bank64:step4"
    items = layer_formats(report.lstms[0].format)  # with 4 inputs W may well have a format of its own
    assert report.optimized.file == manifest.deploy[0].file.as_posix()
    sparse = [entry for entry in manifest.deploy if entry.precision.startswith("sparse-")]
    assert {entry.runtime for entry in sparse} == set(NAMES)
    for entry in sparse:
        (library,) = entry.libraries
        assert library.parent == entry.file.parent and library.as_posix() in manifest.files
    # model.onnx has standard ops, and the weights that the best file computes with.
    proto = onnx.load(artifact / "model.onnx")
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    model = load_model(artifact / "model.onnx")
    weights = find_rnns(model)[0].weights
    assert weights is not None
    for item, each in zip(items, weights.matrices, strict=True):
        assert np.array_equal(item.round_weights(each[0]), each[0])


def test_a_report_is_on_what_ships_not_on_what_was_trained_last(tmp_path: Path) -> None:
    """The original already holds zeros, so sparse ops run it; what was trained breaks the contract."""
    weights, other = sparse_layer(256, 0.05, "bank64:step4"), sparse_layer(256, 0.3)
    for name, each in (("original", weights), ("other", other)):
        save_model(rnn_model(each, sequence=16, batch=1), tmp_path / f"{name}.onnx")
    lstmopt.Pipeline(Simplify(), Trained(str(tmp_path / "other.onnx")), Export(5)).run(
        tmp_path / "original.onnx", target=TARGET, output=tmp_path / "out", max_degradation=0.05
    )
    report = Report.load(tmp_path / "out" / "report.json")
    assert report.optimized.name == "packed" and report.optimized.precision.startswith("sparse-")
    (layer,) = report.lstms
    assert layer.pattern == "bank64:step4" and layer_formats(layer.format)
    assert layer.density == pytest.approx(weights.nonzero_parameters / weights.parameters)
    assert report.ratios.nonzero_parameters == report.ratios.model_nonzero_parameters == 1.0
    assert report.optimized.model_nonzero_parameters == report.original.model_nonzero_parameters


@pytest.mark.deep
def test_run_py_loads_the_sparse_ops(artifact: Path) -> None:
    for name in NAMES:
        command = [sys.executable, str(artifact / "run.py"), "--runtime", name, "--iterations", "5", "--json"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr + result.stdout
        assert json.loads(result.stdout)["precision"].startswith("sparse-")


def test_weights_that_are_inputs_too_are_no_interface(folder: Path, tmp_path: Path) -> None:
    """Files before IR 4 list every initializer among the inputs."""
    for name, hidden in (("large", 16), ("small", 8)):
        layer = random_layer(np.random.default_rng(0), hidden=hidden, inputs=5, density=1.0, plain=True)
        save_model(rnn_model(layer), tmp_path / f"{name}.onnx")
        proto, info = onnx.load(tmp_path / f"{name}.onnx"), helper.make_tensor_value_info
        for tensor in proto.graph.initializer:
            proto.graph.input.append(info(tensor.name, TensorProto.FLOAT, tensor.dims))
        del proto.graph.output[:]
        proto.graph.output.append(info("y", TensorProto.FLOAT, [None] * 4))
        onnx.save(proto, tmp_path / f"{name}.onnx")
    large, small = (load_model(tmp_path / f"{name}.onnx") for name in ("large", "small"))
    Trained(str(tmp_path / "small.onnx")).check(small, large, "large.onnx")


@pytest.mark.deep
def test_a_trained_model_of_another_interface_is_refused(folder: Path, tmp_path: Path) -> None:
    save_model(rnn_model(sparse_layer(8, 0.5)), tmp_path / "other.onnx")
    options = ("--trained", tmp_path / "other.onnx", "--data", folder / "data.npz", "-o", tmp_path / "out")
    refused(call("optimize", folder / "model.onnx", *options), "other.onnx", "input x is [any, any, 8]")
    missing = ("--trained", tmp_path / "none.onnx", "--data", folder / "data.npz", "-o", tmp_path / "out")
    refused(call("optimize", folder / "model.onnx", *missing), "none.onnx", "no such file")
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(("name", "worth", "tasks"), [
    ("onnxruntime", 0.0, 2), ("onnxruntime", np.inf, 1), ("openvino", 0.0, 2), ("openvino", np.inf, 1),
])  # fmt: skip
def test_threads_share_a_layer_where_it_measures_faster(
    name: str, worth: float, tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats_module, "SHARED", worth)
    model = rnn_model(sparse_layer(64, 0.1))
    feeds = feeds_for(model, 5, 1, 0)
    formats = {place.name: "i8" for place in sparse_places(model)}
    with pytest.MonkeyPatch.context() as kept:
        written: list[int] = []
        kept.setattr(formats_module, "SparseOps", recording(written))
        made = build_sparse(model, name, formats, "sparse-i8", 2, tmp_path / "made", [feeds])
    assert written[-1] == tasks and sorted(set(written)) == [1, 2]
    outputs = open_session(made, 2).run(feeds)
    expected = Reference(rewrite(model, RoundWeights(formats))).run(feeds)
    assert all(error(outputs[key], want) <= 3 * FORMATS["i8"].error for key, want in expected.items())
    assert [path.name for path in made.file.parent.iterdir() if path.is_dir()] == []


def recording(written: list[int]) -> type[SparseOps]:
    """Returns `SparseOps` that notes how many tasks it divides a step into."""

    class Recorded(SparseOps):
        def __init__(self, formats: dict[str, str], threads: int = 1) -> None:
            written.append(threads)
            super().__init__(formats, threads)

    return Recorded
