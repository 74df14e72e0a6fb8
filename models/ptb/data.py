"""Reads Penn Treebank (Mikolov's preparation) from outside the project; nothing of it is kept here."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

VOCABULARY = 10_000


@dataclass(frozen=True)
class Words:
    """Token streams, int32 ``[n]``, one ``<eos>`` a line."""

    train: npt.NDArray[np.int32]
    valid: npt.NDArray[np.int32]
    test: npt.NDArray[np.int32]


def data_folder() -> Path:
    """Returns the folder named by LSTMOPT_DATA, by default ``../shared/data``, with ``ptb`` appended."""
    folder = Path(os.environ.get("LSTMOPT_DATA", "../shared/data")) / "ptb"
    if not (folder / "ptb.train.txt").is_file():
        raise SystemExit(
            f"{folder}: ptb.train.txt is not there; set LSTMOPT_DATA to the folder that holds ptb/"
        )
    return folder


def read(folder: Path) -> Words:
    """Reads the three parts; words are numbered by falling frequency in the training part."""
    lines = {
        part: (folder / f"ptb.{part}.txt").read_text(encoding="utf-8").replace("\n", " <eos> ").split()
        for part in ("train", "valid", "test")
    }
    counts = Counter(lines["train"])
    order = sorted(counts, key=lambda word: (-counts[word], word))
    number = {word: index for index, word in enumerate(order)}
    if len(number) != VOCABULARY:
        raise SystemExit(
            f"{folder}: {len(number)} different words, expected {VOCABULARY}; another preparation?"
        )
    parts = (np.array([number[word] for word in lines[part]], dtype=np.int32) for part in lines)
    return Words(*parts)
