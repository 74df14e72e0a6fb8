"""Whole models in cuDNN on an NVIDIA GPU: latency in each form of `lstmopt.bridge.deployed`, in f16 and f32.

    python -m benchmarks.gpu_forms [MODEL.onnx ...]

Without models it takes the reference model and the same with 256, 384 and 512 units a layer. The runtime
`torch-cuda` has the first two forms, `cudnn` all. Sequence 35, batch 1.
CUDA events time the graph of a call; the last figure is a call that waits for its result, by the clock.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lstmopt.errors import LstmoptError
from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.files import load_model
from lstmopt.runtimes import cuda, runtime
from lstmopt.runtimes.cudnn import CUDNN, PRECISIONS, CuDnnSession

CALLS = 300


def models(folder: Path, given: list[str]) -> Iterator[tuple[str, Path]]:
    """Yields names and files."""
    if given:
        yield from ((Path(name).name, Path(name)) for name in given)
        return
    from lstmopt.passes import Resize, Simplify
    from lstmopt.pipeline import Pipeline
    from lstmopt.reference.char_lm import model_path
    from lstmopt.rnn.files import save_model

    yield "char_lm, 392 units", model_path()
    for size in (256, 384, 512):
        state = Pipeline(Simplify(), Resize(hidden_size=size)).run(
            model_path(), output=folder / f"run-{size}"
        )
        save_model(state.model, folder / f"{size}.onnx")
        yield f"char_lm, {size} units", folder / f"{size}.onnx"


def measured(path: Path, precision: str, folder: Path) -> str:
    """Returns the latencies of a model in one precision, as a row of Markdown."""
    torch = cuda.require("cudnn")
    session = CuDnnSession(CUDNN.build(path, precision, folder), "cuda", CUDNN.forms)
    model = load_model(path)
    feeds = example_inputs(model, 0, sizes_for(model, 1, 35, {}))
    times = {}
    for form in session.module.forms:
        call = session.launch(session.placed(feeds), form)
        times[form] = float(np.median(cuda.event_times(torch, cuda.captured(torch, call) or call, CALLS)))
    call = session.bind(feeds)
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        taken.append(1e6 * (time.perf_counter() - began))
    cells = [f"{times[form]:.1f}" if form in times else "" for form in CUDNN.forms]
    return " | ".join([precision, *cells, f"{np.median(taken[CALLS // 10 :]):.1f}"])


def main() -> None:
    card = cuda.gpu()
    try:
        torch = cuda.require("cudnn")
        print(f"{card.name if card else ''}, torch {torch.__version__}, {runtime('cudnn').status().version}")
        heads = [f"{form}, us" for form in CUDNN.forms]
        print(f"| | | {' | '.join(heads)} | a call, us |\n|{'---|' * (len(heads) + 3)}")
        with tempfile.TemporaryDirectory() as name:
            for title, path in models(Path(name), sys.argv[1:]):
                for precision in PRECISIONS[::-1]:
                    print(f"| {title} | {measured(path, precision, Path(name) / precision)} |", flush=True)
    except LstmoptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
