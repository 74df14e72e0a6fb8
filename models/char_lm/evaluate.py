"""Evaluates a file with the reference model's interface in ONNX Runtime.

python -m models.char_lm.evaluate models/char_lm/char_lm.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lstmopt.reference.char_lm import corpus, model_path
from lstmopt.rnn.files import load_model
from lstmopt.runtimes.base import Deployment
from lstmopt.runtimes.onnxruntime import OnnxRuntime
from lstmopt.tasks.data import Dataset
from lstmopt.tasks.interface import read_interface
from lstmopt.tasks.lm import LanguageModelling


def main() -> None:
    """Prints loss and perplexity of the validation and the test text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=model_path())
    options = parser.parse_args()
    text = corpus()
    task = LanguageModelling(read_interface(load_model(options.model)), labelled=True)
    session = OnnxRuntime().open(
        Deployment(runtime="onnxruntime", file=options.model, precision="f32"), threads=1
    )
    for name, tokens in (("validation", text.valid), ("test", text.test)):
        evaluation = task.evaluate(session, Dataset({"tokens": tokens}, None))
        print(f"{name}: {evaluation.loss:.4f} nats a character, perplexity {evaluation.metric:.4f}")
    if not text.pinned:
        print("note: this Python's standard library is not the text that the model was trained on")


if __name__ == "__main__":
    main()
