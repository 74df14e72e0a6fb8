"""Matrix products, convolutions, pooling and resampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lstmopt.bridge.elementwise import plus_bias
from lstmopt.bridge.node import Node, Op, ints

CONVOLUTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
MAX_POOLS: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
RESIZE_WITH_ROI = 11
"""First opset whose Resize has a region as its second input, and modes."""

AVERAGE_POOLS: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Numpy's matmul."""
    return torch.matmul(a, b)


def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """``alpha a b + beta c``, each factor optionally transposed."""
    a = a.t() if node.get("transA", 0) else a
    b = b.t() if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = a @ b
    product = product if alpha == 1.0 else alpha * product
    if c is None:
        return product
    return plus_bias(product, c if beta == 1.0 else beta * c)


def einsum(node: Node, *inputs: Tensor) -> Tensor:
    """Torch reads the same equations."""
    return torch.einsum(node.get("equation"), *inputs)


def _pads(
    node: Node, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Returns the pads before and after each axis of the space."""
    rank, auto = len(sizes), node.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = list(node.get("pads") or [0] * 2 * rank)
        return pads[:rank], pads[rank:]
    if auto == "VALID":
        return [0] * rank, [0] * rank
    totals = [
        max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)
    ]
    halves = [total // 2 for total in totals]
    rest = [total - half for total, half in zip(totals, halves, strict=True)]
    return (halves, rest) if auto == "SAME_UPPER" else (rest, halves)


def _pad(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    if not any(before) and not any(after):
        return x
    amounts = [item for pair in zip(reversed(before), reversed(after), strict=True) for item in pair]
    return F.pad(x, amounts, value=value)


def conv(node: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Convolution over one to three axes of space."""
    rank = x.ndim - 2
    stride, dilation = node.get("strides") or [1] * rank, node.get("dilations") or [1] * rank
    before, after = _pads(node, x.shape[2:], w.shape[2:], stride, dilation)
    function, groups = CONVOLUTIONS[rank - 1], node.get("group", 1)
    if before == after:
        result: Tensor = function(x, w, b, stride, before, dilation, groups)
    else:
        result = function(_pad(x, before, after), w, b, stride, 0, dilation, groups)
    return result


def conv_transpose(node: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Transposed convolution: the whole result, of which the pads are cut off."""
    rank = x.ndim - 2
    stride, dilation = node.get("strides") or [1] * rank, node.get("dilations") or [1] * rank
    extra = list(node.get("output_padding") or [0] * rank)
    whole = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, k, s, d, e in zip(x.shape[2:], w.shape[2:], stride, dilation, extra, strict=True)
    ]
    wanted, auto = node.get("output_shape"), node.get("auto_pad", "NOTSET")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    if wanted is None:
        pads = list(node.get("pads") or [0] * 2 * rank)
        before, after = pads[:rank], pads[rank:]
    else:
        totals = [a - b for a, b in zip(whole, list(wanted)[-rank:], strict=True)]
        extra = [e + max(0, -total) for e, total in zip(extra, totals, strict=True)]
        whole = [size + max(0, -total) for size, total in zip(whole, totals, strict=True)]
        totals = [max(0, total) for total in totals]
        halves = [total // 2 for total in totals]
        rest = [total - half for total, half in zip(totals, halves, strict=True)]
        before, after = (halves, rest) if auto == "SAME_UPPER" else (rest, halves)
    function = TRANSPOSED[rank - 1]
    result: Tensor = function(x, w, b, stride, 0, 0, node.get("group", 1), dilation)
    # torch wants output_padding below the stride: the rows that it adds hold the bias alone
    result = _pad(result, [0] * rank, extra)
    if b is not None and any(extra):
        inside = torch.ones_like(result[:1, :1], dtype=torch.bool)
        for axis, (e, size) in enumerate(zip(extra, whole, strict=True)):
            inside.narrow(axis + 2, size - e, e).fill_(False)
        result = torch.where(inside, result, b.reshape(1, -1, *[1] * rank))
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        result = result.narrow(axis + 2, low, result.shape[axis + 2] - low - high)
    return result


def _pool_geometry(
    node: Node, x: Tensor
) -> tuple[list[int], list[int], list[int], list[int], list[int], list[int]]:
    rank = x.ndim - 2
    kernel = list(node.get("kernel_shape"))
    stride = list(node.get("strides") or [1] * rank)
    dilation = list(node.get("dilations") or [1] * rank)
    before, after = _pads(node, x.shape[2:], kernel, stride, dilation)
    beyond = [0] * rank
    if node.get("ceil_mode", 0):
        for axis in range(rank):
            reach = (kernel[axis] - 1) * dilation[axis] + 1
            padded = x.shape[axis + 2] + before[axis] + after[axis]
            count = -(-(padded - reach) // stride[axis]) + 1
            if (count - 1) * stride[axis] >= x.shape[axis + 2] + before[axis]:
                count -= 1
            beyond[axis] = max(0, (count - 1) * stride[axis] + reach - padded)
    return kernel, stride, dilation, list(before), list(after), beyond


def max_pool(node: Node, x: Tensor) -> Tensor:
    """Largest value of each window."""
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        raise node.error("the output of indices is not supported")
    kernel, stride, dilation, before, after, beyond = _pool_geometry(node, x)
    after = [a + b for a, b in zip(after, beyond, strict=True)]
    x = _pad(x, before, after, float("-inf"))
    result: Tensor = MAX_POOLS[x.ndim - 3](x, kernel, stride, 0, dilation)
    return result


def average_pool(node: Node, x: Tensor) -> Tensor:
    """Mean of each window; pads count where ``count_include_pad``."""
    kernel, stride, dilation, before, after, beyond = _pool_geometry(node, x)
    if any(item != 1 for item in dilation):
        raise node.error("dilations are not supported")
    pool, nothing = AVERAGE_POOLS[x.ndim - 3], [0] * len(kernel)
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype)
    counted = _pad(counted, before, after, 1.0 if node.get("count_include_pad", 0) else 0.0)
    counted = _pad(counted, nothing, beyond)
    x = _pad(_pad(x, before, after), nothing, beyond)
    result: Tensor = pool(x, kernel, stride) / pool(counted, kernel, stride)
    return result


def global_average_pool(node: Node, x: Tensor) -> Tensor:
    """Mean over the space."""
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def global_max_pool(node: Node, x: Tensor) -> Tensor:
    """Largest value over the space."""
    return torch.amax(x, list(range(2, x.ndim)), keepdim=True)


def upsample(node: Node, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """The operator that Resize replaced."""
    given = node.get("scales") if scales is None else scales.tolist()
    factors = [np.float32(item) for item in given]
    sizes = [int(np.float32(n) * f) for n, f in zip(x.shape, factors, strict=True)]
    return _resize(node, x, sizes, factors, list(range(x.ndim)), "asymmetric", "simple")


def resize(
    node: Node,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Nearest or linear resampling, axis by axis; sizes and places in float32, as ONNX Runtime has them."""
    if node.opset < RESIZE_WITH_ROI:
        return upsample(node, x, roi)  # its second input is the scales
    axes = [axis % x.ndim for axis in node.get("axes") or range(x.ndim)]
    if sizes is not None and sizes.numel():
        wanted = ints(sizes)
        factors = [np.float32(n) / np.float32(x.shape[axis]) for n, axis in zip(wanted, axes, strict=True)]
    elif scales is not None and scales.numel():
        factors = [np.float32(item) for item in scales.tolist()]
        wanted = [int(np.float32(x.shape[axis]) * f) for axis, f in zip(axes, factors, strict=True)]
    else:
        raise node.error("has neither scales nor sizes")
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch" or node.get("antialias", 0):
        raise node.error("aspect ratio policies and antialiasing are not supported")
    transform = node.get("coordinate_transformation_mode", "half_pixel")
    return _resize(node, x, wanted, factors, axes, transform, node.get("nearest_mode", "round_prefer_floor"))


def _resize(
    node: Node,
    x: Tensor,
    sizes: list[int],
    factors: list[np.float32],
    axes: list[int],
    transform: str,
    nearest: str,
) -> Tensor:
    mode = node.get("mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise node.error(f"mode {mode!r} is not supported")
    for axis, size, factor in zip(axes, sizes, factors, strict=True):
        length = x.shape[axis]
        if size == length and factor == 1.0:
            continue
        source = _coordinates(node, transform, length, size, factor)
        if mode == "nearest":
            x = x.index_select(axis, _nearest(nearest, source, bool(factor < 1)).clamp(0, length - 1))
            continue
        source = source.clamp(0, length - 1)
        low = source.floor().long()
        share = (source - low).to(x.dtype).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        high = (low + 1).clamp(max=length - 1)
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    return x


def _coordinates(node: Node, transform: str, length: int, size: int, factor: np.float32) -> Tensor:
    places = np.arange(size, dtype=np.float32)
    if transform == "asymmetric":
        places = places / factor
    elif transform == "align_corners":
        places = places * np.float32(length - 1) / np.float32(max(1, size - 1))
    elif transform == "pytorch_half_pixel" and size <= 1:
        places = places * np.float32(0)
    elif transform in ("half_pixel", "pytorch_half_pixel"):
        places = (places + np.float32(0.5)) / factor - np.float32(0.5)
    else:
        raise node.error(f"coordinate_transformation_mode {transform!r} is not supported")
    return torch.from_numpy(places.astype(np.float64))


def _nearest(mode: str, source: Tensor, smaller: bool) -> Tensor:
    if mode == "simple":  # before there was a mode
        mode = "ceil" if smaller else "floor"
    if mode == "floor":
        return source.floor().long()
    if mode == "ceil":
        return source.ceil().long()
    if mode == "round_prefer_ceil":
        return (source + 0.5).floor().long()
    return (source - 0.5).ceil().long()


LINEAR: Mapping[str, Op] = {
    "AveragePool": average_pool, "Conv": conv, "ConvTranspose": conv_transpose, "Einsum": einsum,
    "Gemm": gemm, "GlobalAveragePool": global_average_pool, "GlobalMaxPool": global_max_pool,
    "MatMul": matmul, "MaxPool": max_pool, "Resize": resize, "Upsample": upsample,
}  # fmt: skip
