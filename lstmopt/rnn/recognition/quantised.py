"""Dynamically quantised layers and products, as ONNX Runtime's `quantize_dynamic` writes them, as floats."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import Array, constant_value
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.reader import QUANTISED_LSTM
from lstmopt.rnn.writer import free_name

FORM = (1, 2, 8, 9, 10, 11)
"""Inputs of `DynamicQuantizeLSTM`: W and R, ``[directions, input, 4 * hidden]``, their scales and zeros."""

NOISE = 0.05
"""Largest difference of a state, which lies in -1..1, that rounding its inputs to 8 bits explains."""


def has_quantised(model: ir.Model) -> bool:
    """Whether a model holds dynamically quantised layers or products."""
    kinds = {node.op_type for node in model.graph.all_nodes()}
    return bool(kinds & {QUANTISED_LSTM, "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"})


class FloatLayers(ir.passes.InPlacePass):
    """Gives dynamically quantised LSTMs and products the floats that their integers stand for.

    Args:
        products: whether products are rewritten too.

    Attributes:
        found: how many of each were rewritten.
    """

    def __init__(self, products: bool = True) -> None:
        self.found: Counter[str] = Counter()
        self._products = products

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the nodes of the main graph and of its bodies."""
        for node in list(model.graph.all_nodes()):
            if node.op_type == QUANTISED_LSTM and node.domain == "com.microsoft":
                self.found["LSTM"] += _float_lstm(model, node)
            elif not self._products:
                continue
            elif node.op_type == "MatMulInteger":
                self.found["product"] += _float_product(model, node)
            elif node.op_type == "DynamicQuantizeMatMul" and node.domain == "com.microsoft":
                self.found["product"] += _with_bias(model, node, node.inputs[0], (1, 2, 3), 4)
            elif node.op_type == "MatMulIntegerToFloat" and node.domain == "com.microsoft":
                self.found["product"] += _with_bias(
                    model, node, _before_rounding(node.inputs[0]), (1, 3, 5), 6
                )
        self.found += Counter()
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(self.found))

    @property
    def title(self) -> str:
        """What was found, in words."""
        return " and ".join(
            f"{count} int8 {kind}{'s' * (count > 1)}" for kind, count in sorted(self.found.items())
        )


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


def _dequantised(whole: Array, scale: Array, zero: Array | None) -> Array:
    """Returns floats; a scale or zero holds one number, or one for each entry of the leading or last axis."""
    exact = whole.astype(np.float64)
    shape = _aligned(scale, exact)
    if zero is not None:
        exact = exact - zero.astype(np.float64).reshape(_aligned(zero, exact))
    return np.asarray(exact * scale.astype(np.float64).reshape(shape), np.float32)


def _aligned(parameter: Array, whole: Array) -> tuple[int, ...]:
    if parameter.size == 1:
        return (1,) * whole.ndim
    if whole.ndim == 3 and parameter.shape == whole.shape[:1]:
        return (whole.shape[0], 1, 1)
    if whole.ndim == 3 and parameter.size == whole.shape[0] * whole.shape[2]:
        return (whole.shape[0], 1, whole.shape[2])
    return (*(1,) * (whole.ndim - 1), whole.shape[-1])


def _initializer(model: ir.Model, wanted: str, array: Array) -> ir.Value:
    name = free_name(model.graph, wanted)
    tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
    )
    model.graph.register_initializer(value)
    return value


def _float_lstm(model: ir.Model, node: ir.Node) -> bool:
    arrays = [constant_value(_input(node, position)) for position in FORM]
    w, r, w_scale, w_zero, r_scale, r_zero = arrays
    if w is None or r is None or w_scale is None or r_scale is None or node.graph is None:
        return False
    floats = [
        np.swapaxes(_dequantised(whole, scale, zero), 1, 2)
        for whole, scale, zero in ((w, w_scale, w_zero), (r, r_scale, r_zero))
    ]
    _check_lstm(node, arrays, floats)
    label = node.name or str(node.outputs[0].name)
    weights = [
        _initializer(model, f"{label}.{name}", array) for name, array in zip("WR", floats, strict=True)
    ]
    inputs = [node.inputs[0], *weights, *(_input(node, position) for position in range(3, 8))]
    while inputs[-1] is None:
        inputs.pop()
    made = ir.node("LSTM", inputs, num_outputs=len(node.outputs), name=label)
    made.attributes.update(node.attributes)
    _put(node, made)
    return True


