"""What the demo says of a standard library that is not the one that its model was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lstmopt
from lstmopt.passes import demo
from lstmopt.reference.char_lm import UNPINNED, Corpus
from tests.test_cli_errors import classifier, examples


@pytest.mark.parametrize("pinned", [True, False])
def test_another_text_is_told(monkeypatch: pytest.MonkeyPatch, pinned: bool) -> None:
    tokens = np.zeros(10, np.uint8)
    monkeypatch.setattr(demo, "corpus", lambda: Corpus(tokens, tokens, tokens, pinned))
    assert demo.demo_call()["notes"] == (() if pinned else (UNPINNED,))


def test_notes_of_the_caller_come_first(tmp_path: Path) -> None:
    model, data = classifier(tmp_path / "m.onnx"), examples(tmp_path / "d.npz")
    state = lstmopt.Pipeline().run(model, output=tmp_path / "out", data=data, notes=(UNPINNED,))
    assert state.notes[0] == UNPINNED and len(state.notes) > 1
