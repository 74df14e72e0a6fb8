"""Penn Treebank words: two dense baselines and the frontier of LSTM weights against perplexity; resumable.

    make ptb SIZE=small

Every row is one training that ends with a file in the work folder; a call goes on where the last one
stopped. The table goes to docs/results/ptb.md with the commit, the CPU and the versions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lstmopt import measure
from lstmopt.cli import progress_shown
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.passes import GrowPrune
from lstmopt.passes.candidates import build, compare, key
from lstmopt.passes.reporting import versions
from lstmopt.pipeline import Pipeline
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.runtimes import open_session
from lstmopt.runtimes.onnxruntime import OnnxRuntime
from lstmopt.targets import load_target
from lstmopt.tasks.data import Dataset
from lstmopt.tasks.interface import read_interface
from lstmopt.tasks.lm import LanguageModelling
from models.ptb.data import Words, data_folder, read

PUBLISHED, SAME_RECIPE = "dense, published recipe", "dense, same recipe"
COMPRESSIONS = (16, 32, 8, 4, 64)
EPOCHS = 6.0
BATCH, WINDOW = 20, 35


@dataclass(frozen=True)
class Row:
    """A trained model of the table."""

    name: str
    file: Path


def recipe(density: float, epochs: float, threads: int) -> GrowPrune:
    """Returns the recipe: the published SGD (rate 1, clip 5), dropout that falls with density, distilled.

    The published recipe sums the loss over the window, `GrowPrune` takes its mean: the rate is the
    window's length times larger here, the clip as many times smaller.
    """
    dropout = 0.2 if density == 1 else 0.15 if density > 0.1 else 0.1 if density > 0.02 else 0.0
    return GrowPrune(
        density=density,
        epochs=epochs,
        batch=BATCH,
        sequence=WINDOW,
        optimizer="sgd",
        learning_rate=1.0 * WINDOW,
        clip=5.0 / WINDOW,
        dropout=dropout,
        alpha=0.5,
        threads=threads,
        seed=0,
    )


def train(
    start: Path, teacher: Path, row: Row, words: Words, density: float, options: argparse.Namespace
) -> None:
    """Trains one row, unless its file is there."""
    if row.file.is_file():
        return
    with progress_shown() as progress:
        state = Pipeline(recipe(density, options.epochs, options.threads)).run(
            start,
            target="local",
            output=options.work / row.file.stem,
            data={"tokens": words.train},
            val={"tokens": words.valid},
            task="lm",
            teacher=teacher,
            progress=progress,
        )
    save_model(state.model, row.file)


def measured(rows: list[Row], words: Words) -> list[dict[str, object]]:
    """Returns perplexity, sizes and latency of each row, in ONNX Runtime as deployed."""
    target = load_target("local")
    models = {row.name: load_model(row.file) for row in rows}
    task = LanguageModelling(read_interface(models[PUBLISHED]), labelled=True)
    folder = rows[0].file.parent / "measured"
    builds = [
        build(name.replace(" ", "-").replace(",", ""), model, target, folder)
        for name, model in models.items()
    ]
    comparison: measure.Comparison = compare(builds, target, 0, lambda text, fraction: None, rounds=20)
    dense = builds[0]
    f32 = min(
        (key(dense.name, d) for d in dense.deployments if d.precision == "f32"),
        key=lambda name: comparison.timing(name).median,
    )
    best = min(
        (key(dense.name, d) for d in dense.deployments), key=lambda name: comparison.timing(name).median
    )
    found = []
    for row, built in zip(rows, builds, strict=True):
        fastest = min(built.deployments, key=lambda d: comparison.timing(key(built.name, d)).median)
        layers = [layer.weights for layer in find_rnns(built.model) if layer.weights is not None]
        f32_file = next(d for d in built.deployments if d.runtime == "onnxruntime" and d.precision == "f32")
        perplexity = {}
        for part in ("valid", "test"):
            data = Dataset({"tokens": getattr(words, part)}, None)
            perplexity[part] = task.evaluate(OnnxRuntime().open(f32_file, 1), data).metric
            perplexity[f"{part}_deployed"] = task.evaluate(open_session(fastest, 1), data).metric
        own = key(built.name, fastest)
        over_f32, over_best = comparison.ratio(f32, own), comparison.ratio(best, own)
        weights = [
            value.const_value.numpy()
            for value in built.model.graph.initializers.values()
            if value.const_value is not None and value.const_value.dtype.is_floating_point()
        ]
        found.append(
            {
                "name": row.name,
                "lstm_weights": sum(w.nonzero_parameters for w in layers),
                "model_weights": int(sum((array != 0).sum() for array in weights)),
                **{part: round(value, 2) for part, value in perplexity.items()},
                "deployed": f"{fastest.runtime} {fastest.precision}",
                "over_f32": over_f32.model_dump(),
                "over_best_peer": over_best.model_dump(),
            }
        )
    return found


def table(rows: list[dict[str, object]], command: str) -> str:
    """Returns the Markdown page."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    lines = [
        "# Penn Treebank words, small (2 layers of 200)",
        "",
        f"`{command}`, commit {commit}, {fingerprint().cpu}, {json.dumps(versions())}.",
        "",
        "Validation chose, the test set is only reported. LSTM weights: non-zero entries of W and R. Whole",
        "model: non-zero entries of all weights. Perplexity in ONNX Runtime f32, in brackets as deployed.",
        "Latency: batch 1, sequence 35, one thread; over the dense model of the published recipe in its",
        "fastest f32 runtime, and in its fastest precision.",
        "",
        "| model | LSTM weights | whole model | valid | test | deployed | over f32 | over best peer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = rows[0]
    for row in rows:
        ratios = [row["over_f32"], row["over_best_peer"]]
        shown = [f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in ratios]  # type: ignore[index]
        counts = f"{row['model_weights']:,}"
        fewer = int(str(first["lstm_weights"])) / int(str(row["lstm_weights"]))
        lines.append(
            f"| {row['name']} | {row['lstm_weights']:,} ({fewer:.1f}x) | {counts} | {row['valid']} "
            f"({row['valid_deployed']}) | {row['test']} ({row['test_deployed']}) | {row['deployed']} | "
            f"{shown[0]} | {shown[1]} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["small"], default="small")
    parser.add_argument("--work", type=Path, default=Path("build/ptb"))
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compression", type=int, nargs="*", default=list(COMPRESSIONS))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    words = read(data_folder())
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "dense.onnx").is_file():
        script = [sys.executable, "-m", "models.ptb.train", "--checkpoint", str(options.work)]
        subprocess.run([*script, "--threads", str(options.threads)], check=True)
    rows = [
        Row(PUBLISHED, options.work / "dense.onnx"),
        Row(SAME_RECIPE, options.work / "dense-same-recipe.onnx"),
    ]
    train(rows[0].file, rows[0].file, rows[1], words, 1.0, options)
    for compression in options.compression:
        row = Row(f"{compression}x fewer LSTM weights", options.work / f"sparse-{compression}.onnx")
        train(rows[0].file, rows[1].file, row, words, 1 / compression, options)
        rows.append(row)
    found = measured(rows, words)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "ptb.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.output / "ptb.md").write_text(table(found, "make ptb SIZE=small"))
    print(table(found, "make ptb SIZE=small"), flush=True)


if __name__ == "__main__":
    main()
