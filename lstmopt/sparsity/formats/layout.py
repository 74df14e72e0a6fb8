"""Where each nonzero goes: panels of 16 units, in them slots, each of one bank.

A slot holds `step` entries of one bank for every row of a panel: ``[gate][lane][entry]``. Its bank is
the same for all rows, so the number of slots of a (panel, bank) is that of its fullest row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lstmopt.sparsity.formats.base import LANES, Array

QUAD = 4
"""A plain matrix has its slots in fours: four sums run side by side, as with four gates."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The slots of a mask, and the place of each nonzero in the order of ``np.nonzero``.

    Attributes:
        start: first slot of each panel and the end of the last.
        banks: the bank of each slot.
        gate: of each nonzero.
        unit: of each nonzero.
        column: of each nonzero.
        slot: of each nonzero.
        entry: of each nonzero within its row's part of the slot.
    """

    start: Array
    banks: Array
    gate: Array
    unit: Array
    column: Array
    slot: Array
    entry: Array

    @property
    def slots(self) -> int:
        """Slots of all panels."""
        return int(self.start[-1])

    @property
    def lane(self) -> Array:
        """The lane of each nonzero."""
        return self.unit % LANES


def lay_out(mask: Array, width: int, step: int) -> Layout:
    """Returns the layout of a mask ``[gates, units, columns]``."""
    gates, units, columns = mask.shape
    panels, banks = -(-units // LANES), -(-columns // width)
    if banks > np.iinfo(np.uint16).max:
        raise ValueError(f"{columns} columns are too many")
    gate, unit, column = np.nonzero(mask)
    row = ((gate * panels * LANES) + unit) * banks + column // width
    counts = np.bincount(row, minlength=gates * panels * LANES * banks)
    rank = np.arange(row.size) - (np.cumsum(counts) - counts)[row]
    deepest = counts.reshape(gates, panels, LANES, banks).max(axis=(0, 2))
    slots = np.zeros((panels, banks + 1), dtype=np.int64)  # the last holds a panel's padding, in bank 0
    slots[:, :banks] = -(-deepest // step)
    if gates == 1:
        slots[:, banks] = -slots.sum(axis=1) % QUAD
    ends = np.cumsum(slots.reshape(-1)).reshape(slots.shape)
    first = ends - slots
    names = np.tile(np.append(np.arange(banks), 0), panels)
    return Layout(
        start=np.concatenate([[0], ends[:, -1]]).astype(np.uint32),
        banks=np.repeat(names, slots.reshape(-1)).astype(np.uint16),
        gate=gate,
        unit=unit,
        column=column,
        slot=first[unit // LANES, column // width] + rank // step,
        entry=rank % step,
    )
