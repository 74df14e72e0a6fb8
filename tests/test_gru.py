"""GRUs from end to end: folded means, latency tables, a trained and verified artifact, an `nn.GRU`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import lstmopt
from lstmopt.cli import cli
from lstmopt.errors import LstmoptError
from lstmopt.measure.bare import build_bare, random_layer
from lstmopt.measure.kind import Kind
from lstmopt.measure.table import LatencyTable
from lstmopt.passes import Export, GrowPrune, Resize, Simplify, Verify
from lstmopt.passes.latency import fitting, free_layers, latency_models
from lstmopt.rnn.cells import GRU
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.folding import fold_means, measure
from lstmopt.rnn.groups import analyse
from lstmopt.rnn.inspection import inspect_model
from lstmopt.rnn.plan import Plan
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.states import fixed_batch
from lstmopt.rnn.surgery import resize
from lstmopt.rnn.writer import rnn_model, write_weights
from lstmopt.runtimes import open_session
from lstmopt.runtimes import runtime as find_runtime
from lstmopt.runtimes.ops import sparse_layer_model
from lstmopt.runtimes.stateful import make_stateful
from lstmopt.sparsity.formats import format_named
from lstmopt.sparsity.formats.layers import pack_layer
from lstmopt.targets import RuntimeTarget, Target
from tests.graphs import Builder
from tests.ops import needs_ops
from tests.test_measure_table import table

ONE = Target(name="one", runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32", "sparse-i8")),))


def classifier(after: int, hidden: int = 48, direction: str = "bidirectional", seed: int = 0) -> ir.Model:
    """A GRU over frames, the mean over time, logits of four classes."""
    b, dirs = Builder(17, np.random.default_rng(seed)), 2 if direction == "bidirectional" else 1
    x = b.input("x", TensorProto.FLOAT, ["batch", "sequence", 6])
    scale = 1 / np.sqrt(hidden)
    arrays = [
        b.floats(dirs, 3 * hidden, 6), b.floats(dirs, 3 * hidden, hidden, scale=scale),
        b.floats(dirs, 6 * hidden, scale=0.2),
    ]  # fmt: skip
    inputs = [b.one("Transpose", x, perm=[1, 0, 2]), *map(b.initializer, arrays)]
    b.nodes.append(
        helper.make_node(
            "GRU", inputs, ["y"], name="gru", hidden_size=hidden, direction=direction,
            linear_before_reset=after,
        )
    )  # fmt: skip
    rows = b.one("Reshape", b.one("Transpose", "y", perm=[2, 0, 1, 3]), b.ints(0, 0, dirs * hidden))
    mean = b.axes("ReduceMean", rows, [1], since=18, keepdims=0)
    logits = b.one(
        "Gemm", mean, b.initializer(b.floats(dirs * hidden, 4)), b.initializer(b.floats(4, scale=0.1))
    )
    b.output("logits", logits, ["batch", 4])
    return ir.from_proto(b.proto())


@pytest.mark.parametrize("after", [0, 1])
def test_folding_keeps_what_constant_units_gave(after: int) -> None:
    """Into Rb of every gate that adds the state; not where the state is reset before R reads it."""
    model = classifier(after, hidden=10, direction="forward")
    (layer,) = find_rnns(model)
    w, r, b = layer.weights.w.copy(), layer.weights.r.copy(), layer.weights.b.copy()
    gone = [2, 6]
    for unit in gone:
        # A closed update gate: h = tanh(b_h) at every step but the first, whose R columns see 0.
        w[:, :, unit] = r[:, :, unit] = b[:, :, :, unit] = 0
        b[:, 0, 0, unit], b[:, 0, 2, unit] = -60, 0.6
    if not after:
        r[:, 2][..., gone] = 0
    write_weights(model, layer, replace(layer.weights, w=w, r=r, b=b))
    rng = np.random.default_rng(1)
    calls = [{"x": rng.standard_normal((2, 400, 6)).astype(np.float32)} for _ in range(2)]
    small = resize(model, {"gru": 8}, calibration=calls).model
    assert [each.weights.hidden_size for each in find_rnns(small)] == [8]
    expected, folded = (run_model(each, calls[0])["logits"] for each in (model, small))
    plain = run_model(resize(model, {"gru": 8}).model, calls[0])["logits"]
    # The first step alone differs: the mean over 400 steps hardly sees it.
    assert np.abs(folded - expected).max() < 0.02 * np.abs(plain - expected).max()

    r[:, 2][..., gone], r[:, :, gone] = 1.0, 0.0
    write_weights(model, find_rnns(model)[0], replace(layer.weights, w=w, r=r, b=b))
    analysis, kept = analyse(model), [unit for unit in range(10) if unit not in gone]
    moments = measure(model, analysis, calls)
    fold_means(model, Plan(analysis, {1: np.array(kept)}), moments)
    moved = find_rnns(model)[0].weights.b - b
    assert not moved[:, 0].any() and np.abs(moved[0, 1, :2]).max() > 0.01
    np.testing.assert_allclose(moved[0, 1, 2, kept], 2 * np.tanh(0.6) * after, rtol=0.01, atol=0)


def test_inspect_describes_a_gru() -> None:
    seen = inspect_model(classifier(1))
    assert [(layer.kind, layer.hidden_size, layer.supported) for layer in seen.layers] == [("GRU", 48, True)]
    assert seen.groups[0].resizable and seen.rnn_parameters == 2 * 3 * 48 * (6 + 48)
    assert not any("GRU" in note for note in seen.notes)


@needs_ops
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("after", [False, True])
def test_a_bare_layer_is_built_in_every_precision(tmp_path: Path, runtime: str, after: bool) -> None:
    weights = random_layer(GRU, 40, 24, 2, 3, after)
    x = np.random.default_rng(0).standard_normal((7, 2, 24)).astype(np.float32)
    want = run_model(rnn_model(weights), {"x": x})["y"]
    kinds = [Kind(runtime, "f32"), Kind(runtime, "sparse-f32", "unstructured", 1.0)]
    if runtime == "onnxruntime":
        kinds.append(Kind(runtime, "int8"))  # which leaves a GRU as it is
    for kind in kinds:
        folder = tmp_path / kind.precision
        folder.mkdir()
        made = build_bare(weights, kind, folder, sequence=7, batch=2)
        np.testing.assert_allclose(open_session(made, 1).run({"x": x})["y"], want, atol=2e-6)


def test_tables_are_of_one_cell_and_reset_form(tmp_path: Path) -> None:
    (layer,) = free_layers(analyse(classifier(1)))
    assert (layer.cell, layer.reset_after) == ("GRU", True)
    fields = {
        "runtime": "onnxruntime", "input_size": 6, "directions": 2, "sequence": ONE.shapes[0].sequence,
        "dimensions": (8, 48), "curve": {8: 1.0, 48: 3.0}, "samples": {}, "hysteresis_points": (48, 8),
    }  # fmt: skip
    of_lstm, before = table(**fields), table(**fields, cell="GRU")
    right = table(**fields, cell="GRU", reset_after=True)
    right.save(tmp_path / "t.json")
    assert fitting((of_lstm, before, LatencyTable.load(tmp_path / "t.json")), layer, ONE) == [
        right.model_copy(update={"layer": "gru"})
    ]
    (model,) = latency_models(classifier(1), [of_lstm, right], (), ONE)
    assert model.parameters({"gru": 8}) == 2 * 3 * 8 * (6 + 8)


@needs_ops
@pytest.mark.parametrize("after", [0, pytest.param(1, marks=pytest.mark.deep)])
def test_a_classifier_is_shrunk_pruned_and_verified(tmp_path: Path, after: int) -> None:
    """Gate-shared masks of three gates, rounded to i8-shared in training, our op in the artifact."""
    model, rng = classifier(after), np.random.default_rng(2)
    save_model(model, tmp_path / "model.onnx")
    data = {"x": rng.standard_normal((80, 12, 6)).astype(np.float32)}
    stages = (
        Simplify(),
        Resize(hidden_size=32),
        GrowPrune(density=0.25, steps=12, pattern="gate-shared64:step4", rounding="i8-shared", amp=False),
        Export(3),
        Verify(),
    )
    result = lstmopt.Pipeline(*stages).run(
        tmp_path / "model.onnx", target=ONE, data=data, output=tmp_path / "out", max_degradation=100.0
    )
    (layer,) = find_rnns(result.model)
    assert layer.weights.hidden_size == 32 and layer.weights.reset_after == bool(after)
    union = (layer.weights.r != 0).any(axis=1)
    assert union.mean() < 0.3 and np.count_nonzero(layer.weights.r) > 0.8 * 3 * union.sum()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["lstms"][0]["hidden_size"] == {"before": 48, "after": 32}
    shipped = load_model(tmp_path / "out" / "model.onnx")
    assert [node.op_type for node in shipped.graph if node.op_type == "GRU"] == ["GRU"]


@pytest.mark.deep
def test_a_module_with_a_gru_comes_back_smaller(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(6, 40, num_layers=2, bidirectional=True, batch_first=True)
            self.out = nn.Linear(80, 4)

        def forward(self, sound: torch.Tensor) -> torch.Tensor:
            return self.out(self.rnn(sound)[0])

    torch.manual_seed(0)
    axes = {0: "batch", 1: "sequence"}
    data = {"sound": np.random.default_rng(0).standard_normal((60, 9, 6)).astype(np.float32)}
    stages = (
        Simplify(),
        Resize(hidden_size=16),
        GrowPrune(density=0.4, steps=8, pattern="unstructured", amp=False),
        Export(3),
    )
    new, artifact = lstmopt.optimize_module(
        Speech().eval(), torch.randn(2, 9, 6), output=tmp_path / "out", stages=stages, data=data,
        dynamic_axes={"sound": axes, "output": axes}, max_degradation=100.0,
        target=Target(name="one", runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32",)),)),
    )  # fmt: skip
    assert isinstance(new.rnn, nn.GRU) and (new.rnn.hidden_size, new.rnn.num_layers) == (16, 2)
    assert new.out.in_features == 32 and new.rnn.weight_hh_l1_reverse.shape == (48, 16)
    graph = load_model(artifact / "model.onnx")
    with torch.no_grad():
        ours = new(torch.from_numpy(data["sound"][:3])).numpy()
    theirs = run_model(graph, {"sound": data["sound"][:3]})["output"]
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * (1 + np.abs(theirs).max()))
    new.train()
    new(torch.randn(2, 9, 6)).square().sum().backward()
    zeros = new.rnn.weight_hh_l0.detach().numpy() == 0
    assert 0.3 < zeros.mean() < 0.9


@needs_ops
@pytest.mark.parametrize("after", [False, True])
def test_states_are_carried_and_kept_inside(tmp_path: Path, after: bool) -> None:
    """Chunk by chunk with the state fed back, and as OpenVINO's variable; dense and with our op."""
    weights = random_layer(GRU, 24, 5, 1, 4, after)
    packed = pack_layer(format_named("f32"), weights)
    feeds = {"x": np.zeros((3, 2, 5), np.float32), "h_0": np.zeros((1, 2, 24), np.float32)}
    rng, truth = np.random.default_rng(5), dict(feeds)
    chunks = [rng.standard_normal((3, 2, 5)).astype(np.float32) for _ in range(30)]
    expected = []
    for chunk in chunks:
        outputs = run_model(rnn_model(weights, states=True), {"x": chunk, "h_0": truth["h_0"]})
        truth["h_0"] = outputs["h_n"]
        expected.append(outputs["y"])
    made = {
        "f32": rnn_model(weights, states=True),
        "sparse-f32": sparse_layer_model(weights, *packed, states=True),
    }
    for precision, model in made.items():
        save_model(model, tmp_path / "model.onnx")
        for name in ("openvino", "onnxruntime"):
            explicit = find_runtime(name).build(
                tmp_path / "model.onnx", precision, tmp_path / name / precision
            )
            session, state = open_session(explicit, 1), feeds["h_0"]
            for chunk, want in zip(chunks, expected, strict=True):
                outputs = session.run({"x": chunk, "h_0": state})
                state = outputs["h_n"]
                np.testing.assert_allclose(outputs["y"], want, atol=1e-5)
            if name == "openvino":
                pairs, shapes = [("h_0", "h_n")], fixed_batch(model, feeds)
                inside = open_session(make_stateful(explicit, pairs, feeds, shapes, 1), 1)
                for chunk, want in zip(chunks, expected, strict=True):
                    np.testing.assert_allclose(inside.run({"x": chunk})["y"], want, atol=1e-5)


