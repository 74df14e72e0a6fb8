"""The order of plans: measured on the sparse ops before any training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lstmopt.passes.plans import Plan, in_order, masked, ranked, rounding_of, sparse_only
from lstmopt.rnn.reader import find_rnns
from lstmopt.runtimes.ops import available
from lstmopt.sparsity.patterns import parse_pattern
from lstmopt.targets import RuntimeTarget, Target
from tests.training import language_model, state_for

SPARSE = Target(
    name="sparse",
    runtimes=(
        RuntimeTarget(runtime="onnxruntime", precisions=("f32", "sparse-f32", "sparse-i8")),
        RuntimeTarget(runtime="openvino", precisions=("f32",)),
    ),
)
needs_ops = pytest.mark.skipif(not available("onnxruntime"), reason="the native ops were not built")


class Some:
    """A state of one layer of that many weights."""


def plan(latency: float, weights: float, scale: float = 1.0) -> Plan:
    return Plan(scale, 1.0, "bank64", Some(), 0.1, weights, latency)  # type: ignore[arg-type]


def test_close_plans_are_tried_with_the_most_weights_first() -> None:
    fast, close, slow = plan(100, 10), plan(108, 30), plan(150, 50)
    assert in_order([slow, fast, close]) == (close, fast, slow)
    assert in_order([]) == ()
    # A larger hidden size with as many weights has more to choose them from.
    small, large = plan(100, 1000, 0.5), plan(115, 995, 1.0)
    assert in_order([small, large]) == (large, small)
    # Of one size, fewer weights first: the other goes on from there.
    few, more = plan(101, 990), plan(100, 1000)
    assert in_order([more, few]) == (few, more)


@needs_ops
def test_the_sparse_precision_that_allows_most_is_measured() -> None:
    target = sparse_only(SPARSE)
    assert target is not None
    assert [(item.runtime, item.precisions) for item in target.runtimes] == [("onnxruntime", ("sparse-i8",))]
    dense = replace_runtimes(SPARSE, ("f32", "int8"))
    assert sparse_only(dense) is None


def replace_runtimes(target: Target, precisions: tuple[str, ...]) -> Target:
    found = (RuntimeTarget.model_validate({"runtime": "onnxruntime", "precisions": precisions}),)
    return target.model_copy(update={"runtimes": found})


def test_a_cut_model_has_the_density_and_the_pattern(tmp_path: Path) -> None:
    model = language_model(tmp_path, 64)
    cut = masked(model, "bank64:step4", 0.125)
    layers = [layer.weights for layer in find_rnns(cut) if layer.weights is not None]
    kept = sum(item.nonzero_parameters for item in layers) / sum(item.parameters for item in layers)
    assert kept == pytest.approx(0.125, rel=0.1)
    pattern = parse_pattern("bank64:step4")
    assert all(pattern.is_legal(each != 0) for item in layers for matrix in item.matrices for each in matrix)
    before = next(layer.weights for layer in find_rnns(model) if layer.weights is not None)
    assert before.nonzero_parameters == before.parameters, "the model that was given is as it was"
    assert np.array_equal(layers[0].w[layers[0].w != 0], before.w[layers[0].w != 0])


@pytest.mark.deep
@needs_ops
def test_plans_are_ranked_by_what_was_measured(tmp_path: Path) -> None:
    """With 16 times the weights a layer of 256 units is slower; what no sparse op takes is the slowest."""
    state = state_for(language_model(tmp_path, 256), tmp_path / "run", target=SPARSE)
    plans = [
        Plan(1.0, share, "bank64:step4", state, density, density)
        for share, density in ((0.1, 0.4), (1.0, 0.025))
    ]
    dense = Plan(1.0, 0.01, "bank64:step4", state, 0.9, 0.9)
    found = ranked([dense, *plans], state)
    assert [item.density for item in found] == [0.025, 0.4, 0.9]
    latencies = [item.latency_us or 0.0 for item in found]
    assert latencies[0] > 0 and latencies == sorted(latencies)
    assert ranked(plans[:1], state) == (plans[0],)
    plain = replace(state, target=replace_runtimes(SPARSE, ("f32",)))
    assert ranked(plans, plain) == tuple(plans)


@needs_ops
def test_training_ends_on_the_weights_of_the_fastest_op() -> None:
    assert rounding_of("bank64:step4", SPARSE) == "i8"
    assert rounding_of("bank32:step2", SPARSE) in ("i16", "f32")
    assert rounding_of("gate-shared64:step4", SPARSE) == "i8-shared"
    assert rounding_of("block16x1", SPARSE) is None
    assert rounding_of("bank64:step4", replace_runtimes(SPARSE, ("f32", "int8"))) is None
