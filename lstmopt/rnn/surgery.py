"""Removes and adds hidden units, with everything that is tied to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.check import Check
from lstmopt.rnn.constants import constant_value
from lstmopt.rnn.folding import fold_means, measure
from lstmopt.rnn.groups import Analysis, UnitGroup, analyse, group_of, lane_importance
from lstmopt.rnn.labels import Lane, Member
from lstmopt.rnn.movers import rewrite_mover
from lstmopt.rnn.plan import NEW, Indices, Plan, take, take_lines
from lstmopt.rnn.reader import RnnLayer
from lstmopt.rnn.state_shapes import keep_state_shapes, state_shapes
from lstmopt.rnn.weights import FloatArray
from lstmopt.rnn.writer import replace_constant, write_weights

if TYPE_CHECKING:
    import onnx_ir as ir


BOUNDED = frozenset({"sigmoid", "tanh", "hardsigmoid", "softsign"})
"""Activations under which no state grows without end, whatever the weights: infinity times 0 would be NaN."""


@dataclass(frozen=True)
class Resized:
    """A model with other hidden sizes.

    Attributes:
        model: a copy; the model that was given is as it was.
        before: hidden size of every layer that can be changed, by name.
        after: the same afterwards.
        kept_importance: share of the importance that the kept units have, by layer; 1 where none went.
    """

    model: ir.Model
    before: Mapping[str, int]
    after: Mapping[str, int]
    kept_importance: Mapping[str, float]


def resize(
    model: ir.Model,
    sizes: Mapping[str, int],
    *,
    seed: int = 0,
    calibration: Sequence[Mapping[str, npt.NDArray[Any]]] = (),
    keep_states: bool = False,
) -> Resized:
    """Gives layers of a model other hidden sizes.

    The least important units go; added ones read small random weights (zeros where an activation has no
    bound) and are read by zeros, so that the function is unchanged. With calibration inputs, a unit's
    importance is multiplied by the standard deviation of its activation, and a removed unit's mean is folded
    into the biases of what read it.

    Args:
        model: the graph.
        sizes: the new hidden size of layers by name; layers that share units change together.
        seed: of added units' weights.
        calibration: inputs of the model, one mapping a call.
        keep_states: whether state inputs and outputs keep their shapes: kept units are gathered from the
            one, and spread over the other with zeros where a unit is gone.

    Raises:
        LstmoptError: unknown layer, a group that is pinned, sizes that contradict each other, or a graph
            that does not stay what it was but for the removed units.
    """
    copy = model.clone()
    analysis = analyse(copy)
    wanted = _wanted(analysis, sizes)
    shrinks = any(size < group.hidden_size for group, size in wanted)
    moments = measure(copy, analysis, calibration) if calibration and shrinks else None
    scores = {lane.base: lane_importance(analysis, lane) for lane in analysis.flow.lanes}
    if moments is not None:
        scores = {base: score * moments.deviations[base] for base, score in scores.items()}
    order: dict[int, Indices] = {}
    for group, size in wanted:
        order.update(_order(group, size, scores))
    plan = Plan(analysis, order)
    if moments is not None:
        fold_means(copy, plan, moments)
        plan = Plan(analyse(copy), order)
    carry_out(copy, plan, np.random.default_rng(seed), keep_states)
    return _record(copy, analysis, order, scores)


def _record(
    model: ir.Model, analysis: Analysis, order: Mapping[int, Indices], scores: Mapping[int, FloatArray]
) -> Resized:
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    share: dict[str, float] = {}
    for lane in analysis.flow.lanes:
        indices = order.get(lane.base, np.arange(lane.size))
        before[lane.layer], after[lane.layer] = lane.size, len(indices)
        score = scores.get(lane.base, np.ones(lane.size))
        kept, whole = score[indices[indices != NEW]].sum(), score.sum()
        share[lane.layer] = min(share.get(lane.layer, 1.0), float(kept / whole) if whole else 1.0)
    return Resized(model, before, after, share)


def _wanted(analysis: Analysis, sizes: Mapping[str, int]) -> list[tuple[UnitGroup, int]]:
    """Returns the groups that change, and to what size."""
    wanted: dict[int, tuple[UnitGroup, int]] = {}
    for name, size in sizes.items():
        group = group_of(analysis, name)
        if size < 1:
            raise LstmoptError(f"layer {name}", f"hidden size {size} is not positive", "give at least 1")
        if wanted.setdefault(id(group), (group, size))[1] != size:
            raise LstmoptError(
                f"layer {name}",
                f"shares its units with {', '.join(group.layers)}",
                "give them one hidden size",
            )
    return [(group, size) for group, size in wanted.values() if size != group.hidden_size]


def carry_out(model: ir.Model, plan: Plan, rng: np.random.Generator, keep_states: bool = False) -> None:
    """Carries out a plan in place and checks the result.

    The removed units are first silenced (nothing reads them any more); the graph must then compute the
    same without them.

    Args:
        model: the graph that the plan's analysis is of.
        plan: what is kept and added.
        rng: for the weights of added units.
        keep_states: whether state inputs and outputs keep their shapes.

    Raises:
        LstmoptError: the result differs: something in the graph is not followed rightly.
    """
    if not plan.order:
        return
    check = Check(model, plan, keep_states)
    shapes = state_shapes(model, plan) if keep_states else {}
    apply(model, plan, rng)
    keep_state_shapes(model, plan, shapes)
    check.compare(model)


def _check_free(group: UnitGroup, size: int) -> None:
    if group.pinned is not None:
        raise LstmoptError(
            f"layer {group.layers[0]}",
            f"its units cannot be resized: {group.pinned}",
            "leave its size as it is",
        )
    if size > group.hidden_size and not group.exact:
        raise LstmoptError(
            f"layer {group.layers[0]}", "cannot grow: a normalisation takes its statistics over the units",
            "only smaller sizes are possible",
        )  # fmt: skip


def _order(group: UnitGroup, size: int, scores: Mapping[int, FloatArray]) -> dict[int, Indices]:
    """Returns the kept units of every lane of a group."""
    _check_free(group, size)
    order = {}
    for bundle in group.bundles:
        if size >= group.hidden_size:
            new = np.full(size - group.hidden_size, NEW)
            indices = np.concatenate([np.arange(group.hidden_size), new]).astype(np.int64)
        else:
            total = sum((scores[lane.base] for lane in bundle), np.zeros(group.hidden_size))
            indices = np.sort(np.argsort(-total, kind="stable")[:size]).astype(np.int64)
        order.update({lane.base: indices for lane in bundle})
    return order


def apply(model: ir.Model, plan: Plan, rng: np.random.Generator) -> None:
    """Carries out a plan in place; the analysis must be of this very model."""
    analysis = plan.analysis
    for name, layer in analysis.layers.items():
        lanes = [lane for lane in analysis.flow.lanes if lane.layer == name]
        columns = plan.positions(analysis.inputs[name])
        same = np.array_equal(columns, np.arange(len(analysis.inputs[name])))
        if any(lane.base in plan.order for lane in lanes) or not same:
            _rewrite_layer(model, layer, lanes, columns, plan, rng)
    for member in analysis.flow.members:
        _rewrite_member(model, member, plan)
    for node in analysis.flow.movers:
        rewrite_mover(model, node, plan)
    _forget_shapes(model, plan)


def _rewrite_layer(
    model: ir.Model,
    layer: RnnLayer,
    lanes: list[Lane],
    columns: Indices,
    plan: Plan,
    rng: np.random.Generator,
) -> None:
    weights = layer.weights
    assert weights is not None
    w = take(weights.w, columns, 3)
    names = {name.lower() for name in weights.activations}
    grows = any(np.any(plan.order[lane.base] == NEW) for lane in lanes if lane.base in plan.order)
    if grows and "affine" in names:
        raise LstmoptError(
            f"layer {layer.name}", "cannot grow: its activation Affine may let added units run off",
            "only smaller sizes are possible",
        )  # fmt: skip
    parts: dict[str, list[FloatArray]] = {"w": [], "r": [], "b": [], "p": []}
    for lane in lanes:
        order = plan.order.get(lane.base, np.arange(lane.size))
        new = order == NEW
        rows_w, rows_r = take(w[lane.direction], order, 1), take(weights.r[lane.direction], order, 1)
        rows_r = take(rows_r, order, 2)
        # Zero rows leave the state of an added unit what activations make of 0, which none lets run off.
        scale = 1 / np.sqrt(len(order)) if names <= BOUNDED else 0.0
        rows_w[:, new] = rng.uniform(-scale, scale, rows_w[:, new].shape)
        rows_w[:, :, columns == NEW] = 0  # added inputs are read by zeros
        rows_r[:, new] = rng.uniform(-scale, scale, rows_r[:, new].shape)
        rows_r[:, :, new] = 0
        parts["w"].append(rows_w)
        parts["r"].append(rows_r)
        if weights.b is not None:
            parts["b"].append(take(weights.b[lane.direction], order, 2))
        if weights.p is not None:
            parts["p"].append(take(weights.p[lane.direction], order, 1))
    stacked = {name: np.stack(arrays).astype(weights.w.dtype) for name, arrays in parts.items() if arrays}
    new = replace(weights, w=stacked["w"], r=stacked["r"], b=stacked.get("b"), p=stacked.get("p"))
    write_weights(model, layer, new)


def _rewrite_member(model: ir.Model, member: Member, plan: Plan) -> None:
    array = constant_value(member.node.inputs[member.position])
    assert array is not None
    if member.codes.ndim > 1:
        new = take_lines(array, member.codes, member.axis, plan)
        if new is not None:
            replace_constant(model, member.node, member.position, new)
        return
    positions = plan.positions(member.codes)
    if np.array_equal(positions, np.arange(array.shape[member.axis])):
        return
    new = take(array, positions, member.axis)
    if member.role == "unit" and np.any(positions == NEW):
        # A variance of 0 or a divisor of 0 would make the added units infinite.
        np.moveaxis(new, member.axis, 0)[positions == NEW] = 1
    replace_constant(model, member.node, member.position, new)


def _forget_shapes(model: ir.Model, plan: Plan) -> None:
    """Sets the shapes of state inputs and outputs, and drops those of values inside, which may be stale."""
    import onnx_ir as ir

    labels = plan.analysis.flow.labels
    for value in (*model.graph.inputs, *model.graph.outputs):
        resized = plan.size_along(labels[value]) if value in labels else None
        if resized is not None and value.shape is not None:
            sizes = list(value.shape)
            if isinstance(sizes[resized[0]], int):
                sizes[resized[0]] = resized[1]
            value.shape = ir.Shape(sizes)
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
