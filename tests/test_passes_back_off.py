"""BackOff in the real runtime: what fails is followed by less sparsity, then by a larger size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lstmopt.errors import LstmoptError
from lstmopt.passes import BackOff, Export, GrowPrune, Peers, Resize, Verify
from lstmopt.passes.candidates import Candidate, scaled, shippable
from lstmopt.pipeline import State
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.surgery import resize
from lstmopt.tasks.base import Degradation
from tests.test_passes_grow_prune import loss_of
from tests.test_pipeline import ONE
from tests.training import language_model, state_for

WIDE, TRUE = 256, 32
"""The model has 256 units a layer, of which all but 32 do nothing: so many can go, not more."""

RECIPE = GrowPrune(steps=20, batch=16, sequence=16, dropout=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    small = language_model(tmp_path_factory.mktemp("back-off"), TRUE)
    return resize(small, {layer.name: WIDE for layer in find_rnns(small)}, seed=0, calibration=[]).model


@pytest.fixture(scope="module")
def measured(model: ir.Model, tmp_path_factory: pytest.TempPathFactory) -> State:
    """The state before BackOff, with the peers measured."""
    folder = tmp_path_factory.mktemp("run")
    return state_for(model, folder, target=ONE, max_degradation=0.02).then(Peers(rounds=5))


def at(state: State, folder: Path) -> State:
    """The state in a run folder of its own."""
    folder.mkdir()
    return replace(state, output=folder, run_folder=folder / ".run", workdir=folder / ".run")


def sizes(model: ir.Model) -> list[int]:
    return [layer.weights.hidden_size for layer in find_rnns(model) if layer.weights is not None]


def density(model: ir.Model) -> float:
    layers = [layer.weights for layer in find_rnns(model) if layer.weights is not None]
    return sum(item.nonzero_parameters for item in layers) / sum(item.parameters for item in layers)


@pytest.mark.deep
def test_backs_off_to_less_sparsity_then_to_a_larger_size(measured: State, tmp_path: Path) -> None:
    back_off = BackOff(scales=(0.02, 0.125, 1.0), compression=8000.0, tune=0.0, train=RECIPE)
    after = back_off.run(at(measured, tmp_path / "out"))
    names = ["resized-0.02", "pruned-0.02", "pruned-0.02-0.5", "resized-0.125", "pruned-0.125"]
    assert list(after.trained) == names, "the plans in their order, none after the one that holds"
    assert sizes(after.trained["pruned-0.02"]) == [5, 5] and sizes(after.model) == [TRUE, TRUE]
    original = sum(w.parameters for w in (layer.weights for layer in find_rnns(measured.model)) if w)
    for name, compression in (("pruned-0.02", 8000.0), ("pruned-0.02-0.5", 4000.0)):
        kept = density(after.trained[name]) * original_parameters(after.trained[name])
        assert kept == pytest.approx(original / compression, rel=0.02)
    verdicts = {candidate.name: candidate for candidate in after.candidates}
    assert list(verdicts) == names, "each is a candidate that the report can show"
    assert not any(verdicts[name].within_contract for name in names if "0.02" in name)
    assert verdicts["resized-0.125"].within_contract, "only dead units have gone"


def original_parameters(model: ir.Model) -> int:
    return sum(layer.weights.parameters for layer in find_rnns(model) if layer.weights is not None)


def test_where_nothing_holds_the_original_ships(measured: State, tmp_path: Path) -> None:
    state = at(measured, tmp_path / "out")
    for stage in (BackOff(scales=(0.02,), relaxed=(1.0,), tune=0.0, train=RECIPE), Export(5), Verify()):
        state = state.then(stage)
    assert state.report is not None and state.report.optimized.name == "original"
    shown = {record.name: record for record in state.report.candidates}
    assert {"original", "resized-0.02", "pruned-0.02"} == set(shown)
    assert not shown["pruned-0.02"].within_contract and shown["original"].shipped
    assert sizes(state.model) == [WIDE, WIDE]


def test_layers_that_cannot_be_resized_are_pruned(
    measured: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(stage: Resize, state: State) -> State:
        raise LstmoptError("resize", "units are cut at computed places", "leave their sizes as they are")

    monkeypatch.setattr(Resize, "run", refuse)
    state = at(measured, tmp_path / "out")
    after = BackOff(scales=(0.5, 1.0), relaxed=(1.0,), tune=0.0, train=RECIPE).run(state)
    assert list(after.trained) == ["pruned-1"] and sizes(after.model) == [WIDE, WIDE]
    assert density(after.model) == pytest.approx(0.25, rel=0.05)
    assert after.notes.count("layers keep their sizes: units are cut at computed places") == 1
    with pytest.raises(LstmoptError, match="computed places"):
        BackOff(scales=(0.5,), tune=0.0, train=RECIPE, together=(("a", "b"),)).run(state)


@pytest.mark.deep
def test_the_tuned_dense_model_is_teacher_and_candidate(measured: State, tmp_path: Path) -> None:
    state = at(measured, tmp_path / "out")
    train = replace(RECIPE, steps=60, learning_rate=2e-3)
    after = BackOff(scales=(0.02,), relaxed=(1.0,), tune=0.5, train=train).run(state)
    assert list(after.trained) == ["tuned", "resized-0.02", "pruned-0.02"]
    assert sizes(after.trained["tuned"]) == [WIDE, WIDE] and density(after.trained["tuned"]) > 0.99
    assert after.teacher is not None
    assert loss_of(after.teacher, state) < loss_of(state.original, state)
    # Another share of tuning is another teacher: nothing that was learnt from the first may be taken over.
    before = {path.name for path in (tmp_path / "out" / ".run").glob("grow-prune-*")}
    BackOff(scales=(0.02,), relaxed=(1.0,), tune=0.0, train=train).run(state)
    assert len({path.name for path in (tmp_path / "out" / ".run").glob("grow-prune-*")} - before) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"scales": ()},
        {"scales": (-1.0,)},
        {"relaxed": (2.0,)},
        {"compression": 0.5},
        {"compression": float("nan")},
        {"tune": 1.0},
    ],
)
def test_a_configuration_without_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(LstmoptError, match=r"BackOff\("):
        BackOff(**wrong)  # type: ignore[arg-type]


def test_what_breaks_the_contract_in_f32_does_not_ship_in_int8(measured: State) -> None:
    f32 = measured.peers[0]

    def variant(name: str, precision: str, value: float) -> Candidate:
        deployment = f32.deployment.model_copy(update={"precision": precision})
        worse = Degradation(value=value, low=value, high=value, n=9)
        changes = {
            "name": name,
            "deployment": deployment,
            "degradation": worse,
            "within_contract": value < 0.02,
        }
        return f32.model_copy(update=changes)

    lucky = (variant("lucky", "f32", 0.03), variant("lucky", "int8", 0.01))
    sound = (variant("sound", "f32", 0.01), variant("sound", "int8", 0.03))
    assert shippable((*lucky, *sound)) == (sound[0],)


def test_a_latency_on_the_scale_of_another_measurement(measured: State) -> None:
    peer = measured.peers[0]
    twice = scaled(peer, 2.0)
    for name in ("median", "p10", "p99", "high"):
        assert getattr(twice.latency, name) == pytest.approx(2 * getattr(peer.latency, name))
    assert twice.latency.samples == peer.latency.samples
    assert np.isfinite(twice.latency.median) and twice.deployment == peer.deployment
