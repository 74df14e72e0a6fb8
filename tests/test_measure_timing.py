"""Timing in worker processes with the real runtimes, and the statistics on simulated rounds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lstmopt.errors import LstmoptError
from lstmopt.measure import Candidate, Comparison, compare, statistics
from lstmopt.measure.fingerprint import available_cores
from lstmopt.measure.lock import lock_path, machine_lock
from lstmopt.measure.process import Worker, write_feeds
from lstmopt.measure.timing import quiet_block
from lstmopt.measure.worker import cache_flusher, stolen_ticks
from lstmopt.rnn.files import save_model
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import runtime
from tests.test_runtimes_sessions import layer


def candidate(folder: Path, hidden: int = 64, engine: str = "onnxruntime", name: str = "") -> Candidate:
    place = folder / f"{engine}-{hidden}"
    place.mkdir(parents=True, exist_ok=True)
    save_model(rnn_model(layer(hidden, 64)), place / "m.onnx")
    deployment = runtime(engine).build(place / "m.onnx", "f32", place / "built")
    x = np.ones((35, 1, 64), np.float32)
    return Candidate(name or f"{engine} {hidden}", deployment, [(0.75, {"x": x}), (0.25, {"x": x[:5]})])


def test_two_models_in_both_runtimes(tmp_path: Path) -> None:
    told = []
    several = [
        candidate(tmp_path, 16), candidate(tmp_path, 192), candidate(tmp_path, 192, "openvino")
    ]  # fmt: skip
    result = compare(
        several, threads=1, rounds=6, block_ms=5, progress=lambda text, share: told.append((text, share))
    )
    small, large = several[0].name, several[1].name
    assert result.ratio(large, small).low > 3  # 20 times the work
    assert result.ratio(small, large).value == pytest.approx(1 / result.ratio(large, small).value, rel=1e-6)
    for item in several:
        timing = result.timing(item.name)
        assert 0 < timing.p10 <= timing.p90 <= timing.p99
        assert timing.low <= timing.median <= timing.high
        assert timing.samples == sum(map(len, result.rounds[item.name])) >= 3 * 6
    assert told and min(share for _, share in told) >= 0 and max(share for _, share in told) == 1.0
    assert result.resolution >= 0 and result.aa.low <= result.aa.high


def test_names_are_unique_and_there_is_one(tmp_path: Path) -> None:
    one = candidate(tmp_path)
    for wrong in ([], [one, one]):
        with pytest.raises(ValueError, match="missing or not unique"):
            compare(wrong, threads=1)


def test_what_does_not_load_or_run_is_told(tmp_path: Path) -> None:
    good = candidate(tmp_path)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    bad = Candidate("bad", good.deployment.model_copy(update={"file": broken}), good.calls)
    with pytest.raises(LstmoptError, match="measuring bad: .*cannot load it"):
        compare([good, bad], threads=1, rounds=2)
    wrong = Candidate("wrong", good.deployment, [(1.0, {"x": np.ones((1, 1, 3), np.float32)})])
    with pytest.raises(LstmoptError, match="measuring wrong: .*has shape"):
        compare([wrong], threads=1, rounds=2)


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    one = candidate(tmp_path)
    with Worker(one, write_feeds(one, tmp_path / "feeds"), 1) as worker:
        worker.ready()
        assert worker.block(1.0).samples.min() > 0
        os.kill(worker._process.pid, 9)
        with pytest.raises(LstmoptError, match=r"ended its process \(exit code -9"):
            worker.block(1.0)


def test_a_worker_loads_another_model_and_is_pinned(tmp_path: Path) -> None:
    small, large = candidate(tmp_path, 16), candidate(tmp_path, 192)
    with Worker(small, write_feeds(small, tmp_path / "a"), 1) as worker:
        worker.ready()
        if hasattr(os, "sched_getaffinity"):
            assert os.sched_getaffinity(worker._process.pid) == set(available_cores()[-1:])
        before = np.median(quiet_block(worker, 5.0)[0].samples)
        worker.load(large, write_feeds(large, tmp_path / "b"))
        worker.ready()
        assert np.median(quiet_block(worker, 5.0)[0].samples) > 2 * before


def test_files_beside_the_caller_do_not_break_workers(tmp_path: Path) -> None:
    """A bisect.py or json.py in the working folder, inputs named like parameters, relative paths."""
    for name in ("bisect.py", "json.py", "random.py"):
        (tmp_path / name).write_text("raise ImportError('not the standard one')")
    one = candidate(tmp_path / "models")
    relative = one.deployment.model_copy(
        update={"file": Path(os.path.relpath(one.deployment.file, tmp_path))}
    )
    odd = Candidate("file", relative, one.calls)
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        with Worker(odd, write_feeds(odd, Path("feeds")), 1) as worker:
            worker.ready()
    finally:
        os.chdir(here)


def test_inputs_with_names_of_parameters(tmp_path: Path) -> None:
    feeds = {
        "file": np.arange(3),
        "allow_pickle": np.array(1.5, np.float32),
        "a/b": np.zeros((0, 2), np.uint8),
    }
    one = candidate(tmp_path)
    written = write_feeds(Candidate("x", one.deployment, [(1.0, feeds)]), tmp_path / "f")
    from safetensors.numpy import load_file

    loaded = load_file(written[0][1])
    for name, array in feeds.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)


def test_cold_calls_find_empty_caches(tmp_path: Path) -> None:
    one = candidate(tmp_path, 192)
    files = write_feeds(one, tmp_path / "f")
    with Worker(one, files, 1) as warm, Worker(one, files, 1, cold=True) as cold:
        warm.ready()
        cold.ready()
        ratios = [np.median(cold.block(20.0).samples) / np.median(warm.block(20.0).samples) for _ in range(5)]
    assert np.median(ratios) > 1.0
    flush = cache_flusher()
    flush()
    flush()


def test_steal_is_read_of_the_cores_that_are_used(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu 1 1 1 1 1 1 1 99 0 0\ncpu0 1 1 1 1 1 1 1 90 0 0\ncpu1 1 1 1 1 1 1 1 9 0 0\nintr 5\n")
    assert stolen_ticks((1,), stat) == 9
    assert stolen_ticks((0, 1), stat) == 99
    assert stolen_ticks((), stat) == 99
    assert stolen_ticks((0,), tmp_path / "none") == 0


def test_one_measurement_at_a_time() -> None:
    script = (
        "import time\nfrom lstmopt.measure.lock import machine_lock\n"
        "with machine_lock():\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "held\n"
        told: list[str] = []
        with (
            pytest.raises(LstmoptError, match="another measurement holds the machine"),
            machine_lock(lambda text, _: told.append(text), timeout=0.3),
        ):
            pass
        assert told == ["waiting: another lstmopt measures on this machine"]
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with machine_lock():  # a process that died holds nothing
        assert lock_path().exists()


def simulated(
    truth: float, rounds: int, seed: int, noise: float = 0.01, bias: float = 0.01
) -> list[np.ndarray]:
    """Rounds of 4 processes, each with a latency of its own, one round in ten disturbed."""
    rng = np.random.default_rng(seed)
    own = 1 + 0.01 * rng.standard_normal(4)
    found = []
    for index in range(rounds):
        slow = 1 + rng.uniform(0.1, 1.0) * (rng.random() < 0.1)
        found.append(truth * own[index % 4] * slow * (1 + 0.01 * np.abs(rng.standard_normal(16))))
    return found


def test_ratios_of_equals_and_their_intervals() -> None:
    inside = covered = 0
    runs = 200
    for seed in range(runs):
        ratio = statistics.ratio(simulated(100, 24, 2 * seed), simulated(100, 24, 2 * seed + 1), 4, seed)
        inside += 0.98 <= ratio.value <= 1.02
        covered += ratio.low <= 1.0 <= ratio.high
        assert ratio.low <= ratio.value <= ratio.high
    assert inside >= 0.95 * runs
    assert covered >= 0.85 * runs  # four processes are few for a bootstrap


def test_a_difference_is_seen() -> None:
    ratio = statistics.ratio(simulated(110, 24, 0), simulated(100, 24, 1), 4, 0)
    assert ratio.low > 1.05 and ratio.high < 1.15
    timing = statistics.timing([np.full(5, 7.0)] * 6, 4, 0)
    assert (timing.median, timing.low, timing.high, timing.p99, timing.samples) == (7.0, 7.0, 7.0, 7.0, 30)


def test_drift_that_both_see_cancels() -> None:
    drift = np.linspace(1, 2, 24)
    one = [120 * factor * np.ones(4) for factor in drift]
    other = [100 * factor * np.ones(4) for factor in drift]
    ratio = statistics.ratio(one, other, 4, 0)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.2, 1.2, 1.2))


def test_trust_and_resolution() -> None:
    def comparison(value: float) -> Comparison:
        aa = statistics.Ratio(value=value, low=value - 0.01, high=value + 0.01)
        return Comparison({}, aa, discarded=0, kept_interrupted=False, processes=4, seed=0)

    assert comparison(1.015).trusted and not comparison(1.021).trusted and not comparison(0.979).trusted
    assert comparison(1.0).resolution == pytest.approx(0.01)
    assert comparison(1.03).resolution == pytest.approx(0.03)
