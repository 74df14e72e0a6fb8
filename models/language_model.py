"""The network of the reference language models, and how a text is read by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a `LanguageModel`."""

    vocabulary: int
    embedding: int
    hidden: int
    layers: int = 2


class LanguageModel(nn.Module):
    """Embedding, LSTM layers, linear decoder; states are inputs and outputs, so that a caller can stream."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.embedding)
        inputs = [sizes.embedding] + [sizes.hidden] * (sizes.layers - 1)
        self.lstms = nn.ModuleList(nn.LSTM(size, sizes.hidden) for size in inputs)
        self.decoder = nn.Linear(sizes.hidden, sizes.vocabulary)

    def forward(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Runs one window.

        Args:
            tokens: int64, ``[sequence, batch]``.
            states: ``h_0, c_0, h_1, c_1, ...``, each ``[1, batch, hidden]``.

        Returns:
            logits ``[sequence, batch, vocabulary]``, then the states in the order of the inputs.
        """
        hidden = self.embedding(tokens)
        new_states: list[Tensor] = []
        for index, lstm in enumerate(self.lstms):
            hidden, state = lstm(hidden, (states[2 * index], states[2 * index + 1]))
            new_states += state
        return (self.decoder(hidden), *new_states)

    def zero_states(self, batch: int) -> list[Tensor]:
        """Returns the states of a start of text, each ``[1, batch, hidden]``."""
        device = self.decoder.weight.device
        return [torch.zeros(1, batch, self.sizes.hidden, device=device) for _ in range(2 * self.sizes.layers)]


def columns(tokens: npt.NDArray[np.integer], batch: int) -> Tensor:
    """Returns the stream cut into ``batch`` columns, int64 ``[n // batch, batch]``."""
    length = len(tokens) // batch
    data = torch.from_numpy(tokens[: length * batch].astype(np.int64))
    return data.view(batch, length).t().contiguous()


@torch.no_grad()
def loss_of(model: LanguageModel, tokens: npt.NDArray[np.integer], batch: int, window: int) -> float:
    """Returns the mean cross-entropy in nats a token, states carried through each column."""
    data = columns(tokens, batch).to(model.decoder.weight.device)
    states = model.zero_states(batch)
    total, count = 0.0, 0
    for start in range(0, len(data) - 1, window):
        x = data[start : min(start + window, len(data) - 1)]
        y = data[start + 1 : start + 1 + len(x)]
        logits, *states = model(x, *states)
        total += float(cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum"))
        count += y.numel()
    return total / count


def export_onnx(model: LanguageModel, path: Path) -> None:
    """Writes the ONNX file: ``tokens`` and states in, ``logits`` and states out, both axes dynamic."""
    states = [f"{kind}_{layer}" for layer in range(model.sizes.layers) for kind in "hc"]
    axes = {"tokens": {0: "sequence", 1: "batch"}, "logits": {0: "sequence", 1: "batch"}}
    for name in states:
        axes[name] = axes[f"{name}_out"] = {1: "batch"}
    torch.onnx.export(
        model.eval(),
        (torch.zeros(7, 3, dtype=torch.int64), *model.zero_states(3)),
        str(path),
        input_names=["tokens", *states],
        output_names=["logits", *(f"{name}_out" for name in states)],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
