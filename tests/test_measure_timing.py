"""Timing in worker processes with the real runtimes, and the statistics on simulated rounds."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from lstmopt.errors import LstmoptError
from lstmopt.measure import Candidate, Comparison, compare, process, statistics
from lstmopt.measure.fingerprint import available_cores, fingerprint
from lstmopt.measure.lock import lock_path, machine_lock
from lstmopt.measure.process import Block, Worker, write_feeds
from lstmopt.measure.timing import LOADED, MEMORY, affordable, quiet_block
from lstmopt.measure.worker import _run, cache_flusher, stolen_ticks
from lstmopt.rnn.files import save_model
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import Deployment, runtime
from tests.test_runtimes_sessions import layer


def candidate(
    folder: Path, hidden: int = 64, engine: str = "onnxruntime", name: str = "", inputs: int = 64
) -> Candidate:
    place = folder / f"{engine}-{hidden}"
    place.mkdir(parents=True, exist_ok=True)
    save_model(rnn_model(layer(hidden, inputs)), place / "m.onnx")
    deployment = runtime(engine).build(place / "m.onnx", "f32", place / "built")
    x = np.ones((35, 1, inputs), np.float32)
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
    assert result.ratio(small, large).value == pytest.approx(1 / result.ratio(large, small).value, rel=1e-6)
    for item in several:
        timing = result.timing(item.name)
        assert 0 < timing.p10 <= timing.p90 <= timing.p99
        assert timing.low <= timing.median <= timing.high
        assert timing.samples == sum(map(len, result.rounds[item.name])) >= 3 * 6
    assert told and min(share for _, share in told) >= 0 and max(share for _, share in told) == 1.0
    assert 0 < result.aa.low <= result.aa.value <= result.aa.high
    assert result.apart.freedom == 3 * 3  # of four candidates, the twin among them, in four processes each


class Simulated:
    """In a worker's place: blocks of a known latency, with a process's own bias and disturbances.

    Args:
        candidate: of whose name the latency is looked up.
    """

    latencies: ClassVar[dict[str, float]] = {}
    disturbed: ClassVar[float] = 0.0
    bias: ClassVar[float] = 0.003
    begun: ClassVar[list[str]] = []
    blocks: ClassVar[list[str]] = []

    def __init__(self, candidate: Candidate, calls: object, threads: int, *, cold: bool = False) -> None:
        self.name, self.rng = candidate.name, np.random.default_rng(len(self.begun))
        self.own = self.latencies[self.name] * (1 + self.bias * self.rng.standard_normal())
        self.begun.append(self.name)

    def __enter__(self) -> Simulated:
        return self

    def __exit__(self, *_: object) -> None:
        self.begun.append(f"end {self.name}")

    def ready(self) -> None:
        """Is at once."""

    def block(self, block_ms: float) -> Block:
        self.blocks.append(self.name)
        disturbed = self.rng.random() < self.disturbed
        noise = 1 + 0.01 * np.abs(self.rng.standard_normal(8))
        return Block(self.own * noise * (1 + disturbed), int(disturbed), 0)


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> type[Simulated]:
    """A machine whose true latencies are known."""
    monkeypatch.setattr("lstmopt.measure.timing.Worker", Simulated)
    monkeypatch.setattr("lstmopt.measure.timing.machine_lock", nullcontext)  # nothing is timed
    for name, value in {"latencies": {}, "disturbed": 0.0, "bias": 0.003, "begun": [], "blocks": []}.items():
        monkeypatch.setattr(Simulated, name, value)
    return Simulated


def named(name: str) -> Candidate:
    return Candidate(name, Deployment(runtime="onnxruntime", file=Path("m.onnx"), precision="f32"), [])


def test_known_latencies_are_found(simulation: type[Simulated]) -> None:
    simulation.latencies = {"a": 100.0, "b": 130.0, "c": 90.0}
    simulation.disturbed = 0.1
    result = compare([named(name) for name in "abc"], threads=1, rounds=24)
    assert result.trusted and result.discarded > 0
    for one, other, truth in (("b", "a", 1.3), ("a", "c", 100 / 90), ("c", "b", 90 / 130)):
        ratio = result.ratio(one, other)
        assert ratio.value == pytest.approx(truth, rel=0.015)
        assert ratio.low < truth < ratio.high < 1.06 * ratio.low
    assert result.timing("b").median == pytest.approx(130, rel=0.02)
    assert result.ratio("a", "a").low == result.ratio("a", "a").high == 1.0
    assert all(worker in simulation.begun for worker in ("end a", "end b", "end c"))


def test_candidates_take_turns_in_random_order(simulation: type[Simulated]) -> None:
    simulation.latencies = {"a": 100.0, "b": 130.0, "c": 90.0}
    compare([named(name) for name in "abc"], threads=1, rounds=24)
    rounds = [tuple(simulation.blocks[i : i + 4]) for i in range(0, len(simulation.blocks), 4)]
    assert all(sorted(turn) == ["a", "a", "b", "c"] for turn in rounds)  # the first has a twin
    assert len(set(rounds)) > 6


def test_a_machine_on_which_a_model_differs_from_itself_is_tried_again(simulation: type[Simulated]) -> None:
    simulation.latencies, simulation.bias = {"a": 100.0}, 0.3
    result = compare([named("a")], threads=1, rounds=6)
    assert not result.trusted
    assert len([name for name in simulation.begun if name == "a"]) == 3 * 2 * 4
    simulation.begun.clear()
    compare([named("a")], threads=1, rounds=6, attempts=1)
    assert len([name for name in simulation.begun if name == "a"]) == 2 * 4
    simulation.begun.clear()
    compare([named("a")], threads=1, rounds=6, attempts=1, cold=True)
    assert len([name for name in simulation.begun if name == "a"]) == 2 * 2


def test_interrupted_blocks_that_had_to_be_kept_are_told(simulation: type[Simulated]) -> None:
    simulation.latencies, simulation.disturbed = {"a": 100.0}, 1.0
    result = compare([named("a")], threads=1, rounds=6)
    assert result.kept_interrupted and result.discarded >= 12


def test_large_models_have_fewer_processes(tmp_path: Path) -> None:
    def of(size: int, name: str) -> Candidate:
        for suffix in (".xml", ".bin"):  # what is loaded, and the weights beside it
            with tmp_path.joinpath(name + suffix).open("wb") as file:
                file.truncate(size // 2)
        tmp_path.joinpath("other.bin").write_bytes(b"x" * 100)
        deployment = Deployment(runtime="openvino", file=tmp_path / f"{name}.xml", precision="f32")
        return Candidate(name, deployment, [])

    assert of(1000, "small").bytes == 1000
    share = MEMORY // LOADED // 3
    assert affordable(3 * [of(1000, "small")]) == 4
    assert affordable(12 * [of(1000, "small")]) == 2
    assert affordable([of(1000, "small"), of(share, "large"), of(share, "larger")]) == 2
    assert affordable([of(1000, "small"), of(share // 3, "large"), of(share // 3, "larger")]) == 4


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


def test_a_worker_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 3.0)
    (tmp_path / "hanging.py").write_text("import time\ndef opener(*_): time.sleep(60)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    deployment = Deployment(runtime="onnxruntime", file=tmp_path / "none.onnx", precision="f32")
    slow = Candidate("slow", deployment, [(1.0, {"x": np.zeros(1)})], opener="hanging:opener")
    told = pytest.raises(LstmoptError, match="measuring slow: the runtime did not answer for 3 s")
    with told, Worker(slow, write_feeds(slow, tmp_path / "feeds"), 1) as worker:
        worker.ready()


def test_more_threads_than_cores_are_refused(tmp_path: Path) -> None:
    deployment = Deployment(runtime="onnxruntime", file=tmp_path / "none.onnx", precision="f32")
    many = len(available_cores()) + 1
    with pytest.raises(LstmoptError, match=f"^{many} threads: this process may use {many - 1} cores"):
        Worker(Candidate("one", deployment, [(1.0, {})]), [], many)


def test_a_worker_loads_another_model_and_is_pinned(tmp_path: Path) -> None:
    small, large = candidate(tmp_path, 16), candidate(tmp_path, 192, inputs=32)
    with Worker(small, write_feeds(small, tmp_path / "a"), 1) as worker:
        worker.ready()
        if hasattr(os, "sched_getaffinity"):
            assert os.sched_getaffinity(worker._process.pid) == set(available_cores()[-1:])
        assert len(quiet_block(worker, 5.0)[0].samples) >= 3
        # The other's inputs do not fit the model before, and its own do not fit it.
        worker.load(large, write_feeds(large, tmp_path / "b"))
        worker.ready()
        assert worker.name == large.name and len(quiet_block(worker, 5.0)[0].samples) >= 3
        worker.load(large, write_feeds(small, tmp_path / "c"))
        with pytest.raises(LstmoptError, match="has shape"):
            worker.ready()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(available_cores()) < 2, reason="needs cores")
@pytest.mark.parametrize(("engine", "alone"), [("onnxruntime", True), ("cudnn", False)])
def test_a_worker_of_a_gpu_loads_on_every_core(
    engine: str, alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noting.py").write_text(
        "import os\n"
        "class Session:\n"
        "    def bind(self, feeds): return lambda: None\n"
        "def opener(deployment, threads):\n"
        "    deployment.file.with_suffix('.cores').write_text(str(len(os.sched_getaffinity(0))))\n"
        "    return Session()\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    deployment = Deployment(runtime=engine, file=tmp_path / "none.onnx", precision="f32")
    one = Candidate("one", deployment, [(1.0, {"x": np.zeros(1)})], opener="noting:opener")
    with Worker(one, write_feeds(one, tmp_path / "feeds"), 1) as worker:
        worker.ready()
        assert os.sched_getaffinity(worker._process.pid) == set(available_cores()[-1:])
    assert ((tmp_path / "none.cores").read_text() == "1") == alone
    assert affordable([one]) == (4 if alone else 2)


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


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_worker_imports_what_runs_a_model_and_no_more(name: str, tmp_path: Path) -> None:
    """A comparison starts dozens of workers."""
    save_model(rnn_model(layer()), tmp_path / "model.onnx")
    made = runtime(name).build(tmp_path / "model.onnx", "f32", tmp_path / "made")
    code = (
        "import sys\n"
        "import lstmopt.measure.worker\n"
        "from lstmopt.runtimes import Deployment, open_session\n"
        f"open_session(Deployment.model_validate_json({made.model_dump_json()!r}), 1)\n"
        "print(sorted({'onnx_ir', 'sympy', 'torch', 'scipy', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr


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


def test_the_caches_are_emptied_before_each_cold_call() -> None:
    order: list[str] = []
    calls = [(0.5, lambda: order.append("a")), (0.5, lambda: order.append("b"))]
    answer = _run(calls, 4, (), lambda: order.append("flush"))
    assert order[:2] == ["a", "b"]  # the first of a block is no sample
    turns = ["".join(order[i : i + 4]) for i in range(2, len(order), 4)]
    assert set(turns) == {"flushaflushb"} and len(turns) >= len(answer["samples"]) >= 4
    order.clear()
    _run(calls, 4, (), None)
    assert set(order) == {"a", "b"}


def test_a_cold_worker_empties_caches_larger_than_the_machines(tmp_path: Path) -> None:
    one = candidate(tmp_path, 16)
    with Worker(one, write_feeds(one, tmp_path / "f"), 1, cold=True) as worker:
        worker.ready()
        block = worker.block(1.0)
        assert len(block.samples) >= 1 and len(block.samples) + block.spoilt >= 3
    flush = cache_flusher()
    lines = inspect.getclosurevars(flush).nonlocals["lines"]
    before = lines.copy()
    flush()
    assert (lines != before).all()  # a write to each line
    assert 64 * len(lines) >= max(fingerprint().caches.values(), default=0)


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


def test_no_variable_of_one_user_moves_the_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = lock_path()
    for name in ("TMPDIR", "TEMP", "TMP", "HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert lock_path() == before
    if os.name == "posix":
        with machine_lock():
            # every user may open it: Linux refuses that in a folder with the sticky bit
            assert lock_path().parent.stat().st_mode & 0o1777 == 0o777
            assert lock_path().stat().st_mode & 0o666 == 0o666


def test_without_the_usual_place_the_lock_is_where_temporary_files_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("lstmopt.measure.lock.SHARED", tmp_path / "file")
    monkeypatch.setenv("PROGRAMDATA", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told: list[str] = []
    with machine_lock(lambda text, _: told.append(text)):
        assert (tmp_path / "lstmopt" / "measure.lock").exists()
    assert len(told) == 1 and "cannot be made" in told[0] and str(tmp_path / "lstmopt") in told[0]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(LstmoptError, match=r"measure.lock: cannot be opened"), machine_lock():
        pass


@pytest.mark.skipif(os.name != "posix", reason="users and modes of POSIX")
@pytest.mark.parametrize("opened", [True, False])
def test_a_folder_that_another_user_is_making_is_waited_for(opened: bool, tmp_path: Path) -> None:
    """Between its creation and its opening to all nobody else may write there."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    folder = place / "lstmopt"
    folder.mkdir()
    script = (
        "import os, sys, filelock\nfrom pathlib import Path\nfrom lstmopt.measure import lock\n"
        "if os.geteuid() == 0:\n    os.setuid(65534)  # root may write everywhere\n"
        "lock.SHARED = Path(sys.argv[1])\nprint('ready', flush=True)\n"
        "with lock.machine_lock():\n    print('held', flush=True)\n"
    )
    folder.chmod(0o555)
    place.chmod(0o755)
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(place)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        if opened:
            time.sleep(0.1)
            folder.chmod(0o777)
        out, err = other.communicate(timeout=60)
        assert (out == "held\n") == opened
        assert opened or "cannot be opened" in err
    finally:
        other.kill()
        other.wait()
        folder.chmod(0o777)
        shutil.rmtree(place)


