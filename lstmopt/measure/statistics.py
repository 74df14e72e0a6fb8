"""Medians, quantiles and bootstrap intervals of latencies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

FloatArray = npt.NDArray[np.float64]
RESAMPLES = 2000


class Timing(BaseModel):
    """Latency of one call, microseconds.

    Attributes:
        median: the middle of the rounds' medians.
        p10: 10th percentile of single calls.
        p90: 90th percentile of single calls.
        p99: 99th percentile of single calls.
        low: lower end of the median's 95% bootstrap interval over rounds.
        high: its upper end.
        samples: number of single calls.
    """

    model_config = ConfigDict(frozen=True)

    median: float
    p10: float
    p90: float
    p99: float
    low: float
    high: float
    samples: int


class Ratio(BaseModel):
    """A ratio of two latencies with its 95% bootstrap interval over rounds."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float


def timing(rounds: Sequence[FloatArray], processes: int, seed: int) -> Timing:
    """Summarises single calls' latencies.

    Args:
        rounds: one array of microseconds a round; round i ran in process i modulo `processes`.
        processes: in how many processes the rounds ran.
        seed: of the bootstrap.
    """
    medians = np.array([np.median(block) for block in rounds])
    p10, p90, p99 = np.percentile(np.concatenate(list(rounds)), (10, 90, 99))
    low, high = _interval(medians, processes, seed)
    return Timing(
        median=float(_middle(medians)), p10=float(p10), p90=float(p90), p99=float(p99),
        low=low, high=high, samples=sum(len(block) for block in rounds),
    )  # fmt: skip


def ratio(one: Sequence[FloatArray], other: Sequence[FloatArray], processes: int, seed: int) -> Ratio:
    """Returns the latency of one over the other's, paired round by round; arguments as of `timing`.

    A round's ratio is that of its medians, so that a drift of the machine, which both see, cancels.
    """
    logs = np.log([np.median(a) / np.median(b) for a, b in zip(one, other, strict=True)])
    low, high = _interval(logs, processes, seed)
    return Ratio(value=float(np.exp(_middle(logs))), low=float(np.exp(low)), high=float(np.exp(high)))


def _middle(values: FloatArray) -> FloatArray:
    """Returns the mean of the middle half, over the last axis.

    The rounds cluster by process: a median jumps between clusters, a mean follows outliers.
    """
    count = values.shape[-1]
    return np.asarray(np.sort(values, axis=-1)[..., count // 4 : count - count // 4].mean(axis=-1))


def _interval(values: FloatArray, processes: int, seed: int) -> tuple[float, float]:
    """Returns the 95% bootstrap interval of the middle.

    Processes are drawn first, then rounds within them: a process has a latency of its own (where its
    pages lie), and rounds of one process are no evidence against that.
    """
    rng = np.random.default_rng(seed)
    groups = [group for group in (values[first::processes] for first in range(processes)) if len(group)]
    chosen = rng.integers(0, len(groups), (RESAMPLES, len(groups)))
    sizes = np.array([len(group) for group in groups])[chosen]
    padded = np.array([np.resize(group, max(map(len, groups))) for group in groups])
    picks = (rng.random((*chosen.shape, padded.shape[1])) * sizes[..., None]).astype(np.intp)
    draws = _middle(padded[chosen[..., None], picks].reshape(RESAMPLES, -1))
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)
