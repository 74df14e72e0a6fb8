"""Compiles a trained LSTM in ONNX into one that is small, as accurate and fast where it runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lstmopt.errors import ContractError, LstmoptError

if TYPE_CHECKING:
    from lstmopt.passes.advise import advise
    from lstmopt.passes.artifact import open_artifact
    from lstmopt.passes.verify import verify_artifact
    from lstmopt.pipeline import Budget, Pipeline, Stage, State, optimize
    from lstmopt.pipeline.from_torch import optimize_module
    from lstmopt.rnn.files import load_model, save_model
    from lstmopt.rnn.inspection import inspect_model
    from lstmopt.targets import Target, load_target

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "ContractError",
    "LstmoptError",
    "Pipeline",
    "Stage",
    "State",
    "Target",
    "advise",
    "inspect_model",
    "load_model",
    "load_target",
    "open_artifact",
    "optimize",
    "optimize_module",
    "save_model",
    "verify_artifact",
]

_HOMES = {
    "Budget": "pipeline",
    "Pipeline": "pipeline",
    "Stage": "pipeline",
    "State": "pipeline",
    "Target": "targets",
    "advise": "passes.advise",
    "inspect_model": "rnn.inspection",
    "load_model": "rnn.files",
    "load_target": "targets",
    "open_artifact": "passes.artifact",
    "optimize": "pipeline",
    "optimize_module": "pipeline.from_torch",
    "save_model": "rnn.files",
    "verify_artifact": "passes.verify",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import lstmopt` costs nothing where one name is wanted.
    if name not in _HOMES:
        raise AttributeError(f"module 'lstmopt' has no attribute {name!r}")
    return getattr(import_module(f"lstmopt.{_HOMES[name]}"), name)
