"""Which nodes can be trained through: the bridge's operators by name, since it is there only with torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lstmopt.rnn.constants import bodies_of

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAINS = frozenset({"", "ai.onnx"})
TRAINABLE = frozenset(
    {
        "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
        "Attention", "AveragePool", "BatchNormalization", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
        "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Compress", "Concat",
        "ConcatFromSequence", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumProd",
        "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "DynamicQuantizeLinear",
        "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU",
        "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
        "Greater", "GreaterOrEqual", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax",
        "Identity", "If", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM",
        "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop",
        "LpNormalization", "MatMul", "MatMulInteger", "Max", "MaxPool", "Mean",
        "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot",
        "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "RMSNormalization", "RNN", "Range",
        "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
        "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape",
        "Resize", "ReverseSequence", "Round", "Scan", "Scatter", "ScatterElements", "ScatterND",
        "Selu", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
        "SequenceLength", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice",
        "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "SplitToSequence", "Sqrt",
        "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK",
        "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
    }
)  # fmt: skip
"""What `lstmopt.bridge` executes (a test holds the two together)."""

ATTENTION_ATTRIBUTES = frozenset(
    {"is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap"}
)
CAST_TO = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16})
"""ONNX's numbers of the types that the bridge casts to: all but strings, complex and narrow floats."""

COORDINATES = frozenset({"align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel"})
"""How the bridge's Resize finds where a value comes from."""


def frozen_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yields the nodes that cannot be trained through, those of bodies that can run included."""
    for node in graph:
        if is_frozen(node):
            yield node
        for body in bodies_of(node).values():
            yield from frozen_nodes(body)


def is_frozen(node: ir.Node) -> bool:
    """Whether ONNX Runtime has to run a node: the bridge lacks the operator, or this form of it."""
    known = node.domain in DOMAINS and (node.op_type in TRAINABLE or node.op_type == "Constant")
    return not known or _is_odd(node)


def _is_odd(node: ir.Node) -> bool:
    """Whether an operator of the bridge has attributes or results that its function refuses."""

    def text(name: str, default: str) -> str:
        return node.attributes[name].as_string() if name in node.attributes else default

    def number(name: str) -> int:
        return node.attributes[name].as_int() if name in node.attributes else 0

    match node.op_type:
        case "BatchNormalization":
            return number("training_mode") != 0 or _outputs(node) > 1
        case "Cast":
            return number("to") not in CAST_TO
        case "Resize":
            return (
                text("mode", "nearest") == "cubic"
                or text("coordinate_transformation_mode", "half_pixel") not in COORDINATES
                or text("keep_aspect_ratio_policy", "stretch") != "stretch"
                or number("antialias") == 1
            )
        case "MaxPool":
            return _outputs(node) > 1
        case "AveragePool":
            return "dilations" in node.attributes and set(node.attributes["dilations"].as_ints()) != {1}
        case "ScatterND":
            return text("reduction", "none") not in ("none", "add")
        case "Attention":
            more = any(value is not None for value in node.inputs[4:]) or _outputs(node) > 1
            return more or not set(node.attributes) <= ATTENTION_ATTRIBUTES
        case "QuantizeLinear" | "DequantizeLinear":
            return number("block_size") != 0
    return False


def _outputs(node: ir.Node) -> int:
    return sum(bool(value.name) for value in node.outputs)


def title(node: ir.Node) -> str:
    """Returns an operator's name, with its domain where that is not ONNX's own."""
    return node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}"
