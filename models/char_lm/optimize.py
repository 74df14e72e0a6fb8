"""Optimises the reference model with no degradation allowed; up to 90 minutes on 2 cores, resumable.

python -m models.char_lm.optimize -o build/char-lm
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from lstmopt.cli import progress_shown
from lstmopt.passes import BackOff, Export, GrowPrune, Peers, Probe, Simplify, Trained, Verify
from lstmopt.pipeline import Budget, Pipeline
from lstmopt.reference.char_lm import UNPINNED, corpus, model_path
from lstmopt.report.schema import Report
from lstmopt.report.text import result_table

TRAINING_SECONDS = 75 * 60.0
COMPRESSION = 10.2
SCALES = (0.98,)
"""384 units, a multiple of 64, to which the sparse ops pad; more units with as few weights lose less."""

RELAXED = (1.0, 0.985)
"""A plan that misses the contract goes on from its weights, with a few more of them."""


def main() -> None:
    """Runs, or goes on where the last call stopped."""
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/char-lm"))
    parser.add_argument("--seconds", type=float, default=TRAINING_SECONDS, help="of all training together")
    parser.add_argument("--trained", type=Path, help="deploy this model, trained before; no training")
    parser.add_argument("--target", default="local")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, help="shares of the hidden size")
    options = parser.parse_args()
    text = corpus()
    if not text.pinned:
        print(UNPINNED, file=sys.stderr)
    train = GrowPrune(learning_rate=4e-3, regrow=0.1, dropout=0.0)
    stages = (
        (Trained(options.trained), Peers())
        if options.trained
        else (
            Peers(),
            Probe(step=16, smallest=0.85 * min(1.0, *options.scales), densities=(1 / COMPRESSION,)),
            BackOff(scales=tuple(options.scales), compression=COMPRESSION, relaxed=RELAXED, train=train),
        )
    )
    stages = (Simplify(), *stages, Export(), Verify())
    with progress_shown() as progress:
        state = Pipeline(*stages).run(
            model_path(),
            target=options.target,
            output=options.output,
            data={"tokens": text.train},
            val={"tokens": text.valid},
            test={"tokens": text.test},
            task="lm",
            max_degradation=0.0,
            budget=Budget(seconds=options.seconds),
            command=shlex.join(["python", "-m", "models.char_lm.optimize", *sys.argv[1:]]),
            notes=() if text.pinned else (UNPINNED,),
            progress=progress,
        )
    Console(width=160).print(result_table(Report.load(state.output / "report.json")))
    print(state.output / "report.html")


if __name__ == "__main__":
    main()
