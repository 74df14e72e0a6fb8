"""The chain as a user runs it: checked before it starts, continued where it stopped, whole when it ends."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import lstmopt
from lstmopt.errors import ContractError, LstmoptError
from lstmopt.passes import BackOff, Export, GrowPrune, Probe, Resize, Simplify, Verify
from lstmopt.passes.verify import verify_artifact
from lstmopt.pipeline.standard import standard_stages
from lstmopt.pipeline.state import Stopwatch
from lstmopt.report.folder import check_files
from lstmopt.report.schema import Manifest, Report
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.targets import RuntimeTarget, Target, with_shapes
from tests.test_cli_errors import call, classifier, examples, refused
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


def test_what_is_no_stage_or_no_budget_is_refused() -> None:
    with pytest.raises(LstmoptError, match=r"GrowPrune is a class; write GrowPrune\(\)"):
        lstmopt.Pipeline(Simplify(), GrowPrune)  # type: ignore[arg-type]
    with pytest.raises(LstmoptError, match="'simplify' is no stage"):
        lstmopt.Pipeline("simplify")  # type: ignore[arg-type]
    with pytest.raises(LstmoptError, match="exclude each other"):
        lstmopt.Budget(seconds=5, steps=5)
    for budget in ({"seconds": -1}, {"seconds": float("nan")}, {"steps": 0}):
        with pytest.raises(LstmoptError, match="not above 0"):
            lstmopt.Budget(**budget)  # type: ignore[arg-type]


def test_input_that_is_refused_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for output in (tmp_path / "out", mine):
        for bad in ({"data": "nope.npz"}, {"target": with_shapes(ONE, {"z": (1, 2)})}):
            with pytest.raises(LstmoptError, match="nope.npz|no such input"):
                lstmopt.Pipeline(Simplify()).run(
                    folder / "model.onnx", output=output, **{"data": folder / "data.npz", **bad}
                )
    assert list(tmp_path.rglob("*")) == [mine]


def test_a_state_is_shown_in_one_line(folder: Path, tmp_path: Path) -> None:
    state = make(folder, tmp_path, Simplify(), target=ONE)
    assert repr(state) == "State(model.onnx, target one, after: simplify)"


def test_a_teacher_that_is_no_model_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher.onnx").write_text("not a model")
    with pytest.raises(LstmoptError, match=r"teacher.onnx: not an ONNX file"):
        lstmopt.Pipeline(Simplify()).run(
            folder / "model.onnx", data=folder / "data.npz", output=tmp_path / "out",
            teacher=tmp_path / "teacher.onnx",
        )  # fmt: skip
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
    ratio = report["ratios"]["latency_over_best_peer"]
    if report["measurement"]["trusted"]:
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
    else:
        assert set(ratio.values()) == {None}


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


def test_verify_refuses_outputs_that_are_not_numbers(copy: Path) -> None:
    """The hashes are those of the spoilt file: only its outputs tell."""
    manifest = json.loads((copy / "manifest.json").read_text())
    spoilt = manifest["deploy"][0]["file"]
    if not spoilt.endswith(".onnx"):
        spoilt = next(e["file"] for e in manifest["deploy"] if e["file"].endswith(".onnx"))
    model = onnx.load(copy / spoilt)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    for tensor in floats:
        broken = np.full_like(onnx.numpy_helper.to_array(tensor), np.nan)
        tensor.CopyFrom(onnx.numpy_helper.from_array(broken, tensor.name))
    onnx.save(model, copy / spoilt)
    manifest["files"][spoilt] = hashlib.sha256((copy / spoilt).read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = verify_artifact(copy)
    assert not result.passed and ("outputs" in result.fault or "not finite" in result.fault)


def test_verify_compares_with_a_baseline(artifact: Path) -> None:
    checks = {
        check.name: check for check in verify_artifact(artifact, baseline=artifact, max_slowdown=9.0).checks
    }
    assert "of the baseline's latency" in checks["speed against the baseline"].detail


@pytest.mark.deep
def test_a_slower_artifact_is_exit_code_1(tmp_path: Path) -> None:
    """Two artifacts of really different speed, through the shell: 512 hidden units against 16."""
    for name, hidden in (("slow", 512), ("fast", 16)):
        classifier(tmp_path / f"{name}.onnx", hidden)
        lstmopt.Pipeline(Simplify(), Export(5), Verify()).run(
            tmp_path / f"{name}.onnx",
            target=ONE,
            data=examples(tmp_path / "data.npz", 60),
            output=tmp_path / name,
            max_degradation=0.01,
        )
    before = sorted((tmp_path / "slow").rglob("*"))
    result = call(
        "verify", tmp_path / "slow", "--baseline", tmp_path / "fast", "--max-slowdown", "5%", "--json"
    )
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert [name for name, check in checks.items() if not check["passed"]] == ["speed against the baseline"]
    refused(result, "slow", "speed against the baseline", "1.050 allowed", code=1)
    # Slower by what was measured, not because the machine was too busy to tell.
    ratio = re.match(r"([\d.]+) \[", checks["speed against the baseline"]["detail"])
    assert ratio is not None and float(ratio[1]) > 1.05
    assert sorted((tmp_path / "slow").rglob("*")) == before


@pytest.mark.deep
def test_a_contract_that_nothing_can_hold_through_the_shell(tmp_path: Path) -> None:
    """The labels are the outputs of ONNX Runtime to the last bit, and the target has OpenVINO alone."""
    model = classifier(tmp_path / "model.onnx", 24)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(5).standard_normal((60, 6, 4)).astype(np.float32)
    scores = session.run(None, {"x": x.transpose(1, 0, 2)})[0]
    examples(tmp_path / "data.npz", 60, x=x, labels=scores)
    (tmp_path / "target.toml").write_text(
        "name = 'openvino'\n[[runtimes]]\nruntime = 'openvino'\nprecisions = ['f32']\n"
    )
    result = call(
        "optimize", model, "--target", tmp_path / "target.toml", "--data", tmp_path / "data.npz",
        "--task", "regress", "--steps", 2, "--scale", "50%", "-o", tmp_path / "out",
    )  # fmt: skip
    refused(result, "no candidate degrades by at most 0.00%", code=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".run"]


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


@pytest.mark.deep
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


@pytest.mark.deep
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


@dataclass(frozen=True)
class Work:
    """A stage that takes ten seconds of a clock that only it moves, and runs another one inside it."""

    clock: Any = field(repr=False)
    inner: Any = None
    name: ClassVar[str] = "work"
    needs: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ()

    def run(self, state: Any) -> Any:
        self.clock.append(self.clock[-1] + 10.0)
        return state if self.inner is None else replace(state, records=state.then(self.inner).records)


def test_a_standard_run_probes_no_lower_than_what_it_tries() -> None:
    def probe(*scales: float) -> Probe:
        (found,) = [s for s in standard_stages(BackOff(scales=scales)) if isinstance(s, Probe)]
        return found

    assert probe(0.5, 0.9).smallest < 0.5 < probe(0.8).smallest < 0.8
    assert probe(1.5).smallest < 1, "the layer's own size lies in a bin too"
    assert probe(0.5, 0.9).largest == 1.1 and probe(0.5, 1.5).largest == 1.5, "growing is measured too"


def test_no_second_counts_twice(folder: Path, tmp_path: Path) -> None:
    """What a stage inside another one took is the inner one's alone, whether it ran or was there before."""
    clock = [0.0]
    state = replace(make(folder, tmp_path, Count()), stopwatch=Stopwatch(lambda: clock[-1]), records=())
    chain = Work(clock, Work(clock, Work(clock)))
    assert [record.seconds for record in state.then(chain).records] == [10.0, 10.0, 10.0]
    for left in tmp_path.glob(".run/work-*/state.json"):
        if len(json.loads(left.read_text())["records"]) == 3:
            left.unlink()
    assert [record.seconds for record in state.then(chain).records] == [10.0, 10.0, 10.0]
    assert clock[-1] == 40.0


