"""Random graphs around LSTM and GRU layers, as exporters write them, for property tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray
OPSETS = (11, 13, 17, 18, 20)
STATES = {"LSTM": ("h", "c"), "GRU": ("h",)}
"""States that a cell carries, in the order of the operator's outputs after Y."""


@dataclass
class Builder:
    """Collects nodes and constants of one graph."""

    opset: int
    rng: np.random.Generator
    dtype: Any = np.float32
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    free: bool = True
    """Whether nothing has been built that ties hidden units to what cannot change."""
    exact: bool = True
    """Whether nothing takes statistics over hidden units."""

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str | tuple[str, ...]:
        names = [f"{op.lower()}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"{op}_{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def one(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = self.node(op, *inputs, **attributes)
        assert isinstance(name, str)
        return name

    def initializer(self, array: Array, name: str = "") -> str:
        name = name or f"const_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def constant(self, array: Array) -> str:
        return self.one("Constant", value=numpy_helper.from_array(np.ascontiguousarray(array)))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def floats(self, *shape: int, scale: float = 0.5) -> Array:
        return (scale * self.rng.standard_normal(shape)).astype(self.dtype)

    def axes(self, op: str, value: str, axes: list[int], since: int = 13, **attributes: Any) -> str:
        """An operator whose axes became an input at some opset."""
        if self.opset < since:
            return self.one(op, value, axes=axes, **attributes)
        return self.one(op, value, self.ints(*axes), **attributes)

    def split(self, value: str, sizes: list[int], axis: int) -> tuple[str, ...]:
        if self.opset < 13:
            names = self.node("Split", value, outputs=len(sizes), axis=axis, split=sizes)
        else:
            names = self.node("Split", value, self.ints(*sizes), outputs=len(sizes), axis=axis)
        return (names,) if isinstance(names, str) else names

    def input(self, name: str, element: int, shape: list[Any]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def output(self, name: str, value: str, shape: list[Any], element: int | None = None) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"to_{name}"))
        element = element or helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        self.outputs.append(helper.make_tensor_value_info(name, element, shape))

    @property
    def element(self) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))

    def proto(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "drawn", self.inputs, self.outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        onnx.checker.check_model(model, full_check=False)
        return model


@dataclass(frozen=True, eq=False)
class Drawn:
    """A drawn graph and what is known of it.

    Attributes:
        model: the graph; its inputs are ``x`` or ``tokens``, perhaps ``lengths`` and states; ``y`` is its
            first output.
        free: every layer can be resized.
        exact: removing dead units leaves the function as it is.
        layers: names of the recurrent nodes: "lstm0" and so on, whatever their cells.
        constructs: what was drawn, for messages.
    """

    model: ir.Model
    free: bool
    exact: bool
    layers: tuple[str, ...]
    constructs: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Drawn({', '.join(self.constructs)})"


def weight_input(builder: Builder, array: Array, form: str) -> str:
    """Writes a weight as an initializer, a Constant, or behind an expression that gives it back exactly."""
    if form == "initializer":
        return builder.initializer(array)
    if form == "constant":
        return builder.constant(array)
    # Unsqueeze(Concat(Slice(...))), with the gates in another order, as torch's script exporter leaves it.
    quarter = array.shape[1] // 4
    stored = np.concatenate([array[0, quarter:], array[0, :quarter]])
    name = builder.constant(stored) if form == "folded" else builder.initializer(stored)
    rest = stored.shape[0] - quarter
    pieces = [
        builder.one("Slice", name, builder.ints(rest), builder.ints(stored.shape[0]), builder.ints(0)),
        builder.one("Slice", name, builder.ints(0), builder.ints(rest), builder.ints(0)),
    ]
    whole = builder.one("Concat", *pieces, axis=0)
    parts = [builder.axes("Unsqueeze", whole, [0])]
    for direction in range(1, array.shape[0]):
        parts.append(builder.initializer(array[direction : direction + 1]))
    return parts[0] if len(parts) == 1 else builder.one("Concat", *parts, axis=0)


@st.composite
def lstm_graphs(
    draw: st.DrawFn,
    *,
    dtype: Any = np.float32,
    peepholes: bool = True,
    pins: bool = True,
    cells: tuple[str, ...] = ("LSTM", "GRU"),
) -> Drawn:
    """Draws a graph of 1 to 3 recurrent layers with surroundings.

    Args:
        draw: hypothesis' function.
        dtype: of weights and activations.
        peepholes: whether layers may have peepholes, clip and coupled gates.
        pins: whether hidden units may reach what cannot change.
        cells: what a layer may be.
    """
    return Draft(draw, dtype, peepholes, pins, cells).build()


class Draft:
    """One drawing: each method adds one construct."""

    def __init__(
        self, draw: st.DrawFn, dtype: Any, peepholes: bool, pins: bool, cells: tuple[str, ...]
    ) -> None:
        self.draw, self.peepholes, self.pins, self.cells = draw, peepholes, pins, cells
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.b = Builder(draw(st.sampled_from(OPSETS)), rng, dtype)
        self.constructs: list[str] = [f"opset {self.b.opset}"]
        self.states: list[tuple[str, str, list[Any]]] = []

    def chance(self, one_in: int = 2) -> bool:
        return self.draw(st.integers(1, one_in)) == 1

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def note(self, *words: Any) -> None:
        self.constructs.append(" ".join(str(word) for word in words))

    def build(self) -> Drawn:
        b = self.b
        value, width = self.front()
        lengths = b.input("lengths", TensorProto.INT32, ["batch"]) if self.chance(4) else ""
        if lengths:
            self.note("lengths")
        count = self.pick(1, 2, 2, 3)
        stacked = self.pick("none", "none", "inputs", "inputs", "constant", "zeros", "computed", "stacked")
        hidden = self.pick(3, 4, 5, 6)
        same = stacked == "stacked" or self.chance()
        direction = self.pick("forward", "forward", "reverse", "bidirectional", "bidirectional")
        cells = [self.pick(*self.cells) for _ in range(count)]
        names, finals, initial = [], [], []
        if stacked == "stacked":
            dirs, total = 2 if direction == "bidirectional" else 1, sum(len(STATES[cell]) for cell in cells)
            shape = [total * dirs, "batch", hidden]
            packed = b.input("state", b.element, shape)
            initial = [
                b.one("Slice", packed, b.ints(i * dirs), b.ints((i + 1) * dirs), b.ints(0))
                for i in range(total)
            ]
        for index in range(count):
            if not same:
                hidden = self.pick(3, 4, 5, 6)
                direction = self.pick("forward", "reverse", "bidirectional")
            cell, begin = cells[index], len(finals)
            states = tuple(initial[begin : begin + len(STATES[cell])]) or self.initial(
                cell, stacked, index, direction, hidden
            )
            y, *last_states = self.layer(
                cell, f"lstm{index}", value, width, hidden, direction, lengths, states
            )
            names.append(f"lstm{index}")
            finals += last_states
            last, last_width = value, width
            value, width = self.merge(y, direction, hidden)
            value, width = self.between(value, width, last, last_width, index, direction, hidden)
            self.final_states(stacked, index, direction, hidden, last_states)
        if stacked == "stacked":
            b.output("state_out", b.one("Concat", *finals, axis=0), [len(finals) * dirs, "batch", hidden])
        self.decoder(value, width, last_states[0], direction, hidden)
        states = b.outputs[:-1]
        b.outputs[:] = [b.outputs[-1], *states]
        if self.pins and self.chance(8):
            b.output("features", value, ["sequence", "batch", width])
            b.free = False
            self.note("features are an output")
        model = ir.from_proto(b.proto())
        return Drawn(model, b.free, b.exact, tuple(names), tuple(self.constructs))

    def front(self) -> tuple[str, int]:
        b = self.b
        kind = self.pick("tokens", "frames", "batch first")
        width = self.pick(3, 5)
        self.note(kind)
        if kind == "tokens":
            tokens = b.input("tokens", self.pick(TensorProto.INT64, TensorProto.INT32), ["sequence", "batch"])
            return b.one("Gather", b.initializer(b.floats(11, width)), tokens), width
        if kind == "frames":
            return b.input("x", b.element, ["sequence", "batch", width]), width
        x = b.input("x", b.element, ["batch", "sequence", width])
        return b.one("Transpose", x, perm=[1, 0, 2]), width

    def initial(self, cell: str, kind: str, index: int, direction: str, hidden: int) -> tuple[str, ...]:
        b, dirs = self.b, 2 if direction == "bidirectional" else 1
        if kind == "inputs":
            return tuple(
                b.input(f"{state}{index}", b.element, [dirs, "batch", hidden]) for state in STATES[cell]
            )
        if kind == "constant":
            # A learnt initial state, the same for every sequence: Expand(constant, [dirs, batch, hidden]).
            return tuple(self.expanded(b.floats(dirs, 1, hidden), hidden) for _ in STATES[cell])
        missing = [""] * (len(STATES[cell]) - 1)
        if kind == "zeros":
            return self.expanded(np.zeros((1, 1, 1), b.dtype), hidden, dirs), *missing
        if kind == "computed":
            zero = numpy_helper.from_array(np.zeros(1, b.dtype))
            return *missing, b.one("ConstantOfShape", self.state_shape(hidden, dirs), value=zero)
        return "", *missing

    def state_shape(self, hidden: int, dirs: int) -> str:
        b = self.b
        source = b.inputs[0]
        names = [dim.dim_param for dim in source.type.tensor_type.shape.dim]
        axis = names.index("batch")
        batch = b.one("Gather", b.one("Shape", source.name), b.ints(axis), axis=0)
        return b.one("Concat", b.ints(dirs), batch, b.ints(hidden), axis=0)

    def expanded(self, array: Array, hidden: int, dirs: int | None = None) -> str:
        b = self.b
        shape = self.state_shape(hidden, array.shape[0] if dirs is None else dirs)
        return b.one("Expand", b.initializer(array), shape)

    def layer(
        self,
        cell: str,
        name: str,
        x: str,
        width: int,
        hidden: int,
        direction: str,
        lengths: str,
        states: tuple[str, ...],
    ) -> list[str]:
        b, dirs, gated = self.b, 2 if direction == "bidirectional" else 1, cell == "GRU"
        form, gates = self.pick("initializer", "constant", "sliced", "folded"), 3 if gated else 4
        w = weight_input(b, b.floats(dirs, gates * hidden, width), form)
        r = weight_input(b, b.floats(dirs, gates * hidden, hidden), form)
        bias = b.initializer(b.floats(dirs, 2 * gates * hidden)) if self.chance(3) is False else ""
        peeps = self.peepholes and not gated and self.chance(4)
        p = b.initializer(b.floats(dirs, 3 * hidden)) if peeps else ""
        attributes: dict[str, Any] = {"hidden_size": hidden}
        if gated and self.chance():
            attributes["linear_before_reset"] = self.pick(0, 1, 1)
        if direction != "forward" or self.chance():
            attributes["direction"] = direction
        if self.chance(4):
            attributes["activations"] = (["Sigmoid", "Tanh"] if gated else ["Sigmoid", "Tanh", "Tanh"]) * dirs
        if self.peepholes and self.chance(8):
            attributes["clip"] = 0.8
        inputs = [x, w, r, bias, lengths, *states, p]
        while not inputs[-1]:
            inputs.pop()
        outputs = [f"{name}_{each}" for each in ("y", *STATES[cell])]
        b.nodes.append(helper.make_node(cell, inputs, outputs, name=name, **attributes))
        extras = [key for key, value in (("bias", bias), ("P", p)) if value]
        self.note(cell, name, direction, hidden, form, *extras, *attributes.items())
        return outputs

    def merge(self, y: str, direction: str, hidden: int) -> tuple[str, int]:
        """[sequence, directions, batch, hidden] to [sequence, batch, features]."""
        b = self.b
        if direction != "bidirectional":
            kind = self.pick("squeeze", "reshape")
            if kind == "squeeze":
                return b.axes("Squeeze", y, [1]), hidden
            turned = b.one("Transpose", y, perm=[0, 2, 1, 3])
            return b.one("Reshape", turned, b.ints(0, 0, self.pick(-1, hidden))), hidden
        kind = self.pick("reshape", "split and concat", "sum", "gate", "slices")
        self.note("merge by", kind)
        if kind == "reshape":
            turned = b.one("Transpose", y, perm=[0, 2, 1, 3])
            return b.one("Reshape", turned, b.ints(0, 0, self.pick(-1, 2 * hidden))), 2 * hidden
        if kind == "slices":
            one = b.one("Slice", y, b.ints(0), b.ints(1), b.ints(1))
            other = b.one("Slice", y, b.ints(-1), b.ints(2**62), b.ints(1))
        else:
            one, other = b.split(y, [1, 1], axis=1)
        one, other = b.axes("Squeeze", one, [1]), b.axes("Squeeze", other, [1])
        if kind == "sum":
            return b.one("Add", one, other), hidden
        if kind == "gate":
            return b.one("Mul", one, b.one("Sigmoid", other)), hidden
        return b.one("Concat", one, other, axis=self.pick(2, -1)), 2 * hidden

    def between(
        self, value: str, width: int, before: str, before_width: int, index: int, direction: str, hidden: int
    ) -> tuple[str, int]:
        b = self.b
        kind = self.pick(
            "nothing", "nothing", "dropout", "residual", "skip", "scale", "prelu", "batch norm", "layer norm",
            "halves", "tanh", "shuffle", "pad", "softmax",
        )  # fmt: skip
        if kind == "residual" and (width != before_width or (index == 0 and not self.pins)):
            kind = "nothing"
        if kind == "layer norm" and b.opset < 17:
            kind = "nothing"
        if kind in ("softmax",) and not self.pins:
            kind = "nothing"
        self.note(kind)
        if kind == "dropout":
            return b.one("Dropout", value), width
        if kind == "residual":
            b.free = b.free and index > 0 and not self.mixed
            return b.one("Add", value, before), width
        if kind == "skip":
            self.mixed = True
            return b.one("Concat", value, before, axis=2), width + before_width
        if kind == "scale":
            return b.one(
                "Add",
                b.one("Mul", b.initializer(b.floats(width)), value),
                b.initializer(b.floats(1, 1, width)),
            ), width
        if kind == "prelu":
            return b.one("PRelu", value, b.initializer(b.floats(width))), width
        if kind == "batch norm":
            turned = b.one("Transpose", value, perm=[1, 2, 0])
            stats = [b.initializer(b.floats(width)) for _ in range(3)]
            spread = b.initializer(np.abs(b.floats(width)) + b.dtype(0.5))
            return b.one(
                "Transpose", b.one("BatchNormalization", turned, *stats, spread), perm=[2, 0, 1]
            ), width
        if kind == "layer norm":
            b.exact = False
            return b.one(
                "LayerNormalization",
                value,
                b.initializer(b.floats(width)),
                b.initializer(b.floats(width)),
                axis=-1,
            ), width
        if kind == "halves":
            # The features in two pieces and together again in the other order.
            sizes = [hidden, width - hidden] if width > hidden else [width // 2, width - width // 2]
            if 0 in sizes:
                return value, width
            if self.chance():
                one = b.one("Slice", value, b.ints(0), b.ints(sizes[0]), b.ints(2))
                other = b.one("Slice", value, b.ints(-sizes[1]), b.ints(2**62), b.ints(-1))
            else:
                one, other = b.split(value, sizes, axis=2)
            return b.one("Concat", other, b.one("Relu", one), axis=2), width
        if kind == "tanh":
            return b.one("Tanh", b.one("Mul", value, b.constant(np.array(1.5, b.dtype)))), width
        if kind == "shuffle":
            order = b.rng.permutation(width)
            return b.one("Gather", value, b.ints(*order.tolist()), axis=2), width
        if kind == "pad":
            padded = b.one("Pad", value, b.ints(1, 0, 0, 1, 0, 0))
            return b.one("Slice", padded, b.ints(1), b.ints(-1), b.ints(0)), width
        if kind == "softmax":
            b.free = False
            return b.one("Softmax", value, axis=2), width
        return value, width

    mixed = False
    """Whether features hold other things than hidden units."""

    def final_states(self, stacked: str, index: int, direction: str, hidden: int, states: list[str]) -> None:
        if stacked == "inputs":
            shape = [2 if direction == "bidirectional" else 1, "batch", hidden]
            for kind, state in zip("hc", states, strict=False):
                self.states.append((f"{kind}{index}_out", state, shape))
                self.b.output(f"{kind}{index}_out", state, shape)

    def decoder(self, value: str, width: int, y_h: str, direction: str, hidden: int) -> None:
        b, classes = self.b, 4
        kind = self.pick(
            "matmul", "gemm", "gemm transposed", "conv", "mean", "max", "last gather", "last slice", "last h"
        )
        self.note("decoder", kind)
        weights = b.initializer(b.floats(width, classes))
        if kind in ("matmul", "gemm", "gemm transposed", "conv"):
            if kind == "matmul":
                y = b.one("Add", b.one("MatMul", value, weights), b.initializer(b.floats(classes)))
            elif kind == "conv":
                turned = b.one("Transpose", value, perm=[1, 2, 0])
                kernel, bias = b.initializer(b.floats(classes, width, 3)), b.initializer(b.floats(classes))
                y = b.one("Transpose", b.one("Conv", turned, kernel, bias, pads=[1, 1]), perm=[2, 0, 1])
            else:
                rows = b.one("Reshape", value, b.ints(-1, width))
                if kind == "gemm":
                    y = b.one("Gemm", rows, weights, b.initializer(b.floats(classes)), alpha=0.5)
                else:
                    y = b.one("Gemm", rows, b.initializer(b.floats(classes, width)), transB=1)
                b.output("y", y, ["rows", classes])
                return
            b.output("y", y, ["sequence", "batch", classes])
            return
        if kind == "mean":
            value = b.axes("ReduceMean", value, [0], since=18, keepdims=0)
        elif kind == "max":
            value = b.axes("ReduceMax", value, [0], since=18, keepdims=0)
        elif kind == "last gather":
            value = b.one("Gather", value, b.constant(np.array(-1, np.int64)), axis=0)
        elif kind == "last slice":
            value = b.axes("Squeeze", b.one("Slice", value, b.ints(-1), b.ints(2**62), b.ints(0)), [0])
        else:
            width = 2 * hidden if direction == "bidirectional" else hidden
            weights = b.initializer(b.floats(width, classes))
            value = b.one("Reshape", b.one("Transpose", y_h, perm=[1, 0, 2]), b.ints(-1, width))
        b.output("y", b.one("MatMul", value, weights), ["batch", classes])


def feeds_for(model: ir.Model, sequence: int, batch: int, seed: int) -> dict[str, Array]:
    """Returns random inputs of a drawn graph, lengths in range."""
    rng = np.random.default_rng(seed)
    sizes = {"sequence": sequence, "batch": batch}
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        shape = tuple(size if isinstance(size, int) else sizes[str(size.value)] for size in value.shape or ())
        dtype = value.dtype.numpy() if value.dtype is not None else np.float32
        if value.name == "lengths":
            array = rng.integers(1, sequence + 1, shape)
            array[0] = sequence
        elif np.issubdtype(dtype, np.integer):
            array = rng.integers(0, 11, shape)
        else:
            array = rng.standard_normal(shape)
        feeds[str(value.name)] = np.asarray(array).astype(dtype)
    return feeds
