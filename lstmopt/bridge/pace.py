"""How many threads torch trains in, found by timing steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

TRIALS = 2
"""Steps that are timed in each number of threads; the faster one counts."""

SETTLED, SHARE = 10.0, 20
"""Seconds until another trial, and how many times its own length those are at least."""


class Pace:
    """Keeps to the number of threads in which steps are fastest, and tries the others now and then.

    Threads of one step wait for the slowest of them. Where another job has one of the cores, that is a
    time slice a wait, and a step of a small model takes a hundred times as long in two threads as in one.

    Args:
        counts: numbers of threads to choose from; the first is in use.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self._counts = tuple(dict.fromkeys(counts))
        self._times: dict[int, float] = {}
        self._queue: list[int] = []
        self._spent = 0.0
        self._left = 0.0  # the first step, which sets up, is not a trial
        self.count = self._counts[0]

    def step(self, seconds: float) -> None:
        """Tells how long a step took, and sets the threads of the next."""
        if self._queue:
            self._spent += seconds
            self._times[self.count] = min(seconds, self._times.get(self.count, seconds))
            self._queue.pop(0)
            if not self._queue:
                self._use(min(self._times, key=self._times.__getitem__))
                self._left = max(SETTLED, SHARE * self._spent)
        else:
            self._left -= seconds
            if self._left <= 0 and len(self._counts) > 1:
                self._queue = [count for count in self._counts for _ in range(TRIALS)]
                self._times, self._spent = {}, 0.0
        if self._queue:
            self._use(self._queue[0])

    def _use(self, count: int) -> None:
        if count != self.count:
            self.count = count
            torch.set_num_threads(count)
