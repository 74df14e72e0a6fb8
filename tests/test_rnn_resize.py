"""Adding units leaves the function as it is, on random graphs; `test_drawn_graphs` removes dead ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lstmopt.errors import LstmoptError
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.groups import analyse, unit_groups
from lstmopt.rnn.plan import NEW, Plan
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.surgery import carry_out, resize
from tests.graphs import Drawn, feeds_for, lstm_graphs

SETTINGS = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def carried(model: ir.Model, plan: Plan, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes the kept units out of states, layer by layer, from what the generator says of their layout."""
    layers = {layer.name: layer for layer in find_rnns(model)}
    out = dict(arrays)
    for name, array in arrays.items():
        if name in ("state", "state_out"):
            pieces, row = [], 0
            for layer in layers.values():
                for _ in layer.weights.cell.states:
                    for lane in (lane for lane in plan.analysis.flow.lanes if lane.layer == layer.name):
                        pieces.append(placed(array[row], plan.order.get(lane.base, np.arange(lane.size))))
                        row += 1
            out[name] = np.stack(pieces)
        elif name[0] in "hc" and name[1].isdigit():
            lanes = [lane for lane in plan.analysis.flow.lanes if lane.layer == f"lstm{name[1]}"]
            out[name] = np.stack(
                [
                    placed(array[i], plan.order.get(lane.base, np.arange(lane.size)))
                    for i, lane in enumerate(lanes)
                ]
            )
    return out


def placed(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Takes units in an order along the last axis; NaN where one is new."""
    return np.where(order == NEW, np.nan, array[..., np.maximum(order, 0)])


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], what: object) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape, (name, what)
        known = ~np.isnan(array)
        scale = np.abs(array[known]).max(initial=1e-3)
        assert np.abs(got[name] - array)[known].max(initial=0) <= 1e-5 * scale, (name, what)


def draw_order(analysis: object, data: st.DataObject) -> dict[int, np.ndarray]:
    """Draws which units every free group keeps: the number per group, the units per bundle."""
    order = {}
    for group in analysis.groups:
        if group.pinned is None:
            count = data.draw(st.integers(1, group.hidden_size))
            for bundle in group.bundles:
                units = data.draw(st.permutations(range(group.hidden_size)))[:count]
                order |= {lane.base: np.sort(np.array(units)) for lane in bundle}
    return order


def keep_units(model: ir.Model, order: dict[int, np.ndarray]) -> ir.Model:
    """Returns a copy of a model with the units of each lane that are named, and no others."""
    copy = model.clone()
    carry_out(copy, Plan(analyse(copy), order), np.random.default_rng(0))
    return copy


@settings(max_examples=25, **SETTINGS)
@given(lstm_graphs(), st.data())
def test_added_units_leave_the_function(drawn: Drawn, data: st.DataObject) -> None:
    add_units(drawn, data)


@pytest.mark.deep
@settings(max_examples=200, **SETTINGS)
@given(lstm_graphs(), st.data())
def test_added_units_leave_the_function_on_many_graphs(drawn: Drawn, data: st.DataObject) -> None:
    add_units(drawn, data)


def add_units(drawn: Drawn, data: st.DataObject) -> None:
    analysis = analyse(drawn.model)
    order, sizes = {}, {}
    for group in analysis.groups:
        if group.pinned is None and group.exact:
            more = data.draw(st.integers(0, 3))
            sizes[group.layers[0]] = group.hidden_size + more
            for bundle in group.bundles:
                order |= {lane.base: np.r_[: lane.size, [NEW] * more].astype(int) for lane in bundle}
    plan = Plan(analysis, order)
    try:
        large = resize(drawn.model, sizes, seed=3)
    except LstmoptError as error:
        # Picking single units (a permutation, a cut in the middle) is refused, not guessed.
        assert any(word in str(error) for word in ("picks single", "unequal parts")), (error, drawn)
        return
    feeds = feeds_for(drawn.model, 5, 2, seed=1)
    expected = carried(drawn.model, plan, run_model(drawn.model, feeds))
    filled = {name: np.nan_to_num(array) for name, array in carried(drawn.model, plan, feeds).items()}
    filled = {name: array.astype(feeds[name].dtype) for name, array in filled.items()}
    assert_same(run_model(large.model, filled), expected, drawn)


@settings(max_examples=40, **SETTINGS)
@given(lstm_graphs())
def test_groups_are_free_unless_something_holds_them(drawn: Drawn) -> None:
    groups = unit_groups(drawn.model)
    assert sorted(name for group in groups for name in group.layers) == sorted(drawn.layers)
    pinned = [group.pinned for group in groups if group.pinned]
    assert bool(pinned) == (not drawn.free), (drawn, pinned)
    assert all(group.exact for group in groups) == drawn.exact or pinned


@settings(max_examples=20, **SETTINGS)
@given(lstm_graphs())
def test_a_pinned_layer_is_refused_and_named(drawn: Drawn) -> None:
    for group in unit_groups(drawn.model):
        if group.pinned:
            with pytest.raises(LstmoptError, match="cannot be resized"):
                resize(drawn.model, {group.layers[0]: 2})
