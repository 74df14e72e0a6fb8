"""Optimises the reference model from Python and reads the report.

python examples/optimize_language_model.py OUTPUT [SECONDS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import lstmopt
from lstmopt.reference.char_lm import corpus, model_path


def main(output: Path, seconds: float) -> None:
    """Optimises and prints what was gained."""
    text = corpus()
    state = lstmopt.optimize(
        model_path(),
        target="local",
        data={"tokens": text.train},
        val={"tokens": text.valid[:20_000]},
        max_degradation=0.05,
        budget=lstmopt.Budget(seconds=seconds),
        output=output,
    )
    report = state.report
    assert report is not None
    shipped, ratios = report.optimized, report.ratios
    print(f"{shipped.file} in {shipped.runtime} {shipped.precision}")
    print(f"{ratios.latency_over_f32.value:.2f}x over the fastest f32 peer")
    print(f"{ratios.latency_over_best_peer.value:.2f}x over the best peer")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 270.0)
