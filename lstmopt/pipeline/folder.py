"""The folder of all stages' results, ``output/.run``: made, emptied, and owned by one call at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lstmopt.errors import LstmoptError
from lstmopt.report.folder import check_destination, recover

LOCK = "lock"
TRIAL = "probe"
"""A file that is written to see whether one can be."""


@contextmanager
def run_folder(output: Path) -> Iterator[Path]:
    """Makes ``output/.run`` and locks it; where nothing came into it, what was made here goes again."""
    made = [path for path in (output / ".run", output) if not path.exists()]
    folder = _made(output)
    with sole_owner(folder):
        try:
            yield folder
        finally:
            if made and {entry.name for entry in folder.iterdir()} <= {LOCK, TRIAL}:
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # it holds something
                    if output in made:
                        output.rmdir()


def _made(output: Path) -> Path:
    """Makes ``output/.run``, checking first that it can be written."""
    folder = output / ".run"
    check_destination(output)
    try:
        recover(output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRIAL).write_text("")
    except OSError as error:
        raise LstmoptError(
            str(output), f"cannot be written ({error.strerror})", "name another folder with -o"
        ) from error
    return folder.resolve()


def clear(run_folder: Path) -> None:
    """Deletes all results; the lock, which this call holds, stays."""
    for entry in run_folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def sole_owner(run_folder: Path) -> Any:
    """Locks the run folder, so that two calls do not write the same results."""
    from filelock import FileLock, Timeout

    lock = FileLock(run_folder / LOCK)
    try:
        return lock.acquire(timeout=0)
    except Timeout as error:
        raise LstmoptError(
            str(run_folder.parent), "another lstmopt is at work there", "wait for it, or name another folder"
        ) from error
