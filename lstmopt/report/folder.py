"""Puts an artifact folder in place whole: whoever looks sees the old one or the new one, never a mixture.

The new folder is built beside the destination and exchanged with it in one system call. What stays of the
old folder is the pipeline's ``.run`` and files that the old manifest does not list, which are the user's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lstmopt.errors import LstmoptError
from lstmopt.report.schema import Manifest

RUN_FOLDER = ".run"
MANIFEST = "manifest.json"
ALMOST_FULL = 2**16
"""Free bytes below which a library's unclear error is put down to the disk."""

GRAPHS = (".xml", ".onnx")
"""Files that name others: they are replaced last."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def write_artifact_folder(build: Callable[[Path], None], destination: Path) -> None:
    """Builds a folder and moves it to its destination in one step.

    Args:
        build: fills the empty folder that it is given.
        destination: may hold an earlier artifact, which is replaced; its ``.run`` and the files that are
            not of that artifact are kept.

    Raises:
        LstmoptError: the destination cannot be written, the disk is full, or it holds files of somebody
            else. What was there before is still there.
    """
    destination = destination.resolve()
    with _clear_faults(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        recover(destination)
        check_destination(destination)
        with _beside(destination, "new") as folder:
            _fill(folder, build)
            if destination.exists():
                _copy_extras(destination, folder)
            _sync_tree(folder)
            _replace(folder, destination)


def write_folder(source: Path, output: Path) -> None:
    """Copies a folder's files to a place of the user's choice; other files there stay.

    A new folder appears whole. In one that exists each file is replaced whole, weights before the graphs
    that name them.

    Args:
        source: what to copy.
        output: the folder to write.

    Raises:
        LstmoptError: the output cannot be written, or the disk is full.
    """
    output = output.resolve()
    with _clear_faults(output):
        if not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            recover(output)
            with _beside(output, "new") as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
                _sync_tree(folder)
                folder.rename(output)
        elif not output.is_dir():
            raise LstmoptError(str(output), "is a file", "name a folder")
        else:
            inside = output / "files"
            recover(inside)
            with _beside(inside, "new") as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
                _sync_tree(folder)
                for path in sorted(_files(folder), key=lambda item: item.suffix in GRAPHS):
                    place = output / path.relative_to(folder)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(place)


def check_destination(destination: Path) -> None:
    """Checks that an artifact may be written there, before any work is done.

    Raises:
        LstmoptError: it is a file, a mount point, or a folder with files and no artifact's manifest.
    """
    destination = destination.resolve()
    mend = "name another folder"
    if destination.exists() and not destination.is_dir():
        raise LstmoptError(str(destination), "is a file", mend)
    if not destination.exists():
        return
    if os.path.ismount(destination):
        raise LstmoptError(
            str(destination), "is a mount point, which cannot be replaced whole", "name a folder inside it"
        )
    others = [entry.name for entry in destination.iterdir() if entry.name != RUN_FOLDER]
    # A run of ours that has not come to an artifact, or whose artifact did not hold: with files beside it.
    if others and MANIFEST not in others and (destination / RUN_FOLDER).is_dir():
        return
    if others and MANIFEST not in others:
        raise LstmoptError(str(destination), f"holds other files ({min(others)})", mend)
    if others:
        try:
            Manifest.load(destination / MANIFEST)
        except LstmoptError as error:
            raise LstmoptError(error.where, error.fault, f"delete the folder, or {mend}") from error


def recover(destination: Path) -> None:
    """Clears what killed calls left beside a destination; a ``.run`` among it goes back to its place.

    Call it before anything looks for ``destination/.run``.
    """
    destination = destination.resolve()
    if not destination.parent.is_dir():
        return
    # A folder that was put aside comes before a new one: the destination is its place.
    for role in ("old", "new"):
        for left in sorted(destination.parent.glob(_escaped(_prefix(destination, role)) + "*")):
            with contextlib.suppress(FileNotFoundError), _locked(left) as free:
                if free and role == "old" and not destination.exists():
                    left.rename(destination)
                elif free:
                    _discard(left, destination)


def manifest_files(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of an artifact but its manifest, by path with forward slashes."""
    return {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in _files(folder)
        if path != folder / MANIFEST
    }


