"""How well `advise` foretells what `bench` then measures on the models that were really built.

python benchmarks/advise.py [MODEL.onnx ...]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lstmopt.measure.fingerprint import fingerprint
from lstmopt.passes.advise import _variants, advise
from lstmopt.passes.bench import bench
from lstmopt.reference.char_lm import model_path
from lstmopt.rnn.files import load_model, save_model
from lstmopt.targets import load_target

ALLOWED = 0.1


def compared(model: Path, rounds: int) -> tuple[Table, int, bool]:
    """Returns a row an option, how many are off by more than 10%, and whether both may be trusted."""
    target = load_target("local")
    began = time.monotonic()
    advice = advise(model, target=target)
    took = time.monotonic() - began
    # The second number knows nothing of the first: files of their own, other processes, another moment.
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for index, variant in enumerate(_variants(model, load_model(model), target, Path(folder), [])):
            files[variant.title] = Path(folder) / f"{index}.onnx"
            save_model(variant.built.model, files[variant.title])
        result = bench(list(files.values()), target=target, rounds=rounds)
    measured = {(row.name, row.runtime, row.precision): row.latency_us.median for row in result.rows}
    table = Table("option", "runtime", title=f"{model.name}: advise took {took:.0f} s", title_justify="left")
    for column in ("advise", "bench", "ratio"):
        table.add_column(column, justify="right")
    off = 0
    for option in advice.options:
        if option.threads != target.threads:
            continue
        built = measured[(str(files[option.name]), option.runtime, option.precision)]
        ratio = option.latency_us / built
        wrong = abs(ratio - 1) > ALLOWED
        off += wrong
        table.add_row(
            option.name,
            f"{option.runtime} {option.precision}",
            f"{option.latency_us:.0f} us",
            f"{built:.0f} us",
            f"{ratio:.3f}{' OFF' if wrong else ''}",
        )
    return table, off, advice.trusted and result.trusted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="*", default=[model_path()])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    console = Console(width=120)
    console.print(fingerprint().cpu)
    for model in options.models:
        table, off, trusted = compared(model, options.rounds)
        console.print(table)
        console.print(f"off by more than {ALLOWED:.0%}: {off}" + ("" if trusted else "; not to be trusted"))


if __name__ == "__main__":
    main()
