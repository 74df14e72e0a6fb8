"""Models that others trained: read, simplified, resized, always with the outputs that they had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lstmopt.passes.simplify import simplify
from lstmopt.rnn.check import silence
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.groups import analyse, unit_groups
from lstmopt.rnn.inspection import inspect_model
from lstmopt.rnn.plan import Plan
from lstmopt.rnn.reader import find_rnns, require_rnns
from lstmopt.rnn.states import StatePair, state_pairs
from lstmopt.rnn.surgery import resize
from tests.real_models import ddddocr, silero_vad
from tests.test_rnn_resize import keep_units


def through_a_file(model: ir.Model, folder: Path) -> ir.Model:
    save_model(model, folder / "saved.onnx")
    return load_model(folder / "saved.onnx")


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def silero(tmp_path_factory: pytest.TempPathFactory) -> tuple[ir.Model, ir.Model]:
    """The model as it is, and simplified and saved: without the inner If of each rate."""
    model = load_model(silero_vad())
    simple, notes = simplify(model)
    assert notes == ("recognised: 2 If of which one branch is always taken, unless inputs are empty",)
    return model, through_a_file(simple, tmp_path_factory.mktemp("silero"))


def test_silero_is_described(silero: tuple[ir.Model, ir.Model]) -> None:
    inspection = inspect_model(silero[0], "silero_vad.onnx")
    assert len(inspection.layers) == 2  # of 4: the two for a batch of none are never taken
    assert all(layer.hidden_size == 128 and layer.direction == "forward" for layer in inspection.layers)
    assert all(layer.supported and "hidden size stays" in layer.reason for layer in inspection.layers)
    assert not any(group.resizable for group in inspection.groups)
    assert state_pairs(silero[0]) == (StatePair("state", "stateN"),)
    assert len(require_rnns(silero[0], "silero_vad.onnx")) == 4


@pytest.mark.parametrize(("rate", "samples"), [(16000, 576), (8000, 288)])
def test_silero_streams_the_same_with_states_fed_back(
    silero: tuple[ir.Model, ir.Model], rate: int, samples: int
) -> None:
    before, after = (Reference(model) for model in silero)
    rng = np.random.default_rng(rate)
    states = [np.zeros((2, 1, 128), np.float32)] * 2
    loud = []
    for chunk in range(100):
        x = 0.3 * np.sin(np.arange(samples) * 0.05 * (1 + chunk % 7)) + 0.1 * rng.standard_normal(samples)
        feeds = {"input": x[None].astype(np.float32), "sr": np.array(rate)}
        one = before.run({**feeds, "state": states[0]})
        other = after.run({**feeds, "state": states[1]})
        for name, array in one.items():
            assert_close(other[name], array)
        states = [one["stateN"], other["stateN"]]
        loud.append(float(one["output"].max()))
    assert len(set(loud)) > 50  # it is not a constant that is compared


@pytest.mark.parametrize("name", ["silero_vad_16k_sequence.onnx", "silero_vad_openvino_16k.onnx"])
def test_silero_in_a_plain_graph_is_resized(name: str, tmp_path: Path) -> None:
    model, notes = simplify(load_model(silero_vad(name)))
    assert not notes
    (group,) = unit_groups(model)
    assert group.pinned is None and group.exact
    assert set(group.interface) == ({"h", "c", "hn", "cn"} if "sequence" in name else {"state", "stateN"})
    large = resize(model, {group.layers[0]: 136})
    small = through_a_file(resize(large.model, {group.layers[0]: 128}).model, tmp_path)
    feeds = {"input": np.random.default_rng(0).standard_normal((1, 576)).astype(np.float32)}
    for value in model.graph.inputs:
        if value.name in group.interface:
            shape = [size if isinstance(size, int) else 1 for size in value.shape]
            feeds[value.name] = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected, got = Reference(model).run(feeds), Reference(small).run(feeds)
    for key, array in expected.items():
        assert_close(got[key], array)


@pytest.fixture(scope="module")
def ocr() -> ir.Model:
    return load_model(ddddocr())


@pytest.fixture(scope="module")
def simple_ocr(ocr: ir.Model) -> ir.Model:
    simple, notes = simplify(ocr)
    assert not notes
    return simple


def picture(width: int, seed: int) -> dict[str, np.ndarray]:
    return {"input1": np.random.default_rng(seed).uniform(-1, 1, (1, 1, 64, width)).astype(np.float32)}


def test_ddddocr_is_the_same_after_simplify_and_a_file(
    ocr: ir.Model, simple_ocr: ir.Model, tmp_path: Path
) -> None:
    saved = through_a_file(simple_ocr, tmp_path)
    (layer,) = find_rnns(saved)
    assert layer.weights.direction == "bidirectional" and layer.weights.hidden_size == 512
    assert layer.input(5) is None and layer.input(6) is None  # its zero initial states are gone
    before, after = Reference(ocr), Reference(saved)
    for width in (64, 160, 333):
        expected, got = before.run(picture(width, width)), after.run(picture(width, width))
        assert list(got) == list(expected)
        for name, array in expected.items():
            assert_close(got[name], array)


@pytest.mark.parametrize("form", [pytest.param("ocr", marks=pytest.mark.deep), "simple_ocr"])
def test_ddddocr_loses_dead_units_without_a_trace(
    form: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Other units in each direction; the zero initial states are resized where they are still there."""
    model: ir.Model = request.getfixturevalue(form)
    (group,) = unit_groups(model)
    assert group.pinned is None and group.exact and len(group.bundles) == 2 and not group.interface
    dead = model.clone()
    analysis = analyse(dead)
    rng = np.random.default_rng(0)
    keep = [np.sort(rng.permutation(512)[:336]) for _ in range(2)]
    order = {lane.base: keep[lane.direction] for lane in analysis.flow.lanes}
    silence(dead, Plan(analysis, order))
    small = through_a_file(keep_units(dead, order), tmp_path)
    (layer,) = find_rnns(small)
    assert layer.weights.r.shape == (2, 4, 336, 336)
    before, after = Reference(dead), Reference(small)
    for width in (64, 200):
        expected, got = before.run(picture(width, width)), after.run(picture(width, width))
        for name, array in expected.items():
            assert_close(got[name], array)


def test_cells_inside_branches_are_said() -> None:
    inspection = inspect_model(load_model(silero_vad("silero_vad_op18_ifless.onnx")), "ifless")
    assert inspection.decomposed_cells == 2 and not inspection.layers


def test_an_int8_lstm_is_read_as_floats() -> None:
    old = inspect_model(load_model(Path(ddddocr()).with_name("common_old.onnx")), "old")
    (layer,) = old.layers
    assert layer.supported
    assert any("1 int8 LSTM" in note and "the model to beat is the int8 one" in note for note in old.notes)
