"""Loads an artifact as a service would: the best entry of its manifest, ONNX Runtime alone, states kept.

python examples/deploy.py ARTIFACT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main(artifact: Path) -> None:
    """Runs five steps."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    entry = next(item for item in manifest["deploy"] if item["runtime"] == "onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = manifest["threads"]
    for key, value in entry["settings"].items():
        options.add_session_config_entry(key, value)
    for library in entry["libraries"]:  # the sparse ops, where the fastest file uses them
        options.register_custom_ops_library(str(artifact / library))
    session = ort.InferenceSession(artifact / entry["file"], options, providers=["CPUExecutionProvider"])
    pairs = {item["input"]: item["output"] for item in manifest["states"]}
    shapes = {
        item.name: [size if isinstance(size, int) else 1 for size in item.shape]
        for item in session.get_inputs()
    }
    feeds = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name in pairs}
    names = [item.name for item in session.get_outputs()]
    token = np.ones((1, 1), np.int64)
    for step in range(5):
        outputs = dict(zip(names, session.run(None, {"tokens": token, **feeds}), strict=True))
        feeds = {source: outputs[result] for source, result in pairs.items()}
        token = outputs["logits"].argmax(axis=-1).astype(np.int64)
        print(f"step {step}: token {int(token[0, 0])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
