"""The one way to time: worker processes, pinned, in random order, block by block."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lstmopt.measure import statistics
from lstmopt.measure.lock import machine_lock
from lstmopt.measure.process import Block, Candidate, Worker, write_feeds
from lstmopt.measure.statistics import FloatArray, Ratio, Spread, Timing

PROCESSES = (2, 4)
"""Fewest and most worker processes a candidate: where a process's pages lie moves its latency by a
percent or two."""

COLD_PROCESSES = 2
"""Worker processes of a candidate whose caches are emptied: each holds up to 512 MiB to do that with."""

WORKERS = 24
"""Worker processes of a comparison: with many candidates each has fewer, to spare memory and start-up."""

LOADED = 4
"""Memory of a worker process over the bytes of its model's files: runtimes keep several copies."""

MEMORY = 2**30
"""Bytes that the models of all worker processes may take before each candidate has fewer processes."""

REPEATS = 1
"""How often a disturbed block is run before its least disturbed one is taken for the round."""

NARROW = 0.003
"""Standard error of the A/A pair from round to round from which on more rounds are not worth their time."""

TRUST = (0.98, 1.02)
"""Where the ratio of a candidate to itself has to lie."""

ATTEMPTS = 3
MORE = 2

Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Latencies of several candidates that were measured together.

    Attributes:
        rounds: for each candidate one array a round: microseconds of single calls.
        aa: the first candidate over itself.
        discarded: blocks and calls that were interrupted and made again.
        kept_interrupted: whether interrupted ones had to be kept, the machine being too busy.
        processes: worker processes of each candidate; round i ran in number i modulo that.
        apart: how far processes of one candidate are apart.
    """

    rounds: Mapping[str, Sequence[FloatArray]]
    aa: Ratio
    discarded: int
    kept_interrupted: bool
    processes: int
    apart: Spread

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates."""
        return tuple(self.rounds)

    def timing(self, name: str) -> Timing:
        """Returns a candidate's latency."""
        return statistics.timing(self.rounds[name], self.processes, self.apart)

    def ratio(self, name: str, other: str) -> Ratio:
        """Returns the latency of one candidate over another's; over its own it is 1."""
        if name == other:
            return Ratio(value=1.0, low=1.0, high=1.0)
        return statistics.ratio(self.rounds[name], self.rounds[other], self.processes, self.apart)

    @property
    def trusted(self) -> bool:
        """Whether the first candidate was as fast as itself, within 2%."""
        return TRUST[0] <= self.aa.value <= TRUST[1]


def compare(
    candidates: Sequence[Candidate],
    *,
    threads: int,
    rounds: int = 24,
    block_ms: float = 20.0,
    cold: bool = False,
    attempts: int | None = None,
    processes: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Times candidates against each other.

    Args:
        candidates: at least one; the first is also timed against itself.
        threads: threads of each inference; the workers are pinned to as many cores.
        rounds: blocks of each candidate; on a noisy machine up to twice as many, until they tell what
            rounds can.
        block_ms: least duration of a block of calls; single calls in turn would find each other's data
            in the caches.
        cold: whether the caches are emptied before each call.
        attempts: how often at most, see below; None takes `ATTEMPTS`.
        processes: worker processes of each candidate; None takes 2 to 4, fewer where there are many
            or where models are large.
        seed: of the order of the candidates.
        progress: told how far it is.

    Returns:
        The comparison; where the A/A pair leaves 0.98..1.02, new processes and twice the rounds are
        tried, and `Comparison.trusted` says how it ended.

    Raises:
        LstmoptError: a model does not load or run.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"compare: names are missing or not unique: {names}")
    with machine_lock(progress):
        for attempt in range(attempts or ATTEMPTS):
            result = _attempt(
                candidates, threads, rounds * 2**attempt, block_ms, cold, processes, seed + attempt, progress
            )
            if result.trusted:
                break
    return result


def _attempt(
    candidates: Sequence[Candidate], threads: int, rounds: int, block_ms: float, cold: bool,
    processes: int | None, seed: int, progress: Progress | None,
) -> Comparison:  # fmt: skip
    rng = np.random.default_rng(seed)
    discarded, disturbed = 0, False
    if processes is None:
        processes = COLD_PROCESSES if cold else affordable([*candidates, candidates[0]])
    with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder, ExitStack() as stack:
        groups: list[list[Worker]] = []
        for index, candidate in enumerate([*candidates, candidates[0]]):  # the last is the first's twin
            files = write_feeds(candidate, Path(folder) / str(index))
            groups.append(
                [stack.enter_context(Worker(candidate, files, threads, cold=cold)) for _ in range(processes)]
            )
        for worker in (worker for group in groups for worker in group):
            worker.ready()
        kept: list[list[FloatArray]] = [[] for _ in groups]
        for number in range(MORE * rounds):
            enough = number >= rounds and number % processes == 0
            if enough and statistics.round_error(kept[-1], kept[0], processes) <= NARROW:
                break
            for index in rng.permutation(len(groups)):
                best, again = quiet_block(groups[index][number % processes], block_ms)
                kept[index].append(best.samples)
                discarded += again + best.spoilt
                disturbed |= best.disturbances > 0
            if progress is not None:
                progress(f"measuring {len(candidates)} candidates", min(1.0, (number + 1) / rounds))
    apart = statistics.spread(kept, processes)
    return Comparison(
        rounds={candidate.name: blocks for candidate, blocks in zip(candidates, kept[:-1], strict=True)},
        aa=statistics.ratio(kept[-1], kept[0], processes, apart),
        discarded=discarded,
        kept_interrupted=disturbed,
        processes=processes,
        apart=apart,
    )


def affordable(candidates: Sequence[Candidate]) -> int:
    """Returns how many worker processes each of some candidates may have, by their number and memory."""
    if all(candidate.on_gpu for candidate in candidates):
        return PROCESSES[0]  # where the CPU's pages lie does not matter
    memory = LOADED * sum(candidate.bytes for candidate in candidates)
    return int(np.clip(min(WORKERS // len(candidates), MEMORY // max(1, memory)), *PROCESSES))


def quiet_block(worker: Worker, block_ms: float, repeats: int = REPEATS) -> tuple[Block, int]:
    """Runs a block, again where it was disturbed.

    Args:
        worker: with its candidate loaded.
        block_ms: least duration, milliseconds.
        repeats: how often again at most.

    Returns:
        The least disturbed block, and how many were not used.

    Raises:
        LstmoptError: a call fails.
    """
    best = worker.block(block_ms)
    for again in range(repeats):
        if best.disturbances == 0:
            return best, again
        best = min(best, worker.block(block_ms), key=lambda block: block.disturbances)
    return best, repeats
