"""Hysteresis points: the definition, and the adaptive search on curves with noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmopt.measure.hysteresis import LEAST_STEP, bins, points
from lstmopt.measure.probe import MOST_REPEATS
from lstmopt.measure.search import SearchResult, search
from lstmopt.passes.probe import grid

STAGE = grid(392, 16, 0.5)
"""The grid of the standard chain's probe on the reference model."""

COARSE = list(range(64, 513, 8))
"""The grid of `lstmopt probe`."""

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

    def __init__(
        self, truth: dict[int, float], seed: int, noise: tuple[float, float] = (0.005, 0.01)
    ) -> None:
        self.truth, self.rng, self.taken = truth, np.random.default_rng(seed), 0
        self.noise = self.rng.uniform(*noise)

    def measure(self, dimension: int, repeats: int) -> list[float]:
        self.taken += repeats
        values = self.truth[dimension] * (1 + self.noise * self.rng.standard_normal(repeats))
        disturbed = self.rng.random(repeats) < 0.05
        return list(values * np.where(disturbed, 1 + self.rng.uniform(0.05, 0.3, repeats), 1))


def recovered(result: SearchResult, truth: dict[int, float], smooth: bool) -> bool:
    """Whether the points are those of the noiseless curve, at the resolution that the search reports.

    Where the curve has steps: exactly those. A smooth curve has differences of any size, so also such as
    no measurement can tell from the step: there each decision of the definition has to be the right one
    wherever the true difference is more than the resolution away from the step, each point has to be a
    true one or its neighbour and each true one has to be found so, and as many, within 10% (or one).
    """
    step = max(LEAST_STEP, result.resolution)
    expected, found = points(truth, step), result.points
    if not smooth:
        return found == expected
    width = max(result.resolution, LEAST_STEP / 2)
    if not decided(found, truth, step - width, step + width):
        return False
    if abs(len(found) - len(expected)) > max(1, 0.1 * len(expected)):
        return False
    place = {d: i for i, d in enumerate(sorted(truth))}

    def near(one: int, others: tuple[int, ...]) -> bool:
        return any(abs(place[one] - place[d]) <= 1 or abs(truth[one] / truth[d] - 1) <= step for d in others)

    return all(near(d, expected) for d in found) and all(near(d, found) for d in expected)


def decided(found: tuple[int, ...], truth: dict[int, float], low: float, high: float) -> bool:
    """Whether these are points of a step somewhere from `low` to `high`, decision by decision."""
    faster = [1 - truth[left] / truth[right] for right, left in zip(found, found[1:], strict=False)]
    missed = [
        dimension
        for right, left in zip(found, (*found[1:], 0), strict=True)
        for dimension in truth
        if left < dimension < right and truth[dimension] < (1 - high) * truth[right]
    ]
    return found[0] == max(truth) and all(gain > low for gain in faster) and not missed


@dataclass(frozen=True)
class Rate:
    """Of many runs: the share that is recovered, the most measurements over a sweep's, the resolutions."""

    recovered: float
    most: float
    resolutions: tuple[float, ...]


def rate(name: str, dims: Sequence[int], runs: int, noise: tuple[float, float] = (0.005, 0.01)) -> Rate:
    truth = {d: float(CURVES[name](d)) for d in dims}
    good, most, resolutions = 0, 0.0, []
    for seed in range(runs):
        machine = Machine(truth, seed, noise)
        result = search(machine.measure, dims, most_repeats=MOST_REPEATS)
        assert result.measurements == machine.taken == sum(map(len, result.samples.values()))
        assert result.exhaustive <= MOST_REPEATS * len(dims)
        assert set(result.latency) == set(dims)
        good += recovered(result, truth, name in SMOOTH)
        most = max(most, machine.taken / result.exhaustive)
        resolutions.append(result.resolution)
    return Rate(good / runs, most, tuple(resolutions))


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("dims", [STAGE, COARSE], ids=["stage", "coarse"])
def test_points_under_noise(name: str, dims: list[int]) -> None:
    found = rate(name, dims, 12)
    assert found.recovered >= 11 / 12
    assert found.most <= 0.5


@pytest.mark.deep
@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("dims", [STAGE, COARSE], ids=["stage", "coarse"])
def test_points_under_noise_in_200_runs(name: str, dims: list[int]) -> None:
    found = rate(name, dims, 200)
    assert found.recovered >= 0.95
    assert found.most <= 0.5


@pytest.mark.parametrize("name", CURVES)
def test_points_under_noise_on_every_dimension(name: str) -> None:
    found = rate(name, FINE, 6)
    assert found.recovered >= 5 / 6
    assert found.most <= 0.25


@pytest.mark.parametrize("noise", [0.002, 0.005, 0.01, 0.02])
def test_the_resolution_is_that_of_the_noise(noise: float) -> None:
    """Not better than the repeats allow, and not so large that hardly anything is left to be a point.

    Of the difference of two means of so many measurements, 3.5 standard errors; 0.5% is always told.
    """
    allowed = 3.5 * noise * np.sqrt(2 / MOST_REPEATS)
    found = np.array(rate("steps of 64", COARSE, 20, (noise, noise)).resolutions)
    assert np.mean(found >= min(0.9 * allowed, 0.0045)) >= 0.95
    assert found.max() <= max(0.005, 1.4 * allowed)


@pytest.mark.parametrize("noise", [0.005, 0.01, 0.02])
def test_what_the_resolution_promises(noise: float) -> None:
    """A step that is more than a resolution above the least one is found, and none where there is none."""
    rng = np.random.default_rng(0)
    found = alone = runs = 0
    for seed in range(40):
        told = search(Machine(dict.fromkeys(STAGE, 500.0), seed, (noise, noise)).measure, STAGE)
        alone += told.points == (STAGE[-1],)
        edge = int(rng.integers(1, len(STAGE) - 1))
        height = max(LEAST_STEP, told.resolution) + max(LEAST_STEP / 2, told.resolution)
        truth = {d: 500.0 * (1 - height * (d <= STAGE[edge])) for d in STAGE}
        stepped = search(Machine(truth, 1000 + seed, (noise, noise)).measure, STAGE)
        found += stepped.points == (STAGE[-1], STAGE[edge])
        runs += 1
    assert alone >= 0.95 * runs
    assert found >= 0.95 * runs


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
    assert result.resolution > 0.05
    assert result.points == points(result.latency, result.resolution)
    assert result.measurements <= result.exhaustive / 2
