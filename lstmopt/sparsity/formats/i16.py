"""i16: one word of 16 bits is a value and its column in the bank; the state has 16 bits too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lstmopt.sparsity.formats import blob
from lstmopt.sparsity.formats.base import LANES, SMALLEST, Array, checked, columns_of, significant
from lstmopt.sparsity.formats.layout import lay_out

LIMIT = 32767


@dataclass(frozen=True)
class I16:
    """Words whose low bits (5 of a bank of 32, 6 of one of 64) are the column in the bank.

    A slot is ``i16[gate][lane][2]``, a scale a row; an empty entry is 0, which has index 0.

    Attributes:
        width: columns of a bank, 32 or 64.
    """

    width: int = 32
    number: int = 2
    step: int = 2
    bytes_per_nonzero: float = 2.0

    @property
    def name(self) -> str:
        """See `Format.name`."""
        return "i16" if self.width == 32 else f"i16-bank{self.width}"

    @property
    def error(self) -> float:
        """See `Format.error`."""
        return 1.2e-3 if self.width == 32 else 2.2e-3

    def round_weights(self, matrix: Array, columns: Array | None = None) -> Array:
        """See `Format.round_weights`; a weight moves by 1/2000 (bank 64: 1/1000) of its row's largest."""
        words, scales = self._words(checked(matrix), columns)
        return words.astype(np.float32) * scales[..., None]

    def _words(self, values: Array, columns: Array | None = None) -> tuple[Array, Array]:
        """Returns the words, in the shape of the values, and the rows' scales.

        A row's largest weight takes the largest word that its column allows, and no other exceeds it:
        so the same scale comes out when rounded weights are rounded again.
        """
        magnitudes = np.abs(values)
        places = columns_of(values, columns) % self.width
        largest = magnitudes.argmax(axis=2)
        gate, unit = np.ogrid[: values.shape[0], : values.shape[1]]
        extreme, place = values[gate, unit, largest], places[gate, unit, largest]
        index = np.where(extreme < 0, -place, place) % self.width
        top = LIMIT - (LIMIT - index) % self.width
        scales = significant(np.maximum(np.abs(extreme), SMALLEST) / top, 9)
        tiny = np.minimum(np.abs(extreme), top * scales) < SMALLEST
        words = np.rint((values / scales[..., None] - places) / self.width) * self.width + places
        above = np.maximum(np.abs(words) - top[..., None], 0)  # by a step or two: scales are rounded too
        words -= np.sign(words) * np.ceil(above / self.width) * self.width
        words[gate, unit, largest] = top * np.sign(extreme)
        words[(values == 0) | tiny[..., None]] = 0
        return words.astype(np.int16), np.where(tiny, 0, scales).astype(np.float32)

    def pack(self, matrix: Array) -> bytes:
        """See `Format.pack`."""
        words, scales = self._words(checked(matrix))
        layout = lay_out(words != 0, self.width, self.step)
        data = np.zeros((layout.slots, words.shape[0], LANES, 2), dtype="<i2")
        place = layout.slot, layout.gate, layout.lane, layout.entry
        data[place] = words[layout.gate, layout.unit, layout.column]
        return blob.write(self.number, self.width, 1, words, layout, blob.scales_of(scales), data)

    def packed_bytes(self, mask: Array) -> int:
        """See `Format.packed_bytes`."""
        slots = lay_out(mask, self.width, self.step).slots
        return blob.size(slots, -(-mask.shape[1] // LANES), mask.shape[0], True, 64 * mask.shape[0])

    def owns(self, parts: blob.Parts) -> bool:
        """See `Format.owns`."""
        return (parts.format, parts.width, parts.planes) == (self.number, self.width, 1)

    def decode(self, parts: blob.Parts) -> Array:
        """See `Format.decode`."""
        words = parts.data.view("<i2").reshape(-1, parts.shape[0], LANES, 2)
        slot, gate, lane, entry = np.nonzero(words)
        kept = words[slot, gate, lane, entry]
        scales = parts.row_scales()[gate, parts.slot_units()[slot] + lane]
        return parts.dense(slot, gate, lane, kept & (self.width - 1), kept * scales)
