"""Trains the dense reference model; resumable.

    python -m models.char_lm.train --checkpoint build/char_lm

The recipe: Adam at 3e-3 falling to 3e-5 on a cosine over the run, batch 32, windows of 64
characters with the state carried, gradient norm clipped to 1, no dropout. The validation loss is
logged four times an epoch; the run has levelled off when the last quarters no longer move it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from lstmopt.reference.char_lm import VOCABULARY, corpus
from models import checkpoint
from models.language_model import LanguageModel, Sizes, columns, loss_of

SIZES = Sizes(vocabulary=VOCABULARY, embedding=48, hidden=392)
BATCH, WINDOW, RATE, SEED = 32, 64, 3e-3, 0


def main() -> None:
    """Trains, or goes on from the last checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("build/char_lm"))
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(SEED)
    options.checkpoint.mkdir(parents=True, exist_ok=True)
    weights, journal = options.checkpoint / "last.safetensors", options.checkpoint / "log.jsonl"

    text = corpus()
    data = columns(text.train, BATCH)
    model = LanguageModel(SIZES)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    windows = (len(data) - 1) // WINDOW
    steps = int(options.epochs * windows)
    step = checkpoint.load(weights, model, optimizer)
    states, began = model.zero_states(BATCH), time.monotonic()
    while step < steps:
        window = step % windows
        if window == 0:
            states = model.zero_states(BATCH)
        for group in optimizer.param_groups:
            group["lr"] = RATE * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        begin = window * WINDOW
        x, y = data[begin : begin + WINDOW], data[begin + 1 : begin + WINDOW + 1]
        logits, *states = model(x, *[state.detach() for state in states])
        loss = cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % (windows // 4) == 0 or step == steps:
            record = {
                "epoch": round(step / windows, 2),
                "train": round(float(loss.detach()), 4),
                "valid": round(loss_of(model, text.valid, batch=64, window=WINDOW), 4),
                "seconds": round(time.monotonic() - began, 1),
            }
            print(json.dumps(record), flush=True)
            with journal.open("a") as file:
                file.write(json.dumps(record) + "\n")
            checkpoint.save(weights, model, optimizer, step)


if __name__ == "__main__":
    main()
