"""Quantisation around recurrent layers; gradients pass as if nothing were rounded.

Whole numbers that a gradient has to pass through are carried as floats (the straight-through estimator:
Bengio, Leonard and Courville, arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lstmopt.bridge.node import Node, Op

RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int16: (-32768, 32767)}


def _along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """Returns a scale or zero point that lines up with an axis."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if place == axis % x.ndim else 1 for place in range(x.ndim)])


def _quantised(x: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    low, high = RANGES[dtype]
    exact = x / scale
    rounded = exact + (torch.round(exact) - exact).detach() if x.requires_grad else torch.round(exact)
    whole = (rounded + zero).clamp(low, high)
    return whole if whole.requires_grad else whole.to(dtype)


def quantize_linear(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """``round(x / scale) + zero``, saturated."""
    number = {2: torch.uint8, 3: torch.int8, 5: torch.int16}.get(node.get("output_dtype", 0) or 2)
    dtype = number if zero is None else zero.dtype
    if dtype not in RANGES or node.get("block_size", 0):
        raise node.error("quantises to a type or in blocks that are not supported")
    axis = node.get("axis", 1)
    shift = torch.zeros((), dtype=x.dtype) if zero is None else _along(zero, x, axis).to(x.dtype)
    return _quantised(x, _along(scale, x, axis), shift, dtype)


def dequantize_linear(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """``(x - zero) * scale``."""
    if node.get("block_size", 0):
        raise node.error("quantisation in blocks is not supported")
    axis = node.get("axis", 1)
    shifted = x.to(scale.dtype)
    if zero is not None:
        shifted = shifted - _along(zero, x, axis).to(scale.dtype)
    return shifted * _along(scale, x, axis)


def dynamic_quantize_linear(node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantised to uint8 over the range that a tensor has; scale and zero point."""
    seen = x.detach()
    low, high = seen.min().clamp(max=0), seen.max().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / scale).clamp(0, 255)
    return _quantised(x, scale, zero, torch.uint8), scale, zero.to(torch.uint8)


def matmul_integer(
    node: Node, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """The product of whole numbers, from each of which its zero point is taken."""
    # float64 holds every sum of products of bytes exactly.
    wide = torch.float32 if a.requires_grad or b.requires_grad else torch.float64
    one, other = a.to(wide), b.to(wide)
    if a_zero is not None:
        one = one - (a_zero.reshape(-1, 1) if a_zero.numel() > 1 else a_zero.reshape(())).to(wide)
    if b_zero is not None:
        other = other - b_zero.reshape(-1 if b_zero.numel() > 1 else ()).to(wide)
    product = one @ other
    return product if product.requires_grad else product.to(torch.int32)


QUANTISED: Mapping[str, Op] = {
    "DequantizeLinear": dequantize_linear, "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer, "QuantizeLinear": quantize_linear,
}  # fmt: skip
