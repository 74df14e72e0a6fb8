"""What a resize keeps and adds: the new order of every lane's units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.groups import Analysis
from lstmopt.rnn.labels import Codes

Indices = npt.NDArray[np.int64]
NEW = -1
"""Marks an added unit where the index of a kept one would stand."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is kept and added of each lane.

    Attributes:
        order: by the lane's base code: indices of the kept units, then `NEW` for each added one.
    """

    analysis: Analysis
    order: Mapping[int, Indices]

    def removed(self) -> Codes:
        """Returns the codes of all units that go."""
        gone = [
            lane.base + np.setdiff1d(np.arange(lane.size), self.order[lane.base])
            for lane in self.analysis.flow.lanes
            if lane.base in self.order
        ]
        return np.concatenate([np.zeros(0, np.int64), *gone])

    def positions(self, codes: Codes) -> Indices:
        """Returns the new axis for an axis of units: old positions, `NEW` where a unit is added.

        Args:
            codes: the units along the old axis, 0 where there is none.
        """
        gone = np.isin(codes, self.removed())
        kept = np.flatnonzero(~gone)
        added = np.zeros(len(codes), np.int64)
        for lane in self.analysis.flow.lanes:
            # Added units stand behind the lane's last one.
            last = codes == lane.base + lane.size - 1
            added[last] = np.count_nonzero(self.order.get(lane.base, np.zeros(0)) == NEW)
        ends = np.searchsorted(kept, np.flatnonzero(added), side="right")
        return np.insert(kept, np.repeat(ends, added[added > 0]), NEW)

    def sized(self, codes: Codes, axis: int, shape: tuple[int, ...]) -> Codes | None:
        """Returns codes for another shape with the same units, None where the other axes tell units apart."""
        line = np.unique(np.moveaxis(codes, axis, -1).reshape(-1, codes.shape[axis]), axis=0)
        if codes.shape == shape:
            return codes
        if len(line) != 1 or len(shape) != codes.ndim or shape[axis] != codes.shape[axis]:
            return None
        form = [1] * codes.ndim
        form[axis] = codes.shape[axis]
        return np.array(np.broadcast_to(line[0].reshape(form), shape))

    def size_along(self, codes: Codes) -> tuple[int, int] | None:
        """Returns the unit axis of a tensor of codes and its new size, or None where there is no such axis.

        Raises:
            LstmoptError: the tensor would no longer be rectangular.
        """
        axis = self.analysis.flow.unit_axis(codes)
        if axis is None:
            return None
        lines = np.unique(np.moveaxis(codes, axis, -1).reshape(-1, codes.shape[axis]), axis=0)
        sizes = {len(self.positions(line)) for line in lines}
        if len(sizes) != 1:
            raise LstmoptError("resize", "a tensor of several layers would get rows of different lengths",
                               "give those layers one hidden size")  # fmt: skip
        return axis, sizes.pop()


def take(array: npt.NDArray[Any], indices: Indices, axis: int) -> npt.NDArray[Any]:
    """Returns the entries at the indices, zeros at `NEW`."""
    taken = np.take(array, np.where(indices == NEW, 0, indices), axis=axis)
    form = [1] * array.ndim
    form[axis] = len(indices)
    return np.where((indices == NEW).reshape(form), np.zeros((), array.dtype), taken)


def take_lines(array: npt.NDArray[Any], codes: Codes, axis: int, plan: Plan) -> npt.NDArray[Any] | None:
    """Returns an array of the form of its codes with each line rewritten, None where unchanged."""
    lines = np.moveaxis(codes, axis, -1).reshape(-1, codes.shape[axis])
    values = np.moveaxis(array, axis, -1).reshape(-1, codes.shape[axis])
    positions = [plan.positions(line) for line in lines]
    if all(np.array_equal(each, np.arange(codes.shape[axis])) for each in positions):
        return None
    if len({len(each) for each in positions}) != 1:
        raise LstmoptError("resize", "a state of several layers would get rows of different lengths",
                           "give those layers one hidden size")  # fmt: skip
    taken = [take(value, each, 0) for value, each in zip(values, positions, strict=True)]
    form = (*(size for index, size in enumerate(codes.shape) if index != axis), len(positions[0]))
    return np.moveaxis(np.stack(taken).reshape(form), -1, axis)
