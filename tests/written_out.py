"""Recurrent layers written out in other operators, in the orders and forms of several exporters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
INPUT, HIDDEN = 3, 4

# name: order of the gates in the packed matrices
ORDERS = {"torch": "ifco", "keras": "ifco", "tensorflow": "icfo", "paddle": "ifco", "onnx": "iofc"}


@dataclass
class Draft:
    """A graph, or a body, that is being written."""

    prefix: str = ""
    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def __call__(self, kind: str, *inputs: str, out: str = "", **attributes: object) -> str:
        """Adds a node with one output and returns the output's name."""
        name = out or f"{self.prefix}{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def const(self, array: object, dtype: object = np.float32) -> str:
        """Adds an initializer and returns its name."""
        name = f"{self.prefix}const_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def split(self, value: str, count: int, axis: int = -1) -> list[str]:
        """Adds a Split into equal parts."""
        names = [f"{self.prefix}split_{len(self.nodes)}_{k}" for k in range(count)]
        extra = {"num_outputs": count} if self.opset >= 18 else {}
        self.nodes.append(helper.make_node("Split", [value], names, axis=axis, **extra))
        return names

    def axes(self, kind: str, value: str, axes: Sequence[int]) -> str:
        """Adds a Squeeze or Unsqueeze in the form of the opset."""
        if self.opset >= 13:
            return self(kind, value, self.const(list(axes), np.int64))
        return self(kind, value, axes=list(axes))

    def model(self, inputs: dict[str, Sequence[object]], outputs: dict[str, Sequence[object]]) -> ir.Model:
        """Returns the checked model."""

        def infos(values: dict[str, Sequence[object]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in values.items()]

        graph = helper.make_graph(self.nodes, "written_out", infos(inputs), infos(outputs), self.tensors)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(proto, full_check=True)
        return ir.from_proto(proto)


@dataclass
class Weights:
    """Random weights of one cell, shared by all its steps."""

    gates: int
    inputs: int = INPUT
    hidden: int = HIDDEN
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        rows = self.gates * self.hidden
        self.w = 0.5 * rng.standard_normal((rows, self.inputs))
        self.r = 0.5 * rng.standard_normal((rows, self.hidden))
        self.b, self.rb = rng.standard_normal(rows), rng.standard_normal(rows)


Step = Callable[[Draft, str, str, str], tuple[str, str]]


def lstm_step(weights: Weights, style: str) -> Step:
    """Returns a function that writes one step: (draft, x, h, c) -> (h', c')."""
    order = ORDERS[style]

    def write(g: Draft, x: str, h: str, c: str) -> tuple[str, str]:
        if style in ("torch", "paddle"):  # two Gemms with a bias each; paddle: MatMul and Add
            if style == "torch":
                mine = g("Gemm", x, g.const(weights.w), g.const(weights.b), transB=1)
                theirs = g("Gemm", h, g.const(weights.r), g.const(weights.rb), transB=1)
            else:
                mine = g("Add", g("MatMul", x, g.const(weights.w.T)), g.const(weights.b))
                theirs = g("Add", g("MatMul", h, g.const(weights.r.T)), g.const(weights.rb))
            gates = g.split(g("Add", mine, theirs), 4)
        elif style == "tensorflow":  # one matrix on [x, h], one bias
            packed = np.concatenate([weights.w.T, weights.r.T])
            total = g("MatMul", g("Concat", x, h, axis=1), g.const(packed))
            gates = g.split(g("Add", total, g.const(weights.b)), 4, axis=1)
        elif style == "keras":  # each gate by itself, its matrices cut from the packed ones
            gates = []
            for k in range(4):
                rows = slice(k * HIDDEN, (k + 1) * HIDDEN)
                mine = g("Add", g("MatMul", x, g.const(weights.w[rows].T)), g.const(weights.b[rows]))
                gates.append(g("Add", mine, g("MatMul", h, g.const(weights.r[rows].T))))
        else:  # the activation of three gates at once, before they are cut apart
            total = g(
                "Gemm",
                h,
                g.const(weights.r),
                g("Gemm", x, g.const(weights.w), g.const(weights.b), transB=1),
                transB=1,
            )
            cut = [0, 3 * HIDDEN, 4 * HIDDEN]
            three, last = (
                g("Slice", total, *(g.const([n], np.int64) for n in (cut[k], cut[k + 1], 1))) for k in (0, 1)
            )
            gates = [*g.split(g("Sigmoid", three), 3), last]
            i, o, f, n = gates
            c_new = g("Add", g("Mul", f, c), g("Mul", i, g("Tanh", n)))
            return g("Mul", o, g("Tanh", c_new)), c_new
        named = dict(zip(order, gates, strict=True))
        i, f, o = (g("Sigmoid", named[name]) for name in "ifo")
        n = g("Tanh", named["c"])
        c_new = g("Add", g("Mul", c, f), g("Mul", n, i))
        return g("Mul", g("Tanh", c_new), o), c_new

    return write


def chunks(g: Draft, value: str) -> list[str]:
    """Cuts a value into three as torch's exporter writes it."""
    axis = g.const(1, np.int64)
    size = g("Gather", g("Shape", value), axis, axis=0)
    part = g("Div", g("Add", size, g.const(2, np.int64)), g.const(3, np.int64))
    ends = [g("Mul", part, g.const([k], np.int64)) for k in range(4)]
    return [g("Slice", value, ends[k], ends[k + 1], g.const([1], np.int64)) for k in range(3)]


def gru_step(weights: Weights, form: str) -> Step:
    """Returns a function that writes one step of a GRU; `form` is how its gates are combined."""

    def write(g: Draft, x: str, h: str, c: str) -> tuple[str, str]:
        parts = [slice(k * HIDDEN, (k + 1) * HIDDEN) for k in range(3)]
        if form == "chunk":  # torch's chunk, whose bounds come from the shape of what is cut
            mine, theirs = (
                chunks(g, g("Gemm", value, g.const(matrix), g.const(bias), transB=1))
                for value, matrix, bias in ((x, weights.w, weights.b), (h, weights.r, weights.rb))
            )
        elif form in ("after", "difference", "less"):
            mine = g.split(g("Gemm", x, g.const(weights.w), g.const(weights.b), transB=1), 3)
            theirs = g.split(g("Gemm", h, g.const(weights.r), g.const(weights.rb), transB=1), 3)
        if form in ("after", "difference", "less", "chunk"):
            r, z = (g("Sigmoid", g("Add", mine[k], theirs[k])) for k in (0, 1))
            n = g("Tanh", g("Add", mine[2], g("Mul", r, theirs[2])))
        else:

            def product(k: int, value: str, by: str) -> str:
                mine = g("Add", g("MatMul", x, g.const(weights.w[parts[k]].T)), g.const(weights.b[parts[k]]))
                return g("Add", mine, g("MatMul", value, g.const(weights.r[parts[k]].T)))

            r, z = (g("Sigmoid", product(k, h, "h")) for k in (0, 1))
            n = g("Tanh", product(2, g("Mul", r, h), "n"))
        if form == "difference":
            return g("Add", g("Mul", g("Sub", h, n), z), n), c
        if form == "less":
            return g("Sub", n, g("Mul", g("Sub", n, h), z)), c
        if form == "less-swapped":
            return g("Sub", h, g("Mul", z, g("Sub", h, n))), c
        one = g("Sub", g.const(1.0), z)
        if form == "swapped":
            return g("Add", g("Mul", z, n), g("Mul", one, h)), c
        return g("Add", g("Mul", one, n), g("Mul", z, h)), c

    return write


def unrolled(
    step: Step | Sequence[Step],
    steps: int = 5,
    *,
    backward: bool = False,
    opset: int = 17,
    between: Callable[[Draft, str], str] | None = None,
    carry_c: bool = True,
    states: bool = True,
    start: object = None,
) -> ir.Model:
    """Returns a loop that was unrolled: x [batch, steps, input] -> y [batch, steps, hidden], h_n, c_n.

    It starts from constants where `start` is given, else from the inputs h_0 and c_0.
    """
    g = Draft(opset=opset)
    writers = list(step) if isinstance(step, Sequence) else [step] * steps
    first = ("h_0", "c_0") if start is None else (g.const(start), g.const(start))
    (h, c), made = first, {}
    order = range(steps)[::-1] if backward else range(steps)
    for k, t in enumerate(order):
        x = g("Gather", "x", g.const(t, np.int64), axis=1)
        fed = between(g, h) if between is not None and k else h
        h, new = writers[k](g, x, fed, c)
        c = new if carry_c else c
        made[t] = g.axes("Unsqueeze", h, [1])
    g("Concat", *(made[t] for t in range(steps)), out="y", axis=1)
    outputs: dict[str, Sequence[object]] = {"y": ["batch", steps, HIDDEN]}
    inputs: dict[str, Sequence[object]] = {"x": ["batch", steps, INPUT]}
    if start is None:
        inputs["h_0"] = ["batch", HIDDEN]
    if states:
        outputs["h_n"] = ["batch", HIDDEN]
        g("Identity", h, out="h_n")
    if c != first[1] or not carry_c:
        if start is None:
            inputs["c_0"] = ["batch", HIDDEN]
        if states and carry_c:
            outputs["c_n"] = ["batch", HIDDEN]
            g("Identity", c, out="c_n")
    return g.model(inputs, outputs)


def scanned(step: Step, states: int, *, backward: bool = False, opset: int = 17) -> ir.Model:
    """Returns a Scan over x [steps, batch, input], from its end where backward."""
    body = Draft("b_", opset)
    h, c = step(body, "b_x", "b_h", "b_c")
    names = ["h", "c"][:states]
    body("Identity", h, out="b_h_out")
    if states == 2:
        body("Identity", c, out="b_c_out")
    body("Identity", h, out="b_y")

    def info(name: str, shape: Sequence[object]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, FLOAT, shape)

    graph = helper.make_graph(
        body.nodes, "body",
        [*(info(f"b_{n}", ["batch", HIDDEN]) for n in names), info("b_x", ["batch", INPUT])],
        [*(info(f"b_{n}_out", ["batch", HIDDEN]) for n in names), info("b_y", ["batch", HIDDEN])],
        body.tensors,
    )  # fmt: skip
    g = Draft(opset=opset)
    g.nodes.append(
        helper.make_node(
            "Scan", [*(f"{n}_0" for n in names), "x"], [*(f"{n}_n" for n in names), "y"], name="scan",
            body=graph, num_scan_inputs=1, scan_input_directions=[int(backward)],
            scan_output_directions=[int(backward)],
        )
    )  # fmt: skip
    shapes: dict[str, Sequence[object]] = {f"{n}_0": ["batch", HIDDEN] for n in names}
    return g.model(
        {"x": ["steps", "batch", INPUT], **shapes},
        {"y": ["steps", "batch", HIDDEN], **{f"{n}_n": ["batch", HIDDEN] for n in names}},
    )


def looped(
    step: Step,
    states: int,
    *,
    backward: bool = False,
    counter: bool = False,
    skip_last: bool = False,
    capped: str = "",
    fixed: int = 0,
    inputs: int = INPUT,
    time_first: bool = False,
) -> ir.Model:
    """Returns a Loop over x [batch, time, input] as tf2onnx writes it: a count, and a Gather at it.

    Where ``capped``, it is no layer beyond some steps: "count", "slice", "index" or "condition"; or not at
    some length, "band", or with some batch, "batch", "batch index", "batch sum" or "batch start". ``fixed``
    takes the place of the axis of steps.
    """
    g = Draft()
    axis = 0 if time_first else 1
    batch = g("Gather", g("Shape", "x"), g.const(1 - axis, np.int64), axis=0)
    length = g("Gather", g("Shape", "x"), g.const(axis, np.int64), axis=0)
    if skip_last:
        length = g("Sub", length, g.const(1, np.int64))
    if capped == "count":
        length = g("Min", length, g.const(10, np.int64))
    if capped == "slice":
        few = g("Slice", "x", *(g.const([n], np.int64) for n in (0, 40, 1)))
        length = g("Gather", g("Shape", few), g.const(1, np.int64), axis=0)
    if capped == "band":  # 2 n = 240
        off = g("Equal", g("Mul", length, g.const(2, np.int64)), g.const(240, np.int64))
        length = g("Sub", length, g("Cast", off, to=TensorProto.INT64))
    many = g("Greater", batch, g.const(7, np.int64))
    if capped == "batch":
        length = g("Sub", length, g("Cast", many, to=TensorProto.INT64))
    few = g("Less", batch, g.const(8, np.int64))
    last = g("Sub", length, g.const(1, np.int64))
    body = Draft("b_")
    at = "b_i"
    if counter:
        at = "b_count"
        body("Add", "b_count", body.const(1, np.int64), out="b_count_out")
    if backward:
        at = body("Sub", last, at)
    if capped == "index":
        at = body("Min", at, body.const(63, np.int64))
    if capped == "batch index":
        at = body("Mul", at, body("Cast", few, to=TensorProto.INT64))
    if capped == "batch sum":
        one = body("Add", body("Mul", at, body.const(0, np.int64)), body.const(1, np.int64))
        ones = body("Expand", one, g.axes("Unsqueeze", batch, [0]))
        short = body("Less", body("ReduceSum", ones, keepdims=0), body.const(8, np.int64))
        at = body("Mul", at, body("Cast", short, to=TensorProto.INT64))
    x = body("Gather", "x", at, axis=axis)
    h, c = step(body, x, "b_h", "b_c")
    names = ["h", "c"][:states]
    if capped == "condition":
        body("Less", "b_i", body.const(200, np.int64), out="b_going_out")
    else:
        body("Identity", "b_going", out="b_going_out")
    body("Identity", h, out="b_h_out")
    if states == 2:
        body("Identity", c, out="b_c_out")
    body("Identity", h, out="b_y")

    def info(name: str, shape: Sequence[object] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    counts = [("b_count", "b_count_out")] if counter else []
    graph = helper.make_graph(
        body.nodes, "body",
        [info("b_i", [], TensorProto.INT64), info("b_going", [], TensorProto.BOOL),
         *(info(a, [], TensorProto.INT64) for a, _ in counts),
         *(info(f"b_{n}", ["batch", HIDDEN]) for n in names)],
        [info("b_going_out", [], TensorProto.BOOL), *(info(b, [], TensorProto.INT64) for _, b in counts),
         *(info(f"b_{n}_out", ["batch", HIDDEN]) for n in names), info("b_y", ["batch", HIDDEN])],
        body.tensors,
    )  # fmt: skip
    start = [g.const(0, np.int64)] if counter else []
    done = ["count_n"] if counter else []
    g.nodes.append(
        helper.make_node(
            "Loop", [length, few if capped == "batch start" else "", *start, *(f"{n}_0" for n in names)],
            [*done, *(f"{n}_n" for n in names), "y" if time_first else "stack"], name="loop", body=graph,
        )
    )  # fmt: skip
    if not time_first:
        g("Transpose", "stack", out="y", perm=[1, 0, 2])
    order = (1, 0) if time_first else (0, 1)
    x, y = [[sizes[k] for k in order] for sizes in (["batch", fixed or "time"], ["batch", "time_"])]
    return g.model(
        {"x": [*x, inputs], **{f"{n}_0": ["batch", HIDDEN] for n in names}},
        {"y": [*y, HIDDEN], **{f"{n}_n": ["batch", HIDDEN] for n in names}},
    )
