"""The chain as a user runs it: checked before it starts, continued where it stopped, whole when it ends."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import pytest

import lstmopt
from lstmopt.errors import ContractError, LstmoptError
from lstmopt.passes import Export, GrowPrune, Probe, Resize, Simplify, Verify
from lstmopt.passes.verify import verify_artifact
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.targets import RuntimeTarget, Target
from tests.test_cli_errors import call, classifier, examples
from tests.test_measure_table import table


@dataclass(frozen=True)
class Count:
    """A stage that notes each run of it."""

    runs: ClassVar[list[int]] = []
    number: int = 0
    name: ClassVar[str] = "count"
    needs: ClassVar[tuple[str, ...]] = ("model",)
    gives: ClassVar[tuple[str, ...]] = ()

    def run(self, state: Any) -> Any:
        self.runs.append(self.number)
        return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    classifier(path / "model.onnx", 24)
    examples(path / "data.npz", 60)
    return path


CHAIN = (Simplify(), Resize(hidden_size=8), GrowPrune(density=0.5, steps=20), Export(5), Verify())


ONE = Target(name="one", runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32",)),))
"""A target that is quick to measure."""


def make(
    folder: Path, output: Path, *stages: Any, max_degradation: float = 5.0, target: str | Target = "local"
) -> lstmopt.State:
    """Runs a chain; by default any degradation is allowed, so that the smaller model ships."""
    return lstmopt.Pipeline(*(stages or CHAIN)).run(
        folder / "model.onnx",
        target=target,
        data=folder / "data.npz",
        output=output,
        max_degradation=max_degradation,
    )


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Path:
    make(folder, folder / "out")
    return folder / "out"


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact and of what its stages have left, to be spoilt."""
    return shutil.copytree(artifact, tmp_path / "copy")


def seconds(state: lstmopt.State) -> dict[str, float]:
    """When each stage ran is in its record: one that was taken from before has the seconds of then."""
    return {record.name: record.seconds for record in state.records}


