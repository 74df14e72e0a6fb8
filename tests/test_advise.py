"""`advise` measures every option and names what to type for it; nothing is written."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.advise import compared
from lstmopt.measure import Comparison, Ratio
from lstmopt.measure.fingerprint import available_cores
from lstmopt.measure.statistics import Spread, Timing
from lstmopt.passes.advice import Advice
from lstmopt.passes.advise import Commands, Variant, _errors, advise, rated, smaller_sizes, variants
from lstmopt.passes.candidates import Built
from lstmopt.passes.convert import export_model
from lstmopt.precision import is_sparse
from lstmopt.reference.char_lm import model_path
from lstmopt.report.schema import Manifest
from lstmopt.rnn.files import load_model
from lstmopt.rnn.groups import UnitGroup
from lstmopt.runtimes import RUNTIMES, Deployment
from lstmopt.targets import RuntimeTarget, Shape, Target
from tests.real_models import silero_vad
from tests.test_cli_errors import call, classifier, examples

SPARSE = {f"{factor}x fewer LSTM or GRU weights" for factor in (4, 8, 16)}

TARGET = """
name = "mine"
shapes = [{ batch = 2, sequence = 6 }]
[[runtimes]]
runtime = "onnxruntime"
precisions = ["f32"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("advise")
    classifier(path / "model.onnx", 32)
    (path / "target.toml").write_text(TARGET)
    return path


@pytest.fixture(scope="module")
def advice(folder: Path) -> Advice:
    result = call("advise", folder / "model.onnx", "--target", folder / "target.toml", "--json")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "target.toml"]
    return Advice.model_validate_json(result.stdout)


def test_every_option_is_measured(advice: Advice) -> None:
    measured = {(option.name, option.precision) for option in advice.options}
    names = {"as it is", "static shapes", "hidden sizes 24", "hidden sizes 16"}
    assert measured == {(name, "f32") for name in names}
    latencies = [option.latency_us for option in advice.options]
    assert latencies == sorted(latencies) and min(latencies) > 0
    for option in advice.options:
        assert 0 < option.low <= option.speedup <= option.high
        assert option.training == option.name.startswith("hidden sizes")
        assert (option.error is None) == option.training
        assert option.error is None or option.error < 1e-5
    assert advice.calls == "x [6, 2, 4]"
    threads = {option.threads for option in advice.options if option.name == "as it is"}
    assert threads == {1, len(available_cores())}


def simulated(**latencies: float) -> Comparison:
    """A comparison of runtimes that take exactly so many microseconds for the model as it is."""
    return Comparison(
        rounds={f"as it is/{name}/f32": [np.full(3, value)] * 4 for name, value in latencies.items()},
        aa=Ratio(value=1.0, low=1.0, high=1.0), discarded=0, kept_interrupted=False, processes=2,
        apart=Spread(0.0, 3),
    )  # fmt: skip


def variant(*runtimes: str) -> Variant:
    deployments = tuple(
        Deployment(runtime=name, file=Path("model.onnx"), precision="f32") for name in runtimes
    )
    built = Built("as it is", load_model(model_path()), deployments, ())
    return Variant("as it is", built, False, Commands(Path("m.onnx"), ("--target", "mine")).export())


def test_speeds_are_over_the_model_as_it_is_in_onnx_runtime() -> None:
    comparison = simulated(openvino=50.0, onnxruntime=100.0)
    rows = rated([variant("openvino", "onnxruntime")], comparison, threads=1)
    speeds = {row.runtime: (row.latency_us, row.speedup) for row in rows}
    assert speeds["openvino"] == pytest.approx((50.0, 2.0))
    assert speeds["onnxruntime"] == pytest.approx((100.0, 1.0))
    # Without ONNX Runtime, over the first one; measured with more threads, over the latency that is given.
    (alone,) = rated([variant("openvino")], simulated(openvino=50.0), threads=1)
    assert alone.speedup == pytest.approx(1.0)
    wide = rated(
        [variant("openvino", "onnxruntime")],
        simulated(openvino=25.0, onnxruntime=40.0),
        2,
        Timing(median=100.0, p10=90, p90=130, p99=150, low=90.0, high=110.0, samples=9),
    )
    assert [row.speedup for row in wide] == pytest.approx([4.0, 2.5])
    assert [(row.low, row.high) for row in wide] == [
        pytest.approx(each) for each in ((3.6, 4.4), (2.25, 2.75))
    ]


def test_sizes_are_tried_once_and_never_the_model_s_own() -> None:
    def sizes(*hidden: int) -> list[list[int]]:
        groups = [
            UnitGroup(layers=(f"layer {i}",), hidden_size=size, bundles=(), members=(), pinned=None,
                      exact=True, readers=(), interface=())
            for i, size in enumerate(hidden)
        ]  # fmt: skip
        return [list(found.values()) for found in smaller_sizes(groups).values()]

    assert sizes(392) == [[288], [192]]
    assert sizes(16) == [[8]]
    assert sizes(10) == [[7], [5]]
    assert sizes(2) == [[1]]
    assert sizes(1) == []
    assert sizes(16, 64) == [[8, 48], [8, 32]]


@pytest.mark.deep
@pytest.mark.parametrize("hidden", [16, 1])
def test_small_layers(hidden: int, folder: Path, tmp_path: Path) -> None:
    model = classifier(tmp_path / "small.onnx", hidden)
    result = call("advise", model, "--target", folder / "target.toml", "--json")
    assert result.returncode == 0, result.stderr
    names = [option.name for option in Advice.model_validate_json(result.stdout).options]
    assert names.count("hidden sizes 8") == (hidden == 16)
    assert all(name in ("as it is", "static shapes", "hidden sizes 8") for name in names)


