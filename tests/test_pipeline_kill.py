"""`lstmopt optimize`, killed and interrupted at any moment: never half an artifact, never a lost stage."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lstmopt.passes.verify import verify_artifact
from tests.test_cli_errors import QUICK, call, classifier, examples

pytestmark = pytest.mark.deep

KILLS = 6


def start(arguments: list[object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, QUICK, "lstmopt.cli", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts,
    )  # fmt: skip


def heed_interrupts() -> None:
    """A test run in the background of a script ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def call_for(folder: Path, steps: int) -> list[object]:
    """The call on a small classifier that may degrade as it likes, so that its chain is short."""
    model, data = classifier(folder / "model.onnx", 24), examples(folder / "data.npz", 60)
    return [
        "optimize", model, "--data", data, "--steps", steps, "-o", folder / "out",
        "--max-degradation", "500%",
    ]  # fmt: skip


def finished(output: Path) -> set[str]:
    """The stages whose results are whole."""
    return {path.parent.name for path in (output / ".run").glob("*/state.json")}


def test_kill_at_random_moments(tmp_path: Path) -> None:
    arguments, output = call_for(tmp_path, 200), tmp_path / "out"
    rng = random.Random(0)
    whole: dict[str, bytes] = {}
    for number in range(KILLS):
        process = start(arguments)
        before = finished(output)
        # The later kills wait for a stage to end, so that however fast the machine is they fall all along.
        if number >= 3:
            deadline = time.monotonic() + 120
            while process.poll() is None and finished(output) == before and time.monotonic() < deadline:
                time.sleep(0.02)
        try:
            process.communicate(timeout=rng.uniform(0, 6))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if (output / "manifest.json").exists():
            assert verify_artifact(output).passed
        elif output.exists():
            assert [path.name for path in output.iterdir()] in ([], [".run"])
        for name, content in whole.items():
            state = output / ".run" / name / "state.json"
            if state.exists():  # a killed exchange keeps it elsewhere until the next call
                assert state.read_bytes() == content
        whole = {name: (output / ".run" / name / "state.json").read_bytes() for name in finished(output)}
    before = finished(output)
    assert any(name.startswith("simplify-") for name in before)
    result = call(*arguments, timeout=600)
    assert result.returncode == 0, result.stderr
    assert verify_artifact(output).passed
    assert before <= finished(output)
    for name in before - {name for name in before if name.startswith(("export-", "verify-"))}:
        assert (output / ".run" / name / "state.json").read_bytes() == whole[name]
    names = [path.name for path in tmp_path.iterdir()]
    assert sorted(names) == ["data.npz", "model.onnx", "out"]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_call_says_so_and_goes_on(kind: signal.Signals, tmp_path: Path) -> None:
    arguments, output = call_for(tmp_path, 2_000_000), tmp_path / "out"
    process = start(arguments)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list((output / ".run").glob("grow-prune-*/check*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.rstrip().splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in errors
    assert [path.name for path in output.iterdir()] == [".run"]
    done = finished(output)
    # What trains first is the dense model as it is; sizes come after it.
    assert {name.rsplit("-", 1)[0] for name in done} == {"simplify", "peers", "probe"}
    checkpoint = next(iter((output / ".run").glob("grow-prune-*/check*")))
    written = checkpoint.stat().st_mtime_ns
    again = start(arguments)
    while time.monotonic() < deadline + 300 and checkpoint.stat().st_mtime_ns == written:
        assert again.poll() is None, again.communicate()
        time.sleep(0.2)
    again.send_signal(kind)
    again.communicate(timeout=60)
    assert finished(output) == done
    assert len(list((output / ".run").glob("grow-prune-*"))) == 1
