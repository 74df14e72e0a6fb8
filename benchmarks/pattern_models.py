"""The dense models of `benchmarks.patterns`, and the rows that are trained from them."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import ptb
from benchmarks.rows import train
from lstmopt.passes import GrowPrune
from lstmopt.reference.char_lm import corpus, model_path
from lstmopt.rnn.files import load_model
from lstmopt.runtimes import Deployment, open_session, runtime
from lstmopt.tasks.base import Evaluation, load_evaluation, save_evaluation
from lstmopt.tasks.data import Dataset
from lstmopt.tasks.interface import read_interface
from lstmopt.tasks.lm import LanguageModelling
from models.ptb.data import data_folder, read

PATTERNS = (
    "unstructured", "bank64:step4", "bank32:step2", "gate-shared64:step4", "block16x1", "bank32", "bank64",
    "bank32:k1", "bank64:k1", "gate-shared64", "block8x4",
)  # fmt: skip
DENSITIES = (0.0625, 0.125, 0.03125)
ROUNDED = (("bank32:step2", "i16"), ("bank64:step4", "i8"), ("gate-shared64:step4", "i8-shared"))
"""Rows that are trained once more, ending on rounded weights; both forms are evaluated in every format."""

EPOCHS, STEPS = 0.5, 600
PARTS = ("valid", "test")


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        model: "ptb" or "char_lm".
        pattern: of the masks.
        density: of the LSTM weights.
        rounding: the format that the training ends on, or None.
    """

    model: str
    pattern: str
    density: float
    rounding: str | None = None

    @property
    def name(self) -> str:
        """The stem of its file."""
        parts = (self.model, self.pattern.replace(":", "-"), f"{100 * self.density:g}", self.rounding)
        return "-".join(part for part in parts if part)


class Model:
    """A dense model with its data.

    Args:
        options: of the command line.
    """

    name: str

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work
        self.options = options

    @property
    def rows(self) -> list[Row]:
        """Its rows, in the order in which they are trained."""
        plain = [Row(self.name, pattern, density) for density in DENSITIES for pattern in PATTERNS]
        rounded = [Row(self.name, pattern, DENSITIES[0], rounding) for pattern, rounding in ROUNDED]
        return [*plain[: len(PATTERNS)], *rounded, *plain[len(PATTERNS) :]]

    @property
    def start(self) -> Path:
        """The dense model's file."""
        raise NotImplementedError

    @property
    def data(self) -> dict[str, Any]:
        """Tokens by part."""
        raise NotImplementedError

    def recipe(self, row: Row) -> GrowPrune:
        """Returns how a row is trained."""
        raise NotImplementedError

    @cached_property
    def task(self) -> LanguageModelling:
        """What is evaluated."""
        return LanguageModelling(read_interface(load_model(self.start)), labelled=True)

    def file(self, row: Row) -> Path:
        """Returns where a row's model lies once it is trained."""
        return self.work / f"{row.name}.onnx"

    def train(self, row: Row) -> None:
        """Trains a row, and evaluates it."""
        data = self.data
        parts = ({"tokens": data["train"]}, {"tokens": data["valid"]})
        train(self.file(row), self.recipe(row), self.start, self.start, *parts)
        self.evaluate(row.name, in_onnxruntime(self.file(row)))

    def evaluate(self, name: str, deployment: Callable[[Path], Deployment]) -> dict[str, Evaluation]:
        """Returns a deployment's evaluation on both parts; kept in the work folder.

        Args:
            name: of what is kept.
            deployment: makes it, in a folder that is gone after it.
        """
        files = {part: self.work / "evaluations" / f"{name}-{part}.safetensors" for part in PARTS}
        found = {part: load_evaluation(file) for part, file in files.items()}
        if any(item is None for item in found.values()):
            folder = self.work / "built" / name
            session = open_session(deployment(folder), 1)
            for part, file in files.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                found[part] = self.task.evaluate(session, Dataset({"tokens": self.data[part]}, None))
                save_evaluation(file, found[part])
            shutil.rmtree(folder)
        return {part: item for part, item in found.items() if item is not None}

    def dense(self) -> dict[str, Evaluation]:
        """Returns the dense model's evaluation, in ONNX Runtime's f32."""
        return self.evaluate(f"{self.name}-dense", in_onnxruntime(self.start))


class PennTreebank(Model):
    """`benchmarks.ptb`'s dense model of the same recipe."""

    name = "ptb"

    @property
    def start(self) -> Path:
        """See `Model.start`; trained where it is not there."""
        file: Path = self.options.ptb / "dense-same-recipe.onnx"
        if not file.is_file():
            command = [
                sys.executable,
                "-m",
                "benchmarks.ptb",
                "--only",
                file.stem,
                "--work",
                str(file.parent),
            ]
            subprocess.run([*command, "--threads", str(self.options.threads)], check=True)
        return file

    @cached_property
    def data(self) -> dict[str, Any]:
        """See `Model.data`."""
        return vars(read(data_folder()))

    def recipe(self, row: Row) -> GrowPrune:
        """See `Model.recipe`; that of `benchmarks.ptb`, shorter."""
        known = ptb.recipe(
            ptb.Row(row.name, self.file(row), row.density), self.options.epochs, self.options.threads
        )
        return replace(known, pattern=row.pattern, rounding=row.rounding)


class CharLm(Model):
    """The reference model."""

    name = "char_lm"

    @property
    def start(self) -> Path:
        """See `Model.start`."""
        return model_path()

    @cached_property
    def data(self) -> dict[str, Any]:
        """See `Model.data`."""
        text = corpus()
        return {part: getattr(text, part) for part in ("train", *PARTS)}

    def recipe(self, row: Row) -> GrowPrune:
        """See `Model.recipe`; that of `models.char_lm.optimize`, shorter."""
        return GrowPrune(
            density=row.density,
            pattern=row.pattern,
            rounding=row.rounding,
            steps=self.options.steps,
            learning_rate=4e-3,
            regrow=0.0,
            threads=self.options.threads,
            seed=0,
        )


def in_onnxruntime(file: Path) -> Callable[[Path], Deployment]:
    """Returns what makes ONNX Runtime's f32 of a model."""
    return lambda folder: runtime("onnxruntime").build(file, "f32", folder)
