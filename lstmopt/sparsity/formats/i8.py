"""i8: int8 values and byte indices in banks of 64; the state is one byte, or two for more accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lstmopt.sparsity.formats import blob
from lstmopt.sparsity.formats.base import LANES, SMALLEST, Array, checked, significant
from lstmopt.sparsity.formats.layout import lay_out

LIMIT = 127
BANK = 64


def words_of(values: Array) -> tuple[Array, Array]:
    """Returns int8 words, ``[gates, units, columns]``, and the rows' scales; a row's largest is +-127."""
    extreme = np.abs(values).max(axis=2)
    scales = significant(np.maximum(extreme, SMALLEST) / LIMIT, 16)
    tiny = np.minimum(extreme, LIMIT * scales) < SMALLEST
    words = np.clip(np.rint(values / scales[..., None]), -LIMIT, LIMIT)
    words[tiny] = 0
    return words.astype(np.int8), np.where(tiny, 0, scales).astype(np.float32)


@dataclass(frozen=True)
class I8:
    """Four entries of each row at a time.

    A slot is, for each gate, ``i8[lane][4]`` of values and then ``u8[lane][4]`` of indices; a scale a row.

    Attributes:
        planes: bytes of a state: 1 is 8 bits, 2 is 15 bits at a quarter more time.
    """

    planes: int = 1
    number: int = 3
    width: int = BANK
    step: int = 4
    bytes_per_nonzero: float = 2.0

    @property
    def name(self) -> str:
        """See `Format.name`."""
        return "i8" if self.planes == 1 else f"i8-planes{self.planes}"

    @property
    def error(self) -> float:
        """See `Format.error`."""
        return 1.2e-2 if self.planes == 1 else 8e-3

    def round_weights(self, matrix: Array, columns: Array | None = None) -> Array:
        """See `Format.round_weights`; a weight moves by at most 1/254 of its row's largest."""
        words, scales = words_of(checked(matrix))
        return words.astype(np.float32) * scales[..., None]

    def pack(self, matrix: Array) -> bytes:
        """See `Format.pack`."""
        words, scales = words_of(checked(matrix))
        layout = lay_out(words != 0, self.width, self.step)
        data = np.zeros((layout.slots, words.shape[0], 2, LANES, self.step), dtype=np.uint8)
        place = layout.slot, layout.gate
        kept = words[layout.gate, layout.unit, layout.column]
        data[(*place, 0, layout.lane, layout.entry)] = kept.view(np.uint8)
        data[(*place, 1, layout.lane, layout.entry)] = layout.column % self.width
        return blob.write(self.number, self.width, self.planes, words, layout, blob.scales_of(scales), data)

    def packed_bytes(self, mask: Array) -> int:
        """See `Format.packed_bytes`."""
        slots = lay_out(mask, self.width, self.step).slots
        return blob.size(slots, -(-mask.shape[1] // LANES), mask.shape[0], True, 128 * mask.shape[0])

    def owns(self, parts: blob.Parts) -> bool:
        """See `Format.owns`."""
        return (parts.format, parts.width, parts.planes) == (self.number, self.width, self.planes)

    def decode(self, parts: blob.Parts) -> Array:
        """See `Format.decode`."""
        data = parts.data.reshape(-1, parts.shape[0], 2, LANES, self.step)
        slot, gate, lane, entry = np.nonzero(data[:, :, 0])
        kept, index = (data[slot, gate, part, lane, entry] for part in (0, 1))
        scales = parts.row_scales()[gate, parts.slot_units()[slot] + lane]
        return parts.dense(slot, gate, lane, index, kept.view(np.int8) * scales)
