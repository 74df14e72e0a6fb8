"""Trains the dense word language model on Penn Treebank by the published recipe; resumable.

    python -m models.ptb.train --checkpoint build/ptb

The recipe (Zaremba, Sutskever and Vinyals, arXiv 1409.2329, "small"): two layers of 200, SGD at 1
halved each epoch after the fourth, 13 epochs, batch 20, windows of 35 words with the state
carried, gradient norm clipped to 5, weights drawn from U(-0.1, 0.1), no dropout. Products are computed
in bfloat16 where the CPU does so itself; weights, states and losses stay float32.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch

from lstmopt.bridge.training import has_native_bfloat16
from lstmopt.tasks.losses import mixed_categorical_loss
from models import checkpoint
from models.language_model import LanguageModel, Sizes, columns, export_onnx, loss_of
from models.ptb.data import VOCABULARY, data_folder, read

SIZES = Sizes(vocabulary=VOCABULARY, embedding=200, hidden=200)
BATCH, WINDOW, EPOCHS, SEED = 20, 35, 13, 0


def main() -> None:
    """Trains, or goes on from the last checkpoint, and writes ``dense.onnx`` beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("build/ptb"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(SEED)
    options.checkpoint.mkdir(parents=True, exist_ok=True)
    weights, journal = options.checkpoint / "dense.safetensors", options.checkpoint / "dense.jsonl"

    text = read(data_folder())
    data = columns(text.train, BATCH)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = LanguageModel(SIZES)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.1, 0.1)
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    windows = math.ceil((len(data) - 1) / WINDOW)
    step, began = checkpoint.load(weights, model, optimizer), time.monotonic()
    states = model.zero_states(BATCH)
    while step < EPOCHS * windows:
        epoch, window = divmod(step, windows)
        if window == 0:
            states = model.zero_states(BATCH)
        for group in optimizer.param_groups:
            group["lr"] = 0.5 ** max(0, epoch - 3)
        begin, end = window * WINDOW, min((window + 1) * WINDOW, len(data) - 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=device == "cpu" and has_native_bfloat16()):
            logits, *states = model(data[begin:end].to(device), *[state.detach().float() for state in states])
            labels = data[begin + 1 : end + 1].numpy()
            loss = mixed_categorical_loss(logits, labels, None, "logits", alpha=0.0, temperature=1.0)
        optimizer.zero_grad()
        # The recipe sums over the window and averages over the batch.
        (loss * (end - begin)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        step += 1
        if step % windows == 0:
            record = {
                "epoch": step // windows,
                "train": round(math.exp(float(loss.detach())), 2),
                "valid": round(math.exp(loss_of(model, text.valid, BATCH, WINDOW)), 2),
                "seconds": round(time.monotonic() - began, 1),
            }
            print(json.dumps(record), flush=True)
            with journal.open("a") as file:
                file.write(json.dumps(record) + "\n")
            checkpoint.save(weights, model, optimizer, step)
    print(f"test perplexity {math.exp(loss_of(model, text.test, BATCH, WINDOW)):.2f}")
    export_onnx(model.cpu(), options.checkpoint / "dense.onnx")


if __name__ == "__main__":
    main()
