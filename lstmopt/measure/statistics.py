"""Medians, quantiles and intervals of latencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

FloatArray = npt.NDArray[np.float64]


class Timing(BaseModel):
    """Latency of one call, microseconds.

    Attributes:
        median: the middle of the rounds' medians.
        p10: 10th percentile of single calls.
        p90: 90th percentile of single calls.
        p99: 99th percentile of single calls.
        low: lower end of the median's 95% interval.
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
    """A ratio of two latencies with its 95% interval."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """How far processes that run the same model are apart: where their pages lie makes one slower.

    Attributes:
        deviation: relative standard deviation of a process's latency, less what all have in common.
        freedom: degrees of freedom with which it is known.
    """

    deviation: float
    freedom: int


def spread(candidates: Sequence[Sequence[FloatArray]], processes: int) -> Spread:
    """Returns how far the processes of each candidate are apart, from all candidates together.

    One candidate has few processes, and two of them tell next to nothing.

    Args:
        candidates: rounds of each, at least two, as of `timing`.
        processes: in how many processes each ran.
    """
    logs = np.log([[np.median(block) for block in rounds] for rounds in candidates])
    middles = np.array([_by_process(row, processes) for row in logs])
    rest = middles - middles.mean(axis=1, keepdims=True) - middles.mean(axis=0) + middles.mean()
    freedom = (middles.shape[0] - 1) * (middles.shape[1] - 1)
    return Spread(float(np.sqrt((rest**2).sum() / max(1, freedom))), freedom)


def timing(rounds: Sequence[FloatArray], processes: int, apart: Spread) -> Timing:
    """Summarises single calls' latencies.

    Args:
        rounds: one array of microseconds a round; round i ran in process i modulo `processes`.
        processes: in how many processes the rounds ran.
        apart: the processes' spread.
    """
    logs = np.log([np.median(block) for block in rounds])
    p10, p90, p99 = np.percentile(np.concatenate(list(rounds)), (10, 90, 99))
    middle = _middle(logs)
    half = _half(apart.deviation, processes, apart.freedom)
    return Timing(
        median=float(np.exp(middle)), p10=float(p10), p90=float(p90), p99=float(p99),
        low=float(np.exp(middle - half)), high=float(np.exp(middle + half)),
        samples=sum(len(block) for block in rounds),
    )  # fmt: skip


def ratio(
    one: Sequence[FloatArray], other: Sequence[FloatArray], processes: int, apart: Spread | None = None
) -> Ratio:
    """Returns the latency of one over the other's, paired round by round.

    A round's ratio is that of its medians, so that a drift of the machine, which both see, cancels. The
    interval is Student's over processes: what a process has of its own, more rounds of it do not tell.

    Args:
        one: rounds as of `timing`.
        other: the same of the other.
        processes: in how many processes each ran.
        apart: the processes' spread, from all that were measured beside them; from these two where None.
    """
    apart = spread((one, other), processes) if apart is None else apart
    middle = _middle(np.log([np.median(a) / np.median(b) for a, b in zip(one, other, strict=True)]))
    half = _half(np.sqrt(2) * apart.deviation, processes, apart.freedom)
    return Ratio(
        value=float(np.exp(middle)), low=float(np.exp(middle - half)), high=float(np.exp(middle + half))
    )


def round_error(one: Sequence[FloatArray], other: Sequence[FloatArray], processes: int) -> float:
    """Returns the relative standard error of a ratio that more rounds of the same processes would lessen."""
    logs = np.log([np.median(a) / np.median(b) for a, b in zip(one, other, strict=True)])
    inside = np.concatenate(
        [logs[first::processes] - np.median(logs[first::processes]) for first in range(processes)]
    )
    return float(1.4826 * np.median(np.abs(inside)) / np.sqrt(len(inside)))


def _middle(values: FloatArray) -> float:
    """Returns the mean of the middle half.

    The rounds cluster by process: a median jumps between clusters, a mean follows outliers.
    """
    from scipy.stats import trim_mean

    return float(trim_mean(values, 0.25))


def _by_process(values: FloatArray, processes: int) -> list[float]:
    """Returns the median of each process's rounds, which are few and some of them disturbed."""
    return [float(np.median(values[first::processes])) for first in range(min(processes, len(values)))]


def _half(deviation: float, processes: int, freedom: int) -> float:
    """Returns half of the 95% interval of a mean over processes."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom) * deviation / np.sqrt(processes)) if freedom else float("inf")
