"""Which masks are legal, and the best legal mask for given scores and density.

Matrices are ``[gates, hidden, input]``: a row is one unit of one gate, a bank is ``width`` neighbouring
inputs of a row. The last bank, panel or block of a matrix may be smaller. Every choice is deterministic:
of equal scores the first in the order of names, gates, units and inputs is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]


class Pattern(Protocol):
    """A set of legal masks."""

    def masks(self, scores: Mapping[str, Array], density: float) -> dict[str, BoolArray]:
        """Returns the legal masks that keep the largest sum of squared scores within a budget.

        Args:
            scores: importance of each weight (its magnitude), ``[gates, hidden, input]``, by matrix.
            density: share of all entries of all matrices that may be kept; the budget is that share,
                rounded down to what the pattern can spend.
        """
        ...

    def is_legal(self, mask: BoolArray) -> bool:
        """Whether a mask of one matrix, ``[gates, hidden, input]``, is of this pattern."""
        ...


def _budget(scores: Mapping[str, Array], density: float) -> int:
    """Returns how many entries may be kept; rounded to whole numbers within float noise."""
    if not 0 <= density <= 1:
        raise ValueError(f"density {density} is not within 0..1")
    return int(np.floor(density * sum(array.size for array in scores.values()) + 1e-6))


def _largest(values: Array, count: int) -> BoolArray:
    """Marks the ``count`` largest of a vector, the first of equal ones."""
    chosen = np.zeros(values.shape, dtype=np.bool_)
    if count <= 0:
        return chosen
    if count >= values.size:
        chosen[:] = True
        return chosen
    threshold = np.partition(values, values.size - count)[values.size - count]
    np.greater(values, threshold, out=chosen)
    ties = np.flatnonzero(values == threshold)
    chosen[ties[: count - int(np.count_nonzero(chosen))]] = True
    return chosen


def _affordable(gains: Array, costs: Array, budget: int) -> BoolArray:
    """Marks steps in the order of gain per entry, until the next does not fit."""
    order = np.argsort(-gains / np.maximum(costs, 1), kind="stable")
    spent = np.cumsum(costs[order])
    chosen = np.zeros(gains.shape, dtype=np.bool_)
    chosen[order[: int(np.searchsorted(spent, budget, side="right"))]] = True
    return chosen


def _joined(scores: Mapping[str, Array], parts: Mapping[str, Array]) -> tuple[Array, dict[str, slice]]:
    """Returns vectors of all matrices in one, and where each lies."""
    places, start = {}, 0
    for name in scores:
        places[name] = slice(start, start + parts[name].size)
        start += parts[name].size
    whole = [parts[name].reshape(-1) for name in scores]
    return (np.concatenate(whole) if whole else np.zeros(0)), places


@dataclass(frozen=True)
class Unstructured:
    """Any mask.

    Attributes:
        per_matrix: one budget for each matrix instead of one over all.
    """

    per_matrix: bool = False

    def __str__(self) -> str:
        return "unstructured:per-matrix" if self.per_matrix else "unstructured"

    def masks(self, scores: Mapping[str, Array], density: float) -> dict[str, BoolArray]:
        """See `Pattern.masks`; the budget is spent to the last entry."""
        if self.per_matrix:
            return {
                name: _largest(array.reshape(-1), _budget({name: array}, density)).reshape(array.shape)
                for name, array in scores.items()
            }
        values, places = _joined(scores, scores)
        chosen = _largest(values, _budget(scores, density))
        return {name: chosen[places[name]].reshape(array.shape) for name, array in scores.items()}

    def is_legal(self, mask: BoolArray) -> bool:
        """See `Pattern.is_legal`."""
        return mask.ndim == 3


@dataclass(frozen=True)
class _Banked:
    """Scores of one matrix cut into banks, ranked inside each row and bank."""

    ranks: npt.NDArray[np.int64]
    falling: Array
    sizes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, scores: Array, width: int) -> _Banked:
        gates, hidden, inputs = scores.shape
        banks = -(-inputs // width)
        padded = np.full((gates, hidden, banks * width), -np.inf)
        padded[..., :inputs] = scores
        cut = padded.reshape(gates, hidden, banks, width)
        order = np.argsort(-cut, axis=-1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.broadcast_to(np.arange(width), cut.shape), axis=-1)
        falling = np.take_along_axis(cut, order, axis=-1)
        sizes = np.minimum(width, inputs - width * np.arange(banks))
        return cls(ranks, np.where(np.isfinite(falling), falling, 0.0), sizes)

    def mask(self, counts: Array, inputs: int) -> BoolArray:
        """Returns the mask that keeps ``counts`` (broadcast to rows and banks) entries of each bank."""
        chosen: BoolArray = self.ranks < counts[..., None]
        gates, hidden = chosen.shape[:2]
        return np.ascontiguousarray(chosen.reshape(gates, hidden, -1)[..., :inputs])


@dataclass(frozen=True)
class Bank:
    """Equally many non-zeros in each bank: of the whole matrix, or of a panel of rows.

    Attributes:
        width: inputs of a bank.
        k: "one": every bank of every row keeps the same number; "panel": each (panel, bank) has its own,
            0 allowed.
        panel: hidden units of a panel; it holds their rows of all gates.
        step: the numbers are multiples of it, except where a bank is full.
    """

    width: int = 32
    k: Literal["one", "panel"] = "panel"
    panel: int = 16
    step: int = 1

    def __str__(self) -> str:
        return f"bank{self.width}{_suffix(self)}"

    def masks(self, scores: Mapping[str, Array], density: float) -> dict[str, BoolArray]:
        """See `Pattern.masks`; "one" keeps at least one step in each bank, whatever the density."""
        banked = {name: _Banked.of(array, self.width) for name, array in scores.items()}
        if self.k == "one":
            k = self._one(scores, banked, _budget(scores, density))
            counts = {name: np.minimum(k, item.sizes) for name, item in banked.items()}
            return {name: banked[name].mask(counts[name], array.shape[2]) for name, array in scores.items()}
        chosen = self._panels(scores, banked, _budget(scores, density))
        return {name: banked[name].mask(chosen[name], array.shape[2]) for name, array in scores.items()}

    def _one(self, scores: Mapping[str, Array], banked: Mapping[str, _Banked], budget: int) -> int:
        best = self.step
        for k in range(self.step, self.width + self.step, self.step):
            spent = sum(
                array.shape[0] * array.shape[1] * int(np.minimum(k, banked[name].sizes).sum())
                for name, array in scores.items()
            )
            if spent > budget:
                break
            best = k
        return best

    def _panels(
        self, scores: Mapping[str, Array], banked: Mapping[str, _Banked], budget: int
    ) -> dict[str, Array]:
        """Returns how many entries each row keeps of each bank, ``[1, hidden, banks]``.

        The next-largest entry of all rows of a (panel, bank) is one step; steps of the largest gain an
        entry are taken until the budget is spent. Gains fall along a bank, so a later step is never
        taken before an earlier one, and the choice is the best one.
        """
        gains, costs = {}, {}
        steps = -(-self.width // self.step)
        for name, item in banked.items():
            gates, hidden, banks, _ = item.falling.shape
            panels = -(-hidden // self.panel)
            squares = np.zeros((panels * self.panel, banks, steps * self.step))
            squares[:hidden, :, : self.width] = np.square(item.falling).sum(axis=0)
            gain = squares.reshape(panels, self.panel, banks, steps, self.step).sum(axis=(1, 4))
            rows = gates * np.minimum(self.panel, hidden - self.panel * np.arange(panels))
            width = np.clip(item.sizes[:, None] - self.step * np.arange(steps), 0, self.step)
            gains[name], costs[name] = gain, rows[:, None, None] * width[None]
        gain, places = _joined(scores, gains)
        cost, _ = _joined(scores, costs)
        real = cost > 0
        taken = np.zeros(gain.shape, dtype=np.bool_)
        taken[real] = _affordable(gain[real], cost[real], budget)
        counts = {}
        for name, item in banked.items():
            hidden = item.ranks.shape[1]
            number = self.step * taken[places[name]].reshape(gains[name].shape).sum(axis=2)
            counts[name] = np.repeat(number, self.panel, axis=0)[None, :hidden]
        return counts

    def is_legal(self, mask: BoolArray) -> bool:
        """See `Pattern.is_legal`."""
        if mask.ndim != 3:
            return False
        gates, hidden, inputs = mask.shape
        banks = -(-inputs // self.width)
        padded = np.zeros((gates, hidden, banks * self.width), dtype=np.bool_)
        padded[..., :inputs] = mask
        counts = padded.reshape(gates, hidden, banks, self.width).sum(axis=-1)
        sizes = np.minimum(self.width, inputs - self.width * np.arange(banks))
        if not np.all((counts % self.step == 0) | (counts == sizes)):
            return False
        if self.k == "one":
            return bool(np.all(counts == np.minimum(counts.max(initial=0), sizes)))
        first = counts[:1, (np.arange(hidden) // self.panel) * self.panel]
        return bool(np.all(counts == first))


@dataclass(frozen=True)
class GateShared:
    """A bank pattern in which a unit's gates keep the same inputs: one index list for all of them.

    Attributes:
        width: as in `Bank`.
        k: as in `Bank`.
        panel: as in `Bank`.
        step: as in `Bank`.
    """

    width: int = 64
    k: Literal["one", "panel"] = "panel"
    panel: int = 16
    step: int = 1

    def __str__(self) -> str:
        return f"gate-shared{self.width}{_suffix(self)}"

    @property
    def bank(self) -> Bank:
        """The pattern of the shared indices."""
        return Bank(self.width, self.k, self.panel, self.step)

    def masks(self, scores: Mapping[str, Array], density: float) -> dict[str, BoolArray]:
        """See `Pattern.masks`; an input counts with the root of the gates' summed squares."""
        shared = {name: np.sqrt(np.square(array).sum(0, keepdims=True)) for name, array in scores.items()}
        masks = self.bank.masks(shared, density)
        return {name: np.repeat(masks[name], array.shape[0], axis=0) for name, array in scores.items()}

    def is_legal(self, mask: BoolArray) -> bool:
        """See `Pattern.is_legal`."""
        return mask.ndim == 3 and bool(np.all(mask == mask[:1])) and self.bank.is_legal(mask[:1])


