"""How sparse weights are packed for the kernels: one file a format, independent of the instruction set.

A matrix is ``[gates, units, columns]``, of some gates of a layer or of one (also a plain matrix of a product
``x . W'``, its rows the units). A format stores any mask; masks of the patterns of the same width cost
nothing extra. Sizes are padded inside.
"""

from __future__ import annotations

from collections.abc import Mapping

from lstmopt.errors import LstmoptError
from lstmopt.sparsity.formats.base import Array, Format
from lstmopt.sparsity.formats.blob import read
from lstmopt.sparsity.formats.f32 import F32
from lstmopt.sparsity.formats.i8 import I8
from lstmopt.sparsity.formats.i16 import I16
from lstmopt.sparsity.formats.shared import I8Shared

__all__ = ["FORMATS", "Array", "Format", "format_named", "unpack"]

FORMATS: Mapping[str, Format] = {
    item.name: item for item in (F32(), I16(32), I16(64), I8(1), I8(2), I8Shared(1))
}
"""Every format by its name."""


def format_named(name: str) -> Format:
    """Returns a format by name.

    Raises:
        LstmoptError: there is none of that name.
    """
    if name not in FORMATS:
        raise LstmoptError(f"format {name!r}", "is unknown", f"use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def unpack(blob: bytes) -> Array:
    """Returns the dense matrix that packed weights stand for, whichever their format.

    Raises:
        LstmoptError: the bytes are not packed weights.
    """
    parts = read(blob)
    for item in FORMATS.values():
        if item.owns(parts):
            return item.decode(parts)
    raise LstmoptError("packed weights", "are of an unknown format", "export the model again")
