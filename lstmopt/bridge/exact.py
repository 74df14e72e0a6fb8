"""f32 products on a GPU that are not rounded to TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

EXACT = {"allow_tf32": False, "fp32_precision": "ieee"}
"""The older and the newer setting by which products are not rounded."""


@contextmanager
def exact_products() -> Iterator[None]:
    """Within it no product in f32 is rounded to TF32; what was set before is set again after.

    torch has older and newer settings for it, and refuses to read the older ones where they differ.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    places: list[tuple[Any, str]] = [(cudnn, "allow_tf32")]
    if hasattr(matmul, "fp32_precision"):
        newer = (matmul, *(getattr(cudnn, name) for name in ("rnn", "conv")))
        places += [(place, "fp32_precision") for place in newer]
    else:  # before torch 2.9
        places += [(matmul, "allow_tf32")]
    before = []
    for place, name in places:
        with suppress(RuntimeError):  # of an older one where newer ones were set, which are enough
            before.append((place, name, getattr(place, name)))
    for place, name, _ in before:
        setattr(place, name, EXACT[name])
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