def test_the_report_lists_every_stage(folder: Path, artifact: Path) -> None:
    report = Report.load(artifact / "report.json")
    assert [record.name for record in report.passes] == [stage.name for stage in CHAIN]
    state = make(folder, artifact)
    assert state.report == report
    assert not check_files(artifact, Manifest.load(artifact / "manifest.json"))
    page = (artifact / "report.html").read_text(encoding="utf-8")
    table = page[page.index('<table id="passes">') :]
    rows = re.findall(r'<th scope="row">(.+?)</th>', table[: table.index("</table>")])
    assert rows == [*(stage.name for stage in CHAIN), "Together"]


def test_intermediates_of_stages_taken_from_before_are_kept_too(folder: Path, tmp_path: Path) -> None:
    make(folder, tmp_path, Simplify(), Resize(hidden_size=8))
    state = lstmopt.Pipeline(Simplify(), Resize(hidden_size=8)).run(
        folder / "model.onnx", target="local", data=folder / "data.npz", output=tmp_path,
        max_degradation=5.0, keep_intermediates=True,
    )  # fmt: skip
    kept = tmp_path / ".run" / "intermediates"
    assert sorted(path.name for path in kept.iterdir()) == ["01-simplify.onnx", "02-resize.onnx"]
    assert state.keep_intermediates == kept.resolve()
    (smaller,) = find_rnns(load_model(kept / "02-resize.onnx"))
    assert smaller.weights is not None and smaller.weights.hidden_size == 8