@pytest.mark.deep
def test_a_bare_gru_is_probed_from_the_shell(tmp_path: Path) -> None:
    target = tmp_path / "one.toml"
    target.write_text('name = "one"\n[[runtimes]]\nruntime = "onnxruntime"\nprecisions = ["f32"]\n')
    arguments = ["--hidden-size", "16", "--step", "16", "--cell", "gru", "--target", str(target)]
    result = CliRunner().invoke(cli, ["probe", *arguments, "-o", str(tmp_path / "latency")])
    assert result.exit_code == 0, result.output
    (found,) = (tmp_path / "latency").glob("*.json")
    probed = LatencyTable.load(found)
    assert (probed.cell, probed.reset_after, probed.dimensions[-1]) == ("GRU", True, 16)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("names", [("Sigmoid", "Tanh"), ("HardSigmoid", "Relu"), ("Relu", "Softplus")])
def test_added_units_never_run_off(after: int, names: tuple[str, str]) -> None:
    """Also where activations have no bound: infinity times the zeros that read them would be NaN."""
    model = classifier(after, hidden=10, direction="forward")
    (layer,) = find_rnns(model)
    # The own units are kept small: gates and states near 0.
    write_weights(model, layer, replace(layer.weights, w=0.01 * layer.weights.w, r=0 * layer.weights.r))
    layer.node.attributes["activations"] = ir.AttrStrings("activations", names)
    feeds = {"x": 100 * np.random.default_rng(3).standard_normal((2, 3000, 6)).astype(np.float32)}
    large = resize(model, {"gru": 16}).model
    assert find_rnns(large)[0].weights.hidden_size == 16
    want, have = run_model(model, feeds)["logits"], run_model(large, feeds)["logits"]
    assert np.isfinite(want).all()
    np.testing.assert_allclose(have, want, atol=1e-5 * np.abs(want).max())
    layer.node.attributes["activations"] = ir.AttrStrings("activations", ("Affine", "Tanh"))
    with pytest.raises(LstmoptError, match="cannot grow: its activation Affine"):
        resize(model, {"gru": 16})
