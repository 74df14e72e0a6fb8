"""Which patterns suit a format: those whose masks it packs without padding."""

from __future__ import annotations

import typing

import numpy as np
import pytest

from lstmopt.precision import SPARSE
from lstmopt.sparsity.formats import FORMATS
from lstmopt.sparsity.patterns import parse_pattern
from lstmopt.sparsity.precisions import sparse_format, suits
from lstmopt.targets import Precision

OWN = {
    "f32": "bank32", "i16": "bank32:step2", "i16-bank64": "bank64:step2", "i8": "bank64:step4",
    "i8-planes2": "bank64:step4", "i8-shared": "gate-shared64:step4",
}  # fmt: skip
"""The table of docs/ops.md."""

PATTERNS = (
    *OWN.values(), "bank32:k1:step2", "bank64:panel32:step4", "bank64:panel8:step4", "bank64", "bank48:step4",
    "gate-shared64", "gate-shared32:step4", "block16x1", "2:4",
)  # fmt: skip


def test_a_precision_names_a_format_or_none() -> None:
    assert all(sparse_format(SPARSE + name) is item for name, item in FORMATS.items())
    assert {sparse_format(name) for name in ("f32", "int8", "i8", "sparse-", "sparse-i7")} == {None}
    assert {name for name in typing.get_args(Precision) if name.startswith(SPARSE)} == {
        SPARSE + name for name in FORMATS
    }


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_suits_its_own_pattern_and_unstructured_masks(name: str) -> None:
    assert suits(FORMATS[name], parse_pattern(OWN[name]))
    assert suits(FORMATS[name], parse_pattern("unstructured"))
    assert suits(FORMATS[name], parse_pattern("unstructured:per-matrix"))


@pytest.mark.parametrize("pattern", dict.fromkeys(PATTERNS))
@pytest.mark.parametrize("name", FORMATS)
def test_masks_of_a_pattern_that_suits_are_packed_without_padding(name: str, pattern: str) -> None:
    item, chosen = FORMATS[name], parse_pattern(pattern)
    if not suits(item, chosen):
        return
    scores = np.random.default_rng(0).random((4, 64, 192))
    mask = chosen.masks({"w": scores}, 0.25)["w"]
    assert mask.any()
    words = item.packed_bytes(mask) - item.packed_bytes(np.zeros_like(mask))
    # The bank of each slot costs two bytes, and the whole is aligned.
    slots = np.count_nonzero(mask) / (4 * 16 * item.step)
    assert words <= np.count_nonzero(mask) * item.bytes_per_nonzero + 2 * slots + 64


def test_what_would_be_padded_does_not_suit() -> None:
    wrong = {
        "f32": ("bank64", "gate-shared32"), "i16": ("bank32", "bank64:step2"), "i8": ("bank64", "block16x1"),
        "i8-planes2": ("bank64:panel8:step4", "2:4"), "i8-shared": ("bank64:step4", "gate-shared64:step2"),
        "i16-bank64": ("gate-shared64:step2",),
    }  # fmt: skip
    assert not any(suits(FORMATS[name], parse_pattern(p)) for name, some in wrong.items() for p in some)
