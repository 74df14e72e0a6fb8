"""Speech of CMU AN4 as the real models take it: `module:function` data for `lstmopt optimize`.

The corpus is in the folder that LSTMOPT_DATA names, by default ../shared/data. Training and validation data
are the official training part, cut by utterances; the test part is left for evaluation.
"""

from __future__ import annotations

import os
import wave
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

RATE = 16000
VAL_UTTERANCES = 60
SECONDS = {"train": 900, "val": 150, "test": 100_000}
"""How much of each part is used."""

BLOCK, HOP = 512, 128
"""Samples of a block of DTLN, and from one to the next."""


def corpus() -> Path:
    """Returns the folder of AN4.

    Raises:
        FileNotFoundError: it is not there.
    """
    folder = Path(os.environ.get("LSTMOPT_DATA", "../shared/data")) / "an4"
    if not (folder / "etc" / "an4_train.fileids").is_file():
        raise FileNotFoundError(f"{folder}: AN4 is not there; set LSTMOPT_DATA to the folder that holds an4/")
    return folder


def utterances(part: str) -> list[Path]:
    """Returns the files of "train", "val" or "test" in an order that mixes speakers."""
    folder = corpus()
    listed = "test" if part == "test" else "train"
    names = (folder / "etc" / f"an4_{listed}.fileids").read_text().split()
    names = [names[index] for index in np.random.default_rng(0).permutation(len(names))]
    chosen = {"train": names[VAL_UTTERANCES:], "val": names[:VAL_UTTERANCES], "test": names}[part]
    return [folder / "wav" / f"{name}.wav" for name in chosen]


@cache
def signal(part: str) -> Array:
    """Returns the part's utterances one after the other, float32 in -1..1."""
    found, samples = [], 0
    for path in utterances(part):
        with wave.open(str(path)) as file:
            if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                raise ValueError(f"{path}: not 16 kHz mono of 16 bits")
            found.append(np.frombuffer(file.readframes(file.getnframes()), "<i2"))
        samples += len(found[-1])
        if samples >= SECONDS[part] * RATE:
            break
    return np.concatenate(found).astype(np.float32) / 32768


def _blocks(part: str, size: int, hop: int) -> Array:
    return np.lib.stride_tricks.sliding_window_view(signal(part), size)[::hop]


def _spectra(part: str, steps: int = 100) -> dict[str, Array]:
    """Returns logarithms of power as NSNet2 takes them: 320 points, half of it from one frame to the next."""
    window = np.sqrt(np.hanning(321)[:-1])
    power = np.abs(np.fft.rfft(_blocks(part, 320, 160) * window)) ** 2
    frames = np.log10(np.maximum(power, 1e-12)).astype(np.float32)
    count = len(frames) // steps
    return {"input": frames[: count * steps].reshape(count, steps, -1)}


def spectra() -> dict[str, Array]:
    """Returns training data of `nsnet2`, ``[sequences, 100, 161]``."""
    return _spectra("train")


def spectra_val() -> dict[str, Array]:
    """Returns its validation data."""
    return _spectra("val")


def _magnitudes(part: str, count: int) -> dict[str, Array]:
    found = np.abs(np.fft.rfft(_blocks(part, BLOCK, HOP)[:count])).astype(np.float32)
    return {"input_2": found[:, None]}


def magnitudes() -> dict[str, Array]:
    """Returns training data of `dtln-1`, ``[blocks, 1, 257]``, consecutive."""
    return _magnitudes("train", 40_000)


def magnitudes_val() -> dict[str, Array]:
    """Returns its validation data."""
    return _magnitudes("val", 6_000)


def frames() -> dict[str, Array]:
    """Returns training data of `dtln-2`, ``[blocks, 1, 512]``, consecutive."""
    return {"input_4": np.ascontiguousarray(_blocks("train", BLOCK, HOP)[:30_000, None])}


def frames_val() -> dict[str, Array]:
    """Returns its validation data."""
    return {"input_4": np.ascontiguousarray(_blocks("val", BLOCK, HOP)[:6_000, None])}
