"""Losses in torch; imported only where something is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 1 << 17
"""Scores that are looked at together: their float32 copies stay in a CPU's second-level cache."""


def as_logits(scores: Tensor, scale: str) -> Tensor:
    """Returns scores whose softmax is the distribution that the model gives."""
    return scores.clamp_min(1e-12).log() if scale == "probabilities" else scores


def mixed_categorical_loss(
    scores: Tensor,
    labels: npt.NDArray[np.int64] | None,
    teacher: Tensor | None,
    scale: str,
    alpha: float,
    temperature: float,
) -> Tensor:
    """Returns ``(1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher || student)``, mean over steps.

    Hinton, Vinyals and Dean, arXiv 1503.02531, section 2. Loss and gradient are computed together, in
    pieces and in float32, so that a large vocabulary costs no further copies of the scores; where T is 1
    both terms share one softmax.

    Args:
        scores: ``[..., classes]``.
        labels: ``[...]``, or None: distillation alone.
        teacher: the teacher's scores, or None: the task alone.
        scale: what the scores are: "logits", "probabilities" or "log-probabilities".
        alpha: share of the distillation.
        temperature: of the distillation.

    Raises:
        ValueError: neither labels nor a teacher.
    """
    if labels is None and teacher is None:
        raise ValueError("mixed_categorical_loss: needs labels or a teacher")
    classes = scores.shape[-1]
    share = 1.0 if labels is None else alpha if teacher is not None else 0.0
    target = (
        None
        if labels is None
        else torch.from_numpy(np.ascontiguousarray(labels)).reshape(-1).to(scores.device)
    )
    known = None if teacher is None else as_logits(teacher, scale).reshape(-1, classes)
    flat = as_logits(scores, scale).reshape(-1, classes)
    loss: Tensor = _Mixed.apply(flat, target, known, share, temperature)  # type: ignore[no-untyped-call]
    return loss


class _Mixed(torch.autograd.Function):
    """Cross-entropy and distillation with the gradient made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        target: Tensor | None,
        known: Tensor | None,
        share: float,
        temperature: float,
    ) -> Tensor:
        count, classes = scores.shape
        gradient = torch.empty_like(scores) if ctx.needs_input_grad[0] else None
        total = 0.0
        rows = max(1, CHUNK // classes) if scores.device.type == "cpu" else count
        for begin in range(0, count, rows):
            part = slice(begin, begin + rows)
            loss, slope = _piece(
                scores[part],
                None if target is None else target[part],
                None if known is None else known[part],
                share,
                temperature,
            )
            total += loss
            if gradient is not None:
                torch.div(slope, count, out=gradient[part])
        ctx.save_for_backward(gradient)
        return torch.tensor(
            total / count,
            dtype=torch.float64 if scores.dtype == torch.float64 else torch.float32,
            device=scores.device,
        )

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient if float(outer[0]) == 1.0 else gradient * outer[0]), None, None, None, None


def _piece(
    scores: Tensor, target: Tensor | None, known: Tensor | None, share: float, temperature: float
) -> tuple[float, Tensor]:
    """Returns the summed loss of some rows and its slope by their scores, in float32 or wider.

    Memory is what this costs: every pass over the scores that can be spared is.
    """
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    loss = 0.0
    taught, labelled = known is not None and share > 0, target is not None and share < 1
    logs = functional.log_softmax(scores, dim=-1, dtype=wide)
    places = None if target is None else target.unsqueeze(1)
    if labelled:
        assert places is not None
        loss -= (1 - share) * float(logs.gather(1, places).double().sum())
    truth = soft = None
    if taught:
        assert known is not None
        plain = temperature == 1
        truth = functional.softmax(known if plain else known.to(wide) / temperature, dim=-1, dtype=wide)
        soft = logs if plain else functional.log_softmax(scores.to(wide) / temperature, dim=-1)
        loss -= share * temperature**2 * float(torch.dot(truth.view(-1), soft.view(-1)))
    if soft is None or soft is logs:
        # One softmax serves both terms: their shares add up to 1.
        slope = logs.exp_()
    else:
        slope = soft.exp_().mul_(share * temperature)
        if labelled:
            slope.add_(logs.exp_(), alpha=1 - share)
    if truth is not None:
        slope.sub_(truth, alpha=share * temperature)
    if labelled:
        assert places is not None
        slope.scatter_add_(1, places, slope.new_full((len(slope), 1), share - 1))
    return loss, slope


def normalised_square_error(output: Tensor, target: Tensor, variance: float | None = None) -> Tensor:
    """Returns the mean square error over the target's variance, or over one that is given."""
    scale = target.var(correction=0) if variance is None else target.new_tensor(variance)
    return functional.mse_loss(output, target) / scale.clamp_min(1e-12)
