"""Keras 3 on TensorFlow, exported by tf2onnx."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers

keras.utils.set_random_seed(0)


def model(*parts: object, steps: int | None = 6) -> keras.Model:
    made = keras.Sequential([keras.Input((steps, 8)), *parts, layers.Dense(3)])
    rng = np.random.default_rng(1)
    made.set_weights([(0.4 * rng.standard_normal(w.shape)).astype(np.float32) for w in made.get_weights()])
    return made


MODELS = {
    "lstm": lambda: model(layers.LSTM(12, return_sequences=True), layers.LSTM(10)),
    "gru": lambda: model(layers.GRU(12, return_sequences=True), layers.GRU(10, reset_after=False)),
    "bi": lambda: model(layers.Bidirectional(layers.LSTM(12, return_sequences=True))),
    "unrolled": lambda: model(layers.LSTM(12, unroll=True)),
    "dynamic": lambda: model(layers.LSTM(12, return_sequences=True), steps=None),
    "masked": lambda: model(layers.Masking(), layers.LSTM(12)),
}

for name, make in MODELS.items():
    made = make()
    signature = [tf.TensorSpec((None, *made.input_shape[1:]), tf.float32, name="x")]
    function = tf.function(lambda x, made=made: made(x, training=False), input_signature=signature)
    tf2onnx.convert.from_function(
        function, input_signature=signature, opset=15, output_path=f"tf2onnx-{name}.onnx"
    )
