"""Hysteresis points: the definition, and the adaptive search on curves with noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmopt.measure.hysteresis import LEAST_STEP, SearchResult, bins, points, search

COARSE = list(range(64, 513, 8))
"""The grid that a probe of a layer has by default."""

FINE = list(range(64, 321))

CURVES: dict[str, Callable[[int], float]] = {
    "linear": lambda d: 100 + 2.0 * d,
    "quadratic": lambda d: 100 + 0.01 * d * d,
    "steps of 16": lambda d: 100 + 30 * np.ceil(d / 16),
    "steps of 64": lambda d: 100 + 60 * np.ceil(d / 64),
    "sawtooth": lambda d: (100 + 32 * np.ceil(d / 16)) * (1.08 if d % 16 else 1.0),
    "constant": lambda d: 500.0,
}
SMOOTH = ("linear", "quadratic")


class Machine:
    """A simulated machine: noise of 0.5 to 1%, and one measurement in 20 disturbed by 5 to 30%."""

    def __init__(self, truth: dict[int, float], seed: int) -> None:
        self.truth, self.rng, self.taken = truth, np.random.default_rng(seed), 0
        self.noise = self.rng.uniform(0.005, 0.01)

    def measure(self, dimension: int, repeats: int) -> list[float]:
        self.taken += repeats
        values = self.truth[dimension] * (1 + self.noise * self.rng.standard_normal(repeats))
        disturbed = self.rng.random(repeats) < 0.05
        return list(values * np.where(disturbed, 1 + self.rng.uniform(0.05, 0.3, repeats), 1))


def recovered(result: SearchResult, truth: dict[int, float], smooth: bool) -> bool:
    """Whether the points are those of the noiseless curve.

    A smooth curve has no natural places for them. There: as many, within 10% (or one); no larger
    dimension is as fast as a point; and neighbours are e apart and at most a grid step more, give or
    take the 1% that is not worth a dimension.
    """
    expected = points(truth)
    if not smooth:
        return result.points == expected
    if abs(len(result.points) - len(expected)) > max(1, 0.1 * len(expected)):
        return False
    dims = sorted(truth)
    for right, left in zip(result.points, result.points[1:], strict=False):
        apart = 1 - truth[left] / truth[right]
        grid = 1 - truth[left] / truth[dims[dims.index(left) + 1]]
        if not 0 < apart <= LEAST_STEP + grid + LEAST_STEP:
            return False
    return all(truth[d] > truth[p] for p in result.points for d in dims if d > p)


def rate(name: str, dims: Sequence[int], runs: int) -> tuple[float, float]:
    """The share of runs whose points are recovered, and the largest share of a sweep's measurements."""
    truth = {d: float(CURVES[name](d)) for d in dims}
    good, most = 0, 0.0
    for seed in range(runs):
        machine = Machine(truth, seed)
        result = search(machine.measure, dims)
        assert result.measurements == machine.taken == sum(map(len, result.samples.values()))
        assert set(result.latency) == set(dims)
        good += recovered(result, truth, name in SMOOTH)
        most = max(most, machine.taken / result.exhaustive)
    return good / runs, most


@pytest.mark.parametrize("name", CURVES)
def test_points_under_noise(name: str) -> None:
    share, most = rate(name, COARSE, 12)
    assert share >= 0.9
    assert most <= 0.5


@pytest.mark.deep
@pytest.mark.parametrize("name", CURVES)
def test_points_under_noise_in_200_runs(name: str) -> None:
    share, most = rate(name, COARSE, 200)
    assert share >= 0.95
    assert most <= 0.5


@pytest.mark.parametrize("name", CURVES)
def test_points_under_noise_on_every_dimension(name: str) -> None:
    share, most = rate(name, FINE, 6)
    assert share >= 5 / 6
    assert most <= 0.25


latencies = st.dictionaries(st.integers(1, 60), st.floats(50, 200), min_size=1, max_size=40)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(latency=latencies, resolution=st.sampled_from((0.0, 0.005, 0.03)))
def test_points_and_bins_are_what_the_definition_says(latency: dict[int, float], resolution: float) -> None:
    step = max(resolution, 0.01)
    found = points(latency, resolution)
    assert found[0] == max(latency)
    for right, left in zip(found, found[1:], strict=False):
        faster = [d for d in latency if d < right and latency[d] < (1 - step) * latency[right]]
        assert left == max(faster)
    assert not [d for d in latency if d < found[-1] and latency[d] < (1 - step) * latency[found[-1]]]
    inside = {d for low, high in bins(latency, resolution) for d in latency if low <= d <= high}
    assert inside == set(latency) - set(found)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    heights=st.lists(st.floats(0.03, 0.3), min_size=1, max_size=6),
    width=st.integers(2, 24), first=st.integers(1, 100), spacing=st.sampled_from((1, 8)),
)  # fmt: skip
def test_search_without_noise_finds_every_step(
    heights: list[float], width: int, first: int, spacing: int
) -> None:
    """Any staircase whose stairs are wider than the first pass's grid."""
    dims = [first + spacing * i for i in range((len(heights) + 1) * (width + 16))]
    truth, value = {}, 100.0
    for index, dimension in enumerate(dims):
        stair, place = divmod(index, width + 16)
        if place == 0 and stair:
            value *= 1 + heights[stair - 1]
        truth[dimension] = value
    result = search(lambda d, n: [truth[d]] * n, dims)
    assert result.points == points(truth)
    assert result.bins == bins(truth)
    assert result.confidence == 1.0


@pytest.mark.parametrize("dims", [[8], [8, 16], [1, 2, 3]])
def test_few_dimensions(dims: list[int]) -> None:
    result = search(lambda d, n: [100.0 + d] * n, dims)
    assert result.points == points({d: 100.0 + d for d in dims})


def test_a_very_noisy_machine_is_said_to_be_one() -> None:
    rng = np.random.default_rng(0)
    truth = {d: 100.0 + d for d in COARSE}
    result = search(lambda d, n: list(truth[d] * (1 + 0.1 * rng.standard_normal(n))), COARSE)
    assert result.resolution > 0.03 or result.confidence < 0.8
    assert result.measurements <= result.exhaustive / 2