def test_the_command_of_an_option_does_what_it_says(folder: Path, advice: Advice, tmp_path: Path) -> None:
    for index, option in enumerate(advice.options):
        program, verb, *arguments = shlex.split(option.command)
        assert program == "lstmopt" and arguments[-1] == "DIR"
        output = tmp_path / str(index)
        arguments[-1] = str(output)
        if option.training:
            arguments.remove("--data")
            arguments.remove("DATA")
            result = call(verb, *arguments, "--dry-run")
            share = {"hidden sizes 24": "0.75", "hidden sizes 16": "0.5"}[option.name]
            assert result.returncode == 0, result.stderr
            assert f"scales=({share},)" in "".join(result.stdout.split()) and "mine" in result.stdout
            continue
        result = call(verb, *arguments)
        assert result.returncode == 0, result.stderr
        manifest = Manifest.load(output / "manifest.json")
        (entry,) = manifest.deployments(output)
        assert (entry.precision, manifest.threads) == (option.precision, option.threads)
        static = all(isinstance(size, int) for size in entry.input_shapes["x"])
        assert static == (option.name == "static shapes")
        assert not static or entry.input_shapes["x"] == (6, 2, 4)
        onnx.checker.check_model(onnx.load(entry.file))


@pytest.mark.deep
def test_with_data_the_error_is_the_degradation(folder: Path, tmp_path: Path) -> None:
    target = Target(
        name="one",
        runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32", "int8")),),
        shapes=(Shape(batch=1, sequence=6),),
    )
    data = examples(tmp_path / "data.npz", 60)
    told: list[str] = []
    result = advise(
        folder / "model.onnx", target=target, data=data, progress=lambda text, fraction: told.append(text)
    )
    assert result.error == "degradation" and any("evaluating" in text for text in told)
    assert any("at most 256 examples of the validation data" in note for note in result.notes)
    errors = {
        option.precision: option.error
        for option in result.options
        if option.name == "as it is" and option.threads == 1
    }
    assert errors["f32"] == 0.0
    assert errors["int8"] is not None and np.isfinite(errors["int8"]) and errors["int8"] != 0.0


def test_without_data_the_error_is_the_one_of_export(folder: Path, tmp_path: Path) -> None:
    target = Target(
        name="one",
        runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32", "int8")),),
        shapes=(Shape(batch=2, sequence=6),),
    )
    path = folder / "model.onnx"
    original, commands = load_model(path), Commands(path, ("--target", "one"))

    def silent(text: str, fraction: float) -> None:
        pass

    found = list(variants(original, target, tmp_path / "built", [], commands))
    errors, _ = _errors(found, original, target, None, 0, [], silent)
    exported = export_model(
        path, runtime="onnxruntime", precision="int8", target=target, output=tmp_path / "out", progress=silent
    )
    assert errors[("as it is", "onnxruntime", "int8")] == pytest.approx(exported.error, rel=1e-6) != 0


def test_what_a_runtime_does_not_run_is_said_once(folder: Path) -> None:
    target = Target(
        name="one",
        runtimes=(RuntimeTarget(runtime="openvino", precisions=("f32", "int8")),),
        shapes=(Shape(batch=2, sequence=6),),
    )
    notes = advise(folder / "model.onnx", target=target).notes
    assert sum(note.startswith("openvino") and "int8" in note for note in notes) == 1, notes


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    result = call("advise", tmp_path / "m.onnx")
    assert result.returncode == 2 and "not an ONNX file" in result.stderr


@pytest.mark.deep
def test_a_real_model_with_branches_is_advised_on() -> None:
    result = advise(silero_vad("silero_vad.onnx"))
    assert {"openvino", "onnxruntime"} == {option.runtime for option in result.options}
    dense = [option for option in result.options if not option.training]
    assert all(option.error is not None for option in dense if option.threads == 1)
    for option in dense:
        if option.precision == "f32" and option.threads == 1:
            assert option.error is not None and option.error < 1e-4
    # Its layers lie in If branches: pruned there, and never resized.
    assert {option.name for option in result.options if option.training} == SPARSE
    assert any("no layer of this model can be resized" in note for note in result.notes)


@pytest.mark.deep
def test_the_reference_model_is_advised_on() -> None:
    result = advise(model_path())
    names = ("as it is", "static shapes", "hidden sizes 288, 288", "hidden sizes 192, 192")
    known = {(item.name, precision) for item in RUNTIMES for precision in item.precisions()}
    dense = {(engine, precision) for engine, precision in known if not is_sparse(precision)}

    def measured(name: str) -> set[tuple[str, str]]:
        return {(o.runtime, o.precision) for o in result.options if o.name == name and o.threads == 1}

    for name in names:
        assert measured(name) == dense
    # Of the sparse precisions the one that allows most, in each runtime whose ops were built.
    sparse = {(engine, "sparse-i8") for engine, precision in known if precision == "sparse-i8"}
    assert sparse
    for title in SPARSE:
        assert measured(title) == sparse
    assert result.calls.startswith("tokens [35, 1]")
    for option in result.options:
        assert (option.error is None) == option.training
        if option.error is not None:
            assert option.error < (1e-4 if option.precision == "f32" else 0.2)


@pytest.mark.deep
def test_what_advise_foretells_is_compared_with_the_built_models() -> None:
    """That it is right is for a quiet machine to say: `python -m benchmarks.advise`."""
    outcome = compared(model_path(), rounds=5)
    dense = [item for item in outcome.predictions if not is_sparse(item.option.precision)]
    assert len({item.option.name for item in dense}) == 4
    assert {item.option.name for item in outcome.predictions} - {item.option.name for item in dense} == SPARSE
    assert all(0 < item.latency < 100 and 0 < item.speed < 100 for item in outcome.predictions)
