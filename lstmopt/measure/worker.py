"""A process that loads models and times calls of them; `process` talks to it in lines of JSON.

Commands: ``{"load": {...}}`` and ``{"run": n}``; each gets one line of answer.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Calls = list[tuple[float, Callable[[], Any]]]

WARM_UP_NS = 50_000_000

PATIENCE = 4
"""Calls that are tried for each sample that is wanted."""


def main() -> None:
    """Serves commands until the pipe closes."""
    # The runtimes print to stdout; the answers go to a copy of it.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    calls: Calls = []
    cores: tuple[int, ...] = ()
    flush: Callable[[], None] | None = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "load" in command:
                spec = command["load"]
                calls.clear()  # the model before is freed first
                cores, flush = tuple(spec["cores"]), cache_flusher() if spec["cold"] else None
                calls = _load(spec)
                answer: dict[str, Any] = {"call_ns": _warm_up(calls, flush)}
            else:
                answer = _run(calls, int(command["run"]), cores, flush)
        except Exception as error:  # noqa: BLE001 - whatever it was, the other side has to hear of it
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
        answers.write(json.dumps(answer) + "\n")


def _load(spec: dict[str, Any]) -> Calls:
    from safetensors.numpy import load_file

    from lstmopt.runtimes import Deployment

    if not spec["on_gpu"]:
        _take_core(spec["cores"], spec["priority"])  # before the runtime starts its threads
    module, _, function = spec["opener"].partition(":")
    opener = getattr(importlib.import_module(module), function)
    session = opener(Deployment.model_validate(spec["deployment"]), int(spec["threads"]))
    calls = [(float(share), session.bind(load_file(path))) for share, path in spec["calls"]]
    if spec["on_gpu"]:
        # Many processes on one core would load torch and CUDA one after the other.
        _take_core(spec["cores"], spec["priority"])
    return calls


def _take_core(cores: list[int], priority: int) -> None:
    """Pins the process, and where that is allowed (to root), gives it precedence while it measures."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    if hasattr(os, "setpriority"):
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, priority)


def _warm_up(calls: Calls, flush: Callable[[], None] | None) -> int:
    """Calls until caches and frequency have settled; returns nanoseconds that one sample takes."""
    start, count = time.perf_counter_ns(), 0
    while count < 3 or time.perf_counter_ns() - start < WARM_UP_NS:
        for _, call in calls:
            call()
        count += 1
    took = []
    for _ in range(3):
        began = time.perf_counter_ns()
        for _, call in calls:
            if flush is not None:
                flush()
            call()
        took.append(time.perf_counter_ns() - began)
    return min(took)


def _run(
    calls: Calls, count: int, cores: tuple[int, ...], flush: Callable[[], None] | None
) -> dict[str, Any]:
    """Times so many calls, each alone; a sample is the weighted sum over the shapes, nanoseconds.

    A call in which the kernel gave the core to another process is not a sample, nor is the next one,
    which finds the other's data in the caches. Where hardly any call is left alone, all are samples.
    """
    clock = time.perf_counter_ns
    for _, call in calls:  # the first call of a block finds other models' data in the caches
        call()
    stolen, switches, calm = stolen_ticks(cores), context_switches(), True
    samples: list[int] = []
    spoilt: list[int] = []
    while len(samples) < count and len(samples) + len(spoilt) < PATIENCE * count:
        total = 0.0
        for share, call in calls:
            if flush is not None:
                flush()
            began = clock()
            call()
            total += share * (clock() - began)
        now = context_switches()
        (samples if calm and now == switches else spoilt).append(round(total))
        calm, switches = now == switches, now
    disturbed = stolen_ticks(cores) - stolen
    if len(samples) < count / 2:
        samples, disturbed = samples + spoilt, disturbed + len(spoilt)
    return {"samples": samples, "disturbances": disturbed, "spoilt": len(spoilt)}


def cache_flusher() -> Callable[[], None]:
    """Returns a call that fills every cache with other data: a write to each line of a large buffer."""
    import numpy as np

    from lstmopt.measure.fingerprint import fingerprint

    largest = max(fingerprint().caches.values(), default=0)
    junk = np.zeros(min(max(2 * largest, 64 * 2**20), 512 * 2**20) // 64 * 64, np.uint8)
    lines = junk.reshape(-1, 64)[:, 0]

    def flush() -> None:
        np.add(lines, 1, out=lines)

    return flush


def context_switches() -> int:
    """Returns how often the kernel took a core away from this process; 0 where that is not told."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def stolen_ticks(cores: tuple[int, ...], stat: Path = Path("/proc/stat")) -> int:
    """Returns the ticks of some cores that the hypervisor gave to others; 0 where that is not told."""
    try:
        lines = [line.split() for line in stat.read_text(encoding="ascii").splitlines()]
        wanted = {f"cpu{core}" for core in cores} or {"cpu"}
        return sum(int(fields[8]) for fields in lines if fields and fields[0] in wanted)
    except (OSError, IndexError, ValueError):
        return 0


if __name__ == "__main__":
    main()
