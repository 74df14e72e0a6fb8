"""The stage `Trained`: takes a model that was trained before in the place of training one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from lstmopt import keys
from lstmopt.errors import LstmoptError
from lstmopt.rnn.examples import real_inputs
from lstmopt.rnn.files import load_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.states import state_pairs
from lstmopt.sparsity.patterns import EXAMPLES, parse_pattern

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.pipeline import State

PATTERNS = ("gate-shared64:step4", "bank64:step4", "bank32:step2", *EXAMPLES[1:], "bank64", "unstructured")
"""Patterns that a trained model's zeros are held against, in this order."""


@dataclass(frozen=True)
class Trained:
    """Stage: a model with the same interface as the original's becomes the candidate.

    What was trained once is measured, packed and verified for another machine, or again by a newer version,
    without training: ``model.onnx`` of an artifact is such a model.

    Args:
        path: the ONNX file.

    Raises:
        LstmoptError: there is no such file, or it is not ONNX.
    """

    path: str
    digest: str = field(default="", init=False)

    name: ClassVar[str] = "trained"
    needs: ClassVar[tuple[str, ...]] = ("model", "target")
    gives: ClassVar[tuple[str, ...]] = ("trained",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))
        load_model(self.path)  # that it is one, before anything is measured
        # The file is part of what the stage is: another one of that name is another stage.
        object.__setattr__(self, "digest", keys.file_digest(Path(self.path)))

    def check(self, model: ir.Model, original: ir.Model, name: str) -> None:
        """Checks that a model takes and gives what the original does.

        Args:
            model: the trained one.
            original: what it was trained from.
            name: of the original's file.

        Raises:
            LstmoptError: its inputs or outputs are others; sizes of states may differ.
        """
        mend = "give a model that was trained from this one, its axes as dynamic"
        for kind in ("inputs", "outputs"):
            ours, theirs = _interface(model, kind), _interface(original, kind)
            if ours != theirs:
                fault = f"its {kind} are {', '.join(ours)}, those of {name} {', '.join(theirs)}"
                raise LstmoptError(self.path, fault, mend)
            known = dict(_sizes(original, kind))
            for value, sizes in _sizes(model, kind):
                before = known.get(value, sizes)
                # An input that takes one size where the original takes any is another interface.
                narrow = kind == "inputs"
                if len(sizes) != len(before) or any(
                    here is not None and here != there and (narrow or there is not None)
                    for here, there in zip(sizes, before, strict=True)
                ):
                    fault = f"its {kind[:-1]} {value} is {_shown(sizes)}, that of {name} {_shown(before)}"
                    raise LstmoptError(self.path, fault, mend)

    def run(self, state: State) -> State:
        """Returns the state with the model.

        Raises:
            LstmoptError: it is not ONNX, or its inputs and outputs are not the original's.
        """
        model = load_model(self.path)
        self.check(model, state.original, state.source.name)
        return replace(
            state,
            model=model,
            masks={},
            pattern=pattern_of(model),
            trained={**state.trained, self.name: model},
            notes=(*state.notes, f"not trained here: the weights are those of {Path(self.path).name}"),
        )


def _sizes(model: ir.Model, kind: str) -> Iterator[tuple[str, list[int | None]]]:
    """Yields names and fixed sizes of what is no state."""
    states = {name for pair in state_pairs(model) for name in (pair.input, pair.output)}
    for value in real_inputs(model) if kind == "inputs" else model.graph.outputs:
        if value.name not in states and value.shape is not None:
            yield str(value.name), [size if isinstance(size, int) else None for size in value.shape]


def pattern_of(model: ir.Model) -> str:
    """Returns the first of `PATTERNS` that all of the LSTMs' zeros follow; "dense" without zeros."""
    if all(mask.all() for mask in _masks(model)):
        return "dense"
    return next(text for text in PATTERNS if follows(model, text))


def follows(model: ir.Model, pattern: str) -> bool:
    """Whether all of the layers' zeros are where a pattern allows them."""
    return all(parse_pattern(pattern).is_legal(mask) for mask in _masks(model))


def _shown(sizes: list[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in sizes)}]"


def _masks(model: ir.Model) -> list[npt.NDArray[np.bool_]]:
    return [
        np.asarray(each != 0)
        for layer in find_rnns(model)
        if layer.weights is not None
        for matrix in layer.weights.matrices
        for each in matrix
    ]


def _interface(model: ir.Model, kind: str) -> list[str]:
    """Returns names and types; sizes may differ, as of states."""
    return [
        f"{value.name} ({value.dtype.name if value.dtype else '?'})" for value in getattr(model.graph, kind)
    ]