@dataclass(frozen=True)
class Block:
    """Blocks of neighbouring units of one gate by neighbouring inputs, kept or dropped whole.

    Attributes:
        rows: units of a block.
        cols: inputs of a block.
    """

    rows: int = 16
    cols: int = 1

    def __str__(self) -> str:
        return f"block{self.rows}x{self.cols}"

    def masks(self, scores: Mapping[str, Array], density: float) -> dict[str, BoolArray]:
        """See `Pattern.masks`."""
        gains = {name: self._sums(np.square(array)) for name, array in scores.items()}
        costs = {name: self._sums(np.ones(array.shape, dtype=np.int64)) for name, array in scores.items()}
        gain, places = _joined(scores, gains)
        cost, _ = _joined(scores, costs)
        taken = _affordable(gain, cost, _budget(scores, density))
        return {
            name: self._spread(taken[places[name]].reshape(gains[name].shape), array.shape)
            for name, array in scores.items()
        }

    def _sums(self, array: Array) -> Array:
        rows = np.arange(0, array.shape[1], self.rows)
        cols = np.arange(0, array.shape[2], self.cols)
        summed: Array = np.add.reduceat(np.add.reduceat(array, rows, axis=1), cols, axis=2)
        return summed

    def _spread(self, blocks: BoolArray, shape: tuple[int, ...]) -> BoolArray:
        whole = np.repeat(np.repeat(blocks, self.rows, axis=1), self.cols, axis=2)
        return np.ascontiguousarray(whole[:, : shape[1], : shape[2]])

    def is_legal(self, mask: BoolArray) -> bool:
        """See `Pattern.is_legal`."""
        if mask.ndim != 3:
            return False
        kept = self._sums(mask.astype(np.int64))
        return bool(np.all((kept == 0) | (kept == self._sums(np.ones(mask.shape, dtype=np.int64)))))


