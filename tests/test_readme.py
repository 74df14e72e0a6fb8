"""What README.md shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmopt
from lstmopt import runtimes
from lstmopt.errors import LstmoptError
from lstmopt.measure.bare import random_layer
from lstmopt.passes import Export, Simplify
from lstmopt.passes.convert import export_model
from lstmopt.report.schema import Manifest
from lstmopt.rnn.cells import LSTM
from lstmopt.rnn.examples import axis_roles
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import require_rnns
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import open_session
from tests.ops import error, needs_ops
from tests.test_sparse_export import sparse_layer

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(word: str) -> str:
    """The only block of Python that holds a word."""
    (found,) = (text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in text)
    return str(found)


@needs_ops
@pytest.mark.parametrize(
    ("name", "word"), [("onnxruntime", "register_custom_ops_library"), ("openvino", "add_extension")]
)
def test_an_export_with_sparse_ops_is_loaded_without_lstmopt(
    name: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rnn_model(sparse_layer(128, 0.06), states=False)
    save_model(model, tmp_path / "pruned.onnx")
    made = export_model(
        tmp_path / "pruned.onnx", runtime=name, precision="sparse-i8", target="local",
        output=tmp_path / "artifact", progress=lambda text, fraction: None,
    )  # fmt: skip
    assert made.deployment.libraries
    monkeypatch.chdir(tmp_path)
    there: dict[str, Any] = {}
    exec(block(word), there)
    feeds = {"x": np.random.default_rng(0).standard_normal((7, 1, 128)).astype(np.float32)}
    run = there["session"].run if name == "onnxruntime" else lambda _, feeds: there["model"](feeds)
    outputs = run(None, feeds)
    (expected, *_) = run_model(model, feeds).values()
    assert error(outputs[0], expected) < 0.02
    for runtime in (None, name):
        (own,) = lstmopt.open_artifact("artifact", runtime=runtime).run(feeds).values()
        np.testing.assert_allclose(own, outputs[0], atol=1e-6)
    with pytest.raises(LstmoptError, match="artifact: holds no file for cudnn; name another"):
        lstmopt.open_artifact("artifact", runtime="cudnn")


def test_an_artifact_of_another_machine_is_told(tmp_path: Path) -> None:
    save_model(rnn_model(sparse_layer(16, 0.5), states=False), tmp_path / "m.onnx")
    export_model(
        tmp_path / "m.onnx", runtime="tensorrt", precision="f16", target="nvidia",
        output=tmp_path / "artifact", progress=lambda text, fraction: None,
    )  # fmt: skip
    if not runtimes.runtime("tensorrt").status().usable:
        with pytest.raises(LstmoptError, match="artifact: tensorrt: .*; name another runtime, or install"):
            lstmopt.open_artifact(tmp_path / "artifact")
    with pytest.raises(LstmoptError, match="manifest.json"):
        lstmopt.open_artifact(tmp_path)


def test_the_next_file_is_opened_where_the_best_does_not_load(tmp_path: Path) -> None:
    save_model(rnn_model(random_layer(LSTM, 16, 16, 1, 0), states=False), tmp_path / "m.onnx")
    shipped = lstmopt.Pipeline(Simplify(), Export(5)).run(
        tmp_path / "m.onnx", target="local", output=tmp_path / "artifact"
    )
    assert shipped.report is not None
    best, other = Manifest.load(tmp_path / "artifact/manifest.json").deployments(tmp_path / "artifact")[:2]
    best.file.write_bytes(b"")
    session = lstmopt.open_artifact(tmp_path / "artifact")
    assert type(session) is type(open_session(other, 1))
    other.file.write_bytes(b"")
    for item in Manifest.load(tmp_path / "artifact/manifest.json").deployments(tmp_path / "artifact"):
        item.file.write_bytes(b"")
    with pytest.raises(LstmoptError, match=f"{best.runtime} {best.precision}: .*{other.runtime}"):
        lstmopt.open_artifact(tmp_path / "artifact")


def test_the_export_from_torch_is_a_model_to_optimise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")

    class Tagger(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = torch.nn.LSTM(40, 8), torch.nn.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            return self.out(self.lstm(x)[0])

    monkeypatch.chdir(tmp_path)
    exec(block("torch.onnx.export"), {"torch": torch, "module": Tagger()})
    model = load_model("model.onnx")
    assert len(require_rnns(model, "model.onnx")) == 1
    assert axis_roles(model) == {"sequence": "sequence", "batch": "batch"}
    assert run_model(model, {"x": np.zeros((9, 5, 40), np.float32)})["y"].shape == (9, 5, 3)
