"""Recurrent nodes as `Scan` of plain operators, for runtimes that refuse a form of LSTM or misread it.

The equations are those of `rnn.cells`, in ONNX Runtime's reading where the specification leaves two: a clip
bounds the gates' sums and not the cell state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from lstmopt.errors import LstmoptError
from lstmopt.rnn.cells import GRU, LSTM
from lstmopt.rnn.reader import INITIAL_H, SEQUENCE_LENS, RnnLayer, X, Y, find_rnns
from lstmopt.rnn.weights import RnnWeights

Array = npt.NDArray[Any]

ALPHAS = {
    "affine": 0.0, "leakyrelu": 0.01, "thresholdedrelu": 0.0, "scaledtanh": 0.0, "hardsigmoid": 0.2,
    "elu": 1.0,
}  # fmt: skip
"""Activations that take an alpha, and ONNX Runtime's where none is given."""

BETAS = {"affine": 0.0, "scaledtanh": 0.0, "hardsigmoid": 0.5}
"""Activations that take a beta, likewise."""

PLAIN = {
    "sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "softsign": "Softsign", "softplus": "Softplus",
    "leakyrelu": "LeakyRelu", "elu": "Elu", "hardsigmoid": "HardSigmoid",
}  # fmt: skip
"""Activations that are operators."""


OLDEST = 11
"""First opset with `Range` and with the bounds of `Clip` as inputs."""


@dataclass(frozen=True)
class Activation:
    """An activation with the parameters that it takes, ONNX Runtime's where none are given."""

    name: str
    alpha: float | None
    beta: float | None


def activations_of(weights: RnnWeights) -> list[tuple[Activation, ...]]:
    """Returns the activations of each direction, in the order of the cell's."""
    names = weights.activations or weights.cell.activations * weights.num_directions
    alphas, betas = list(weights.activation_alpha), list(weights.activation_beta)
    found = []
    for name in (name.lower() for name in names):
        alpha = (alphas.pop(0) if alphas else ALPHAS[name]) if name in ALPHAS else None
        beta = (betas.pop(0) if betas else BETAS[name]) if name in BETAS else None
        found.append(Activation(name, alpha, beta))
    each = len(weights.cell.activations)
    return [tuple(found[start : start + each]) for start in range(0, len(found), each)]


def is_special(weights: RnnWeights, known: Collection[str]) -> bool:
    """Whether a layer has what every runtime but ONNX Runtime reads wrongly or not at all.

    That is coupled gates, activations with parameters, or of names that are not known, or that differ
    between directions.

    Args:
        weights: of the layer.
        known: activations that the runtime gets right without parameters.
    """
    each = len(weights.cell.activations)
    first, other = weights.activations[:each], weights.activations[each : 2 * each]
    return (
        weights.input_forget
        or bool(weights.activation_alpha or weights.activation_beta)
        or not set(weights.activations) <= set(known)
        or (weights.num_directions == 2 and first != other)
    )