def simulated(
    truth: float, rounds: int, seed: int, noise: float = 0.01, bias: float = 0.01
) -> list[np.ndarray]:
    """Rounds of 4 processes, each with a latency of its own, one round in ten disturbed."""
    rng = np.random.default_rng(seed)
    own = 1 + bias * rng.standard_normal(4)
    found = []
    for index in range(rounds):
        slow = 1 + rng.uniform(0.1, 1.0) * (rng.random() < 0.1)
        found.append(truth * own[index % 4] * slow * (1 + noise * np.abs(rng.standard_normal(16))))
    return found


@pytest.mark.parametrize("bias", [0.002, 0.01])
@pytest.mark.parametrize("beside", [0, 3])
def test_intervals_hold_the_truth_as_often_as_they_say(bias: float, beside: int) -> None:
    """Of two alone, and of two among several that tell how far processes are apart."""
    inside = covered = 0
    runs = 300
    for seed in range(runs):
        several = [simulated(100, 24, 10 * seed + i, bias=bias) for i in range(2 + beside)]
        ratio = statistics.ratio(several[0], several[1], 4, statistics.spread(several, 4))
        inside += 0.98 <= ratio.value <= 1.02
        covered += ratio.low <= 1.0 <= ratio.high
        assert ratio.low <= ratio.value <= ratio.high
    assert inside >= 0.95 * runs
    assert 0.93 * runs <= covered <= 0.985 * runs


