"""Operators that reduce along axes, and the normalisations built from such reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from lstmopt.bridge.node import Node, Op, operand


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for axis in sorted(dims, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Op:
    def reduced(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        wanted = operand(node, "axes", axes)
        if not wanted:
            if node.get("noop_with_empty_axes", 0):
                return x
            wanted = list(range(x.ndim))
        return function(x, [axis % x.ndim for axis in wanted], bool(node.get("keepdims", 1)))

    return reduced


def _arg(function: Callable[..., Tensor]) -> Op:
    def arg(node: Node, x: Tensor) -> Tensor:
        axis = node.get("axis", 0) % x.ndim
        found: Tensor
        if node.get("select_last_index", 0):
            found = function(x.flip(axis), dim=axis, keepdim=True).neg() + (x.shape[axis] - 1)
        else:
            found = function(x, dim=axis, keepdim=True)
        return found if node.get("keepdims", 1) else found.squeeze(axis)

    return arg


def cum_sum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    """Running sums, optionally backwards or without the entry itself."""
    along = int(axis)
    x = x.flip(along) if node.get("reverse", 0) else x
    total = x.cumsum(along, dtype=x.dtype)
    total = total - x if node.get("exclusive", 0) else total
    return total.flip(along) if node.get("reverse", 0) else total


def cum_prod(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    """Running products, optionally backwards or without the entry itself."""
    along = int(axis)
    x = x.flip(along) if node.get("reverse", 0) else x
    if node.get("exclusive", 0):
        x = torch.cat([torch.ones_like(x.narrow(along, 0, 1)), x.narrow(along, 0, x.shape[along] - 1)], along)
    total = x.cumprod(along, dtype=x.dtype)
    return total.flip(along) if node.get("reverse", 0) else total


def hardmax(x: Tensor, axis: int) -> Tensor:
    """1 at the first largest entry along an axis, else 0."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def mean_variance_normalization(node: Node, x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the axes."""
    axes = list(node.get("axes") or (0, 2, 3))
    centred = x - x.mean(axes, keepdim=True)
    result: Tensor = centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)
    return result


def local_response_normalization(node: Node, x: Tensor) -> Tensor:
    """Divides by the energy of neighbouring channels."""
    size = node.get("size")
    padding = [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size - 1 - (size - 1) // 2]
    energy = F.pad(x.square(), padding).unfold(1, size, 1).sum(-1)
    alpha, beta, bias = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    result: Tensor = x / (bias + alpha / size * energy) ** beta
    return result


def top_k(node: Node, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The largest (or smallest) entries along ``axis`` and where they were."""
    axis = node.get("axis", -1)
    found = torch.sort(x, dim=axis, descending=bool(node.get("largest", 1)), stable=True)
    return found.values.narrow(axis, 0, int(k)), found.indices.narrow(axis, 0, int(k))


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Op:
    def normalised(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, node.get("axis", -1))
        axis = node.get("axis", 1) % x.ndim  # before opset 13 all axes from here on are one
        return function(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)

    return normalised


def batch_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Statistics are those of the model: it was exported for inference."""
    if node.get("training_mode", 0) or len(node.outputs) > 1:
        raise node.error("is in training mode: it has no statistics of its own")
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=node.get("epsilon", 1e-5))


def layer_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean 0 and variance 1 over the axes from ``axis`` on."""
    axis = node.get("axis", -1) % x.ndim
    dims, epsilon = list(range(axis, x.ndim)), node.get("epsilon", 1e-5)
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt(centred.square().mean(dims, keepdim=True) + epsilon)
    result = centred * inverse * scale
    return (result if bias is None else result + bias), mean, inverse


def rms_normalization(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    """Root mean square 1 over the axes from ``axis`` on."""
    dims = list(range(node.get("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + node.get("epsilon", 1e-5)) * scale


def instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the space of each channel of each example."""
    return _grouped(x, x.shape[1], node.get("epsilon", 1e-5)) * _channels(scale, x) + _channels(bias, x)


def group_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The same over groups of channels; scale and bias are one a channel, before opset 21 one a group."""
    groups = node.get("num_groups")
    if len(scale) != x.shape[1]:
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return _grouped(x, groups, node.get("epsilon", 1e-5)) * _channels(scale, x) + _channels(bias, x)


def _grouped(x: Tensor, groups: int, epsilon: float) -> Tensor:
    rows = x.reshape(x.shape[0], groups, -1)
    centred = rows - rows.mean(-1, keepdim=True)
    return (centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + epsilon)).reshape(x.shape)


def _channels(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(1, -1, *[1] * (x.ndim - 2))


def lp_normalization(node: Node, x: Tensor) -> Tensor:
    """Norm 1 along ``axis``."""
    norm = torch.linalg.vector_norm(x, node.get("p", 2), dim=node.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


REDUCTIONS: Mapping[str, Op] = {
    "ReduceL1": _reduction(lambda x, dims, keep: x.abs().sum(dims, keep)),
    "ReduceL2": _reduction(lambda x, dims, keep: torch.linalg.vector_norm(x, 2, dims, keep)),
    "ReduceLogSum": _reduction(lambda x, dims, keep: x.sum(dims, keep).log()),
    "ReduceLogSumExp": _reduction(lambda x, dims, keep: torch.logsumexp(x, dims, keep)),
    "ReduceMax": _reduction(lambda x, dims, keep: torch.amax(x, dims, keep)),
    "ReduceMean": _reduction(lambda x, dims, keep: x.mean(dims, keep)),
    "ReduceMin": _reduction(lambda x, dims, keep: torch.amin(x, dims, keep)),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda x, dims, keep: x.sum(dims, keep)),
    "ReduceSumSquare": _reduction(lambda x, dims, keep: x.square().sum(dims, keep)),
    "ArgMax": _arg(torch.argmax), "ArgMin": _arg(torch.argmin), "CumProd": cum_prod,
    "CumSum": cum_sum, "LRN": local_response_normalization,
    "MeanVarianceNormalization": mean_variance_normalization, "TopK": top_k,
    "Hardmax": _softmax(hardmax),
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax),
    "BatchNormalization": batch_normalization, "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization, "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization, "RMSNormalization": rms_normalization,
}  # fmt: skip