class AsScan(ir.passes.InPlacePass):
    """Puts a `Scan` a direction in the place of recurrent nodes.

    Args:
        chosen: says which layers; their weights are constants.

    Raises:
        LstmoptError: an activation that ONNX does not name, or an opset without `Range`.
    """

    def __init__(self, chosen: Callable[[RnnLayer], bool]) -> None:
        self._chosen = chosen

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model."""
        layers = [layer for layer in find_rnns(model) if layer.weights is not None and self._chosen(layer)]
        opset = model.graph.opset_imports[""]
        for layer in layers:
            if opset < OLDEST:
                raise LstmoptError(
                    layer.name,
                    f"cannot be rewritten in opset {opset}",
                    f"export with opset {OLDEST} or newer",
                )
            _replace(layer, opset)
        return ir.passes.PassResult(model, bool(layers))


@dataclass
class _Nodes:
    """Nodes of one graph in the order in which they are made; a body's names must not be the graph's."""

    opset: int
    prefix: str
    made: list[ir.Node] = field(default_factory=list)

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.several(1, op, *inputs, **attributes)[0]

    def several(self, count: int, op: str, *inputs: ir.Value | None, **attributes: Any) -> list[ir.Value]:
        names = (f"{self.prefix}{len(self.made)}.{index}" for index in range(count))
        node = ir.node(op, list(inputs), attributes, outputs=[ir.Value(name=name) for name in names])
        self.made.append(node)
        return list(node.outputs)

    def constant(self, array: Array) -> ir.Value:
        return self("Constant", value=ir.Tensor(np.asarray(array, order="C")))

    def ints(self, *values: int) -> ir.Value:
        return self.constant(np.array(values, np.int64))

    def unsqueeze(self, value: ir.Value, axis: int) -> ir.Value:
        if self.opset < 13:
            return self("Unsqueeze", value, axes=[axis])
        return self("Unsqueeze", value, self.ints(axis))

    def split(self, value: ir.Value, count: int) -> list[ir.Value]:
        how = {"num_outputs": count} if self.opset >= 18 else {}
        return self.several(count, "Split", value, axis=-1, **how)

    def activate(self, item: Activation, x: ir.Value) -> ir.Value:
        alpha, beta = item.alpha, item.beta
        if item.name in PLAIN:
            given = {"alpha": alpha, "beta": beta}
            return self(PLAIN[item.name], x, **{name: at for name, at in given.items() if at is not None})
        if item.name == "affine":
            return self("Add", self("Mul", x, self.number(alpha)), self.number(beta))
        if item.name == "scaledtanh":
            return self("Mul", self("Tanh", self("Mul", x, self.number(beta))), self.number(alpha))
        if item.name == "thresholdedrelu":
            small = self("Less", x, self.number(alpha))  # at alpha itself x is kept, as ONNX Runtime does
            return self("Where", small, self.number(0.0), x)
        raise LstmoptError(f"activation {item.name}", "is not one of ONNX's", "export the model again")

    def number(self, value: float | None) -> ir.Value:
        assert value is not None
        return self.constant(np.array(value, np.float32))


def _replace(layer: RnnLayer, opset: int) -> None:
    weights, node = layer.weights, layer.node
    assert weights is not None and node.graph is not None
    nodes = _Nodes(opset, f"{layer.name}.")
    x, lengths = layer.input(X), layer.input(SEQUENCE_LENS)
    assert x is not None
    mask = None if lengths is None else _mask(nodes, x, lengths)
    backward = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[weights.direction]
    whole: list[ir.Value] = []
    last: list[list[ir.Value]] = [[] for _ in weights.cell.states]
    for direction, (reverse, functions) in enumerate(zip(backward, activations_of(weights), strict=True)):
        turned = reverse and lengths is not None
        source = _turn(nodes, x, lengths) if turned else x
        parts = _input_parts(nodes, weights, direction, source)
        states = [
            _initial(nodes, layer.input(INITIAL_H + index), x, lengths, weights, direction)
            for index in range(len(weights.cell.states))
        ]
        found = _scan(nodes, weights, direction, functions, states, parts, mask, reverse and not turned)
        y = _turn(nodes, found[-1], lengths) if turned else found[-1]
        whole.append(nodes.unsqueeze(y, 1))
        for index, state in enumerate(found[:-1]):
            last[index].append(nodes.unsqueeze(state, 0))
    results = [_joined(nodes, whole, 1), *(_joined(nodes, states, 0) for states in last)]
    old = [value for value in node.outputs if value.name]
    new = [results[index] for index, value in enumerate(node.outputs) if value.name]
    assert len(results) > Y
    for before, after in zip(old, new, strict=True):
        after.type, after.shape = before.type, before.shape
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes.made, old, new)


def _joined(nodes: _Nodes, values: list[ir.Value], axis: int) -> ir.Value:
    return values[0] if len(values) == 1 else nodes("Concat", *values, axis=axis)


def _mask(nodes: _Nodes, x: ir.Value, lengths: ir.Value) -> ir.Value:
    """Returns which steps belong to each sequence, ``[sequence, batch, 1]``."""
    count = nodes("Gather", nodes("Shape", x), nodes.constant(np.array(0, np.int64)))
    zero, one = (nodes.constant(np.array(value, np.int64)) for value in (0, 1))
    steps = nodes("Reshape", nodes("Range", zero, count, one), nodes.ints(-1, 1, 1))
    wide = nodes("Reshape", nodes("Cast", lengths, to=ir.DataType.INT64), nodes.ints(1, -1, 1))
    return nodes("Less", steps, wide)


def _turn(nodes: _Nodes, x: ir.Value, lengths: ir.Value | None) -> ir.Value:
    """Reverses time, of each sequence within its own length."""
    assert lengths is not None
    wide = nodes("Cast", lengths, to=ir.DataType.INT64)
    return nodes("ReverseSequence", x, wide, batch_axis=1, time_axis=0)


def _initial(
    nodes: _Nodes,
    given: ir.Value | None,
    x: ir.Value,
    lengths: ir.Value | None,
    weights: RnnWeights,
    direction: int,
) -> ir.Value:
    """Returns one direction's initial state, ``[batch, hidden]``: of a sequence of no steps 0."""
    if given is not None:
        state = nodes("Gather", given, nodes.constant(np.array(direction, np.int64)), axis=0)
        if lengths is None:
            return state
        steps = nodes("Reshape", nodes("Cast", lengths, to=ir.DataType.INT64), nodes.ints(-1, 1))
        return nodes("Where", nodes("Less", nodes.ints(0), steps), state, nodes.number(0.0))
    batch = nodes("Gather", nodes("Shape", x), nodes.ints(1))
    shape = nodes("Concat", batch, nodes.ints(weights.hidden_size), axis=0)
    return nodes("Expand", nodes.constant(np.zeros((1, 1), np.float32)), shape)


