"""`bench` and `verify --baseline` time everything on the same calls: the target's, all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import lstmopt
from lstmopt.errors import LstmoptError
from lstmopt.passes import Export, Resize, Simplify
from lstmopt.passes import bench as module
from lstmopt.passes.bench import BenchResult, bench
from lstmopt.passes.verify import verify_artifact
from lstmopt.runtimes import runtime
from lstmopt.targets import RuntimeTarget, Shape, Target
from tests.test_cli_errors import call, classifier, examples

MIXED = Target(
    name="mixed",
    runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32",)),),
    shapes=(Shape(batch=2, sequence=4, weight=3), Shape(batch=1, sequence=9, weight=1)),
)
SHAPES = {"x": [(0.75, (4, 2, 4)), (0.25, (9, 1, 4))]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "a#b|c"  # no sign that names are cut at
    path.mkdir()
    classifier(path / "model.onnx", 24)
    examples(path / "data.npz", 60)
    runtime("openvino").build(path / "model.onnx", "f32", path / "ir")
    made(path, path / "artifact", MIXED, 24)
    return path


def made(folder: Path, output: Path, target: Target, hidden: int) -> None:
    chain = (Simplify(), Resize(hidden_size=hidden), Export(5))
    lstmopt.Pipeline(*chain).run(
        folder / "model.onnx", target=target, data=folder / "data.npz", output=output, max_degradation=5.0
    )


def calls_of(
    path: Path, target: Target, workdir: Path
) -> list[dict[str, list[tuple[float, tuple[int, ...]]]]]:
    """The shapes on which each candidate of a file or folder is timed, by input."""
    found = []
    for item in module._candidates(path, 0, target, workdir, 0):
        shapes: dict[str, list[tuple[float, tuple[int, ...]]]] = {}
        for share, feeds in item.candidate.calls:
            for name, array in feeds.items():
                shapes.setdefault(name, []).append((share, array.shape))
        found.append(shapes)
    return found


def test_everything_is_timed_on_the_targets_calls(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "model.onnx", folder / "artifact", folder / "ir" / "model.xml"):
        assert calls_of(path, MIXED, tmp_path) == [SHAPES], path


def shown(result: BenchResult) -> str:
    from rich.console import Console

    with (console := Console(width=200)).capture() as captured:
        console.print(result.render())
    return captured.get()


def test_all_kinds_together(folder: Path) -> None:
    paths = [folder / "model.onnx", folder / "artifact", folder / "ir" / "model.xml"]
    result = bench(paths, target=MIXED, rounds=5)
    assert [row.runtime for row in result.rows] == ["onnxruntime", "onnxruntime", "openvino"]
    assert [row.name for row in result.rows] == [str(path) for path in paths]
    ratios = [row.ratio for row in result.rows]
    if not result.trusted:
        assert ratios == [None] * 3 and "not published" in shown(result)
        return
    assert ratios[0] is not None and ratios[0].value == 1.0
    assert all(ratio is not None and ratio.low <= ratio.value <= ratio.high for ratio in ratios)
    busy = result.model_copy(
        update={"trusted": False, "rows": tuple(r.model_copy(update={"ratio": None}) for r in result.rows)}
    )
    assert "x (" in shown(result) and "x (" not in shown(busy)


def test_models_that_take_other_calls_are_refused(folder: Path, tmp_path: Path) -> None:
    proto = onnx.load(folder / "model.onnx")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(proto, tmp_path / "fixed.onnx")
    with pytest.raises(
        LstmoptError, match=r"fixed\.onnx: its input x has shape \[7, 2, 4\], that of .*\[4, 2, 4\]"
    ):
        bench([folder / "artifact", tmp_path / "fixed.onnx"], target=MIXED, rounds=5)
    result = call("bench", folder / "model.onnx", tmp_path / "fixed.onnx", "--rounds", 5)
    assert result.returncode == 2 and "compare models that take the same calls" in result.stderr


def test_a_baseline_is_timed_on_all_shapes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lstmopt import measure

    seen: list[list[tuple[float, tuple[int, ...]]]] = []
    real = measure.compare

    def watched(candidates: list[measure.Candidate], **options: object) -> measure.Comparison:
        seen.extend([(share, feeds["x"].shape) for share, feeds in item.calls] for item in candidates)
        return real(candidates, rounds=5, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "compare", watched)
    result = verify_artifact(folder / "artifact", baseline=folder / "artifact", max_slowdown=9.0)
    assert any("of the baseline's latency" in check.detail for check in result.checks)
    assert seen == [SHAPES["x"], SHAPES["x"]]


def test_a_baseline_of_another_target_is_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder / "artifact", tmp_path / "other", ignore=shutil.ignore_patterns(".run"))
    report = json.loads((other / "report.json").read_text())
    report["target"]["shapes"] = report["target"]["shapes"][:1]
    (other / "report.json").write_text(json.dumps(report))
    with pytest.raises(LstmoptError, match="other input shapes"):
        verify_artifact(folder / "artifact", baseline=other)


def test_an_ir_has_random_numbers_for_floats(folder: Path, tmp_path: Path) -> None:
    (item,) = module._candidates(folder / "ir" / "model.xml", 0, MIXED, tmp_path, 0)
    assert all(np.std(feeds["x"]) > 0 for _, feeds in item.candidate.calls)
    assert item.states is None
