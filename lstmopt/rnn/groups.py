"""`UnitGroup`: everything that is tied to the hidden units of some layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmopt.errors import LstmoptError
from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.labels import Codes, Flow, Lane, Member, Walk
from lstmopt.rnn.reader import RnnLayer, X, find_rnns, without_branches
from lstmopt.rnn.states import state_pairs

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Layers whose hidden sizes can only change together, and all that changes with them.

    Attributes:
        layers: names of the layers.
        hidden_size: hidden units of each direction of each of the layers.
        bundles: lanes (a direction of a layer) that keep the same units; between bundles only the number
            kept has to be equal.
        members: constants with an axis of these units, beside the layers' own weights.
        readers: layers that read these units as their input.
        interface: names of state inputs and outputs of the graph whose shape changes with the group.
        exact: whether removing dead units leaves the function as it is.
        pinned: why no unit can be removed, or None.
    """

    layers: tuple[str, ...]
    hidden_size: int
    bundles: tuple[tuple[Lane, ...], ...]
    members: tuple[Member, ...]
    readers: tuple[str, ...]
    interface: tuple[str, ...]
    exact: bool
    pinned: str | None


@dataclass(frozen=True, eq=False)
class Analysis:
    """The groups of a model, with what a rewrite needs.

    Attributes:
        layers: the layers whose units can be followed, by name.
        groups: in the order of the layers, then a pinned one for each layer in a body.
        flow: where the units go.
        inputs: the units of each layer's input features, ``[input_size]``, 0 where none.
    """

    layers: dict[str, RnnLayer]
    groups: tuple[UnitGroup, ...]
    flow: Flow
    inputs: dict[str, Codes]


def unit_groups(model: ir.Model) -> tuple[UnitGroup, ...]:
    """Returns the unit groups of a model; see `analyse`."""
    return analyse(model).groups


def fixed_sizes(groups: Sequence[UnitGroup]) -> list[str]:
    """Returns a line for each group that cannot be resized."""
    return [
        f"{', '.join(group.layers)} keeps its hidden size: {group.pinned}"
        for group in groups
        if group.pinned is not None
    ]


def analyse(model: ir.Model) -> Analysis:
    """Follows the hidden units of all layers of the main graph; those in bodies keep their sizes.

    The graph is run once on small inputs, since only concrete shapes tell where a unit goes.

    Raises:
        LstmoptError: no inputs were found on which the model runs.
    """
    found = find_rnns(model)
    layers = tuple(layer for layer in found if layer.resizable)
    inside = tuple(_in_body(model, layer) for layer in found if layer.in_body)
    if not layers:
        return Analysis({}, inside, Flow(()), {})
    flow = Walk(model.graph, layers, _values(model)).run()
    inputs = {}
    for layer in layers:
        value = layer.input(X)
        assert layer.weights is not None and value is not None
        along = flow.axis_codes(flow.labels[value]) if value in flow.labels else None
        inputs[layer.name] = np.zeros(layer.weights.input_size, np.int64) if along is None else along[1]
    groups = (*_group(model, flow, layers, inputs), *inside)
    return Analysis({layer.name: layer for layer in layers}, groups, flow, inputs)


def _in_body(model: ir.Model, layer: RnnLayer) -> UnitGroup:
    """Returns the group of a layer in a body, which keeps its hidden size."""
    assert layer.weights is not None
    hint = without_branches(model, layer)
    return UnitGroup(
        layers=(layer.name,),
        hidden_size=layer.weights.hidden_size,
        bundles=(),
        members=(),
        readers=(),
        interface=(),
        exact=True,
        pinned=f"it is inside {layer.where}" + (f"; {hint}" if hint else ""),
    )


def _values(model: ir.Model) -> dict[str, npt.NDArray[Any]]:
    """Returns every value of the main graph on a small call."""
    names = [str(output.name) for node in model.graph for output in node.outputs if output.name]
    feeds = example_inputs(model, 0, sizes_for(model, 2, 3))
    return {**feeds, **Reference(model, also=names).run(feeds)}


