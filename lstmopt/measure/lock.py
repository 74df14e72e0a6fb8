"""One measurement at a time on a machine: two at once would time each other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lstmopt.errors import LstmoptError


def lock_path() -> Path:
    """Returns the lock's path, the same for every user of the machine."""
    return Path(tempfile.gettempdir()) / "lstmopt-measure.lock"


@contextmanager
def machine_lock(
    progress: Callable[[str, float], None] | None = None, timeout: float = 600.0
) -> Iterator[None]:
    """Holds the machine for measuring.

    Args:
        progress: told when another measurement has to be waited for.
        timeout: seconds to wait.

    Raises:
        LstmoptError: another process measures for longer than that.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(lock_path(), mode=0o666)
    try:
        lock.acquire(timeout=0)
    except PermissionError as error:
        raise LstmoptError(
            str(lock_path()), "another user's lock cannot be opened", "let its owner delete it"
        ) from error
    except Timeout:
        if progress is not None:
            progress("waiting: another lstmopt measures on this machine", 0.0)
        try:
            lock.acquire(timeout=timeout)
        except Timeout as error:
            raise LstmoptError(
                str(lock_path()),
                f"another measurement holds the machine for over {timeout:.0f} s",
                "try later",
            ) from error
    try:
        yield
    finally:
        lock.release()
