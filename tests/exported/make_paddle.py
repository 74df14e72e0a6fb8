"""PaddlePaddle, exported by paddle2onnx."""

from __future__ import annotations

import subprocess
import sys

import paddle
from paddle.static import InputSpec

KINDS = {
    "lstm": (paddle.nn.LSTM, 2, "forward"),
    "gru": (paddle.nn.GRU, 2, "forward"),
    "bi": (paddle.nn.LSTM, 1, "bidirect"),
}


class Model(paddle.nn.Layer):
    """Recurrent layers of 12 units and a decoder."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        cell, layers, direction = KINDS[kind]
        self.layers = cell(8, 12, num_layers=layers, direction=direction)
        self.decoder = paddle.nn.Linear(24 if direction == "bidirect" else 12, 3)

    def forward(self, x):  # noqa: ANN001, ANN201 - paddle reads the signature
        return self.decoder(self.layers(x)[0])


name = sys.argv[1]
paddle.seed(0)
model = Model(name)
model.eval()
static = paddle.jit.to_static(model, input_spec=[InputSpec([None, None, 8], "float32", "x")], full_graph=True)
paddle.jit.save(static, f"paddle-{name}/model")
subprocess.run(
    ["paddle2onnx", "--model_dir", f"paddle-{name}", "--model_filename", "model.json",
     "--params_filename", "model.pdiparams", "--save_file", f"paddle-{name}.onnx", "--opset_version", "15"],
    check=True,
)  # fmt: skip
