"""`benchmarks.kernels`: its contenders compute the same layer, and its goals say what the figures say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.kernels import CASES, Result, goals, page
from benchmarks.layers import TORCH, Shape, candidates
from lstmopt.measure.process import Worker, write_feeds
from lstmopt.measure.statistics import Ratio, Spread
from lstmopt.measure.timing import Comparison
from lstmopt.sparsity.formats import format_named
from tests.ops import needs_ops


@needs_ops
@pytest.mark.parametrize("batch", [1, 3])
def test_contenders_compute_the_same_layer(tmp_path: Path, batch: int) -> None:
    timed, errors = candidates(tmp_path, Shape(64, 5, batch, 0.25), ("f32", "i8"), torch=True)
    assert {item.name for item in timed} == set(errors) and len(timed) == len(errors)
    for name in ("openvino f32", "onnxruntime f32", TORCH):
        assert errors[name] < 1e-6, name
    for where in ("openvino", "onnxruntime"):
        for name in ("f32", "i8"):
            assert 0 < errors[f"{name} in {where}"] < 3 * format_named(name).error


def test_torch_runs_in_a_worker(tmp_path: Path) -> None:
    from benchmarks import torch_csr
    from benchmarks.layers import layer
    from lstmopt.measure.process import Candidate

    built = torch_csr.build(layer(64, "bank64:step4", 0.25), tmp_path / "torch.npz")
    x = np.ones((5, 1, 64), np.float32)
    candidate = Candidate(TORCH, built, [(1.0, {"x": x})], torch_csr.OPENER)
    with Worker(candidate, write_feeds(candidate, tmp_path / "feeds"), 1) as worker:
        worker.ready()
        assert len(worker.block(0.1).samples) >= 3


def result(case: int, size: int, latencies: dict[str, float], errors: dict[str, float]) -> Result:
    rounds = {name: [np.full(4, latency)] * 4 for name, latency in latencies.items()}
    comparison = Comparison(rounds, Ratio(value=1.0, low=1.0, high=1.0), 0, False, 2, Spread(0.0, 4))
    return Result(CASES[case], Shape(size, CASES[case].sequence, 1, 0.0625), False, comparison, errors)


def test_goals() -> None:
    peers = {
        "openvino f32": 1200.0,
        "openvino bf16": 500.0,
        "onnxruntime f32": 900.0,
        "onnxruntime int8": 240.0,
    }
    ours = {"f32": 99.0, "i16": 61.0, "i8": 39.0}
    latencies = peers | {f"{name} in openvino": value for name, value in ours.items()}
    latencies |= {f"{name} in onnxruntime": 2 * value for name, value in ours.items()}
    errors = dict.fromkeys(latencies, 4e-3) | {"i16 in openvino": 1e-3}
    found = goals(result(0, 512, latencies, errors))
    assert len(found) == 6
    cells = {line.split(" | ")[2]: line.split(" | ")[3:] for line in found}
    assert cells["f32 in openvino"][:4] == ["openvino f32", "12.1 [12.1, 12.1]", "12", "met"]
    assert cells["f32 in onnxruntime"][3] == "**missed**"
    assert cells["i16 in openvino"][2:4] == ["4", "**missed**"]
    assert cells["i16 in openvino"][4] == "1.0e-03 (at most 1.3e-03: met)"
    assert cells["i16 in onnxruntime"][4] == "4.0e-03 (at most 1.3e-03: **missed**)"
    assert cells["i8 in openvino"][1:4] == ["6.2 [6.2, 6.2]", "6", "met"]
    del errors["openvino bf16"]
    assert "no openvino bf16" in goals(result(0, 512, latencies, errors))[2]


def test_one_step_is_asked_from_650_on_and_of_the_faster_f32() -> None:
    latencies = {"openvino f32": 1200.0, "onnxruntime f32": 900.0, "onnxruntime int8": 240.0}
    latencies |= {
        f"{name} in {where}": 100.0 for name in CASES[1].formats for where in ("openvino", "onnxruntime")
    }
    errors = dict.fromkeys(latencies, 1e-3)
    assert goals(result(1, 512, latencies, errors)) == []
    found = goals(result(1, 650, latencies, errors))
    assert len(found) == 4 and "onnxruntime f32 | 9.0" in found[0] and "onnxruntime int8 | 2.4" in found[2]
    written = page([result(1, 650, latencies, errors)], 0.0625, 12)
    assert found[0] in written and "93.75%" in written and "A/A 1.000" in written
