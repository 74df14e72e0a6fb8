"""Latency of the reference model in every runtime and precision, and of artifacts beside it.

make bench [ARTIFACT=build/demo]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lstmopt.passes.bench import bench
from lstmopt.reference.char_lm import model_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", type=Path, nargs="*", help="artifact folders to time beside the model")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    result = bench([model_path(), *options.artifacts], target="local", rounds=options.rounds)
    Console(width=140).print(result.render())


if __name__ == "__main__":
    main()
