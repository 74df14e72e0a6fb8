"""Strings without spaces for `dksplit`, of Penn Treebank's words: `module:function` data for `optimize`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.ptb.data import data_folder

Array = npt.NDArray[Any]

LENGTH = 32
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def _strings(part: str, count: int) -> dict[str, Array]:
    """Returns the first characters of neighbouring words, ``[count, 32]``, as the package numbers them."""
    numbers = {letter: index + 2 for index, letter in enumerate(LETTERS)}
    text = (data_folder() / f"ptb.{part}.txt").read_text(encoding="utf-8").replace("<unk>", "")
    words = ["".join(letter for letter in word if letter in numbers) for word in text.split()]
    rng, found = np.random.default_rng(0), []
    while len(found) < count:
        start = int(rng.integers(0, len(words) - LENGTH))
        string = "".join(words[start : start + LENGTH])
        if len(string) >= LENGTH:
            found.append([numbers[letter] for letter in string[:LENGTH]])
    return {"chars": np.array(found, np.int64)}


def strings() -> dict[str, Array]:
    """Returns training data."""
    return _strings("train", 6000)


def strings_val() -> dict[str, Array]:
    """Returns validation data."""
    return _strings("valid", 600)
