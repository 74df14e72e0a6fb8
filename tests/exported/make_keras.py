"""Keras 3 on torch, exported by its own `export`: loops over time are written out."""

from __future__ import annotations

import os
import sys

os.environ["KERAS_BACKEND"] = "torch"

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402

keras.utils.set_random_seed(0)
PARTS = {
    "lstm": lambda: [layers.LSTM(12, return_sequences=True), layers.LSTM(10)],
    "gru": lambda: [layers.GRU(12, return_sequences=True), layers.GRU(10, reset_after=False)],
    "bi": lambda: [layers.Bidirectional(layers.LSTM(12, return_sequences=True))],
}

name = sys.argv[1]
model = keras.Sequential([keras.Input((6, 8), batch_size=1), *PARTS[name](), layers.Dense(3)])
rng = np.random.default_rng(1)
model.set_weights([(0.4 * rng.standard_normal(w.shape)).astype(np.float32) for w in model.get_weights()])
model(np.zeros((1, 6, 8), np.float32))
model.export(f"keras-torch-{name}.onnx", format="onnx", verbose=False)
