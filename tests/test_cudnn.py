"""torch's LSTM as a runtime: its numerics on the CPU, and on a GPU where there is one; what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from lstmopt.bridge.deployed import DeployedModule
from lstmopt.errors import LstmoptError
from lstmopt.measure.bare import random_layer
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.files import save_model
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import cuda, cudnn_session, open_session, runtime, stand_in
from lstmopt.runtimes.cudnn import CUDNN, TORCH
from lstmopt.runtimes.cudnn_session import CuDnnSession
from tests.recurrent import feeds_of, in_onnxruntime, recurrent
from tests.test_cli_errors import call, refused
from tests.test_rnn_scan import resampled

ENGINE = runtime("cudnn")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(cuda.gpu() is None, reason="no GPU"))]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def in_float64(weights: Any, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> dict[str, np.ndarray]:
    """ONNX's equations, gates in its order i, o, f, c."""
    steps, batch, _ = x.shape
    ys, hs, cs = [], [], []
    for direction in range(weights.num_directions):
        w, r = (a[direction].astype(np.float64) for a in (weights.w, weights.r))
        b = weights.b[direction].astype(np.float64).sum(axis=0)
        state, cell = h[direction].astype(np.float64), c[direction].astype(np.float64)
        y = np.zeros((steps, batch, weights.hidden_size))
        for step in range(steps) if direction == 0 else reversed(range(steps)):
            i, o, f, g = (x[step].astype(np.float64) @ w[k].T + state @ r[k].T + b[k] for k in range(4))
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            state = sigmoid(o) * np.tanh(cell)
            y[step] = state
        ys.append(y)
        hs.append(state)
        cs.append(cell)
    return {"y": np.stack(ys, axis=1), "h_n": np.stack(hs), "c_n": np.stack(cs)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "limit"), [("f32", 1e-5), ("f16", 1e-3)])
@pytest.mark.parametrize(("directions", "states"), [(1, False), (1, True), (2, True)])
def test_it_computes_the_layer(
    device: str, precision: str, limit: float, directions: int, states: bool, tmp_path: Path
) -> None:
    weights = random_layer(LSTM, 40, 24, directions, seed=3)
    save_model(rnn_model(weights, states=states), tmp_path / "m.onnx")
    made = ENGINE.build(tmp_path / "m.onnx", precision, tmp_path / "b")
    rng = np.random.default_rng(4)
    x = rng.standard_normal((12, 3, 24)).astype(np.float32)
    h, c = (0.5 * rng.standard_normal((directions, 3, 40)).astype(np.float32) for _ in range(2))
    if not states:
        h, c = np.zeros_like(h), np.zeros_like(c)
    session = CuDnnSession(made, device, ENGINE.forms)
    feeds = {"x": x, **({"h_0": h, "c_0": c} if states else {})}
    got, expected = session.run(feeds), in_float64(weights, x, h, c)
    assert set(got) == ({"y", "h_n", "c_n"} if states else {"y"})
    for name, array in got.items():
        assert array.dtype == np.float32
        assert np.abs(array - expected[name]).max() < limit * np.ptp(expected[name])
    session.bind(feeds)()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize(
    "form",
    [
        {"direction": "reverse"},
        {"activations": ["Sigmoid", "Relu", "Tanh"]},
        {"peepholes": True},
        {"clip": 0.2},
        {"input_forget": 1},
        {"kind": "RNN"},
        {"kind": "GRU"},
        {"kind": "GRU", "linear_before_reset": 1},
        {"direction": "bidirectional", "states": True},
    ],
    ids=str,
)
def test_what_cudnn_has_not_is_computed_all_the_same(
    form: dict[str, Any], precision: str, device: str, tmp_path: Path
) -> None:
    model = recurrent(**form)
    save_model(ir.from_proto(model), tmp_path / "m.onnx")
    session = CuDnnSession(ENGINE.build(tmp_path / "m.onnx", precision, tmp_path / "b"), device, ENGINE.forms)
    feeds = feeds_of(model)
    got, expected = session.run(feeds), in_onnxruntime(model, feeds)
    assert set(got) == set(expected)
    for name, array in got.items():
        assert array.dtype == np.float32
        limit = {"f32": 1e-5, "f16": 5e-3}[precision]
        assert np.abs(array - expected[name]).max() < limit * np.ptp(expected[name])
    session.bind(feeds)()


