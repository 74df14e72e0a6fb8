"""Optimises the reference model from Python and reads the report.

python examples/optimize_language_model.py OUTPUT [SECONDS [MODEL.onnx]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import lstmopt
from lstmopt.reference.char_lm import UNPINNED, corpus, model_path


def main(output: Path, seconds: float, model: Path) -> None:
    """Optimises and prints what was gained."""
    text = corpus()
    if not text.pinned:
        print(UNPINNED, file=sys.stderr)
    state = lstmopt.optimize(
        model,
        target="local",
        data={"tokens": text.train},
        val={"tokens": text.valid[:20_000]},
        max_degradation=0.05,
        budget=lstmopt.Budget(seconds=seconds),
        output=output,
        notes=() if text.pinned else (UNPINNED,),
    )
    report = state.report
    assert report is not None
    shipped, ratios = report.optimized, report.ratios
    print(f"{shipped.file} in {shipped.runtime} {shipped.precision}")
    for peer, ratio in (("fastest f32", ratios.latency_over_f32), ("best", ratios.latency_over_best_peer)):
        # There is no figure where the machine was too busy to measure one.
        figure = "no published speed" if ratio.value is None else f"{ratio.value:.2f}x"
        print(f"{figure} over the {peer} peer")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        float(sys.argv[2]) if len(sys.argv) > 2 else 270.0,
        Path(sys.argv[3]) if len(sys.argv) > 3 else model_path(),
    )
