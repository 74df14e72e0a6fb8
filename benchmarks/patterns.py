"""Which masks and number formats keep accuracy: Penn Treebank (2 x 200) and the reference model; resumable.

    make patterns

Every row is one training from the tuned dense model, which is its teacher too, and ends with a file in
the work folder; a call goes on where the last one stopped. `--only` trains rows by the beginning of their
names (`ptb`, `ptb-bank64`), without a table. The table goes to docs/results/patterns.md; rows whose files are
not in the work folder stay in it as they are in patterns.json, with the CPU and the commit that made them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.pattern_models import (
    DENSITIES,
    EPOCHS,
    PARTS,
    ROUNDED,
    STEPS,
    CharLm,
    Model,
    PennTreebank,
    Row,
    in_onnxruntime,
)
from benchmarks.pattern_page import page
from benchmarks.rows import made_here, publish
from benchmarks.sparse_models import deployed, with_sparse_lstms
from lstmopt.cli import progress_shown
from lstmopt.measure.process import Candidate
from lstmopt.measure.timing import compare
from lstmopt.rnn.examples import example_inputs
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import Deployment, runtime
from lstmopt.sparsity.formats import FORMATS
from lstmopt.tasks.base import Evaluation, degradation

PEERS = (("onnxruntime", "f32"), ("onnxruntime", "int8"), ("openvino", "f32"), ("openvino", "bf16"))
SEQUENCE = 35
ROUNDS = 8


def figures(found: Mapping[str, Evaluation], against: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Returns perplexities, and the degradation on validation data with its interval."""
    worse = degradation(against["valid"], found["valid"])
    return {
        **{part: round(found[part].metric, 3) for part in PARTS},
        "degradation": {name: getattr(worse, name) for name in ("value", "low", "high")},
    }


def fitting(pattern: str) -> list[str]:
    """Returns the formats that a pattern's masks may be packed in; gates share indices only where they do."""
    return [name for name in FORMATS if name != "i8-shared" or pattern.startswith("gate-shared")]


def latencies(model: Model, row: Row) -> dict[str, Any]:
    """Returns microseconds of the last layer in ONNX Runtime: dense, and sparse in every format that fits.

    Kept in the work folder, unless it is not to be trusted.
    """
    path = model.work / "latencies" / f"{row.name}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    weights = find_rnns(load_model(model.file(row)))[-1].weights
    folder = path.parent / row.name
    folder.mkdir(parents=True, exist_ok=True)
    plain = rnn_model(weights, sequence=SEQUENCE, batch=1)
    save_model(plain, folder / "dense.onnx")
    feeds = example_inputs(plain, 0, {})
    timed = {
        f"dense {precision}": runtime(where).build(folder / "dense.onnx", precision, folder / precision)
        for where, precision in PEERS[:2]
    }
    for name in fitting(row.pattern):
        timed[name] = deployed(with_sparse_lstms(plain, name), name, folder / f"{name}.onnx")
    with progress_shown() as progress:
        result = compare(
            [Candidate(name, item, [(1.0, feeds)]) for name, item in timed.items()],
            threads=1,
            rounds=ROUNDS,
            progress=lambda text, fraction: progress(f"{row.name}: {text}", fraction),
        )
    found = {
        "trusted": result.trusted,
        "us": {name: result.timing(name).median for name in timed},
        "over int8": {name: result.ratio("dense int8", name).value for name in timed},
    }
    shutil.rmtree(folder)
    if result.trusted:
        path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def in_formats(model: Model, row: Row) -> list[dict[str, Any]]:
    """Returns a row's figures in every format that fits, as the runtime computes them."""
    trained, dense = load_model(model.file(row)), model.dense()

    def made(name: str) -> Callable[[Path], Deployment]:
        return lambda folder: deployed(with_sparse_lstms(trained, name), name, folder / "model.onnx")

    names = fitting(row.pattern)
    found = {name: model.evaluate(f"{row.name}-in-{name}", made(name)) for name in names}
    return [{"row": vars(row), "format": name, **figures(item, dense)} for name, item in found.items()]


def peers(model: Model) -> list[dict[str, Any]]:
    """Returns the dense model's figures in the runtimes' own precisions."""

    def made(where: str, precision: str) -> Callable[[Path], Deployment]:
        return lambda folder: runtime(where).build(model.start, precision, folder)

    dense = model.dense()
    found = []
    for where, precision in PEERS:
        if precision in runtime(where).precisions():
            name = f"{model.name}-dense-{where}-{precision}"
            item = model.evaluate(name, made(where, precision))
            found.append({"peer": f"{where} {precision}", **figures(item, dense)})
    return found


def merged(model: Model, part: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Returns a model's part of the document with the rows of an earlier one that are not made again.

    Args:
        model: whose rows.
        part: rows that were made now.
        before: the earlier part, or nothing.
    """
    for line in (*part["rows"], *part["formats"]):
        line["made"] = made_here()
    found = dict(part)
    for kind, key in (("rows", ("row",)), ("formats", ("row", "format"))):
        new = {json.dumps([line[name] for name in key]) for line in part[kind]}
        old = [line for line in before.get(kind, ()) if json.dumps([line[name] for name in key]) not in new]
        found[kind] = [*part[kind], *old]
    known = {json.dumps(line["row"]) for line in (*found["rows"], *found["formats"])}
    found["missing"] = [row.name for row in model.rows if json.dumps(vars(row)) not in known]
    return found


def write_page(models: list[Model], output: Path) -> None:
    """Evaluates and times what is trained, and writes ``patterns.json`` and ``patterns.md``."""
    file = output / "patterns.json"
    document: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    for model in models:
        rows = [row for row in model.rows if model.file(row).is_file()]
        if not rows:
            continue
        evaluated = {row: model.evaluate(row.name, in_onnxruntime(model.file(row))) for row in rows}
        formats = [row for row in rows if row.density == DENSITIES[0] and row.pattern in dict(ROUNDED)]
        part = {
            "recipe": repr(model.recipe(rows[0])),
            "peers": peers(model),
            "rows": [
                {
                    "row": vars(row),
                    "nonzero": sum(
                        layer.weights.nonzero_parameters
                        for layer in find_rnns(load_model(model.file(row)))
                        if layer.weights is not None
                    ),
                    **figures(evaluated[row], model.dense()),
                    "latency": latencies(model, row),
                }
                for row in rows
                if row.rounding is None
            ],
            "formats": [line for row in formats for line in in_formats(model, row)],
        }
        document[model.name] = merged(model, part, document.get(model.name, {}))
    publish(output, "patterns", document, page(document, "make patterns"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("build/patterns"))
    parser.add_argument("--ptb", type=Path, default=Path("build/ptb"), help="work folder of benchmarks.ptb")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="of a row of Penn Treebank")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a row of the reference model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows whose names begin so, no table")
    parser.add_argument("--table-only", action="store_true", help="train nothing, show what is there")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    models: list[Model] = [PennTreebank(options), CharLm(options)]
    for model in models if not options.table_only else ():
        for row in model.rows:
            if not options.only or row.name.startswith(tuple(options.only)):
                model.train(row)
    if not options.only:
        write_page(models, options.output)


if __name__ == "__main__":
    main()
