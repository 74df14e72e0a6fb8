"""The bytes of packed weights: a header and four sections, each at a multiple of 64 bytes.

========  =====================================================================================
header    64 bytes, see `HEADER`
start     u32[panels + 1]: first slot of each panel of 16 units
banks     u16[slots]: the bank of each slot
scales    f32[panels, gates, 16]: a scale a row (formats of integers only)
data      the slots, one after another, in the format's own form
========  =====================================================================================

Everything is little-endian. Several matrices (the directions of a layer) lie one after another: the
size in the header, a multiple of 64, leads to the next. The digest in the header tells matrices apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.sparsity.formats.base import LANES, MOST_GATES, Array
from lstmopt.sparsity.formats.layout import Layout

MAGIC = b"LSTMOPTW"
VERSION = 1
ALIGNMENT = 64

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u2"),
        ("format", "<u2"),
        ("width", "<u2"),
        ("gates", "<u2"),
        ("units", "<u4"),
        ("columns", "<u4"),
        ("slots", "<u4"),
        ("planes", "<u2"),
        ("reserved", "<u2"),
        ("size", "<u8"),
        ("nonzeros", "<u8"),
        ("digest", "V16"),
    ]
)


@dataclass(frozen=True, eq=False)
class Parts:
    """Packed weights, taken apart.

    Attributes:
        format: number of the format.
        width: columns of a bank.
        planes: bytes of a state, where the format is of int8; else 1.
        shape: gates, units, columns.
        nonzeros: entries that are not padding.
        start: first slot of each panel and the end of the last.
        banks: the bank of each slot.
        scales: of each row, ``[panels, gates, 16]``, or of length 0.
        data: the slots, ``[slots, bytes]``.
    """

    format: int
    width: int
    planes: int
    shape: tuple[int, int, int]
    nonzeros: int
    start: Array
    banks: Array
    scales: Array
    data: Array

    @property
    def panels(self) -> int:
        """Panels of 16 units."""
        return -(-self.shape[1] // LANES)

    def slot_columns(self) -> Array:
        """Returns the first column of each slot's bank."""
        return self.banks.astype(np.int64) * self.width

    def slot_units(self) -> Array:
        """Returns the first unit of each slot's panel."""
        return LANES * (np.searchsorted(self.start, np.arange(len(self.banks)), side="right") - 1)

    def row_scales(self) -> Array:
        """Returns the scale of each row, ``[gates, panels * 16]``."""
        return self.scales.reshape(self.panels, self.shape[0], LANES).transpose(1, 0, 2).reshape(
            self.shape[0], -1
        )  # fmt: skip

    def dense(self, slot: Array, gate: Array, lane: Array, index: Array, values: Array) -> Array:
        """Returns the dense matrix of entries that are given by their places; those of one place add up.

        Raises:
            LstmoptError: an entry lies outside the matrix.
        """
        units, columns = self.slot_units()[slot] + lane, self.slot_columns()[slot] + index
        if np.any(units >= self.shape[1]) or np.any(columns >= self.shape[2]):
            raise LstmoptError("packed weights", "hold an index out of range", "export the model again")
        whole = np.zeros(self.shape, dtype=np.float32)
        np.add.at(whole, (gate, units, columns), values)
        return whole


def scales_of(rows: Array) -> Array:
    """Returns the scales of rows ``[gates, units]`` in the order of the section, padded."""
    gates, units = rows.shape
    padded = np.zeros((gates, -(-units // LANES) * LANES), dtype=np.float32)
    padded[:, :units] = rows
    return padded.reshape(gates, -1, LANES).transpose(1, 0, 2)


def write(
    number: int, width: int, planes: int, matrix: Array, layout: Layout, scales: Array, data: Array
) -> bytes:
    """Returns the bytes of a matrix."""
    header = np.zeros((), dtype=HEADER)
    header["magic"], header["version"], header["format"] = MAGIC, VERSION, number
    header["width"], header["planes"] = width, planes
    header["gates"], header["units"], header["columns"] = matrix.shape
    header["slots"], header["nonzeros"] = layout.slots, np.count_nonzero(matrix)
    sections = [
        layout.start.astype("<u4").tobytes(),
        layout.banks.astype("<u2").tobytes(),
        scales.astype("<f4").tobytes(),
        data.tobytes(),
    ]
    padded = [section + bytes(-len(section) % ALIGNMENT) for section in sections]
    header["size"] = HEADER.itemsize + sum(map(len, padded))
    body = b"".join(padded)
    header["digest"] = np.void(blake2b(header.tobytes() + body, digest_size=16).digest())
    return header.tobytes() + body


def size(slots: int, panels: int, gates: int, scaled: bool, slot_bytes: int) -> int:
    """Returns how many bytes a matrix takes."""
    sections = (4 * (panels + 1), 2 * slots, 4 * LANES * panels * gates * scaled, slots * slot_bytes)
    return HEADER.itemsize + sum(-(-section // ALIGNMENT) * ALIGNMENT for section in sections)


SLOT_BYTES = {1: (64, 0), 2: (64, 0), 3: (128, 0), 4: (64, 64)}
"""Bytes of a slot by format: of each gate, and of all gates together."""


def read(blob: bytes) -> Parts:
    """Takes packed weights apart.

    Raises:
        LstmoptError: they are damaged; the kernels check the same, and every index as well.
    """

    def refuse(fault: str) -> LstmoptError:
        return LstmoptError("packed weights", fault, "export the model again")

    if len(blob) < HEADER.itemsize:
        raise refuse("are cut off")
    header = np.frombuffer(blob, dtype=HEADER, count=1)[0]
    if bytes(header["magic"]) != MAGIC:
        raise refuse("are not of lstmopt")
    if int(header["version"]) != VERSION:
        raise refuse(f"are of version {int(header['version'])}, this is version {VERSION}")
    number, gates, units = int(header["format"]), int(header["gates"]), int(header["units"])
    if number not in SLOT_BYTES or not 1 <= gates <= MOST_GATES or not units or not int(header["columns"]):
        raise refuse("have an impossible shape")
    slots, panels = int(header["slots"]), -(-units // LANES)
    each, common = SLOT_BYTES[number]
    slot_bytes, scaled = gates * each + common, number != 1
    if size(slots, panels, gates, scaled, slot_bytes) != len(blob) or len(blob) != int(header["size"]):
        raise refuse("do not have the size that they name")
    at = HEADER.itemsize

    def section(dtype: str, count: int) -> Array:
        nonlocal at
        part = np.frombuffer(blob, dtype=dtype, count=count, offset=at)
        at += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        return part

    start, banks = section("<u4", panels + 1), section("<u2", slots)
    scales = section("<f4", LANES * panels * gates * scaled)
    if start[0] != 0 or start[-1] != slots or np.any(np.diff(start.astype(np.int64)) < 0):
        raise refuse("have slots that belong to no panel")
    return Parts(
        format=number,
        width=int(header["width"]),
        planes=int(header["planes"]),
        shape=(gates, units, int(header["columns"])),
        nonzeros=int(header["nonzeros"]),
        start=start,
        banks=banks,
        scales=scales,
        data=section("u1", slots * slot_bytes).reshape(slots, slot_bytes),
    )
