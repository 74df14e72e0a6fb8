"""Every fault of the user is one clear line and the right exit code, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.files import save_model
from lstmopt.rnn.weights import RnnWeights
from lstmopt.rnn.writer import rnn_model

QUICK = str(Path(__file__).with_name("quick.py"))


def call(
    *arguments: object, timeout: float = 120, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    measures = arguments and arguments[0] in ("optimize", "advise", "bench", "probe", "export", "verify")
    program = [QUICK, "lstmopt.cli"] if measures else ["-m", "lstmopt.cli"]
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, cwd=cwd,
    )  # fmt: skip


def refused(result: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == code, result.stderr
    assert len(lines) == 1 and result.stderr.rstrip().endswith(lines[0]), result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0], lines[0]


def weights(hidden: int = 8, inputs: int = 4) -> RnnWeights:
    rng = np.random.default_rng(0)
    shape = (1, 4, hidden)
    return RnnWeights(
        cell=LSTM, direction="forward",
        w=rng.standard_normal((*shape, inputs)).astype(np.float32) / 4,
        r=rng.standard_normal((*shape, hidden)).astype(np.float32) / 4,
        b=np.zeros((1, 2, 4, hidden), np.float32),
    )  # fmt: skip


def classifier(path: Path, hidden: int = 8, poison: bool = False) -> Path:
    """An LSTM over x [sequence, batch, 4] with a linear output of its last state, 3 classes."""
    model = rnn_model(weights(hidden), states=False)
    save_model(model, path)
    proto = onnx.load(path)
    rng = np.random.default_rng(1)
    proto.graph.node[0].output.extend(["h_last"])
    proto.graph.node.append(helper.make_node("Squeeze", ["h_last", "axis0"], ["h2"]))
    proto.graph.node.append(helper.make_node("MatMul", ["h2", "decoder"], ["scores"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "axis0"))
    decoder = rng.standard_normal((hidden, 3)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(decoder, "decoder"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3]))
    if poison:
        for tensor in proto.graph.initializer:
            if tensor.name == "R":
                array = numpy_helper.to_array(tensor).copy()
                array[0, 0, 0] = np.nan
                tensor.CopyFrom(numpy_helper.from_array(array, "R"))
    onnx.save(proto, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return classifier(tmp_path / "model.onnx")


def examples(path: Path, count: int = 40, **changes: object) -> Path:
    rng = np.random.default_rng(2)
    arrays: dict[str, object] = {
        "x": rng.standard_normal((count, 6, 4)).astype(np.float32),
        "labels": rng.integers(0, 3, count),
    }
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]
    return path


def test_not_onnx(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"this is no model" * 100)
    refused(call("optimize", path, "-o", tmp_path / "out"), "m.onnx", "not an ONNX file")
    assert not (tmp_path / "out").exists()


def test_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    refused(call("inspect", tmp_path / "m.onnx"), "empty")
    refused(call("inspect", tmp_path / "none.onnx"), "no such file")


def test_truncated(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    refused(call("optimize", path, "-o", tmp_path / "out"), "cut.onnx")


def test_no_lstm(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )  # fmt: skip
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    refused(call("optimize", path, "-o", tmp_path / "out"), "no LSTM or GRU node")
    refused(call("advise", path), "relu.onnx", "no LSTM or GRU node")
    assert call("inspect", path).returncode == 0


def test_nan_weights(tmp_path: Path) -> None:
    path = classifier(tmp_path / "nan.onnx", poison=True)
    refused(call("optimize", path, "-o", tmp_path / "out"), "tensor 'R'", "NaN")


def test_external_data(tmp_path: Path, model: Path) -> None:
    proto = onnx.load(model)
    onnx.save(proto, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    assert call("inspect", tmp_path / "e.onnx").returncode == 0
    (tmp_path / "e.data").rename(tmp_path / "gone.data")
    refused(call("inspect", tmp_path / "e.onnx"), "e.data", "missing")


def test_external_data_outside(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    proto = onnx.load(model)
    onnx.save(proto, folder / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    proto = onnx.load(folder / "e.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../e.data"
    (folder / "e.onnx").write_bytes(proto.SerializeToString())
    (folder / "e.data").rename(tmp_path / "e.data")
    refused(call("inspect", folder / "e.onnx"), "outside")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": None, "y": np.zeros((40, 6, 4), np.float32)}, ("array y", "no such input")),
        ({"x": None}, ("no array 'x'",)),
        ({"x": np.zeros((40, 6, 5), np.float32)}, ("array x", "shape")),
        ({"x": np.zeros((40, 6, 4), np.complex64)}, ("array x", "type")),
        ({"x": np.full((40, 6, 4), np.nan, np.float32)}, ("array x", "NaN")),
        ({"x": np.zeros((0, 6, 4), np.float32)}, ("array x", "empty")),
        ({"labels": np.zeros(39, np.int64)}, ("labels", "39")),
    ],
)
def test_data_that_do_not_fit(
    tmp_path: Path, model: Path, changes: dict[str, object], words: tuple[str, ...]
) -> None:
    data = examples(tmp_path / "data.npz", **changes)
    refused(call("optimize", model, "--data", data, "-o", tmp_path / "out"), *words)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_data_that_are_no_npz(tmp_path: Path, model: Path) -> None:
    (tmp_path / "data.npz").write_bytes(b"nothing")
    refused(call("optimize", model, "--data", tmp_path / "data.npz", "-o", tmp_path / "out"), "data.npz")


def test_token_outside_the_vocabulary(tmp_path: Path) -> None:
    from lstmopt.reference.char_lm import VOCABULARY, model_path

    np.savez(tmp_path / "d.npz", tokens=np.full(20_000, VOCABULARY))
    refused(
        call("optimize", model_path(), "--data", tmp_path / "d.npz", "-o", tmp_path / "out"),
        f"token {VOCABULARY}", "vocabulary",
    )  # fmt: skip


def test_unknown_target_and_options(tmp_path: Path, model: Path) -> None:
    refused(call("optimize", model, "--target", "toaster", "-o", tmp_path / "out"), "unknown target")
    refused(call("optimize", model, "--no-such-option"), "no-such-option")
    refused(call("optimize", model, "--max-degradation", "little"), "little")
    refused(call("optimize", model, "--budget", "10m", "--steps", "5"), "exclude")
    refused(call("optimize", model, "--budget", "0s"), "--budget", "10m")
    for scale, mend in (("75", "write 75%"), ("0%", "such as 75%")):
        refused(call("optimize", model, "--scale", scale), "--scale", mend)
    refused(call("bench", model, "--threads", "0"), "--threads")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("taget = 'xeon'", ("taget",)),
        ("this is = not [toml", ("c.toml",)),
        ("seed = [1]", ("c.toml", "seed = [1]", "a whole number")),
        ("seed = true", ("c.toml", "seed", "a whole number")),
        ("seed = 1.5", ("c.toml", "seed", "a whole number")),
        ("output = 5", ("c.toml", "output = 5", "text")),
        ("trained = 3", ("c.toml", "trained", "text")),
        ("fresh = 'yes'", ("c.toml", "fresh", "true or false")),
        ("compression = '4x'", ("c.toml", "compression", "a number")),
        ("shape = [['x', 5]]", ("c.toml", "shape", "text")),
        ("shape = [[1]]", ("c.toml", "shape", "text")),
        ("shape = [5]", ("c.toml", "shape", "text")),
        ("shape = 'x:5'", ("shape", "input=1x576")),
        ("scale = [[0.5]]", ("c.toml", "scale", "a number")),
        ("budget = -5", ("budget", "10m")),
        ("budget = nan", ("budget", "10m")),
    ],
)
def test_bad_config(tmp_path: Path, model: Path, line: str, words: tuple[str, ...]) -> None:
    (tmp_path / "c.toml").write_text(f"{line}\n")
    refused(call("optimize", model, "--config", tmp_path / "c.toml", "--dry-run"), *words)


def test_files_that_are_not_utf8(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes("name = 'Gerät'\n".encode("latin-1"))
    refused(call("optimize", model, "--target", path, "-o", tmp_path / "out"), "mine.toml", "UTF-8")
    refused(call("optimize", model, "--config", path, "-o", tmp_path / "out"), "mine.toml")


def test_a_data_function_that_raises(tmp_path: Path, model: Path) -> None:
    (tmp_path / "broken_data.py").write_text("def make():\n    raise RuntimeError('no such table')\n")
    result = call("optimize", model, "--data", "broken_data:make", "-o", tmp_path / "out", cwd=tmp_path)
    refused(result, "broken_data:make", "RuntimeError: no such table")


def test_a_share_that_could_be_a_percentage(tmp_path: Path, model: Path) -> None:
    refused(call("optimize", model, "--max-degradation", "2", "--dry-run"), "2%", "200%")
    (tmp_path / "c.toml").write_text("max-degradation = 2\n")
    refused(call("optimize", model, "--config", tmp_path / "c.toml", "--dry-run"), "2%", "200%")
    saved = tmp_path / "saved.toml"
    first = call("optimize", model, "--max-degradation", "200%", "--dry-run", "--save-config", saved)
    second = call("optimize", model, "--config", saved, "--dry-run")
    assert first.returncode == second.returncode == 0, second.stderr
    assert first.stdout == second.stdout and "200.00%" in second.stdout
    assert "0.50%" in call("optimize", model, "--max-degradation", "0.005", "--dry-run").stdout


def test_no_command_shows_the_help() -> None:
    result = call()
    assert result.returncode == 0 and "error" not in result.stderr
    assert "Commands:" in result.stdout and "optimize" in result.stdout
    refused(call("no-such-command"), "no-such-command")


@pytest.mark.parametrize(("verb", "goes_on"), [("optimize", True), ("export", False)])
def test_a_call_that_is_told_twice_to_end(verb: str, goes_on: bool) -> None:
    """As `timeout` does; the second time while Python is leaving."""
    program = (
        "import atexit, os, signal, sys; from lstmopt import cli\n"
        "def end(**options): os.kill(os.getpid(), signal.SIGTERM)\n"
        f"sys.argv, cli.cli.main = ['lstmopt', '{verb}'], end\n"
        "atexit.register(end)\n"
        "cli.main()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    refused(result, "interrupted")
    assert result.stderr.count("\n") == 1
    assert ("goes on where it stopped" in result.stderr) == goes_on


def test_output_that_cannot_be_written(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(call("optimize", model, "-o", tmp_path / "file"), "file")
    assert (tmp_path / "file").read_text() == "mine"
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    refused(call("optimize", model, "-o", folder), "thesis.txt")
    assert sorted(os.listdir(folder)) == ["thesis.txt"]


def test_dry_run_changes_nothing(tmp_path: Path, model: Path) -> None:
    data = examples(tmp_path / "data.npz")
    result = call("optimize", model, "--data", data, "--budget", "2m", "-o", tmp_path / "out", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "classify" in result.stdout and "all training ends after 120 s" in result.stdout
    # Settings that are the defaults are not shown.
    assert "BackOff" in result.stdout and "learning_rate" not in result.stdout
    assert not (tmp_path / "out").exists()


def test_saved_config_repeats_the_call(tmp_path: Path, model: Path) -> None:
    saved = tmp_path / "saved.toml"
    first = call(
        "optimize", model, "--max-degradation", "3%", "--seed", 7, "--dry-run", "--save-config", saved
    )
    assert first.returncode == 0, first.stderr
    second = call("optimize", model, "--config", saved, "--dry-run")
    assert second.stdout == first.stdout
    assert "3.00%" in second.stdout and "seed 7" in second.stdout


def test_a_config_names_options_as_the_shell_does(tmp_path: Path, model: Path) -> None:
    for scale in ("'75%'", "0.75", "[0.75]"):
        (tmp_path / "c.toml").write_text(f"scale = {scale}\nsteps = 20\n")
        result = call("optimize", model, "--config", tmp_path / "c.toml", "--dry-run")
        assert result.returncode == 0, result.stderr
        assert "scales=(0.75,)" in "".join(result.stdout.split())


def test_what_was_trained_before_is_not_asked_to_be_trained(tmp_path: Path, model: Path) -> None:
    refused(
        call("optimize", model, "--trained", model, "--scale", "75%", "--dry-run"), "--scale", "--trained"
    )
    saved = tmp_path / "saved.toml"
    first = call("optimize", model, "--trained", model, "--dry-run", "--save-config", saved)
    assert first.returncode == 0, first.stderr
    second = call("optimize", model, "--config", saved, "--dry-run")
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout


@pytest.mark.parametrize(
    ("runtime", "precision", "word"), [("onnxruntime", "int8", "f32"), ("tflite", "f32", "tflite")]
)
def test_a_target_that_nothing_can_be_compared_on(
    tmp_path: Path, model: Path, runtime: str, precision: str, word: str
) -> None:
    target = tmp_path / "mine.toml"
    target.write_text(f"name = 'mine'\n[[runtimes]]\nruntime = '{runtime}'\nprecisions = ['{precision}']\n")
    refused(call("optimize", model, "--target", target, "-o", tmp_path / "out"), word)
    assert not (tmp_path / "out").exists()


def test_a_trained_model_is_checked_before_anything_is_measured(tmp_path: Path, model: Path) -> None:
    data = examples(tmp_path / "data.npz")
    (tmp_path / "garbage.onnx").write_bytes(b"PK nothing")
    fixed = onnx.load(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 48
    onnx.save(fixed, tmp_path / "fixed.onnx")
    for name, *words in (
        ("garbage.onnx", "garbage.onnx", "not an ONNX file"),
        ("data.npz", "data.npz", "not an ONNX file"),
        (".", "is a folder", "name the .onnx file"),
        ("none.onnx", "none.onnx", "no such file"),
        ("fixed.onnx", "fixed.onnx", "input x is [48, any, 4], that of model.onnx [any, any, 4]"),
    ):
        for further in ((), ("--dry-run",)):
            result = call(
                "optimize",
                model,
                "--data",
                data,
                "--trained",
                tmp_path / name,
                "-o",
                tmp_path / "o",
                *further,
            )
            refused(result, *words)
            assert "measuring" not in result.stderr


def test_validation_data_alone_are_refused(tmp_path: Path, model: Path) -> None:
    data = examples(tmp_path / "data.npz")
    for option in ("--val", "--test"):
        for further in ((), ("--dry-run",)):
            refused(call("optimize", model, option, data, "-o", tmp_path / "o", *further), option, "--data")


def test_advise_checks_its_data_first(tmp_path: Path, model: Path) -> None:
    result = call("advise", model, "--data", tmp_path / "none.npz")
    refused(result, "none.npz", "no such file")
    assert "measuring" not in result.stderr


def test_weights_that_do_not_fit_are_named_by_their_own_input(tmp_path: Path, model: Path) -> None:
    proto = onnx.load(model)
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name.endswith("R"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[..., :-1], tensor.name))
    onnx.save(proto, model)
    refused(call("inspect", model), "input R", "(1, 32, 7), expected (1, 32, 8)")


def test_the_clock_of_a_stage_goes_on_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.progress import Progress

    from lstmopt.cli import progress_shown

    seen: list[Progress] = []
    start = Progress.start
    monkeypatch.setattr(Progress, "start", lambda self: (seen.append(self), start(self))[1])
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with progress_shown() as progress:
        progress("a stage: done, and a text that is longer than a line of the terminal " * 2, 1.0)
        (task,) = seen[0].tasks
        assert not task.finished and len(task.description) < 60
