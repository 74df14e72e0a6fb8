"""`optimize` for a machine that is not this one: a GPU, by latency tables that were recorded on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import lstmopt
from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.table import LatencyTable
from lstmopt.passes.elsewhere import is_elsewhere
from lstmopt.passes.verify import verify_artifact
from lstmopt.pipeline import Budget
from lstmopt.report.schema import Manifest, Report
from lstmopt.rnn.files import load_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.runtimes import cuda
from lstmopt.targets import load_target
from tests.recurrent import in_onnxruntime
from tests.test_cli_errors import call as run_cli
from tests.test_cli_errors import classifier, examples, refused
from tests.test_measure_table import table

pytestmark = pytest.mark.skipif(cuda.gpu() is not None, reason="there is a GPU")

HIDDEN, STEP = 160, 64


def recorded(precision: str, **changes: Any) -> LatencyTable:
    """A table of a made-up GPU whose latency steps at multiples of 64."""
    sizes = tuple(range(16, HIDDEN + 17, 8))
    curve = {size: 20.0 + 5.0 * -(-size // STEP) * (1 if precision == "f16" else 2) for size in sizes}
    ends = tuple(size for size in reversed(sizes) if size % STEP == 0 or size == sizes[-1])
    values = {
        "fingerprint": fingerprint().model_copy(update={"gpu": "made-up GPU, CUDA 13.0"}),
        "runtime": "tensorrt", "version": "10", "precision": precision, "layer": "elsewhere", "input_size": 4,
        "dimensions": sizes, "samples": {size: (curve[size],) for size in sizes}, "curve": curve,
        "hysteresis_points": ends,
    }  # fmt: skip
    return table(**{**values, **changes})


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    classifier(folder / "model.onnx", HIDDEN)
    examples(folder / "data.npz", 60)
    lstmopt.optimize(
        folder / "model.onnx",
        target="nvidia",
        data=folder / "data.npz",
        budget=Budget(steps=3),
        max_degradation=5.0,
        latency_tables=(recorded("f32"), recorded("f16")),
        output=folder / "out",
    )
    return folder / "out"


def test_it_runs_to_its_end_and_writes_what_the_gpu_needs(artifact: Path) -> None:
    names = {path.relative_to(artifact).as_posix() for path in artifact.rglob("*") if path.is_file()}
    assert {"model.onnx", "report.json", "report.html", "run.py", "golden.safetensors"} <= names
    assert {"tensorrt/model.onnx", "tensorrt/build.sh"} <= names
    assert (artifact / "tensorrt/build.sh").stat().st_mode & 0o111
    script = (artifact / "tensorrt/build.sh").read_text(encoding="utf-8")
    assert "trtexec --onnx=model.onnx '--minShapes=x:35x1x4' '--optShapes=x:35x1x4'" in script
    entry = Manifest.load(artifact / "manifest.json").deploy[0]
    assert (entry.runtime, entry.file.as_posix()) == ("tensorrt", "tensorrt/model.onnx")


def test_its_layers_have_the_sizes_of_the_table(artifact: Path) -> None:
    (layer,) = find_rnns(load_model(artifact / "tensorrt/model.onnx"))
    size = Report.load(artifact / "report.json").lstms[0].hidden_size
    assert size.before == HIDDEN and size.after in (64, 128)
    assert layer.weights is None or layer.weights.hidden_size == size.after
    (plain,) = find_rnns(load_model(artifact / "model.onnx"))
    assert plain.weights is not None and plain.weights.hidden_size == size.after
    # Zeros buy nothing on this target: nothing was pruned.
    assert plain.weights.nonzero_parameters == plain.weights.parameters


def test_the_report_says_that_no_speed_was_measured(artifact: Path) -> None:
    report = Report.load(artifact / "report.json")
    assert report.predicted and report.measurement is None
    assert report.ratios.latency_over_f32.value is None and report.ratios.latency_over_best_peer.value is None
    assert {(peer.runtime, peer.precision, peer.latency_us.samples) for peer in report.peers} == {
        ("tensorrt", "f32", 0), ("tensorrt", "f16", 0),
    }  # fmt: skip
    steps = -(-report.lstms[0].hidden_size.after // STEP)
    assert report.optimized.precision == "f16"
    assert report.optimized.latency_us.median == pytest.approx(20.0 + 5.0 * steps)
    assert report.peers[report.fastest_f32].latency_us.median == pytest.approx(20.0 + 10.0 * 3)
    assert "all outputs are those of onnxruntime on its file" in report.notes[0]
    assert any("made-up GPU" in note for note in report.notes)
    page = (artifact / "report.html").read_text(encoding="utf-8")
    assert "Its speed was not measured" in page and "quieter machine" not in page


def test_its_files_compute_the_same(artifact: Path) -> None:
    feeds = {"x": np.random.default_rng(0).standard_normal((35, 1, 4)).astype(np.float32)}
    plain = in_onnxruntime(onnx.load(artifact / "model.onnx"), feeds)["scores"]
    half = in_onnxruntime(onnx.load(artifact / "tensorrt/model.onnx"), feeds)["scores"]
    assert 0 < np.abs(half - plain).max() / np.abs(plain).max() < 1e-2


def test_it_is_verified_and_checked_in_what_stands_in(artifact: Path) -> None:
    result = verify_artifact(artifact)
    assert result.passed
    assert any(check.name == "outputs, tensorrt f16 in onnxruntime, since it does not run here"
               for check in result.checks)  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(artifact / "run.py"), "--iterations", "5", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["runtime"], told["instead_of"], told["passed"]) == ("onnxruntime", "tensorrt", True)


@pytest.mark.parametrize(
    "tables", [(), ("f16",), ("f32", "f16")], ids=["none", "one precision", "other input size"]
)
def test_tables_that_tell_too_little_are_one_line(tables: tuple[str, ...], tmp_path: Path) -> None:
    classifier(tmp_path / "model.onnx", HIDDEN)
    changes = {"input_size": 8} if len(tables) == 2 else {}
    with pytest.raises(LstmoptError) as caught:
        lstmopt.optimize(
            tmp_path / "model.onnx",
            target="nvidia",
            latency_tables=tuple(recorded(precision, **changes) for precision in tables),
            output=tmp_path / "o",
        )
    line = str(caught.value)
    assert line.startswith("target nvidia: tensorrt does not run here") and "\n" not in line
    assert "tells its latency in f32 of " in line and "input size 4, hidden size 160" in line
    assert "--latency-table" in line
    assert not (tmp_path / "o" / "report.json").exists()


def test_tables_of_torch_on_a_gpu_drive_it_too(tmp_path: Path) -> None:
    """As `probe` writes them on a machine without TensorRT."""
    classifier(tmp_path / "model.onnx", HIDDEN)
    examples(tmp_path / "data.npz", 60)
    slower = recorded("f32", runtime="torch-cuda").curve
    slower = {size: 3 * value for size, value in slower.items()}
    tables = [
        recorded("f32", runtime="torch-cuda", curve=slower),
        *(recorded(precision, runtime="cudnn") for precision in ("f32", "f16")),
    ]
    out = tmp_path / "out"
    lstmopt.optimize(
        tmp_path / "model.onnx", target="nvidia", data=tmp_path / "data.npz", budget=Budget(steps=3),
        max_degradation=5.0, latency_tables=tuple(tables), output=out,
    )  # fmt: skip
    report = Report.load(out / "report.json")
    # Ours is no peer; the original in it is a candidate.
    assert {(peer.runtime, peer.precision) for peer in report.peers} == {("torch-cuda", "f32")}
    assert ("packed", "cudnn", "f16") in {(c.name, c.runtime, c.precision) for c in report.candidates}
    assert (report.optimized.runtime, report.optimized.precision) == ("cudnn", "f16")
    assert any("tensorrt f32 was left out: no latency table tells it" in note for note in report.notes)
    assert any("all outputs are those of torch-cpu on its file" in note for note in report.notes)
    deploy = Manifest.load(out / "manifest.json").deploy
    assert [entry.runtime for entry in deploy][0] == "cudnn" and not (out / "tensorrt").exists()
    result = verify_artifact(out)
    assert result.passed and any("cudnn f16 in torch-cpu" in check.name for check in result.checks)


def test_a_dry_run_tells_what_is_lacking(tmp_path: Path) -> None:
    classifier(tmp_path / "model.onnx", HIDDEN)
    call = "optimize", tmp_path / "model.onnx", "--target", "nvidia", "--dry-run", "-o", tmp_path / "o"
    refused(run_cli(*call), "target nvidia", "no latency table given tells its latency in f32")
    options = []
    for precision in ("f32", "f16"):
        recorded(precision).save(tmp_path / f"{precision}.json")
        options += ["--latency-table", tmp_path / f"{precision}.json"]
    result = run_cli(*call, *options)
    assert result.returncode == 0 and "nvidia: tensorrt f32/f16" in result.stdout, result.stderr


def test_only_targets_without_a_usable_runtime_are_elsewhere() -> None:
    nvidia = load_target("nvidia")
    assert is_elsewhere(nvidia) and not is_elsewhere(load_target("xeon"))
    both = nvidia.model_copy(update={"runtimes": (*nvidia.runtimes, *load_target("xeon").runtimes)})
    assert not is_elsewhere(both)


def test_nothing_is_timed_for_it(tmp_path: Path) -> None:
    from lstmopt.passes.bench import bench

    classifier(tmp_path / "model.onnx", 16)
    with pytest.raises(LstmoptError, match="no NVIDIA GPU or driver here"):
        bench([tmp_path / "model.onnx"], target="nvidia")