def stacked(hidden: tuple[int, ...], read: str = "") -> onnx.ModelProto:
    """LSTMs in a row with states, as torch exports them; `read`: a value between them that is an output."""
    rng = np.random.default_rng(5)
    nodes, inputs, outputs, constants = [], [], [], {"axis": np.array([1])}
    before, width = "x", 24
    for k, size in enumerate(hidden):
        shapes = {f"w{k}": (1, 4 * size, width), f"r{k}": (1, 4 * size, size), f"b{k}": (1, 8 * size)}
        for name, shape in shapes.items():
            constants[name] = (rng.standard_normal(shape) / np.sqrt(size)).astype(np.float32)
        given, results = [f"h{k}", f"c{k}"], [f"h{k}_out", f"c{k}_out"]
        nodes.append(
            onnx.helper.make_node(
                "LSTM", [before, *shapes, "", *given], [f"y{k}", *results], hidden_size=size, name=f"lstm{k}"
            )
        )
        nodes.append(onnx.helper.make_node("Squeeze", [f"y{k}", "axis"], [f"z{k}"]))
        inputs += [(name, [1, "batch", size]) for name in given]
        outputs += [(name, [1, "batch", size]) for name in results]
        before, width = f"z{k}", size
    outputs.append((before, ["steps", "batch", width]))
    if read:
        outputs.append((read, {"z": ["steps", "batch", 40], "y": ["steps", 1, "batch", 40]}[read[0]]))

    def info(name: str, shape: Any) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = onnx.helper.make_graph(
        nodes, "stack", [info("x", ["steps", "batch", 24]), *(info(*item) for item in inputs)],
        [info(*item) for item in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize(
    ("hidden", "read", "forms"),
    [
        ((40,), "", ("apart", "padded")),
        ((128, 128), "", ("apart", "stacked", "padded")),
        ((40, 40, 40), "", ("apart", "stacked", "padded")),
        ((40, 32), "", ("apart", "padded")),
        ((40, 40), "z0", ("apart", "padded")),
        ((40, 40), "y0", ("apart", "padded")),
    ],
    ids=str,
)
def test_every_form_computes_the_same(
    hidden: tuple[int, ...], read: str, forms: tuple[str, ...], batch: int, device: str, tmp_path: Path
) -> None:
    model = stacked(hidden, read)
    save_model(ir.from_proto(model), tmp_path / "m.onnx")
    made = ENGINE.build(tmp_path / "m.onnx", "f32", tmp_path / "b")
    rng = np.random.default_rng(6)
    shapes = {"x": (7, batch, 24)} | {
        f"{kind}{k}": (1, batch, size) for k, size in enumerate(hidden) for kind in "hc"
    }
    calls = [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(2)
    ]
    session = CuDnnSession(made, device, ENGINE.forms)
    assert session.module.forms == forms
    for form in forms:
        only = CuDnnSession(made.model_copy(update={"settings": {"form": form}}), device, ENGINE.forms)
        for feeds in (*calls, calls[0]):  # the others find the buffers of the first, on a GPU in a graph
            expected = in_onnxruntime(model, feeds)
            got = only.run(feeds)
            assert list(got) == [value.name for value in model.graph.output]
            for name, array in got.items():
                assert array.shape == expected[name].shape
                assert np.abs(array - expected[name]).max() < 1e-5 * np.ptp(expected[name]), (form, name)
            assert only.form == form
    session.bind(calls[0])()
    assert session.form in forms


@pytest.mark.skipif(cuda.gpu() is None, reason="no GPU")
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize(("hidden", "batch"), [(40, 1), (40, 3), (256, 8), (392, 1), (1024, 1)])
def test_persistent_kernels_compute_the_layer(
    kind: str, hidden: int, batch: int, bidirectional: bool
) -> None:
    form: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    direction = "bidirectional" if bidirectional else "forward"
    model = recurrent(kind, direction, hidden=hidden, inputs=24, states=True, **form)
    for name in ("W", "R"):
        weight = next(item for item in model.graph.initializer if item.name == name)
        scaled = onnx.numpy_helper.to_array(weight) / np.sqrt(hidden)
        weight.CopyFrom(onnx.numpy_helper.from_array(scaled.astype(np.float32), name))
    rng = np.random.default_rng(10)
    sizes = {"sequence": 12, "batch": batch}
    feeds = {
        value.name: rng.standard_normal(
            [sizes.get(axis.dim_param, axis.dim_value) for axis in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in model.graph.input
    }
    module = DeployedModule(ir.from_proto(model), "f16", "cuda", ("persistent",))
    assert module.forms == ("persistent",)
    with torch.inference_mode():
        got = module({name: torch.from_numpy(array).cuda() for name, array in feeds.items()})
    for name, array in in_onnxruntime(model, feeds).items():
        assert np.abs(got[name].float().cpu().numpy() - array).max() < 4e-3 * np.ptp(array)


@pytest.mark.parametrize("bias", [np.ones(5, np.float32), np.ones((1, 5), np.float32), np.float32(1)])
def test_a_product_and_its_bias_are_one_step(bias: np.ndarray) -> None:
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    layer = recurrent()
    weight = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    layer.graph.node.extend([node("MatMul", ["y", "w"], ["p"]), node("Add", ["b", "p"], ["z"])])
    for name, array in (("w", weight), ("b", np.asarray(bias))):
        layer.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    layer.graph.output.append(info("z", onnx.TensorProto.FLOAT, None))
    module, feeds = DeployedModule(ir.from_proto(layer), "f32", "cpu"), feeds_of(layer)
    names = [step.op for step, _, _ in module._programs["apart"].steps]
    assert ("MatMul" in names) == (np.ndim(bias) != 1)
    with torch.inference_mode():
        got = module({name: torch.from_numpy(array) for name, array in feeds.items()})
    for name, array in in_onnxruntime(layer, feeds).items():
        np.testing.assert_allclose(got[name].numpy(), array, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "limit"), [("f32", 1e-5), ("f16", 5e-3)])
def test_the_reference_model_runs_whole(device: str, precision: str, limit: float, tmp_path: Path) -> None:
    from lstmopt.reference.char_lm import model_path

    model = onnx.load(model_path())
    session = CuDnnSession(ENGINE.build(model_path(), precision, tmp_path / "b"), device, ENGINE.forms)
    rng = np.random.default_rng(7)
    feeds: dict[str, Any] = {"tokens": rng.integers(0, 97, (35, 1))}
    for name in ("h_0", "c_0", "h_1", "c_1"):
        feeds[name] = (0.5 * rng.standard_normal((1, 1, 392))).astype(np.float32)
    got, expected = session.run(feeds), in_onnxruntime(model, feeds)
    for name, array in got.items():
        assert np.abs(array - expected[name]).max() < limit * np.ptp(expected[name])
    assert session.module.forms == ENGINE.forms[: 4 if (device, precision) == ("cuda", "f16") else 3]
    for _ in range(2):  # as a graph
        again = session.run(feeds)
        assert session.graphed == (device == "cuda")
        for name, array in again.items():
            np.testing.assert_allclose(array, got[name], rtol=0, atol=1e-3 * np.ptp(array))
    session.bind(feeds)()
    assert device == "cpu" or session.graphed


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    weights = random_layer(LSTM, 8, 4, 1, 0)
    save_model(rnn_model(weights), tmp_path / "m.onnx")
    with pytest.raises(LstmoptError, match="precision int8: cudnn does not run it"):
        ENGINE.build(tmp_path / "m.onnx", "int8", tmp_path / "b")
    weights.w[0, 0, 0, 0] = 1e5
    save_model(rnn_model(weights), tmp_path / "m.onnx")
    with pytest.raises(LstmoptError, match="is beyond f16; use f32"):
        ENGINE.build(tmp_path / "m.onnx", "f16", tmp_path / "b")


@pytest.mark.parametrize(
    ("op", "number", "said"),
    [("Mul", -1e9, "'k': holds 1e\\+09, beyond f16"), ("Add", 1e-8, "'k': holds 1e-08, which is 0 in f16")],
)
def test_constants_that_f16_falsifies_are_refused(op: str, number: float, said: str, tmp_path: Path) -> None:
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    layer = recurrent()
    layer.graph.node.append(node(op, ["y", "k"], ["z"]))
    layer.graph.initializer.append(onnx.numpy_helper.from_array(np.array(number, np.float32), "k"))
    layer.graph.output.append(info("z", onnx.TensorProto.FLOAT, None))
    with pytest.raises(LstmoptError, match=said):
        DeployedModule(ir.from_proto(layer), "f16", "cpu")
    DeployedModule(ir.from_proto(layer), "f32", "cpu")


def test_sizes_in_floats_are_refused_in_f16() -> None:
    model = ir.from_proto(resampled([onnx.helper.make_node("Neg", ["z"], ["y"])]))
    with pytest.raises(LstmoptError, match="computes sizes or indices in floats; use f32"):
        DeployedModule(model, "f16", "cpu")
    x = np.ones((4099, 2), np.float32)
    got = DeployedModule(model, "f32", "cpu")({"x": torch.from_numpy(x)})["y"]
    assert tuple(got.shape) == (2049, 2)


def mixed_stack(kind: str, bidirectional: bool, reset: int) -> onnx.ModelProto:
    """Three layers in a row, the first without states, the second without B."""
    rng = np.random.default_rng(8)
    gates, directions, size = {"LSTM": 4, "GRU": 3}[kind], 1 + bidirectional, 40
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes, constants = [], {"axis": np.array([1]), "joined": np.array([0, 0, -1])}
    inputs, outputs = [info("x", onnx.TensorProto.FLOAT, ["steps", "batch", 24])], []
    before, width = "x", 24
    for k in range(3):
        shapes = {f"w{k}": (directions, gates * size, width), f"r{k}": (directions, gates * size, size)}
        if k != 1:
            shapes[f"b{k}"] = (directions, 2 * gates * size)
        for name, shape in shapes.items():
            constants[name] = (0.3 * rng.standard_normal(shape)).astype(np.float32)
        states = [f"{name}{k}" for name in ("hc" if kind == "LSTM" else "h")]
        given = states if k else []
        form: dict[str, Any] = {"hidden_size": size}
        form |= {"linear_before_reset": reset} if kind == "GRU" else {}
        form |= {"direction": "bidirectional"} if bidirectional else {}
        operands = [before, f"w{k}", f"r{k}", f"b{k}" if k != 1 else "", "", *given]
        results = [f"{name}_out" for name in states]
        nodes.append(node(kind, operands, [f"y{k}", *results], **form))
        inputs += [info(name, onnx.TensorProto.FLOAT, [directions, "batch", size]) for name in given]
        outputs += [info(name, onnx.TensorProto.FLOAT, [directions, "batch", size]) for name in results]
        if bidirectional:
            nodes.append(node("Transpose", [f"y{k}"], [f"t{k}"], perm=[0, 2, 1, 3]))
            nodes.append(node("Reshape", [f"t{k}", "joined"], [f"z{k}"]))
        else:
            nodes.append(node("Squeeze", [f"y{k}", "axis"], [f"z{k}"]))
        before, width = f"z{k}", directions * size
    outputs.append(info(before, onnx.TensorProto.FLOAT, ["steps", "batch", width]))
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = onnx.helper.make_graph(nodes, "mixed", inputs, outputs, tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("kind", "reset"), [("LSTM", 0), ("GRU", 0), ("GRU", 1)])
@pytest.mark.parametrize(("precision", "limit"), [("f32", 1e-5), ("f16", 1e-2)])
def test_a_batch_may_change_within_a_session(
    precision: str, limit: float, kind: str, reset: int, bidirectional: bool, device: str
) -> None:
    """Layers with and without states and B, in a row."""
    model = mixed_stack(kind, bidirectional, reset)
    module = DeployedModule(ir.from_proto(model), precision, device)
    reset_after = kind == "LSTM" or reset
    assert ("persistent" in module.forms) == bool(device == "cuda" and precision == "f16" and reset_after)
    rng = np.random.default_rng(9)
    for form in module.forms:
        module.form = form
        for steps, batch in ((5, 3), (7, 1), (5, 8), (5, 3)):
            sizes = {"steps": steps, "batch": batch}
            feeds = {
                value.name: rng.standard_normal(
                    [sizes.get(axis.dim_param, axis.dim_value) for axis in value.type.tensor_type.shape.dim]
                ).astype(np.float32)
                for value in model.graph.input
            }
            expected = in_onnxruntime(model, feeds)
            with torch.inference_mode():
                placed = {n: torch.from_numpy(array).to(device, module.dtype) for n, array in feeds.items()}
                got = module(placed)
            for name, array in expected.items():
                assert tuple(got[name].shape) == array.shape
                error = np.abs(got[name].float().cpu().numpy() - array).max()
                assert error < limit * np.ptp(array), (form, batch, name)


@pytest.mark.skipif(cuda.gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    status = ENGINE.status()
    assert not status.usable and status.reason.startswith(cuda.NO_GPU) and ENGINE.precisions() == ()
    assert status.ahead == ("f32", "f16")
    save_model(rnn_model(random_layer(LSTM, 8, 4, 1, 0)), tmp_path / "m.onnx")
    made = ENGINE.build(tmp_path / "m.onnx", "f32", tmp_path / "b")
    with pytest.raises(LstmoptError, match="cudnn: no NVIDIA GPU or driver here; run it where there"):
        open_session(made, 1)
    result = call("probe", "--target", "cudnn", "--hidden-size", 64, "-o", tmp_path / "probe")
    refused(result, "no NVIDIA GPU or driver here")


@pytest.fixture
def chained(tmp_path: Path) -> tuple[onnx.ModelProto, CuDnnSession]:
    model = stacked((40, 40))
    save_model(ir.from_proto(model), tmp_path / "m.onnx")
    made = ENGINE.build(tmp_path / "m.onnx", "f32", tmp_path / "b")
    return model, CuDnnSession(made, "cpu", ENGINE.forms)


def inputs(steps: int = 7, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (steps, batch, 24), **{name: (1, batch, 40) for name in ("h0", "c0", "h1", "c1")}}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_graph_is_replayed_on_new_inputs(
    chained: tuple[onnx.ModelProto, CuDnnSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in for a graph here writes, as one does, where the captured call has written."""
    model, session = chained
    replays = []

    def captured(_: Any, launch: Any) -> Any:
        launch()
        held = {
            name: cell for name, cell in zip(launch.__code__.co_freevars, launch.__closure__, strict=True)
        }
        places = dict(held["outputs"].cell_contents)

        def replay() -> None:
            launch()
            with torch.inference_mode():
                for name, place in places.items():
                    held["outputs"].cell_contents[name] = place.copy_(held["outputs"].cell_contents[name])
            replays.append(1)

        return replay

    monkeypatch.setattr(cuda, "captured", captured)
    first = session.run(inputs(seed=1))
    before = {name: array.copy() for name, array in first.items()}
    assert not session.graphed
    session._device = "cuda"
    for seed in (2, 3):
        feeds = inputs(seed=seed)
        got, expected = session.run(feeds), in_onnxruntime(model, feeds)
        assert session.graphed
        for name, array in got.items():
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5)
    assert len(replays) == 2
    for name, array in first.items():  # what was handed out is the caller's
        np.testing.assert_array_equal(array, before[name])


def test_shapes_that_are_not_used_any_more_are_forgotten(
    chained: tuple[onnx.ModelProto, CuDnnSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, session = chained
    monkeypatch.setattr(cudnn_session, "KEPT", 2)
    for steps in (3, 4, 3, 5, 3, 4):
        feeds = inputs(steps=steps, seed=steps)
        got, expected = session.run(feeds), in_onnxruntime(model, feeds)
        assert all(np.abs(got[name] - expected[name]).max() < 1e-5 for name in got)
        assert len(session._calls) <= 2
    assert [shapes[0][0] for shapes in session._calls] == [3, 4]


@pytest.mark.parametrize(("off", "fastest"), [(0.0, "stacked"), (1.0, "padded")])
def test_the_fastest_form_that_agrees_is_taken(
    off: float, fastest: str, chained: tuple[onnx.ModelProto, CuDnnSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, session = chained
    times = {"apart": 3.0, "stacked": 1.0, "padded": 2.0}
    plain = session.module.__class__.__call__

    def computed(module: DeployedModule, feeds: Any) -> Any:
        found = plain(module, feeds)
        return {name: value + off * (module.form == "stacked") for name, value in found.items()}

    monkeypatch.setattr(DeployedModule, "__call__", computed)
    monkeypatch.setattr(cuda, "captured", lambda torch, launch: None)
    monkeypatch.setattr(
        cuda,
        "event_times",
        lambda torch, launch, count: (launch(), np.array([times[session.module.form]]))[1],
    )
    tensors = session.placed(inputs())
    session._device = "cuda"
    assert session._tried(tensors).form == fastest

    def missing(module: DeployedModule, feeds: Any) -> Any:
        if module.form != "apart":
            raise LstmoptError("cuDNN", "no such kernel", "")
        return plain(module, feeds)

    monkeypatch.setattr(DeployedModule, "__call__", missing)
    assert session._tried(tensors).form == "apart"  # what was chosen has no kernel for these
    session._chosen = None
    assert session._tried(tensors).form == "apart"


def test_infinities_and_nothing_agree_with_themselves_alone(
    chained: tuple[onnx.ModelProto, CuDnnSession],
) -> None:
    _, session = chained
    inf, nan = float("inf"), float("nan")
    agree = {
        tuple(values): torch.tensor(values) for values in ([1.0, -inf, nan], [1.0, inf, nan], [1.0, 0.0, nan])
    }
    for a, one in agree.items():
        for b, other in agree.items():
            assert session._agree(one, other) == (a is b)
    assert session._agree(torch.tensor([-inf, 1.0]), torch.tensor([-inf, 1.0 + 1e-6]))
    assert not session._agree(torch.tensor([-inf, 1.0]), torch.tensor([-inf, 1.1]))
    assert session._agree(torch.zeros(0), torch.zeros(0))
    assert not session._agree(torch.tensor([1, 2]), torch.tensor([1, 3]))


def test_building_tries_the_model_where_it_will_run(tmp_path: Path) -> None:
    here = replace(CUDNN, device="cpu")
    model = stacked((40, 40))
    save_model(ir.from_proto(model), tmp_path / "m.onnx")
    made = here.build(tmp_path / "m.onnx", "f32", tmp_path / "b", [inputs()])
    assert made.settings == {"form": "apart"}
    assert ENGINE.build(tmp_path / "m.onnx", "f32", tmp_path / "c").settings == {}
    session = here.open(made.model_copy(update={"settings": {"form": "padded"}}), 1)
    got = session.run(inputs())
    assert session.form == "padded" and session.module.forms == ("apart", "padded")
    for name, array in in_onnxruntime(model, inputs()).items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5)
    model.graph.node.append(onnx.helper.make_node("Reshape", ["x", "size"], ["z"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 5]), "size"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["rows", 5]))
    save_model(ir.from_proto(model), tmp_path / "m.onnx")
    with pytest.raises(LstmoptError, match="torch cannot run it on cpu"):
        here.build(tmp_path / "m.onnx", "f32", tmp_path / "d", [inputs()])


@pytest.mark.skipif(cuda.gpu() is not None, reason="there is a GPU")
def test_export_writes_for_a_gpu_elsewhere(tmp_path: Path) -> None:
    save_model(rnn_model(random_layer(LSTM, 8, 4, 1, 0)), tmp_path / "m.onnx")
    options = "--runtime", "cudnn", "--format", "f16", "-o", tmp_path / "out"
    told = call("export", tmp_path / "m.onnx", *options)
    assert told.returncode == 0, told.stderr
    assert "lstmopt.open_artifact" in told.stdout and "build.sh" not in told.stdout
    assert "not run in cudnn" in told.stdout and {p.name for p in (tmp_path / "out").iterdir()} == {
        "model.onnx",
        "manifest.json",
    }


@pytest.mark.skipif(cuda.gpu() is not None, reason="there is a GPU")
@pytest.mark.parametrize("engine", [TORCH, CUDNN])
def test_torch_on_the_cpu_stands_in_in_the_same_precision(engine: Any, tmp_path: Path) -> None:
    model = stacked((40, 40))
    save_model(ir.from_proto(model), tmp_path / "m.onnx")
    feeds = inputs()
    expected, errors = in_onnxruntime(model, feeds), {}
    for precision in ("f32", "f16"):
        made = engine.build(tmp_path / "m.onnx", precision, tmp_path / precision)
        standing = stand_in(made)
        assert standing.runtime == "torch-cpu"
        got = open_session(standing, 1).run(feeds)
        errors[precision] = max(np.abs(got[name] - expected[name]).max() for name in expected)
    assert errors["f32"] < 1e-5 < 1e-4 < errors["f16"] < 5e-3
