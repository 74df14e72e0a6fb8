"""A small trained language model, and states for stages that train."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.nn.functional import cross_entropy

from lstmopt.pipeline import State
from lstmopt.rnn.files import load_model
from lstmopt.targets import load_target
from lstmopt.tasks import prepare
from models.language_model import LanguageModel, Sizes, columns, export_onnx

VOCABULARY = 12


def text(length: int, seed: int) -> np.ndarray:
    """A stream with memory: words of a fixed lexicon in random order, so that what follows can be learnt."""
    lexicon = [np.random.default_rng(word).integers(1, VOCABULARY, 3 + word % 4) for word in range(20)]
    rng = np.random.default_rng(seed)
    words = [np.append(lexicon[rng.integers(len(lexicon))], 0) for _ in range(length // 4)]
    return np.concatenate(words)[:length].astype(np.uint8)


@cache
def _trained(path: str, hidden: int) -> None:
    torch.manual_seed(0)
    model = LanguageModel(Sizes(VOCABULARY, 8, hidden)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    data, states = columns(text(60_000, 1), 16), model.zero_states(16)
    for step in range(220):
        start = step * 16 % (len(data) - 17)
        logits, *states = model(data[start : start + 16], *[state.detach() for state in states])
        loss = cross_entropy(logits.flatten(0, 1), data[start + 1 : start + 17].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    export_onnx(model, Path(path))


def language_model(folder: Path, hidden: int = 32) -> ir.Model:
    """Returns a trained two-layer language model with states as inputs and outputs."""
    path = folder / f"lm{hidden}.onnx"
    _trained(str(path), hidden)
    return load_model(path)


def state_for(model: ir.Model, workdir: Path, data: Any = None, val: Any = None, **changes: Any) -> State:
    """Returns a state as a pipeline hands it to a stage; on the small model's text without data."""
    if data is None:
        data, val = {"tokens": text(20_000, 1)}, {"tokens": text(4_000, 2)}
    prepared = prepare(model, task=None, data=data, val=val, test=None, seed=0)
    workdir.mkdir(parents=True, exist_ok=True)
    state = State(
        model=model,
        original=model,
        source=workdir / "model.onnx",
        target=load_target("local"),
        output=workdir,
        run_folder=workdir,
        workdir=workdir,
        key="test",
        task=prepared.task,
        data=prepared.splits,
        labelled=prepared.labelled,
        notes=prepared.notes,
    )
    return dataclasses.replace(state, **changes)
