"""How often a comparison of a model with itself leaves 0.98..1.02; exit code 1 where in 5% of runs or more.

A run that publishes nothing, because its own A/A pair left the range after all attempts, has left it.

python benchmarks/aa.py --runs 40
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from lstmopt.measure import Candidate, compare
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.reference.char_lm import model_path
from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.files import load_model
from lstmopt.runtimes import runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--precision", default="f32")
    options = parser.parse_args()
    model = load_model(model_path())
    feeds = example_inputs(model, 0, sizes_for(model, 1, 35))
    print(fingerprint().cpu)
    outside = untrusted = covered = 0
    with tempfile.TemporaryDirectory() as folder:
        deployment = runtime(options.runtime).build(model_path(), options.precision, Path(folder))
        pair = [Candidate(name, deployment, [(1.0, feeds)]) for name in ("A", "B")]
        for run in range(options.runs):
            comparison = compare(pair, threads=1, seed=1000 * run)
            ratio = comparison.ratio("A", "B")
            untrusted += not comparison.trusted
            outside += not comparison.trusted or not 0.98 <= ratio.value <= 1.02
            covered += ratio.low <= 1.0 <= ratio.high
            print(
                f"{run}: {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}] {comparison.trusted}",
                flush=True,
            )
    print(f"outside 0.98..1.02: {outside} of {options.runs}, {untrusted} of them not published")
    print(f"intervals that hold 1: {covered} of {options.runs}")
    sys.exit(outside >= 0.05 * options.runs)


if __name__ == "__main__":
    main()
