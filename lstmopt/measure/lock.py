"""One measurement at a time on a machine: two at once would time each other."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lstmopt.errors import LstmoptError

if TYPE_CHECKING:
    from filelock import BaseFileLock

SHARED = Path("/tmp")
"""Where every user and process of a POSIX system may write, whatever ``TMPDIR`` says."""

ATTEMPTS, PAUSE = 20, 0.05
"""How often a lock is tried that may not be opened yet, and the seconds between."""

Progress = Callable[[str, float], None]


def lock_path(folder: Path | None = None) -> Path:
    """Returns the lock's path, the same for every user and process of a system.

    ``TMPDIR`` does not move it. It has a folder of its own: in one with the sticky bit, as ``/tmp`` is,
    Linux lets nobody open another user's lock.

    Args:
        folder: where to put it, in place of the usual one.
    """
    if folder is None:
        posix = os.name == "posix"
        folder = SHARED if posix else Path(os.environ.get("PROGRAMDATA", tempfile.gettempdir()))
    return folder / "lstmopt" / "measure.lock"


def _make_folder(folder: Path) -> None:
    """Makes the lock's folder, where every user may write, unless it is there."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):  # another user's, made at this moment
        folder.chmod(0o777)


def _tried(path: Path) -> BaseFileLock:
    """Returns the lock of a path, held unless another process holds it.

    Raises:
        OSError: it cannot be opened, and not a moment later either.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, mode=0o666)
    for attempt in range(ATTEMPTS):
        try:
            _make_folder(path.parent)
            with suppress(Timeout):
                lock.acquire(timeout=0)
            return lock
        except PermissionError:
            # Another user may have made the folder and is about to open it to all.
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE)
    raise AssertionError("unreachable")


def _found(progress: Progress | None) -> BaseFileLock:
    """Returns the machine's lock, or the next best one where the usual place is not to be had.

    Raises:
        LstmoptError: neither can be opened.
    """
    usual = path = lock_path()
    try:
        try:
            return _tried(usual)
        except OSError as error:
            if usual.parent.is_dir() and error.errno != errno.EROFS:
                raise  # others use it: another lock would let both measure at once
            path = lock_path(Path(tempfile.gettempdir()))
            lock = _tried(path)
            if progress is not None:
                progress(
                    f"{usual} cannot be made ({error.strerror}): only measurements that lock {path} wait", 0.0
                )
            return lock
    except OSError as error:
        raise LstmoptError(
            str(path),
            f"cannot be opened ({error.strerror})",
            "let the owner of its folder delete it, or make it writable",
        ) from error


@contextmanager
def machine_lock(progress: Progress | None = None, timeout: float = 600.0) -> Iterator[None]:
    """Holds the machine for measuring.

    Args:
        progress: told when another measurement has to be waited for, or cannot be.
        timeout: seconds to wait.

    Raises:
        LstmoptError: another process measures for longer than that, or the lock cannot be opened.
    """
    from filelock import Timeout

    lock = _found(progress)
    if not lock.is_locked:
        if progress is not None:
            progress("waiting: another lstmopt measures on this machine", 0.0)
        try:
            lock.acquire(timeout=timeout)
        except Timeout as error:
            raise LstmoptError(
                lock.lock_file,
                f"another measurement holds the machine for over {timeout:.0f} s",
                "try later",
            ) from error
    try:
        yield
    finally:
        lock.release()
