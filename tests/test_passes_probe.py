"""The probe as a stage: what is measured, what was given, and what could not win."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lstmopt.errors import LstmoptError
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.measure.kind import Kind
from lstmopt.measure.table import LatencyTable
from lstmopt.passes.export import Export
from lstmopt.passes.kinds import asked_kinds, usable_kinds
from lstmopt.passes.latency import fitting
from lstmopt.passes.peers import Peers
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
        load_model(folder / "model.onnx"), workdir / "run", data=data,
        progress=lambda text, fraction: told.append(text), **{"target": SHORT, **changes},
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


MIXED = SHORT.model_copy(
    update={
        "runtimes": (
            RuntimeTarget(runtime="onnxruntime", precisions=("f32", "sparse-i8")),
            RuntimeTarget(runtime="openvino", precisions=("f32", "sparse-i8-shared")),
        ),
        "patterns": ("bank64:step4", "gate-shared64:step4"),
    }
)
I8 = Kind("onnxruntime", "sparse-i8", "bank64:step4", 0.125)
SHARED = Kind("openvino", "sparse-i8-shared", "gate-shared64:step4", 0.125)


def test_what_is_asked_for_is_each_format_with_the_patterns_that_suit_it() -> None:
    dense = [Kind("onnxruntime", "f32"), Kind("openvino", "f32")]
    assert asked_kinds(MIXED, None, (0.125,)) == [dense[0], I8, dense[1], SHARED]
    assert set(asked_kinds(MIXED, None, (0.125, 0.25, 0.25))) == {
        *dense, I8, SHARED, I8._replace(density=0.25), SHARED._replace(density=0.25),
    }  # fmt: skip
    free = [I8._replace(pattern="unstructured"), SHARED._replace(pattern="unstructured")]
    assert set(asked_kinds(MIXED, ("unstructured",), (0.125,))) == {*dense, *free}
    assert asked_kinds(MIXED, ("bank32",), (0.125,)) == dense == asked_kinds(MIXED, (), (0.125,))
    assert asked_kinds(MIXED, None, (3.1 / 100,))[1].density == 0.031
    assert [kind for kind in usable_kinds([*dense, I8, SHARED]) if kind.density < 1] == [I8, SHARED]


@pytest.fixture(scope="module")
def mixed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[LatencyTable, ...]]:
    """A run of the stage, and its tables."""
    workdir = tmp_path_factory.mktemp("mixed")
    return workdir, probed(folder, workdir, target=MIXED)[0]


def test_sparse_layers_are_measured_by_pattern_and_density(
    folder: Path, mixed: tuple[Path, tuple[LatencyTable, ...]]
) -> None:
    workdir, tables = mixed
    assert {item.kind for item in tables} == set(asked_kinds(MIXED, None, (0.125,)))
    assert all(item.dimensions == (12, 24) and item.sequence == 5 for item in tables)
    again, notes = probed(folder, workdir, target=MIXED)
    assert again == tables and not [note for note in notes if note.startswith("probe ")]
    # Another density is another measurement: nothing of the cache is taken for it.
    denser, notes = probed(folder, workdir, replace(HALF, densities=(0.5,)), target=MIXED)
    assert {item.density for item in denser} == {1.0, 0.5}
    assert len([note for note in notes if note.startswith("probe ")]) == 2


def test_a_table_of_another_density_is_not_used(
    folder: Path, mixed: tuple[Path, tuple[LatencyTable, ...]]
) -> None:
    workdir, tables = mixed
    axes = {"precision": "sparse-i8", "pattern": "bank64:step4"}
    wrong, right = given(**axes, density=0.25), given(**axes, density=0.125)
    found, notes = probed(folder, workdir, target=MIXED, tables=(wrong,))
    assert found == tables
    assert any("bank64:step4 at 25%, was not used" in note and "not asked for" in note for note in notes)
    found, _ = probed(folder, workdir, target=MIXED, tables=(wrong, right))
    assert [item.curve == right.curve for item in found if item.kind == I8] == [True]


@pytest.mark.deep
def test_a_sparse_layer_that_alone_takes_longer_than_the_best_peer_is_left_out(
    folder: Path, tmp_path: Path
) -> None:
    """Dense peers say nothing about the ops: how they compare is measured, at the smallest size."""
    alone = MIXED.model_copy(
        update={"runtimes": (RuntimeTarget(runtime="onnxruntime", precisions=("sparse-i8",)),)}
    )
    tables, notes = probed(folder, tmp_path, target=alone, peers=(peer(1e-3),))
    assert not tables
    assert any(f"{I8.title} was not probed" in note and "with 12 units" in note for note in notes)
    tables, notes = probed(folder, tmp_path, target=alone, peers=(peer(1e6),))
    assert [item.kind for item in tables] == [I8] and not any("not probed" in note for note in notes)


def test_faults_of_the_stage_s_axes_are_told() -> None:
    for densities in ((0.0,), (0.5, 1.5)):
        with pytest.raises(LstmoptError, match="not within 0..1"):
            Probe(densities=densities)
    with pytest.raises(LstmoptError, match="'bank': is unknown"):
        Probe(patterns=("bank",))
    with pytest.raises(LstmoptError, match="0 is below 1"):
        Probe(step=0)
    for bounds in ({"smallest": 2}, {"smallest": 0.0}, {"largest": float("nan")}):
        with pytest.raises(LstmoptError, match="no bounds"):
            Probe(**bounds)
    with pytest.raises(LstmoptError, match="0 is below 1"):
        Peers(rounds=0)
    with pytest.raises(LstmoptError, match="0 is below 1"):
        Export(rounds=0)


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
    (layer,) = model_layers(load_model(model), "model", SHORT)
    tables = (LatencyTable.load(path),)
    assert fitting(tables, layer, SHORT.model_copy(update={"threads": 2}))
    assert not fitting(tables, layer, SHORT)


@pytest.mark.deep
@pytest.mark.parametrize("sparse", [True, False])
def test_the_shell_s_axes(tmp_path: Path, sparse: bool) -> None:
    """Each density of a pattern is a table and a picture of its own; without formats they are refused."""
    precisions = '["f32", "sparse-i8"]' if sparse else '["f32"]'
    (tmp_path / "short.toml").write_text(
        f'name = "short"\nruntimes = [{{runtime = "onnxruntime", precisions = {precisions}}}]\n'
        "shapes = [{batch = 1, sequence = 5}]\n"
    )
    options = ["--pattern", "bank64:step4", "--density", "6.25%", "--density", 0.5, "--json"]
    where = ["--target", tmp_path / "short.toml", "-o", tmp_path / "out"]
    result = call("probe", "--hidden-size", 24, "--step", 24, *options, *where)
    if not sparse:
        assert result.returncode == 2 and "no sparse precision of target short" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert [(row["precision"], row["pattern"], row["density"]) for row in rows] == [
        ("f32", "dense", 1.0), ("sparse-i8", "bank64:step4", 0.0625), ("sparse-i8", "bank64:step4", 0.5),
    ]  # fmt: skip
    assert [Path(row["table"]).name for row in rows] == [
        "bare-24-onnxruntime-f32.json",
        "bare-24-onnxruntime-sparse-i8-bank64-step4-0.0625.json",
        "bare-24-onnxruntime-sparse-i8-bank64-step4-0.5.json",
    ]
    for row in rows:
        assert LatencyTable.load(Path(row["table"])).density == row["density"]
        assert Path(row["picture"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options", [("--density", 0), ("--density", "101%"), ("--pattern", "bank")])
def test_the_shell_refuses_axes_that_make_no_sense(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = call("probe", "--hidden-size", 24, *options, "-o", tmp_path / "out")
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1, result.stderr