def test_a_chain_is_checked_before_it_starts(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LstmoptError, match=r"stage verify.*needs artifact"):
        lstmopt.Pipeline(Simplify(), Verify()).run(folder / "model.onnx", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_artifact_is_whole(artifact: Path) -> None:
    for name in ("report.json", "report.html", "manifest.json", "model.onnx", "golden.safetensors", "run.py"):
        assert (artifact / name).is_file(), name
    manifest = json.loads((artifact / "manifest.json").read_text())
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((artifact / name).read_bytes()).hexdigest() == digest
    assert {entry["file"] for entry in manifest["deploy"]} <= set(manifest["files"])
    report = json.loads((artifact / "report.json").read_text())
    assert report["schema"] == 1 and report["contract"]["met"]
    assert report["peers"][report["fastest_f32"]]["precision"] == "f32"
    assert report["optimized"]["file"] == manifest["deploy"][0]["file"]
    assert (
        report["ratios"]["latency_over_best_peer"]["low"]
        <= report["ratios"]["latency_over_best_peer"]["high"]
    )


def test_model_onnx_runs_in_plain_onnx_runtime_with_the_same_interface(folder: Path, artifact: Path) -> None:
    old = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    new = ort.InferenceSession(artifact / "model.onnx", providers=["CPUExecutionProvider"])
    for kind in ("get_inputs", "get_outputs"):
        assert [(i.name, i.type, len(i.shape)) for i in getattr(old, kind)()] == [
            (i.name, i.type, len(i.shape)) for i in getattr(new, kind)()
        ]
    scores = new.run(None, {"x": np.zeros((3, 2, 4), np.float32)})[0]
    assert scores.shape == (2, 3) and np.isfinite(scores).all()
    report = json.loads((artifact / "report.json").read_text())
    layer = find_rnns(load_model(artifact / "model.onnx"))[0]
    assert layer.weights is not None
    if report["optimized"]["name"] != "original":
        assert layer.weights.hidden_size == 8


def test_verify_accepts_the_artifact_and_refuses_a_changed_one(artifact: Path, copy: Path) -> None:
    assert verify_artifact(artifact).passed
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    result = call("verify", copy)
    assert result.returncode == 1 and "model.onnx" in result.stderr and "FAILED" in result.stdout
    (copy / "manifest.json").write_text("{}")
    assert call("verify", copy).returncode == 2


def test_verify_compares_with_a_baseline(artifact: Path) -> None:
    checks = {
        check.name: check for check in verify_artifact(artifact, baseline=artifact, max_slowdown=9.0).checks
    }
    assert "of the baseline's latency" in checks["speed against the baseline"].detail


def test_the_same_call_takes_its_stages_from_before(folder: Path, tmp_path: Path) -> None:
    def run(number: int = 0, **options: Any) -> None:
        lstmopt.Pipeline(Count(number), Simplify(), Count(number + 1)).run(
            folder / "model.onnx", output=tmp_path / "out", data=folder / "data.npz", **options
        )

    Count.runs.clear()
    run()
    assert Count.runs == [0, 1]
    run()
    assert Count.runs == [0, 1]
    run(seed=3)
    assert Count.runs == [0, 1, 0, 1]
    run(5)
    assert Count.runs == [0, 1, 0, 1, 5, 6]
    run(5, fresh=True)
    assert Count.runs == [0, 1, 0, 1, 5, 6, 5, 6]
    for state in (tmp_path / "out" / ".run").glob("count-*/state.json"):
        state.write_text("{ damaged")
    run(5)
    assert Count.runs[-2:] == [5, 6] and len(Count.runs) == 10


def test_two_calls_on_one_folder(folder: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Inner(Count):
        def run(self, state: Any) -> Any:
            with pytest.raises(LstmoptError, match="another lstmopt"):
                lstmopt.Pipeline(Count()).run(folder / "model.onnx", output=state.output)
            return state

    lstmopt.Pipeline(Inner()).run(folder / "model.onnx", output=tmp_path / "out", data=folder / "data.npz")


def test_what_breaks_the_contract_does_not_ship(folder: Path, tmp_path: Path) -> None:
    """The labels are the original's own answers, which one unit of 24 cannot give: the original ships."""
    shutil.copy(folder / "model.onnx", tmp_path)
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    x = np.random.default_rng(5).standard_normal((60, 6, 4)).astype(np.float32)
    scores = session.run(None, {"x": x.transpose(1, 0, 2)})[0]
    examples(tmp_path / "data.npz", 60, x=x, labels=scores.argmax(axis=-1))
    chain = (Simplify(), Resize(hidden_size=1), Export(5), Verify())
    state = make(tmp_path, tmp_path / "out", *chain, max_degradation=0.0, target=ONE)
    assert state.report is not None and state.report.contract.met
    assert state.report.optimized.name == "original"
    (worse,) = (c.degradation for c in state.candidates if c.name == "optimized")
    assert worse is not None and worse.value > 0.1
    assert verify_artifact(tmp_path / "out").passed


def test_a_contract_that_nothing_holds_is_exit_code_1() -> None:
    from lstmopt.measure import Timing
    from lstmopt.passes.candidates import Candidate
    from lstmopt.passes.export import choose
    from lstmopt.runtimes import Deployment
    from lstmopt.tasks import Degradation

    candidate = Candidate(
        name="pruned",
        deployment=Deployment(runtime="onnxruntime", file=Path("m.onnx"), precision="f32"),
        latency=Timing(median=1, p10=1, p90=1, p99=1, low=1, high=1, samples=9),
        degradation=Degradation(value=0.3, low=0.2, high=0.4, n=9),
        metric=None, within_contract=False, hidden_sizes={}, parameters=1, nonzero_parameters=1,
    )  # fmt: skip
    with pytest.raises(ContractError, match=r"30\.00%") as caught:
        choose((candidate,), 0.01)
    assert caught.value.exit_code == 1


def test_a_finished_call_does_nothing_again(folder: Path, copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    state = make(folder, copy)
    assert [record.name for record in state.records] == [stage.name for stage in CHAIN]
    assert state.report is not None and state.report.contract.met
    after = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    bookkeeping = {copy / ".run" / "probe", copy / ".run" / "lock"}
    assert {path for path in after if after[path] != before.get(path)} <= bookkeeping


def test_an_artifact_that_is_not_there_any_more_is_written_again(folder: Path, copy: Path) -> None:
    """Another call on the same folder has put its own there, or somebody has changed a file."""
    trained = seconds(make(folder, copy))
    other = make(folder, copy, Simplify(), Export(5), max_degradation=0.0, target=ONE)
    assert other.report is not None and other.report.contract.max_degradation == 0.0
    (copy / "notes.txt").write_text("the user's own")
    state = make(folder, copy)
    assert json.loads((copy / "report.json").read_text())["contract"]["max_degradation"] == 5.0
    assert (copy / "notes.txt").exists() and verify_artifact(copy).passed
    assert seconds(state)["grow-prune"] == trained["grow-prune"]
    assert seconds(state)["export"] != trained["export"]


def test_damaged_results_run_again(folder: Path, tmp_path: Path) -> None:
    chain = (Simplify(), Resize(hidden_size=8), Count())
    Count.runs.clear()
    make(folder, tmp_path, *chain)
    (model,) = (tmp_path / ".run").glob("resize-*/model.onnx")
    whole = model.read_bytes()
    for damaged in (whole[:100], b"", whole[:-50] + bytes([whole[-50] ^ 1]) + whole[-49:], None):
        model.unlink()
        if damaged is not None:
            model.write_bytes(damaged)
        make(folder, tmp_path, *chain)
        assert model.read_bytes() == whole
    assert len(Count.runs) == 1  # the same result again: what follows it stands


@dataclass(frozen=True)
class Weather:
    """A stage that gives something else each time, as a measurement does."""

    name: ClassVar[str] = "weather"
    needs: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ()

    def run(self, state: Any) -> Any:
        return replace(state, notes=(str(next(FORECASTS)),))


FORECASTS = count()


def test_what_follows_another_result_runs_again(folder: Path, tmp_path: Path) -> None:
    Count.runs.clear()
    make(folder, tmp_path, Weather(), Count())
    make(folder, tmp_path, Weather(), Count())
    assert len(Count.runs) == 1
    (state,) = (tmp_path / ".run").glob("weather-*/state.json")
    state.write_text(state.read_text()[:-3])
    make(folder, tmp_path, Weather(), Count())
    assert len(Count.runs) == 2


@dataclass(frozen=True)
class Tamper:
    """A stage that does what a failing disk does to an artifact."""

    name: ClassVar[str] = "tamper"
    needs: ClassVar[tuple[str, ...]] = ("artifact",)
    gives: ClassVar[tuple[str, ...]] = ()

    def run(self, state: Any) -> Any:
        path = state.output / "model.onnx"
        path.write_bytes(path.read_bytes()[:-1])
        return state


def test_what_fails_verification_is_taken_away(folder: Path, copy: Path) -> None:
    with pytest.raises(ContractError, match=r"model\.onnx was changed"):
        make(folder, copy, *CHAIN[:-1], Tamper(), Verify())
    assert [path.name for path in copy.iterdir()] == [".run"]


def test_fresh_waits_for_the_call_at_work(folder: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Inner(Count):
        def run(self, state: Any) -> Any:
            with pytest.raises(LstmoptError, match="another lstmopt"):
                lstmopt.Pipeline(Count()).run(folder / "model.onnx", output=state.output, fresh=True)
            assert list(state.run_folder.glob("simplify-*/state.json"))
            return state

    make(folder, tmp_path / "out", Simplify(), Inner())


def test_tables_that_are_given_are_not_measured(folder: Path, tmp_path: Path) -> None:
    """Points and the fingerprint come from the table; the probe says that it is another machine's."""
    from lstmopt.measure.fingerprint import fingerprint

    (layer,) = find_rnns(load_model(folder / "model.onnx"))
    given = table(
        layer=layer.name, input_size=4, hysteresis_points=(24, 16, 8),
        fingerprint=fingerprint().model_copy(update={"cpu": "another CPU"}),
    )  # fmt: skip
    target = Target(name="one", runtimes=(RuntimeTarget(runtime="openvino", precisions=("f32",)),))
    told: list[str] = []
    state = lstmopt.Pipeline(Probe(), Resize(scale=0.9)).run(
        folder / "model.onnx", output=tmp_path / "out", data=folder / "data.npz", latency_tables=(given,),
        target=target, progress=lambda text, fraction: told.append(text),
    )  # fmt: skip
    assert state.tables == (given,)
    assert any("of another CPU" in note for note in state.notes)
    assert not (tmp_path / "out" / ".run" / "latency").exists()
    assert not any("measuring" in text for text in told)
    (smaller,) = find_rnns(state.model)
    assert smaller.weights is not None and smaller.weights.hidden_size == 16


def test_a_stream_is_measured_with_empty_caches_too(folder: Path, artifact: Path, tmp_path: Path) -> None:
    from tests.test_passes_resize import language_model

    save_model(language_model(), tmp_path / "lm.onnx")
    tokens = np.random.default_rng(0).integers(0, 11, 4_000)
    state = lstmopt.Pipeline(Simplify(), Export(5)).run(
        tmp_path / "lm.onnx", target=ONE, output=tmp_path / "out", data={"tokens": tokens}
    )
    assert state.report is not None
    cold = json.loads((tmp_path / "out" / "report.json").read_text())["cold"]
    assert cold["optimized"]["samples"] >= 3 and cold["best_peer"]["median"] > 0
    assert cold["ratio"]["low"] <= cold["ratio"]["value"] <= cold["ratio"]["high"]
    # A model without states starts each call anew, and has the caches that it finds.
    assert json.loads((artifact / "report.json").read_text())["cold"] is None
