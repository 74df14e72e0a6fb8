"""How often a comparison of a model with itself leaves 0.98..1.02.

python benchmarks/aa.py --runs 40
"""

from __future__ import annotations

import argparse
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
    outside = untrusted = 0
    with tempfile.TemporaryDirectory() as folder:
        deployment = runtime(options.runtime).build(model_path(), options.precision, Path(folder))
        pair = [Candidate(name, deployment, [(1.0, feeds)]) for name in ("A", "B")]
        for run in range(options.runs):
            comparison = compare(pair, threads=1, seed=1000 * run)
            ratio = comparison.ratio("A", "B")
            if not comparison.trusted:
                untrusted += 1  # no figure is published then
            elif not 0.98 <= ratio.value <= 1.02:
                outside += 1
            print(
                f"{run}: {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}] {comparison.trusted}",
                flush=True,
            )
    print(f"outside 0.98..1.02: {outside} of {options.runs}; not published: {untrusted}")


if __name__ == "__main__":
    main()
