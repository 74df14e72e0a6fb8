"""ONNX's attention operators, beside the products and softmax that most exporters write."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from lstmopt.bridge.node import Node, Op


def _heads(x: Tensor, count: int | None) -> Tensor:
    """Returns ``[batch, heads, sequence, size]`` of that or of ``[batch, sequence, heads * size]``."""
    if x.ndim == 4:
        return x
    assert count is not None
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def attention(node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot products; keys and values may have fewer heads, the mask is added or says what counts."""
    flat = q.ndim == 3
    q = _heads(q, node.get("q_num_heads"))
    k, v = (_heads(each, node.get("kv_num_heads")) for each in (k, v))
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scale = math.sqrt(node.get("scale") or 1 / math.sqrt(q.shape[-1]))
    scores = (q * scale) @ (k * scale).transpose(-1, -2)
    bias = torch.zeros(scores.shape[-2:], dtype=scores.dtype)
    if node.get("is_causal", 0):
        bias = bias.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    if mask is not None:
        if mask.shape[-1] < scores.shape[-1]:
            missing = scores.shape[-1] - mask.shape[-1]
            mask = F.pad(mask, [0, missing], value=0 if mask.dtype == torch.bool else -math.inf)
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf)
        bias = bias + mask
    cap = node.get("softcap", 0.0)
    if cap:
        scores = cap * torch.tanh(scores / cap)
    scores = scores + bias
    nothing = (scores == -math.inf).all(-1, keepdim=True)  # what sees no key is 0
    y = torch.softmax(scores.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0) @ v
    return y.transpose(1, 2).flatten(2) if flat else y


ATTENTION: Mapping[str, Op] = {"Attention": attention}
