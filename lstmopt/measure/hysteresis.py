"""Latency hysteresis: dimensions that are smaller than another and not faster.

Yin et al. (arXiv 1901.10997, section 3) show the effect; the definitions here are this project's.
Read from the right, the first point is the largest dimension; the next is the largest dimension whose
latency is below ``1 - e`` times the last point's. What lies between two points is a bin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

LEAST_STEP = 0.01
"""Differences in latency below 1% are not worth a dimension."""

FIRST_REPEATS = 5
ALIGNMENT = 16
"""Vector registers and cache lines hold 16 floats: steps are looked for there first."""

Measure = Callable[[int, int], Sequence[float]]


def points(latency: Mapping[int, float], resolution: float = 0.0) -> tuple[int, ...]:
    """Returns the hysteresis points, largest first.

    Args:
        latency: latency by dimension, microseconds.
        resolution: the smallest relative difference that the measurement can tell.
    """
    step = max(resolution, LEAST_STEP)
    found: list[int] = []
    for dimension in sorted(latency, reverse=True):
        if not found or latency[dimension] < (1 - step) * latency[found[-1]]:
            found.append(dimension)
    return tuple(found)


def bins(latency: Mapping[int, float], resolution: float = 0.0) -> tuple[tuple[int, int], ...]:
    """Returns each bin as its smallest and largest dimension, both without a reason to be chosen.

    The dimensions of a bin are below a point and not faster than it by more than the step.
    """
    marks = points(latency, resolution)
    dimensions = sorted(latency)
    found = []
    for index, right in enumerate(marks):
        left = marks[index + 1] if index + 1 < len(marks) else -1
        inside = [dimension for dimension in dimensions if left < dimension < right]
        if inside:
            found.append((inside[0], inside[-1]))
    return tuple(found)


@dataclass(frozen=True)
class SearchResult:
    """What an adaptive search has found.

    Attributes:
        samples: measured latencies by dimension, microseconds.
        latency: latency of every dimension, those not measured interpolated between their neighbours.
        points: hysteresis points, largest first.
        bins: see `bins`.
        resolution: smallest relative difference that the samples can tell.
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


CERTAINTY = 3.5
"""Standard errors beyond which a decision counts as made; a search makes hundreds of them."""

MOST_REPEATS = 120


BUDGET = 0.47
"""Share of an exhaustive sweep's measurements that a search may take; the noise is known to a few percent."""


@dataclass
class _Search:
    measure: Measure
    dims: list[int]
    samples: dict[int, list[float]] = field(default_factory=dict)
    smooth: set[tuple[int, int]] = field(default_factory=set)
    flat: set[tuple[int, int]] = field(default_factory=set)
    most: int = MOST_REPEATS
    _noise: tuple[int, float] = (-1, 0.0)

    def take(self, dimension: int, repeats: int) -> None:
        self.samples.setdefault(dimension, []).extend(float(x) for x in self.measure(dimension, repeats))

    def value(self, dimension: int) -> float:
        """Returns a dimension's latency: the mean of the samples' lower middle.

        Disturbances only ever make a call slower, so more is cut off above than below.
        """
        taken = np.sort(self.samples[dimension])
        return float(taken[len(taken) // 5 : len(taken) - 2 * len(taken) // 5].mean())

    def noise(self) -> float:
        """Returns the relative standard deviation of one measurement, from medians for the same reason."""
        if self.taken > 1.05 * self._noise[0]:  # it hardly changes from sample to sample
            deviations = np.concatenate(
                [
                    np.abs(np.array(taken) / self.value(d) - 1)
                    for d, taken in self.samples.items()
                    if len(taken) > 2
                ]
                or [np.zeros(1)]
            )
            self._noise = (self.taken, 1.6 * float(np.median(deviations)))
        return self._noise[1]

    def error(self, dimension: int) -> float:
        """Returns the relative standard error of a dimension's latency."""
        return 1.2 * self.noise() / float(np.sqrt(len(self.samples[dimension])))

    def difference(self, one: int, other: int) -> float:
        """Returns the relative standard error of the ratio of two latencies."""
        return float(np.hypot(self.error(one), self.error(other)))

    @property
    def taken(self) -> int:
        return sum(len(samples) for samples in self.samples.values())

    @property
    def budget(self) -> float:
        """How many measurements may be taken."""
        return BUDGET * len(self.dims) * self.most_repeats

    @property
    def most_repeats(self) -> int:
        """How often each dimension has to be measured to tell half of the least step."""
        wanted = (CERTAINTY * 1.2 * self.noise() * np.sqrt(2) / (LEAST_STEP / 2)) ** 2
        return int(np.clip(np.ceil(wanted), FIRST_REPEATS, self.most))

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
    progress: Callable[[str, float], None] | None = None,
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
    state = _Search(measure, sorted(set(dims)), most=most_repeats)
    for index, dimension in enumerate(_first(state.dims)):
        state.take(dimension, FIRST_REPEATS)
        if progress is not None:
            progress(f"probing {dimension}", min(0.6, 0.6 * index / max(1, len(state.dims))))
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
    latency = state.curve()
    resolution = CERTAINTY * 1.2 * state.noise() * float(np.sqrt(2 / state.most_repeats))
    step = max(LEAST_STEP, resolution if state.most_repeats == most_repeats else 0.0)
    return SearchResult(
        samples={d: tuple(state.samples[d]) for d in sorted(state.samples)},
        latency=latency,
        points=points(latency, step),
        bins=bins(latency, step),
        resolution=step if step > LEAST_STEP else resolution,
        measurements=state.taken,
        exhaustive=len(state.dims) * state.most_repeats,
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
        spent = len(state.samples[poorer]) >= state.most_repeats or state.taken >= state.budget
        if error <= LEAST_STEP or spent:
            return True
        state.take(poorer, 2)


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
            state.take(middle, min(FIRST_REPEATS, state.most - FIRST_REPEATS))


def _sharpen(state: _Search, progress: Callable[[str, float], None] | None) -> None:
    """Measures the ends of smooth pieces well: what is interpolated between them is as good as they are."""
    for dimension in sorted({end for piece in state.smooth for end in piece}, reverse=True):
        while state.error(dimension) > LEAST_STEP / 6 and len(state.samples[dimension]) < state.most_repeats:
            if state.taken >= state.budget:
                return
            state.take(dimension, 2)
            if progress is not None:
                progress(f"probing {dimension}: end of a smooth piece", 0.95)


def _settle(state: _Search, progress: Callable[[str, float], None] | None) -> float:
    """Measures again what decides a point and is within noise; returns the share of decisions beyond it.

    The dimensions are gone through as the definition does, from the right.
    """
    right = state.dims[-1]
    sure: list[bool] = []
    for dimension in sorted(state.samples, reverse=True)[1:]:
        while True:
            margin = 1 - state.value(dimension) / ((1 - LEAST_STEP) * state.value(right))
            clear = abs(margin) >= CERTAINTY * state.difference(dimension, right)
            poorer = min((dimension, right), key=lambda d: len(state.samples[d]))
            spent = len(state.samples[poorer]) >= state.most_repeats or state.taken >= state.budget
            if clear or spent:
                break
            state.take(poorer, 2)
            if progress is not None:
                progress(f"probing {poorer}: close call", min(1.0, 0.6 + 0.4 * state.taken / state.budget))
        sure.append(clear)
        right = dimension if margin > 0 else right
    return sum(sure) / len(sure) if sure else 1.0
