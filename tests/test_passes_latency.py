"""The model of latency: the rest plus the sum of the layers', and which tables it may use."""

from __future__ import annotations

from typing import Any

import pytest

from lstmopt.measure import Timing
from lstmopt.measure.kind import Kind
from lstmopt.passes.candidates import Candidate
from lstmopt.passes.latency import (
    COMBINATIONS,
    Layer,
    called_layers,
    combinations,
    latency_models,
)
from lstmopt.reference.char_lm import model_path
from lstmopt.rnn.files import load_model
from lstmopt.runtimes import Deployment
from lstmopt.targets import RuntimeTarget, Target, load_target
from tests.test_bridge_batching import chunk_model
from tests.test_passes_resize import ONE, curve, language_model


def peer(latency: float, precision: str = "f32") -> Candidate:
    return Candidate(
        name="original",
        deployment=Deployment(runtime="onnxruntime", file="m.onnx", precision=precision),
        latency=Timing(
            median=latency, p10=latency, p90=latency, p99=latency, low=latency, high=latency, samples=9
        ),
        degradation=None, metric=None, within_contract=True, hidden_sizes={}, parameters=1,
        nonzero_parameters=1,
    )  # fmt: skip


def model(*peers: Candidate) -> Any:
    (found,) = latency_models(language_model(), (curve("lstm0"), curve("lstm1")), peers, ONE)
    return found


def test_the_original_is_predicted_as_it_was_measured() -> None:
    own = {"lstm0": 12, "lstm1": 12}
    assert model(peer(300.0)).rest == pytest.approx(300.0 - 240.0)
    assert model(peer(300.0)).predict(own) == pytest.approx(300.0)
    assert model().rest == 0.0
    assert model(peer(200.0)).rest == 0.0  # alone the layers took longer: no rest is less than nothing
    assert model(peer(300.0, "int8")).rest == 0.0  # of another precision


def test_a_layer_costs_what_its_table_says() -> None:
    found = model(peer(300.0))
    assert found.predict({"lstm0": 8, "lstm1": 8}) == pytest.approx(60 + 80 + 80)
    # The second layer reads 12 units and has 8: its table knows 8 and 8, which are fewer weights.
    assert found.predict({"lstm0": 12, "lstm1": 8}) == pytest.approx(60 + 120 + 80 * (12 + 8) / (8 + 8))
    assert found.parameters({"lstm0": 12, "lstm1": 8}) == 4 * 12 * (5 + 12) + 4 * 8 * (12 + 8)


BOTH = Target(
    name="both",
    runtimes=(
        RuntimeTarget(runtime="onnxruntime", precisions=("f32", "int8", "sparse-f32", "sparse-i8")),
        RuntimeTarget(runtime="openvino", precisions=("f32", "sparse-i8")),
    ),
)
OWN = {"lstm0": 12, "lstm1": 12}
SIZES = (4, 6, 8, 12, 14)
BANK, SHARED = "bank64:step4", "gate-shared64:step4"
COST = {"f32": 1.0, "int8": 0.4, "sparse-f32": 1.2, "sparse-i8": 0.5}
"""Microseconds a weight that is stored."""


def layer_us(kind: Kind, hidden: int, inputs: int) -> float:
    """What one layer of a made-up machine takes: a call, and each weight that is kept."""
    return 3.0 + COST[kind.precision] * kind.density * 4 * hidden * (hidden + inputs)


def whole_us(kind: Kind, sizes: dict[str, int]) -> float:
    """What the whole model takes there: a rest of 50 us, whatever the layers are executed as."""
    first, second = sizes["lstm0"], sizes["lstm1"]
    return 50.0 + layer_us(kind, first, 5) + layer_us(kind, second, first)


def tables(*kinds: Kind) -> list[Any]:
    return [
        curve(
            name, SIZES, **kind._asdict(),
            curve={size: layer_us(kind, size, 5 if name == "lstm0" else size) for size in SIZES},
        )
        for kind in kinds
        for name in OWN
    ]  # fmt: skip


DENSE = Kind("onnxruntime", "f32"), Kind("onnxruntime", "int8")
SPARSE = [
    Kind("onnxruntime", precision, BANK, density)
    for precision in ("sparse-f32", "sparse-i8")
    for density in (0.0625, 0.25)
]


def sparse_models(*more: Kind) -> tuple[Any, ...]:
    peers = [peer(whole_us(kind, OWN), kind.precision) for kind in DENSE]
    return latency_models(language_model(), tables(*DENSE, *SPARSE, *more), peers, BOTH)


def test_each_pattern_and_density_is_a_model_of_its_own_beside_the_f32_rest() -> None:
    found = {item.kind: item for item in sparse_models(Kind("openvino", "sparse-i8", BANK, 0.25))}
    assert set(found) == {*DENSE, *SPARSE, Kind("openvino", "sparse-i8", BANK, 0.25)}
    assert all(found[kind].rest == pytest.approx(50.0) for kind in (*DENSE, *SPARSE))
    assert found[Kind("openvino", "sparse-i8", BANK, 0.25)].rest == 0.0, "nothing is known of that runtime"
    dense, sparse = found[DENSE[0]].parameters(OWN), found[SPARSE[1]].parameters(OWN)
    assert sparse == round(dense / 4)


def test_combinations_stay_within_bounds() -> None:
    assert list(combinations([[1, 2], [3]])) == [(1, 3), (2, 3)]
    many = list(combinations([range(1, 41)] * 4))
    assert 1000 < len(many) <= COMBINATIONS and len(set(many)) == len(many)
    assert (1, 1, 1, 1) in many


def test_a_layer_is_measured_over_the_steps_that_reach_it() -> None:
    """One step of a model that takes a chunk a call, whatever the target says; otherwise the target's."""
    target = load_target("local")
    (layer,) = called_layers(chunk_model(), target)
    assert (layer.sequence, layer.batch) == (1, 1) and layer.call(target) == (1, 1)
    for layer in called_layers(load_model(model_path()), target):
        assert layer.call(target) == (target.shapes[0].batch, target.shapes[0].sequence)
    assert Layer("bare", 8, None, 1).call(target) == (target.shapes[0].batch, target.shapes[0].sequence)
