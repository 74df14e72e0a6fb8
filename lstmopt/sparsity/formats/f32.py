"""f32: the low 5 bits of each value are its column in a bank of 32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lstmopt.sparsity.formats import blob
from lstmopt.sparsity.formats.base import LANES, SMALLEST, Array, checked, columns_of
from lstmopt.sparsity.formats.layout import lay_out


@dataclass(frozen=True)
class F32:
    """A value is its own index: one permute and one multiply-add for 16 nonzeros.

    A slot is ``f32[gate][lane]``. An empty entry is +0.0, which has index 0.
    """

    name: str = "f32"
    number: int = 1
    width: int = 32
    step: int = 1
    bytes_per_nonzero: float = 4.0
    error: float = 3e-6

    def round_weights(self, matrix: Array, columns: Array | None = None) -> Array:
        """See `Format.round_weights`; a weight moves by at most 16 units in its last place."""
        values = checked(matrix)
        index = (columns_of(values, columns) % self.width).astype(np.uint32)
        bits = values.view(np.uint32)
        sign, magnitude = bits & np.uint32(0x80000000), bits & np.uint32(0x7FFFFFFF)
        steps = (magnitude - index + np.uint32(16)) & np.uint32(0xFFFFFFE0)
        rounded = ((steps + index) | sign).view(np.float32)
        return np.where(np.fmin(np.abs(values), np.abs(rounded)) < SMALLEST, np.float32(0), rounded)

    def pack(self, matrix: Array) -> bytes:
        """See `Format.pack`."""
        values = self.round_weights(matrix)
        layout = lay_out(values != 0, self.width, self.step)
        data = np.zeros((layout.slots, values.shape[0], LANES), dtype="<f4")
        data[layout.slot, layout.gate, layout.lane] = values[layout.gate, layout.unit, layout.column]
        return blob.write(self.number, self.width, 1, values, layout, np.zeros(0), data)

    def packed_bytes(self, mask: Array) -> int:
        """See `Format.packed_bytes`."""
        slots = lay_out(mask, self.width, self.step).slots
        return blob.size(slots, -(-mask.shape[1] // LANES), mask.shape[0], False, 64 * mask.shape[0])

    def owns(self, parts: blob.Parts) -> bool:
        """See `Format.owns`."""
        return (parts.format, parts.width, parts.planes) == (self.number, self.width, 1)

    def decode(self, parts: blob.Parts) -> Array:
        """See `Format.decode`."""
        words = parts.data.view("<u4").reshape(-1, parts.shape[0], LANES)
        slot, gate, lane = np.nonzero(words)
        kept = words[slot, gate, lane]
        return parts.dense(slot, gate, lane, kept & np.uint32(31), kept.view(np.float32))
