"""The artifact folder: whole or not at all, whatever happens and whenever."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lstmopt.errors import LstmoptError
from lstmopt.report import folder as rooms
from lstmopt.report.folder import (
    check_destination,
    check_files,
    manifest_files,
    recover,
    write_artifact_folder,
    write_folder,
)
from lstmopt.report.schema import Manifest
from tests.report_samples import manifest

HERE = Path(__file__).parent


def build(version: int, files: int = 6) -> Callable[[Path], None]:
    """Returns a build of an artifact whose files all hold one number."""

    def fill(place: Path) -> None:
        (place / "onnxruntime").mkdir()
        for index in range(files):
            (place / "onnxruntime" / f"{index}.bin").write_text(f"{version}\n" * 500)
        (place / f"only-{version}.txt").write_text("")
        manifest(manifest_files(place)).save(place / "manifest.json")

    return fill


def version_of(artifact: Path) -> int:
    """Returns the number, having checked that the artifact is whole."""
    found = Manifest.load(artifact / "manifest.json")
    assert check_files(artifact, found) == ()
    numbers = {path.read_text() for path in (artifact / "onnxruntime").iterdir()}
    assert len(numbers) == 1
    version = int(numbers.pop().split()[0])
    assert (artifact / f"only-{version}.txt").is_file()
    return version


def leftovers(artifact: Path) -> list[str]:
    return [path.name for path in artifact.parent.iterdir() if path.name != artifact.name]


@pytest.mark.parametrize("exchange", [True, False])
def test_replaces_and_keeps_what_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(rooms, "_rename_exchange", lambda one, other: False)
    artifact = tmp_path / "made" / "out"
    write_artifact_folder(build(1), artifact)
    assert version_of(artifact) == 1
    (artifact / ".run" / "stage").mkdir(parents=True)
    (artifact / ".run" / "stage" / "state.json").write_text("kept")
    (artifact / "notes.md").write_text("mine")
    (artifact / "onnxruntime" / "mine.bin").write_text("1\n")
    (artifact / "onnxruntime" / "mine.bin").rename(artifact / "mine.bin")
    write_artifact_folder(build(2), artifact)
    assert version_of(artifact) == 2
    assert not (artifact / "only-1.txt").exists()
    assert (artifact / ".run" / "stage" / "state.json").read_text() == "kept"
    assert (artifact / "notes.md").read_text() == "mine" and (artifact / "mine.bin").is_file()
    assert ".run/stage/state.json" not in manifest_files(artifact)
    assert leftovers(artifact) == []
    assert artifact.stat().st_mode & 0o777 == (tmp_path / "made").stat().st_mode & 0o777


def test_destination_with_the_run_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "out" / ".run").mkdir(parents=True)
    write_artifact_folder(build(1), tmp_path / "out")
    assert version_of(tmp_path / "out") == 1 and (tmp_path / "out" / ".run").is_dir()


def test_after_an_artifact_was_taken_away_the_users_files_are_no_obstacle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_artifact_folder(build(1), out)
    (out / ".run").mkdir()
    (out / "notes.md").write_text("mine")
    write_artifact_folder(lambda folder: None, out)  # as `Verify` does where a check fails
    assert sorted(path.name for path in out.iterdir()) == [".run", "notes.md"]
    check_destination(out)
    write_artifact_folder(build(2), out)
    assert version_of(out) == 2 and (out / "notes.md").read_text() == "mine" and (out / ".run").is_dir()


def test_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    for call in (check_destination, lambda path: write_artifact_folder(build(1), path)):
        with pytest.raises(LstmoptError, match="chapter.tex"):
            call(tmp_path / "thesis")
    (tmp_path / "thesis" / "manifest.json").write_text("{}")
    with pytest.raises(LstmoptError, match="delete the folder"):
        write_artifact_folder(build(1), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/lstmopt")):
        with pytest.raises(LstmoptError) as caught:
            write_artifact_folder(build(1), place)
        assert caught.value.exit_code == 2 and str(place) in str(caught.value)
    with pytest.raises(LstmoptError, match="mount point"):
        check_destination(Path("/proc"))


@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), RuntimeError("x"), KeyboardInterrupt()]
)
def test_a_build_that_fails_leaves_everything(tmp_path: Path, fault: BaseException) -> None:
    artifact = tmp_path / "out"
    write_artifact_folder(build(1), artifact)
    (artifact / ".run").mkdir()

    def broken(place: Path) -> None:
        build(2)(place)
        raise fault

    with pytest.raises(LstmoptError if isinstance(fault, OSError) else type(fault)):
        write_artifact_folder(broken, artifact)
    assert version_of(artifact) == 1 and (artifact / ".run").is_dir() and leftovers(artifact) == []


def test_an_interrupt_before_the_exchange_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = tmp_path / "out"
    write_artifact_folder(build(1), artifact)
    (artifact / ".run" / "stage").mkdir(parents=True)

    def interrupt(one: Path, other: Path) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(rooms, "_rename_exchange", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_artifact_folder(build(2), artifact)
    assert version_of(artifact) == 1 and (artifact / ".run" / "stage").is_dir() and leftovers(artifact) == []


def test_check_files(tmp_path: Path) -> None:
    write_artifact_folder(build(1), tmp_path / "out")
    found = Manifest.load(tmp_path / "out" / "manifest.json")
    (tmp_path / "out" / "only-1.txt").unlink()
    with (tmp_path / "out" / "onnxruntime" / "3.bin").open("a") as file:
        file.write("x")
    assert set(check_files(tmp_path / "out", found)) == {
        "only-1.txt is missing",
        "onnxruntime/3.bin was changed",
    }


def test_recover_puts_back_what_a_kill_left(tmp_path: Path) -> None:
    artifact = tmp_path / "out"
    write_artifact_folder(build(1), artifact)
    # Killed between moving .run and the exchange, and the next call has already made a .run of its own.
    left = tmp_path / ".out.lstmopt-new-abc"
    (left / ".run" / "stage-1").mkdir(parents=True)
    (artifact / ".run" / "stage-2").mkdir(parents=True)
    recover(artifact)
    assert {path.name for path in (artifact / ".run").iterdir()} == {"stage-1", "stage-2"}
    # Killed between two renames, where the system has no exchange.
    artifact.rename(tmp_path / ".out.lstmopt-old-abc")
    (tmp_path / ".out.lstmopt-new-xyz").mkdir()
    recover(artifact)
    assert version_of(artifact) == 1 and leftovers(artifact) == []
    # Another destination's leftovers are not its own.
    (tmp_path / ".out2.lstmopt-new-abc").mkdir()
    recover(artifact)
    assert leftovers(artifact) == [".out2.lstmopt-new-abc"]


def test_a_folder_that_is_being_built_is_left_alone(tmp_path: Path) -> None:
    artifact = tmp_path / "out"

    def meanwhile(place: Path) -> None:
        recover(artifact)
        assert place.is_dir()
        build(1)(place)

    write_artifact_folder(meanwhile, artifact)
    assert version_of(artifact) == 1


def test_write_folder_adds_to_what_is_there(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "deep" / "output"
    source.mkdir()
    for version in (1, 2):
        for name in ("model.xml", "model.bin"):
            (source / name).write_text(f"{name} {version}")
        write_folder(source, output)
        assert (output / "model.xml").read_text() == f"model.xml {version}"
        assert (output / "model.bin").read_text() == f"model.bin {version}"
        (output / "mine").write_text("kept")
    assert sorted(path.name for path in output.iterdir()) == ["mine", "model.bin", "model.xml"]
    assert leftovers(output) == []
    (output / "file").write_text("")
    for place in (output / "file", output / "file" / "below"):
        with pytest.raises(LstmoptError):
            write_folder(source, place)


WRITER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from lstmopt.report.folder import write_artifact_folder
    from tests.test_report_folder import build
    artifact = Path(sys.argv[1])
    version = int(sys.argv[2])
    print("ready", flush=True)
    while True:
        version += 1
        write_artifact_folder(build(version), artifact)
        print(version, flush=True)
""")