def check_files(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Returns what is wrong with an artifact's files, one line each; nothing where all are as written."""
    faults = []
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif _sha256(path) != digest:
            faults.append(f"{name} was changed")
    return tuple(faults)


def _files(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder, sorted, without the pipeline's own."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).parts[0] != RUN_FOLDER:
            yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prefix(destination: Path, role: str) -> str:
    return f".{destination.name}.lstmopt-{role}-"


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "[]*?" else letter for letter in name)


@contextlib.contextmanager
def _beside(destination: Path, role: str) -> Iterator[Path]:
    """Makes a folder on the destination's file system, which a living process holds locked."""
    folder = Path(tempfile.mkdtemp(prefix=_prefix(destination, role), dir=destination.parent))
    # mkdtemp makes private folders; an artifact gets what the user's umask says.
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    try:
        with _locked(folder):
            yield folder
    finally:
        if folder.exists():
            _discard(folder, destination)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Locks a folder while it is built; gives False where another process holds it.

    The lock dies with its process, so a killed call's folder is free.
    """
    try:
        import fcntl
    except ImportError:  # Windows: folders have no locks there; the pipeline's own lock has to do
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _fill(folder: Path, build: Callable[[Path], None]) -> None:
    """Builds; a full disk, which each library reports in its own way, becomes the system's error."""
    try:
        build(folder)
    except (LstmoptError, OSError):
        raise
    except Exception as error:
        if shutil.disk_usage(folder).free < ALMOST_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _copy_extras(old: Path, new: Path) -> None:
    """Copies the files that the old artifact does not list, and the new one does not have."""
    written = Manifest.load(old / MANIFEST).files if (old / MANIFEST).is_file() else ()
    listed = {MANIFEST, *written}
    for path in _files(old):
        name = path.relative_to(old)
        if name.as_posix() not in listed and not (new / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, new / name, follow_symlinks=False)


def _replace(folder: Path, destination: Path) -> None:
    """Moves a finished folder to a destination that may exist, ``.run`` included."""
    if not destination.exists():
        folder.rename(destination)
        _sync(destination.parent)
        return
    run = destination / RUN_FOLDER
    if run.is_dir():
        # A call that ends before the exchange leaves .run in the new folder: `_discard` brings it back.
        run.rename(folder / RUN_FOLDER)
    _exchange(folder, destination)
    _sync(destination.parent)


def _discard(folder: Path, destination: Path) -> None:
    """Deletes a folder that is not, or no longer, the destination; a ``.run`` in it goes back."""
    if (folder / RUN_FOLDER).is_dir():
        _merge(folder / RUN_FOLDER, destination / RUN_FOLDER)
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(folder: Path, destination: Path) -> None:
    """Lets two folders change places."""
    if _rename_exchange(folder, destination):
        return
    # Without the system call there is a moment without a destination; `recover` mends a kill in it.
    aside = Path(tempfile.mkdtemp(prefix=_prefix(destination, "old"), dir=destination.parent))
    destination.rename(aside)
    try:
        folder.rename(destination)
    except BaseException:
        aside.rename(destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _rename_exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one system call; returns False where system or file system has none."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _merge(source: Path, target: Path) -> None:
    """Moves what a folder of results holds to another; what both hold stays the target's.

    The names of results are hashes of what they were made from, so equal names are equal results.
    """
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        if not (target / entry.name).exists():
            entry.rename(target / entry.name)


def _sync_tree(folder: Path) -> None:
    """Brings everything in a folder to the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(root) / name
            if not path.is_symlink():
                _sync(path)
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Brings a file's or folder's content to the disk."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _clear_faults(destination: Path) -> Iterator[None]:
    """Turns what the system refuses into one clear line."""
    try:
        yield
    except LstmoptError:
        raise
    except OSError as error:
        if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
            # Of a whole folder, told file by file: the first says it.
            number = re.match(r"\[Errno (\d+)\]", str(error.args[0][0][2]))
            code = int(number[1]) if number else errno.EIO
            error = OSError(code, os.strerror(code))
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise _unwritable(destination, error.strerror or str(error), full) from error


def _unwritable(destination: Path, why: str, full: bool) -> LstmoptError:
    return LstmoptError(
        str(destination),
        f"cannot be written ({why}); what was there is still there",
        "free some space and make the same call again" if full else "name another folder",
    )
