"""The side of a worker process that asks: start it, load a candidate, run a block, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import available_cores
from lstmopt.measure.statistics import FloatArray
from lstmopt.runtimes import GPU_RUNTIMES
from lstmopt.runtimes.base import Deployment

Feeds = Mapping[str, npt.NDArray[Any]]
Calls = Sequence[tuple[float, Path]]

PATIENCE = 600.0
"""Seconds after which a worker that does not answer is given up."""

PRIORITY = -10
"""Nice value: others on the same core wait for a block of calls, instead of interrupting it."""

LEAST_CALLS = 3
"""Calls of a block, however slow one is: the fewest that have a median."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is timed.

    Attributes:
        name: unique within a comparison.
        deployment: the file, and how it is loaded.
        calls: a share and the inputs of each kind of call; the latency is the weighted mean.
        opener: "module:function" that loads the deployment for a number of threads, as
            `lstmopt.runtimes.open_session` does; another than that for what is none of its runtimes.
    """

    name: str
    deployment: Deployment
    calls: Sequence[tuple[float, Feeds]]
    opener: str = "lstmopt.runtimes:open_session"

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU works and the CPU waits."""
        return self.deployment.runtime in {runtime.name for runtime in GPU_RUNTIMES}

    @property
    def bytes(self) -> int:
        """Size of the model's files: what the runtime loads, and the weights beside it."""
        file = self.deployment.file
        return sum(each.stat().st_size for each in file.parent.glob(f"{file.stem}.*") if each.is_file())


@dataclass(frozen=True, eq=False)
class Block:
    """Calls in a row.

    Attributes:
        samples: microseconds of each call.
        disturbances: how often the kernel or the hypervisor took the core away from these samples.
        spoilt: calls that were interrupted and are not among the samples.
    """

    samples: FloatArray
    disturbances: int
    spoilt: int


class Worker:
    """One worker process with one candidate loaded; a context manager that ends it.

    Args:
        candidate: what to load; `ready` waits for it.
        calls: what `write_feeds` returned for it.
        threads: threads of an inference; the process is pinned to as many cores, the last ones, since
            the first is where interrupts go.
        cold: whether the caches are emptied before each call.
    """

    def __init__(self, candidate: Candidate, calls: Calls, threads: int, *, cold: bool = False) -> None:
        if threads > len(available_cores()):
            raise LstmoptError(
                f"{threads} threads",
                f"this process may use {len(available_cores())} cores",
                "name fewer with --threads or in the target",
            )
        self._threads, self._cold = threads, cold
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            # -P: a file of the working folder must not take a standard module's place
            [sys.executable, "-P", "-m", "lstmopt.measure.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
        )
        try:
            self.load(candidate, calls)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, candidate: Candidate, calls: Calls) -> None:
        """Begins to load a candidate in place of the one before; `ready` waits for it.

        Args:
            candidate: what to load.
            calls: what `write_feeds` returned for it.

        Raises:
            LstmoptError: the process has ended.
        """
        self.name = candidate.name
        self._call_ns = 0
        deployment = candidate.deployment
        # The worker is another process: its paths must not depend on the working folder.
        deployment = deployment.model_copy(
            update={
                "file": deployment.file.absolute(),
                "libraries": tuple(library.absolute() for library in deployment.libraries),
            }
        )
        self._send(
            {
                "load": {
                    "deployment": deployment.model_dump(mode="json"),
                    "opener": candidate.opener,
                    "threads": self._threads,
                    "cores": available_cores()[-self._threads :],
                    "priority": PRIORITY,
                    "on_gpu": candidate.on_gpu,
                    "calls": [(share, str(path.absolute())) for share, path in calls],
                    "cold": self._cold,
                }
            }
        )

    def ready(self) -> None:
        """Waits until the candidate is loaded and warm.

        Raises:
            LstmoptError: it does not load or run.
        """
        self._call_ns = max(1, int(self._receive()["call_ns"]))

    def block(self, block_ms: float) -> Block:
        """Runs calls in a row, each timed alone.

        Args:
            block_ms: least duration, milliseconds; three calls at least.

        Raises:
            LstmoptError: one fails, or the runtime ends the process.
        """
        self._send({"run": max(LEAST_CALLS, int(np.ceil(block_ms * 1e6 / self._call_ns)))})
        answer = self._receive()
        samples = np.array(answer["samples"], dtype=np.float64) / 1e3
        return Block(samples, int(answer["disturbances"]), int(answer["spoilt"]))

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # what was not sent yet
                continue

    def _send(self, command: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._dead() from error

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # A runtime that hangs would keep this process and the machine's lock for ever.
        watch, began = threading.Timer(PATIENCE, self._process.kill), time.monotonic()
        watch.daemon = True
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line and time.monotonic() - began >= PATIENCE:
            raise LstmoptError(
                f"measuring {self.name}",
                f"the runtime did not answer for {PATIENCE:g} s",
                "try another runtime",
            )
        if not line:
            raise self._dead()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LstmoptError(
                f"measuring {self.name}", str(answer["error"]), "check the model with lstmopt inspect"
            )
        return answer

    def _dead(self) -> LstmoptError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip()[:300] for line in reversed(said) if line.strip()), "it said nothing")
        return LstmoptError(
            f"measuring {self.name}",
            f"the runtime ended its process (exit code {code}: {last})",
            "try another runtime",
        )


def write_feeds(candidate: Candidate, folder: Path) -> list[tuple[float, Path]]:
    """Writes the inputs of each kind of call where the workers read them.

    Args:
        candidate: for its calls.
        folder: where to; it is made.

    Returns:
        For each kind of call its share and its file.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, (share, feeds) in enumerate(candidate.calls):
        path = folder / f"{index}.safetensors"
        save_file({name: np.require(array, requirements="C") for name, array in feeds.items()}, path)
        files.append((share, path))
    return files
