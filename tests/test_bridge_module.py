"""The bridge's module: gradients, masks, dropout, control flow, tied and half-precision weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lstmopt.bridge.module import OnnxModule, write_back
from lstmopt.errors import LstmoptError
from lstmopt.rnn.cells import GRU, LSTM
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model

torch = pytest.importorskip("torch")
STEPS, ROWS, INPUTS, HIDDEN = 5, 3, 4, 3


def info(name, shape, element=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, element, shape)


def model_of(nodes, inputs, outputs, tensors=(), opset=17):
    initializers = [numpy_helper.from_array(array, name) for name, array in dict(tensors).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def layer(direction="forward", peepholes=False, dtype=np.float32, **form):
    rng = np.random.default_rng(3)
    dirs = 2 if direction == "bidirectional" else 1

    def draw(*shape):
        return (0.6 * rng.standard_normal(shape)).astype(dtype)

    weights = RnnWeights(
        LSTM, direction, draw(dirs, 4, HIDDEN, INPUTS), draw(dirs, 4, HIDDEN, HIDDEN),
        draw(dirs, 2, 4, HIDDEN), draw(dirs, 3, HIDDEN) if peepholes else None, **form,
    )  # fmt: skip
    return rnn_model(weights, states=True)


def feeds_of(model, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"sequence": STEPS, "batch": ROWS}
    return {
        value.name: rng.standard_normal(
            [size if isinstance(size, int) else sizes[size.value] for size in value.shape]
        ).astype(value.dtype.numpy())
        for value in model.graph.inputs
    }


FORMS = {
    "peepholes": {"peepholes": True},
    "clip": {"clip": 0.5},
    "coupled gates": {"input_forget": True},
    "activations": {
        "activations": ("HardSigmoid", "Softsign", "ScaledTanh"),
        "activation_alpha": (0.3, 1.2),
        "activation_beta": (0.4, 0.7),
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_the_loop_over_time_equals_onnx_runtime(form, direction):
    options = dict(FORMS[form])
    if direction == "bidirectional" and form == "activations":
        options = {name: value * 2 for name, value in options.items()}
    model = layer(direction, **options)
    feeds = feeds_of(model)
    with torch.no_grad():
        ours = OnnxModule(model).eval()({name: torch.from_numpy(array) for name, array in feeds.items()})
    for name, reference in run_model(model, feeds).items():
        np.testing.assert_allclose(ours[name].numpy(), reference, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("form", ["peepholes", "coupled gates", "fused"])
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_gradients_equal_numerical_differentiation(form, direction):
    model = layer(direction, dtype=np.float64, **FORMS.get(form, {}))
    module = OnnxModule(model).train()
    feeds = {name: torch.from_numpy(array).requires_grad_() for name, array in feeds_of(model).items()}
    names = list(module.weights)
    assert len(names) == (4 if form == "peepholes" else 3)

    def outputs(*values):
        return tuple(torch.func.functional_call(module, parameters(values), (feeds,)).values())

    def parameters(values):
        return {entry.key: value for entry, value in zip(module.entries, values, strict=True)}

    weights = [weight.detach().clone().requires_grad_() for weight in module.weights.values()]
    assert torch.autograd.gradcheck(outputs, weights, atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.lists(st.integers(0, STEPS), min_size=ROWS, max_size=ROWS),
    st.sampled_from(["LSTM", "GRU"]),
    st.booleans(),
)
@example("forward", [STEPS, 0, 2], "LSTM", False)
@example("reverse", [0, 0, 0], "LSTM", True)
@example("reverse", [0, 1, STEPS], "GRU", True)
@example("bidirectional", [0, 0, 0], "GRU", False)
def test_sequence_lengths(direction, lengths, kind, fused):
    """Fused and looped layers stop and reverse each sequence at its own length, and of 0 leave zeros."""
    bare = layer(direction, peepholes=not fused) if kind == "LSTM" else gru(direction, reset_after=fused)
    proto = ir.to_proto(bare)
    node = next(node for node in proto.graph.node if node.op_type == kind)
    node.input[4] = "lengths"
    proto.graph.input.append(info("lengths", ["batch"], TensorProto.INT32))
    model = ir.from_proto(proto)
    feeds = {**feeds_of(bare), "lengths": np.array(lengths, np.int32)}
    with torch.no_grad():
        ours = OnnxModule(model).eval()({name: torch.from_numpy(array) for name, array in feeds.items()})
    for name, reference in run_model(model, feeds).items():
        np.testing.assert_allclose(ours[name].numpy(), reference, atol=3e-6, err_msg=name)


def gru(direction, reset_after):
    rng = np.random.default_rng(1)
    dirs = 2 if direction == "bidirectional" else 1

    def floats(*shape):
        return (0.5 * rng.standard_normal(shape)).astype(np.float32)

    weights = RnnWeights(
        GRU, direction, floats(dirs, 3, HIDDEN, INPUTS), floats(dirs, 3, HIDDEN, HIDDEN),
        floats(dirs, 2, 3, HIDDEN), reset_after=reset_after,
    )  # fmt: skip
    return rnn_model(weights, states=True)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("reset_after", [False, True])
def test_gru(direction, reset_after):
    model = gru(direction, reset_after)
    feeds = feeds_of(model)
    module = OnnxModule(model).eval()
    assert set(module.weights) == {"W", "R", "B"}
    with torch.no_grad():
        ours = module({name: torch.from_numpy(array) for name, array in feeds.items()})
    for name, reference in run_model(model, feeds).items():
        np.testing.assert_allclose(ours[name].numpy(), reference, atol=3e-6)


def loss_of(module, feeds):
    outputs = module({name: torch.from_numpy(array) for name, array in feeds.items()})
    return sum(value.square().sum() for value in outputs.values())


def test_masked_weights_stay_zero_and_have_dense_gradients():
    model = layer()
    module, feeds = OnnxModule(model).train(), feeds_of(layer())
    rng = np.random.default_rng(0)
    masks = {name: rng.random(module.weights[name].shape) < 0.3 for name in ("W", "R")}
    module.set_masks(masks)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(module, feeds).backward()
        for name, mask in masks.items():
            assert np.count_nonzero(module.weights[name].grad.numpy()[~mask]) == (~mask).sum()
        module.mask_gradients()
        optimizer.step()
        for name, mask in masks.items():
            assert np.array_equal(module.weights[name].detach().numpy() != 0, mask), step
    with torch.no_grad():
        module.weights["W"].add_(1.0)  # whatever the weights are, what is written is masked
    written = write_back(model, module).graph.initializers
    for name, mask in masks.items():
        array = written[name].const_value.numpy()
        assert np.all(array[~mask] == 0) and np.all(array[mask] != 0)
    np.testing.assert_array_equal(model.graph.initializers["W"].const_value.numpy(), model_weights()["W"])
    with pytest.raises(KeyError):
        module.set_masks({"nothing": masks["W"]})
    with pytest.raises(ValueError, match="shape"):
        module.set_masks({"W": masks["R"]})


def model_weights():
    return {name: value.const_value.numpy() for name, value in layer().graph.initializers.items()}


def stack():
    """Two layers, the second behind a Squeeze; ``z`` is what lies between."""
    first = model_weights()
    rng = np.random.default_rng(5)
    tensors = {
        **{f"{name}1": array for name, array in first.items()},
        "W2": rng.standard_normal((1, 4 * HIDDEN, HIDDEN)).astype(np.float32),
        "R2": rng.standard_normal((1, 4 * HIDDEN, HIDDEN)).astype(np.float32),
        "axes": np.array([1]),
    }
    nodes = [
        helper.make_node("LSTM", ["x", "W1", "R1", "B1"], ["y1", "h1"], hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["y1", "axes"], ["z"]),
        helper.make_node("LSTM", ["z", "W2", "R2"], ["y2", "h2"], hidden_size=HIDDEN),
    ]
    outputs = [
        info("z", ["sequence", "batch", HIDDEN]),
        info("h1", [1, "batch", HIDDEN]),
        info("y2", [None] * 4),
    ]
    return model_of(nodes, [info("x", ["sequence", "batch", INPUTS])], outputs, tensors)


def test_dropout_falls_on_inputs_and_outputs_of_layers_but_not_on_states():
    model = stack()
    module = OnnxModule(model)
    feeds = {"x": torch.ones(40, 50, INPUTS)}
    module.dropout = 0.4
    torch.manual_seed(0)
    with torch.no_grad():
        plain = module.eval()(feeds)
        dropped = module.train()(feeds)
    zeros = {name: float((value == 0).float().mean()) for name, value in dropped.items()}
    assert zeros["z"] == pytest.approx(0.4, abs=0.02)
    assert zeros["y2"] == pytest.approx(0.4, abs=0.02)
    assert zeros["h1"] == 0 and float((plain["z"] == 0).float().mean()) == 0
    # X is dropped once: with all weights of the first layer's gates on one input, its states show it.
    assert float((dropped["h1"] - plain["h1"]).abs().max()) > 1e-3
    drops = {node.name: node.drop_input for node, _, _ in module.program.steps if node.op == "LSTM"}
    assert list(drops.values()) == [True, False]


def test_tied_weights_stay_tied():
    """An embedding that is also the decoder, transposed, gets both gradients and one value."""
    table = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["x"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    model = model_of(
        nodes, [info("tokens", ["n"], TensorProto.INT64)], [info("y", ["n", 7])], {"table": table}
    )
    module = OnnxModule(model)
    assert list(module.weights) == ["table"]
    module({"tokens": torch.tensor([1, 2])})["y"].sum().backward()
    gradient = module.weights["table"].grad.numpy()
    expected = np.tile(table[1] + table[2], (7, 1))
    expected[[1, 2]] += table.sum(axis=0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert [node.op_type for node in write_back(model, module).graph] == ["Gather", "Transpose", "MatMul"]


def test_a_weight_behind_an_expression_becomes_an_initializer_of_its_name():
    weights = model_weights()
    nodes = [
        helper.make_node("Squeeze", ["stored"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "axis"], ["W"]),
        helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=HIDDEN),
    ]
    tensors = {"stored": weights["W"], "R": weights["R"], "axis": np.array([0])}
    model = model_of(nodes, [info("x", ["sequence", "batch", INPUTS])], [info("y", [None] * 4)], tensors)
    module = OnnxModule(model)
    with torch.no_grad():
        module.weights["W"].mul_(2)
    written = write_back(model, module)
    assert [node.op_type for node in written.graph] == ["LSTM"]
    np.testing.assert_array_equal(written.graph.initializers["W"].const_value.numpy(), 2 * weights["W"])
    feeds = feeds_of(model)
    with torch.no_grad():
        ours = module.eval()({"x": torch.from_numpy(feeds["x"])})
    np.testing.assert_allclose(run_model(written, feeds)["y"], ours["y"].numpy(), atol=1e-6)


def test_half_precision_is_computed_in_float32_and_written_back_as_it_was():
    weights = {name: array.astype(np.float16) for name, array in model_weights().items()}
    node = helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=HIDDEN)
    half = TensorProto.FLOAT16
    inputs = [info("x", ["sequence", "batch", INPUTS], half)]
    model = model_of([node], inputs, [info("y", [None] * 4, half)], weights)
    module = OnnxModule(model)
    assert module.notes == ("3 half-precision weights are trained in float32",)
    outputs = module({"x": torch.zeros(2, 2, INPUTS, dtype=torch.float16)})
    assert outputs["y"].dtype == torch.float32
    written = write_back(model, module)
    for name, array in weights.items():
        assert written.graph.initializers[name].const_value.numpy().dtype == np.float16
        np.testing.assert_array_equal(written.graph.initializers[name].const_value.numpy(), array)


@pytest.mark.parametrize("trips", [1, 3])
@pytest.mark.parametrize("positive", [True, False])
def test_branches_and_loops(trips, positive):
    """If takes the branch that the data choose, each with a weight of its own; Loop carries and stacks."""

    def branch(scale):
        tensor = numpy_helper.from_array(np.full((2, 2), scale, np.float32), "w")
        node = helper.make_node("MatMul", ["x", "w"], [f"out{scale}"])
        return helper.make_graph([node], f"b{scale}", [], [info(f"out{scale}", ["n", 2])], [tensor])

    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", "chosen"], ["sum"]),
            helper.make_node("Identity", ["keep"], ["keep_out"]),
            helper.make_node("Mul", ["sum", "sum"], ["square"]),
        ],
        "body",
        [info("i", [], TensorProto.INT64), info("keep", [], TensorProto.BOOL), info("carried", ["n", 2])],
        [info("keep_out", [], TensorProto.BOOL), info("sum", ["n", 2]), info("square", ["n", 2])],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["chosen"], then_branch=branch(2), else_branch=branch(3)),
        helper.make_node("Loop", ["trips", "", "x"], ["last", "scan"], body=body),
    ]
    tensors = {"zero": np.array(0, np.float32), "trips": np.array(trips)}
    outputs = [info("last", ["n", 2]), info("scan", [None, "n", 2])]
    model = model_of(nodes, [info("x", ["n", 2])], outputs, tensors)
    feeds = {"x": np.abs(np.random.default_rng(0).standard_normal((3, 2))).astype(np.float32)}
    feeds["x"] *= 1 if positive else -1
    module = OnnxModule(model)
    assert list(module.weights) == ["w", "w#2"]
    ours = module({"x": torch.from_numpy(feeds["x"])})
    for name, reference in run_model(model, feeds).items():
        np.testing.assert_allclose(ours[name].detach().numpy(), reference, rtol=1e-6)
    ours["last"].sum().backward()
    trained = {float(weight[0, 0].detach()): weight.grad is not None for weight in module.weights.values()}
    assert trained == {2.0: positive, 3.0: not positive}
    with torch.no_grad():
        for weight in module.weights.values():
            weight.add_(0.5)
    changed = run_model(write_back(model, module), feeds)
    with torch.no_grad():
        expected = module({"x": torch.from_numpy(feeds["x"])})
    np.testing.assert_allclose(changed["last"], expected["last"].numpy(), rtol=1e-6)


def test_faults_are_one_clear_line():
    module = OnnxModule(layer())
    with pytest.raises(LstmoptError, match="input x.*missing"):
        module({})
    feeds = {name: torch.from_numpy(array) for name, array in feeds_of(layer()).items()}
    for name, shape in {"x": (STEPS, ROWS, INPUTS + 1), "h_0": (1, ROWS, HIDDEN + 1)}.items():
        with pytest.raises(LstmoptError, match=r"node rnn \(LSTM\): .* sizes .*expected"):
            module({**feeds, name: torch.zeros(shape)})


def test_values_are_freed_after_their_last_use():
    nodes = [helper.make_node("Relu", ["x" if i == 0 else f"v{i - 1}"], [f"v{i}"]) for i in range(50)]
    model = model_of(nodes, [info("x", ["n"])], [info("v49", ["n"])])
    module = OnnxModule(model).eval()
    held = []
    original = module.program.steps[-1][1]

    def watching(node, value):
        held.append(len(env))
        return original(node, value)

    node, _, bodies = module.program.steps[-1]
    module.program.steps[-1] = (node, watching, bodies)
    execute, env = module.program.execute, {}

    def watched(values):
        env.update(values)
        return execute(env)

    module.program.execute = watched
    with torch.no_grad():
        module({"x": torch.ones(4)})
    assert held[0] <= 2


def equal_onnx_runtime(model, feeds):
    with torch.no_grad():
        ours = OnnxModule(model).eval()({name: torch.from_numpy(array) for name, array in feeds.items()})
    for name, reference in run_model(model, feeds).items():
        assert ours[name].shape == reference.shape, name
        np.testing.assert_allclose(ours[name].numpy(), reference, atol=3e-6, err_msg=name)


def test_uneven_parts_may_be_empty():
    names = ["a", "b", "c"]
    node = helper.make_node("Split", ["x"], names, num_outputs=3, axis=1)
    model = model_of([node], [info("x", [2, 4])], [info(name, [2, None]) for name in names], opset=18)
    equal_onnx_runtime(model, {"x": np.arange(8, dtype=np.float32).reshape(2, 4)})


@pytest.mark.parametrize(
    "name", ["Affine", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "LeakyRelu", "Elu"]
)
def test_parameters_of_activations_that_are_not_given_are_those_of_onnx_runtime(name):
    model = layer(activations=("Sigmoid", name, "Tanh"))
    equal_onnx_runtime(model, feeds_of(model))


@pytest.mark.parametrize(
    ("opset", "scales", "form"),
    [
        (17, [1, 1, 0.7, 1], {}),  # 10 * 0.7 is 7 in float32, and just below in float64
        (17, [1, 1, 0.3, 1], {"mode": "linear"}),
        (17, [1, 1, 1.5, 0.6], {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}),
        (17, [1, 1, 1.5, 0.6], {"nearest_mode": "ceil", "coordinate_transformation_mode": "asymmetric"}),
        (10, [1, 1, 2, 2], {"mode": "nearest"}),
        (10, [1, 1, 2, 1.5], {"mode": "linear"}),
        (10, [1, 1, 0.7, 0.4], {"mode": "nearest"}),
        (9, [1, 1, 1.5, 2], {"mode": "nearest"}),
    ],
)
def test_resampling_has_the_sizes_and_places_of_onnx_runtime(opset, scales, form):
    factors = {"scales": np.array(scales, np.float32)}
    inputs = ["x", "", "scales"] if opset > 10 else ["x", "scales"]
    node = helper.make_node("Resize" if opset > 9 else "Upsample", inputs, ["y"], **form)
    model = model_of([node], [info("x", [1, 2, 10, 7])], [info("y", [1, 2, None, None])], factors, opset)
    rng = np.random.default_rng(0)
    equal_onnx_runtime(model, {"x": rng.standard_normal((1, 2, 10, 7)).astype(np.float32)})
