"""Evaluates a file with the reference model's interface, in ONNX Runtime's f32 unless another is named.

python -m models.char_lm.evaluate models/char_lm/char_lm.onnx [--runtime cudnn --precision f16]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from lstmopt.reference.char_lm import corpus, model_path
from lstmopt.rnn.files import load_model
from lstmopt.runtimes import open_session, runtime, stand_in
from lstmopt.tasks.data import Dataset
from lstmopt.tasks.interface import read_interface
from lstmopt.tasks.lm import LanguageModelling


def main() -> None:
    """Prints loss and perplexity of the validation and the test text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=model_path())
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--precision", default="f32")
    options = parser.parse_args()
    text = corpus()
    task = LanguageModelling(read_interface(load_model(options.model)), labelled=True)
    with tempfile.TemporaryDirectory() as folder:
        made = stand_in(runtime(options.runtime).build(options.model, options.precision, Path(folder)))
        session = open_session(made, threads=1)
        for name, tokens in (("validation", text.valid), ("test", text.test)):
            found = task.evaluate(session, Dataset({"tokens": tokens}, None))
            told = f"{found.loss:.4f} nats a character, perplexity {found.metric:.4f}"
            print(f"{name} ({made.runtime} {made.precision}): {told}", flush=True)
    if not text.pinned:
        print("note: this Python's standard library is not the text that the model was trained on")


if __name__ == "__main__":
    main()