@pytest.mark.parametrize("changed", ["fingerprint", "versions"])
def test_results_of_another_machine_or_other_packages_do_not_count(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    from lstmopt import keys

    Count.runs.clear()
    make(folder, tmp_path, Count())
    here = getattr(keys, changed)()
    other = {**here, "onnxruntime": "0"} if changed == "versions" else here.model_copy(update={"cpu": "i486"})
    monkeypatch.setattr(keys, changed, lambda: other)
    make(folder, tmp_path, Count())
    assert len(Count.runs) == 2


def test_another_model_in_the_same_folder_is_measured_against_itself(folder: Path, tmp_path: Path) -> None:
    """The original that everything is compared with is that of the call, not of an earlier one."""
    from lstmopt.passes.candidates import original_deployment

    def recurrent(model: Path) -> Any:
        state = lstmopt.Pipeline(Count()).run(model, output=tmp_path / "out", data=folder / "data.npz")
        (layer,) = find_rnns(load_model(original_deployment(state).file))
        assert layer.weights is not None
        return layer.weights.hidden_size

    assert recurrent(folder / "model.onnx") == 24
    assert recurrent(classifier(tmp_path / "other.onnx", 16)) == 16


def test_evaluations_of_other_code_or_packages_do_not_count(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lstmopt import keys
    from lstmopt.passes.candidates import evaluate, original_deployment

    state = make(folder, tmp_path, Count())
    deployment = original_deployment(state)

    def kept() -> int:
        evaluate(deployment, state, state.data.valid)
        return len(list((state.run_folder / "evaluations").iterdir()))

    assert kept() == kept() == 1
    here = keys.versions()
    monkeypatch.setattr(keys, "versions", lambda: {**here, "onnxruntime": "0"})
    assert kept() == 2
    monkeypatch.setattr(keys, "code_version", lambda: "other")
    assert kept() == 3


@pytest.mark.deep
def test_a_stream_is_measured_with_empty_caches_too(
    folder: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_passes_resize import language_model

    # However busy the machine is: what is not trusted is left out of the report.
    monkeypatch.setattr("lstmopt.measure.timing.TRUST", (0.0, 1e9))
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
