"""A model's inputs and outputs as a task sees them: which axis is the batch, which inputs are states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.examples import axis_roles, real_inputs, token_bounds
from lstmopt.rnn.states import StatePair, state_pairs
from lstmopt.runtimes.base import TensorInfo
from lstmopt.tasks.axes import TRIAL_BATCH, OutputAxes, Trial, output_axes

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Port:
    """An input that data is fed to, or an output.

    Attributes:
        name: its name.
        dtype: its type.
        shape: its sizes; None where dynamic.
        batch_axis: the axis of sequences, or None.
        sequence_axis: the axis of steps, or None.
        rows: of an output that has both on axis 0, which runs slower: "sequence" or "batch"; otherwise "".
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    batch_axis: int | None
    sequence_axis: int | None
    rows: str = ""

    @property
    def each(self) -> tuple[int | None, ...]:
        """Sizes of one sequence's part; of the whole where no axis counts sequences."""
        if self.rows:
            return (None, *self.shape[1:])
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.batch_axis)

    @property
    def fixed_steps(self) -> int | None:
        """Steps of a call where tokens of two axes have a fixed number of them."""
        fixed = self.sequence_axis is None and len(self.shape) == 2
        return self.shape[1 - (self.batch_axis or 0)] if fixed else None

    def batch_first(self, output: Any, batch: int) -> Any:
        """Returns an output (array or tensor) with sequences on axis 0, steps on axis 1 if it was in rows."""
        if self.rows:
            steps = output.shape[0] // batch
            if self.rows == "batch":
                return output.reshape(batch, steps, *output.shape[1:])
            return output.reshape(steps, batch, *output.shape[1:]).swapaxes(0, 1)
        for axis in range(self.batch_axis or 0, 0, -1):
            output = output.swapaxes(axis, axis - 1)
        return output

    def steps_first(self, scores: Any, batch: int) -> Any:
        """Returns scores (array or tensor) as ``[sequence, batch, classes]``; those of one step are one."""
        if self.rows == "sequence" or self.batch_axis != 0:
            return scores.reshape(-1, batch, scores.shape[-1])
        scores = self.batch_first(scores, batch)
        return scores[None] if scores.ndim == 2 else scores.swapaxes(0, 1)