def test_more_rounds_lessen_what_rounds_tell() -> None:
    few, many = (
        statistics.round_error(simulated(100, n, 0, bias=0.05), simulated(100, n, 1, bias=0.05), 4)
        for n in (24, 240)
    )
    assert 0 < many < few < 0.01


def test_a_difference_is_seen() -> None:
    ratio = statistics.ratio(simulated(110, 24, 0), simulated(100, 24, 1), 4)
    assert 1.02 < ratio.low < 1.1 < ratio.high < 1.2
    timing = statistics.timing([np.full(5, 7.0)] * 6, 4, statistics.Spread(0.0, 3))
    assert (timing.median, timing.low, timing.high, timing.p99, timing.samples) == pytest.approx(
        (7.0, 7.0, 7.0, 7.0, 30)
    )


def test_drift_that_both_see_cancels() -> None:
    drift = np.linspace(1, 2, 24)
    one = [120 * factor * np.ones(4) for factor in drift]
    other = [100 * factor * np.ones(4) for factor in drift]
    ratio = statistics.ratio(one, other, 4)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.2, 1.2, 1.2))


def test_trust() -> None:
    def comparison(value: float) -> Comparison:
        aa = statistics.Ratio(value=value, low=value - 0.01, high=value + 0.01)
        apart = statistics.Spread(0.0, 3)
        return Comparison({}, aa, discarded=0, kept_interrupted=False, processes=4, apart=apart)

    assert comparison(1.015).trusted and not comparison(1.021).trusted and not comparison(0.979).trusted
