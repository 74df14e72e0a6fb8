"""Chains passes by hand: resizes to given hidden sizes and exports, without any training.

python examples/chain_passes.py MODEL.onnx HIDDEN_SIZE OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import lstmopt
from lstmopt.passes import Export, Resize, Simplify, Verify


def main(model: Path, hidden_size: int, output: Path) -> None:
    """Runs the chain."""
    pipeline = lstmopt.Pipeline(Simplify(), Resize(hidden_size=hidden_size), Export(), Verify())
    # Without training the outputs change a lot: whatever breaks this contract is not what ships.
    state = pipeline.run(model, target="local", output=output, max_degradation=0.05)
    for candidate in state.candidates:
        worse = candidate.degradation.value if candidate.degradation else 0.0
        print(f"{candidate.title}: {candidate.latency.median:.0f} us, degradation {worse:+.2%}")
    assert state.report is not None
    print(f"ships: {state.report.optimized.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
