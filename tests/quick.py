"""Measuring without what makes a latency exact: where two tests run side by side none would be.

    python tests/quick.py SCRIPT_OR_MODULE [ARGUMENT ...]

runs a program so, as the tests' own processes do.
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from pathlib import Path

import pytest

from lstmopt.measure import lock, process, timing
from lstmopt.measure.fingerprint import available_cores


def measure_once(patched: pytest.MonkeyPatch, folder: Path) -> None:
    """Measures once, in few processes, and waits for nobody.

    Each process of the tests measures on a core of its own, and keeps no other from its work.

    Args:
        patched: what undoes it.
        folder: of the lock.
    """
    for name, value in (("PROCESSES", (2, 2)), ("ATTEMPTS", 1), ("MORE", 1)):
        patched.setattr(timing, name, value)
    cores = available_cores()
    turn = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % len(cores)
    patched.setattr(lock, "SHARED", folder)
    patched.setattr(process, "available_cores", lambda: (*cores[turn:], *cores[:turn]))
    patched.setattr(process, "PRIORITY", 0)


def main() -> None:
    program, sys.argv = sys.argv[1], sys.argv[1:]
    sys.path[0] = os.getcwd()  # as with python -m
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as folder:
        measure_once(patched, Path(folder))
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
