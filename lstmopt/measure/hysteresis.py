"""Latency hysteresis: dimensions that are smaller than another and not faster.

Yin et al. (arXiv 1901.10997, section 3) show the effect; the definitions here are this project's.
Read from the right, the first point is the largest dimension; the next is the largest dimension whose
latency is below ``1 - e`` times the last point's. What lies between two points is a bin. `search` finds
them without measuring everything.
"""

from __future__ import annotations

from collections.abc import Mapping

LEAST_STEP = 0.01
"""Differences in latency below 1% are not worth a dimension."""


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

    Args:
        latency: latency by dimension, microseconds.
        resolution: the smallest relative difference that the measurement can tell.
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
