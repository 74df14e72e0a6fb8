"""The folder of all stages' results, ``output/.run``: made, emptied, and owned by one call at a time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lstmopt.errors import LstmoptError
from lstmopt.report.folder import check_destination, recover

LOCK = "lock"


def run_folder(output: Path) -> Path:
    """Makes ``output/.run``, checking first that it can be written."""
    folder = output / ".run"
    check_destination(output)
    try:
        recover(output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "probe").write_text("")
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