@dataclass(frozen=True)
class NM:
    """At most ``n`` non-zeros in each ``m`` neighbouring inputs of a row.

    Attributes:
        n: largest number kept.
        m: inputs of a group.
    """

    n: int = 2
    m: int = 4

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def masks(self, scores: Mapping[str, Array], density: float) -> dict[str, BoolArray]:
        """See `Pattern.masks`; a density above n/m keeps n of every m."""
        allowed = {
            name: _Banked.of(array, self.m).mask(np.array(self.n), array.shape[2])
            for name, array in scores.items()
        }
        values, places = _joined(scores, scores)
        open_, _ = _joined(scores, allowed)
        chosen = np.zeros(values.shape, dtype=np.bool_)
        chosen[open_] = _largest(values[open_], _budget(scores, density))
        return {name: chosen[places[name]].reshape(array.shape) for name, array in scores.items()}

    def is_legal(self, mask: BoolArray) -> bool:
        """See `Pattern.is_legal`."""
        if mask.ndim != 3:
            return False
        groups = np.arange(0, mask.shape[2], self.m)
        return bool(np.all(np.add.reduceat(mask.astype(np.int64), groups, axis=2) <= self.n))


def _suffix(pattern: Bank | GateShared) -> str:
    return "".join(
        (
            ":k1" if pattern.k == "one" else "",
            f":panel{pattern.panel}" if pattern.panel != 16 else "",
            f":step{pattern.step}" if pattern.step != 1 else "",
        )
    )