@dataclass(frozen=True)
class Interface:
    """A model's interface.

    Attributes:
        inputs: those that are not states.
        states: pairs of state inputs and outputs.
        outputs: real outputs, in order; the first one is what labels are compared with.
        vocabulary: number of tokens of each input that indexes a table.
        scale: what the first output is: "logits", "probabilities", "log-probabilities" or "sigmoids".
        batch: the batch where the model fixes it, else None.
        state_batch: axis of sequences of states whose shapes fix it, where other sizes work all the same.
    """

    inputs: tuple[Port, ...]
    states: tuple[StatePair, ...]
    outputs: tuple[Port, ...]
    vocabulary: Mapping[str, int]
    scale: str
    batch: int | None
    state_batch: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_language_model(self) -> bool:
        """Whether tokens go in and scores over the same vocabulary come out."""
        sizes = set(self.vocabulary.values())
        return (
            bool(sizes)
            and bool(self.outputs)
            and self.outputs[0].shape[-1:] != ()
            and self.outputs[0].shape[-1] in sizes
        )

    def port(self, name: str) -> Port:
        """Returns an input by its name."""
        return next(port for port in self.inputs if port.name == name)

    def zero_states(self, inputs: Sequence[TensorInfo], batch: int) -> dict[str, Array]:
        """Returns states of zeros in the shapes of a loaded model (resizing changes them)."""
        by_name = {info.name: info for info in inputs}
        found = {}
        for pair in self.states:
            info, free = by_name[pair.input], self.state_batch.get(pair.input)
            shape = [batch if size is None or axis == free else size for axis, size in enumerate(info.shape)]
            found[pair.input] = np.zeros(shape, info.dtype)
        return found

    def next_states(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the state inputs of the next call."""
        return {pair.input: outputs[pair.output] for pair in self.states}


def read_interface(model: ir.Model) -> Interface:
    """Returns a model's interface.

    Raises:
        LstmoptError: it has no output that is not a state.
    """
    roles = axis_roles(model)
    pairs = state_pairs(model)
    states = {pair.input for pair in pairs}
    carried = {pair.output for pair in pairs}
    trial = Trial(model, roles)
    sizes = trial.layer_sizes
    has_batch = "batch" in roles.values()
    vocabulary = token_bounds(model)
    inputs = [
        _input(value, roles, None if has_batch else sizes, trial)
        for value in real_inputs(model)
        if str(value.name) not in states
    ]
    fixed = [port.shape[port.batch_axis] for port in inputs if port.batch_axis is not None] or [1]
    probe = next(
        (
            (port.name, port.batch_axis, vocabulary.get(port.name))
            for port in inputs
            if port.batch_axis is not None
        ),
        None,
    )
    outputs = []
    for value in model.graph.outputs:
        name = str(value.name)
        if name in carried or value.dtype is None:
            continue
        named = OutputAxes(_axis(value, roles, "batch"), _axis(value, roles, "sequence"))
        axes = output_axes(trial, name, named, fixed[0] or TRIAL_BATCH, fixed[0] is not None, probe)
        shape = _seen_sizes(_sizes(value), trial.outputs[name].shape, axes)
        outputs.append(Port(name, np.dtype(value.dtype.numpy()), shape, axes.batch, axes.sequence, axes.rows))
    if not outputs:
        raise LstmoptError("model", "has no output that is not a state", "export it with its real output")
    return Interface(
        inputs=tuple(inputs),
        states=pairs,
        outputs=tuple(outputs),
        vocabulary=vocabulary,
        scale=_scale(model, outputs[0].name),
        batch=fixed[0],
    )


def _sizes(value: ir.Value) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in value.shape or ())


def _seen_sizes(
    declared: tuple[int | None, ...], seen: tuple[int, ...], axes: OutputAxes
) -> tuple[int | None, ...]:
    """Returns an output's declared sizes, or, where it was seen with others, what is known of them.

    Files declare shapes that are not those of their outputs: the last size, which is not one of the axes
    that grow, is then taken as it was seen.
    """
    fits = len(declared) == len(seen) and all(
        want is None or want == have for want, have in zip(declared, seen, strict=True)
    )
    if fits:
        return declared
    last = len(seen) - 1
    return tuple(
        size if axis == last and axis not in (axes.batch, axes.sequence) else None
        for axis, size in enumerate(seen)
    )


def _axis(value: ir.Value, roles: Mapping[str, str], role: str) -> int | None:
    """Returns the axis whose dynamic size has a role by its name."""
    for axis, size in enumerate(value.shape or ()):
        if not isinstance(size, int) and roles.get(size.value or f"{value.name}.{axis}") == role:
            return axis
    return None


def _input(value: ir.Value, roles: Mapping[str, str], sizes: tuple[int, int] | None, trial: Trial) -> Port:
    """Returns an input; `sizes` are steps and sequences of the first layer where the batch is fixed."""
    shape = _sizes(value)
    batch, sequence = _axis(value, roles, "batch"), _axis(value, roles, "sequence")
    if batch is None and "batch" not in roles.values():
        if sizes is not None:
            fitting = [axis for axis, size in enumerate(shape) if size == sizes[1] and axis != sequence]
            if len(fitting) > 1 and shape[:2] == sizes and sizes[0] > 1:
                fitting = [0 if trial.sequences_first(str(value.name)) else 1]  # as many steps as sequences
            batch = fitting[0] if fitting else None
        elif len(shape) > 1:
            # Without a layer to see, the batch is the first axis, unless that is the sequence.
            batch = 1 if sequence == 0 else 0
    assert value.dtype is not None
    return Port(str(value.name), np.dtype(value.dtype.numpy()), shape, batch, sequence)


KEEPS_SCALE = frozenset(
    {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Slice", "Gather",
     "Dropout", "Clip", "Min", "Max"}
)  # fmt: skip
"""Operators after which probabilities are still probabilities, but for what a bound cuts off."""


def _scale(model: ir.Model, output: str) -> str:
    value = next(value for value in model.graph.outputs if value.name == output)
    node = value.producer()
    logarithm = False
    while node is not None and node.op_type in (*KEEPS_SCALE, "Log"):
        logarithm = logarithm or node.op_type == "Log"
        node = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    kind = node.op_type if node is not None else ""
    kinds = {"LogSoftmax": "log-probabilities", "Sigmoid": "sigmoids", "HardSigmoid": "sigmoids"}
    if kind == "Softmax":
        return "log-probabilities" if logarithm else "probabilities"
    return "logits" if logarithm else kinds.get(kind, "logits")


def log_probabilities(scores: Array, scale: str) -> npt.NDArray[np.float64]:
    """Returns log-probabilities over the last axis in float64."""
    scores = scores.astype(np.float64)
    if scale == "probabilities":
        return np.asarray(np.log(np.maximum(scores, 1e-30)))
    if scale == "log-probabilities":
        return scores
    top = scores.max(axis=-1, keepdims=True)
    return np.asarray(scores - top - np.log(np.exp(scores - top).sum(axis=-1, keepdims=True)))


def check_classes(labels: Array, scores: Array) -> None:
    """Checks that there is a class for each score, and a score for each class.

    Args:
        labels: ``[...]``; -1 has no class.
        scores: ``[..., classes]``.

    Raises:
        LstmoptError: another shape, or a class that the model does not have.
    """
    check_answers(labels.shape, scores.shape[:-1])
    if labels.size and int(labels.max()) >= scores.shape[-1]:
        raise LstmoptError(
            "labels",
            f"hold class {int(labels.max())}, the model has 0 to {scores.shape[-1] - 1}",
            "mend the labels",
        )


def check_answers(labels: Sequence[int], answers: Sequence[int]) -> None:
    """Checks that labels have the shape of what the model answers.

    Raises:
        LstmoptError: they do not.
    """
    if tuple(labels) != tuple(answers):
        raise LstmoptError(
            "labels",
            f"have shape {list(labels)} where the model answers {list(answers)}",
            "give one label for each answer",
        )
