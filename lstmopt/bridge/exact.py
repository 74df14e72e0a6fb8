"""f32 products on a GPU that are not rounded to TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


@contextmanager
def exact_products() -> Iterator[None]:
    """Within it no product in f32 is rounded to TF32; what was set before is set again after.

    torch has older and newer settings for it, and refuses to read the older ones where they differ.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    newer = [matmul, *(getattr(cudnn, name) for name in ("rnn", "conv") if hasattr(cudnn, name))]
    places: list[tuple[Any, str, Any]] = (
        [(place, "fp32_precision", "ieee") for place in newer]
        if hasattr(matmul, "fp32_precision")
        else [(matmul, "allow_tf32", False)]  # before torch 2.9
    )
    with suppress(RuntimeError):  # the newer ones were set, and are enough
        places = [(cudnn, "allow_tf32", cudnn.allow_tf32 and False), *places]
    before = [getattr(place, name) for place, name, _ in places]
    for place, name, exact in places:
        setattr(place, name, exact)
    try:
        yield
    finally:
        for (place, name, _), value in zip(places, before, strict=True):
            setattr(place, name, value)