_BANK = re.compile(r"(bank|gate-shared)([1-9]\d*)(:k1)?(?::panel([1-9]\d*))?(?::step([1-9]\d*))?")
_BLOCK = re.compile(r"block([1-9]\d*)x([1-9]\d*)")
_NM = re.compile(r"([1-9]\d*):([1-9]\d*)")
EXAMPLES = ("unstructured", "bank32", "bank64:k1", "gate-shared64", "block16x1", "2:4")


def parse_pattern(text: str) -> Pattern:
    """Returns the pattern that a text names; ``str`` of a pattern gives the text back.

    ``unstructured`` (``:per-matrix``), ``bank<width>`` and ``gate-shared<width>`` with ``:k1`` (one
    number for all banks), ``:panel<units>`` and ``:step<n>``, ``block<rows>x<cols>``, ``<n>:<m>``.

    Raises:
        LstmoptError: the text names none.
    """
    if text in ("unstructured", "unstructured:per-matrix"):
        return Unstructured(per_matrix=text.endswith(":per-matrix"))
    if match := _BANK.fullmatch(text):
        kind: Callable[..., Bank | GateShared] = Bank if match[1] == "bank" else GateShared
        k = "one" if match[3] else "panel"
        return kind(int(match[2]), k, int(match[4] or 16), int(match[5] or 1))
    if match := _BLOCK.fullmatch(text):
        return Block(int(match[1]), int(match[2]))
    if (match := _NM.fullmatch(text)) and int(match[1]) <= int(match[2]):
        return NM(int(match[1]), int(match[2]))
    raise LstmoptError(f"pattern {text!r}", "is unknown", f"use one like {', '.join(EXAMPLES)}")
