"""One measurement at a time on a machine: two at once would time each other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lstmopt.errors import LstmoptError


def lock_path() -> Path:
    """Returns the lock's path, the same for every user and process of a system.

    ``TMPDIR`` does not move it. It has a folder of its own: in one with the sticky bit, as ``/tmp`` is,
    Linux lets nobody open another user's lock.
    """
    if os.name == "posix":
        return Path("/tmp/lstmopt/measure.lock")
    return Path(os.environ.get("PROGRAMDATA", tempfile.gettempdir())) / "lstmopt" / "measure.lock"


def _make_folder(folder: Path) -> None:
    """Makes the lock's folder, where every user may write, unless it is there."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):  # another user's, made at this moment
        folder.chmod(0o777)


@contextmanager
def machine_lock(
    progress: Callable[[str, float], None] | None = None, timeout: float = 600.0
) -> Iterator[None]:
    """Holds the machine for measuring.

    Args:
        progress: told when another measurement has to be waited for.
        timeout: seconds to wait.

    Raises:
        LstmoptError: another process measures for longer than that, or the lock cannot be opened.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(lock_path(), mode=0o666)
    try:
        _make_folder(lock_path().parent)
        lock.acquire(timeout=0)
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
    except OSError as error:
        raise LstmoptError(
            str(lock_path()),
            f"cannot be opened ({error.strerror})",
            "let the owner of its folder delete it, or make it writable",
        ) from error
    try:
        yield
    finally:
        lock.release()