def _group(
    model: ir.Model, flow: Flow, layers: tuple[RnnLayer, ...], inputs: dict[str, Codes]
) -> tuple[UnitGroup, ...]:
    lanes = flow.lanes
    bundle = _Union(len(lanes))
    together = _Union(len(lanes))
    faults: dict[int, str] = {}

    def lanes_in(codes: Codes) -> list[int]:
        return sorted({int(lane) for lane in flow.lane_of(codes[codes > 0])}) if np.any(codes > 0) else []

    for codes, reason in flow.pins:
        for lane in lanes_in(codes):
            faults.setdefault(lane, reason)
    for one, other in flow.ties:
        _tie(flow, one, other, bundle, faults)
    # All directions of a layer have one hidden size, and so have states in one tensor.
    for layer in layers:
        mine = [index for index, lane in enumerate(lanes) if lane.layer == layer.name]
        for index in mine[1:]:
            together.join(mine[0], index)
    pairs = state_pairs(model)
    states = {pair.input for pair in pairs} | {pair.output for pair in pairs}
    interface: dict[int, set[str]] = {}
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value not in flow.labels:
            continue
        touched = lanes_in(flow.labels[value])
        if str(value.name) in states and flow.unit_axis(flow.labels[value]) is not None:
            for lane in touched:
                together.join(touched[0], lane)
                interface.setdefault(lane, set()).add(str(value.name))
        else:
            kind = "output" if value.is_graph_output() else "input"
            for lane in touched:
                faults.setdefault(lane, f"they reach the {kind} {value.name}")
    for index in range(len(lanes)):
        together.join(index, bundle.root(index))
    inexact = {lane for codes, _ in flow.inexact for lane in lanes_in(codes)}

    groups = []
    for root in sorted({together.root(index) for index in range(len(lanes))}):
        own = [index for index in range(len(lanes)) if together.root(index) == root]
        sizes = {lanes[index].size for index in own}
        pinned = next((faults[index] for index in own if index in faults), None)
        if len(sizes) > 1:
            pinned = pinned or "layers of different hidden sizes share them"
        bundles: dict[int, list[Lane]] = {}
        for index in own:
            bundles.setdefault(bundle.root(index), []).append(lanes[index])
        codes = np.concatenate([lanes[index].codes() for index in own])
        groups.append(
            UnitGroup(
                layers=tuple(dict.fromkeys(lanes[index].layer for index in own)),
                hidden_size=lanes[own[0]].size,
                bundles=tuple(tuple(bundle) for bundle in bundles.values()),
                members=tuple(member for member in flow.members if np.isin(member.codes, codes).any()),
                readers=tuple(name for name, read in inputs.items() if np.isin(read, codes).any()),
                interface=tuple(sorted({name for index in own for name in interface.get(index, ())})),
                exact=not any(index in inexact for index in own),
                pinned=pinned,
            )
        )
    return tuple(groups)


def _tie(flow: Flow, one: Codes, other: Codes, bundle: _Union, faults: dict[int, str]) -> None:
    """Joins lanes whose units go together; all of both lanes have to, unit by unit."""
    lane_one, lane_other = flow.lane_of(one), flow.lane_of(other)
    for a, b in {(int(a), int(b)) for a, b in zip(lane_one, lane_other, strict=True)}:
        here = (lane_one == a) & (lane_other == b)
        units_a = one[here] - flow.lanes[a].base
        units_b = other[here] - flow.lanes[b].base
        whole = len(np.unique(units_a)) == flow.lanes[a].size == flow.lanes[b].size
        if a != b and whole and np.array_equal(units_a, units_b):
            bundle.join(a, b)
        else:
            for lane in (a, b):
                faults.setdefault(lane, "they are combined with other units at other places")


class _Union:
    """Disjoint sets of the numbers 0 to n - 1."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def root(self, index: int) -> int:
        while self._parents[index] != index:
            index = self._parents[index]
        return index

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self._parents[second] = first


def group_of(analysis: Analysis, layer: str) -> UnitGroup:
    """Returns the group of a layer.

    Raises:
        LstmoptError: no such layer among those that can be changed.
    """
    for group in analysis.groups:
        if layer in group.layers:
            return group
    known = ", ".join(analysis.layers) or "none"
    raise LstmoptError(f"layer {layer}", "is not one that can be resized", f"the layers are: {known}")


def lane_importance(analysis: Analysis, lane: Lane) -> npt.NDArray[np.float64]:
    """Returns how much each unit of a lane matters, ``[hidden_size]``, no unit.

    The geometric mean of the norms of what comes in (its rows of W, R and its biases) and of what goes
    out (its column of R and of every consumer): a unit is unimportant where either is nothing.
    """
    layer = analysis.layers[lane.layer]
    weights = layer.weights
    assert weights is not None
    d = lane.direction
    incoming = (weights.w[d] ** 2).sum(axis=(0, 2)) + (weights.r[d] ** 2).sum(axis=(0, 2))
    if weights.b is not None:
        incoming = incoming + (weights.b[d].sum(axis=0) ** 2).sum(axis=0)
    outgoing = (weights.r[d] ** 2).sum(axis=(0, 1)).astype(np.float64) + outgoing_energy(analysis, lane)
    return np.asarray(np.sqrt(np.sqrt(incoming.astype(np.float64)) * np.sqrt(outgoing)))


def outgoing_energy(analysis: Analysis, lane: Lane) -> npt.NDArray[np.float64]:
    """Returns the sum of squares of the weights of all other readers of each unit, ``[hidden_size]``."""
    from lstmopt.rnn.constants import constant_value

    total = np.zeros(lane.size)
    for member in analysis.flow.members:
        if member.role == "consumer":
            array = constant_value(member.node.inputs[member.position])
            assert array is not None
            _add(
                total,
                lane,
                member.codes,
                (np.moveaxis(array, member.axis, 0) ** 2).reshape(len(member.codes), -1),
            )
    for name, codes in analysis.inputs.items():
        weights = analysis.layers[name].weights
        assert weights is not None
        _add(total, lane, codes, (np.moveaxis(weights.w, 3, 0) ** 2).reshape(len(codes), -1))
    return total


def _add(total: npt.NDArray[np.float64], lane: Lane, codes: Codes, squares: npt.NDArray[Any]) -> None:
    mine = (codes >= lane.base) & (codes < lane.base + lane.size)
    np.add.at(total, codes[mine] - lane.base, squares[mine].sum(axis=1))
