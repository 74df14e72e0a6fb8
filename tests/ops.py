"""Random sparse layers, a double-precision LSTM, and both runtimes with our ops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.reader import SEQUENCE_LENS
from lstmopt.rnn.scan import ALPHAS, BETAS
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes.ops import available, library, sparse_layer_model, sparse_matmul
from lstmopt.runtimes.ops.nodes import DOMAIN, VERSION, constants_of
from lstmopt.sparsity.formats import Format

Array = np.ndarray[Any, Any]

needs_ops = pytest.mark.skipif(
    not (available("openvino") and available("onnxruntime")), reason="the native ops were not built"
)
"""Of a test, or as ``pytestmark`` of a file."""

ACTIVATIONS = {
    "Sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "Tanh": lambda x, a, b: np.tanh(x),
    "Relu": lambda x, a, b: np.maximum(x, 0),
    "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a, b: np.where(x < 0, a * x, x),
    "ThresholdedRelu": lambda x, a, b: np.where(x >= a, x, 0),
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "Elu": lambda x, a, b: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0))),
    "Softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "Softplus": lambda x, a, b: np.log1p(np.exp(x)),
}
WITH_ALPHA = {"Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu"}
WITH_BETA = {"Affine", "ScaledTanh", "HardSigmoid"}


def random_layer(
    rng: np.random.Generator,
    item: Format | None = None,
    *,
    hidden: int = 0,
    inputs: int = 0,
    density: float = 0.2,
    plain: bool = False,
) -> RnnWeights:
    """Returns a layer of sparse weights, rounded to a format where one is given."""
    hidden, inputs = hidden or int(rng.integers(1, 90)), inputs or int(rng.integers(1, 90))
    direction = "forward" if plain else str(rng.choice(["forward", "reverse", "bidirectional"]))
    directions = 2 if direction == "bidirectional" else 1

    def matrix(columns: int) -> Array:
        values = rng.standard_normal((directions, 4, hidden, columns)) / np.sqrt(density * columns + 1)
        shape = (directions, 1, hidden, columns) if item and item.name == "i8-shared" else values.shape
        values = (values * (rng.random(shape) < density)).astype(np.float32)
        return np.stack([item.round_weights(each) for each in values]) if item else values

    options: dict[str, Any] = {}
    if not plain:
        if rng.random() < 0.3:
            options["p"] = (0.3 * rng.standard_normal((directions, 3, hidden))).astype(np.float32)
        if rng.random() < 0.3:
            options["clip"] = 0.75
        options["input_forget"] = bool(rng.random() < 0.2)
    bias = (0.3 * rng.standard_normal((directions, 2, 4, hidden))).astype(np.float32)
    return RnnWeights(LSTM, direction, matrix(inputs), matrix(hidden), bias, **options)


def feeds(rng: np.random.Generator, weights: RnnWeights, steps: int, batch: int) -> dict[str, Array]:
    """Returns an input and initial states for `sparse_layer_model(states=True)`."""
    state = weights.num_directions, batch, weights.hidden_size
    return {
        "x": rng.standard_normal((steps, batch, weights.input_size)).astype(np.float32),
        "h_0": (0.5 * rng.standard_normal(state)).astype(np.float32),
        "c_0": (0.5 * rng.standard_normal(state)).astype(np.float32),
    }


def activations_of(weights: RnnWeights) -> list[Callable[[Array], Array]]:
    """Returns a layer's activations, with ONNX Runtime's alphas and betas where it gives none."""
    alphas, betas = list(weights.activation_alpha), list(weights.activation_beta)
    functions = []
    for name in weights.activations or weights.cell.activations * weights.num_directions:
        a = alphas.pop(0) if name in WITH_ALPHA and alphas else ALPHAS.get(name.lower(), 0.0)
        b = betas.pop(0) if name in WITH_BETA and betas else BETAS.get(name.lower(), 0.0)
        functions.append(lambda value, f=ACTIVATIONS[name], a=a, b=b: f(value, a, b))
    return functions


def double_lstm(
    weights: RnnWeights, x: Array, h_0: Array, c_0: Array, lengths: Array | None = None
) -> list[Array]:
    """Returns Y, Y_h, Y_c as ONNX specifies them, in double precision.

    What a sequence of length 0 leaves ONNX does not say: zeros, as of ONNX Runtime.
    """
    steps, batch, _ = x.shape
    directions, hidden = weights.num_directions, weights.hidden_size
    ends = np.full(batch, steps) if lengths is None else np.clip(lengths, 0, steps)
    bound = np.inf if weights.clip is None else weights.clip
    functions = activations_of(weights)
    y = np.zeros((steps, directions, batch, hidden))
    h, c = (state.astype(np.float64) * (ends > 0)[:, None] for state in (h_0, c_0))
    for d in range(directions):
        f, g, last = functions[3 * d : 3 * d + 3]
        bias = 0.0 if weights.b is None else weights.b[d].astype(np.float64).sum(axis=0)
        p = np.zeros((3, hidden)) if weights.p is None else weights.p[d].astype(np.float64)
        w, r = weights.w[d].astype(np.float64), weights.r[d].astype(np.float64)
        backward = weights.direction == "reverse" or d == 1
        for row in range(batch):
            for step in range(ends[row]):
                t = ends[row] - 1 - step if backward else step
                i, o, forget, cell = w @ x[t, row] + r @ h[d, row] + bias
                i = f(np.clip(i + p[0] * c[d, row], -bound, bound))
                forget = (
                    1 - i if weights.input_forget else f(np.clip(forget + p[2] * c[d, row], -bound, bound))
                )
                c[d, row] = forget * c[d, row] + i * g(np.clip(cell, -bound, bound))
                h[d, row] = f(np.clip(o + p[1] * c[d, row], -bound, bound)) * last(c[d, row])
                y[t, d, row] = h[d, row]
    return [y, h, c]


def error(have: Array, want: Array) -> float:
    """Returns the root mean square of the difference over that of the right values."""
    return float(np.sqrt(np.mean((have - want) ** 2) / max(np.mean(np.square(want)), 1e-30)))


def save_sparse(path: Path, weights: RnnWeights, item: Format, **options: Any) -> Path:
    """Writes a model of one layer with our op."""
    packed = [[item.pack(each) for each in matrix] for matrix in weights.matrices]
    ir.save(sparse_layer_model(weights, *packed, **options), path)
    return path


def save_dense(path: Path, weights: RnnWeights, lengths: bool = False) -> Path:
    """Writes a model of one layer with ONNX's op, where wanted with an input ``lengths``."""
    model = rnn_model(weights, states=True)
    if lengths:
        model.graph.inputs.append(
            ir.Value(name="lengths", type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(["batch"]))
        )
        model.graph.node("rnn").replace_input_with(SEQUENCE_LENS, model.graph.inputs[-1])
    ir.save(model, path)
    return path


