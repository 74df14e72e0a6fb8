"""Operators that work element by element, with ONNX's broadcasting (which is torch's)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lstmopt.bridge.node import Node, Op

# ONNX's TensorProto.DataType; floats that are narrower than the computation's are computed in its type.
COMPUTED_FLOATS = frozenset({1, 10, 16})
DTYPES: Mapping[int, torch.dtype] = {
    2: torch.uint8, 3: torch.int8, 4: torch.int32, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 11: torch.float64, 12: torch.int64, 13: torch.int64,
}  # fmt: skip


def _unary(function: Callable[[Tensor], Tensor]) -> Op:
    return lambda node, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    return lambda node, a, b: function(a, b)


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    return lambda node, *inputs: reduce(function, inputs)


def torch_dtype(node: Node, number: int) -> torch.dtype:
    """Returns the torch type of an ONNX type number."""
    if number in COMPUTED_FLOATS:
        return node.run.dtype
    if number not in DTYPES:
        raise node.error(f"tensor type {number} cannot be trained through")
    return DTYPES[number]


def plus_bias(product: Tensor, bias: Tensor) -> Tensor:
    """Adds a smaller tensor to a product in the product's type.

    Under autocast a product is bfloat16 and its bias float32: torch would write all scores of a large
    vocabulary once more in float32.
    """
    narrow = product.dtype == torch.bfloat16 and bias.dtype == torch.float32
    return product + (bias.to(product.dtype) if narrow and bias.numel() < product.numel() else bias)


def add(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """A sum; see `plus_bias`."""
    return plus_bias(a, b) if a.numel() > b.numel() else plus_bias(b, a)


def div(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """``fmod=1``: the sign of the dividend; otherwise that of the divisor."""
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


def power(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """The result has the base's type."""
    return torch.pow(a, b).to(a.dtype)


def clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are inputs, before opset 11 attributes."""
    lower = node.get("min") if low is None else low
    upper = node.get("max") if high is None else high
    if lower is not None:
        x = torch.maximum(x, torch.as_tensor(lower, dtype=x.dtype))
    return x if upper is None else torch.minimum(x, torch.as_tensor(upper, dtype=x.dtype))


def cast(node: Node, x: Tensor) -> Tensor:
    """Half precision is computed in the module's own type."""
    return x.to(torch_dtype(node, node.get("to")))


def cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    """The type of the second input."""
    return x.to(like.dtype)


def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """``max(0, min(1, alpha x + beta))``."""
    alpha, beta = float(node.get("alpha", 0.2)), float(node.get("beta", 0.5))
    return (alpha * x + beta).clamp(0, 1)


def leaky_relu(node: Node, x: Tensor) -> Tensor:
    """``x`` where positive, else ``alpha x``."""
    return F.leaky_relu(x, node.get("alpha", 0.01))


def prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """``x`` where positive, else ``slope x``."""
    return torch.where(x >= 0, x, x * slope)


def elu(node: Node, x: Tensor) -> Tensor:
    """``x`` where positive, else ``alpha (exp(x) - 1)``."""
    return F.elu(x, node.get("alpha", 1.0))


def celu(node: Node, x: Tensor) -> Tensor:
    """``max(0, x) + min(0, alpha (exp(x / alpha) - 1))``."""
    return F.celu(x, node.get("alpha", 1.0))


def selu(node: Node, x: Tensor) -> Tensor:
    """``gamma`` times an elu of ``alpha``."""
    gamma: float = node.get("gamma", 1.0507009873554805)
    alpha: float = node.get("alpha", 1.6732632423543772)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def thresholded_relu(node: Node, x: Tensor) -> Tensor:
    """``x`` above ``alpha``, else 0."""
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


def gelu(node: Node, x: Tensor) -> Tensor:
    """Exact, or the tanh approximation."""
    return F.gelu(x, approximate=node.get("approximate", "none"))


def swish(node: Node, x: Tensor) -> Tensor:
    """``x sigmoid(alpha x)``."""
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


def shrink(node: Node, x: Tensor) -> Tensor:
    """Moves what is beyond ``lambd`` by ``bias`` towards 0; the rest is 0."""
    bound, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, zero)).to(x.dtype)


def where(node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a`` where the condition holds, else ``b``."""
    return torch.where(condition, a, b)


def is_inf(node: Node, x: Tensor) -> Tensor:
    """Infinities of the signs asked for."""
    positive = torch.isposinf(x) if node.get("detect_positive", 1) else torch.zeros_like(x, dtype=torch.bool)
    return positive | torch.isneginf(x) if node.get("detect_negative", 1) else positive


def mean(node: Node, *inputs: Tensor) -> Tensor:
    """Mean of the inputs."""
    return reduce(torch.add, inputs) / len(inputs)


def _identity(node: Node, x: Any, *rest: Any) -> Any:
    return x


def dropout(node: Node, x: Tensor, *rest: Tensor | None) -> tuple[Tensor, Tensor]:
    """An exported model is one for inference: nothing is dropped here (see ``OnnxModule.dropout``)."""
    return x, torch.ones_like(x, dtype=torch.bool)


ELEMENTWISE: Mapping[str, Op] = {
    "Abs": _unary(torch.abs), "Acos": _unary(torch.acos), "Acosh": _unary(torch.acosh),
    "Asin": _unary(torch.asin), "Asinh": _unary(torch.asinh), "Atan": _unary(torch.atan),
    "Atanh": _unary(torch.atanh), "Ceil": _unary(torch.ceil), "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh), "Erf": _unary(torch.erf), "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor), "HardSwish": _unary(F.hardswish), "IsNaN": _unary(torch.isnan),
    "Log": _unary(torch.log), "Mish": _unary(F.mish), "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not), "Reciprocal": _unary(torch.reciprocal), "Relu": _unary(torch.relu),
    "Round": _unary(torch.round), "Sigmoid": _unary(torch.sigmoid), "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin), "Sinh": _unary(torch.sinh), "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign), "Sqrt": _unary(torch.sqrt), "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "BitwiseAnd": _binary(torch.bitwise_and), "BitwiseNot": _unary(torch.bitwise_not),
    "BitwiseOr": _binary(torch.bitwise_or), "BitwiseXor": _binary(torch.bitwise_xor), "Shrink": shrink,
    "Add": add, "And": _binary(torch.logical_and), "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt), "GreaterOrEqual": _binary(torch.ge), "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le), "Mul": _binary(torch.mul), "Or": _binary(torch.logical_or),
    "Sub": _binary(torch.sub), "Xor": _binary(torch.logical_xor), "Div": div, "Mod": mod, "Pow": power,
    "Max": _variadic(torch.maximum), "Min": _variadic(torch.minimum), "Sum": _variadic(torch.add),
    "Mean": mean, "Cast": cast, "CastLike": cast_like, "Celu": celu, "Clip": clip, "Dropout": dropout,
    "Elu": elu, "Gelu": gelu, "HardSigmoid": hard_sigmoid, "Identity": _identity, "IsInf": is_inf,
    "LeakyRelu": leaky_relu, "PRelu": prelu, "Selu": selu, "Swish": swish,
    "ThresholdedRelu": thresholded_relu, "Where": where,
}  # fmt: skip