def _put(node: ir.Node, made: ir.Node) -> None:
    """Puts a node in the place of another one, under the same names."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(node, made)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{name}.quantised" if name else name
        new.name = name


def _check_lstm(node: ir.Node, arrays: list[Array | None], floats: list[Array]) -> None:
    """Runs one step of a node by itself in both forms.

    Of two neighbouring inputs one is zero and none is negative: on CPUs without 8-bit dot products the sum
    of two products can saturate otherwise, which is no property of the model.

    Raises:
        LstmoptError: they differ by more than the rounding of the inputs explains.
    """
    directions, hidden, inputs = floats[1].shape[0], floats[1].shape[2], floats[0].shape[2]
    rng = np.random.default_rng(0)
    x, h, c = (
        np.abs(rng.standard_normal((lead, 2, size))).astype(np.float32) * (np.arange(size) % 2 == parity)
        for parity, (lead, size) in ((0, (1, inputs)), (1, (directions, hidden)), (0, (directions, hidden)))
    )
    constants = {FORM[k]: array for k, array in enumerate(arrays)}
    constants |= {3: constant_value(_input(node, 3)), 5: h, 6: c, 7: constant_value(_input(node, 7))}
    rounded = {position: array for position, array in constants.items() if array is not None}
    exact = {k: v for k, v in rounded.items() if k < 8} | {1: floats[0], 2: floats[1]}
    before = _one_step(node, QUANTISED_LSTM, "com.microsoft", rounded, x)
    after = _one_step(node, "LSTM", "", exact, x)
    worst = float(np.abs(before - after).max())
    if not worst <= NOISE:
        raise LstmoptError(
            node.name or QUANTISED_LSTM,
            f"its states differ from those of the float LSTM by up to {worst:.2g}",
            "start from the model before quantisation",
        )


def _one_step(node: ir.Node, kind: str, domain: str, arrays: dict[int, Array], x: Array) -> Array:
    """Returns Y of a node by itself, its inputs constants by their positions."""
    names = [f"i{k}" if k in arrays else "" for k in range(max(arrays) + 1)]
    proto = onnx.helper.make_node(kind, ["x", *names[1:]], ["y"], domain=domain)
    proto.attribute.extend(ir.to_proto(attribute) for attribute in node.attributes.values())
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [proto],
        "step",
        [info("x", onnx.TensorProto.FLOAT, x.shape)],
        [info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(a), f"i{k}") for k, a in arrays.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    return Reference(model).run({"x": x})["y"]


def _before_rounding(value: ir.Value | None) -> ir.Value | None:
    """Returns what a dynamically quantised value was before."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DynamicQuantizeLinear" or value is not node.outputs[0]:
        return None
    return node.inputs[0]


def _float_product(model: ir.Model, node: ir.Node) -> bool:
    """X -> DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul with both scales becomes x @ W."""
    source = _before_rounding(node.inputs[0])
    whole = constant_value(_input(node, 1))
    rounding = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is None or whole is None or rounding is None or _input(node, 2) is not rounding.outputs[2]:
        return False
    cast = _only_reader(node.outputs[0], "Cast")
    product = None if cast is None else _only_reader(cast.outputs[0], "Mul")
    if cast is None or product is None:
        return False
    scales = next((value for value in product.inputs if value is not cast.outputs[0]), None)
    both = None if scales is None else scales.producer()
    if both is None or both.op_type != "Mul" or rounding.outputs[1] not in both.inputs:
        return False
    scale = constant_value(next((v for v in both.inputs if v is not rounding.outputs[1]), None))
    zero_value = _input(node, 3)
    zero = constant_value(zero_value)
    if scale is None or (zero_value is not None and zero is None):
        return False
    weight = _initializer(
        model, f"{node.name or node.outputs[0].name}.weight", _dequantised(whole, scale, zero)
    )
    made = ir.node("MatMul", [source, weight], name=f"{node.name or node.outputs[0].name}.float")
    _put(product, made)
    return True


def _only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    users = [user for user, _ in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == kind and not value.is_graph_output() else None


def _with_bias(
    model: ir.Model, node: ir.Node, source: ir.Value | None, form: tuple[int, int, int], bias_at: int
) -> bool:
    """Rewrites a fused product; ``form``: where its weights, their scale and their zero are."""
    whole, scale, zero = (constant_value(_input(node, position)) for position in form)
    if source is None or whole is None or scale is None or node.graph is None:
        return False
    label = node.name or str(node.outputs[0].name)
    weight = _initializer(model, f"{label}.weight", _dequantised(whole, scale, zero))
    bias = _input(node, bias_at)
    made = ir.node("MatMul", [source, weight], name=f"{label}.float")
    if bias is not None:
        node.graph.insert_before(node, made)
        made = ir.node("Add", [made.outputs[0], bias], name=f"{label}.bias")
    _put(node, made)
    return True
