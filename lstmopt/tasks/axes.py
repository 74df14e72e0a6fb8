"""Finds the batch and sequence axes that names do not tell, by running the model with other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.reader import X, recurrent_nodes

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]
TRIAL_BATCH, TRIAL_SEQUENCE = 3, 5
"""Two primes, so that a size tells what it counts."""


@dataclass(frozen=True)
class OutputAxes:
    """What the axes of an output count.

    Attributes:
        batch: the axis of sequences, or None.
        sequence: the axis of steps, or None.
        rows: where both are one axis, which of them runs slower, "sequence" or "batch"; otherwise "".
    """

    batch: int | None
    sequence: int | None
    rows: str = ""


class Trial:
    """A model that is run with a few sizes.

    Args:
        model: the graph.
        roles: what each dynamic axis is, see `axis_roles`.
    """

    def __init__(self, model: ir.Model, roles: Mapping[str, str]) -> None:
        layers = recurrent_nodes(model)
        watched = layers[0].inputs[X] if layers else None
        self._model, self._roles = model, roles
        self._watched = None if watched is None else str(watched.name)
        self._reference = Reference(model, also=[] if self._watched is None else [self._watched])
        self._grown: dict[str, dict[str, int]] = {}
        self._sizes = sizes_for(model, TRIAL_BATCH, TRIAL_SEQUENCE)
        self.feeds = example_inputs(model, 0, self._sizes)
        self.outputs = self._reference.run(self.feeds)

    @property
    def layer_sizes(self) -> tuple[int, int] | None:
        """Steps and sequences that reach the first recurrent layer, or None where there is none to see."""
        if self._watched is None:
            return None
        shape = self.outputs[self._watched].shape
        return (shape[0], shape[1]) if len(shape) == 3 else None

    def grown(self, role: str) -> dict[str, int]:
        """Returns the axis of each output that grows when the axes of a role do."""
        if role not in self._grown:
            self._grown[role] = self._grow(role)
        return self._grown[role]

    def _grow(self, role: str) -> dict[str, int]:
        keys = [key for key, found in self._roles.items() if found == role]
        for factor in (2, 3):
            sizes = {**self._sizes, **{key: self._sizes[key] * factor for key in keys}}
            try:
                after = self._reference.run(example_inputs(self._model, 0, sizes)) if keys else {}
            except LstmoptError:
                continue
            pairs = {name: (self.outputs[name].shape, array.shape) for name, array in after.items()}
            return {
                name: next(axis for axis, sizes in enumerate(zip(a, b, strict=True)) if sizes[0] != sizes[1])
                for name, (a, b) in pairs.items()
                if len(a) == len(b) and a != b
            }
        return {}

    def sequences_first(self, name: str) -> bool:
        """Whether the first axis of an input counts sequences, where as many steps are on the next.

        What lies at its first place is then read by one sequence of the first recurrent layer alone.

        Args:
            name: name of the input.
        """
        assert self._watched is not None
        feeds = {key: array.copy() for key, array in self.feeds.items()}
        feeds[name][0] = feeds[name][:1] * 0 if feeds[name][0].any() else feeds[name][0] + 1
        before, after = self.outputs[self._watched], self._reference.run(feeds)[self._watched]
        changed = (before != after).any(axis=2)  # [steps, sequences]
        return bool(changed.any(axis=0).sum() == 1)

    def changed_rows(
        self, output: str, name: str, batch_axis: int, limit: int | None
    ) -> npt.NDArray[np.intp]:
        """Returns which rows of an output depend on the first sequence of an input.

        Args:
            output: name of the output.
            name: name of the input.
            batch_axis: the input's axis of sequences.
            limit: for tokens, their number.
        """
        feeds = {key: array.copy() for key, array in self.feeds.items()}
        first = np.moveaxis(feeds[name], batch_axis, 0)
        first[0] = first[0] + 1 if limit is None else (first[0] + 1) % limit
        before, after = self.outputs[output], self._reference.run(feeds)[output]
        return np.flatnonzero(np.any((before != after).reshape(len(before), -1), axis=1))


def output_axes(
    trial: Trial,
    name: str,
    named: OutputAxes,
    batch: int,
    fixed_batch: bool,
    probe: tuple[str, int, int | None] | None,
) -> OutputAxes:
    """Returns what the axes of an output count.

    Args:
        trial: the model.
        name: the output.
        named: what names tell.
        batch: sequences in the trial.
        fixed_batch: whether the model fixes them.
        probe: an input, its batch axis and, for tokens, their number.
    """
    shape = trial.outputs[name].shape
    inner = range(max(1, len(shape) - 1))
    # What was seen goes before names: files declare shapes that are not those of their outputs.
    found_batch = trial.grown("batch").get(name, named.batch if named.batch in inner else None)
    found_sequence = trial.grown("sequence").get(name, named.sequence if named.sequence in inner else None)
    steps = None if trial.layer_sizes is None else trial.layer_sizes[0]
    merged = len(shape) == 2 and steps is not None and shape[0] == steps * batch and steps > 1 and batch > 1
    if merged and probe is not None:
        rows = trial.changed_rows(name, *probe)
        return OutputAxes(0, 0, "sequence" if np.all(rows % batch == 0) else "batch")
    if found_batch is None and fixed_batch:
        found_batch = next((axis for axis in inner if axis != found_sequence and shape[axis] == batch), None)
    if found_sequence is None:
        others = [axis for axis in inner if axis != found_batch]
        found_sequence = next((axis for axis in others if shape[axis] == steps), None)
    return OutputAxes(found_batch, found_sequence)