def _input_parts(nodes: _Nodes, weights: RnnWeights, direction: int, x: ir.Value) -> ir.Value:
    """Returns what the gates get from the input and from constants, ``[sequence, batch, gates * hidden]``."""
    w = weights.w[direction].reshape(-1, weights.input_size)
    product = nodes("MatMul", x, nodes.constant(w.T))
    if weights.b is None:
        return product
    bias = weights.b[direction].copy()
    if weights.cell is GRU and weights.reset_after:
        bias[1, -1] = 0  # Rbh is inside the product with the reset gate
    return nodes("Add", product, nodes.constant(bias.sum(0).reshape(-1)))


def _scan(
    nodes: _Nodes, weights: RnnWeights, direction: int, functions: Sequence[Activation],
    states: Sequence[ir.Value], parts: ir.Value, mask: ir.Value | None, reverse: bool,
) -> list[ir.Value]:  # fmt: skip
    """Returns the last states and Y of one direction."""
    kinds = weights.cell.states
    body = _Nodes(nodes.opset, f"{nodes.prefix}{direction}.step.")
    element, count = ir.TensorType(ir.DataType.FLOAT), len(kinds)
    names = (*kinds, "part", *(() if mask is None else ("inside",)))
    inputs = [ir.Value(name=f"{body.prefix}{name}", type=element) for name in names]
    if mask is not None:
        inputs[-1].type = ir.TensorType(ir.DataType.BOOL)
    step = {LSTM: _lstm_step, GRU: _gru_step}[weights.cell]
    new = step(body, weights, direction, functions, inputs[:count], inputs[count])
    y = new[0]
    if mask is not None:
        y = body("Where", inputs[-1], new[0], body.number(0.0))
        new = [body("Where", inputs[-1], after, before) for after, before in zip(new, inputs, strict=False)]
    outputs = [*(body("Identity", state) for state in new), body("Identity", y)]
    for value in outputs:
        value.type = element
    graph = ir.Graph(inputs, outputs, nodes=body.made, name="step", opset_imports={"": nodes.opset})
    scanned = [parts, *(() if mask is None else (mask,))]
    return nodes.several(
        count + 1,
        "Scan",
        *states,
        *scanned,
        body=graph,
        num_scan_inputs=len(scanned),
        scan_input_directions=[int(reverse)] * len(scanned),
        scan_output_directions=[int(reverse)],
    )


def _lstm_step(
    body: _Nodes, weights: RnnWeights, direction: int, functions: Sequence[Activation],
    states: Sequence[ir.Value], part: ir.Value,
) -> list[ir.Value]:  # fmt: skip
    h, c = states
    r = weights.r[direction].reshape(-1, weights.hidden_size)
    sums = body("Add", part, body("MatMul", h, body.constant(r.T)))
    gates = weights.cell.by_gate(body.split(sums, len(weights.cell.gates)))
    peepholes = {} if weights.p is None else weights.cell.by_peephole(weights.p[direction])

    def gate(name: str, function: Activation, cell: ir.Value | None = None) -> ir.Value:
        value = gates[name]
        if cell is not None and name in peepholes:
            value = body("Add", value, body("Mul", body.constant(peepholes[name]), cell))
        return body.activate(function, _clipped(body, weights, value))

    f, g, last = functions
    write = gate("i", f, c)
    forget = body("Sub", body.number(1.0), write) if weights.input_forget else gate("f", f, c)
    cell = body("Add", body("Mul", forget, c), body("Mul", write, gate("c", g)))
    return [body("Mul", gate("o", f, cell), body.activate(last, cell)), cell]


def _gru_step(
    body: _Nodes, weights: RnnWeights, direction: int, functions: Sequence[Activation],
    states: Sequence[ir.Value], part: ir.Value,
) -> list[ir.Value]:  # fmt: skip
    (h,) = states
    f, g = functions
    parts = weights.cell.by_gate(body.split(part, len(weights.cell.gates)))
    matrices = weights.cell.by_gate(weights.r[direction])

    def product(name: str, state: ir.Value) -> ir.Value:
        return body("MatMul", state, body.constant(matrices[name].T))

    def gate(name: str, function: Activation, sums: ir.Value) -> ir.Value:
        return body.activate(function, _clipped(body, weights, body("Add", parts[name], sums)))

    update, reset = gate("z", f, product("z", h)), gate("r", f, product("r", h))
    if weights.reset_after:
        inner = product("h", h)
        if weights.b is not None:
            inner = body("Add", inner, body.constant(weights.b[direction, 1, -1]))
        new = gate("h", g, body("Mul", reset, inner))
    else:
        new = gate("h", g, product("h", body("Mul", reset, h)))
    rest = body("Sub", body.number(1.0), update)
    return [body("Add", body("Mul", rest, new), body("Mul", update, h))]


def _clipped(body: _Nodes, weights: RnnWeights, value: ir.Value) -> ir.Value:
    if weights.clip is None:
        return value
    return body("Clip", value, body.number(-weights.clip), body.number(weights.clip))
