"""Finds the hysteresis points of a latency curve that has to be measured, without measuring all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lstmopt.measure.hysteresis import LEAST_STEP, bins, points

FIRST_REPEATS = 4
AGAIN = 3
"""Repeats of each later visit of a dimension."""

ALIGNMENT = 16
"""Vector registers and cache lines hold 16 floats: steps are looked for there first."""

MOST_REPEATS = 24
"""Repeats of one dimension: on a machine with 1% of noise they tell 1%, and a probe takes seconds."""

CERTAINTY = 3.5
"""Standard errors that make a difference: a search makes dozens of decisions, all of which have to hold."""

ODDS = float(np.log(3000.0))
"""A decision is made once what was measured is so many times likelier under one answer than the other."""

OUTLIER = 3.5
"""Standard deviations above the undisturbed measurements from which on one counts as disturbed."""

LOSS = 1.05
"""How much larger a dimension's error is than it would be without disturbed measurements."""

BUDGET = 0.47
"""Share of an exhaustive sweep's measurements that a search may take; the noise is known to a few percent."""

Measure = Callable[[int, int], Sequence[float]]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class SearchResult:
    """What an adaptive search has found.

    Attributes:
        samples: measured latencies by dimension, microseconds.
        latency: latency of every dimension, those not measured interpolated between their neighbours.
        points: hysteresis points, largest first; the step between them is 1% or `resolution`, the larger,
            and a decision can be another where a difference is within `resolution` (or 0.5%) of it.
        bins: see `hysteresis.bins`.
        resolution: smallest relative difference that can be told with the repeats that were allowed.
        measurements: how many were taken.
        exhaustive: how many a sweep over every dimension with this resolution takes.
        confidence: share of the decisions that led to the points that are beyond noise.
    """

    samples: Mapping[int, Sequence[float]]
    latency: Mapping[int, float]
    points: tuple[int, ...]
    bins: tuple[tuple[int, int], ...]
    resolution: float
    measurements: int
    exhaustive: int
    confidence: float


