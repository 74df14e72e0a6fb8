"""Folds the mean activation of removed units into the biases of what read them.

A removed unit leaves its readers without its mean; adding weight times mean to the bias keeps every
reader's mean input, which is a better start for fine-tuning than zero (as in PFA or FLAP pruning).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.constants import constant_value
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.groups import Analysis
from lstmopt.rnn.labels import Member
from lstmopt.rnn.plan import Plan
from lstmopt.rnn.reader import Y_H, X, Y
from lstmopt.rnn.weights import FloatArray
from lstmopt.rnn.writer import replace_constant, write_weights

if TYPE_CHECKING:
    import onnx_ir as ir

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Activations on calibration inputs.

    Attributes:
        deviations: standard deviation of each unit's output, ``[hidden]``, by the lane's base code.
        means: mean of each unit's output, ``[hidden]``, by the lane's base code.
        readers: mean of each feature of a value that units reach, by the value's name.
    """

    deviations: Mapping[int, FloatArray]
    means: Mapping[int, FloatArray]
    readers: Mapping[str, Vector]


def measure(
    model: ir.Model, analysis: Analysis, calibration: Sequence[Mapping[str, npt.NDArray[Any]]]
) -> Moments:
    """Runs a model on calibration inputs and returns the moments of its units.

    Raises:
        LstmoptError: the inputs do not fit the model.
    """
    outputs: dict[str, tuple[str, int]] = {}
    for layer in analysis.layers.values():
        value, unit_axes = (layer.output(Y), 4) if layer.output(Y) is not None else (layer.output(Y_H), 3)
        if value is not None:
            outputs[layer.name] = (str(value.name), unit_axes)
    readers = {name: axis for name, axis in _readers(analysis)}
    also = sorted({name for name, _ in outputs.values()} | set(readers))
    reference = Reference(model, also=also)
    sums: dict[str, list[Vector]] = {name: [] for name in also}
    squares: dict[str, list[Vector]] = {name: [] for name in also}
    counts: dict[str, list[int]] = {name: [] for name in also}
    lane_axes = {name: rank for name, rank in outputs.values()}
    for feeds in calibration:
        results = reference.run(feeds)
        for name in also:
            array = results[name].astype(np.float64)
            if name in lane_axes:  # [sequence, directions, batch, hidden] or [directions, batch, hidden]
                array = np.moveaxis(array, 1 if lane_axes[name] == 4 else 0, -2)
                flat = array.reshape(-1, *array.shape[-2:])
            else:
                flat = np.moveaxis(array, readers[name], -1).reshape(-1, array.shape[readers[name]])
            counts[name].append(len(flat))
            sums[name].append(flat.sum(axis=0))
            squares[name].append((flat**2).sum(axis=0))
    if not calibration:
        raise LstmoptError("calibration", "there are no inputs", "give at least one call")
    mean = {name: np.sum(sums[name], axis=0) / sum(counts[name]) for name in also}
    spread = {}
    for name in also:
        variance = np.sum(squares[name], axis=0) / sum(counts[name]) - mean[name] ** 2
        spread[name] = np.sqrt(np.maximum(variance, 0))
    deviations: dict[int, FloatArray] = {}
    means: dict[int, FloatArray] = {}
    for lane in analysis.flow.lanes:
        if lane.layer in outputs:
            name = outputs[lane.layer][0]
            deviations[lane.base], means[lane.base] = spread[name][lane.direction], mean[name][lane.direction]
        else:
            deviations[lane.base], means[lane.base] = np.ones(lane.size), np.zeros(lane.size)
    return Moments(deviations, means, {name: mean[name] for name in readers if name not in lane_axes})


def _readers(analysis: Analysis) -> list[tuple[str, int]]:
    """Returns the values whose features are multiplied with weights, with the feature axis."""
    found = []
    for name, layer in analysis.layers.items():
        value = layer.input(X)
        if value is not None and np.any(analysis.inputs[name] > 0):
            found.append((str(value.name), 2))
    for member in analysis.flow.members:
        data = _data(member)
        if member.role == "consumer" and data is not None:
            axis = {"Conv": 1, "Gemm": 0 if _flag(member.node, "transA") else 1}.get(member.node.op_type, -1)
            found.append((str(data.name), axis))
    return found


def _data(member: Member) -> ir.Value | None:
    """Returns the value that a consumer multiplies with its weights, where folding is known for it."""
    if member.node.op_type in ("MatMul", "Gemm", "Conv") and member.position == 1:
        return member.node.inputs[0]
    return None


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].as_int())


def fold_means(model: ir.Model, plan: Plan, moments: Moments) -> None:
    """Adds the means of removed units to the biases of their readers, in place.

    Where a reader has no bias (a MatMul without Add, a Conv without one) nothing is folded, nor into a gate
    whose sum the means reach multiplied by another gate. Units that
    nothing reads add nothing, so that removing them stays an identity.
    """
    removed = plan.removed()
    for name, layer in plan.analysis.layers.items():
        weights = layer.weights
        assert weights is not None
        added = np.zeros((weights.num_directions, 2, *weights.w.shape[1:3]))
        value = layer.input(X)
        dead = np.isin(plan.analysis.inputs[name], removed)
        if value is not None and dead.any() and str(value.name) in moments.readers:
            added[:, 0] += weights.w[..., dead] @ moments.readers[str(value.name)][dead]
        for lane in plan.analysis.flow.lanes:
            gone = np.isin(lane.codes(), removed)
            if lane.layer == name and gone.any():
                means = weights.r[lane.direction][..., gone] @ moments.means[lane.base][gone]
                added[lane.direction, 1] += means * np.array(weights.adds_state)[:, None]
        if np.any(added):
            biases = np.zeros_like(added) if weights.b is None else weights.b
            folded = (biases + added).astype(weights.w.dtype)
            write_weights(model, layer, replace(weights, b=folded))
    for member in plan.analysis.flow.members:
        data, dead = _data(member), np.isin(member.codes, removed)
        if (
            member.role == "consumer"
            and data is not None
            and dead.any()
            and str(data.name) in moments.readers
        ):
            _fold_consumer(model, member, moments.readers[str(data.name)] * dead)


def _fold_consumer(model: ir.Model, member: Member, means: Vector) -> None:
    node = member.node
    array = constant_value(node.inputs[member.position])
    assert array is not None
    added = np.tensordot(array, means, axes=(member.axis, 0))
    match node.op_type:
        case "Conv":
            _add_to(model, node, 2, added.reshape(len(added), -1).sum(axis=1))
        case "Gemm":
            alpha, beta = (
                node.attributes[key].as_float() if key in node.attributes else 1.0
                for key in ("alpha", "beta")
            )
            if beta:
                _add_to(model, node, 2, added * (alpha / beta))
        case "MatMul" if array.ndim == 2:
            users = list(node.outputs[0].uses())
            if len(users) == 1 and users[0][0].op_type == "Add":
                _add_to(model, users[0][0], 1 - users[0][1], added)


def _add_to(model: ir.Model, node: ir.Node, position: int, added: Vector) -> None:
    """Adds to a constant bias of that very shape; there may be none."""
    value = node.inputs[position] if position < len(node.inputs) else None
    bias = constant_value(value)
    if bias is not None and bias.shape == added.shape and np.any(added):
        replace_constant(model, node, position, (bias + added).astype(bias.dtype))
