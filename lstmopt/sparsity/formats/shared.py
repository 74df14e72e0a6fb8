"""i8-shared: the gates of a unit share one index list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lstmopt.sparsity.formats import blob
from lstmopt.sparsity.formats.base import LANES, Array, checked
from lstmopt.sparsity.formats.i8 import BANK, words_of
from lstmopt.sparsity.formats.layout import lay_out


@dataclass(frozen=True)
class I8Shared:
    """One lookup of the state feeds the products of all gates.

    A slot is ``u8[lane][4]`` of indices, then for each gate ``i8[lane][4]`` of values; a scale a row.
    A unit stores what any of its gates keeps.
    """

    planes: int = 1
    name: str = "i8-shared"
    number: int = 4
    width: int = BANK
    step: int = 4
    bytes_per_nonzero: float = 1.25
    error: float = 1.2e-2

    def round_weights(self, matrix: Array, columns: Array | None = None) -> Array:
        """See `Format.round_weights`; as with `I8`."""
        words, scales = words_of(self._checked(matrix))
        return words.astype(np.float32) * scales[..., None]

    @staticmethod
    def _checked(matrix: Array) -> Array:
        values = checked(matrix)
        if values.shape[0] == 1:
            raise ValueError("i8-shared is for the gates of a layer")
        return values

    def pack(self, matrix: Array) -> bytes:
        """See `Format.pack`."""
        words, scales = words_of(self._checked(matrix))
        layout = lay_out(
            (words != 0).any(axis=0, keepdims=True).repeat(len(words), axis=0), self.width, self.step
        )
        data = np.zeros((layout.slots, 1 + len(words), LANES, self.step), dtype=np.uint8)
        kept = words[layout.gate, layout.unit, layout.column]
        data[layout.slot, 0, layout.lane, layout.entry] = layout.column % self.width
        data[layout.slot, 1 + layout.gate, layout.lane, layout.entry] = kept.view(np.uint8)
        return blob.write(self.number, self.width, self.planes, words, layout, blob.scales_of(scales), data)

    def packed_bytes(self, mask: Array) -> int:
        """See `Format.packed_bytes`."""
        gates = len(mask)
        union = mask.any(axis=0, keepdims=True).repeat(gates, axis=0)
        slots = lay_out(union, self.width, self.step).slots
        return blob.size(slots, -(-mask.shape[1] // LANES), gates, True, 64 * (1 + gates))

    def owns(self, parts: blob.Parts) -> bool:
        """See `Format.owns`."""
        return (parts.format, parts.width, parts.planes) == (self.number, self.width, self.planes)

    def decode(self, parts: blob.Parts) -> Array:
        """See `Format.decode`."""
        data = parts.data.reshape(-1, 1 + parts.shape[0], LANES, self.step)
        slot, gate, lane, entry = np.nonzero(data[:, 1:])
        kept, index = data[slot, 1 + gate, lane, entry], data[slot, 0, lane, entry]
        scales = parts.row_scales()[gate, parts.slot_units()[slot] + lane]
        return parts.dense(slot, gate, lane, index, kept.view(np.int8) * scales)
