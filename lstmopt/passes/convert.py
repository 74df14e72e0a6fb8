"""Converts a model for one runtime; the precision is chosen by measuring where it is not given."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lstmopt import measure
from lstmopt.errors import LstmoptError
from lstmopt.passes.candidates import Feeds, timing_calls
from lstmopt.report.folder import write_folder
from lstmopt.rnn.files import save_model
from lstmopt.rnn.states import state_pairs
from lstmopt.runtimes import open_session
from lstmopt.runtimes import runtime as find_runtime
from lstmopt.runtimes.base import Deployment
from lstmopt.targets import Target, load_target

if TYPE_CHECKING:
    import onnx_ir as ir

AUTO_ERROR = 0.01
"""Root mean square error over the outputs' standard deviation that `auto` allows."""


def convert(
    model: ir.Model,
    path: Path,
    runtime: str,
    precision: str,
    target: str | Path | Target,
    output: Path,
    progress: Callable[[str, float], None],
) -> tuple[Deployment, float]:
    """Writes a model for a runtime.

    Args:
        model: the graph.
        path: its file, for errors.
        runtime: the runtime's name.
        precision: "f32", "bf16", "int8", or "auto": the fastest within 1% of the outputs' deviation.
        target: for its shapes and threads.
        output: the folder to write.
        progress: told how far it is.

    Returns:
        The deployment, and the root mean square of its outputs' error against ONNX Runtime's f32 over
        their standard deviation.

    Raises:
        LstmoptError: the runtime or precision does not run here, or the model cannot be converted.
    """
    engine, chosen = find_runtime(runtime), load_target(target)
    status = engine.status()
    if not status.usable:
        raise LstmoptError(f"--runtime {runtime}", status.reason, "see lstmopt doctor")
    wanted = engine.precisions() if precision == "auto" else (precision,)
    if any(item not in engine.precisions() for item in wanted):
        raise LstmoptError(
            f"--format {precision}",
            f"{runtime} does not run it here",
            f"use one of {', '.join(engine.precisions())}",
        )
    with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder:
        source = Path(folder) / "source.onnx"
        save_model(model, source)
        calls = timing_calls(model, chosen, 0)
        truth = find_runtime("onnxruntime").build(source, "f32", Path(folder) / "truth")
        try:
            built = [engine.build(source, item, Path(folder) / item) for item in wanted]
        except LstmoptError as error:
            # The copy that was converted is of no interest to the user, and gone.
            where = str(path) if error.where == str(source) else error.where
            raise LstmoptError(where, error.fault, error.mend) from error
        real = [
            str(v.name) for v in model.graph.outputs if v.name not in {p.output for p in state_pairs(model)}
        ]
        errors = {item.precision: _error(item, truth, calls[0][1], real, chosen.threads) for item in built}
        best = built[0]
        if len(built) > 1:
            candidates = [measure.Candidate(item.precision, item, calls) for item in built]
            comparison = measure.compare(candidates, threads=chosen.threads, progress=progress)
            allowed = [item for item in built if errors[item.precision] <= AUTO_ERROR] or [built[0]]
            best = min(allowed, key=lambda item: comparison.timing(item.precision).median)
        write_folder(best.file.parent, output)
    return best.model_copy(update={"file": output / best.file.name}), errors[best.precision]


def _error(ours: Deployment, truth: Deployment, feeds: Feeds, names: list[str], threads: int) -> float:
    """Returns the root mean square error over the standard deviation, of the real outputs."""
    a, b = open_session(ours, threads).run(feeds), open_session(truth, threads).run(feeds)
    total = scale = 0.0
    for name in names:
        total += float(((a[name].astype(np.float64) - b[name].astype(np.float64)) ** 2).mean())
        scale += float(b[name].astype(np.float64).var())
    return float(np.sqrt(total / scale)) if scale else float(np.sqrt(total))