def kill_often(artifact: Path, kills: int) -> int:
    """Kills a process that writes artifacts in a loop, at random moments; returns the last version."""
    rng = random.Random(0)
    write_artifact_folder(build(0), artifact)
    (artifact / ".run").mkdir()
    (artifact / ".run" / "state.json").write_text("kept")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    version = 0
    for _ in range(kills):
        command = [sys.executable, "-c", WRITER, str(artifact), str(version)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            began = time.monotonic()
            assert process.stdout.readline()
            # Anywhere in about the next one and a half writes, however slow the machine is.
            end = time.monotonic() + rng.uniform(0, 1.5) * (time.monotonic() - began)
            while time.monotonic() < end:
                # Whoever looks finds an artifact; in the folder that was found the file may be gone a moment
                # later, when it has been exchanged and deleted, so it is looked for twice.
                assert (artifact / "manifest.json").is_file() or (artifact / "manifest.json").is_file()
            process.send_signal(signal.SIGKILL)
            process.wait()
        found = version_of(artifact)
        assert found >= version
        version = found
        recover(artifact)
        assert (artifact / ".run" / "state.json").read_text() == "kept"
        assert leftovers(artifact) == []
    return version


def test_killed_at_random_moments(tmp_path: Path) -> None:
    assert kill_often(tmp_path / "out", 6) >= 6


@pytest.mark.deep
def test_killed_at_many_random_moments(tmp_path: Path) -> None:
    assert kill_often(tmp_path / "out", 100) >= 100


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Gives a file system of 256 KiB, or skips."""
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("no right to mount a small file system; the test with a limit on file sizes runs anyway")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        artifact = disk / "out"
        write_artifact_folder(build(1, files=20), artifact)
        with pytest.raises(LstmoptError, match="free some space") as caught:
            write_artifact_folder(build(2, files=2000), artifact)
        assert caught.value.exit_code == 2
        assert version_of(artifact) == 1 and leftovers(artifact) == []

        def by_a_library(place: Path) -> None:
            try:
                build(2, files=2000)(place)
            except OSError as error:
                raise RuntimeError("could not save") from error

        with pytest.raises(LstmoptError, match="free some space"):
            write_artifact_folder(by_a_library, artifact)
        write_artifact_folder(build(3, files=20), artifact)
        assert version_of(artifact) == 3


def test_limit_on_file_sizes(tmp_path: Path) -> None:
    artifact = tmp_path / "out"
    write_artifact_folder(build(1), artifact)

    def large(place: Path) -> None:
        (place / "large").write_bytes(bytes(8192))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(LstmoptError, match="cannot be written") as caught:
            write_artifact_folder(large, artifact)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "what was there is still there" in str(caught.value)
    assert version_of(artifact) == 1 and leftovers(artifact) == []