def save_product(path: Path, packed: bytes, bias: Array | None, shape: tuple[int | str, ...]) -> None:
    """Writes a model of one sparse product."""
    number = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=number, shape=ir.Shape(shape))
    node = sparse_matmul(packed, x, bias=bias)
    node.outputs[0].name, node.outputs[0].type = "y", number
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=constants_of(node), name="product",
        opset_imports={"": 17, DOMAIN: VERSION},
    )  # fmt: skip
    ir.save(ir.Model(graph, ir_version=8), path)


def ort_session(path: Path | str, ours: bool = True) -> Any:
    """Returns an ONNX Runtime session, with our ops where wanted."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if ours:
        options.register_custom_ops_library(str(library("onnxruntime")))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ov_core() -> Any:
    """Returns an OpenVINO core with our ops."""
    import openvino as ov

    core = ov.Core()
    core.add_extension(str(library("openvino")))
    return core


def ov_compile(path: Path, **settings: str) -> Any:
    """Returns a compiled model, in f32 unless told otherwise."""
    return ov_core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", **settings})


def ov_run(compiled: Any, given: dict[str, Array]) -> list[Array]:
    """Returns the outputs in order."""
    results = compiled(given)
    return [np.array(results[port]) for port in compiled.outputs]


def check_lengths(
    dense: Path, sparse: Path, given: dict[str, Array], want: list[Array], bound: float
) -> None:
    """Holds our op, in both runtimes, to what ONNX Runtime's own gives for sequences of unequal lengths.

    Args:
        dense: a model of ONNX's op.
        sparse: a model of ours, with the same weights.
        given: the inputs; lengths may be 0, and beyond the last step, which ONNX Runtime refuses.
        want: the right values, in double precision.
        bound: of our error.
    """
    steps, lengths = len(given["x"]), given["lengths"]
    beyond, empty = np.arange(steps)[:, None] >= lengths, lengths == 0
    own = ort_session(dense, ours=False).run(None, given | {"lengths": np.minimum(lengths, steps)})
    for results in (ort_session(sparse).run(None, given), ov_run(ov_compile(sparse), given)):
        for have, theirs, right in zip(results, own, want, strict=True):
            assert error(theirs, right) < 3e-6
            assert error(have, theirs) < bound and error(have, right) < bound
            assert np.array_equal(have[..., empty, :], theirs[..., empty, :])
        assert not results[0].swapaxes(1, 2)[beyond].any()
