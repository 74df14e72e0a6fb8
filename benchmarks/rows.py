"""What the tables of trained models share: a row is one training that ends with a file, and a page's head."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lstmopt.cli import progress_shown
from lstmopt.keys import versions
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.passes import GrowPrune
from lstmopt.pipeline import Pipeline
from lstmopt.rnn.files import save_model


def train(
    file: Path,
    recipe: GrowPrune,
    start: Path,
    teacher: Path,
    train: Mapping[str, Any],
    val: Mapping[str, Any],
) -> None:
    """Trains one row of a language model, unless its file is there; goes on where the last call stopped."""
    if file.is_file():
        return
    folder = file.with_suffix("")
    with progress_shown() as progress:
        state = Pipeline(recipe).run(
            start, target="local", output=folder, data=train, val=val, task="lm", teacher=teacher,
            progress=lambda text, fraction: progress(f"{file.stem}: {text}", fraction),
        )  # fmt: skip
    beside = file.with_suffix(".part")
    save_model(state.model, beside)
    beside.replace(file)
    shutil.rmtree(folder)


def publish(output: Path, stem: str, document: Any, text: str) -> None:
    """Writes a table's figures and its page, and shows the page.

    Args:
        output: the folder.
        stem: of ``STEM.json`` and ``STEM.md``.
        document: the figures.
        text: the page.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    (output / f"{stem}.md").write_text(text)
    print(text, flush=True)


@cache
def commit() -> str:
    """Returns the short name of the commit that is checked out."""
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return told.stdout.strip()


def made_here() -> str:
    """Returns what a row of a table says of where it was made: CPU and commit."""
    return f"{fingerprint().cpu}, {commit()}"


def made_by(command: str) -> str:
    """Returns a page's line on what made it: command, commit, CPU and versions."""
    return f"`{command}`, commit {commit()}, {fingerprint().cpu}, {json.dumps(versions())}."
