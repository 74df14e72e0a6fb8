"""How well `advise` foretells what `bench` then measures on the models that were really built.

python -m benchmarks.advise [MODEL.onnx ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lstmopt.measure.fingerprint import fingerprint
from lstmopt.passes.advice import Option
from lstmopt.passes.advise import Commands, advise, variants
from lstmopt.passes.bench import bench
from lstmopt.reference.char_lm import model_path
from lstmopt.rnn.files import load_model, save_model
from lstmopt.targets import load_target

ALLOWED = 0.1


@dataclass(frozen=True)
class Prediction:
    """What `advise` said of an option, and what `bench` says of the model that it stands for.

    Attributes:
        option: the row of `advise`.
        latency: of one call as `advise` has it, over that of `bench`.
        speed: over the model as it is in ONNX Runtime f32, as `advise` has it over that of `bench`; a
            drift of the whole machine between the two cancels.
    """

    option: Option
    latency: float
    speed: float

    @property
    def wrong(self) -> bool:
        return abs(self.speed - 1) > ALLOWED


@dataclass(frozen=True)
class Outcome:
    """All predictions for a model, whether both comparisons may be trusted, and how long advise took."""

    predictions: tuple[Prediction, ...]
    trusted: bool
    seconds: float


def compared(model: Path, rounds: int = 30) -> Outcome:
    target = load_target("local")
    began = time.monotonic()
    advice = advise(model, target=target)
    took = time.monotonic() - began
    # The second number knows nothing of the first: files of their own, other processes, another moment.
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        commands = Commands(model, ())
        for index, variant in enumerate(variants(load_model(model), target, Path(folder), [], commands)):
            files[variant.title] = Path(folder) / f"{index}.onnx"
            save_model(variant.built.model, files[variant.title])
        result = bench(list(files.values()), target=target, rounds=rounds)
    rows = {(row.name, row.runtime, row.precision): row for row in result.rows}
    reference = rows[(str(files["as it is"]), "onnxruntime", "f32")]
    found = []
    for option in advice.options:
        row = rows.get((str(files[option.name]), option.runtime, option.precision))
        # None: advise takes the smallest formats, bench those that measure fastest, dense among them.
        if option.threads == target.threads and row is not None:
            speed = reference.latency_us.median / row.latency_us.median
            found.append(
                Prediction(option, option.latency_us / row.latency_us.median, option.speedup / speed)
            )
    return Outcome(tuple(found), advice.trusted and result.trusted, took)


def table(name: str, outcome: Outcome) -> Table:
    shown = Table(
        "option", "runtime", title=f"{name}: advise took {outcome.seconds:.0f} s", title_justify="left"
    )
    for column in ("advise", "latency over bench's", "speed", "speed over bench's"):
        shown.add_column(column, justify="right")
    for item in outcome.predictions:
        shown.add_row(
            item.option.name,
            f"{item.option.runtime} {item.option.precision}",
            f"{item.option.latency_us:.0f} us",
            f"{item.latency:.3f}",
            f"{item.option.speedup:.2f}x",
            f"{item.speed:.3f}{' OFF' if item.wrong else ''}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="*", default=[model_path()])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    console = Console(width=120)
    console.print(fingerprint().cpu)
    wrong = 0
    for model in options.models:
        outcome = compared(model, options.rounds)
        console.print(table(model.name, outcome))
        off = sum(item.wrong for item in outcome.predictions)
        console.print(
            f"off by more than {ALLOWED:.0%}: {off}" + ("" if outcome.trusted else "; not to be trusted")
        )
        wrong += off if outcome.trusted else 0
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
