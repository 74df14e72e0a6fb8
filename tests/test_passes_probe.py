"""The probe as a stage: what is measured, what was given, and what could not win."""

from __future__ import annotations

from pathlib import Path

import pytest

from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.table import LatencyTable
from lstmopt.passes.latency import fitting
from lstmopt.passes.probe import Probe, grid, model_layers
from lstmopt.rnn.files import load_model
from lstmopt.targets import RuntimeTarget, Shape, Target
from tests.test_cli_errors import call, classifier, examples
from tests.test_measure_table import table
from tests.test_passes_latency import peer
from tests.training import state_for

SHORT = Target(
    name="short",
    runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32", "int8")),),
    shapes=(Shape(batch=1, sequence=5),),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe")
    classifier(path / "model.onnx", 24)
    return path


HALF = Probe(step=12, smallest=0.5)


def probed(
    folder: Path, workdir: Path, probe: Probe = HALF, **changes: object
) -> tuple[tuple[LatencyTable, ...], tuple[str, ...]]:
    told: list[str] = []
    data = examples(workdir / "data.npz", 20)
    state = state_for(
        load_model(folder / "model.onnx"), workdir / "run", data=data, target=SHORT,
        progress=lambda text, fraction: told.append(text), **changes,
    )  # fmt: skip
    after = probe.run(state)
    measured = {text.split(":")[0] for text in told if text.startswith("probe ")}
    return after.tables, (*after.notes, *sorted(measured))


def given(**changes: object) -> LatencyTable:
    fields: dict[str, object] = {
        "layer": "measured elsewhere", "runtime": "onnxruntime", "precision": "f32", "input_size": 4,
        "sequence": 5, "hysteresis_points": (24, 16, 8),
    }  # fmt: skip
    return table(**{**fields, **changes})


def test_every_runtime_and_precision_is_measured_once(folder: Path, tmp_path: Path) -> None:
    tables, notes = probed(folder, tmp_path)
    assert [(item.runtime, item.precision) for item in tables] == [
        ("onnxruntime", "f32"), ("onnxruntime", "int8"),
    ]  # fmt: skip
    assert all(item.dimensions == (12, 24) and item.sequence == 5 for item in tables)
    assert len([note for note in notes if note.startswith("probe ")]) == 2
    again, notes = probed(folder, tmp_path)
    assert again == tables and not [note for note in notes if note.startswith("probe ")]


def test_what_was_given_is_used_and_what_is_missing_measured(folder: Path, tmp_path: Path) -> None:
    """The layer's name does not matter, and the other machine is the user's choice, with a warning."""
    foreign = given(fingerprint=fingerprint().model_copy(update={"cpu": "another CPU"}))
    tables, notes = probed(folder, tmp_path, tables=(foreign,))
    assert {item.layer for item in tables} == {tables[1].layer}
    assert tables[0].curve == foreign.curve and tables[1].precision == "int8"
    assert any("of another CPU (cpu differ)" in note for note in notes)
    assert any("is of onnxruntime 1, here it is" in note for note in notes)
    assert [note for note in notes if note.startswith("probe ")] == [
        f"probe {tables[1].layer}, onnxruntime int8"
    ]


@pytest.mark.parametrize(
    "other", [{"threads": 2}, {"input_size": 5}, {"sequence": 35}, {"precision": "bf16"}]
)
def test_what_fits_nothing_is_not_used(folder: Path, tmp_path: Path, other: dict[str, object]) -> None:
    whole = given(precision="int8")
    tables, notes = probed(folder, tmp_path, tables=(given(**other), whole))
    assert [item.curve == whole.curve for item in tables] == [True, False]
    assert any("measured elsewhere was not used" in note for note in notes)


def test_what_could_not_catch_up_is_left_out(folder: Path, tmp_path: Path) -> None:
    """At half the hidden size a quarter of the time is the most that can be won."""
    peers = (peer(410.0), peer(100.0, "int8"))
    tables, notes = probed(folder, tmp_path, peers=peers)
    assert [item.precision for item in tables] == ["int8"]
    assert any("onnxruntime f32 was not probed: 4.1 times" in note for note in notes)
    tables, notes = probed(folder, tmp_path, peers=(peer(390.0), peer(100.0, "int8")))
    assert [item.precision for item in tables] == ["f32", "int8"]
    assert not any("not probed" in note for note in notes)


def test_the_grid_reaches_above_the_layers_own_size() -> None:
    assert grid(392, 16, 0.5) == [*range(208, 385, 16), 392, 400, 416]
    assert grid(24, 16, 0.4) == [16, 24, 32]
    assert grid(512, 64, 0.5) == [256, 320, 384, 448, 512]
    assert grid(3, 8, 0.4) == [3, 8]
    assert grid(1, 1, 0.4) == [1]
    assert grid(100, 10, 0.8, 1.5) == [*range(80, 151, 10)]


def sized(*sizes: int, **changes: object) -> LatencyTable:
    """A table that was given of these hidden sizes, ascending."""
    curve = {size: float(size) for size in sizes}
    return given(
        dimensions=sizes, samples={}, curve=curve, hysteresis_points=tuple(reversed(sizes)), **changes
    )


@pytest.mark.parametrize(
    ("probe", "short", "needed"),
    [
        (HALF, sized(16, 24), "has hidden sizes 16 to 24, 12 to 24 are needed"),
        (
            Probe(step=12, smallest=1, largest=1.5),
            sized(8, 24),
            "has hidden sizes 8 to 24, 24 to 36 are needed",
        ),
    ],
)
def test_a_table_of_too_few_sizes_is_measured_anew(
    folder: Path, tmp_path: Path, probe: Probe, short: LatencyTable, needed: str
) -> None:
    whole = sized(8, 24, 48, precision="int8")
    tables, notes = probed(folder, tmp_path, probe, tables=(short, whole))
    by_precision = {item.precision: item.dimensions for item in tables}
    assert by_precision == {"f32": tuple(grid(24, 12, probe.smallest, probe.largest)), "int8": (8, 24, 48)}
    assert any("onnxruntime f32, was not used for" in note and needed in note for note in notes)
    assert any("is of onnxruntime 1" in note for note in notes), "the other one was used"


def test_of_two_tables_of_one_kind_the_other_is_told(folder: Path, tmp_path: Path) -> None:
    both = (sized(16, 24), sized(8, 24), sized(8, 16, 24), sized(8, 24, precision="int8"))
    tables, notes = probed(folder, tmp_path, tables=both)
    assert [(item.precision, item.dimensions) for item in tables] == [("f32", (8, 24)), ("int8", (8, 24))]
    assert len([note for note in notes if "another one that was given comes first" in note]) == 1


def test_the_shell_s_table_fits_the_threads_of_another_call(tmp_path: Path) -> None:
    """`lstmopt optimize --threads 2` can be given what `lstmopt probe --threads 2` has measured."""
    (tmp_path / "short.toml").write_text(
        'name = "short"\nthreads = 1\nruntimes = [{runtime = "onnxruntime", precisions = ["f32"]}]\n'
        "shapes = [{batch = 1, sequence = 5}]\n"
    )
    model = classifier(tmp_path / "model.onnx")
    result = call("probe", model, "--target", tmp_path / "short.toml", "--threads", 2, "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "at its own size" in result.stdout
    (path,) = (tmp_path / "out").glob("*.json")
    (layer,) = model_layers(load_model(model), "model")
    tables = (LatencyTable.load(path),)
    assert fitting(tables, layer, SHORT.model_copy(update={"threads": 2}))
    assert not fitting(tables, layer, SHORT)
