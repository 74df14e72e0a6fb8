"""Simplifies the graph: written-out layers, onnxsim's folding, zero initial states; outputs are checked."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lstmopt.errors import LstmoptError
from lstmopt.passes.rewrites import DropZeroStates, FoldWeights
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.proof import Proof
from lstmopt.rnn.recognition.recognise import recognise
from lstmopt.rnn.rewriting import rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.pipeline import State

# A process of its own, since onnxsim is native code that can crash or hang on an odd graph.
_ONNXSIM = """
import inspect, sys, onnx, onnxsim
wanted = {"perform_optimization": False, "certify": False}
known = inspect.signature(onnxsim.simplify).parameters
options = {name: value for name, value in wanted.items() if name in known}
model, _ = onnxsim.simplify(onnx.load(sys.argv[1]), **options)
onnx.save(model, sys.argv[2])
"""


@dataclass(frozen=True)
class Simplify:
    """Stage: a smaller graph that computes the same, or the graph as it was.

    Args:
        timeout: seconds that onnxsim may take.
    """

    timeout: float = 300.0

    name: ClassVar[str] = "simplify"
    needs: ClassVar[tuple[str, ...]] = ("model",)
    gives: ClassVar[tuple[str, ...]] = ("model",)

    def run(self, state: State) -> State:
        """Returns the state with the simplified model; a note says why where it was left as it is."""
        model, notes = simplify(state.model, timeout=self.timeout)
        return replace(state, model=model, notes=(*state.notes, *notes))


SHOWN = 4
"""Names that a note lists."""


def simplify(model: ir.Model, *, timeout: float = 300.0) -> tuple[ir.Model, tuple[str, ...]]:
    """Simplifies a copy of a model.

    Names, order, types and dynamic axes of inputs and outputs stay, and so does every layer that could
    be changed before.

    Args:
        model: the graph.
        timeout: seconds that onnxsim may take.

    Returns:
        The simplified copy, or the best that passed the check (the model itself in the worst case), and
        notes on what was recognised and what was given up.
    """
    defaults = [str(value.name) for value in model.graph.inputs if value.is_initializer() and value.uses()]
    recognised = recognise(model)
    model = recognised.model
    try:
        check = Proof(model)
    except LstmoptError as error:
        return model, (f"not simplified: {error.fault}, so nothing could be checked",)
    notes = list(recognised.notes)
    if defaults:
        more = f" and {len(defaults) - SHOWN} more" if len(defaults) > SHOWN else ""
        notes.append(f"inputs that have a default are constants now: {', '.join(defaults[:SHOWN])}{more}")
    best, fault = model, ""
    try:
        candidate = _restore_interface(_onnxsim(model, timeout), model)
        fault = check.fault(candidate)
    except LstmoptError as error:
        fault = error.fault
    if fault:
        notes.append(f"not simplified by onnxsim: {fault}")
    else:
        best = candidate
    try:
        own = rewrite(best, DropZeroStates(), FoldWeights())
        fault = check.fault(own)
    except LstmoptError as error:
        fault = f"{error.where} {error.fault}"
    if fault:
        notes.append(f"zero initial states kept: {fault}")
        return best, tuple(notes)
    return own, tuple(notes)


def _onnxsim(model: ir.Model, timeout: float) -> ir.Model:
    """Runs onnxsim in a process of its own.

    Raises:
        LstmoptError: it failed, crashed, took too long or wrote something that is not a model.
    """
    with tempfile.TemporaryDirectory(prefix="lstmopt-simplify-") as folder:
        source, result = Path(folder) / "model.onnx", Path(folder) / "simplified.onnx"
        save_model(model, source)
        command = [sys.executable, "-c", _ONNXSIM, str(source), str(result)]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LstmoptError("simplify", f"it took longer than {timeout:g} s", "go on without") from error
        if done.returncode != 0:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            what = f"it was killed by signal {-done.returncode}" if done.returncode < 0 else "it failed"
            raise LstmoptError(
                "simplify", f"{what} ({lines[-1][:200] if lines else 'no message'})", "go on without"
            )
        return load_model(result)


def _restore_interface(model: ir.Model, original: ir.Model) -> ir.Model:
    """Gives a model's inputs and outputs the shapes and dynamic axes that they were declared with.

    Raises:
        LstmoptError: they have other names, order or types.
    """
    for kind in ("inputs", "outputs"):
        mine, declared = (_fed(getattr(each.graph, kind)) for each in (model, original))
        if [value.name for value in mine] != [value.name for value in declared]:
            raise LstmoptError("simplify", f"the {kind} changed their names or order", "go on without")
        for value, before in zip(mine, declared, strict=True):
            if value.dtype != before.dtype:
                raise LstmoptError("simplify", f"{value.name} changed its type", "go on without")
            value.shape = None if before.shape is None else before.shape.copy()
    # onnxsim writes its own log there.
    model.metadata_props.clear()
    model.metadata_props.update(original.metadata_props)
    return model


def _fed(values: Iterable[ir.Value]) -> list[ir.Value]:
    """Returns the values that are not initializers that also stand among the inputs."""
    return [value for value in values if not value.is_initializer()]
