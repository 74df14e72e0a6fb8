"""Writes the ONNX file of a trained checkpoint.

python -m models.char_lm.export --checkpoint build/char_lm -o lstmopt/reference/char_lm.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lstmopt.reference.char_lm import model_path
from models import checkpoint
from models.char_lm.train import SIZES
from models.language_model import LanguageModel, export_onnx


def main() -> None:
    """Exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/char_lm"))
    parser.add_argument("-o", "--output", type=Path, default=model_path())
    options = parser.parse_args()
    model = LanguageModel(SIZES)
    if not checkpoint.load(options.checkpoint / "last.safetensors", model):
        raise SystemExit(f"{options.checkpoint}: no checkpoint; train first")
    export_onnx(model, options.output)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
