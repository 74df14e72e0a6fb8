"""The model of latency: the rest plus the sum of the layers', and which tables it may use."""

from __future__ import annotations

from typing import Any

import pytest

from lstmopt.measure import Timing
from lstmopt.passes.candidates import Candidate
from lstmopt.passes.latency import COMBINATIONS, combinations, latency_models
from lstmopt.runtimes import Deployment
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


def test_combinations_stay_within_bounds() -> None:
    assert list(combinations([[1, 2], [3]])) == [(1, 3), (2, 3)]
    many = list(combinations([range(1, 41)] * 4))
    assert 1000 < len(many) <= COMBINATIONS and len(set(many)) == len(many)
    assert (1, 1, 1, 1) in many