@dataclass
class _Search:
    measure: Measure
    dims: list[int]
    most: int
    samples: dict[int, list[float]] = field(default_factory=dict)
    smooth: set[tuple[int, int]] = field(default_factory=set)
    flat: set[tuple[int, int]] = field(default_factory=set)
    _noise: tuple[int, float] = (-1, 0.0)

    def take(self, dimension: int, repeats: int) -> None:
        room = self.most - len(self.samples.get(dimension, ()))
        taken = self.measure(dimension, max(1, min(repeats, room)))
        self.samples.setdefault(dimension, []).extend(float(x) for x in taken)

    def value(self, dimension: int) -> float:
        """Returns a dimension's latency: the mean of its undisturbed measurements.

        Disturbances only ever make a call slower: what lies far above the lower quarter is one.
        """
        taken = np.sort(self.samples[dimension])
        low = taken[(len(taken) - 1) // 4]
        return float(taken[taken <= low * (1 + OUTLIER * self.noise())].mean())

    def noise(self) -> float:
        """Returns the relative standard deviation of an undisturbed measurement.

        From the differences of measurements of one dimension, which need no mean; those that are far
        larger than their median are of disturbed ones.
        """
        if self.taken > 1.05 * self._noise[0]:  # it hardly changes from sample to sample
            logs = [np.log(taken) for taken in self.samples.values()]
            apart = np.concatenate([np.abs(x[lag:] - x[:-lag]) for x in logs for lag in (1, 2, 3)])
            usual = apart[apart <= OUTLIER * float(np.median(apart)) / 0.6745] if len(apart) else apart
            self._noise = (self.taken, float(np.sqrt((usual**2).sum() / max(1, 2 * len(usual)))))
        return self._noise[1]

    def error(self, dimension: int) -> float:
        """Returns the relative standard error of a dimension's latency."""
        return LOSS * self.noise() / float(np.sqrt(len(self.samples[dimension])))

    def difference(self, one: int, other: int) -> float:
        """Returns the relative standard error of the ratio of two latencies."""
        return float(np.hypot(self.error(one), self.error(other)))

    @property
    def resolution(self) -> float:
        """The smallest relative difference that can be told with the repeats that are allowed."""
        return CERTAINTY * LOSS * self.noise() * float(np.sqrt(2 / self.sweep))

    @property
    def step(self) -> float:
        """The least step between two points."""
        return max(LEAST_STEP, self.resolution)

    @property
    def taken(self) -> int:
        return sum(len(samples) for samples in self.samples.values())

    @property
    def budget(self) -> float:
        """How many measurements may be taken."""
        return BUDGET * len(self.dims) * self.sweep

    @property
    def sweep(self) -> int:
        """How often a sweep has to measure each dimension to tell half of the least step, if it may."""
        wanted = 2 * (CERTAINTY * LOSS * self.noise() / (LEAST_STEP / 2)) ** 2
        return int(np.clip(np.ceil(wanted), FIRST_REPEATS, self.most))

    def clear(self, margin: float, one: int, other: int) -> bool:
        """Whether a decision is made.

        A sequential test of a difference that is a resolution (or half of the least step) below the step
        against one that is as much above it.

        Args:
            margin: the measured relative difference of two latencies, less the step.
            one: a dimension.
            other: the one that it is compared with.
        """
        width = max(self.resolution, LEAST_STEP / 2)
        return abs(margin) * 2 * width >= ODDS * self.difference(one, other) ** 2

    def curve(self) -> dict[int, float]:
        """Returns every dimension's latency.

        Between two measured ones it is the straight line where the curve is smooth, and the larger of
        the two where it is flat: a dimension that was not measured is no point by accident.
        """
        known = sorted(self.samples)
        found = {d: self.value(d) for d in known}
        for low, middle, high in zip(known, known[1:], known[2:], strict=False):
            if {(low, middle), (middle, high)} <= self.smooth:
                found[middle] = self._on_the_line(low, middle, high)
        for low, high in zip(known, known[1:], strict=False):
            for d in self.dims:
                if low < d < high:
                    share = (d - low) / (high - low)
                    line = (1 - share) * found[low] + share * found[high]
                    found[d] = max(found[low], found[high]) if (low, high) in self.flat else line
        return found

    def _on_the_line(self, low: int, middle: int, high: int) -> float:
        """Returns the latency of a dimension where the curve is smooth: its neighbours tell of it too.

        Its own value and that of their straight line are weighted by what their errors are worth, unless
        they are further apart than the errors explain.
        """
        share = (middle - low) / (high - low)
        own, line = self.value(middle), (1 - share) * self.value(low) + share * self.value(high)
        own_error = self.error(middle)
        line_error = float(np.hypot((1 - share) * self.error(low), share * self.error(high)))
        if abs(own / line - 1) > 2.5 * float(np.hypot(own_error, line_error)) or not own_error:
            return own
        weight = own_error**-2 / (own_error**-2 + line_error**-2)
        return weight * own + (1 - weight) * line


def search(
    measure: Measure,
    dims: Sequence[int],
    progress: Progress | None = None,
    most_repeats: int = MOST_REPEATS,
) -> SearchResult:
    """Finds the points of a latency curve without measuring all of it.

    First the ends and the places where vector widths end; then, between two neighbours that differ, the
    middle: where it lies on their straight line the curve is smooth there and is interpolated, where it
    does not, a step is closer and closer enclosed; at last the dimensions whose comparison decides a
    point and is within noise are measured again.

    Args:
        measure: takes a dimension and a number of repeats, returns as many latencies in microseconds.
        dims: the dimensions that may be chosen.
        progress: told how far it is.
        most_repeats: of one dimension; where they do not tell 1%, the resolution and so the least step
            between two points are larger.
    """
    state = _Search(measure, sorted(set(dims)), most_repeats)
    first = _first(state.dims)
    # There and back: a drift of the machine, and how a model happens to lie in memory, count as noise.
    for index, dimension in enumerate([*first, *first[::-1]]):
        state.take(dimension, FIRST_REPEATS // 2)
        if progress is not None:
            progress(f"probing {dimension}", 0.3 * index / len(first))
    _confirm(state)
    while gap := _open_interval(state):
        low, middle, high = gap
        state.take(middle, FIRST_REPEATS)
        if progress is not None:
            progress(f"probing {middle}", 0.6)
        _note_smooth(state, low, middle, high)
    _confirm(state)
    confidence = _settle(state, progress)
    _sharpen(state, progress)
    latency, step = state.curve(), state.step
    return SearchResult(
        samples={d: tuple(state.samples[d]) for d in sorted(state.samples)},
        latency=latency,
        points=points(latency, step),
        bins=bins(latency, step),
        resolution=state.resolution,
        measurements=state.taken,
        exhaustive=len(state.dims) * state.sweep,
        confidence=confidence,
    )


def _first(dims: list[int]) -> list[int]:
    """Returns the ends and the pairs around each multiple of the alignment.

    Of a coarse grid, which has no such pairs, every other one.
    """
    spacing = min((b - a for a, b in zip(dims, dims[1:], strict=False)), default=1)
    if spacing >= ALIGNMENT // 2:
        chosen = set(dims[::2])
    else:
        chosen = {
            dims[i + k] for i, d in enumerate(dims) if d % ALIGNMENT == 0 for k in (0, 1) if i + k < len(dims)
        }
    return sorted(chosen | {dims[0], dims[-1]}, reverse=True)


def _open_interval(state: _Search) -> tuple[int, int, int] | None:
    """Returns neighbours between which a point can lie, with the middle between them, or None."""
    known = sorted(state.samples)
    places = {d: i for i, d in enumerate(state.dims)}
    for low, high in zip(known[::-1][1:], known[::-1], strict=False):
        width = places[high] - places[low]
        if width < 2 or (low, high) in state.smooth or (low, high) in state.flat:
            continue
        if _is_flat(state, low, high):
            state.flat.add((low, high))
            continue
        return low, state.dims[places[low] + width // 2], high
    return None


def _is_flat(state: _Search, low: int, high: int) -> bool:
    """Returns whether two latencies are the same, having measured until a least step would have shown."""
    while True:
        error = 2.5 * state.difference(low, high)
        if abs(state.value(high) / state.value(low) - 1) > max(LEAST_STEP / 2, error):
            return False
        poorer = min((low, high), key=lambda d: len(state.samples[d]))
        spent = len(state.samples[poorer]) >= state.sweep or state.taken >= state.budget
        if error <= state.step or spent:
            return True
        state.take(poorer, AGAIN)


def _note_smooth(state: _Search, low: int, middle: int, high: int) -> None:
    """Notes that a curve whose middle lies on the line between its ends is smooth there.

    A step in an interval moves its middle by half of the rise, which has to be beyond noise.
    """
    share = (middle - low) / (high - low)
    expected = (1 - share) * state.value(low) + share * state.value(high)
    rise = abs(state.value(high) - state.value(low)) / expected
    if abs(state.value(middle) / expected - 1) <= min(rise / 4, max(LEAST_STEP / 2, 3 * state.error(middle))):
        state.smooth |= {(low, middle), (middle, high)}


def _confirm(state: _Search) -> None:
    """Measures again what is off its neighbours' straight line: a step, or several disturbances at once."""
    known = sorted(state.samples)
    for low, middle, high in zip(known, known[1:], known[2:], strict=False):
        share = (middle - low) / (high - low)
        line = (1 - share) * state.value(low) + share * state.value(high)
        odd = abs(state.value(middle) / line - 1) > 3 * state.error(middle)
        if state.taken >= state.budget:
            return
        if odd and FIRST_REPEATS <= len(state.samples[middle]) < 2 * FIRST_REPEATS:
            state.take(middle, AGAIN)


def _sharpen(state: _Search, progress: Progress | None) -> None:
    """Measures the ends of smooth pieces well: what is interpolated between them is as good as they are."""
    places = {d: i for i, d in enumerate(state.dims)}
    ends = {end for low, high in state.smooth if places[high] - places[low] > 1 for end in (low, high)}
    for dimension in sorted(ends, reverse=True):
        while state.error(dimension) > LEAST_STEP / 6 and len(state.samples[dimension]) < state.sweep:
            if state.taken >= state.budget:
                return
            state.take(dimension, AGAIN)
            if progress is not None:
                progress(f"probing {dimension}: end of a smooth piece", 0.95)


def _settle(state: _Search, progress: Progress | None) -> float:
    """Measures again what decides a point and is within noise; returns the share of decisions beyond it.

    The dimensions are gone through as the definition does, from the right: at first with few repeats of
    each, so that no close call spends what others need, and to the end again wherever a measurement was
    made, since it moves decisions before it.
    """
    for most in sorted({min(2 * FIRST_REPEATS, state.most), min(4 * FIRST_REPEATS, state.most), state.most}):
        taken = -1
        while taken != state.taken:
            taken = state.taken
            sure = _walk(state, most, progress)
    return sum(sure) / len(sure) if sure else 1.0


def _walk(state: _Search, most: int, progress: Progress | None) -> list[bool]:
    """Goes through the dimensions once; returns which decisions are beyond noise."""
    right = state.dims[-1]
    sure: list[bool] = []
    for dimension in sorted(state.samples, reverse=True)[1:]:
        while True:
            margin = 1 - state.step - state.value(dimension) / state.value(right)
            clear = state.clear(margin, dimension, right)
            poorer = min((dimension, right), key=lambda d: len(state.samples[d]))
            spent = len(state.samples[poorer]) >= most or state.taken >= state.budget
            if clear or spent:
                break
            state.take(poorer, AGAIN)
            if progress is not None:
                progress(f"probing {poorer}: close call", min(1.0, 0.6 + 0.4 * state.taken / state.budget))
        sure.append(clear)
        right = dimension if margin > 0 else right
    return sure
